"""The user's cache of opened archives: each unpacked once, those long unused removed, never one that is in use."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from ufr_edge.errors import InputFileError, OutputError
from ufr_edge.files import cache_folder, sha256_file
from ufr_edge.runtime.bundle_archive import unpack_bundle
from ufr_edge.runtime.lock import file_lock, try_lock
from ufr_edge.runtime.manifest import MANIFEST, Manifest

KEEP_S = 30 * 86_400.0
KEEP = 16
"""Of the bundles of the cache, those used within KEEP_S seconds, and no more than the KEEP used last, are kept."""


def open_archive(archive: Path, *, cache: Path | None = None) -> Path:
    """Unpack an archive into the cache, once for each content, and return the bundle folder.

    It stays there at least as long as this process runs. Others that have not been used for long are removed.
    cache: None = `bundles` in the cache folder. Raises as unpack_bundle.
    """
    place = cache or cache_folder() / "bundles"
    folder = place / f"{_archive_sha256(archive)[:32]}.ufr"
    with file_lock(place / ".lock"):
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)  # ours by its name, whatever became of it
            unpack_bundle(archive, folder)
        _mark_used(folder / MANIFEST)
        _prune(place, folder)
    return folder


def _archive_sha256(archive: Path) -> str:
    try:
        return sha256_file(archive)
    except OSError as exc:
        msg = f"{archive} cannot be read: {exc.strerror}."
        raise InputFileError(msg) from exc


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the cache still is what was unpacked there."""
    try:
        manifest = Manifest.from_json(json.loads((folder / MANIFEST).read_bytes()))
        return all(sha256_file(folder / name) == digest for name, digest in manifest.files.items())
    except (OSError, ValueError):
        return False


def _mark_used(manifest: Path) -> None:
    """Note the time, and hold the bundle for as long as this process lives."""
    with suppress(OSError):  # another user's, or a disk without locks: it may be unpacked again one day
        os.utime(manifest)
        _hold(manifest, manifest.stat().st_ino)


@functools.cache
def _hold(manifest: Path, inode: int) -> None:
    """Share the lock of a file until the process ends: once for each `inode` that ever lay there."""
    if sys.platform != "win32":  # there open files cannot be removed anyway, and locked ones not be read
        import fcntl

        handle = os.open(manifest, os.O_RDONLY)  # closed by the system
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _prune(place: Path, opened: Path) -> None:
    """Remove what is long unused, and what killed processes left half unpacked. With the lock of the cache held."""
    for remains in place.glob(".*.ufr.*"):
        shutil.rmtree(remains, ignore_errors=True)
    others = [folder for folder in place.glob("*.ufr") if folder != opened]
    others.sort(key=_used_at, reverse=True)
    oldest = time.time() - KEEP_S
    for rank, folder in enumerate(others, start=1):
        if (rank >= KEEP or _used_at(folder) < oldest) and not _in_use(folder / MANIFEST):
            shutil.rmtree(folder, ignore_errors=True)


def _used_at(folder: Path) -> float:
    """When a bundle was opened last, seconds since 1970; 0 where it is broken."""
    try:
        return (folder / MANIFEST).stat().st_mtime
    except OSError:
        return 0.0


def _in_use(manifest: Path) -> bool:
    try:
        handle = os.open(manifest, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # not ours to judge
    try:
        return not try_lock(handle, manifest)
    except OutputError:
        return True
    finally:
        os.close(handle)
