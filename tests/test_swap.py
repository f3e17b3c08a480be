"""Engines exchanged while a stream runs: no frame is lost or doubled, and a bad one is left at once."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from clips import STUB_INFO
from live_fakes import FakeSource, Rig, rig
from tiny_bundle import write_tiny_bundle

from ufr_edge.errors import BundleError, ConfigError, InferenceError, ModelFileError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.installed import EngineWish, load_version, open_live_engines
from ufr_edge.runtime.live.ladder import Step
from ufr_edge.runtime.live.shadow import Look, Slack, SwapConfig, Trial, Verdict, inspect, time_limit
from ufr_edge.runtime.live.stages import Engines
from ufr_edge.runtime.live.swap import EngineSlot, Loaded
from ufr_edge.runtime.live.watcher import SwapState, SwapWatcher, Versions
from ufr_edge.runtime.version_link import link_version
from ufr_edge.runtime.versions import current_version, history, install_version

QUICK = SwapConfig(shadow_s=0.0, shadow_faces=3, every=1, probation_s=0.1, poll_s=0.01, slower=1000.0)
LONG = replace(QUICK, probation_s=600.0)


def face(seed: int = 0, side: int = 64) -> Frame:
    rows, columns = np.indices((side, side))
    noise = np.random.default_rng(seed).integers(-8, 8, (side, side, 3))
    base = np.stack([60 + rows, 90 + columns, 200 - rows], axis=2) + noise
    out: Frame = np.clip(base, 0, 255).astype(np.uint8)
    return out


@dataclass
class Engine:
    """Adds `shift` to every face; `act` may wait, raise or make something else of a run, by its number."""

    shift: int = 10
    act: Callable[[int, Frame], Frame | None] | None = None
    side: int = 64
    runs: int = 0
    closed: int = 0
    users: set[int] = field(default_factory=set)

    @property
    def info(self) -> object:
        return replace(STUB_INFO, side=self.side)

    def infer(self, batch: Frame) -> Frame:
        assert not self.closed, "a closed engine was run"
        self.runs += 1
        self.users.add(threading.get_ident())
        other = None if self.act is None else self.act(self.runs, batch)
        return (
            np.clip(batch.astype(np.int16) + self.shift, 0, 255).astype(np.uint8) if other is None else other
        )

    def close(self) -> None:
        self.closed += 1


def loaded(number: int, engine: Engine) -> Loaded:
    return Loaded(number=number, engines=Engines(full=engine), close=engine.close)  # type: ignore[arg-type]


@dataclass
class Site:
    """Versions that are fakes. current: what should run."""

    engines: dict[int, Engine]
    current: int = 1
    refused: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def versions(self) -> Versions:
        return Versions(current=lambda: self.current, load=self.load, refuse=self.refuse)

    def load(self, number: int) -> Loaded:
        if number not in self.engines:
            msg = f"version {number} is damaged."
            raise ModelFileError(msg)
        return loaded(number, self.engines[number])

    def refuse(self, number: int, instead: int, reason: str) -> None:
        self.refused.append((number, instead, reason))
        if self.current == number:
            self.current = instead


def until(what: Callable[[], object], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


def settled_on(slot: EngineSlot, number: int) -> bool:
    return slot.loaded.number == number and slot.back is None


@dataclass
class Running:
    """A stream over a slot, in a thread of its own."""

    rig: Rig
    slot: EngineSlot
    watcher: SwapWatcher
    source: FakeSource

    def texts(self, kind: str) -> list[str]:
        return [event.text for event in self.rig.events.last() if event.kind == kind]


def run_stream(
    site: Site,
    work: Callable[[Running], object],
    config: SwapConfig = QUICK,
    *,
    deadline: float | None = None,
) -> Running:
    """Run a stream until `work` is done; every frame that was captured must come out once, in order."""
    source = FakeSource(count=1_000_000, pause_s=0.001)
    slot = EngineSlot(loaded(site.current, site.engines[site.current]), every=config.every)
    made = rig(source, engines=slot)
    board = made.stream.board
    watcher = SwapWatcher(
        slot,
        site.versions,
        config,
        events=made.events,
        deadline_ms=lambda: deadline,
        on_change=lambda now: setattr(board.labels, "bundle_version", now.number),
    )
    running = Running(made, slot, watcher, source)
    thread = threading.Thread(target=made.stream.run)
    with watcher.watching():
        thread.start()
        try:
            until(lambda: len(made.sink.got) > 3)
            work(running)
            seen = len(made.sink.got)
            until(lambda: len(made.sink.got) > seen + 3)
        finally:
            made.stream.stop()
            thread.join(30)
    numbers = made.sink.numbers
    assert numbers == list(range(len(numbers)))
    stats = made.stream.snapshot()
    assert (stats.frames_in, stats.dropped_total, stats.in_flight) == (len(numbers), 0, 0)
    return running


def test_a_new_version_takes_over_without_a_frame_lost() -> None:
    old, new = Engine(10), Engine(30)
    site = Site({1: old, 2: new})

    def work(run: Running) -> None:
        site.current = 2
        until(lambda: run.slot.loaded.number == 2 and old.closed)

    run = run_stream(site, work)
    assert (old.closed, new.closed, site.refused) == (1, 0, [])
    assert run.rig.stream.snapshot().bundle_version == 2
    assert run.watcher.state is SwapState.STANDS
    assert run.texts("swap") == [
        "version 2 is loaded beside version 1",
        "version 2 takes over from version 1",
        "version 2 stands; version 1 is closed",
    ]
    assert run.rig.stream.snapshot().failed == 0
    assert (
        len(new.users) == 2
    )  # in shadow by the watcher's thread, then by the stream's; never by both at once


def throws(run: int, batch: Frame) -> Frame | None:
    msg = "the device hung up"
    raise InferenceError(msg)


def throws_later(run: int, batch: Frame) -> Frame | None:
    return throws(run, batch) if run > 40 else None


def blank(run: int, batch: Frame) -> Frame | None:
    return np.zeros_like(batch)


def blotched(run: int, batch: Frame) -> Frame | None:
    rows, columns = np.indices(batch.shape[1:3])
    blots = np.where((rows // 16 + columns // 16) % 2, 28, -8)[None, :, :, None]
    return np.clip(batch.astype(np.int16) + blots, 0, 255).astype(np.uint8)


def inverted(run: int, batch: Frame) -> Frame | None:
    return 255 - batch


def clipped(run: int, batch: Frame) -> Frame | None:
    out = batch.copy()
    out[:, ::3] = 255
    return out


def slow(run: int, batch: Frame) -> Frame | None:
    time.sleep(0.03)
    return None


def slow_later(run: int, batch: Frame) -> Frame | None:
    return slow(run, batch) if run > 4 else None


def blank_later(run: int, batch: Frame) -> Frame | None:
    return np.zeros_like(batch) if run > 6 else None


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (throws, "in shadow: it threw: the device hung up"),
        (blank, "in shadow: its output shows nothing"),
        (inverted, "it is too far from what the engine before makes"),
        (blotched, "its low frequencies are not those of the input"),
        (clipped, "its output is clipped"),
        (slow, "ms a face, the limit is 10.0 ms"),
    ],
)
def test_a_bad_version_never_shows_a_frame(act: Callable[[int, Frame], Frame | None], reason: str) -> None:
    old, bad = Engine(10), Engine(20, act)
    site = Site({1: old, 2: bad})

    def work(run: Running) -> None:
        site.current = 2
        until(lambda: site.refused)
        until(lambda: bad.closed)

    run = run_stream(site, work, replace(QUICK, slower=0.001), deadline=10.0 / QUICK.time_share)
    number, instead, why = site.refused[0]
    assert (number, instead, site.current, old.closed) == (2, 1, 1, 0)
    assert reason in why
    assert run.rig.stream.snapshot().bundle_version == 1
    assert run.slot.loaded.number == 1
    assert (run.watcher.swaps, run.watcher.rollbacks) == (0, 1)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (throws_later, "it threw: the device hung up"),
        (slow_later, "ms a face, the limit is 10.0 ms"),
        (blank_later, "its output shows nothing"),
    ],
)
def test_what_goes_bad_on_probation_is_left(act: Callable[[int, Frame], Frame | None], reason: str) -> None:
    old, bad = Engine(10), Engine(20, act)
    site = Site({1: old, 2: bad})

    def work(run: Running) -> None:
        site.current = 2
        until(lambda: site.refused)
        until(lambda: bad.closed)

    run = run_stream(site, work, replace(LONG, slower=0.001), deadline=10.0 / QUICK.time_share)
    assert reason in site.refused[0][2]
    assert (run.slot.loaded.number, run.slot.back, old.closed, bad.closed) == (1, None, 0, 1)
    assert (run.watcher.swaps, run.watcher.rollbacks, run.watcher.state) == (1, 1, SwapState.REFUSED)
    assert run.rig.stream.snapshot().bundle_version == 1
    assert run.rig.stream.snapshot().failed == 0  # where it threw, the old one did that frame


def test_the_frame_on_which_it_throws_is_restored_by_the_one_before() -> None:
    old, bad = Engine(10), Engine(30)
    slot = EngineSlot(loaded(1, old))
    assert slot.at(Step.FULL).infer(face()[None]).mean() == pytest.approx(face().mean() + 10, abs=1)
    slot.propose(loaded(2, bad))
    assert slot.loaded.number == 1  # until the next frame
    seated = slot.at(Step.FULL)
    assert slot.loaded.number == 2
    bad.act = throws
    assert seated.infer(face()[None]).mean() == pytest.approx(face().mean() + 10, abs=1)
    assert (slot.loaded.number, slot.thrown()) == (1, "it threw: the device hung up")
    # The rest of the frame asks the same engine, which has been left: the one in its place answers.
    bad.closed = 1
    assert seated.infer(face()[None]).mean() == pytest.approx(face().mean() + 10, abs=1)
    # With nothing to go back to, an error is an error.
    old.act = throws
    with pytest.raises(InferenceError, match="hung up"):
        slot.at(Step.FULL).infer(face()[None])


def test_the_stream_goes_before_faces_in_shadow() -> None:
    slack = Slack(started=0.0, short=7)
    assert [slack.take(at / 10, short=7) for at in range(10)] == [
        True
    ] * 10  # what was short before is no reason
    assert [slack.take(1.0 + at / 10, short=8) for at in range(12)] == [False] * 10 + [True] * 2
    # One that is short all the time gets its new engine too, more slowly.
    assert sum(slack.take(10.0 + at / 10, short=9 + at) for at in range(200)) == 10


def test_a_face_is_tried_once_the_engine_rests() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def waits(run: int, batch: Frame) -> Frame | None:
        if run == 2:
            begun.set()
            assert go_on.wait(30)
        return None

    slot = EngineSlot(loaded(1, Engine(10, waits)), every=1)
    infer = slot.at(Step.FULL).infer
    infer(face(1)[None])
    assert len(slot.wait_look(60.0)) == 1
    assert slot.wait_look(0.0) == []
    looks: list[Look] = []
    runs = threading.Thread(target=infer, args=(face(2)[None],))
    runs.start()
    assert begun.wait(30)
    waiter = threading.Thread(target=lambda: looks.extend(slot.wait_look(60.0)))
    waiter.start()
    assert not looks
    go_on.set()
    runs.join(30)
    waiter.join(30)
    assert len(looks) == 1 and slot.busy_s() == 0.0
    # While it never rests, a face is handed over after a while all the same.
    begun.clear()
    go_on.clear()
    infer(face(3)[None])
    slot._busy = (slot._seat, 0.0)
    assert len(slot.wait_look(0.01)) == 1


def test_while_the_stream_is_short_of_time_no_face_is_tried() -> None:
    """Counted: 50 looks come by without a run in shadow; once the stream has time again the swap goes on."""
    old, new = Engine(10), Engine(30)
    site = Site({1: old, 2: new})
    now, short = [0.0], [0]
    slot = EngineSlot(loaded(1, old), every=1)
    watcher = SwapWatcher(
        slot,
        site.versions,
        replace(QUICK, shadow_faces=10),
        events=EventLog(),
        short=lambda: short[0],
        now=lambda: now[0],
    )
    with watcher.watching():
        site.current = 2
        until(lambda: watcher.state is SwapState.SHADOW)
        infer_until(slot, lambda: new.runs == 1)
        short[0] = 1
        enough = old.runs + 50
        infer_until(slot, lambda: old.runs == enough)
        assert new.runs <= 2  # one may have been under way
        now[0] = 5.0
        infer_until(slot, lambda: slot.loaded.number == 2)


def infer_until(slot: EngineSlot, what: Callable[[], object]) -> None:
    """Let frames go through until something happens."""

    def frame() -> object:
        slot.at(Step.FULL).infer(face()[None])
        return what()

    until(frame)


def clipped_later(run: int, batch: Frame) -> Frame | None:
    return clipped(run, batch) if run > GOOD_RUNS else None


def blank_from_there(run: int, batch: Frame) -> Frame | None:
    return blank(run, batch) if run > GOOD_RUNS else None


def throws_from_there(run: int, batch: Frame) -> Frame | None:
    return throws(run, batch) if run > GOOD_RUNS else None


GOOD_RUNS = 40


@pytest.mark.parametrize(
    ("act", "slow_ms", "most"),
    [
        (throws_from_there, 0.0, 0),  # that very frame is the old engine's
        (blank_from_there, 0.0, 5),  # one run in five is looked at, and one such picture is enough
        (clipped_later, 0.0, 15),  # three wrong pictures: a tenth of twenty may be
        (None, 30.0, 5),  # most of nine runs
    ],
)
def test_how_many_frames_a_failing_engine_shows(
    act: Callable[[int, Frame], Frame | None] | None, slow_ms: float, most: int
) -> None:
    """With the shipped limits. Counted in frames, each looked at once: 15 of them are a second at 15 frames/s."""
    clock = [0.0]

    def runs(run: int, batch: Frame) -> Frame | None:
        clock[0] += (slow_ms if run > GOOD_RUNS and slow_ms else 1.0) / 1000
        return None if act is None else act(run, batch)

    old, bad, config = Engine(10), Engine(20, runs), SwapConfig()
    slot = EngineSlot(loaded(1, old), every=config.every, now=lambda: clock[0])
    site = Site({1: old, 2: bad})
    watcher = SwapWatcher(slot, site.versions, config, events=EventLog(), now=lambda: clock[0])
    slot.propose(loaded(2, bad))
    trial = Trial(config, started=0.0, seconds=config.probation_s, faces=0)
    while old.runs == 0:
        slot.at(Step.FULL).infer(face()[None])
        watcher._look_at(trial)
        if trial.verdict(clock[0], limit_ms=10.0) is Verdict.FAIL:
            slot.go_back()
    assert GOOD_RUNS < bad.runs
    assert bad.runs - GOOD_RUNS - (act is throws_from_there) <= most


def test_a_version_of_another_side_takes_over() -> None:
    old, new = Engine(10), Engine(30, side=32)
    site = Site({1: old, 2: new})

    def work(run: Running) -> None:
        site.current = 2
        until(lambda: run.slot.loaded.number == 2 and old.closed)

    assert run_stream(site, work).rig.stream.snapshot().failed == 0


def test_what_the_old_engine_does_to_the_picture_the_new_may_do_too() -> None:
    site = Site({1: Engine(10, blotched), 2: Engine(10, blotched)})

    def work(run: Running) -> None:
        site.current = 2
        until(partial(settled_on, run.slot, 2))
        until(partial(getattr, site.engines[1], "closed"))

    run_stream(site, work, replace(QUICK, probation_s=0.3))
    assert site.refused == []


def test_what_does_not_load_is_refused_once() -> None:
    site = Site({1: Engine()})

    def work(run: Running) -> None:
        site.current = 9
        until(lambda: site.refused)

    run = run_stream(site, work)
    assert site.refused == [(9, 1, "it does not load: version 9 is damaged.")]
    assert run.watcher.state is SwapState.REFUSED


def test_asked_to_go_back_while_on_probation() -> None:
    old, new = Engine(10), Engine(30)
    site = Site({1: old, 2: new})

    def work(run: Running) -> None:
        site.current = 2
        until(lambda: run.slot.loaded.number == 2)
        site.current = 1
        until(lambda: run.slot.loaded.number == 1 and new.closed)

    run = run_stream(site, work, LONG)
    assert (old.closed, site.refused) == (0, [])
    assert run.texts("rollback") == ["back to version 1, as it was asked for"]
    assert run.watcher.state is SwapState.BACK


def test_another_version_while_one_is_in_shadow() -> None:
    engines = {1: Engine(10), 2: Engine(20), 3: Engine(30)}
    site = Site(engines)

    def work(run: Running) -> None:
        site.current = 2
        until(lambda: run.texts("swap"))
        site.current = 3
        until(lambda: run.slot.loaded.number == 3)

    run = run_stream(site, work, replace(QUICK, shadow_s=0.2))
    assert engines[2].closed == 1
    assert "version 2 is left: another one is current" in run.texts("swap")
    assert site.refused == []


def test_a_stream_that_ends_in_the_middle_leaves_what_is_open_to_its_owner() -> None:
    old, new = Engine(10), Engine(30)
    site = Site({1: old, 2: new})

    def work(run: Running) -> None:
        site.current = 2
        until(lambda: run.slot.loaded.number == 2)

    run = run_stream(site, work, LONG)
    assert run.slot.back is not None
    assert (old.closed, new.closed) == (0, 0)


def test_250_swaps_in_a_row_lose_no_frame() -> None:
    engines = {1: Engine(10), 2: Engine(20)}
    site = Site(engines)

    def work(run: Running) -> None:
        before = resources()[:2]
        for number in range(250):
            wanted = 2 - number % 2
            engines[wanted].closed = 0
            site.current = wanted
            run.watcher.poke()
            until(partial(settled_on, run.slot, wanted))
            until(partial(getattr, engines[3 - wanted], "closed"))
        assert resources()[:2] == before

    run = run_stream(site, work, replace(QUICK, shadow_faces=1, probation_s=0.0, poll_s=0.001))
    assert (run.watcher.swaps, run.watcher.rollbacks, site.refused) == (250, 0, [])
    assert run.rig.stream.snapshot().failed == 0


def resources() -> tuple[float, float, float]:
    """Open descriptors, threads, and resident megabytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
        pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
    )


