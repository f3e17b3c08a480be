"""Small seeded image operations that the cameras are made of. Floats are float32 (H, W, 3) RGB in [0, 1]."""

from __future__ import annotations

import math
from typing import Any, TypeAlias, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import ConfigError, ShapeError

Frame: TypeAlias = NDArray[np.uint8]
FloatImage: TypeAlias = NDArray[np.float32]
Kernel: TypeAlias = NDArray[np.float64]

_RANK_LIMIT = 8  # more separable passes than this cost more than one two-dimensional pass
_RANK_ERROR = 3e-4  # singular values left out; the picture then differs by under half an 8-bit level
_SUPPORT = 3.5  # standard deviations kept


def check_frame(image: NDArray[Any]) -> Frame:
    """Return `image` when it is uint8 (H, W, 3); else raise ShapeError."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape) < 1:
        msg = f"Expected a uint8 (H, W, 3) RGB image, got {image.dtype} {image.shape}."
        raise ShapeError(msg)
    return cast(Frame, image)


def to_float(image: Frame) -> FloatImage:
    """uint8 to float32 in [0, 1]."""
    return np.multiply(image, np.float32(1 / 255), dtype=np.float32)


def to_uint8(image: FloatImage) -> Frame:
    """float in [0, 1] to uint8, clipped and rounded."""
    return cast(Frame, cv2.convertScaleAbs(np.clip(image, 0, 1), alpha=255.0))


def gaussian_kernel(sigma_x: float, sigma_y: float, angle: float, *, radius: int) -> Kernel:
    """Rotated 2-D Gaussian, cropped to 3.5 sigma and at most `radius` pixels, sum 1.

    Sigmas in pixels, `angle` in radians from the x axis.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    var_x, var_y = sigma_x**2, sigma_y**2
    cov_xx, cov_yy = var_x * cos**2 + var_y * sin**2, var_x * sin**2 + var_y * cos**2
    reach_x = min(radius, max(1, math.ceil(_SUPPORT * math.sqrt(cov_xx))))
    reach_y = min(radius, max(1, math.ceil(_SUPPORT * math.sqrt(cov_yy))))
    y, x = np.mgrid[-reach_y : reach_y + 1, -reach_x : reach_x + 1].astype(np.float64)
    along, across = x * cos + y * sin, y * cos - x * sin
    kernel = np.exp(-0.5 * (along**2 / var_x + across**2 / var_y))
    return cast(Kernel, kernel / kernel.sum())


def filter_image(image: FloatImage, kernel: Kernel) -> FloatImage:
    """Convolve with a symmetric kernel, mirrored border; separable passes when they are near enough and cheaper."""
    if min(kernel.shape) < 3:
        return cast(FloatImage, cv2.filter2D(image, -1, kernel.astype(np.float32)))
    u, s, vt = np.linalg.svd(kernel)
    tail = np.concatenate((np.cumsum(s[::-1])[::-1][1:], [0.0]))
    rank = int(np.argmax(tail < _RANK_ERROR)) + 1
    if rank > _RANK_LIMIT:
        return cast(FloatImage, cv2.filter2D(image, -1, kernel.astype(np.float32)))
    passes = [
        cv2.sepFilter2D(image, -1, vt[i].astype(np.float32), (u[:, i] * s[i]).astype(np.float32))
        for i in range(rank)
    ]
    total = passes[0]
    for other in passes[1:]:
        cv2.add(total, other, dst=total)
    return cast(FloatImage, total)


def gaussian_blur(
    image: FloatImage, sigma_x: float, sigma_y: float, angle: float, *, radius: int
) -> FloatImage:
    """Blur by `gaussian_kernel`."""
    return filter_image(image, gaussian_kernel(sigma_x, sigma_y, angle, radius=radius))


def motion_kernel(length: float, angle: float) -> Kernel:
    """Straight uniform motion of `length` pixels at `angle` radians, sum 1."""
    radius = max(1, math.ceil(length / 2))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    inside = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1)  # anti-aliased ends and sides
    kernel = inside * np.clip(1 - np.abs(across), 0, 1)
    return cast(Kernel, kernel / kernel.sum())


def motion_blur(image: FloatImage, length: float, angle: float) -> FloatImage:
    """Blur along a line of `length` pixels at `angle` radians."""
    return filter_image(image, motion_kernel(length, angle))


def disc_kernel(radius: float) -> Kernel:
    """Anti-aliased disc of `radius` pixels (a lens out of focus), sum 1."""
    reach = max(1, math.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return cast(Kernel, kernel / kernel.sum())


def defocus(image: FloatImage, radius: float) -> FloatImage:
    """Blur by a disc of `radius` pixels."""
    return filter_image(image, disc_kernel(radius))


def resize(image: FloatImage, height: int, width: int, *, area: bool = False) -> FloatImage:
    """Bilinear (OpenCV, no prefilter) or area resize."""
    if image.shape[:2] == (height, width):
        return image
    how = cv2.INTER_AREA if area else cv2.INTER_LINEAR
    return cast(FloatImage, cv2.resize(image, (width, height), interpolation=how))


def gaussian_noise(image: FloatImage, sigma: float, rng: np.random.Generator) -> FloatImage:
    """Add colour Gaussian noise of standard deviation `sigma` (of full range 1), clip to [0, 1]."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(sigma)
    noise += image
    return np.clip(noise, 0, 1, out=noise)


def jpeg(image: FloatImage, quality: int) -> FloatImage:
    """Encode and decode as JPEG (4:2:0, OpenCV's default). The result holds 8-bit values."""
    if not 1 <= quality <= 100:
        msg = f"JPEG quality must lie in 1..100, got {quality}."
        raise ConfigError(msg)
    bgr = cv2.cvtColor(to_uint8(image), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return to_float(cast(Frame, cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)))
