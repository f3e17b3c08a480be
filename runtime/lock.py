"""One process at a time: a lock on a file, held by the system, so that a killed process lets go of it."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ufr_edge.errors import OutputError

_POLL_S = 0.05
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


@contextmanager
def file_lock(path: Path, *, timeout_s: float = 600.0) -> Iterator[None]:
    """Hold the lock file `path` (made where missing, left lying); another process or thread waits.

    Raises OutputError when it is not free within `timeout_s` seconds, or cannot be made.
    """
    handle = _open(path)
    try:
        deadline = time.monotonic() + timeout_s
        while not try_lock(handle, path):
            if time.monotonic() > deadline:
                msg = f"{path.parent} is in use by another process, after {timeout_s:g} s. Try again later."
                raise OutputError(msg)
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as exc:
        msg = f"{path.parent} cannot be written: {exc.strerror}. Choose another folder."
        raise OutputError(msg) from exc


def try_lock(handle: int, path: Path) -> bool:
    """Lock the open file `handle` at `path`, without waiting; False where another holds it. Closing it lets go.

    Raises OutputError where the file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in _BUSY:
            return False
        msg = f"{path} cannot be locked: {exc.strerror}. Use a folder on a local disk."
        raise OutputError(msg) from exc
    return True
