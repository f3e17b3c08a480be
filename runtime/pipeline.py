"""Find and follow, restore, paste: what happens to one frame, as three stages that can overlap."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from ufr_edge.errors import ConfigError, InputFileError
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.align import estimate_alignment, warp_face
from ufr_edge.runtime.faces.detect import Detects, Face
from ufr_edge.runtime.faces.grain import Grain
from ufr_edge.runtime.faces.limits import FaceLimits
from ufr_edge.runtime.faces.paste import feather_mask, match_colour, paste_into
from ufr_edge.runtime.faces.stabilise import FaceMemory, Sight, StabiliserConfig
from ufr_edge.runtime.faces.track import FaceTracker, TrackConfig, TrackedFace, found_in_still
from ufr_edge.runtime.faces.warp import compose
from ufr_edge.runtime.frame import Affine, Box, FloatArray, Frame
from ufr_edge.runtime.timing import StageClock


class Restores(Protocol):
    """What the pipeline asks of a face engine (`ufr_edge.runtime.engines.base.Engine`)."""

    @property
    def info(self) -> EngineInfo:
        """What runs, where; `side` is the face side, None when the engine takes any."""

    def infer(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Restore uint8 (B, S, S, 3) faces."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """fidelity: 0 takes the restored face whole, 1 the input. batch: most faces given to the engine at once.

    side: face side for an engine that takes any. grain: share of the input's noise given back to the
    restored face, 0 for none. stabilise: None leaves each restored face as the engine gave it.
    `track` and `stabilise` concern streams only, not stills.
    """

    fidelity: float = 0.0
    colour_match: bool = True
    batch: int = 8
    side: int = 256
    grain: float = 0.0
    limits: FaceLimits = field(default_factory=FaceLimits)
    track: TrackConfig = field(default_factory=TrackConfig)
    stabilise: StabiliserConfig | None = field(default_factory=StabiliserConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.fidelity <= 1:
            msg = f"Fidelity must lie between 0 (all restored) and 1 (the input), not {self.fidelity}."
            raise ConfigError(msg)
        if not 0 <= self.grain <= 2:
            msg = f"Grain must lie between 0 (none) and 2 (twice the input's noise), not {self.grain}."
            raise ConfigError(msg)
        if self.batch < 1:
            msg = f"batch must be 1 or more, not {self.batch}."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class RestoredFaces:
    """What the restore stage hands to the paste stage; the first four go together, one entry per face.

    tracks: the faces restored. restored: uint8 (N, S, S, 3), in the input's colours when so configured.
    crops: what they were made from. matrices: 2x3, frame to aligned. all_tracks: those left alone too.
    """

    tracks: tuple[TrackedFace, ...]
    restored: Frame
    crops: Frame
    matrices: tuple[Affine, ...]
    all_tracks: tuple[TrackedFace, ...]


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A frame after the pipeline. Without faces, `image` is the very array that was given.

    count: faces restored. touched: boxes outside which no pixel differs; None when all may.
    faces: those restored. tracks: every face of the frame, those left alone with their reason.
    """

    image: Frame
    count: int
    touched: tuple[Box, ...] | None
    faces: tuple[Face, ...] = ()
    tracks: tuple[TrackedFace, ...] = ()

    @property
    def skipped(self) -> tuple[str, ...]:
        """Why faces were left alone, one reason per face."""
        return tuple(track.skipped for track in self.tracks if track.skipped is not None)


