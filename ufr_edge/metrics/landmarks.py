"""How far the five points of restored faces lie from the true ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import ShapeError

Landmarks = NDArray[np.floating[Any]]


def landmark_distance(points: Landmarks, truth: Landmarks) -> float:
    """Mean distance of five points (5, 2), viewer's-left eye first, as a share of the true distance of the eyes.

    Raises ShapeError for other shapes, and when the true eyes coincide.
    """
    if points.shape != (5, 2) or truth.shape != (5, 2):
        msg = f"Two sets of five (x, y) points are needed; got {points.shape} and {truth.shape}."
        raise ShapeError(msg)
    eyes = float(np.linalg.norm(truth[1] - truth[0]))
    if eyes == 0:
        msg = "The true eyes lie on one point, so there is no distance to measure by."
        raise ShapeError(msg)
    return float(np.linalg.norm(points - truth, axis=1).mean()) / eyes
