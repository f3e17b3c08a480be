"""What the threads of a stream do to a frame: follow faces, restore, paste; a failure lets the frame through."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from ufr_edge.errors import UfrEdgeError
from ufr_edge.runtime.faces.track import TrackedFace
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.ladder import Step
from ufr_edge.runtime.live.stats import StatsBoard, TrackView
from ufr_edge.runtime.pipeline import FacePipeline, RestoredFaces, Restores
from ufr_edge.runtime.video.source import SourceFrame


@dataclass(frozen=True, kw_only=True)
class Held:
    """A frame on its way. original: as captured. tracks, faces: None when the frame is let through."""

    frame: SourceFrame
    original: Frame
    tracks: tuple[TrackedFace, ...] | None = None
    faces: RestoredFaces | None = None
    step: Step = Step.FULL


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The engine that was asked for, and a faster one of the same bundle when it has one."""

    full: Restores
    smaller: Restores | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the ladder that can be taken with these."""
        return tuple(s for s in Step if s is not Step.SMALLER or self.smaller is not None)

    def at(self, step: Step) -> Restores:
        """The engine of a step: below the first, the smaller one."""
        return self.full if step is Step.FULL or self.smaller is None else self.smaller


class ChoosesEngine(Protocol):
    """What a stream asks of its engines: `Engines`, or a slot whose engines change while it runs (see `swap`)."""

    @property
    def full(self) -> Restores:
        """The engine that was asked for."""

    @property
    def smaller(self) -> Restores | None:
        """A faster one, if any."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the ladder that can be taken."""

    def at(self, step: Step) -> Restores:
        """The engine for the next frame; asked once a frame."""


class FaceStages:
    """The three stages over a `FacePipeline`; each method belongs to one thread."""

    def __init__(
        self,
        pipeline: FacePipeline,
        engines: ChoosesEngine,
        *,
        board: StatsBoard,
        events: EventLog,
        step: Callable[[], Step],
        most_failures: int,
    ) -> None:
        self._pipeline, self._engines, self._board, self._step = pipeline, engines, board, step
        self._events = events
        self._failures = {
            name: _Failures(name, board, events, most_failures) for name in ("track", "restore")
        }
        self._engine = engines.full
        self._size: tuple[int, ...] | None = None
        self._odd = False

    def track(self, held: Held) -> Held:
        """Find and follow faces. On the last step of the ladder the frame is let through at once."""
        step = self._step()
        size = held.frame.image.shape[:2]
        if self._size not in (None, size):
            self._events.add("size", f"pictures are {size[1]}x{size[0]} now", level=logging.WARNING)
            self._pipeline.reset()
        self._size = size
        if step is Step.PASS:
            self._board.count("passed")
            return replace(held, step=step)

        def work() -> Held:
            tracks = self._pipeline.detect_and_track(held.frame.image, time_s=held.frame.seconds)
            return replace(held, tracks=tracks, step=step)

        return self._failures["track"].guard(work, held)

    def restore(self, held: Held) -> Held:
        """Run the engine on the faces, or carry on their last change."""
        tracks = held.tracks
        if tracks is None:
            return held

        def work() -> Held:
            faces = self._restored(held.frame.image, tracks, held.step)
            return replace(held, faces=faces)

        return self._failures["restore"].guard(work, held)

    def paste(self, held: Held) -> Held:
        """Put the faces back into the frame."""
        if held.faces is None:
            return held
        done = self._pipeline.paste(held.frame.image, held.faces)
        native = None if done.touched is None else held.frame.native
        frame = replace(held.frame, image=done.image, native=native, touched=done.touched or ())
        return replace(held, frame=frame)

    def _restored(self, image: Frame, tracks: tuple[TrackedFace, ...], step: Step) -> RestoredFaces:
        wanted = self._engines.at(step)
        if wanted is not self._engine:
            self._pipeline.use_engine(wanted)
            self._engine = wanted
        self._odd = not self._odd if step is Step.CARRY else False
        if step is Step.CARRY and not self._odd:
            self._board.count("carried")
            return self._pipeline.carry_faces(image, tracks)
        return self._pipeline.restore_faces(image, tracks)


class _Failures:
    """Counts failures in a row of one stage; too many are raised."""

    def __init__(self, stage: str, board: StatsBoard, events: EventLog, most: int) -> None:
        self._stage, self._board, self._events, self._most = stage, board, events, most
        self._row = 0

    def guard(self, work: Callable[[], Held], held: Held) -> Held:
        """Do the work; a frame on which it fails is let through as it came."""
        try:
            done = work()
        except UfrEdgeError as exc:
            self._row += 1
            if self._row >= self._most:
                raise
            self._board.count("failed")
            if self._row == 1:  # one line for each run of failures, not for each frame
                text = f"{self._stage}: frame {held.frame.index} is let through untouched ({exc})"
                self._events.add("failed", text, level=logging.WARNING)
            return replace(held, tracks=None, faces=None)
        self._row = 0
        return done


def views(held: Held) -> tuple[TrackView, ...]:
    """The faces of a frame that were restored, for those who show them."""
    if held.faces is None:
        return ()
    return tuple(
        TrackView(id=track.identity or None, box=_box(track), score=round(float(track.face.score), 3))
        for track in held.faces.tracks
    )


def _box(track: TrackedFace) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (round(float(v)) for v in track.face.box)
    return x0, y0, x1, y1
