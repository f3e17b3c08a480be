"""Faces followed through a stream: one identity each, found now and then, followed in between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import cv2
import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.faces.align import similarity
from ufr_edge.runtime.faces.detect import Detects, Face
from ufr_edge.runtime.faces.follow import Patch, correlation, crop_side, cut_patch, follow, size_and_turn
from ufr_edge.runtime.faces.limits import FaceLimits, reason_to_skip
from ufr_edge.runtime.faces.one_euro import OneEuro, OneEuroConfig
from ufr_edge.runtime.faces.warp import apply, compose
from ufr_edge.runtime.frame import Affine, FloatArray, Frame, check_frame
from ufr_edge.runtime.timing import StageClock

Evidence = Literal["detected", "followed", "predicted"]

_NEAR = 0.6  # a found face belongs to a track when they differ by less: crop sides moved, plus log of size
_CORRECTION = 0.25  # share of a small difference between followed and found landmarks that is taken over
_SMALL, _LARGE = 0.03, 0.08  # differences, in crop sides, taken over in that share, and whole
_COAST = 2  # frames a face is restored where it is only guessed to be
_OVERLAP = 0.5  # a track nothing was found for is given up where another one lies
_CUT_SIZE = (32, 18)


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """detect_every: frames per detection; sooner when a face cannot be followed. max_missed: detections
    without the face before its track ends (fewer for one found only a few times). smooth: None for landmarks as they are measured.
    max_jump: of the centre (crop sides), max_scale, max_turn (degrees): what is found farther from what
    was followed is not believed, for `max_rejected` detections. max_gap_s: a longer pause ends all tracks.
    cut_likeness: correlation of two frames below which faces that cannot be followed are other faces.
    """

    detect_every: int = 3
    max_missed: int = 3
    smooth: OneEuroConfig | None = field(default_factory=OneEuroConfig)
    max_jump: float = 0.15
    max_scale: float = 1.3
    max_turn: float = 20.0
    max_rejected: int = 2
    max_gap_s: float = 1.0
    cut_likeness: float = 0.5

    def __post_init__(self) -> None:
        if self.detect_every < 1 or self.max_missed < 0 or self.max_rejected < 0:
            msg = "Tracking: detect_every must be 1 or more, max_missed and max_rejected 0 or more."
            raise ConfigError(msg)
        if self.max_jump <= 0 or self.max_scale <= 1 or self.max_turn <= 0 or self.max_gap_s <= 0:
            msg = "Tracking: max_jump, max_turn and max_gap_s must be above 0, max_scale above 1."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class TrackedFace:
    """One face of one frame.

    identity: from 1, never given twice in a stream; 0 in a still. face: with smoothed landmarks.
    time_s: of the frame. path: 2x3, pixels of the frame in which the track began to pixels of this one,
    as the face moved. evidence: what the landmarks rest on. skipped: why the face is left alone, None
    when it is to be restored.
    """

    identity: int
    face: Face
    time_s: float
    path: Affine
    evidence: Evidence = "detected"
    skipped: str | None = None


class FaceTracker:
    """The faces of one stream, frame by frame in order. Keeps no frame, only small grey pictures."""

    def __init__(
        self, detector: Detects, config: TrackConfig, limits: FaceLimits, *, clock: StageClock | None = None
    ) -> None:
        self._detector, self._config, self._limits = detector, config, limits
        self._clock = clock or StageClock()
        self._given = 0
        self.reset()

    def reset(self) -> None:
        """Forget every track; identities go on."""
        self._tracks: list[_Track] = []
        self._restored: frozenset[int] = frozenset()
        self._since = 0
        self._time: float | None = None
        self._size: tuple[int, ...] = ()
        self._small: FloatArray | None = None

    def update(self, frame: Frame, time_s: float) -> tuple[TrackedFace, ...]:
        """The faces of the next frame, largest first. Raises ShapeError, InferenceError."""
        check_frame(frame)
        started = time.perf_counter()
        lost = self._follow(frame, time_s)
        looking = 0.0
        if self._since % self._config.detect_every == 0 or lost:
            looking = self._look(frame)
        self._since += 1
        for track in self._tracks:
            track.patch = cut_patch(frame, track.landmarks)
        seen = [track.seen(time_s) for track in self._tracks]
        faces = judge(seen, self._limits, restored=self._restored)
        self._restored = frozenset(face.identity for face in faces if face.skipped is None)
        self._clock.add("track", time.perf_counter() - started - looking)
        return faces

    def _look(self, frame: Frame) -> float:
        started = time.perf_counter()
        found = self._detector.detect(frame)
        spent = time.perf_counter() - started
        self._clock.add("detect", spent)
        self._since = 0
        self._match(found)
        return spent

    def _follow(self, frame: Frame, time_s: float) -> bool:
        """Move every track to this frame; True when a face was lost or the stream began anew."""
        pause = 0.0 if self._time is None else time_s - self._time
        if frame.shape != self._size or not 0 <= pause <= self._config.max_gap_s:
            self.reset()
        likeness = self._likeness(frame)
        self._time, self._size = time_s, frame.shape
        followed = [track for track in self._tracks if track.advance(frame, pause)]
        lost = len(self._tracks) - len(followed)
        # Portraits resemble each other: a middling likeness is a cut when the faces went too. And a fast
        # pan resembles a cut: a face that could be followed is the same face.
        if likeness < self._config.cut_likeness or (likeness < 0.85 and lost > len(followed)):
            self._tracks = followed
            return lost > 0 or not followed
        return lost > 0

    def _likeness(self, frame: Frame) -> float:
        height, width = frame.shape[:2]
        step = max(1, min(width // (4 * _CUT_SIZE[0]), height // (4 * _CUT_SIZE[1])))
        picture = np.ascontiguousarray(frame[::step, ::step, 1], np.float32)
        small = np.asarray(cv2.resize(picture, _CUT_SIZE, interpolation=cv2.INTER_AREA), np.float32)
        before, self._small = self._small, small
        return 1.0 if before is None else correlation(before, small)

    def _match(self, found: Sequence[Face]) -> None:
        """Give each found face to the nearest track, or begin one; end those that were missed too often."""
        pairs = sorted(
            (distance, t, f)
            for t, track in enumerate(self._tracks)
            for f, face in enumerate(found)
            if (distance := track.distance(face)) < _NEAR
        )
        taken: dict[int, int] = {}
        for _, t, f in pairs:
            if t not in taken and f not in taken.values():
                taken[t] = f
        for t, track in enumerate(self._tracks):
            if t in taken:
                track.correct(found[taken[t]])
            else:
                track.missed += 1
        matched = [self._tracks[t] for t in taken]
        self._tracks = [t for t in self._tracks if t.missed == 0 or t.lives(matched)]
        for face in (face for f, face in enumerate(found) if f not in taken.values()):
            self._given += 1
            self._tracks.append(_Track(self._given, face, self._config))


def found_in_still(found: Sequence[Face], limits: FaceLimits) -> tuple[TrackedFace, ...]:
    """The faces of a picture without neighbours, largest first, each with its reason when it is left alone."""
    faces = [TrackedFace(identity=0, face=face, time_s=0.0, path=np.eye(2, 3)) for face in found]
    return judge(faces, limits)


def judge(
    faces: Sequence[TrackedFace], limits: FaceLimits, *, restored: frozenset[int] = frozenset()
) -> tuple[TrackedFace, ...]:
    """The same faces, largest first, with the reason on those that `limits` leave alone.

    restored: identities restored in the frame before, which keep their place where sizes are close.
    """
    out: list[TrackedFace] = []
    room = len(faces) if limits.max_faces is None else limits.max_faces
    for one in sorted(faces, key=lambda one: -_area(one.face) * (1.2 if one.identity in restored else 1)):
        reason = reason_to_skip(one.face, limits, restored_before=one.identity in restored)
        if reason is None and room == 0:
            reason = f"one too many: limit {limits.max_faces}"
        room -= reason is None
        out.append(replace(one, skipped=reason))
    return tuple(out)


class _Track:
    """One face. Its landmarks move by what was followed, and are drawn to what was found."""

    def __init__(self, identity: int, face: Face, config: TrackConfig) -> None:
        self.identity, self._config, self.score = identity, config, face.score
        self.landmarks, self.box = face.landmarks, face.box
        self.patch: Patch | None = None
        self.missed = 0
        self._hits = 1
        self._rejected = self._guessed = 0
        self._path: Affine = np.eye(2, 3)
        self._velocity = np.zeros(2, np.float32)  # of the centre, pixels a second
        self._smoother = None if config.smooth is None else OneEuro(config.smooth)
        self._evidence: Evidence = "detected"

    def advance(self, frame: Frame, dt: float) -> bool:
        """Follow the face into the next frame, `dt` seconds on; False when it can only be guessed."""
        guess = self._velocity * np.float32(dt)
        motion = None if self.patch is None else follow(self.patch, frame, self.landmarks, guess)
        if motion is None:
            self._evidence, self._guessed = "predicted", self._guessed + 1
            self._velocity *= np.float32(0.5)
            motion = np.column_stack([np.eye(2), guess.astype(np.float64)])
            self._move(motion)
            return False
        centre = self.landmarks.mean(axis=0)
        self._move(motion)
        if dt > 0:
            self._velocity += 0.5 * ((self.landmarks.mean(axis=0) - centre) / np.float32(dt) - self._velocity)
        self._evidence, self._guessed = "followed", 0
        return True

    def _move(self, motion: Affine) -> None:
        self.landmarks = apply(motion, self.landmarks)
        corners = apply(motion, self.box.reshape(2, 2))
        half = (self.box[2:] - self.box[:2]) / 2 * np.float32(size_and_turn(motion)[0])
        centre = corners.mean(axis=0)
        self.box = np.concatenate([centre - half, centre + half]).astype(np.float32)
        self._path = compose(motion, self._path)

    def distance(self, face: Face) -> float:
        """How unlike the track's place a found face is: crop sides between them, plus the log of their sizes."""
        mine, other = crop_side(self.landmarks), crop_side(face.landmarks)
        apart = float(np.linalg.norm(self.landmarks.mean(axis=0) - face.landmarks.mean(axis=0)))
        return apart / max(mine, other) + abs(float(np.log(mine / other)))

    def correct(self, face: Face) -> None:
        """Take over where the detector found the face, or part of it, or nothing when that is not believable."""
        self.missed, self._hits = 0, self._hits + 1
        guessed = self._evidence == "predicted"
        outlier = not guessed and self._is_outlier(face)
        if outlier and self._rejected < self._config.max_rejected:
            self._rejected += 1
            return
        self._rejected = self._guessed = 0
        if guessed:
            # What was found is where the face moved; where it was followed, that is known better.
            self._path = compose(_similarity(self.landmarks, face.landmarks), self._path)
        share = 1.0 if guessed or outlier else self._share(face)
        if share == 1.0 and self._config.smooth is not None:
            self._smoother = OneEuro(self._config.smooth)
        self.landmarks = self.landmarks + np.float32(share) * (face.landmarks - self.landmarks)
        self.box = self.box + np.float32(share) * (face.box - self.box)
        self.score, self._evidence = face.score, "detected"

    def _share(self, face: Face) -> float:
        error = float(np.abs(face.landmarks - self.landmarks).mean()) / crop_side(self.landmarks)
        return _CORRECTION + (1 - _CORRECTION) * float(np.clip((error - _SMALL) / (_LARGE - _SMALL), 0, 1))

    def _is_outlier(self, face: Face) -> bool:
        jump = _similarity(self.landmarks, face.landmarks)
        scale, turn = size_and_turn(jump)
        apart = float(np.linalg.norm(self.landmarks.mean(axis=0) - face.landmarks.mean(axis=0)))
        config = self._config
        too_far = apart > config.max_jump * crop_side(self.landmarks)
        return too_far or abs(turn) > config.max_turn or not 1 / config.max_scale < scale < config.max_scale

    def lives(self, matched: Sequence[_Track]) -> bool:
        """Whether a track for which nothing was found goes on: followed still, not too long, under no other."""
        borne = min(self._config.max_missed, self._hits - 1)  # what was found but once was hardly a face
        if self._guessed > _COAST or self.missed > borne:
            return False
        return all(overlap(self.box, other.box) < _OVERLAP for other in matched)

    def seen(self, time_s: float) -> TrackedFace:
        """The track in this frame, smoothed."""
        points = self.landmarks
        if self._smoother is not None:
            points = self._smoother.step(points, time_s, unit=crop_side(points))
        face = Face(box=self.box, score=self.score, landmarks=points)
        return TrackedFace(
            identity=self.identity, face=face, time_s=time_s, path=self._path, evidence=self._evidence
        )


def overlap(one: FloatArray, other: FloatArray) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    shared = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = float(np.prod(np.maximum(shared, 0)))
    areas = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]))
    return both / max(areas - both, 1e-9)


def _area(face: Face) -> float:
    return float(np.prod(face.box[2:] - face.box[:2]))


def _similarity(source: FloatArray, target: FloatArray) -> Affine:
    return similarity(source.astype(np.float64), target.astype(np.float64))
