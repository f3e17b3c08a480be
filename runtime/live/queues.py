"""Bounded queues between the stages, with roboflow's named policies."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

from ufr_edge.errors import ConfigError

Filling = Literal["wait", "drop_oldest", "drop_latest"]
Consuming = Literal["lazy", "eager"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class QueuePolicy:
    """filling: what a full queue does. consuming: all in order (lazy), or jump to the newest (eager)."""

    filling: Filling = "wait"
    consuming: Consuming = "lazy"
    depth: int = 4

    def __post_init__(self) -> None:
        if self.filling not in get_args(Filling) or self.consuming not in get_args(Consuming):
            msg = (
                f"The buffer policy {self.filling}, {self.consuming} is not known. Filling is one of "
                f"{', '.join(get_args(Filling))}; consuming one of {', '.join(get_args(Consuming))}."
            )
            raise ConfigError(msg)
        if not 1 <= self.depth <= 1000:
            msg = f"A queue holds 1 to 1000 frames, not {self.depth}."
            raise ConfigError(msg)


FILE_POLICY = QueuePolicy(filling="wait", consuming="lazy", depth=4)
CAMERA_POLICY = QueuePolicy(filling="drop_oldest", consuming="eager", depth=2)


class FrameQueue(Generic[T]):
    """One producer, one consumer. `len(queue)` items wait; `dropped` were thrown away by the policy.

    `close()` ends the giving: what waits is still handed out. `abort()` throws that away too (as dropped).
    """

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def dropped(self) -> int:
        """Items given to `put` that no `get` returned and none will."""
        return self._dropped

    def wait_for_room(self) -> None:
        """Wait until a `put` would not wait: who asks before it takes work up works on fresher frames."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self.policy.depth)

    def put(self, item: T) -> bool:
        """Give an item, by the filling policy; False when the queue is closed (the item counts as dropped)."""
        with self._changed:
            if self.policy.filling == "wait":
                self._changed.wait_for(lambda: self._closed or len(self._items) < self.policy.depth)
            if self._closed:
                self._dropped += 1
                return False
            if len(self._items) >= self.policy.depth:
                self._dropped += 1
                if self.policy.filling == "drop_latest":
                    return True
                self._items.popleft()
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self) -> T | None:
        """Wait for the next item, by the consuming policy; None when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._items))
            if not self._items:
                return None
            if self.policy.consuming == "eager" and not self._closed:
                self._dropped += len(self._items) - 1
                while len(self._items) > 1:
                    self._items.popleft()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """No more items will come. A `put` that waits returns False."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Close, and drop what waits."""
        with self._changed:
            self._closed = True
            self._dropped += len(self._items)
            self._items.clear()
            self._changed.notify_all()