def many_swaps(folder: Path, count: int) -> None:
    """Swap two installed versions back and forth, with real engines, while frames go through."""
    site = folder / "door"
    for name in ("one", "two"):
        install_version(site, write_tiny_bundle(folder / f"{name}.ufr", name=name))
    events, wish = EventLog(), EngineWish(threads=1)
    config = replace(QUICK, shadow_faces=1, probation_s=0.0, low_limit=255, far_limit=255, poll_s=0.002)
    with open_live_engines(site, wish, swap=config, events=events) as live:
        source = FakeSource(count=10_000_000, pause_s=0.0005)
        made = rig(source, engines=live.engines)
        thread = threading.Thread(target=made.stream.run)
        slot = live.engines
        assert isinstance(slot, EngineSlot)
        with live.watching(made.stream) as watcher:
            assert watcher is not None
            thread.start()
            for number in range(count):
                wanted = 1 + number % 2
                link_version(site, wanted)
                watcher.poke()
                until(partial(settled_on, slot, wanted))
                made.sink.got[:-1] = []
                if number == count // 3:
                    before = resources()
            opened, threads, megabytes = (now - then for now, then in zip(resources(), before, strict=True))
            assert (abs(opened) <= 2, threads, megabytes < 10) == (True, 0, True), (
                opened,
                threads,
                megabytes,
            )
            made.stream.stop()
            thread.join(30)
        stats = made.stream.snapshot()
    assert (stats.failed, stats.dropped_total, stats.in_flight) == (0, 0, 0)
    assert (watcher.swaps, watcher.rollbacks) == (count, 0)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to count descriptors")
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [90, 1000])
def test_many_swaps_leave_nothing_behind(tmp_path: Path, count: int) -> None:
    with ExitStack() as stack:
        stack.callback(gc.collect)
        many_swaps(tmp_path, count)
    assert not [t for t in threading.enumerate() if t.name.startswith("ufr-")]


