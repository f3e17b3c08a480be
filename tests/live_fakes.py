"""Sources, sinks and engines with faults built in, for the tests of live streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from clips import STUB_INFO, StubDetector, StubEngine, picture

from ufr_edge.errors import InferenceError, OutputError
from ufr_edge.runtime.drift import DriftState
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.detect import Detects
from ufr_edge.runtime.faces.track import TrackConfig
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.sinks import LiveFrame, Sink, SinkContext
from ufr_edge.runtime.live.sources import LiveSource
from ufr_edge.runtime.live.stages import ChoosesEngine, Engines
from ufr_edge.runtime.live.stats import Labels, StatsBoard
from ufr_edge.runtime.live.stream import LiveStream, StreamConfig
from ufr_edge.runtime.live.watch import FaceWatch
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig, Restores
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo


@dataclass
class FakeSource:
    """Gives `picture(n)` as fast as it is asked, or as fast as it can when `live`."""

    count: int = 12
    live: bool = False
    size: tuple[int, int] = (96, 64)
    error: BaseException | None = None
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    closed: int = 0
    pause_s: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def info(self) -> VideoInfo:
        width, height = self.size
        return VideoInfo(
            name="fake", width=width, height=height, rate=Fraction(25), time_base=Fraction(1, 25)
        )

    def frames(self) -> Iterator[SourceFrame]:
        size = self.size
        for n in range(self.count):
            if self.stop.is_set():
                return
            size = self.sizes.get(n, size)
            if self.pause_s:
                time.sleep(self.pause_s)
            yield SourceFrame(index=n, pts=n, time_base=Fraction(1, 25), image=picture(n % 30, size=size))
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed += 1


@dataclass
class KeepingSink:
    """Keeps what it got; `before` may wait or raise."""

    name: str = "keeping"
    before: Callable[[LiveFrame], None] | None = None
    got: list[LiveFrame] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    on_close: Exception | None = None

    def open(self, context: SinkContext) -> None:
        self.opened += 1

    def write(self, frame: LiveFrame) -> None:
        if self.before is not None:
            self.before(frame)
        self.got.append(frame)

    def close(self) -> None:
        self.closed += 1
        if self.on_close is not None:
            raise self.on_close

    @property
    def numbers(self) -> list[int]:
        return [item.frame.index for item in self.got]


@dataclass
class FaultyEngine:
    """Throws on the calls named in `faults`; waits for `gate` first, where there is one."""

    faults: set[int] = field(default_factory=set)
    gate: Callable[[], None] | None = None
    info: EngineInfo = STUB_INFO
    calls: int = 0

    def infer(self, batch: Frame) -> Frame:
        self.calls += 1
        if self.gate is not None:
            self.gate()
        if self.calls - 1 in self.faults:
            msg = "the device hung up"
            raise InferenceError(msg)
        return np.clip(batch.astype(np.int16) + 40, 0, 255).astype(np.uint8)


def full_disk(after: int) -> Callable[[LiveFrame], None]:
    """A sink's `before` that raises from the `after`-th frame on."""

    def before(frame: LiveFrame) -> None:
        if frame.frame.index >= after:
            msg = "The disk is full while writing out.mp4."
            raise OutputError(msg)

    return before


def drift_watch(*, distance: float | None, raised: bool) -> FaceWatch:
    """A watch for drift at some distance, of a limit of 5; None: it has seen too few of its 7 faces to tell."""
    state = DriftState(
        raised=raised,
        distance=distance,
        limit=5.0,
        parts=(),
        cause=None,
        faces=7,
        votes=7,
        raises=int(raised),
        since=None,
    )
    return FaceWatch(drift=state, recorded=None, recording=False, missed=0)


@dataclass
class Rig:
    """A stream over fakes, and the parts of it that tests look at."""

    stream: LiveStream
    sink: KeepingSink
    events: EventLog
    stop: threading.Event

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events.last()]


def rig(
    source: LiveSource,
    *,
    engine: Restores | None = None,
    smaller: Restores | None = None,
    engines: ChoosesEngine | None = None,
    detector: Detects | None = None,
    sink: KeepingSink | None = None,
    others: tuple[Sink, ...] = (),
    config: StreamConfig | None = None,
    stop: threading.Event | None = None,
) -> Rig:
    """Put a stream together. The stop event is the fake source's own."""
    stop = stop or getattr(source, "stop", None) or threading.Event()
    engines = engines or Engines(full=engine or StubEngine(), smaller=smaller)
    board, events, kept = StatsBoard(Labels(source="fake", sink="keeping")), EventLog(), sink or KeepingSink()
    plain = PipelineConfig(stabilise=None, track=TrackConfig(detect_every=1))
    pipeline = FacePipeline(engines.full, detector or StubDetector([1]), plain, clock=board.clock)
    stream = LiveStream(
        source, (kept, *others), pipeline, engines, config, board=board, events=events, stop=stop
    )
    return Rig(stream, kept, events, stop)
