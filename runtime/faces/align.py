"""Five-point alignment to the FFHQ framing (design.md, "Aligned face")."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ufr_edge.errors import ShapeError
from ufr_edge.runtime.faces.warp import warp
from ufr_edge.runtime.frame import Affine, FloatArray, Frame, check_frame

TEMPLATE_512: FloatArray = np.array(
    [[192.98, 239.95], [318.90, 240.19], [256.63, 314.02], [201.26, 371.41], [313.09, 371.15]],
    dtype=np.float32,
)
"""Five points of an aligned face at 512 px: eyes, nose, mouth corners, the viewer's left first."""
TEMPLATE_512.setflags(write=False)


def template(side: int) -> FloatArray:
    """The five points (5, 2) of an aligned face of `side` pixels."""
    # Pixel centres are whole numbers, so the half pixel scales too.
    return np.asarray((TEMPLATE_512 + 0.5) * (side / 512) - 0.5, dtype=np.float32)


def estimate_alignment(landmarks: npt.ArrayLike, side: int) -> Affine:
    """Similarity (2, 3) float64 from a frame to the aligned face of `side` pixels.

    landmarks: (5, 2) x, y in frame pixels. Least squares without reflection (Umeyama 1991, eq. 40-42).
    Raises ShapeError for another shape, for values that are not finite, and for points that coincide.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        msg = f"Landmarks must be five finite (x, y) points, not an array of shape {points.shape}."
        raise ShapeError(msg)
    return similarity(points, template(side).astype(np.float64))


def similarity(source: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> Affine:
    """Least-squares similarity (2, 3) from points (N, 2) to points (N, 2), never mirrored (Umeyama 1991).

    In the plane it is one complex factor, so that no decomposition is needed: this runs a dozen times a face.
    """
    mean_s, mean_t = source.sum(axis=0) / len(source), target.sum(axis=0) / len(target)
    centred_s, centred_t = source - mean_s, target - mean_t
    spread = float(np.vdot(centred_s, centred_s))
    if spread < 1e-6 * len(source):
        msg = "The five landmarks coincide: no alignment can be found from them."
        raise ShapeError(msg)
    (xx, xy), (yx, yy) = (centred_t.T @ centred_s).tolist()
    a, b = (xx + yy) / spread, (yx - xy) / spread
    (sx, sy), (tx, ty) = mean_s.tolist(), mean_t.tolist()
    return np.array([[a, -b, tx - a * sx + b * sy], [b, a, ty - b * sx - a * sy]])


def warp_face(frame: Frame, matrix: Affine, side: int) -> Frame:
    """Cut the aligned face (side, side, 3) out of a frame; filtered first when it shrinks.

    What lies outside the frame is mirrored in. Raises ShapeError when the frame is not uint8 RGB.
    """
    check_frame(frame)
    return warp(frame, matrix, (side, side))
