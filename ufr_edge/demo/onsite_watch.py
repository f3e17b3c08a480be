"""The loop of `ufr-edge watch` over a source, unattended, with everything written down that happens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ufr_edge.demo.onsite_story import Mark, Sample, Trace
from ufr_edge.runtime.bundle import read_bundle
from ufr_edge.runtime.fingerprint_files import bundle_fingerprint
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.installed import open_live_engines
from ufr_edge.runtime.live.observer import ObserverConfig
from ufr_edge.runtime.live.onsite import WORK, OnsiteConfig, OnsiteLoop, open_onsite, start_readapt
from ufr_edge.runtime.live.session import LiveConfig, open_stream
from ufr_edge.runtime.live.shadow import SwapConfig
from ufr_edge.runtime.live.stats import LiveStats
from ufr_edge.runtime.live.stream import LiveStream, StreamConfig
from ufr_edge.runtime.live.watcher import SwapWatcher
from ufr_edge.runtime.recorder import RecorderConfig

Tell = Callable[[str], None]
STAGE = "stage"
_KEPT = 10_000
_TOLD = ("drift", "readapt", "swap", "rollback", "failed", STAGE)
_ENDS = ("refused", "failed")


@dataclass(frozen=True, kw_only=True)
class WatchedConfig:
    """onsite, swap: as `ufr-edge watch` has them. readapt: options of `ufr-edge readapt`. linger_s: how long the stream
    goes on after the last thing that happened. seconds: of the source, after which it ends in any case.
    """

    onsite: OnsiteConfig = field(default_factory=lambda: OnsiteConfig(mode="auto"))
    swap: SwapConfig = field(default_factory=SwapConfig)
    readapt: tuple[str, ...] = ()
    camera: str = "door"
    linger_s: float = 10.0
    seconds: float = 1200.0
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(pace=True))


def watch_site(
    source: str, folder: Path, faces: Path, config: WatchedConfig, *, tell: Tell = lambda _: None
) -> Trace:
    """Watch `source` at its own speed with the bundle installed in `folder`, recording into `faces`, until the engine
    was exchanged and stands (or was refused), or `config.seconds` are over. Raises as `open_stream`, `open_onsite`.
    """
    events = EventLog(kept=_KEPT)
    live = LiveConfig(
        stream=replace(config.stream, seconds=config.seconds),
        observer=ObserverConfig(
            record=faces,
            recorder=RecorderConfig(camera=config.camera),
            reference=bundle_fingerprint(read_bundle(folder)),
        ),
    )
    start = start_readapt(folder, faces, *config.readapt, "--camera", config.camera)
    before = os.times()
    with (
        open_live_engines(folder, swap=config.swap, events=events) as engines,
        open_stream(source, "null://", engines.engines, live, events=events) as stream,
        engines.watching(stream) as swaps,
        open_onsite(folder, config.onsite, start, events=events) as loop,
    ):
        diary = Diary(stream, loop, events, folder, config, tell, swaps=swaps)
        ended = stream.run(diary.tick)
        trace = diary.trace(ended)
    after = os.times()
    child = after.children_user + after.children_system - before.children_user - before.children_system
    return trace.with_child(child)


class Diary:
    """Looks at the stream four times a second, beside the loop, and ends it when the story is over."""

    def __init__(
        self,
        stream: LiveStream,
        loop: OnsiteLoop,
        events: EventLog,
        folder: Path,
        config: WatchedConfig,
        tell: Tell,
        *,
        swaps: SwapWatcher | None,
    ) -> None:
        self._stream, self._loop, self._events = stream, loop, events
        self._folder, self._config, self._tell = folder, config, tell
        self._swaps = swaps
        self._origin: tuple[float, float] | None = None
        self._samples: list[Sample] = []
        self._marks: list[Mark] = []
        self._seen = self._lines = 0
        self._over: float | None = None

    def tick(self, stats: LiveStats) -> None:
        """Called by the stream."""
        if self._origin is None:
            self._origin = (time.monotonic(), time.time())
        now = time.monotonic() - self._origin[0]
        self._loop.tick(stats)
        self._samples.append(_sample(now, stats))
        self._take_in(now)
        if self._over is None and self._is_over():
            self._over = now
        if self._over is not None and now - self._over >= self._config.linger_s:
            self._stream.stop("the story is over")

    def trace(self, ended: str) -> Trace:
        """All of it."""
        return Trace(ended=ended, samples=tuple(self._samples), marks=tuple(self._marks))

    def _take_in(self, now: float) -> None:
        assert self._origin is not None
        events = self._events.last(_KEPT)
        fresh = [Mark(max(0.0, e.at - self._origin[1]), e.kind, e.text) for e in events[self._seen :]]
        self._seen = len(events)
        stages = self._stages()
        fresh += [Mark(now, STAGE, text) for text in stages[self._lines :]]
        self._lines = len(stages)
        self._marks += fresh
        for mark in fresh:
            if mark.kind in _TOLD:
                self._tell(f"    {mark.at:5.0f} s  {mark.kind}: {mark.text}")

    def _stages(self) -> list[str]:
        """The lines the re-adaptation has written so far."""
        log = self._folder / WORK / f"{self._loop.state['run']:04d}.log"
        if not log.is_file():
            return []
        text = log.read_text(encoding="utf-8", errors="replace")
        return text[: text.rfind("\n") + 1].splitlines()

    def _is_over(self) -> bool:
        state = self._loop.state["state"]
        decided = self._swaps is not None and self._swaps.state.over
        return state in _ENDS or (state == "installed" and decided)


def _sample(now: float, stats: LiveStats) -> Sample:
    recorded = None if stats.watch is None else stats.watch.recorded
    return Sample(
        at=round(now, 3),
        frames_in=stats.frames_in,
        frames_out=stats.frames_out,
        dropped=stats.dropped_total,
        late=stats.late,
        carried=stats.carried,
        passed=stats.passed,
        failed=stats.failed,
        drift=stats.drift,
        drifted=stats.drifted,
        recorded=0 if recorded is None else recorded.kept,
        version=stats.bundle_version,
    )
