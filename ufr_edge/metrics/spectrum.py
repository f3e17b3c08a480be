"""What can be said of a picture without the truth: noise left, and how much fine detail."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


def noise_sigma(image: Image) -> float:
    """Standard deviation of the noise in 8-bit levels, mean over R, G and B.

    Median absolute deviation of the diagonal Haar details / 0.6745 (Donoho and Johnstone 1994). 0 below about 0.4
    levels, where more than half of the details are lost in the rounding to 8 bit.
    """
    x = image.astype(np.float64)
    even = x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2]
    detail = (even[::2, ::2] - even[::2, 1::2] - even[1::2, ::2] + even[1::2, 1::2]) / 2
    return float(np.mean([_half_step_median(np.abs(detail[..., c])) for c in range(3)]) / 0.6745)


def high_frequency_energy(image: Image, *, cutoff: float = 0.25) -> float:
    """Energy above `cutoff` cycles per pixel (0.5 is the limit), as a variance in 8-bit levels squared, mean of R, G, B.

    Windowed (Hann) against the edges of the picture. Compare restored faces with clean ones of the same kind.
    """
    height, width = image.shape[:2]
    window = np.outer(np.hanning(height), np.hanning(width))[..., None]
    x = image.astype(np.float64)
    spectrum = np.abs(np.fft.fft2((x - x.mean((0, 1))) * window, axes=(0, 1))) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    scale = height * width * float((window**2).sum())
    return float(spectrum[radius > cutoff].sum() / scale / image.shape[2])


def _half_step_median(values: NDArray[np.float64]) -> float:
    """Median of multiples of 1/2, interpolated inside its step: the plain one would jump by 0.74 sigma."""
    median = float(np.median(values))
    at = float(np.mean(values == median))
    if median == 0 or at == 0:
        return median
    return median - 0.25 + 0.5 * (0.5 - float(np.mean(values < median))) / at
