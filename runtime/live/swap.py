"""The engines of a running stream, exchanged between two frames: beside the old, in shadow, on probation, settled.

A stream asks its `EngineSlot` once a frame which engine to take, so that a change always falls between two frames.
Loading, trying and closing happen in the one thread of a `SwapWatcher`; the restore thread only ever reads a name
and hands over copies of some faces.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ufr_edge.errors import InferenceError, UfrEdgeError
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.live.ladder import Step
from ufr_edge.runtime.live.shadow import Look
from ufr_edge.runtime.live.stages import Engines
from ufr_edge.runtime.pipeline import Restores

Batch = npt.NDArray[np.uint8]
_LOOKS = 4  # faces that wait to be looked at; older ones are forgotten
_TIMES = 64


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A version's engines, open and warm. close: frees them; called once."""

    number: int
    engines: Engines
    close: Callable[[], object]


@dataclass(kw_only=True, eq=False)
class _Seat:
    """A version in the slot, its engines wrapped so that what they do can be looked at."""

    loaded: Loaded
    full: _Seated = field(init=False)
    smaller: _Seated | None = field(init=False)


class _Seated:
    """An engine in the slot, as the stream sees it."""

    def __init__(self, engine: Restores, seat: _Seat, slot: EngineSlot) -> None:
        self.engine, self._seat, self._slot = engine, seat, slot

    @property
    def info(self) -> EngineInfo:
        """What runs, where."""
        return self.engine.info

    def infer(self, batch: Batch) -> Batch:
        """Restore uint8 (B, S, S, 3) faces; by the engine before this one, where this one is on probation and throws."""
        return self._slot.run(self._seat, self.engine, batch)


