"""What a stream does at this moment, as numbers: collected by the stages, read by whoever shows them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ufr_edge.runtime.frame import Box
from ufr_edge.runtime.live.ladder import Step
from ufr_edge.runtime.live.watch import FaceWatch
from ufr_edge.runtime.timing import StageClock, StageTiming

STAGES = ("capture", "track", "restore", "paste", "sink")
"""The threads of a stream, in order. The queue before a stage bears the name of that stage."""

_WINDOW = 900  # durations kept for each stage: 30 s at 30 frames/s
_RATE_S = 5.0  # frame rates are means over so long


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Milliseconds over the last `count` frames."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    most_ms: float


@dataclass(frozen=True, kw_only=True)
class TrackView:
    """One face in the newest frame: its track (None without tracking), box in frame pixels, detector score."""

    id: int | None
    box: Box
    score: float


@dataclass(frozen=True, kw_only=True)
class LiveStats:
    """A stream so far. `frames_in` = `frames_out` + `dropped_total` + `in_flight`, always.

    dropped: frames by the stage they did not reach. late: frames out that were older than `deadline_ms`.
    failed: frames let through untouched because the engine or the detector threw. age: from capture to the
    sink's having taken the frame. glass: the same by the time code in the picture (None: not asked for), with
    `unreadable` frames without one. p50, p95, p99 are over a window of the last frames; counts are over all.
    bundle_version: number of the installed version that runs (see `versions`).
    drift: how far the faces are from those adapted to, in units of uncertainty (None: not watched, or too few);
    drifted: it was raised. watch: all that is known of it, and of the recorder.
    """

    source: str
    sink: str
    engine: str
    device: str
    detector: str
    seconds: float
    width: int
    height: int
    fps_in: float
    fps_out: float
    frames_in: int
    frames_out: int
    dropped: Mapping[str, int]
    in_flight: int
    late: int
    failed: int
    carried: int
    passed: int
    faces: int
    reconnects: int
    step: Step
    deadline_ms: float | None
    ladder_moves: int
    queues: Mapping[str, int]
    stages: tuple[StageTiming, ...]
    age: Spread | None
    glass: Spread | None
    unreadable: int
    tracks: tuple[TrackView, ...] = ()
    bundle_version: int | None = None
    drift: float | None = None
    drifted: bool = False
    watch: FaceWatch | None = None

    @property
    def short(self) -> int:
        """Frames for which there was no time, or not enough for all their faces."""
        return self.late + self.dropped_total + self.carried + self.passed

    @property
    def dropped_total(self) -> int:
        """Frames that came in and never went out."""
        return sum(self.dropped.values())

    def to_json(self) -> dict[str, Any]:
        """The statistics as plain JSON values."""
        plain = asdict(self) | {"dropped_total": self.dropped_total, "step": self.step.value}
        plain["dropped"], plain["queues"] = dict(self.dropped), dict(self.queues)
        plain["watch"] = None if self.watch is None else self.watch.to_json()
        return plain


class WindowClock(StageClock):
    """A `StageClock` that keeps the last 900 durations of each stage only; for use by any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._windows: dict[str, deque[float]] = {}
        self._totals: dict[str, tuple[int, float]] = {}

    def add(self, name: str, seconds: float) -> None:
        """Add one duration."""
        with self._lock:
            self._windows.setdefault(name, deque(maxlen=_WINDOW)).append(seconds)
            count, total = self._totals.get(name, (0, 0.0))
            self._totals[name] = (count + 1, total + seconds)

    def timings(self) -> tuple[StageTiming, ...]:
        """One entry per stage that ran; count and total over all, percentiles over the window."""
        with self._lock:
            windows = {name: list(values) for name, values in self._windows.items()}
            totals = dict(self._totals)
        return tuple(_timing(name, windows[name], totals[name]) for name in windows)


@dataclass(kw_only=True)
class Labels:
    """What does not change, or seldom."""

    source: str = ""
    sink: str = ""
    engine: str = ""
    device: str = ""
    detector: str = ""
    width: int = 0
    height: int = 0
    deadline_ms: float | None = None
    bundle_version: int | None = None


@dataclass(kw_only=True)
class _Counts:
    frames_in: int = 0
    frames_out: int = 0
    late: int = 0
    failed: int = 0
    carried: int = 0
    passed: int = 0
    faces: int = 0
    reconnects: int = 0
    ladder_moves: int = 0
    unreadable: int = 0
    lost: dict[str, int] = field(default_factory=dict)


