"""How far two sets of frames lie apart, and what to compare engines on when no face is given."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import ShapeError
from ufr_edge.runtime.engines import Engine
from ufr_edge.runtime.manifest import ParityInfo

PSNR_CAP = 100.0
"""dB written for identical frames: JSON has no infinity."""


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """PSNR in dB over all values of two uint8 arrays of one shape, at most PSNR_CAP."""
    error = float(np.square(a.astype(np.float32) - b.astype(np.float32)).mean(dtype=np.float64))
    return PSNR_CAP if error == 0 else min(PSNR_CAP, 10 * float(np.log10(255.0**2 / error)))


def mean_psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean over images of the PSNR in dB: a and b uint8 (N, S, S, 3)."""
    return float(np.mean([psnr(x, y) for x, y in zip(a, b, strict=True)]))


def compare_frames(got: NDArray[np.uint8], want: NDArray[np.uint8]) -> ParityInfo:
    """Compare uint8 frames (N, S, S, 3) against a reference. Raises ShapeError when the shapes differ."""
    if got.shape != want.shape:
        msg = f"Frames of shape {got.shape} cannot be compared with {want.shape}."
        raise ShapeError(msg)
    gap = np.abs(got.astype(np.int16) - want.astype(np.int16))
    return ParityInfo(
        psnr_db=round(psnr(got, want), 3),
        max_abs=int(gap.max()),
        mean_abs=round(float(gap.mean()), 5),
        images=len(got),
    )


def pattern_frames(count: int, side: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth coloured blobs with a little grain, uint8 (count, side, side, 3): for numerical checks only.

    Good enough to compare two runs of the same network, never to calibrate on.
    """
    rng = np.random.default_rng(seed)
    frames = np.empty((count, side, side, 3), np.uint8)
    for i in range(count):
        coarse = rng.uniform(20, 235, (8, 8, 3)).astype(np.float32)
        smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        frames[i] = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    return frames


def run_batches(engine: Engine, frames: NDArray[np.uint8], *, batch: int = 1) -> NDArray[np.uint8]:
    """Run an engine over uint8 (N, S, S, 3), N >= 1, `batch` at a time."""
    return np.concatenate([engine.infer(frames[i : i + batch]) for i in range(0, len(frames), batch)])
