"""Which faces are left alone: too small, turned too far, or too unsure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.faces.detect import Face
from ufr_edge.runtime.frame import FloatArray

_NOSE_DEPTH = 0.45  # of the nose's tip before the plane of eyes and mouth, in distances of the eyes
_EASE = 0.9  # a face that is being restored may pass a limit by a tenth before it is left alone


@dataclass(frozen=True, kw_only=True)
class FaceLimits:
    """Faces outside these are left alone.

    min_side: shorter side of the box, in frame pixels. max_yaw: degrees the face is turned to either side.
    min_score: of the detection (the detector has a threshold of its own). max_faces: of one frame, the
    largest first; None for all.
    """

    min_side: float = 16.0
    max_yaw: float = 65.0
    min_score: float = 0.0
    max_faces: int | None = None

    def __post_init__(self) -> None:
        if self.min_side < 0 or not 0 < self.max_yaw <= 90 or not 0 <= self.min_score < 1:
            msg = "Face limits: min_side from 0 on, max_yaw in (0, 90] degrees, min_score in [0, 1)."
            raise ConfigError(msg)
        if self.max_faces is not None and self.max_faces < 1:
            msg = f"max_faces must be 1 or more (or left out), not {self.max_faces}."
            raise ConfigError(msg)


def reason_to_skip(face: Face, limits: FaceLimits, *, restored_before: bool = False) -> str | None:
    """Why `face` is left alone, in words; None when it may be restored. `max_faces` is not looked at.

    restored_before: eases the limits by a tenth, so that a face at a limit does not come and go.
    """
    ease = _EASE if restored_before else 1.0
    side = float(min(face.box[2:] - face.box[:2]))
    if side < limits.min_side * ease:
        return f"too small: {side:.0f} px, limit {limits.min_side:g}"
    if face.score < limits.min_score * ease:
        return f"too unsure: score {face.score:.2f}, limit {limits.min_score:g}"
    yaw = abs(yaw_degrees(face.landmarks))
    if yaw > limits.max_yaw / ease:
        return f"turned away: {yaw:.0f} degrees, limit {limits.max_yaw:g}"
    return None


def yaw_degrees(landmarks: FloatArray) -> float:
    """How far a face is turned, from its five points (5, 2): 0 looks at the camera, + to the viewer's right.

    The nose's tip stands `_NOSE_DEPTH` before the plane of eyes and mouth: turned by a, it moves along
    the line of the eyes by depth * sin a, while their distance shrinks by cos a.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    down = mouth - eyes
    length = float(np.hypot(*down))
    if length < 1e-6:
        return 90.0
    # Across the face's own axis: unlike the line of the eyes, it keeps its direction in profile.
    across = np.array([down[1], -down[0]]) / length
    apart = float((points[1] - points[0] + points[4] - points[3]) @ across) / 2
    offset = float((points[2] - (eyes + mouth) / 2) @ across)
    return math.degrees(math.atan2(offset, _NOSE_DEPTH * max(apart, 1e-6)))
