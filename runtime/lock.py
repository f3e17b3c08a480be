"""One process at a time: a lock on a file, held by the system, so that a killed process lets go of it."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ufr_edge.errors import OutputError
from ufr_edge.files import disk_errors

_POLL_S = 0.05
_DAY_S = 86_400.0
_OWNED = ".lock"
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


@contextmanager
def own_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in `parent`, for this process alone, and remove it at the end.

    Those of the same prefix that killed processes left there are removed first; one that lives holds a lock in its own.
    Raises OutputError.
    """
    _remove_left(parent, prefix)
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        place = TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True)
    with place as name, ExitStack() as stack:
        with suppress(OutputError):  # a disk without locks: nobody then removes what has one
            stack.enter_context(file_lock(Path(name) / _OWNED, timeout_s=0.0))
        yield Path(name)


def _remove_left(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        with suppress(OSError, OutputError):  # it is in use, or gone meanwhile
            lock = folder / _OWNED
            # Without a lock it was made this moment, or by an earlier release: a day later nobody uses it.
            if lock.is_file() or time.time() - folder.stat().st_mtime > _DAY_S:
                with file_lock(lock, timeout_s=0.0):
                    shutil.rmtree(folder, ignore_errors=True)


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
