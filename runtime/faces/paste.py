"""Putting a restored face back: feathered, in the frame's own colours, touching only its box."""

from __future__ import annotations

import math

import cv2
import numpy as np

from ufr_edge.errors import ConfigError, ShapeError
from ufr_edge.runtime.faces.align import warp_face
from ufr_edge.runtime.faces.grain import Grain, add_grain
from ufr_edge.runtime.faces.warp import apply, inverse, warp, warp_mask
from ufr_edge.runtime.frame import Affine, Box, FloatArray, Frame, check_frame

_REACH = 0.47  # half width of the mask, as a share of the side
_SOLID = 0.68  # share of the reach within which the restored face is taken whole
_MOST_SHIFT = 90  # levels between two cells' means; the cubic between them overshoots by a third at most
_COLOUR_CELLS = 8  # colours are matched on a grid of so many cells: eyes and mouth are finer


def feather_mask(side: int) -> FloatArray:
    """Weights (side, side) float32 in [0, 1]: 1 inside, 0 from the border on, a rounded square between.

    A superellipse of exponent 3 with a smoothstep edge: no straight line and no corner shows.
    """
    axis = np.abs((np.arange(side, dtype=np.float32) + 0.5) / side - 0.5) / _REACH
    radius = np.cbrt(axis[None, :] ** 3 + axis[:, None] ** 3)
    t = np.clip((1 - radius) / (1 - _SOLID), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def match_colour(restored: Frame, crop: Frame) -> Frame:
    """Give `restored` the low frequencies of `crop`; both uint8 (S, S, 3), aligned.

    The difference of the means over an 8x8 grid, smoothly interpolated, is added and clipped.
    """
    cells = (_COLOUR_CELLS, _COLOUR_CELLS)
    low = [cv2.resize(p, cells, interpolation=cv2.INTER_AREA).astype(np.int16) for p in (crop, restored)]
    shift = low[0] - low[1]
    # About 128 in bytes, as OpenCV enlarges bytes 25 times faster than anything else; a great shift in twos.
    unit = 1 if int(np.abs(shift).max()) <= _MOST_SHIFT else 2
    cell_bytes = cv2.add(cv2.multiply(shift, 1 / unit), 128, dtype=cv2.CV_8U)
    fine = cv2.resize(cell_bytes, restored.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    out = cv2.addWeighted(restored, 1, fine, unit, -128 * unit)  # rounds and saturates
    return np.asarray(out, dtype=np.uint8)


def paste_face(
    frame: Frame,
    restored: Frame,
    matrix: Affine,
    *,
    fidelity: float = 0.0,
    colour_match: bool = True,
    crop: Frame | None = None,
    mask: FloatArray | None = None,
) -> Frame:
    """Return a copy of `frame` with `restored` (S, S, 3) pasted at `matrix` (frame to aligned, 2x3).

    fidelity: 0 takes the restored face whole, 1 leaves the frame. crop: the face as it was cut out, and
    mask: `feather_mask(S)`, both made here when not given. Pixels outside the face's box are the frame's.
    Raises ShapeError, ConfigError.
    """
    out = frame.copy()
    paste_into(out, restored, matrix, fidelity=fidelity, colour_match=colour_match, crop=crop, mask=mask)
    return out


def paste_into(
    canvas: Frame,
    restored: Frame,
    matrix: Affine,
    *,
    fidelity: float = 0.0,
    colour_match: bool = True,
    crop: Frame | None = None,
    mask: FloatArray | None = None,
    grain: Grain | None = None,
) -> Box | None:
    """`paste_face` in place, with the input's noise when `grain` is given. Returns the box outside which nothing changed, None when nothing did."""
    check_frame(canvas)
    side = _check_square(restored)
    if not 0 <= fidelity <= 1:
        msg = f"Fidelity must lie between 0 (all restored) and 1 (the input), not {fidelity}."
        raise ConfigError(msg)
    box = face_box(matrix, side, canvas.shape[1], canvas.shape[0])
    if box is None or fidelity == 1:
        return None
    if colour_match:
        restored = match_colour(restored, warp_face(canvas, matrix, side) if crop is None else crop)
    weights = feather_mask(side) if mask is None else mask
    _blend(canvas, restored, weights, matrix, box, strength=1 - fidelity, grain=grain)
    return box


def face_box(matrix: Affine, side: int, width: int, height: int) -> Box | None:
    """Box x0, y0, x1, y1 (whole pixels, inside the frame) an aligned face covers; None when outside."""
    corners = np.array([[0, 0], [side, 0], [0, side], [side, side]], dtype=np.float32) - 0.5
    points = apply(inverse(matrix), corners)
    x0, y0 = (max(0, math.floor(v)) for v in points.min(axis=0))
    x1 = min(width, math.ceil(float(points[:, 0].max())) + 1)
    y1 = min(height, math.ceil(float(points[:, 1].max())) + 1)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _blend(
    canvas: Frame,
    restored: Frame,
    weights: FloatArray,
    matrix: Affine,
    box: Box,
    *,
    strength: float,
    grain: Grain | None,
) -> None:
    x0, y0, x1, y1 = box
    back = inverse(matrix)
    back[:, 2] -= (x0, y0)
    size = (x1 - x0, y1 - y0)
    face = warp(restored, back, size, border=cv2.BORDER_REPLICATE).astype(np.float32)
    alpha = cv2.cvtColor(warp_mask(weights, back, size), cv2.COLOR_GRAY2RGB)
    under = canvas[y0:y1, x0:x1]
    if grain is not None:
        add_grain(face, under, grain)
    # All of one type: OpenCV is several times slower where types are mixed.
    below = under.astype(np.float32)
    cv2.subtract(face, below, dst=face)
    cv2.multiply(face, alpha, dst=face, scale=strength)
    cv2.add(face, below, dst=face)
    canvas[y0:y1, x0:x1] = cv2.convertScaleAbs(face)  # rounds and saturates


def _check_square(restored: Frame) -> int:
    check_frame(restored, what="restored face")
    if restored.shape[0] != restored.shape[1]:
        msg = f"A restored face must be square, not {restored.shape[1]}x{restored.shape[0]}."
        raise ShapeError(msg)
    return int(restored.shape[0])