def test_a_refused_version_is_marked_in_the_folder(tmp_path: Path) -> None:
    site = tmp_path / "door"
    install_version(site, write_tiny_bundle(tmp_path / "one.ufr", name="one"))
    events = EventLog()
    config = replace(QUICK, low_limit=255, far_limit=1.0, bad_share=0.0)
    with open_live_engines(site, EngineWish(threads=1), swap=config, events=events) as live:
        source = FakeSource(count=1_000_000, pause_s=0.001)
        made = rig(source, engines=live.engines)
        thread = threading.Thread(target=made.stream.run)
        with live.watching(made.stream):
            thread.start()
            install_version(site, write_tiny_bundle(tmp_path / "two.ufr", name="two"))
            (site / "versions" / "0002.ufr" / "tiny.onnx").write_bytes(b"junk")
            until(lambda: current_version(site).number == 1)
            made.stream.stop()
            thread.join(30)
    assert history(site)[1].rejected.startswith("it does not load: ")


def test_a_damaged_current_version_is_left_at_the_start(tmp_path: Path) -> None:
    site, events = tmp_path / "door", EventLog()
    for name in ("one", "two"):
        install_version(site, write_tiny_bundle(tmp_path / f"{name}.ufr", name=name))
    (site / "versions" / "0002.ufr" / "tiny.onnx").write_bytes(b"junk")
    with open_live_engines(site, EngineWish(threads=1), events=events) as live:
        assert live.engines.full.infer(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 32, 32, 3)
    assert current_version(site).number == 1
    assert "version 2 does not load, version 1 is current again" in events.last()[0].text
    (site / "versions" / "0001.ufr" / "tiny.onnx").write_bytes(b"junk")
    with pytest.raises(BundleError, match="damaged"), open_live_engines(site, events=events):
        pass


