"""A stream: capture, track, restore, paste and sink as threads over bounded queues.

No thread waits for another longer than that one works on a frame: where frames come faster than they can be
done, the queue behind the camera drops them. Time limits: a stop waits `drain_s` for frames under way, then
`join_s` for each thread; a thread that does not end by then (a driver that hangs) is named in the events.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.ladder import Ladder, LadderConfig, Step
from ufr_edge.runtime.live.observer import FaceObserver
from ufr_edge.runtime.live.queues import (
    CAMERA_POLICY,
    FILE_POLICY,
    Consuming,
    Filling,
    FrameQueue,
    QueuePolicy,
)
from ufr_edge.runtime.live.sink_group import SinkGroup
from ufr_edge.runtime.live.sinks import LiveFrame, Sink, SinkClosedError, SinkContext
from ufr_edge.runtime.live.sources import LiveSource, ReconnectingSource, paced
from ufr_edge.runtime.live.stages import ChoosesEngine, FaceStages, Held, views
from ufr_edge.runtime.live.stats import STAGES, LiveStats, StatsBoard
from ufr_edge.runtime.live.timecode import read_code
from ufr_edge.runtime.pipeline import FacePipeline
from ufr_edge.runtime.video.source import SourceFrame

_PERIODS = 3  # a frame may be so many frame periods old at the sink: 100 ms at 30 frames/s
_TICK_S = 0.25


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """deadline_ms: age of a frame at the sink from which it is late; None: three frame periods of a live
    source, no deadline for a file. ladder: act on it. filling, consuming: of the queue behind the source; None:
    by its kind. frames, seconds: stop after so much. latency: read the time code at the sink. most_failures: frames
    in a row on which the engine or detector may throw. pace: play a file at its own speed.
    """

    deadline_ms: float | None = None
    ladder: bool = True
    filling: Filling | None = None
    consuming: Consuming | None = None
    frames: int | None = None
    seconds: float | None = None
    latency: bool = False
    most_failures: int = 10
    pace: bool = False
    drain_s: float = 3.0
    join_s: float = 10.0

    def __post_init__(self) -> None:
        limits = (self.frames, self.seconds, self.deadline_ms)
        if any(value is not None and value <= 0 for value in limits) or self.most_failures < 1:
            msg = "frames, seconds, deadline_ms and most_failures must be above 0."
            raise ConfigError(msg)


@dataclass(kw_only=True)
class _End:
    """Why it ends; the first reason counts."""

    reason: str | None = None
    error: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, reason: str, error: BaseException | None = None) -> None:
        with self.lock:
            if self.reason is None:
                self.reason, self.error = reason, error


class LiveStream:
    """One run of a stream. `run()` blocks; `snapshot()` and `stop()` may be called from any thread."""

    def __init__(
        self,
        source: LiveSource,
        sinks: Sequence[Sink],
        pipeline: FacePipeline,
        engines: ChoosesEngine,
        config: StreamConfig | None = None,
        *,
        board: StatsBoard,
        events: EventLog,
        stop: threading.Event,
        observer: FaceObserver | None = None,
    ) -> None:
        """sinks: when the first fails the stream ends; another is given up. stop: the event that was given to the
        source. board: the pipeline's clock should be its clock.

        observer: gets the faces of every frame that came to the sink; started and closed by `run`.
        """
        self._source, self._sinks, self._config = source, SinkGroup(sinks, events), config or StreamConfig()
        self._board, self._events, self._stop = board, events, stop
        self._end, self._done = _End(), threading.Event()
        self._ladder = self._make_ladder(engines)
        self._stages = FaceStages(
            pipeline,
            engines,
            board=board,
            events=events,
            step=lambda: Step.FULL if self._ladder is None else self._ladder.step,
            most_failures=self._config.most_failures,
        )
        self._queues = self._make_queues()
        self._dropped = 0
        self._observer = observer
        if observer is not None:
            board.watch_faces(lambda: observer.watch)
        board.watch_queues(lambda: {name: (len(q), q.dropped) for name, q in self._queues.items()})

    @property
    def board(self) -> StatsBoard:
        """Where its numbers are collected."""
        return self._board

    @property
    def observer(self) -> FaceObserver | None:
        """Who looks at its faces."""
        return self._observer

    def run(self, watch: Callable[[LiveStats], None] | None = None) -> str:
        """Run to the end; returns why it ended. `watch` is called in this thread, four times a second.

        Raises what a stage raised (SourceLostError, OutputError, InferenceError, ...), after everything was
        closed; KeyboardInterrupt likewise. Frames under way are finished first, unless they take too long.
        """
        threads = self._threads()
        self._events.add("start", f"{self._board.labels.source} to {self._board.labels.sink}")
        if self._observer is not None:
            self._observer.start(self.stop)
        for thread in threads:
            thread.start()
        try:
            while not self._done.wait(_TICK_S):
                if watch is not None:
                    watch(self.snapshot())
        except KeyboardInterrupt as exc:
            self._end.say("stopped by a signal", exc)
            self._stop.set()
            self._done.wait(self._config.drain_s)
        finally:
            self._shut_down(threads)
        reason = self._end.reason or "the source ended"
        self._events.add("stop", reason)
        if self._end.error is not None:
            raise self._end.error
        return reason

    def stop(self, reason: str = "stopped") -> None:
        """End the stream as if the source had ended."""
        self._end.say(reason)
        self._stop.set()

    def snapshot(self) -> LiveStats:
        """The numbers of this moment."""
        return self._board.snapshot()

    def _threads(self) -> list[threading.Thread]:
        work: dict[str, Callable[[], None]] = {
            "capture": self._capture,
            "track": lambda: self._stage("track", self._stages.track, "restore"),
            "restore": lambda: self._stage("restore", self._stages.restore, "paste"),
            "paste": lambda: self._stage("paste", self._stages.paste, "sink"),
            "sink": self._drain_into_sinks,
        }
        return [
            threading.Thread(target=self._guarded, args=(name, work[name]), name=f"ufr-{name}", daemon=True)
            for name in STAGES
        ]

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """The border of a thread: whatever it raises ends the stream and is raised again by `run`."""
        try:
            work()
        except SinkClosedError as exc:
            self._end.say(str(exc))
            self._abort()
        except BaseException as exc:  # noqa: BLE001 - handed to run(), which raises it
            self._end.say(f"{name} failed: {exc}", exc)
            if name != "capture":  # when the source is lost, what came before still goes out
                self._abort()
        finally:
            if name == "sink":
                self._done.set()
            elif name == "capture":
                self._queues["track"].close()

    def _capture(self) -> None:
        since = time.perf_counter()
        for frame in self._limited(
            paced(self._source, stop=self._stop) if self._paces else self._source.frames()
        ):
            self._board.clock.add("capture", time.perf_counter() - since)
            taken = frame if frame.captured else replace(frame, captured=time.monotonic())
            self._board.came_in()
            if isinstance(self._source, ReconnectingSource):
                self._board.set_reconnects(self._source.reconnects)
            if not self._queues["track"].put(Held(frame=taken, original=taken.image)) or self._stop.is_set():
                return
            since = time.perf_counter()

    def _limited(self, frames: Iterator[SourceFrame]) -> Iterator[SourceFrame]:
        most, seconds = self._config.frames, self._config.seconds
        first: float | None = None
        for number, frame in enumerate(frames):
            first = frame.seconds if first is None else first
            if seconds is not None and frame.seconds - first >= seconds:
                self._end.say(f"{seconds:g} seconds are over")
                return
            yield frame
            if most is not None and number + 1 >= most:
                self._end.say(f"{most} frames are done")
                return

    @property
    def _paces(self) -> bool:
        return self._config.pace and not self._source.live

    def _stage(self, name: str, work: Callable[[Held], Held], after: str) -> None:
        given, taken = self._queues[name], self._queues[after]
        try:
            while (held := self._next(given, taken)) is not None:
                since = time.perf_counter()
                try:
                    done = work(held)
                except BaseException:
                    self._board.lost(name)
                    raise
                if done is not held and done.step is not Step.PASS:  # what is let through costs nothing
                    # Not the bare name: the pipeline's own stages, timed inside, have those.
                    self._board.clock.add(f"{name} thread", time.perf_counter() - since)
                taken.put(done)  # refused only after an abort, and counted by the queue
        finally:
            taken.close()

    def _next(self, given: FrameQueue[Held], taken: FrameQueue[Held]) -> Held | None:
        taken.wait_for_room()
        return given.get()

    def _drain_into_sinks(self) -> None:
        context = SinkContext(
            info=self._source.info, stats=self.snapshot, events=self._events, stop=self._stop
        )
        try:
            self._sinks.open(context)
            while (held := self._queues["sink"].get()) is not None:
                self._write(held)
        finally:
            self._sinks.close()

    def _write(self, held: Held) -> None:
        item = LiveFrame(frame=held.frame, original=held.original, tracks=views(held), step=held.step)
        try:
            with self._board.clock.stage("sink"):
                self._sinks.write(item)
        except BaseException:
            self._board.lost("sink")
            raise
        now = time.monotonic()
        age = (now - held.frame.captured) * 1000
        deadline = self._board.labels.deadline_ms
        self._board.went_out(age, tracks=item.tracks, late=deadline is not None and age > deadline)
        if self._config.latency:
            code = read_code(held.frame.image)
            self._board.read_code(None if code is None else code.age(now) * 1000)
        self._climb(age)
        if self._observer is not None and held.faces is not None:
            self._observer.offer(held.frame, held.original, held.faces)

    def _climb(self, age_ms: float) -> None:
        if self._ladder is None:
            return
        dropped = sum(self._board.dropped().values())
        move = self._ladder.observe(age_ms, dropped=dropped - self._dropped)
        self._dropped = dropped
        if move is not None:
            self._board.stepped(move.after)
            text = f"{move.before.value} -> {move.after.value}: {move.reason}"
            self._events.add("ladder", text, level=logging.WARNING)

    def _shut_down(self, threads: Sequence[threading.Thread]) -> None:
        self._stop.set()
        if not self._done.is_set():
            self._abort()
        until = time.monotonic() + self._config.join_s
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                text = f"{thread.name} did not end within {self._config.join_s:g} s"
                self._events.add("stuck", text, level=logging.ERROR)
        if self._observer is not None:
            self._observer.close()
        # A source is not closed under a thread that is still reading from it.
        if not threads[0].is_alive():
            self._source.close()

    def _abort(self) -> None:
        self._stop.set()
        for queue in self._queues.values():
            queue.abort()

    def _make_ladder(self, engines: ChoosesEngine) -> Ladder | None:
        deadline = self._config.deadline_ms
        timed = self._source.live or self._config.pace
        if deadline is None and timed:
            deadline = _PERIODS * 1000 / float(self._source.info.rate or 30)
        self._board.labels.deadline_ms = deadline
        if deadline is None or not self._config.ladder:
            return None
        return Ladder(LadderConfig(deadline_ms=deadline), steps=engines.steps)

    def _make_queues(self) -> dict[str, FrameQueue[Held]]:
        live = self._source.live or self._config.pace
        usual = CAMERA_POLICY if live else FILE_POLICY
        filling, consuming = self._config.filling or usual.filling, self._config.consuming or usual.consuming
        first = replace(usual, filling=filling, consuming=consuming)
        # Between the stages nothing is dropped, and for a camera as little as possible waits.
        between = QueuePolicy(filling="wait", consuming="lazy", depth=1 if live else 4)
        return {name: FrameQueue(first if name == "track" else between) for name in STAGES[1:]}
