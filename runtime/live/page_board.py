"""The numbers of the live page: what is sampled each second, whether frames flow, and Prometheus' text."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ufr_edge import __version__
from ufr_edge.runtime.live.ladder import Step
from ufr_edge.runtime.live.sinks import SinkContext
from ufr_edge.runtime.live.stats import LiveStats
from ufr_edge.runtime.machine import process_memory

HISTORY = 900
"""Samples that are kept, one a second: a quarter of an hour."""

_FRESH_S = 0.25  # statistics are computed at most four times a second, however many ask
_EVENTS = 60


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One second. n: counts up. fps_in, fps_out: over it. p50_ms, most_ms: ages at the page; None without frames."""

    n: int
    at: float
    fps_in: float
    fps_out: float
    p50_ms: float | None
    most_ms: float | None
    dropped: int
    faces: int


@dataclass(frozen=True, kw_only=True)
class Health:
    """Whether frames flow; if not, why it is thought that they do not."""

    ok: bool
    reason: str
    last_frame_s: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"status": "ok" if self.ok else "stalled", **asdict(self)}


class PageBoard:
    """Gathers what the page, /metrics and /healthz tell. `frame` is for the sink's thread, the rest for any."""

    def __init__(
        self, context: SinkContext, *, stall_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._context, self._stall_s, self._now = context, stall_s, now
        self._lock = threading.Lock()
        self._started = now()
        self._last: float | None = None
        self._ages: list[float] = []
        self._samples: deque[Sample] = deque(maxlen=HISTORY)
        self._before = (self._started, 0, 0)
        self._seen = 0
        self._cached: tuple[float, LiveStats] | None = None

    def frame(self, age_ms: float) -> None:
        """A frame has reached the page."""
        with self._lock:
            self._last = self._now()
            self._seen += 1
            self._ages.append(age_ms)

    def stats(self) -> LiveStats:
        """The stream's statistics, at most a quarter of a second old."""
        with self._lock:
            if self._cached is not None and self._now() - self._cached[0] < _FRESH_S:
                return self._cached[1]
        stats = self._context.stats()
        with self._lock:
            self._cached = (self._now(), stats)
        return stats

    def sample(self) -> Sample:
        """Close the second; to be called once in each."""
        stats = self.stats()
        with self._lock:
            now, (before, seen, came) = self._now(), self._before
            ages, self._ages = sorted(self._ages), []
            span = max(now - before, 1e-3)
            made = Sample(
                n=self._samples[-1].n + 1 if self._samples else 1,
                at=round(time.time(), 1),
                fps_in=round((stats.frames_in - came) / span, 2),
                fps_out=round((self._seen - seen) / span, 2),
                p50_ms=round(ages[len(ages) // 2], 1) if ages else None,
                most_ms=round(ages[-1], 1) if ages else None,
                dropped=stats.dropped_total,
                faces=len(stats.tracks),
            )
            self._before = (now, self._seen, stats.frames_in)
            self._samples.append(made)
        return made

    def history(self) -> list[dict[str, Any]]:
        """All samples, oldest first."""
        with self._lock:
            return [asdict(sample) for sample in self._samples]

    def health(self) -> Health:
        """Whether a frame came within the limit."""
        with self._lock:
            now, last = self._now(), self._last
        if last is None:
            waited = now - self._started
            return Health(ok=False, reason=f"no frame yet, {waited:.0f} s after the start", last_frame_s=None)
        quiet = now - last
        if quiet <= self._stall_s:
            return Health(ok=True, reason="frames flow", last_frame_s=round(quiet, 3))
        return Health(
            ok=False, reason=f"no frame for {quiet:.0f} s{self._why()}", last_frame_s=round(quiet, 3)
        )

    def to_json(self, *, viewers: int) -> dict[str, Any]:
        """What /stats.json answers."""
        with self._lock:
            newest = asdict(self._samples[-1]) if self._samples else None
        return {
            "version": __version__,
            "now": time.time(),
            "health": self.health().to_json(),
            "stats": self.stats().to_json(),
            "sample": newest,
            "memory_bytes": _memory(),
            "viewers": viewers,
            "events": [event.to_json() for event in self._context.events.last(_EVENTS)],
        }

    def metrics(self, *, viewers: int) -> str:
        """What /metrics answers: Prometheus' text format 0.0.4."""
        return metrics_text(self.stats(), memory=_memory(), viewers=viewers, healthy=self.health().ok)

    def _why(self) -> str:
        """The newest event that may be the reason."""
        told = [e for e in self._context.events.last(_EVENTS) if e.kind in ("lost", "failed", "stuck")]
        return f"; last trouble: {told[-1].text}" if told else ""


def metrics_text(stats: LiveStats, *, memory: int, viewers: int, healthy: bool) -> str:
    """Statistics in Prometheus' text format. Every name begins with `ufr_`; seconds and bytes, as is the custom."""
    lines: list[str] = []
    for name, kind, help_, values in (*_counters(stats), *_gauges(stats, memory, viewers, healthy)):
        lines += [f"# HELP ufr_{name} {help_}", f"# TYPE ufr_{name} {kind}"]
        lines += [f"ufr_{name}{_labels(labels)} {value:.10g}" for labels, value in values]
    lines += ["# HELP ufr_stage_seconds Time per frame in each stage.", "# TYPE ufr_stage_seconds summary"]
    lines += _stages(stats)
    return "\n".join(lines) + "\n"


_Values = Iterable[tuple[Mapping[str, str], float]]
_Family = tuple[str, str, str, _Values]


def _counters(stats: LiveStats) -> Iterator[_Family]:
    plain = (
        ("frames_in_total", "Frames captured.", stats.frames_in),
        ("frames_out_total", "Frames that the sink has taken.", stats.frames_out),
        ("late_total", "Frames out that were older than the deadline.", stats.late),
        ("failed_total", "Frames let through untouched because the engine or detector failed.", stats.failed),
        ("carried_total", "Frames on which the last change was carried on.", stats.carried),
        ("passed_total", "Frames let through by the ladder.", stats.passed),
        ("faces_total", "Faces restored.", stats.faces),
        ("reconnects_total", "Times the source was connected to again.", stats.reconnects),
        ("ladder_moves_total", "Changes of the ladder's step.", stats.ladder_moves),
    )
    for name, help_, value in plain:
        yield name, "counter", help_, [({}, value)]
    reasons = [({"reason": reason}, float(count)) for reason, count in sorted(stats.dropped.items())]
    yield "dropped_total", "counter", "Frames dropped, by the stage they did not reach.", reasons


def _gauges(stats: LiveStats, memory: int, viewers: int, healthy: bool) -> Iterator[_Family]:
    step = list(Step).index(stats.step)
    names = ", ".join(f"{number} {each.value}" for number, each in enumerate(Step))
    plain = (
        ("ladder_step", f"Step of the deadline ladder: {names}.", step),
        ("tracks", "Faces in the newest frame.", len(stats.tracks)),
        ("in_flight", "Frames between capture and sink.", stats.in_flight),
        ("fps_in", "Frames per second captured, over 5 s.", stats.fps_in),
        ("fps_out", "Frames per second out, over 5 s.", stats.fps_out),
        ("uptime_seconds", "Seconds since the start.", stats.seconds),
        ("page_viewers", "Live pages that are open.", viewers),
        ("healthy", "1 while frames flow.", float(healthy)),
        ("resident_memory_bytes", "Resident memory of the process.", memory),
    )
    for name, help_, value in plain:
        yield name, "gauge", help_, [({}, value)]
    queues = [({"stage": name}, float(count)) for name, count in sorted(stats.queues.items())]
    yield "queued", "gauge", "Frames waiting before each stage.", queues
    for name, spread in (("latency_seconds", stats.age), ("glass_seconds", stats.glass)):
        if spread is not None:
            shares = (("0.5", spread.p50_ms), ("0.95", spread.p95_ms), ("0.99", spread.p99_ms))
            values = [({"quantile": share}, ms / 1000) for share, ms in shares]
            yield name, "gauge", "Age of frames at the sink, over the last frames.", values
    yield from _watched(stats)
    info = {
        "engine": stats.engine,
        "device": stats.device,
        "detector": stats.detector,
        "version": __version__,
    }
    if stats.bundle_version is not None:
        info["bundle_version"] = str(stats.bundle_version)
    yield "engine_info", "gauge", "What runs.", [(info, 1.0)]


def _watched(stats: LiveStats) -> Iterator[_Family]:
    """What only some streams have: drift where it is watched, the number of an installed version."""
    if stats.watch is not None and stats.watch.drift is not None:
        if stats.drift is not None:  # else too few faces were seen to tell
            yield "drift", "gauge", "How far the faces are from those adapted to.", [({}, stats.drift)]
        limit = stats.watch.drift.limit
        yield "drift_limit", "gauge", "Where drift is raised.", [({}, limit)]
        yield "drifted", "gauge", "1 while drift is raised.", [({}, float(stats.drifted))]
    if stats.bundle_version is not None:
        help_ = "Number of the installed version that runs."
        yield "bundle_version", "gauge", help_, [({}, stats.bundle_version)]


def _stages(stats: LiveStats) -> Iterator[str]:
    for stage in stats.stages:
        for share, ms in (("0.5", stage.p50_ms), ("0.95", stage.p95_ms), ("0.99", stage.p99_ms)):
            yield f"ufr_stage_seconds{_labels({'stage': stage.name, 'quantile': share})} {ms / 1000:.10g}"
        label = _labels({"stage": stage.name})
        yield f"ufr_stage_seconds_sum{label} {stage.total_ms / 1000:.10g}"
        yield f"ufr_stage_seconds_count{label} {stage.count}"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _memory() -> int:
    return round(process_memory().rss_mib * 1024 * 1024)