class EngineSlot:
    """Which engines a stream runs; stands where an `Engines` would. `at` and the engines belong to the restore thread.

    `propose` is taken at the next frame; the version before is kept until `settle` or `go_back`.
    """

    def __init__(self, first: Loaded, *, every: int = 5, now: Callable[[], float] = time.monotonic) -> None:
        """every: one run in so many is kept to be looked at."""
        self._every, self._now = every, now
        self._lock = threading.Condition()
        self._seat = self._make_seat(first)
        self._steps = first.engines.steps
        self._pending: _Seat | None = None
        self._back: _Seat | None = None
        self._busy: tuple[_Seat, float] | None = None
        self._thrown: str | None = None
        self._runs = 0
        self._looks: deque[Look] = deque(maxlen=_LOOKS)
        self._times: deque[float] = deque(maxlen=_TIMES)

    @property
    def full(self) -> Restores:
        """The engine that was asked for, of the version that runs."""
        return self._seat.full

    @property
    def smaller(self) -> Restores | None:
        """The faster one of the version that runs, when it has one."""
        return self._seat.smaller

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the ladder: those of the first version."""
        return self._steps

    @property
    def loaded(self) -> Loaded:
        """The version that runs."""
        return self._seat.loaded

    @property
    def back(self) -> Loaded | None:
        """The version that is kept to go back to."""
        back = self._back
        return None if back is None else back.loaded

    def at(self, step: Step) -> Restores:
        """The engine for the next frame."""
        with self._lock:
            if self._pending is not None:
                self._seat, self._back, self._pending = self._pending, self._seat, None
                self._thrown = None
                self._looks.clear()
                self._times.clear()
                self._lock.notify_all()
            seat = self._seat
        return seat.full if step is Step.FULL or seat.smaller is None else seat.smaller

    def run(self, seat: _Seat, engine: Restores, batch: Batch) -> Batch:
        """Run an engine of a seat; see `_Seated.infer`."""
        runs = self._enter(seat, engine)
        try:
            since = self._now()
            made = runs.infer(batch)
            self._saw(batch, made, (self._now() - since) * 1000 / max(1, len(batch)))
        except (UfrEdgeError, MemoryError) as exc:
            spare = self._threw(seat, f"it threw: {exc}")
            if spare is None:
                raise
            return self._spared(spare, batch, exc)
        finally:
            self._leave()
        return made

    def propose(self, loaded: Loaded) -> None:
        """Let a version take over at the next frame."""
        with self._lock:
            self._pending = self._make_seat(loaded)

    def wait_taken(self, timeout_s: float) -> bool:
        """Wait until what was proposed runs."""
        with self._lock:
            return self._lock.wait_for(lambda: self._pending is None, timeout_s)

    def withdraw(self) -> bool:
        """Take a proposal back; False: it runs already."""
        with self._lock:
            had, self._pending = self._pending, None
        return had is not None

    def go_back(self) -> Loaded | None:
        """Let the version before take over again, at the next frame; returns the one that is left."""
        with self._lock:
            if self._back is None:
                return None
            left, self._seat, self._back = self._seat, self._back, None
        return left.loaded

    def settle(self) -> Loaded | None:
        """Give up going back; returns the version to close once it is `released`."""
        with self._lock:
            if self._back is None:
                return None
            old, self._back = self._back, None
        return old.loaded

    def released(self, loaded: Loaded, timeout_s: float) -> bool:
        """Wait until a version that has been left is not running; from then on it never will."""
        with self._lock:
            return self._lock.wait_for(
                lambda: self._busy is None or self._busy[0].loaded is not loaded, timeout_s
            )

    def thrown(self) -> str | None:
        """Why the newest version was left by itself; None while it was not."""
        with self._lock:
            return self._thrown

    def busy_s(self) -> float:
        """Seconds that the engine has been at work on its present faces."""
        with self._lock:
            return 0.0 if self._busy is None else self._now() - self._busy[1]

    def wait_look(self, timeout_s: float) -> list[Look]:
        """The faces kept to be looked at, oldest first, once the engine rests: then whoever looks has the rest of the
        frame's time for itself. After `timeout_s` what there is, be it nothing.
        """
        with self._lock:
            self._lock.wait_for(lambda: bool(self._looks) and self._busy is None, timeout_s)
            looks = list(self._looks)
            self._looks.clear()
        return looks

    def drain(self) -> tuple[list[Look], list[float]]:
        """The faces kept to be looked at, and how many ms every face took, since the last call."""
        with self._lock:
            looks, times = list(self._looks), list(self._times)
            self._looks.clear()
            self._times.clear()
        return looks, times

    def _make_seat(self, loaded: Loaded) -> _Seat:
        seat = _Seat(loaded=loaded)
        seat.full = _Seated(loaded.engines.full, seat, self)
        second = loaded.engines.smaller
        seat.smaller = None if second is None else _Seated(second, seat, self)
        return seat

    def _enter(self, seat: _Seat, engine: Restores) -> Restores:
        """A seat that was left in the middle of a frame is not run again: the one in its place finishes the frame."""
        with self._lock:
            gone = seat not in (self._seat, self._back)
            chosen = self._seat if gone else seat
            self._busy = (chosen, self._now())
        return chosen.loaded.engines.full if gone else engine

    def _leave(self) -> None:
        with self._lock:
            self._busy = None
            self._lock.notify_all()

    def _threw(self, seat: _Seat, reason: str) -> _Seat | None:
        """Leave a version on probation that threw; returns the one to go on with, None when there is none."""
        with self._lock:
            if seat is not self._seat or self._back is None:
                return None
            self._seat, self._back, self._thrown = self._back, None, reason
            self._busy = (self._seat, self._now())
            self._lock.notify_all()
            return self._seat

    def _spared(self, spare: _Seat, batch: Batch, error: BaseException) -> Batch:
        engine = spare.loaded.engines.full
        if engine.info.side not in (None, batch.shape[1]):
            msg = f"{error} The version before takes faces of another size; it takes over at the next frame."
            raise InferenceError(msg) from error
        return engine.infer(batch)

    def _saw(self, batch: Batch, made: Batch, ms: float) -> None:
        self._runs += 1
        look = None
        if self._runs % self._every == 0 and len(batch):
            index = self._runs // self._every % len(batch)
            look = Look(crop=batch[index].copy(), made=made[index].copy(), ms=ms)
        with self._lock:
            self._times.append(ms)
            if look is not None:
                self._looks.append(look)
