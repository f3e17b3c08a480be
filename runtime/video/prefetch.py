"""Running an iterator ahead in a thread, through a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _Ended(Generic[T]):
    error: BaseException | None


def prefetch(items: Iterator[T], *, depth: int) -> Generator[T, None, None]:
    """Yield `items` in order while a thread computes up to `depth` of them ahead.

    An error of the iterator is raised here, after the items before it. Closing the generator stops the
    thread and waits for it; the thread closes the iterator.
    """
    ready: queue.Queue[T | _Ended[T]] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    worker = threading.Thread(target=_fill, args=(items, ready, stop), name="prefetch", daemon=True)
    worker.start()
    try:
        while not isinstance(item := ready.get(), _Ended):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        worker.join()


def _fill(items: Iterator[T], ready: queue.Queue[T | _Ended[T]], stop: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            if not _put(ready, item, stop):
                break
    except BaseException as exc:  # noqa: BLE001 - handed to the consumer, who raises it
        error = exc
    finally:
        if isinstance(items, Generator):
            items.close()
    _put(ready, _Ended(error), stop)


def _put(ready: queue.Queue[T | _Ended[T]], item: T | _Ended[T], stop: threading.Event) -> bool:
    """Put, but give up when asked to stop."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
