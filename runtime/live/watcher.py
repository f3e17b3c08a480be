"""The thread that brings new versions of a bundle into a running stream, and takes back those that are no good."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np

from ufr_edge.errors import BundleError, UfrEdgeError
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.shadow import Look, Slack, SwapConfig, Trial, Verdict, time_limit
from ufr_edge.runtime.live.swap import EngineSlot, Loaded

_TICK_S = 0.05
_STUCK_S = 1.5  # a run of the engine so long is taken for a fault
_CLOSE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Where versions come from. current: the number that should run, None when there is none (raises BundleError
    when that cannot be told). load: opens one, warm. refuse(number, instead, reason): makes `instead` current again.
    """

    current: Callable[[], int | None]
    load: Callable[[int], Loaded]
    refuse: Callable[[int, int, str], object]


class SwapState(str, Enum):
    """How far the newest version has come. UNUSED: left in shadow, because another one was wanted."""

    NONE = "none"
    LOADING = "loading"
    SHADOW = "shadow"
    PROBATION = "probation"
    STANDS = "stands"
    UNUSED = "unused"
    REFUSED = "refused"
    BACK = "back"

    @property
    def over(self) -> bool:
        """Whether it is decided."""
        return self in (SwapState.STANDS, SwapState.UNUSED, SwapState.REFUSED, SwapState.BACK)


