"""Scenes without a real face, and a detector that knows where "the face" of each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from clips import STUB_INFO, textured

from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.align import template
from ufr_edge.runtime.faces.detect import Face
from ufr_edge.runtime.faces.warp import apply
from ufr_edge.runtime.frame import FloatArray, Frame
from ufr_edge.runtime.motion_metrics import Filmed
from ufr_edge.runtime.video.synthetic import Sensor

PICTURE = textured((240, 180), seed=4)
POINTS: FloatArray = (template(100) + np.array([70, 40], np.float32)).astype(np.float32)
"""Landmarks of the "face" in `PICTURE`: its aligned crop is 100 pixels wide."""


def face_from(landmarks: FloatArray, *, score: float = 0.9) -> Face:
    """A face whose box goes with its landmarks."""
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    margin = 0.5 * (high - low)
    box = np.concatenate([low - margin, high + margin]).astype(np.float32)
    return Face(box=box, score=score, landmarks=landmarks.astype(np.float32))


def sensor_noise(sigma: float, *, seed: int = 0) -> Sensor:
    """White noise of `sigma` levels."""

    def see(frame: Frame, index: int) -> Frame:
        noise = np.random.default_rng((seed, index)).normal(0, sigma, frame.shape)
        return np.clip(np.rint(frame + noise), 0, 255).astype(np.uint8)

    return see


@dataclass
class PlannedDetector:
    """Finds the faces of `plan[at]`; the test moves `at` from frame to frame."""

    plan: Sequence[Sequence[Face]]
    at: int = 0
    info: EngineInfo = STUB_INFO
    calls: list[int] = field(default_factory=list)

    def detect(self, frame: Frame) -> list[Face]:
        self.calls.append(self.at)
        return list(self.plan[self.at])


class KnowingDetector:
    """Knows the frames of a scene, and finds the face in each with an error of `sigma` pixels."""

    info: EngineInfo = STUB_INFO

    def __init__(self, *scenes: Filmed, sigma: float = 0.5) -> None:
        rng = np.random.default_rng(1)
        self._faces = {
            scene.frame(i).tobytes(): face_from(
                apply(scene.matrix(i), POINTS) + rng.normal(0, sigma, (5, 2)).astype(np.float32)
            )
            for scene in scenes
            for i in range(len(scene))
        }

    def detect(self, frame: Frame) -> list[Face]:
        return [self._faces[frame.tobytes()]]


@dataclass
class Denoiser:
    """An engine that smooths a little."""

    info: EngineInfo = STUB_INFO

    def infer(self, batch: Frame) -> Frame:
        return np.stack([np.asarray(cv2.GaussianBlur(face, (3, 3), 0), np.uint8) for face in batch])
