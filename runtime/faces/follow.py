"""Following a face from one frame to the next by optical flow on a small grey picture of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ufr_edge.runtime.faces.align import estimate_alignment, similarity
from ufr_edge.runtime.faces.warp import apply, inverse
from ufr_edge.runtime.frame import Affine, FloatArray, Frame

Grey = npt.NDArray[np.uint8]
_PATCH = 128  # pixels of the grey picture's side, which shows what the aligned crop shows
_LEAST_PATCH = 24  # pixels of its shorter side where the frame's edge cuts it
_WINDOW, _LEVELS = (13, 13), 2
_STOP = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 10, 0.02)  # rounds, patch pixels
_ROUND_TRIP = 1.0  # patch pixels a point may be off after going there and back
_LEAST_POINTS, _LEAST_SHARE = 10, 0.4  # of the points that must come back
_LIKENESS = 0.5  # correlation of the grey pictures of one face in two frames, noise and all
_MOST_SCALE, _MOST_TURN = 1.25, 20.0  # from one frame to the next; degrees
_INSIDE = np.linspace(0.3, 0.72, 6, dtype=np.float32)  # the face itself, as shares of the crop
_POINTS = np.stack(np.meshgrid(_INSIDE, _INSIDE + 0.05), axis=-1).reshape(-1, 2) * _PATCH
_POINTS.setflags(write=False)


@dataclass(frozen=True)
class Patch:
    """A grey picture of the part `x0, y0, x1, y1` (whole frame pixels) of a frame, `scale` times the size."""

    grey: Grey
    roi: tuple[int, int, int, int]
    scale: tuple[float, float]

    def inside(self, points: FloatArray) -> FloatArray:
        """Frame pixels to patch pixels."""
        corner = np.array(self.roi[:2], np.float32)
        return np.asarray((points + 0.5 - corner) * np.array(self.scale, np.float32) - 0.5, np.float32)

    def outside(self, points: FloatArray) -> FloatArray:
        """Patch pixels to frame pixels."""
        corner = np.array(self.roi[:2], np.float32)
        return np.asarray((points + 0.5) / np.array(self.scale, np.float32) - 0.5 + corner, np.float32)


def crop_side(landmarks: FloatArray) -> float:
    """Side, in frame pixels, of what the aligned crop of these landmarks shows: the unit of a face's size."""
    matrix = estimate_alignment(landmarks, _PATCH)
    return _PATCH / math.hypot(matrix[0, 0], matrix[1, 0])


def cut_patch(frame: Frame, landmarks: FloatArray) -> Patch | None:
    """The grey picture around a face; None where too little of it lies in the frame."""
    back = inverse(estimate_alignment(landmarks, _PATCH))
    x, y = apply(back, np.array([[_PATCH / 2, _PATCH / 2]], np.float32))[0]
    half = crop_side(landmarks) / 2
    height, width = frame.shape[:2]
    roi = (
        max(0, int(x - half)),
        max(0, int(y - half)),
        min(width, int(x + half)),
        min(height, int(y + half)),
    )
    scale = _PATCH / (2 * half)
    size = (round((roi[2] - roi[0]) * scale), round((roi[3] - roi[1]) * scale))
    if min(size) < _LEAST_PATCH or roi[2] - roi[0] < 4 or roi[3] - roi[1] < 4:
        return None
    return _cut(frame, roi, size)


