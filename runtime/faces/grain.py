"""The input's noise, given back to a restored face so that it does not look cut out and put in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ufr_edge.runtime.frame import FloatArray, Frame

_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)  # Immerkaer 1996: blind to edges
_GAIN = 6.0  # of the kernel, for white noise
_LEAST_SIDE = 8


@dataclass(frozen=True, kw_only=True)
class Grain:
    """strength: 1 adds as much noise as the restored face lacks. seed: another one for each frame and face."""

    strength: float
    seed: tuple[int, ...]


def noise_level(picture: FloatArray | Frame) -> float:
    """Standard deviation of the brightness noise of (H, W, 3), in 8-bit levels, from its finest detail.

    Median in place of Immerkaer's mean, so that the detail of less than half of the picture counts nothing.
    """
    grey = picture.mean(axis=2, dtype=np.float32)
    return float(np.median(np.abs(cv2.filter2D(grey, cv2.CV_32F, _KERNEL)))) / (0.6745 * _GAIN)


def add_grain(face: FloatArray, under: Frame, grain: Grain) -> None:
    """Add to `face` float32 (H, W, 3), in place, the noise that `under` has and it has not: grey and white."""
    if grain.strength <= 0 or min(face.shape[:2]) < _LEAST_SIDE:
        return
    missing = math.sqrt(max(0.0, noise_level(under) ** 2 - noise_level(face) ** 2))
    noise = np.random.default_rng(grain.seed).standard_normal(face.shape[:2], np.float32)
    face += noise[..., None] * np.float32(grain.strength * missing)
    np.clip(face, 0, 255, out=face)
