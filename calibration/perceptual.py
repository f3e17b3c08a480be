"""A perceptual distance that needs no network: gradient magnitude similarity deviation."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_C = 170.0  # the paper's constant, for levels 0 to 255
_PREWITT = np.array([[1, 0, -1], [1, 0, -1], [1, 0, -1]], np.float32) / 3


def gmsd(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """GMSD of two RGB frames uint8 (S, S, 3), S >= 4: 0 = the same, above 0.1 plainly worse to the eye.

    Xue, Zhang, Mou, Bovik 2014 (arXiv:1308.3052), eq. 4-6: luminance halved by a 2x2 mean, Prewitt gradients.
    It answers to lost, false and shifted edges, to which PSNR is nearly blind.
    """
    one, other = _gradients(a), _gradients(b)
    similarity = (2 * one * other + _C) / (np.square(one) + np.square(other) + _C)
    return float(similarity.std(dtype=np.float64))


def mean_gmsd(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean over images of `gmsd`: a and b uint8 (N, S, S, 3), N >= 1."""
    return float(np.mean([gmsd(x, y) for x, y in zip(a, b, strict=True)]))


def _gradients(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    half = cv2.resize(grey, (grey.shape[1] // 2, grey.shape[0] // 2), interpolation=cv2.INTER_AREA)
    across = cv2.filter2D(half, cv2.CV_32F, _PREWITT)
    down = cv2.filter2D(half, cv2.CV_32F, np.ascontiguousarray(_PREWITT.T))
    return np.asarray(np.sqrt(np.square(across) + np.square(down)), np.float32)