class StatsBoard:
    """Collects; `snapshot()` is a consistent `LiveStats`. For use by any thread."""

    def __init__(self, labels: Labels, *, now: Callable[[], float] = time.monotonic) -> None:
        self.labels, self.clock = labels, WindowClock()
        self._now, self._lock = now, threading.Lock()
        self._started = now()
        self._counts, self._step = _Counts(), Step.FULL
        self._tracks: tuple[TrackView, ...] = ()
        self._queues: Callable[[], Mapping[str, tuple[int, int]]] = dict
        self._watch: Callable[[], FaceWatch | None] = lambda: None
        self._in: deque[float] = deque(maxlen=_WINDOW)
        self._out: deque[float] = deque(maxlen=_WINDOW)
        self._ages: deque[float] = deque(maxlen=_WINDOW)
        self._glass: deque[float] | None = None

    def watch_queues(self, queues: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        """Tell where (waiting, dropped) of each queue come from."""
        self._queues = queues

    def watch_faces(self, watch: Callable[[], FaceWatch | None]) -> None:
        """Tell where drift and the recorder's figures come from."""
        self._watch = watch

    def came_in(self) -> None:
        """A frame was captured."""
        with self._lock:
            self._counts.frames_in += 1
            self._in.append(self._now())

    def went_out(self, age_ms: float, *, tracks: tuple[TrackView, ...], late: bool) -> None:
        """The sink has taken a frame."""
        with self._lock:
            self._counts.frames_out += 1
            self._counts.faces += len(tracks)
            self._counts.late += late
            self._out.append(self._now())
            self._ages.append(age_ms)
            self._tracks = tracks

    def read_code(self, age_ms: float | None) -> None:
        """The time code in a frame at the sink said this age; None: it had none."""
        with self._lock:
            if self._glass is None:
                self._glass = deque(maxlen=_WINDOW)
            if age_ms is None:
                self._counts.unreadable += 1
            else:
                self._glass.append(age_ms)

    def count(self, what: str, by: int = 1) -> None:
        """Add to failed, carried or passed."""
        with self._lock:
            setattr(self._counts, what, getattr(self._counts, what) + by)

    def set_reconnects(self, count: int) -> None:
        """The source was connected again so many times."""
        with self._lock:
            self._counts.reconnects = count

    def lost(self, stage: str) -> None:
        """A frame in the hands of `stage` will not come out."""
        with self._lock:
            self._counts.lost[stage] = self._counts.lost.get(stage, 0) + 1

    def stepped(self, step: Step) -> None:
        """The ladder has moved."""
        with self._lock:
            self._step = step
            self._counts.ladder_moves += 1

    def dropped(self) -> dict[str, int]:
        """Frames dropped so far, by the stage they did not reach or were lost in."""
        with self._lock:
            out = dict(self._counts.lost)
        for name, (_, dropped) in self._queues().items():
            if dropped:
                out[name] = out.get(name, 0) + dropped
        return out

    def snapshot(self) -> LiveStats:
        """The numbers of this moment."""
        # Drops first: a frame is counted in before it can be dropped, so that in_flight never is below 0.
        dropped, queues, now = self.dropped(), self._queues(), self._now()
        watch = self._watch()
        drift = None if watch is None else watch.drift
        with self._lock:
            counts = {k: v for k, v in vars(self._counts).items() if k != "lost"}
            flight = counts["frames_in"] - counts["frames_out"] - sum(dropped.values())
            return LiveStats(
                **vars(self.labels),
                **counts,
                seconds=now - self._started,
                fps_in=_rate(self._in, now),
                fps_out=_rate(self._out, now),
                dropped=dropped,
                in_flight=flight,
                step=self._step,
                queues={name: waiting for name, (waiting, _) in queues.items()},
                stages=self.clock.timings(),
                age=_spread(self._ages),
                glass=None if self._glass is None else _spread(self._glass),
                tracks=self._tracks,
                drift=None if drift is None else drift.distance,
                drifted=drift is not None and drift.raised,
                watch=watch,
            )


def _rate(times: deque[float], now: float) -> float:
    recent = [t for t in times if now - t <= _RATE_S]
    # A stream that stands still falls to 0 rather than showing what it once was.
    span = now - recent[0] if recent else 0.0
    return (len(recent) - 1) / span if span > 0 and len(recent) > 1 else 0.0


def _spread(ms: deque[float]) -> Spread | None:
    if not ms:
        return None
    p50, p95, p99, most = (float(v) for v in np.percentile(np.asarray(ms), (50, 95, 99, 100)))
    return Spread(count=len(ms), p50_ms=p50, p95_ms=p95, p99_ms=p99, most_ms=most)


def _timing(name: str, seconds: list[float], total: tuple[int, float]) -> StageTiming:
    p50, p95, p99 = (float(v) for v in np.percentile(np.asarray(seconds) * 1000, (50, 95, 99)))
    return StageTiming(
        name=name, count=total[0], p50_ms=p50, p95_ms=p95, p99_ms=p99, total_ms=total[1] * 1000
    )
