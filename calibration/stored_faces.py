"""The reference faces a bundle carries: `reference/lq/`, what fp32 made of them in `fp32/`, the truth in `hq/`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import BundleError
from ufr_edge.runtime.bundle import Bundle
from ufr_edge.runtime.images import read_image
from ufr_edge.runtime.manifest import REFERENCE


def stored_names(bundle: Bundle, part: str) -> tuple[str, ...]:
    """File names of one part ("lq", "fp32", "hq"), sorted; () where the bundle stores none."""
    prefix = f"{REFERENCE}/{part}/"
    return tuple(
        sorted(name.removeprefix(prefix) for name in bundle.manifest.files if name.startswith(prefix))
    )


def read_stored(bundle: Bundle, part: str, names: Sequence[str]) -> NDArray[np.uint8]:
    """Read faces of one part: uint8 RGB (N, S, S, 3), in the order of `names` (N >= 1).

    Raises BundleError when one is missing or not of the bundle's side, InputFileError when one is damaged.
    """
    side = bundle.manifest.restorer.side
    frames = [read_image(bundle.file(f"{REFERENCE}/{part}/{name}")) for name in names]
    for name, frame in zip(names, frames, strict=True):
        if frame.shape != (side, side, 3):
            path = bundle.path / REFERENCE / part / name
            msg = f"{path} is {frame.shape}, not ({side}, {side}, 3). Export the bundle again."
            raise BundleError(msg)
    return np.stack(frames)