def test_a_single_bundle_is_not_watched(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "one.ufr", name="one")
    with open_live_engines(bundle, EngineWish(threads=1), events=EventLog()) as live:
        assert live.watch is None
        made = rig(FakeSource(count=3), engines=live.engines)
        with live.watching(made.stream) as watcher:
            assert watcher is None
            made.stream.run()
        assert made.sink.numbers == [0, 1, 2]


def test_an_engine_that_is_not_there_closes_what_was_opened(tmp_path: Path) -> None:
    site = tmp_path / "door"
    install_version(site, write_tiny_bundle(tmp_path / "one.ufr", name="one"))
    with pytest.raises(ConfigError, match="absent"):
        load_version(site, EngineWish(engine="absent"), 1)


def look(made: Frame, *, old: Frame | None = None, ms: float = 1.0, crop: Frame | None = None) -> Look:
    return Look(crop=face() if crop is None else crop, made=made, old=old, ms=ms)


def test_inspect_tells_what_is_wrong_with_a_face() -> None:
    config, good = SwapConfig(), face()
    assert inspect(look(good, old=good), config).faults == ()
    assert inspect(look(good, old=face(side=32)), config).faults == ()
    black = inspect(look(np.zeros_like(good)), config)
    assert black.blank
    assert (
        inspect(look(np.zeros_like(good), crop=np.zeros_like(good)), config).faults == ()
    )  # as black as its input
    assert inspect(look(good.astype(np.float32)), config).blank
    assert inspect(look(good[:32]), config).blank
    far = inspect(look(good, old=np.clip(good.astype(int) + 40, 0, 255).astype(np.uint8)), config)
    assert far.faults == ("it is too far from what the engine before makes",)
    # What the old engine does to low frequencies, the new may do too.
    turned = np.ascontiguousarray(good[::-1])
    assert inspect(look(turned), config).faults == ("its low frequencies are not those of the input",)
    assert inspect(look(turned, old=turned), config).faults == ()


