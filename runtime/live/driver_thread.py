"""Calls of a driver that may hang, in a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


class DriverThread:
    """Makes calls one after the other in a thread; who asks waits no longer than it says."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._stuck = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, act: Callable[[], Any], seconds: float) -> Any:
        """Return what `act` returns, or raise what it raises. Raises TimeoutError; after that only `end` is left."""
        if self._stuck:
            msg = "an earlier call has not come back"
            raise TimeoutError(msg)
        self._calls.put(act)
        try:
            value, error = self._answers.get(timeout=seconds)
        except queue.Empty:
            self._stuck = True
            msg = f"no answer within {seconds:g} s"
            raise TimeoutError(msg) from None
        if error is not None:
            raise error
        return value

    def end(self, last: Callable[[], Any], seconds: float) -> None:
        """Have `last` called, and end the thread. One that hangs does so when it comes back; it is not waited for."""
        self._calls.put(last)
        self._calls.put(None)
        if not self._stuck:
            self._thread.join(seconds)

    def _run(self) -> None:
        while (act := self._calls.get()) is not None:
            try:
                self._answers.put((act(), None))
            except BaseException as exc:  # noqa: BLE001 - handed to who asked
                self._answers.put((None, exc))
