"""The sinks of a stream together: the first is what the stream is for, another may die without it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ufr_edge.errors import UfrEdgeError
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.sinks import LiveFrame, Sink, SinkContext


class SinkGroup:
    """For the sink thread. When the first sink fails the error is raised; any other is given up with an event."""

    def __init__(self, sinks: Sequence[Sink], events: EventLog) -> None:
        self._sinks, self._events = tuple(sinks), events
        self._open: list[Sink] = []

    def open(self, context: SinkContext) -> None:
        """Open all. Raises what the first that fails raises: at the start that is a wrong address."""
        for sink in self._sinks:
            self._open.append(sink)
            sink.open(context)

    def write(self, frame: LiveFrame) -> None:
        """Give a frame to each that lives. Raises what the first sink raises."""
        for sink in tuple(self._open):
            try:
                sink.write(frame)
            except (UfrEdgeError, OSError) as exc:
                if sink is self._sinks[0]:
                    raise
                self._give_up(sink, exc)

    def close(self) -> None:
        """Close all that live; the first failure is raised after the last was closed."""
        errors: list[Exception] = []
        for sink in self._open:
            try:
                sink.close()
            except OSError as exc:
                self._events.add("failed", f"{sink.name}: {exc}", level=logging.ERROR)
                errors.append(exc)
        self._open.clear()
        if errors:
            raise errors[0]

    def _give_up(self, sink: Sink, reason: Exception) -> None:
        self._open.remove(sink)
        self._events.add(
            "failed", f"{sink.name} is given up, the rest goes on: {reason}", level=logging.ERROR
        )
        try:
            sink.close()  # what was written may still be finished
        except OSError:
            return  # it is dead; why, has been told
