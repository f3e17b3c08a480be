"""Affine warps that do not alias: when the result is smaller than its source, it is filtered first."""

from __future__ import annotations

import math

import cv2
import numpy as np

from ufr_edge.runtime.frame import Affine, FloatArray, Frame

_MOST_SAMPLES = 8


def warp(
    picture: Frame, matrix: Affine, size: tuple[int, int], *, border: int = cv2.BORDER_REFLECT_101
) -> Frame:
    """Warp uint8 `picture` by `matrix` (source to result) into `size` = (width, height).

    When the result shrinks, k x k samples per result pixel are averaged, k = ceil(1 / scale), so that
    detail finer than a result pixel is filtered away instead of folding back.
    """
    width, height = size
    k = min(_MOST_SAMPLES, max(1, math.ceil(1 / scale_of(matrix) - 0.05)))
    if k == 1:
        return _warp(picture, matrix, size, border)
    fine = _warp(picture, refined(matrix, k), (width * k, height * k), border)
    return np.asarray(cv2.resize(fine, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def warp_mask(mask: FloatArray, matrix: Affine, size: tuple[int, int]) -> FloatArray:
    """Warp a smooth float32 mask; outside of it is 0."""
    out = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(out, dtype=np.float32)


def scale_of(matrix: Affine) -> float:
    """Linear scale of an affine matrix: the square root of its area factor."""
    return math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))


def refined(matrix: Affine, k: int) -> Affine:
    """The same warp onto a grid k times as fine (pixel centres on whole numbers)."""
    out = matrix * k
    out[:, 2] += (k - 1) / 2
    return out


def inverse(matrix: Affine) -> Affine:
    """The matrix that undoes `matrix`."""
    return np.asarray(cv2.invertAffineTransform(matrix), dtype=np.float64)


def compose(second: Affine, first: Affine) -> Affine:
    """The matrix that does `first`, then `second`."""
    linear = second[:, :2] @ first[:, :2]
    return np.column_stack([linear, second[:, :2] @ first[:, 2] + second[:, 2]])


def apply(matrix: Affine, points: FloatArray) -> FloatArray:
    """Map points (N, 2) x, y by a 2x3 matrix."""
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], dtype=np.float32)


def _warp(picture: Frame, matrix: Affine, size: tuple[int, int], border: int) -> Frame:
    out = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(out, dtype=np.uint8)
