"""A live stream over installed versions of a bundle, its engines exchanged while every frame is noted.

Used by benchmarks/swap.py.
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from live_latency import Camera, opened_around

from ufr_edge.errors import InferenceError
from ufr_edge.runtime.bundle import read_bundle, write_manifest
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.installed import EngineWish, load_version
from ufr_edge.runtime.live.shadow import SwapConfig
from ufr_edge.runtime.live.sinks import LiveFrame, SinkContext
from ufr_edge.runtime.live.sources import LiveSource
from ufr_edge.runtime.live.stages import Engines
from ufr_edge.runtime.live.stream import LiveStream, StreamConfig
from ufr_edge.runtime.live.swap import EngineSlot, Loaded
from ufr_edge.runtime.live.watcher import SwapWatcher, Versions
from ufr_edge.runtime.pipeline import Restores
from ufr_edge.runtime.version_link import link_version, linked_number
from ufr_edge.runtime.versions import install_version, refuse_version
from ufr_edge.runtime.video.source import SourceFrame

GOOD, BAD = (1, 2), 3
"""Numbers of the versions: those that take turns, and the one that is made to throw."""

AROUND_S = 2.0
FAR_S = 120.0
COUNTS = ("in", "out", "dropped", "duplicated", "late")
Span = tuple[float, float]
"""From and to, seconds of time.monotonic()."""


class Captures:
    """A camera, and when each of its frames was captured, by number."""

    def __init__(self, real: LiveSource) -> None:
        self._real, self.at = real, list[float]()
        self.info, self.live = real.info, real.live

    def frames(self) -> Iterator[SourceFrame]:
        """Those of the camera."""
        for frame in self._real.frames():
            self.at.append(frame.captured or time.monotonic())
            yield replace(frame, index=len(self.at) - 1)

    def close(self) -> None:
        """Release the camera."""
        self._real.close()


class Arrivals:
    """A sink that notes (number, when) of each frame."""

    name = "null://"

    def __init__(self) -> None:
        self.came: list[tuple[int, float]] = []

    def open(self, context: SinkContext) -> None:
        """Nothing to do."""

    def write(self, frame: LiveFrame) -> None:
        """Note it."""
        self.came.append((frame.frame.index, time.monotonic()))

    def close(self) -> None:
        """Nothing to release."""


def count(
    captured: Sequence[float], came: Sequence[tuple[int, float]], span: Span, deadline_ms: float
) -> dict[str, float]:
    """What became of the frames captured in a span. late: of those that came, older than the deadline then."""
    wanted = {number for number, at in enumerate(captured) if span[0] <= at < span[1]}
    mine = [(number, at) for number, at in came if number in wanted]
    times = Counter(number for number, _ in mine)
    late = sum(1000 * (at - captured[number]) > deadline_ms for number, at in mine)
    made = (len(wanted), len(times), len(wanted) - len(times), len(mine) - len(times), late)
    return {"seconds": span[1] - span[0], **dict(zip(COUNTS, made, strict=True))}


class Trap:
    """Set, the engine in it throws; notes when that began, and when another one answered first."""

    def __init__(self) -> None:
        self.set = False
        self.thrown: float | None = None
        self.answered: float | None = None

    def reset(self) -> None:
        """As new, not set."""
        self.set, self.thrown, self.answered = False, None, None


class Trapped:
    """An engine that throws when the trap is set (bad), or that notes its answer (else)."""

    def __init__(self, engine: Restores, trap: Trap, *, bad: bool) -> None:
        self._engine, self._trap, self._bad = engine, trap, bad

    @property
    def info(self) -> EngineInfo:
        """Of the engine."""
        return self._engine.info

    def infer(self, batch: Frame) -> Frame:
        """Restore faces, or throw."""
        trap = self._trap
        if self._bad and trap.set:
            trap.thrown = trap.thrown or time.monotonic()
            msg = "the benchmark makes it throw"
            raise InferenceError(msg)
        made = self._engine.infer(batch)
        if not self._bad and trap.thrown and not trap.answered:
            trap.answered = time.monotonic()
        return made


def trapped(loaded: Loaded, trap: Trap) -> Loaded:
    """A version with its engines in the trap."""
    bad, second = loaded.number == BAD, loaded.engines.smaller
    full = Trapped(loaded.engines.full, trap, bad=bad)
    engines = Engines(full=full, smaller=None if second is None else Trapped(second, trap, bad=bad))
    return replace(loaded, engines=engines)


def swap_parser(
    about: str | None, output: Path, *, swaps: int, size: str, rate: int
) -> argparse.ArgumentParser:
    """The command line of a benchmark of swaps, with its usual values."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=output)
    parser.add_argument("--swaps", type=int, default=swaps)
    parser.add_argument("--engine-name")
    parser.add_argument("--size", default=size)
    parser.add_argument("--rate", type=int, default=rate)
    return parser