class FacePipeline:
    """Restores the faces of one stream: `process` frame by frame in order, or `restore` for a still.

    `process` is three stages, which may run in three threads, each given its frames in order (frames may
    be left out in between, and need not reach every stage):

    | stage | reads | writes |
    |---|---|---|
    | `detect_and_track` | the frame, the detector | the tracks; keeps small grey pictures, never the frame |
    | `restore_faces`, `carry_faces` | frame, tracks, the engine | the stabiliser's state, by identity |
    | `paste` | frame, restored faces | nothing but its result: a new picture |

    No stage changes the frame it is given. One stage must not run in two threads at a time. `use_engine`
    belongs to the thread of `restore_faces`, `reset` to that of `detect_and_track`.
    """

    def __init__(
        self, engine: Restores, detector: Detects, config: PipelineConfig, *, clock: StageClock | None = None
    ) -> None:
        self._detector, self._config = detector, config
        self._clock = clock or StageClock()
        self._tracker = FaceTracker(detector, config.track, config.limits, clock=self._clock)
        self._masks: dict[int, FloatArray] = {}
        self._memory = FaceMemory(config.stabilise)
        self.use_engine(engine)

    def process(self, frame: Frame, *, time_s: float) -> Restored:
        """Restore one RGB frame shown at `time_s` seconds. Raises ShapeError, InferenceError."""
        tracks = self.detect_and_track(frame, time_s=time_s)
        return self.paste(frame, self.restore_faces(frame, tracks))

    def restore(self, frame: Frame) -> Restored:
        """Restore every face of a still, which has no frame before it. Raises ShapeError, InferenceError."""
        with self._clock.stage("detect"):
            tracks = found_in_still(self._detector.detect(frame), self._config.limits)
        return self.paste(frame, self._run_engine(frame, tracks))

    def detect_and_track(self, frame: Frame, *, time_s: float) -> tuple[TrackedFace, ...]:
        """Every face of the frame, largest first; those with `skipped` are left alone by the next stage.

        Raises ShapeError, InferenceError. Time that runs backwards or jumps begins a new stream.
        """
        return self._tracker.update(frame, time_s)

    def restore_faces(self, frame: Frame, tracks: tuple[TrackedFace, ...]) -> RestoredFaces:
        """Cut out, restore (all faces together) and stabilise. Raises InferenceError."""
        faces = self._run_engine(frame, tracks)
        with self._clock.stage("stabilise"):
            self._memory.keep([track.identity for track in faces.tracks])
            pairs = zip(_sights(faces), faces.restored, strict=True)
            steady = [self._memory.steady(sight, face) for sight, face in pairs]
        return replace(faces, restored=np.stack(steady)) if steady else faces

    def carry_faces(self, frame: Frame, tracks: tuple[TrackedFace, ...]) -> RestoredFaces:
        """As `restore_faces` without the engine: each track's last change is laid onto the new picture.

        For frames there is no time to restore. A face that was never restored is left alone.
        """
        cut = self._cut(frame, tracks)
        with self._clock.stage("stabilise"):
            carried = [self._memory.carry(sight) for sight in _sights(cut)]
        known = [i for i, face in enumerate(carried) if face is not None]
        faces = [face for face in carried if face is not None]
        return RestoredFaces(
            tracks=tuple(cut.tracks[i] for i in known),
            restored=np.stack(faces) if faces else cut.crops[:0],
            crops=cut.crops[known],
            matrices=tuple(cut.matrices[i] for i in known),
            all_tracks=tracks,
        )

    def paste(self, frame: Frame, faces: RestoredFaces) -> Restored:
        """Put restored faces back into a copy of the frame they were cut from; the frame itself without any."""
        if not faces.tracks:
            return Restored(image=frame, count=0, touched=(), tracks=faces.all_tracks)
        with self._clock.stage("paste"):
            canvas, touched = frame.copy(), tuple[Box, ...]()
            for number, track in enumerate(faces.tracks):
                box = self._paste_one(canvas, faces, number, track)
                touched += () if box is None else (box,)
        return Restored(
            image=canvas,
            count=len(faces.tracks),
            touched=touched,
            faces=tuple(track.face for track in faces.tracks),
            tracks=faces.all_tracks,
        )

    def use_engine(self, engine: Restores) -> None:
        """Go on with another engine, of any side; the faces' past is kept."""
        self._engine = engine
        self._side = engine.info.side or self._config.side
        self._memory.resize(self._side)

    def reset(self) -> None:
        """Forget every track: the next frame begins a new stream, whose faces have no past."""
        self._tracker.reset()

    def _run_engine(self, frame: Frame, tracks: tuple[TrackedFace, ...]) -> RestoredFaces:
        cut = self._cut(frame, tracks)
        if not cut.tracks:
            return cut
        with self._clock.stage("restore"):
            restored = infer_all(self._engine, cut.crops, batch=self._config.batch)
            if self._config.colour_match:  # before faces are steadied: the input's colours are noisy too
                pairs = zip(restored, cut.crops, strict=True)
                restored = np.stack([match_colour(face, crop) for face, crop in pairs])
        return replace(cut, restored=restored)

    def _cut(self, frame: Frame, tracks: tuple[TrackedFace, ...]) -> RestoredFaces:
        wanted = tuple(track for track in tracks if track.skipped is None)
        side = self._side
        if not wanted:
            none = np.empty((0, side, side, 3), np.uint8)
            return RestoredFaces(tracks=(), restored=none, crops=none, matrices=(), all_tracks=tracks)
        with self._clock.stage("warp"):
            matrices = tuple(estimate_alignment(track.face.landmarks, side) for track in wanted)
            crops = np.stack([warp_face(frame, matrix, side) for matrix in matrices])
        return RestoredFaces(tracks=wanted, restored=crops, crops=crops, matrices=matrices, all_tracks=tracks)

    def _paste_one(self, canvas: Frame, faces: RestoredFaces, number: int, track: TrackedFace) -> Box | None:
        config = self._config
        seed = (track.identity, number, round(max(0.0, track.time_s) * 1e6))
        return paste_into(
            canvas,
            faces.restored[number],
            faces.matrices[number],
            fidelity=config.fidelity,
            colour_match=False,  # done
            crop=faces.crops[number],
            mask=self._mask(len(faces.restored[number])),
            grain=Grain(strength=config.grain, seed=seed) if config.grain else None,
        )

    def _mask(self, side: int) -> FloatArray:
        # By side, as a face restored before `use_engine` may be pasted after it.
        if side not in self._masks:
            self._masks[side] = feather_mask(side)
        return self._masks[side]