def follow(patch: Patch, frame: Frame, landmarks: FloatArray, guess: FloatArray) -> Affine | None:
    """How the face moved from the frame of `patch` to `frame`: a similarity (2, 3), frame to frame.

    landmarks: (5, 2) in the earlier frame. guess: (2,) pixels it is expected to have moved. Pyramidal
    Lucas-Kanade (Bouguet 2000) there and back (Kalal et al. 2010); None when too few points return or the
    motion is none a face makes within a frame.
    """
    now = _cut(frame, patch.roi, patch.grey.shape[1::-1])
    start = patch.inside(_grid(landmarks))
    limit = np.array(patch.grey.shape[1::-1], np.float32) - 1
    start = start[((start >= 0) & (start <= limit)).all(axis=1)]
    if len(start) < _LEAST_POINTS:
        return None
    there, ok = _flow(patch.grey, now.grey, start, start + guess * np.array(patch.scale, np.float32))
    again, back_ok = _flow(now.grey, patch.grey, there, start)
    ok &= back_ok & (np.linalg.norm(again - start, axis=1) < _ROUND_TRIP)
    if ok.sum() < max(_LEAST_POINTS, _LEAST_SHARE * len(ok)):
        return None
    motion = _robust(patch.outside(start[ok]), now.outside(there[ok]), unit=1 / patch.scale[0])
    scale, turn = size_and_turn(motion)
    if not 1 / _MOST_SCALE < scale < _MOST_SCALE or abs(turn) > _MOST_TURN:
        return None
    return motion if _alike(patch, now, motion) else None


def correlation(one: FloatArray, other: FloatArray) -> float:
    """Of two pictures, -1 to 1; 1 where neither shows anything."""
    a, b = one - one.mean(), other - other.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return 1.0 if size < one.size * 4.0 else float((a * b).sum()) / size


def size_and_turn(matrix: Affine) -> tuple[float, float]:
    """Scale and degrees of a similarity."""
    a, b = float(matrix[0, 0]), float(matrix[1, 0])
    return math.hypot(a, b), math.degrees(math.atan2(b, a))


def _alike(before: Patch, now: Patch, motion: Affine) -> bool:
    """Whether what was moved by `motion` still looks the same: points may be followed into another face."""
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]], np.float32) * before.grey.shape[1]
    moved = now.inside(apply(motion, before.outside(corners)))
    back = similarity(moved.astype(np.float64), corners.astype(np.float64))
    seen = cv2.warpAffine(now.grey, back, before.grey.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    return (
        correlation(before.grey[::2, ::2].astype(np.float32), seen[::2, ::2].astype(np.float32)) > _LIKENESS
    )


def _grid(landmarks: FloatArray) -> FloatArray:
    points = apply(inverse(estimate_alignment(landmarks, _PATCH)), _POINTS)
    return np.concatenate([landmarks, points]).astype(np.float32)


def _cut(frame: Frame, roi: tuple[int, int, int, int], size: tuple[int, ...]) -> Patch:
    x0, y0, x1, y1 = roi
    step = max(1, (x1 - x0) // (2 * _PATCH))  # of a large face not every pixel is needed
    seen = frame[y0:y1, x0:x1]
    if step > 1:
        seen = np.ascontiguousarray(seen[::step, ::step])
    part = cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)
    how = cv2.INTER_AREA if part.shape[1] > size[0] else cv2.INTER_LINEAR
    grey = cv2.GaussianBlur(cv2.resize(part, (size[0], size[1]), interpolation=how), (3, 3), 0)
    return Patch(np.asarray(grey, np.uint8), roi, (size[0] / (x1 - x0), size[1] / (y1 - y0)))


def _flow(
    before: Grey, after: Grey, points: FloatArray, guess: FloatArray
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        before,
        after,
        np.ascontiguousarray(points, np.float32),
        np.ascontiguousarray(guess, np.float32).copy(),
        winSize=_WINDOW,
        maxLevel=_LEVELS,
        criteria=_STOP,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return np.asarray(found, np.float32), np.asarray(status).ravel() > 0


def _robust(before: FloatArray, after: FloatArray, *, unit: float) -> Affine:
    """Similarity of the points that move together, which half of them must. unit: one patch pixel.

    Begins with the least median of squares (Rousseeuw 1984): a mouth that opens takes a third of the points along,
    and plain least squares would follow it.
    """
    source, target = before.astype(np.float64), after.astype(np.float64)
    found, _ = cv2.estimateAffinePartial2D(source, target, method=cv2.LMEDS, refineIters=0)
    motion: Affine = similarity(source, target) if found is None else np.asarray(found, np.float64)
    for _ in range(2):
        error = np.linalg.norm(source @ motion[:, :2].T + motion[:, 2] - target, axis=1)
        keep = error <= max(2.5 * float(np.median(error)), 0.3 * unit)
        motion = similarity(source[keep], target[keep])
    return motion