class SwapWatcher:
    """Looks whether another version became current; loads it, lets it run in shadow, swaps, keeps watching.

    In `watching()` its thread runs. What it does is told to the events, as "swap" and "rollback".
    """

    def __init__(
        self,
        slot: EngineSlot,
        versions: Versions,
        config: SwapConfig,
        *,
        events: EventLog,
        deadline_ms: Callable[[], float | None] = lambda: None,
        short: Callable[[], int] = lambda: 0,
        on_change: Callable[[Loaded], object] = lambda loaded: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """deadline_ms: of the stream at this moment. short: frames so far that it had no time for; see `Slack`.

        on_change: told which version runs, whenever that changes.
        """
        self._slot, self._versions, self._config = slot, versions, config
        self._events, self._deadline, self._on_change, self._now = events, deadline_ms, on_change, now
        self._short = short
        self._stop, self._wake = threading.Event(), threading.Event()
        self._refused: set[int] = set()
        self._complaint = ""
        self._old_ms: float | None = None
        self._usual_low = 0.0
        self._tick = min(_TICK_S, config.poll_s)
        self.state = SwapState.NONE
        self.swaps = 0
        self.rollbacks = 0

    @contextmanager
    def watching(self) -> Iterator[SwapWatcher]:
        """Watch while the block runs. The versions that are open at its end are closed by whoever opened the slot."""
        thread = threading.Thread(target=self._run, name="ufr-swap", daemon=True)
        self._changed(self._slot.loaded)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._wake.set()
            thread.join(_CLOSE_S)

    def poke(self) -> None:
        """Look at once, as after a signal."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            number = self._wanted()
            if number is not None:
                self._bring_in(number)
            self._wake.wait(self._config.poll_s)
            self._wake.clear()

    def _wanted(self) -> int | None:
        """The version that should run and does not."""
        try:
            number = self._versions.current()
        except BundleError as exc:
            if str(exc) != self._complaint:
                self._complaint = str(exc)
                self._events.add("failed", f"versions: {exc}", level=logging.WARNING)
            return None
        self._complaint = ""
        if number == self._slot.loaded.number:
            self._refused.clear()  # whoever makes one of them current from now on means it
            return None
        return None if number in self._refused else number

    def _bring_in(self, number: int) -> None:
        self.state = SwapState.LOADING
        self._events.add("swap", f"version {number} is loaded beside version {self._slot.loaded.number}")
        try:
            loaded = self._versions.load(number)
        except (UfrEdgeError, MemoryError) as exc:
            self._refuse(number, f"it does not load: {exc}")
            return
        self.state = SwapState.SHADOW
        reason = self._shadow(loaded)
        if reason is not None:
            self.state = SwapState.UNUSED
            loaded.close()
            if reason:
                self._refuse(number, f"in shadow: {reason}")
            return
        if not self._take_over(loaded):
            loaded.close()
            return
        self.swaps += 1
        self.state = SwapState.PROBATION
        self._changed(loaded)
        self._probation(loaded)

    def _shadow(self, loaded: Loaded) -> str | None:
        """Run it on live faces; None when it may take over, "" when it is not wanted any more, else what is wrong."""
        config = self._config
        trial = Trial(config, started=self._now(), seconds=config.shadow_s, faces=config.shadow_faces)
        old_ms = Trial(config, started=0.0, seconds=0.0, faces=0)
        slack = Slack(started=self._now(), short=self._short())
        self._slot.drain()
        while not self._stop.is_set():
            looks = self._slot.wait_look(self._tick)
            for look in looks:
                old_ms.timed(look.ms)
            if looks and slack.take(self._now(), short=self._short()):
                self._try_face(loaded, looks[-1], trial)
            verdict = trial.verdict(self._now(), limit_ms=self._limit(old_ms.median_ms))
            if verdict is not Verdict.WAIT:
                self._old_ms, self._usual_low = old_ms.median_ms, trial.usual_low
                return trial.reason
            if not self._still(loaded.number):
                self._events.add("swap", f"version {loaded.number} is left: another one is current")
                return ""
        return ""

    def _try_face(self, loaded: Loaded, look: Look, trial: Trial) -> None:
        engine = loaded.engines.full
        side = engine.info.side or len(look.crop)
        crop = np.asarray(cv2.resize(look.crop, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        since = self._now()
        try:
            made = engine.infer(crop[None])
        except (UfrEdgeError, MemoryError) as exc:
            trial.fail(f"it threw: {exc}")
            return
        ms = (self._now() - since) * 1000
        trial.observe(Look(crop=crop, made=made[0], old=look.made, ms=ms))

    def _take_over(self, loaded: Loaded) -> bool:
        before = self._slot.loaded.number
        self._slot.propose(loaded)
        while not self._slot.wait_taken(self._tick):
            if self._stop.is_set() and self._slot.withdraw():
                return False
        self._events.add("swap", f"version {loaded.number} takes over from version {before}")
        return True

    def _probation(self, loaded: Loaded) -> None:
        """Watch the version that took over, until the one before is closed, or takes over again."""
        config = self._config
        trial = Trial(
            config, started=self._now(), seconds=config.probation_s, faces=0, usual_low=self._usual_low
        )
        while not self._stop.wait(self._tick):
            self._look_at(trial)
            verdict = trial.verdict(self._now(), limit_ms=self._limit(self._old_ms))
            back = self._slot.back
            if verdict is Verdict.FAIL:
                self._roll_back(loaded, trial.reason or "")
                return
            if back is not None and not self._still(loaded.number) and self._still(back.number):
                self._slot.go_back()
                self._close(loaded)
                self._events.add("rollback", f"back to version {back.number}, as it was asked for")
                self._changed(self._slot.loaded)
                self.state = SwapState.BACK
                return
            if verdict is Verdict.PASS:
                break
        old = None if self._stop.is_set() else self._slot.settle()
        if old is not None:
            self._close(old)
            self._events.add("swap", f"version {loaded.number} stands; version {old.number} is closed")
            self.state = SwapState.STANDS

    def _look_at(self, trial: Trial) -> None:
        looks, times = self._slot.drain()
        for look in looks:
            trial.observe(look)
        for ms in times:
            trial.timed(ms)
        thrown = self._slot.thrown()
        if thrown is not None:
            trial.fail(thrown)
        if self._slot.busy_s() > _STUCK_S:
            trial.fail(f"it has been at work on one frame for more than {_STUCK_S:g} s")

    def _roll_back(self, loaded: Loaded, reason: str) -> None:
        self._slot.go_back()  # unless it went back by itself, when the engine threw
        self._changed(self._slot.loaded)
        self._refuse(loaded.number, reason)
        self._close(loaded)

    def _refuse(self, number: int, reason: str) -> None:
        runs = self._slot.loaded.number
        self.rollbacks += 1
        self._refused.add(number)
        text = f"version {number} is refused, version {runs} runs: {reason}"
        self._events.add("rollback", text, level=logging.WARNING)
        try:
            self._versions.refuse(number, runs, reason)
        except UfrEdgeError as exc:
            self._events.add("failed", f"version {number} stays marked current: {exc}", level=logging.ERROR)
        self.state = SwapState.REFUSED

    def _changed(self, loaded: Loaded) -> None:
        try:
            self._on_change(loaded)
        except UfrEdgeError as exc:
            self._events.add("failed", f"version {loaded.number}: {exc}", level=logging.WARNING)

    def _close(self, loaded: Loaded) -> None:
        if self._slot.released(loaded, _CLOSE_S):
            loaded.close()
        else:
            text = f"version {loaded.number} still runs after {_CLOSE_S:g} s and is left open"
            self._events.add("stuck", text, level=logging.ERROR)

    def _limit(self, old_ms: float | None) -> float | None:
        return time_limit(self._config, deadline_ms=self._deadline(), old_ms=old_ms)

    def _still(self, number: int) -> bool:
        """Whether that version should run; a link that cannot be read changes nothing."""
        try:
            return self._versions.current() == number
        except BundleError:
            return False
