"""The best linear guess of a noised face, in closed form: what the network need not learn.

A Gaussian with the power spectrum of faces has an optimal denoiser in closed form, Wiener's filter. The
network then learns only what a linear filter cannot know (edges, features), as the residual of its noise
estimate, scaled to unit variance at every noise level. A prior trained for an hour on a CPU is useful only so.
The orthonormal DCT (symmetric borders) diagonalises it; colours are decorrelated by an orthonormal matrix, so
i.i.d. noise stays i.i.d.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

_KNOTS = (0.003, 0.006, 0.0125, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
"""Spatial frequencies, cycles per pixel of a 256 px face."""

_LOG_POWER = (
    (3.2, 2.82, 2.23, 1.32, 0.46, -0.49, -1.04, -1.42, -1.97, -2.37, -2.63, -2.98),
    (2.2, 1.53, 0.88, 0.05, -0.81, -2.01, -2.87, -3.53, -4.35, -4.66, -4.83, -5.17),
    (1.2, 0.51, -0.18, -0.93, -1.65, -2.62, -3.29, -3.83, -4.55, -4.80, -4.90, -5.25),
)
"""log10 of the DCT power of clean faces in [-1, 1] at the knots, for the three colour axes, measured once on
400 training faces. Part of the definition of the "wiener_residual" prediction: never change it."""

_AXES = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))


def wiener_estimate(x_t: Tensor, abar: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x_0, s): the linear estimate of the clean image, and the deviation of its noise estimate's error.

    `x_t`: float (B, 3, H, W), clean images in [-1, 1] noised to `abar` (B,). x_0: float32 like x_t; s:
    float32 (B, 1, 1, 1), sqrt(E |eps - eps_lin|^2) under the face spectrum.
    """
    with torch.autocast(x_t.device.type, enabled=False):
        height, width = x_t.shape[2:]
        rows, columns = (dct_matrix(n).to(x_t.device) for n in (height, width))
        axes = colour_axes().to(x_t.device)
        gain = wiener_gain(abar, height, width)
        spectrum = rows @ torch.einsum("dc,bchw->bdhw", axes, x_t.float()) @ columns.T
        filtered = rows.T @ (gain * spectrum) @ columns
        x_0 = torch.einsum("dc,bdhw->bchw", axes, filtered) / abar.float().sqrt()[:, None, None, None]
        return x_0, deviation(gain)


def wiener_gain(abar: Tensor, height: int, width: int) -> Tensor:
    """The filter's gain at each frequency of each colour axis, float32 (B, 3, height, width), at levels `abar` (B,)."""
    signal = abar.float()[:, None, None, None] * face_spectrum(height, width).to(abar.device)
    return signal / (signal + (1 - abar.float())[:, None, None, None])


def deviation(gain: Tensor) -> Tensor:
    """sqrt(E |eps - eps_lin|^2) under the face spectrum, float32 (B, 1, 1, 1): the mean gain is that error's variance."""
    return gain.mean((1, 2, 3), keepdim=True).sqrt()


@functools.lru_cache(maxsize=8)
def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II as float32 (size, size): rows are frequencies."""
    k = torch.arange(size, dtype=torch.float64)
    matrix: Tensor = math.sqrt(2 / size) * torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * size))
    matrix[0] /= math.sqrt(2)
    return matrix.float()


@functools.lru_cache(maxsize=8)
def face_spectrum(height: int, width: int) -> Tensor:
    """Expected DCT power of a clean face crop, float32 (3, height, width), by frequency in cycles per pixel."""
    vertical, horizontal = (torch.arange(n, dtype=torch.float64) / (2 * n) for n in (height, width))
    radius = torch.hypot(vertical[:, None], horizontal[None]).clamp(_KNOTS[0], _KNOTS[-1]).log()
    knots = torch.tensor(_KNOTS, dtype=torch.float64).log()
    right = torch.searchsorted(knots, radius).clamp(1, len(_KNOTS) - 1)
    share = (radius - knots[right - 1]) / (knots[right] - knots[right - 1])
    power = torch.tensor(_LOG_POWER, dtype=torch.float64)
    return (10 ** (power[:, right - 1] * (1 - share) + power[:, right] * share)).float()


@functools.lru_cache(maxsize=1)
def colour_axes() -> Tensor:
    """Orthonormal colour axes (grey, red-blue, green-magenta) as float32 rows (3, 3)."""
    axes = torch.tensor(_AXES, dtype=torch.float64)
    unit: Tensor = axes / axes.square().sum(1, keepdim=True).sqrt()
    return unit.float()