def test_a_trial_needs_time_and_faces() -> None:
    config = SwapConfig(shadow_faces=4, bad_share=0.25)
    trial = Trial(config, started=100.0, seconds=10.0, faces=4)
    for _ in range(3):
        trial.observe(look(face()))
    assert trial.verdict(120.0, limit_ms=None) is Verdict.WAIT  # three faces
    trial.observe(look(np.ascontiguousarray(face()[::-1])))  # one in four may be bad
    assert trial.verdict(105.0, limit_ms=None) is Verdict.WAIT
    assert trial.verdict(110.0, limit_ms=2.0) is Verdict.PASS
    assert trial.verdict(110.0, limit_ms=0.4) is Verdict.FAIL
    assert trial.reason == "it takes 1.0 ms a face, the limit is 0.4 ms"
    trial.fail("something else")
    assert trial.reason.startswith("it takes")


def test_a_trial_fails_on_the_second_bad_face_of_four() -> None:
    trial = Trial(SwapConfig(shadow_faces=4, bad_share=0.25), started=0.0, seconds=0.0, faces=4)
    for _ in range(2):
        trial.observe(look(np.ascontiguousarray(face()[::-1])))
    assert trial.verdict(0.0, limit_ms=None) is Verdict.FAIL
    assert trial.reason == "its low frequencies are not those of the input (2 of 2 faces)"


