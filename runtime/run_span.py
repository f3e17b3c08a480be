"""Restoring a stretch of a video into parts.

A frame belongs to the window of `RunConfig.segment_s` seconds in which its time lies, so that any window can be
made again, or by another process, and every frame is written exactly once.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, final

from ufr_edge.errors import InputFileError
from ufr_edge.runtime.job import Job, RunConfig, Work
from ufr_edge.runtime.pipeline import Restored
from ufr_edge.runtime.report import Tally
from ufr_edge.runtime.run_parts import PartFolder, Span
from ufr_edge.runtime.video.encoder import FrameCoder, open_encoder
from ufr_edge.runtime.video.parts import PartWriter
from ufr_edge.runtime.video.prefetch import prefetch
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo, VideoSource

_QUEUE = 4  # frames held between two stages
_RUN_IN = Fraction(1, 2)  # seconds restored before a stretch, so that its faces have a past


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every process of a run must agree on; can be pickled. info: as written. folder: of the parts."""

    source: str | Path
    info: VideoInfo
    pix_fmt: str
    folder: PartFolder
    config: RunConfig


def restore_span(job: Job, video: VideoSource, plan: Plan, span: Span, *, seek: bool = True) -> None:
    """Restore the frames of some windows into their parts. seek: the file may be read from the middle."""
    since = None if span.first == 0 else plan.folder.begin(span.first)
    before = None if since is None else since - _RUN_IN
    until = None if span.last is None else plan.folder.begin(span.last)
    frames = _timed(job, _until(video.items(before, seek=seek), until))
    restored = _restored(job.new_work(), prefetch(frames, depth=_QUEUE), since)
    with closing(prefetch(restored, depth=_QUEUE)) as ready, _Parts(job, video, plan, span) as parts:
        for frame, done in ready:
            parts.write(frame, done)
        if not video.steady and plan.config.workers > 1:
            msg = f"{plan.info.name} has time stamps that jump back, so that it cannot be divided. Give --workers 1."
            raise InputFileError(msg)
        parts.finish()


@final
class _Parts:
    """Writes the frames of a span into one part after the other."""

    def __init__(self, job: Job, video: VideoSource, plan: Plan, span: Span) -> None:
        self._job, self._video, self._plan = job, video, plan
        self._window, self._last = span.first, span.last
        info = plan.info
        self._coder = FrameCoder(info, (info.width, info.height), plan.pix_fmt)
        self._part = PartWriter(plan.folder.part(span.first))
        self._encoder: Any = None
        self._counted = Tally()
        self._shown: dict[int, int] = {}

    def write(self, frame: SourceFrame, done: Restored) -> None:
        """Encode a frame, into its window's part."""
        window = self._plan.folder.of(frame)
        while self._window < window:
            self._end()
            self._window += 1
            self._begin()
        with self._job.clock.stage("encode"):
            if self._encoder is None:
                self._encoder = open_encoder(
                    self._plan.info, self._coder.size, self._plan.pix_fmt, self._plan.config.encode
                )
            self._shown[frame.pts] = frame.duration
            self._add(self._encoder.encode(self._coder.coded(frame)))
        self._counted.saw(done.count, done.skipped)
        self._job.wrote(self._plan.info.expected)

    def finish(self) -> None:
        """End the last part, and give an empty one to windows of the span that have no frame."""
        while True:
            if self._last is None and self._counted.read == 0:
                return  # nothing there: the film ended with the part before
            self._end()
            if self._last is None or self._window + 1 >= self._last:
                return
            self._window += 1
            self._begin()

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._part.__exit__(None, None, None)

    def _add(self, packets: Iterable[Any]) -> None:
        coded = list(packets)
        for packet in coded:  # the encoder knows frame rates only; a last frame may be shown for seconds
            packet.duration = self._shown.pop(packet.pts, 0) or packet.duration
        self._part.add(coded)

    def _begin(self) -> None:
        self._part = PartWriter(self._plan.folder.part(self._window))
        self._encoder, self._counted = None, Tally()

    def _end(self) -> None:
        header = ""
        if self._encoder is not None:
            with self._job.clock.stage("encode"):
                self._add(self._encoder.encode(None))
            header = bytes(self._encoder.extradata or b"").hex()
        counted = self._counted
        self._part.finish(
            {
                "header": header,
                "faces": counted.faces,
                "faceless": counted.faceless,
                "left_alone": dict(counted.left_alone),
                "steady": self._video.steady,
            }
        )


def _restored(
    work: Work, frames: Generator[SourceFrame, None, None], since: Fraction | None
) -> Iterator[tuple[SourceFrame, Restored]]:
    with closing(frames):  # stops the reading thread when the engine fails
        for frame in frames:
            done = work(frame.image, f"The frame at {frame.seconds:.3f} s", frame.seconds)
            if since is not None and frame.pts * frame.time_base < since:
                continue  # its part is finished
            native = None if done.touched is None else frame.native
            yield (
                replace(
                    frame,
                    image=done.image,
                    before=frame.image,
                    native=native,
                    touched=done.touched or (),
                ),
                done,
            )


def _until(frames: Iterator[SourceFrame], end: Fraction | None) -> Iterator[SourceFrame]:
    for frame in frames:
        if end is not None and frame.pts * frame.time_base >= end:
            return
        yield frame


def _timed(job: Job, frames: Iterator[SourceFrame]) -> Iterator[SourceFrame]:
    """Time what each frame took to read."""
    since = time.perf_counter()
    for frame in frames:
        job.clock.add("decode", time.perf_counter() - since)
        yield frame
        since = time.perf_counter()