def _sights(faces: RestoredFaces) -> list[Sight]:
    return [
        Sight(identity=track.identity, time_s=track.time_s, stand=compose(matrix, track.path), crop=crop)
        for track, matrix, crop in zip(faces.tracks, faces.matrices, faces.crops, strict=True)
    ]


def infer_all(engine: Restores, crops: Frame, *, batch: int) -> Frame:
    """Run (N, S, S, 3) faces through the engine, at most `batch` at once."""
    parts = [engine.infer(np.ascontiguousarray(crops[i : i + batch])) for i in range(0, len(crops), batch)]
    return np.concatenate(parts)


def restore_aligned(
    engine: Restores, face: Frame, config: PipelineConfig, *, clock: StageClock, name: str
) -> Restored:
    """Restore a picture that is an aligned face already; the result has the engine's side.

    Raises InputFileError when the picture is not square.
    """
    if face.shape[0] != face.shape[1]:
        msg = f"{name} is {face.shape[1]}x{face.shape[0]}; an aligned face is square. Leave out --aligned."
        raise InputFileError(msg)
    side = engine.info.side or config.side
    with clock.stage("warp"):
        how = cv2.INTER_AREA if face.shape[0] > side else cv2.INTER_LINEAR
        crop = np.asarray(cv2.resize(face, (side, side), interpolation=how), dtype=np.uint8)
    with clock.stage("restore"):
        restored = engine.infer(np.ascontiguousarray(crop[None]))[0]
    with clock.stage("paste"):
        mixed = cv2.addWeighted(restored, 1 - config.fidelity, crop, config.fidelity, 0)
    return Restored(image=np.asarray(mixed, dtype=np.uint8), count=1, touched=None)
