"""One build of a bundle at a time, and no remains of builds that were killed."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ufr_edge.errors import OutputError
from ufr_edge.runtime.lock import try_lock

_POLL_S = 0.2


@contextmanager
def build_lock(
    out: Path, *, wait_s: float = 3600.0, on_wait: Callable[[str], None] = lambda holder: None
) -> Iterator[None]:
    """Hold the lock file beside `out` (`.NAME.lock`) for one process at a time; remove what killed builds left.

    The system frees the lock when its holder dies, so a stale file never blocks; it names the holder's process id
    and machine. on_wait: called once with those when there is something to wait for.
    Raises OutputError when it is still held after `wait_s` seconds, or the folder cannot be written.
    """
    path = out.parent / f".{out.name}.lock"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path, time.monotonic() + wait_s, on_wait)
    except OutputError:
        raise
    except OSError as exc:
        msg = f"{path} cannot be written: {exc.strerror}. Choose another output."
        raise OutputError(msg) from exc
    try:
        remove_remains(out)
        yield
    finally:
        # while it is held: a waiter sees that its file is gone, and takes a new one
        path.unlink(missing_ok=True)
        os.close(handle)


def remove_remains(out: Path) -> None:
    """Remove the hidden folders beside `out` that a killed build left. Call it with the lock held.

    Where the kill fell between taking the old bundle away and putting the new one in place, the old one is put back.
    """
    for folder in sorted(out.parent.glob(f".{out.name}.*")):
        old = folder / out.name
        if folder.name.startswith(f".{out.name}.old.") and old.exists() and not out.exists():
            old.rename(out)
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def _acquire(path: Path, deadline: float, on_wait: Callable[[str], None]) -> int:
    told = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if try_lock(handle, path) and _is_current(path, handle):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return handle
        holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
        os.close(handle)
        if not told:
            on_wait(holder)
            told = True
        if time.monotonic() >= deadline:
            msg = f"{path} is still held by {holder}, which builds the same bundle. Wait for it, or end it."
            raise OutputError(msg)
        time.sleep(_POLL_S)


def _is_current(path: Path, handle: int) -> bool:
    """Whether the locked file is the one that lies there: its last holder removes it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
