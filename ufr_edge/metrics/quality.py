"""PSNR and SSIM against the truth: RGB, no border crop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import ShapeError

Image = NDArray[np.uint8]


def psnr(image: Image, truth: Image) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 RGB images (peak 255, all channels, no border crop).

    Infinite when they are equal. Raises ShapeError when their shapes differ.
    """
    _check(image, truth)
    error = float(np.mean((image.astype(np.float64) - truth.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def psnr_matched(image: Image, truth: Image) -> float:
    """PSNR after each channel's mean and deviation were matched to the truth (the paper's own script does it twice).

    Not comparable with plain PSNR: label it (paper.md section 9).
    """
    _check(image, truth)
    return psnr(_match(_match(image, truth), truth), truth)


def ssim(image: Image, truth: Image) -> float:
    """Structural similarity (Wang et al. 2004), mean over R, G and B: Gaussian window, sigma 1.5, no border crop."""
    from skimage.metrics import structural_similarity

    _check(image, truth)
    value = structural_similarity(
        image,
        truth,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(value)


def _match(image: Image, truth: Image) -> Image:
    source, goal = image.astype(np.float64), truth.astype(np.float64)
    scale = goal.std((0, 1)) / np.maximum(source.std((0, 1)), 1e-8)
    matched = (source - source.mean((0, 1))) * scale + goal.mean((0, 1))
    return np.asarray(matched.round().clip(0, 255), dtype=np.uint8)


def _check(image: Image, truth: Image) -> None:
    if image.shape != truth.shape or image.dtype != np.uint8 or truth.dtype != np.uint8:
        msg = f"Two uint8 images of one shape are needed; got {image.shape} {image.dtype} and {truth.shape} {truth.dtype}."
        raise ShapeError(msg)
