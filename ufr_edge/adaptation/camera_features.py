"""What a degraded face shows of its camera, beside what a restorer makes of it: one vector a face.

| part | what it tells |
|---|---|
| spectrum of the face against the restorer's, by octave thirds and direction | blur, and motion whatever its direction |
| spectrum of the face, mean over directions | noise and blur where the restorer changes little |
| its own fingerprint (runtime/fingerprint.py) | noise, its correlation, steepness of edges |
| spectrum of second differences along rows and columns | the size of the sensor: interpolation is straight between its pixels |
| spectrum of steps between rows and columns | blocks of a codec |

Directions are told from that in which most is missing, so that a turned or mirrored face has the same vector.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import ShapeError
from ufr_edge.runtime.fingerprint import GROUPS, LEAST_SIDE, measure_face, step_profiles
from ufr_edge.runtime.frame import FloatArray, Frame

Matrix = NDArray[np.float32]

FINGERPRINT = tuple(name for group in ("noise", "correlation", "blur") for name in GROUPS[group]) + ("blocks",)
_RINGS = (0.008, 0.014, 0.022, 0.032, 0.045, 0.065, 0.09, 0.13, 0.18, 0.25, 0.35, 0.5)  # cycles per pixel at 256 px
_DIRECTIONS = 8
_TELLING = slice(2, 8)  # rings that tell a direction of blur
_UNKNOWN = -2.0  # of a fingerprint's value that a face does not show
_STEEPEST = 20.0


class Measure:
    """Measures of faces of one side. Raises ShapeError below LEAST_SIDE px, and for faces of another side."""

    def __init__(self, side: int) -> None:
        if side < LEAST_SIDE:
            msg = f"Faces of {LEAST_SIDE} px or more show their camera, not {side} px."
            raise ShapeError(msg)
        self.side = side
        self._window = np.outer(np.hanning(side), np.hanning(side)).astype(np.float32)
        self._cell, self._used, self._count = _cells(side)

    def __call__(self, bad: Frame, good: Frame) -> Matrix:
        """The vector float32 (F,) of a degraded face, uint8 (S, S, 3), and the same face restored."""
        if not bad.shape[:2] == good.shape[:2] == (self.side, self.side):
            msg = f"Expected two faces of {self.side} px, got {bad.shape} and {good.shape}."
            raise ShapeError(msg)
        luma = cv2.cvtColor(bad, cv2.COLOR_RGB2GRAY).astype(np.float32)
        own = self._spectrum(luma)
        lost = own - self._spectrum(cv2.cvtColor(good, cv2.COLOR_RGB2GRAY).astype(np.float32))
        known = measure_face(bad)
        parts = (
            from_most_lost(lost).ravel(),
            own.mean(axis=1),
            [known.get(name, _UNKNOWN) for name in FINGERPRINT],
            _lines(_bends(luma))[1:],
            _lines(step_profiles(luma))[2 : self.side // 3],
        )
        return np.concatenate(parts).astype(np.float32)

    def _spectrum(self, luma: NDArray[np.float32]) -> NDArray[np.float64]:
        """ln of the mean energy in each ring and direction: (rings, directions)."""
        power = np.abs(np.fft.fft2((luma - luma.mean()) * self._window)) ** 2
        total = np.bincount(self._cell, weights=power[self._used], minlength=len(self._count))
        return np.log(total / self._count + 1).reshape(-1, _DIRECTIONS)


def from_most_lost(lost: NDArray[np.float64]) -> NDArray[np.float64]:
    """(rings, directions) with the direction first in which most is missing, and both ways from it averaged."""
    first = int(np.argmin(lost[_TELLING].mean(axis=0)))
    turned = np.roll(lost, -first, axis=1)
    half = _DIRECTIONS // 2
    between = [(turned[:, i] + turned[:, _DIRECTIONS - i]) / 2 for i in range(1, half)]
    return np.stack([turned[:, 0], *between, turned[:, half]], axis=1)


def _cells(side: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """The ring and direction of each frequency that has one, which have, and how many there are of each."""
    down, across = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
    edges = np.array(_RINGS)
    edges[:-1] *= min(1.0, 256 / side)  # the same detail of a large face; the last is the pixels' own limit
    ring = np.digitize(np.hypot(across, down), edges) - 1
    step = math.pi / _DIRECTIONS
    turn = np.floor(np.mod(np.arctan2(down, across) + step / 2, math.pi) / step).astype(int) % _DIRECTIONS
    used = (ring >= 0) & (ring < len(edges) - 1)
    cell = (ring * _DIRECTIONS + turn)[used]
    count = np.bincount(cell, minlength=(len(edges) - 1) * _DIRECTIONS)
    return cell, used, np.maximum(count, 1).astype(np.float64)


def _bends(luma: NDArray[np.float32]) -> tuple[FloatArray, FloatArray]:
    """Mean second difference along each axis, against those beside it."""
    out = []
    for axis in (0, 1):
        profile = np.minimum(np.abs(np.diff(luma, 2, axis=axis)), _STEEPEST).mean(axis=1 - axis)
        smooth = cv2.blur(profile.reshape(1, -1), (9, 1)).ravel()
        out.append(np.asarray((profile - smooth) / (smooth + 0.1), np.float32))
    return out[0], out[1]


def _lines(profiles: tuple[FloatArray, FloatArray]) -> NDArray[np.float64]:
    """ln of the amplitude of each period, mean of both axes."""
    side = len(profiles[0]) + 2
    found = [
        np.abs(np.fft.rfft((p - p.mean()) * np.hanning(len(p)), side // 2 * 2)) for p in profiles
    ]
    return np.asarray(np.log(np.mean(found, axis=0) + 0.3), np.float64)