def test_one_slow_run_is_no_slow_engine() -> None:
    trial = Trial(SwapConfig(), started=0.0, seconds=60.0, faces=0)
    for ms in (500.0, 1.0, 1.0):
        trial.timed(ms)
    assert trial.verdict(1.0, limit_ms=10.0) is Verdict.WAIT
    trial.timed(15.0)
    trial.timed(15.0)
    assert trial.verdict(1.0, limit_ms=10.0) is Verdict.WAIT  # a little late, of few
    for _ in range(5):
        trial.timed(15.0)
    assert trial.verdict(1.0, limit_ms=10.0) is Verdict.FAIL


def test_a_very_slow_engine_is_known_by_three_runs() -> None:
    trial = Trial(SwapConfig(), started=0.0, seconds=60.0, faces=0)
    for ms in (500.0, 500.0, 1.0):
        trial.timed(ms)
    assert trial.verdict(1.0, limit_ms=10.0) is Verdict.FAIL


def test_the_limit_of_time() -> None:
    config = SwapConfig(time_share=0.5, slower=2.0)
    assert time_limit(config, deadline_ms=100.0, old_ms=10.0) == 50.0
    assert time_limit(config, deadline_ms=100.0, old_ms=40.0) == 80.0  # where the old one is late too
    assert time_limit(config, deadline_ms=None, old_ms=10.0) == 20.0
    assert time_limit(config, deadline_ms=None, old_ms=None) is None


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"shadow_faces": 0}, {"bad_share": 1.0}, {"probation_s": -1.0}, {"poll_s": 0.0}]
)
def test_settings_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        SwapConfig(**wrong)  # type: ignore[arg-type]
