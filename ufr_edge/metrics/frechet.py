"""The Fréchet distance of two sets of feature vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import ShapeError

Features = NDArray[np.float64]


def frechet_distance(a: Features, b: Features) -> float:
    """Fréchet distance of two Gaussians fitted to features (N, D) and (M, D); Dowson and Landau 1982.

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2). FID is this on Inception features; on others it is
    not FID. With fewer samples than D the covariances are rank deficient: compare at equal counts only.
    Raises ShapeError.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        msg = f"Two (N, D) sets of at least 2 features each are needed; got {a.shape} and {b.shape}."
        raise ShapeError(msg)
    mean = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    # tr (C_a C_b)^1/2 is the sum of the singular values of A^T B for centred A, B scaled by 1/sqrt(n - 1).
    x, y = ((s - s.mean(0)) / np.sqrt(len(s) - 1) for s in (a, b))
    cross = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    return max(0.0, mean + float((x**2).sum() + (y**2).sum()) - 2 * cross)
