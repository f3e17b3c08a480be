"""Weights between those of two trainings: from faithful to sharp without training again."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from ufr_edge.errors import ConfigError
from ufr_edge.files import check_free
from ufr_edge.restorers.edge import EdgeUNet
from ufr_edge.restorers.files import Storage, load_restorer, save_restorer


@torch.no_grad()
def blend_restorers(first: EdgeUNet, second: EdgeUNet, share: float) -> EdgeUNet:
    """Return (1 - share) of the first's weights and `share` of the second's (Wang et al. 2018, ESRGAN, section 3.4).

    Works where one was trained on from the other: weights of two separate trainings do not mix.
    Raises ConfigError for networks of another shape, or a share outside 0 .. 1.
    """
    if not 0 <= share <= 1:
        msg = f"The share of the second restorer lies from 0 to 1; got {share:g}."
        raise ConfigError(msg)
    if first.config != second.config:
        msg = "Only restorers of one architecture can be blended."
        raise ConfigError(msg)
    blended = copy.deepcopy(first)
    for own, other in zip(blended.parameters(), second.parameters(), strict=True):
        own.lerp_(other.to(own), share)
    return blended


def blend_files(
    first: str | Path,
    second: str | Path,
    out: Path,
    *,
    share: float,
    storage: Storage = "fp32",
    overwrite: bool = False,
) -> Path:
    """Blend two restorers by name, file or run folder into the file `out`. Raises as `blend_restorers` and `load_restorer`."""
    check_free(out, overwrite=overwrite)
    a, b = load_restorer(first), load_restorer(second)
    model = blend_restorers(a.model, b.model, share)
    meta = {**b.meta, "blend": f"{share:g}"}
    meta = {key: value for key, value in meta.items() if key not in ("format", "arch", "side", "storage")}
    save_restorer(model, out, arch=a.arch, side=a.side, meta=meta, storage=storage)
    return out
