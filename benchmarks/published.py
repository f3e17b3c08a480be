"""Networks of the field in the size their authors published, with random weights (seed 0): for speed and for exports."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ufr_edge.restorers.spandrel_loader import SpandrelRestorer, build_from_state, import_architecture

_SWINIR = MappingProxyType(
    {
        "img_size": 64,
        "patch_size": 1,
        "in_chans": 3,
        "embed_dim": 180,
        "depths": [6] * 8,
        "num_heads": [6] * 8,
        "window_size": 8,
        "mlp_ratio": 2,
        "upscale": 8,
        "img_range": 1.0,
        "upsampler": "nearest+conv",
        "resi_connection": "1conv",
        "start_unshuffle": 8,
    }
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A network as it is published. label: its name in a table; module, cls: where it is; extra: the pip extra of ours."""

    label: str
    module: str
    cls: str
    extra: str = "spandrel"
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "swinir": Published(
            label="SwinIR (the paper's)",
            module="spandrel.architectures.SwinIR",
            cls="SwinIR",
            options=_SWINIR,
        ),
        "gfpgan": Published(label="GFPGAN v1.4", module="spandrel.architectures.GFPGAN", cls="GFPGAN"),
        "codeformer": Published(
            label="CodeFormer",
            module="spandrel_extra_arches.architectures.CodeFormer",
            cls="CodeFormer",
            extra="codeformer",
        ),
        "restoreformer": Published(
            label="RestoreFormer", module="spandrel.architectures.RestoreFormer", cls="RestoreFormer"
        ),
    }
)
"""By the names of the command lines. All take faces of 512 px."""


def random_network(name: str) -> SpandrelRestorer:
    """Build it with random weights, in eval mode, as a checkpoint of it would be loaded.

    Raises BackendUnavailableError without the package that holds the network.
    """
    wanted = PUBLISHED[name]
    module = import_architecture(wanted.module, extra=wanted.extra)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        state = getattr(module, wanted.cls)(**wanted.options).state_dict()
    if name == "swinir":  # the release has the first convolution behind the unshuffling
        state = {key.replace("conv_first.", "conv_first.1.", 1): value for key, value in state.items()}
    return build_from_state(name, state, Path(f"{name}, random"))
