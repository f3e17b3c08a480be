"""Steady faces: each restored face is mixed with the one before, where nothing moved.

A recursive average over time, per face and in aligned space. Its weight falls to zero where the *input*,
coarsely seen, differs from what the average was made of, so that what moves leaves no trail. The past is
first moved along with the face (what was followed, seen through both alignments), so that a new alignment
is no motion.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.faces.warp import apply, compose, inverse
from ufr_edge.runtime.frame import Affine, FloatArray, Frame

_COARSE = 4  # face pixels to one of the coarse picture that motion is seen in
_STILL = 0.1  # face pixels the past may be off before it is moved
_MOST_MOTION = 0.25  # of the side: from farther away nothing is taken over
_PASSING = 4.0  # times the noise: a difference at which half the past is taken
_LEAST_NOISE, _MOST_NOISE = 0.1, 3.0  # levels of the coarse picture
_NOISE_RISE = 0.5  # 1/s: the noise is the least seen lately
_QUANTILE = 0.15  # of the differences: low, as flat skin shows the noise alone even in motion


@dataclass(frozen=True, kw_only=True)
class StabiliserConfig:
    """memory_s: seconds in which the past fades to 1/e where nothing moves. max_gap_s: a longer pause
    between two frames of a face ends its past."""

    memory_s: float = 0.16
    max_gap_s: float = 0.5

    def __post_init__(self) -> None:
        if self.memory_s <= 0 or self.max_gap_s <= 0:
            msg = "The stabiliser's memory_s and max_gap_s must be above 0 seconds."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One face of one frame in aligned space.

    identity: of its track. stand: 2x3, pixels of the track's first frame to the aligned face.
    crop: uint8 (S, S, 3), the input.
    """

    identity: int
    time_s: float
    stand: Affine
    crop: Frame


@dataclass
class _Past:
    face: FloatArray  # (S, S, 3), the steady face
    coarse: FloatArray  # what it was made from, averaged alike
    sight: Sight  # the latest that went in
    noise: float


class FaceMemory:
    """The latest restored face of every track, all of one side. For one thread."""

    def __init__(self, config: StabiliserConfig | None) -> None:
        """config: None remembers faces (for `carry`) but mixes nothing."""
        self._config = config
        self._pasts: dict[int, _Past] = {}

    def __len__(self) -> int:
        return len(self._pasts)

    def keep(self, identities: Collection[int]) -> None:
        """Forget all faces but these."""
        self._pasts = {key: past for key, past in self._pasts.items() if key in identities}

    def resize(self, side: int) -> None:
        """Go on with faces of another side, for an engine of another size."""
        self._pasts = {key: _resized(past, side) for key, past in self._pasts.items()}

    def steady(self, sight: Sight, restored: Frame) -> Frame:
        """Return the restored face uint8 (S, S, 3) mixed with the past of its track."""
        new, coarse = restored.astype(np.float32), _coarse(sight.crop)
        past = self._moved(sight)
        dt = sight.time_s - past.sight.time_s if past else 0.0
        if self._config is None or past is None or not 0 < dt <= self._config.max_gap_s:
            self._pasts[sight.identity] = _Past(new, coarse, sight, _MOST_NOISE)
            return restored
        weight, noise = _weight(past, coarse, dt)
        weight *= np.float32(math.exp(-dt / self._config.memory_s))
        face = _mix(new, past.face, _finer(weight, new))
        past_coarse = _mix(coarse, past.coarse, weight)
        self._pasts[sight.identity] = _Past(face, past_coarse, sight, noise)
        return np.asarray(cv2.convertScaleAbs(face), np.uint8)  # rounds and saturates

    def carry(self, sight: Sight) -> Frame | None:
        """What the engine would give now, from what it gave before; None for a face not seen before.

        Where nothing moved, the steady face; elsewhere the new picture with the change made last time.
        """
        past = self._moved(sight)
        if past is None:
            return None
        change = past.face - _warped(past.sight.crop.astype(np.float32), self._motion(past, sight))
        weight, _ = _weight(past, _coarse(sight.crop), 0.0)
        face = _mix(sight.crop + change, past.face, _finer(weight, change))
        return np.clip(np.rint(face), 0, 255).astype(np.uint8)

    def _moved(self, sight: Sight) -> _Past | None:
        """The track's past as it would look now; None without one that is near enough."""
        past = self._pasts.get(sight.identity)
        if past is None or past.face.shape != sight.crop.shape:
            return None
        side = len(past.face)
        motion = compose(sight.stand, inverse(past.sight.stand))
        shift = _farthest(motion, side)
        if not shift < _MOST_MOTION * side:
            return None
        if shift < _STILL:
            return past
        coarse_motion = motion.copy()
        coarse_motion[:, 2] = (motion[:, 2] + (motion[:, :2].sum(axis=1) - 1) * (_COARSE - 1) / 2) / _COARSE
        return _Past(_warped(past.face, motion), _warped(past.coarse, coarse_motion), past.sight, past.noise)

    def _motion(self, past: _Past, sight: Sight) -> Affine:
        return compose(sight.stand, inverse(past.sight.stand))


def _resized(past: _Past, side: int) -> _Past:
    k = side / len(past.face)
    if k == 1:
        return past
    stand = past.sight.stand * k
    stand[:, 2] += (k - 1) / 2
    crop = np.asarray(cv2.resize(past.sight.crop, (side, side)), np.uint8)
    face = np.asarray(cv2.resize(past.face, (side, side)), np.float32)
    return _Past(face, _coarse(crop), replace(past.sight, stand=stand, crop=crop), past.noise)


def _weight(past: _Past, coarse: FloatArray, dt: float) -> tuple[FloatArray, float]:
    """How far the past holds, (S/4, S/4) in [0, 1], and the level of the noise."""
    red, green, blue = cv2.split(cv2.absdiff(coarse, past.coarse))
    difference = np.asarray(cv2.GaussianBlur(cv2.max(cv2.max(red, green), blue), (3, 3), 0), np.float32)
    inner = difference[len(difference) // 5 : -(len(difference) // 5)]
    rank = round(_QUANTILE * (inner.size - 1))
    seen = float(np.partition(inner, rank, axis=None)[rank])
    noise = min(max(seen, _LEAST_NOISE), past.noise * (1 + _NOISE_RISE * dt), _MOST_NOISE)
    ratio = np.square(difference * np.float32(1 / (_PASSING * noise)))
    weight = cv2.erode(1 / (1 + ratio * ratio), np.ones((3, 3), np.uint8))
    return np.asarray(cv2.GaussianBlur(weight, (3, 3), 0), np.float32), noise


def _coarse(crop: Frame) -> FloatArray:
    side = len(crop) // _COARSE
    small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(small.astype(np.float32), (3, 3), 0), np.float32)


def _finer(weight: FloatArray, like: FloatArray) -> FloatArray:
    return np.asarray(cv2.resize(weight, like.shape[1::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _mix(new: FloatArray, past: FloatArray, weight: FloatArray) -> FloatArray:
    return np.asarray(cv2.blendLinear(new, past, 1 - weight, weight), np.float32)


def _warped(picture: FloatArray, motion: Affine) -> FloatArray:
    size = picture.shape[1::-1]
    out = cv2.warpAffine(picture, motion, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(out, np.float32)


def _farthest(motion: Affine, side: int) -> float:
    """Pixels by which the corners of the face's middle half are moved, at most."""
    low, high = side / 4, 3 * side / 4
    corners = np.array([[low, low], [high, low], [low, high], [high, high]], np.float32)
    return float(np.linalg.norm(apply(motion, corners) - corners, axis=1).max())
