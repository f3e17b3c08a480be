"""How far the five points of restored faces lie from the true ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import ShapeError
from ufr_edge.runtime.faces.align import template
from ufr_edge.runtime.faces.detect import Detects

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


def landmark_shift(points: Landmarks, truth: Landmarks, *, side: int) -> float:
    """Mean distance of five points (5, 2) in faces of `side` pixels, in pixels at 512 px. NaN where one is NaN."""
    return float(np.linalg.norm(points - truth, axis=1).mean()) * 512 / side


def find_landmarks(faces: Iterable[NDArray[np.uint8]], detector: Detects) -> NDArray[np.float64]:
    """Five points of each aligned face (N, 5, 2); NaN where the detector finds none.

    Of several faces in a picture, the one nearest to where an aligned face has its points.
    """
    return np.stack([_nearest(face, detector) for face in faces])


def _nearest(face: NDArray[np.uint8], detector: Detects) -> NDArray[np.float64]:
    found = [np.asarray(hit.landmarks, dtype=np.float64) for hit in detector.detect(face)]
    if not found:
        return np.full((5, 2), np.nan)
    expected = template(face.shape[0])
    return min(found, key=lambda points: float(np.linalg.norm(points - expected)))
