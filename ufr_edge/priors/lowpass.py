"""The low-pass filter phi_N of the paper as a matrix product, phi(x) = P x P^T (paper.md section 3)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ufr_edge.errors import ConfigError

PAPER_SIDE = 512


def filter_scale(n_at_512: int, side: int) -> int:
    """Return N at this side that holds the same frequencies of the face: N * side / 512.

    Raises ConfigError when that is not a whole number.
    """
    if n_at_512 < 1 or side < 1 or n_at_512 * side % PAPER_SIDE:
        msg = (
            f"Filter N = {n_at_512} (at {PAPER_SIDE} px) is no whole number at {side} px"
            f" (N * {side} / {PAPER_SIDE}). Choose a larger power of two."
        )
        raise ConfigError(msg)
    return n_at_512 * side // PAPER_SIDE


def least_filter(n_at_512: int, side: int) -> int:
    """Return the least of N, 2 N, 4 N ... that `filter_scale` takes at this side: N itself wherever it fits.

    A side that is 64 times an odd number takes no N below 8.
    """
    n = n_at_512
    while n * side % PAPER_SIDE:
        n *= 2
    return n


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic convolution kernel with a = -0.5, zero outside [-2, 2]."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def resize_matrix(inputs: int, outputs: int) -> NDArray[np.float64]:
    """Return the float64 (outputs, inputs) matrix that resizes a signal by cubic convolution.

    Half-pixel centres; the kernel is stretched when shrinking (antialias, 4N taps) and plain when
    growing (4 taps); rows sum to 1; the boundary is reflected with the edge sample repeated.
    """
    scale = inputs / outputs
    stretch = max(scale, 1.0)
    centres = (np.arange(outputs) + 0.5) * scale - 0.5
    reach = int(np.ceil(2 * stretch)) + 1
    taps = np.floor(centres)[:, None].astype(np.int64) + np.arange(-reach, reach + 1)
    weights = cubic((taps - centres[:, None]) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    folded = taps % (2 * inputs)
    folded = np.where(folded < inputs, folded, 2 * inputs - 1 - folded)
    matrix = np.zeros((outputs, inputs))
    np.add.at(matrix, (np.arange(outputs)[:, None], folded), weights)
    return matrix


@lru_cache(maxsize=16)
def lowpass_matrix(side: int, n: int) -> Tensor:
    """Return P = U D, float64 (side, side): shrink by n, grow by n. Treat it as read-only (it is cached).

    `n` is in pixels of this side (see `filter_scale`); 1 gives the identity.
    Raises ConfigError unless `n` divides `side`.
    """
    if n < 1 or side < 1 or side % n:
        msg = f"The filter needs a side that is a multiple of N; got side {side} and N = {n}."
        raise ConfigError(msg)
    return torch.from_numpy(resize_matrix(side // n, side) @ resize_matrix(side, side // n))


def lowpass(x: Tensor, matrix: Tensor) -> Tensor:
    """Return phi(x) = P x P^T for x (..., S, S), in x's dtype and on its device; `matrix` is P (S, S)."""
    p = matrix.to(device=x.device, dtype=x.dtype)
    return p @ x @ p.mT
