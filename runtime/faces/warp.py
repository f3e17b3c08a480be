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
    if k > 1:
        matrix = refined(matrix, k)
    part, matrix = _part(picture, matrix, (width * k, height * k), border)
    fine = _warp(part, matrix, (width * k, height * k), border)
    if k > 1:
        fine = _averaged(fine, size, k)
    return fine if fine.shape[2] == 3 else np.asarray(cv2.cvtColor(fine, cv2.COLOR_RGBA2RGB), np.uint8)


def warp_mask(mask: FloatArray, matrix: Affine, size: tuple[int, int]) -> FloatArray:
    """Warp a smooth float32 mask; outside of it is 0."""
    out = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(out, dtype=np.float32)


def scale_of(matrix: Affine) -> float:
    """Linear scale of an affine matrix: the square root of its area factor."""
    (a, b, _), (c, d, _) = matrix.tolist()
    return math.sqrt(abs(a * d - b * c))


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


def _part(picture: Frame, matrix: Affine, size: tuple[int, int], border: int) -> tuple[Frame, Affine]:
    """The part of `picture` that the result shows, with a fourth channel, and the matrix from it.

    OpenCV warps four channels twice as fast as three, to the same bytes. The whole picture as it is where the
    result shows what lies outside, which depends on all of it, and where there is little to gain.
    """
    height, width = picture.shape[:2]
    corners = np.array([[0, 0], [size[0], 0], [0, size[1]], size], np.float64)
    places = corners @ (back := inverse(matrix))[:, :2].T + back[:, 2]
    (x0, y0), (x1, y1) = (places.min(axis=0) - 2).tolist(), (places.max(axis=0) + 3).tolist()
    if border == cv2.BORDER_REPLICATE:  # which needs nothing but the edge
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if (
        not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height)
        or (x1 - x0) * (y1 - y0) > 4 * size[0] * size[1]
    ):
        return picture, matrix
    left, top = int(x0), int(y0)
    part = cv2.cvtColor(picture[top : math.ceil(y1), left : math.ceil(x1)], cv2.COLOR_RGB2RGBA)
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (left, top)
    return np.asarray(part, np.uint8), shifted


def _averaged(fine: Frame, size: tuple[int, int], k: int) -> Frame:
    if k % 2:  # OpenCV averages fast over even numbers of pixels only
        half = k // 2
        return np.ascontiguousarray(cv2.blur(fine, (k, k))[half::k, half::k])
    return np.asarray(cv2.resize(fine, size, interpolation=cv2.INTER_AREA), np.uint8)


def _warp(picture: Frame, matrix: Affine, size: tuple[int, int], border: int) -> Frame:
    out = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(out, dtype=np.uint8)
