"""A network sink that may break: in a thread of its own, connected again with growing pauses."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ufr_edge.errors import OutputError
from ufr_edge.runtime.live.queues import FrameQueue, QueuePolicy
from ufr_edge.runtime.live.sources import Backoff

if TYPE_CHECKING:
    from ufr_edge.runtime.live.sinks import LiveFrame, Sink, SinkContext

_WAITING = QueuePolicy(filling="drop_oldest", consuming="lazy", depth=4)


class NetworkSink:
    """Hands frames to a sink made by `make`, and makes another when it breaks. `write` never waits for the network.

    While nobody listens, or the encoder is too slow, the oldest frames are left out, and their number is told in the
    events. The sink is dead, and `write` raises, after `backoff.tries` failures in a row; a connection that holds
    for `backoff.most_s` ends a row.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Sink],
        *,
        backoff: Backoff | None = None,
        close_s: float = 8.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """close_s: how long `close` waits for what is under way."""
        self.name, self._make, self._backoff = name, make, backoff or Backoff()
        self._close_s, self._clock = close_s, clock
        self._queue: FrameQueue[LiveFrame] = FrameQueue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="ufr-network", daemon=True)
        self._sink: Sink | None = None
        self._context: SinkContext | None = None
        self._error: BaseException | None = None
        self._failed, self._since, self._left_out, self._slow = 0, 0.0, 0, False
        self._closing = threading.Event()

    def open(self, context: SinkContext) -> None:
        """Connect, with `backoff.at_start` tries. Raises OutputError, ConfigError."""
        self._context = context
        for number in range(1, self._backoff.at_start + 1):
            try:
                self._connect(context)
                break
            except OutputError:
                if number == self._backoff.at_start or self._stopped(self._backoff.pause(number)):
                    raise
        self._thread.start()

    def write(self, frame: LiveFrame) -> None:
        """Take a frame, to be sent soon. Raises OutputError when the sink is dead."""
        if self._error is not None:
            raise self._error
        if self._context is None:
            msg = f"{self.name} is not open. Call open() first."
            raise OutputError(msg)
        self._queue.put(frame)

    def close(self) -> None:
        """Send what waits, where there is a connection, and hang up; twice is fine. Raises OutputError when the sink had died."""
        self._closing.set()
        self._queue.close()
        if self._thread.is_alive():
            self._thread.join(self._close_s)
            if self._thread.is_alive():
                self._tell("stuck", f"it did not end within {self._close_s:g} s")
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        try:
            while (frame := self._queue.get()) is not None:
                self._send(frame)
            self._hang_up()
        except BaseException as exc:  # noqa: BLE001 - the border of the thread: write() and close() raise it
            self._error = exc
            self._queue.abort()
        if self._queue.dropped:
            self._tell("dropped", f"{self._queue.dropped} frames were not sent, all in all")

    def _send(self, frame: LiveFrame) -> None:
        if self._sink is None:
            return  # stopped while nobody listened
        try:
            self._sink.write(frame)
        except OutputError as exc:
            self._connect_again(exc)
            return
        if self._queue.dropped > self._left_out and not self._slow:
            self._slow = True  # told once
            self._tell("dropped", "frames are left out: the encoder or the network does not keep up")
        self._left_out = self._queue.dropped

    def _connect(self, context: SinkContext) -> None:
        sink = self._make()
        try:
            sink.open(context)
        except BaseException:
            _close_quietly(sink)
            raise
        self._sink, self._since = sink, self._clock()

    def _connect_again(self, reason: OutputError) -> None:
        """Try until it stands, or the stream is stopped. Raises OutputError after all tries."""
        context = self._context
        assert context is not None  # open() came before
        self._tell("lost", f"{reason} Connecting again")
        if self._sink is not None:
            _close_quietly(self._sink)
            self._sink = None
        if self._clock() - self._since >= self._backoff.most_s:
            self._failed = 0
        while True:
            self._failed += 1
            if self._failed > self._backoff.tries:
                raise OutputError(self._lost(reason)) from reason
            if self._stopped(self._backoff.pause(self._failed)):
                return
            try:
                self._connect(context)
                break
            except OutputError as exc:
                reason = exc
        missed, self._left_out = self._queue.dropped - self._left_out, self._queue.dropped
        context.events.add("reconnect", f"{self.name}: connected again, {missed} frames were not sent")

    def _stopped(self, pause_s: float) -> bool:
        """Pause; True, at once, when the stream is stopped or the sink closed."""
        until = time.monotonic() + pause_s
        while (left := until - time.monotonic()) > 0:
            if (self._context is not None and self._context.stop.is_set()) or self._closing.wait(
                min(left, 0.1)
            ):
                return True
        return False

    def _hang_up(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()

    def _lost(self, reason: OutputError) -> str:
        return (
            f"{self.name} is lost after {self._failed} {'try' if self._failed == 1 else 'tries'}: {reason} "
            "Check that something listens there; --reconnect N tries for longer."
        )

    def _tell(self, kind: str, text: str) -> None:
        if self._context is not None:
            self._context.events.add(kind, f"{self.name}: {text}", level=logging.WARNING)


def _close_quietly(sink: Sink) -> None:
    """Let go of a connection that is broken anyway."""
    try:
        sink.close()
    except OSError:
        return
