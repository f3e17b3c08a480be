"""Choosing frames that differ: in pose and person, exposure, colour and blur.

Farthest-point sampling (Gonzalez 1985) over a small descriptor: each frame taken is the one least like those
taken before, so that rare poses and exposures are in the set whatever share of the footage they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

_LOOK = 32  # side of the grey picture that pose and person are read from
_FREQUENCIES = 8  # lowest ones kept in each direction
_DIRECTIONS = 8
_DARK, _BRIGHT = 24, 231  # uint8 levels beyond which detail is lost to the quantizer or to clipping


def describe(image: NDArray[np.uint8]) -> tuple[FloatArray, ...]:
    """What one RGB face uint8 (S, S, 3) looks like: four float32 vectors.

    Appearance (low DCT frequencies of the grey picture, contrast normalised), edge directions in quarters of the
    picture, exposure and colour (mean, spread, share dark and bright, red and blue against green), sharpness.
    """
    small = cv2.resize(image, (2 * _LOOK, 2 * _LOOK), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    grey = small.mean(axis=2)
    return (_appearance(grey), _directions(grey), _exposure(image, small), _sharpness(image))


def descriptors(images: Sequence[NDArray[np.uint8]]) -> FloatArray:
    """Descriptors of N >= 1 images, float32 (N, D): each part scaled to the same mean square distance."""
    parts = []
    for rows in zip(*(describe(image) for image in images), strict=True):
        part = np.stack(rows)
        part = part - part.mean(axis=0)
        spread = float(np.sqrt(np.square(part).sum(axis=1).mean()))
        parts.append(part / spread if spread > 0 else part)
    return np.concatenate(parts, axis=1).astype(np.float32)


def farthest_points(points: FloatArray, count: int, *, seed: int = 0) -> list[int]:
    """Indices of at most `count` >= 1 points (N, D), each the farthest from those before it, in that order.

    The first is drawn with `seed`; everything else follows from it.
    """
    taken = [int(np.random.default_rng(seed).integers(len(points)))]
    nearest = _distances(points, taken[0])
    while len(taken) < min(count, len(points)):
        nearest[taken] = -1.0
        taken.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(points, taken[-1]))
    return taken


def _distances(points: FloatArray, index: int) -> FloatArray:
    return np.asarray(np.square(points - points[index]).sum(axis=1), np.float32)


def _appearance(grey: FloatArray) -> FloatArray:
    look = cv2.resize(grey, (_LOOK, _LOOK), interpolation=cv2.INTER_AREA)
    look = (look - look.mean()) / max(float(look.std()), 1e-3)
    low = cv2.dct(np.ascontiguousarray(look, dtype=np.float32))[:_FREQUENCIES, :_FREQUENCIES]
    return np.asarray(low.ravel()[1:], np.float32)


def _directions(grey: FloatArray) -> FloatArray:
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    strength, angle = cv2.cartToPolar(across, down)
    bins = np.minimum((angle % np.pi) / np.pi * _DIRECTIONS, _DIRECTIONS - 1).astype(np.int64)
    histograms = []
    for rows in (slice(0, _LOOK), slice(_LOOK, None)):
        for columns in (slice(0, _LOOK), slice(_LOOK, None)):
            cell, weight = bins[rows, columns].ravel(), strength[rows, columns].ravel()
            histograms.append(
                np.bincount(cell, weights=weight, minlength=_DIRECTIONS) / max(weight.sum(), 1e-6)
            )
    return np.concatenate(histograms).astype(np.float32)


def _exposure(image: NDArray[np.uint8], small: FloatArray) -> FloatArray:
    red, green, blue = small.mean(axis=(0, 1))
    dark, bright = float((image < _DARK).mean()), float((image > _BRIGHT).mean())
    return np.array(
        [small.mean(), small.std(), dark, bright, red - green, blue - green, small.min(), small.max()],
        np.float32,
    )


def _sharpness(image: NDArray[np.uint8]) -> FloatArray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.array([np.log1p(float(cv2.Laplacian(grey, cv2.CV_32F).var()))], np.float32)
