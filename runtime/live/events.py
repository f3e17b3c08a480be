"""What happened, in order: the last few events of a stream, each also logged."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from ufr_edge.runtime.video.uri import mask

_LOG = logging.getLogger("ufr_edge.live")
_KEPT = 200


@dataclass(frozen=True, kw_only=True)
class Event:
    """kind: start, stop, ladder, reconnect, lost, size, failed, dropped, ... at: seconds since 1970."""

    at: float
    kind: str
    text: str

    def to_json(self) -> dict[str, Any]:
        """The event as plain JSON values."""
        return asdict(self)


class EventLog:
    """Keeps the last 200 events; for use by any thread. Credentials are hidden on the way in."""

    def __init__(self, *, kept: int = _KEPT) -> None:
        self._events: deque[Event] = deque(maxlen=kept)
        self._lock = threading.Lock()

    def add(self, kind: str, text: str, *, level: int = logging.INFO) -> None:
        """Keep an event and log it."""
        event = Event(at=time.time(), kind=kind, text=mask(text))
        with self._lock:
            self._events.append(event)
        _LOG.log(level, "%s: %s", kind, event.text, extra={"event": kind})

    def last(self, count: int = _KEPT) -> tuple[Event, ...]:
        """The newest `count` events, oldest first."""
        with self._lock:
            return tuple(self._events)[-count:]