def install(bundle: Path, folder: Path) -> Path:
    """Install three versions of a bundle that differ in their name only; the first is current."""
    door, found = folder / "door", read_bundle(bundle)
    for number in (*GOOD, BAD):
        copy = folder / "copy"
        shutil.copytree(found.path, copy)
        write_manifest(copy, replace(found.manifest, name=f"{found.manifest.name}-{number}"))
        install_version(door, copy)
        shutil.rmtree(copy)
    link_version(door, GOOD[0])
    return door


@dataclass(frozen=True)
class Site:
    """What runs: a stream in a thread, over a slot that a watcher follows a folder of versions for."""

    door: Path
    slot: EngineSlot
    watcher: SwapWatcher
    thread: threading.Thread
    trap: Trap

    def until(self, what: Callable[[], object]) -> float:
        """Wait for something; returns when it was so. Raises InferenceError when it never is."""
        end = time.monotonic() + FAR_S
        while not what():
            if time.monotonic() > end or not self.thread.is_alive():
                msg = "The stream ended." if time.monotonic() <= end else f"No swap in {FAR_S:g} s: no face?"
                raise InferenceError(msg)
            time.sleep(0.002)
        return time.monotonic()

    def ask(self, number: int) -> tuple[float, float | None]:
        """Make a version current; returns when, and when it took over; None: it was refused in shadow."""
        refused, asked = self.watcher.rollbacks, time.monotonic()
        link_version(self.door, number)
        self.watcher.poke()
        runs = self.until(lambda: self.slot.loaded.number == number or self.watcher.rollbacks > refused)
        return asked, None if self.watcher.rollbacks > refused else runs

    def rest(self) -> float:
        """Wait until one version is left, and the folder says so."""
        link = partial(linked_number, self.door)
        return self.until(lambda: self.slot.back is None and link() == self.slot.loaded.number)


@dataclass(frozen=True)
class Running:
    """A site and what is noted of it. captured: when, by number of the frame; came: (number, when)."""

    site: Site
    stream: LiveStream
    events: EventLog
    captured: Sequence[float]
    came: Sequence[tuple[int, float]]


def swap(site: Site) -> dict[str, Any]:
    """One swap, then as long a time without one: spans by name. "refused": it was, in shadow or on probation."""
    before = site.watcher.rollbacks
    asked, taken = site.ask(sum(GOOD) - site.slot.loaded.number)
    ended = site.rest() + AROUND_S
    time.sleep(ended - asked + 2 * AROUND_S)
    if taken is None or site.watcher.rollbacks > before:
        return {"refused": True}
    floor = (ended, 2 * ended - asked)
    middle = sum(floor) / 2
    near = {name: (at - AROUND_S, at + AROUND_S) for name, at in (("near", taken), ("near floor", middle))}
    return {"whole": (asked, ended), "whole floor": floor, **near}


def roll_back(site: Site) -> dict[str, Any]:
    """One roll-back: the span around it, and ms from the first throw to the old engine's answer."""
    site.trap.reset()
    before = site.watcher.rollbacks
    if site.ask(BAD)[1] is not None:
        time.sleep(1)
        site.trap.set = True
        site.until(lambda: site.watcher.rollbacks > before)
    site.rest()
    time.sleep(2 * AROUND_S)
    thrown, answered = site.trap.thrown, site.trap.answered
    if thrown is None or answered is None:
        return {"refused": True}
    return {"back": (thrown - AROUND_S, thrown + AROUND_S), "ms": 1000 * (answered - thrown)}


@contextmanager
def running(door: Path, config: SwapConfig, camera: Camera, *, engine: str | None) -> Iterator[Running]:
    """A stream over the folder of versions, under way. Raises UfrEdgeError."""
    trap, wish, arrivals = Trap(), EngineWish(engine=engine), Arrivals()

    def load(number: int) -> Loaded:
        return trapped(load_version(door, wish, number), trap)

    captures: list[Captures] = []

    def noted(stop: threading.Event, events: EventLog) -> LiveSource:
        captures.append(Captures(camera(stop, events)))
        return captures[0]

    slot = EngineSlot(load(GOOD[0]), every=config.every)
    with ExitStack() as stack:
        stack.callback(lambda: [one.close() for one in (slot.loaded, slot.back) if one])
        stream, events = stack.enter_context(opened_around(slot, [arrivals], noted, StreamConfig()))
        watcher = SwapWatcher(
            slot,
            versions_in(door, load),
            config,
            events=events,
            deadline_ms=lambda: stream.board.labels.deadline_ms,
            short=lambda: stream.snapshot().short,
        )
        thread = threading.Thread(target=stream.run)
        with watcher.watching(), started(stream, thread):
            site = Site(door, slot, watcher, thread, trap)
            yield Running(site, stream, events, captures[0].at, arrivals.came)


def versions_in(door: Path, load: Callable[[int], Loaded]) -> Versions:
    """Those of a folder, opened by `load`."""
    return Versions(
        current=partial(linked_number, door),
        load=load,
        refuse=lambda number, instead, reason: refuse_version(door, number, instead=instead, reason=reason),
    )


@contextmanager
def started(stream: LiveStream, thread: threading.Thread) -> Iterator[None]:
    """The stream runs in a thread while the block does."""
    thread.start()
    try:
        yield
    finally:
        stream.stop()
        thread.join(30)
