"""Detect, align, restore, paste: what happens to one frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from ufr_edge.errors import ConfigError, InputFileError
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.align import estimate_alignment, warp_face
from ufr_edge.runtime.faces.detect import Detects, Face
from ufr_edge.runtime.faces.paste import feather_mask, paste_into
from ufr_edge.runtime.frame import Affine, Box, Frame
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
    """fidelity: 0 takes the restored face whole, 1 the input. detect_every: frames per detection.

    batch: most faces given to the engine at once. side: face side for an engine that takes any.
    """

    fidelity: float = 0.0
    colour_match: bool = True
    detect_every: int = 1
    batch: int = 8
    side: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.fidelity <= 1:
            msg = f"Fidelity must lie between 0 (all restored) and 1 (the input), not {self.fidelity}."
            raise ConfigError(msg)
        if self.detect_every < 1 or self.batch < 1:
            msg = "detect_every and batch must be 1 or more."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A frame after the pipeline. Without faces, `image` is the very array that was given.

    count: faces restored. touched: boxes outside which no pixel differs; None when all may.
    """

    image: Frame
    count: int
    touched: tuple[Box, ...] | None
    faces: tuple[Face, ...] = ()


class FacePipeline:
    """Restores the faces of frames given in order. Not for use by several threads at a time."""

    def __init__(
        self, engine: Restores, detector: Detects, config: PipelineConfig, *, clock: StageClock | None = None
    ) -> None:
        self._engine, self._detector, self._config = engine, detector, config
        self._clock = clock or StageClock()
        self._side = engine.info.side or config.side
        self._mask = feather_mask(self._side)
        self._seen: tuple[Face, ...] = ()
        self._age = 0

    def restore(self, frame: Frame) -> Restored:
        """Restore every face of one RGB frame. Raises ShapeError, InferenceError."""
        faces = self._find(frame)
        if not faces:
            return Restored(image=frame, count=0, touched=())
        with self._clock.stage("warp"):
            matrices = [estimate_alignment(face.landmarks, self._side) for face in faces]
            crops = np.stack([warp_face(frame, matrix, self._side) for matrix in matrices])
        with self._clock.stage("restore"):
            restored = infer_all(self._engine, crops, batch=self._config.batch)
        with self._clock.stage("paste"):
            image, touched = self._paste(frame, restored, crops, matrices)
        return Restored(image=image, count=len(faces), touched=touched, faces=faces)

    def _find(self, frame: Frame) -> tuple[Face, ...]:
        if self._age % self._config.detect_every == 0:
            with self._clock.stage("detect"):
                self._seen = tuple(self._detector.detect(frame))
        self._age += 1
        return self._seen

    def _paste(
        self, frame: Frame, restored: Frame, crops: Frame, matrices: Sequence[Affine]
    ) -> tuple[Frame, tuple[Box, ...]]:
        canvas, touched = frame.copy(), tuple[Box, ...]()
        for face, crop, matrix in zip(restored, crops, matrices, strict=True):
            box = paste_into(
                canvas,
                face,
                matrix,
                fidelity=self._config.fidelity,
                colour_match=self._config.colour_match,
                crop=crop,
                mask=self._mask,
            )
            touched += () if box is None else (box,)
        return canvas, touched


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
