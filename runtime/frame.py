"""The picture every part of the runtime passes around."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ufr_edge.errors import ShapeError

Frame = npt.NDArray[np.uint8]
"""RGB picture: uint8 (H, W, 3), C order."""

FloatArray = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]
"""Whole pixels x0, y0, x1, y1 of a picture; x1 and y1 are outside."""
Affine = npt.NDArray[np.float64]
"""2x3 matrix: (x, y) of one picture to (x, y) of another; pixel centres are whole numbers."""


def check_frame(frame: Frame, *, what: str = "frame") -> None:
    """Raise ShapeError unless `frame` is uint8 (H, W, 3) and not empty."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        msg = f"{what} must be uint8 (H, W, 3) RGB, not {frame.dtype} {frame.shape}."
        raise ShapeError(msg)
