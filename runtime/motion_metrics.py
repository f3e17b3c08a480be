"""How steady restored faces are: flicker and jitter, against a filmed scene whose truth is known.

All three figures are taken on the finished frames, cut out by the *true* alignment, so that a pipeline is
not judged by its own idea of where the face is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from ufr_edge.errors import InputFileError, ShapeError
from ufr_edge.runtime.faces.align import estimate_alignment, template, warp_face
from ufr_edge.runtime.faces.detect import Detects
from ufr_edge.runtime.faces.paste import feather_mask
from ufr_edge.runtime.faces.warp import apply, inverse, warp
from ufr_edge.runtime.frame import Affine, FloatArray, Frame
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig, Restored, Restores
from ufr_edge.runtime.video.synthetic import Motion, Sensor, SyntheticScene

_SECOND = math.sqrt(6)  # deviation of the second difference of white noise of deviation 1


class Filmed(Protocol):
    """A scene with one face whose truth is known (`SyntheticScene` of one picture, `SpeakingScene`)."""

    def __len__(self) -> int: ...

    def frame(self, index: int) -> Frame:
        """What the camera saw."""

    def clean(self, index: int) -> Frame:
        """What a perfect camera would have seen."""

    def matrix(self, index: int) -> Affine:
        """2x3, from the picture to the frame."""


@dataclass(frozen=True, kw_only=True)
class MotionFigures:
    """flicker: levels of 8 bit. jitter_px: pixels at 512. psnr_db: inside the mask, over all frames.

    restored: share of the frames in which the face was restored. identities: tracks seen (1 is right).
    """

    flicker: float
    jitter_px: float
    psnr_db: float
    restored: float
    identities: int


def flicker(faces: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8] | None = None) -> float:
    """Mean absolute second difference in time, in 8-bit levels, of aligned faces uint8 (T, S, S, 3), T >= 3.

    |e[t+1] - 2 e[t] + e[t-1]| over the middle of the feathered mask, e = faces - truth (0 without one): what
    changes evenly counts nothing, what comes and goes counts. White noise of deviation s gives 1.95 s.
    """
    if faces.ndim != 4 or len(faces) < 3 or (truth is not None and truth.shape != faces.shape):
        msg = "Flicker needs three or more aligned faces (T, S, S, 3), and as many of the truth."
        raise ShapeError(msg)
    inside = _inside(faces.shape[1])
    total = 0.0
    for t in range(1, len(faces) - 1):  # frame by frame: a long clip would not fit as floats
        three = faces[t - 1 : t + 2, inside].astype(np.float32)
        three -= 0 if truth is None else truth[t - 1 : t + 2, inside]
        total += float(np.abs(three[2] - 2 * three[1] + three[0]).mean())
    return total / (len(faces) - 2)


def jitter(seen: list[Affine], true: list[Affine]) -> float:
    """Deviation, in pixels at 512, of the fast part of the alignment's error; three or more frames.

    seen, true: 2x3, frame to the aligned face of 512 pixels. Where each true landmark falls under the seen
    alignment, second difference in time, root mean square, over sqrt 6: independent errors of deviation
    s per coordinate give s, a constant or evenly drifting one gives 0.
    """
    if len(seen) < 3 or len(seen) != len(true):
        msg = f"Jitter needs three or more alignments and as many true ones, not {len(seen)} and {len(true)}."
        raise ShapeError(msg)
    points = template(512)
    where = np.stack([apply(s, apply(inverse(t), points)) for s, t in zip(seen, true, strict=True)])
    second = where[2:] - 2 * where[1:-1] + where[:-2]
    return float(np.sqrt((second.astype(np.float64) ** 2).mean())) / _SECOND


def measure_motion(
    scene: Filmed,
    engine: Restores,
    detector: Detects,
    configs: Mapping[str, PipelineConfig],
    *,
    landmarks: FloatArray,
    rate: float = 30.0,
    warm_up: int = 6,
) -> dict[str, MotionFigures]:
    """Restore the scene with each config; landmarks: (5, 2) of the face in the scene's picture.

    The first `warm_up` frames are left out of the figures. Raises InputFileError when a face is never found.
    """
    side = engine.info.side or 256
    out = {}
    frames = [scene.frame(i) for i in range(len(scene))]
    true = [estimate_alignment(apply(scene.matrix(i), landmarks), side) for i in range(len(scene))]
    truth = [warp_face(scene.clean(i), matrix, side) for i, matrix in enumerate(true)]
    for name, config in configs.items():
        pipeline = FacePipeline(engine, detector, config)
        done = [pipeline.process(frame, time_s=i / rate) for i, frame in enumerate(frames)]
        if not any(one.count for one in done[warm_up:]):
            msg = f"No face was found in the scene with setting {name!r}."
            raise InputFileError(msg)
        out[name] = _figures(done[warm_up:], true[warm_up:], np.stack(truth[warm_up:]), side)
    return out


def find_landmarks(picture: Frame, detector: Detects) -> FloatArray:
    """Landmarks (5, 2) of the best face of a picture. Raises InputFileError without one."""
    faces = detector.detect(picture)
    if not faces:
        msg = "No face was found in the picture. Choose one with a face that can be seen well."
        raise InputFileError(msg)
    return faces[0].landmarks


def _figures(
    done: list[Restored], true: list[Affine], truth: npt.NDArray[np.uint8], side: int
) -> MotionFigures:
    faces = np.stack([warp_face(one.image, matrix, side) for one, matrix in zip(done, true, strict=True)])
    inside = _inside(side)
    error = np.mean(
        [((a[inside].astype(np.float32) - b[inside]) ** 2).mean() for a, b in zip(faces, truth, strict=True)]
    )
    found = [i for i, one in enumerate(done) if one.count]
    seen = [estimate_alignment(done[i].faces[0].landmarks, 512) for i in found]
    wide = [_to_512(true[i], side) for i in found]
    return MotionFigures(
        flicker=flicker(faces, truth),
        jitter_px=jitter(seen, wide),
        psnr_db=10 * math.log10(255**2 / max(float(error), 1e-9)),
        restored=len(found) / len(done),
        identities=len({track.identity for one in done for track in one.tracks}),
    )


def _to_512(matrix: Affine, side: int) -> Affine:
    k = 512 / side
    out = matrix * k
    out[:, 2] += (k - 1) / 2
    return out


def _inside(side: int) -> npt.NDArray[np.bool_]:
    return np.asarray(feather_mask(side) > 0.5)


class SpeakingScene:
    """As `SyntheticScene` of one picture, whose mouth opens and shuts and whose eyes blink."""

    def __init__(
        self,
        picture: Frame,
        landmarks: FloatArray,
        *,
        size: tuple[int, int] = (640, 360),
        frames: int = 90,
        seed: int = 0,
        sensor: Sensor | None = None,
        motion: Motion | None = None,
        rate: float = 30.0,
    ) -> None:
        """landmarks: (5, 2) in the picture. rate: frames per second, at which it speaks 3 times a second."""
        self._scene = SyntheticScene([picture], size=size, frames=frames, seed=seed, motion=motion)
        self._picture, self._size, self._sensor, self._rate = picture, size, sensor, rate
        eyes = float(np.linalg.norm(landmarks[1] - landmarks[0]))
        self._grid = _grid(picture)
        self._mouth = 0.16 * eyes * _bump(self._grid, landmarks[3:].mean(axis=0), 0.35 * eyes)
        left, right = (_bump(self._grid, eye, 0.16 * eyes) for eye in landmarks[:2])
        self._lids = 0.12 * eyes * (left + right)

    def __len__(self) -> int:
        return len(self._scene)

    def matrix(self, index: int) -> Affine:
        """2x3, from the picture to the frame."""
        return self._scene.matrix(index)

    def clean(self, index: int) -> Frame:
        """Frame `index` as a perfect camera would see it."""
        time_s = index / self._rate
        open_ = np.float32(max(0.0, math.sin(2 * math.pi * 3 * time_s)))
        shut = np.float32(time_s % 1.0 < 0.13)  # a blink of four frames, every second
        columns, rows = self._grid
        picture = cv2.remap(
            self._picture, columns, rows - open_ * self._mouth - shut * self._lids, cv2.INTER_LINEAR
        )
        return warp(np.asarray(picture, np.uint8), self.matrix(index), self._size)

    def frame(self, index: int) -> Frame:
        """Frame `index` as this camera's sensor gives it."""
        clean = self.clean(index)
        return clean if self._sensor is None else self._sensor(clean, index)


def _grid(picture: Frame) -> tuple[FloatArray, FloatArray]:
    rows, columns = np.indices(picture.shape[:2]).astype(np.float32)
    return np.asarray(columns, np.float32), np.asarray(rows, np.float32)


def _bump(grid: tuple[FloatArray, FloatArray], centre: FloatArray, sigma: float) -> FloatArray:
    far = (grid[0] - centre[0]) ** 2 + (grid[1] - centre[1]) ** 2
    return np.asarray(np.exp(-far / (2 * sigma**2)), np.float32)
