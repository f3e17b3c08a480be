"""Writing without half-written files: write beside, then rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ufr_edge.errors import InputFileError, OutputError


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); rename it into place on success. mode: of the file.

    Raises OutputError when the disk is full or the folder cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        Path(name).chmod(mode)
    beside = Path(name)
    try:
        with disk_errors(path):
            yield beside
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it into place on success.

    Raises OutputError when `path` exists and `overwrite` is not set, or on a full disk.
    """
    check_free(path, overwrite=overwrite)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        beside.chmod(0o755)
    try:
        with disk_errors(path):
            yield beside
            _swap_in(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError when `path` exists (and holds something) and may not be overwritten."""
    taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if taken and not overwrite:
        msg = f"{path} exists already. Give --overwrite, or choose another output."
        raise OutputError(msg)


def check_writable(path: Path) -> None:
    """Raise OutputError unless a file can be written at `path`, whose folder is made: to say so before the work."""
    if path.is_dir():
        msg = f"{path} is a folder. Name a file in it."
        raise OutputError(msg)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.stem}.", dir=path.parent):
            pass
    except OSError as exc:
        msg = f"{path} cannot be written: {exc.strerror}. Choose another output."
        raise OutputError(msg) from exc


def check_replaceable(path: Path, record: str) -> None:
    """Raise OutputError when folder `path` holds something and lacks the file `record` that our own results have.

    So that --overwrite never removes pictures that are not ours.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / record).is_file():
        msg = (
            f"{path} holds files but no {record}: it was not made by this command and is not replaced. "
            "Choose another output."
        )
        raise OutputError(msg)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path, mode=mode) as beside:
        beside.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises InputFileError when it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        msg = f"{path} does not exist."
        raise InputFileError(msg) from exc
    except (OSError, ValueError) as exc:
        msg = f"{path} cannot be read as JSON: {exc}."
        raise InputFileError(msg) from exc


def _swap_in(beside: Path, path: Path) -> None:
    if not path.exists():
        beside.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent)) / path.name
    path.rename(old)
    try:
        beside.rename(path)
    except OSError:
        old.rename(path)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the system says of a full disk or a missing permission into OutputError."""
    try:
        yield
    except OutputError:
        raise
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            msg = f"The disk is full while writing {path}. Free some space and run the command again."
            raise OutputError(msg) from exc
        if exc.errno == errno.EFBIG:
            msg = f"{path} becomes larger than this disk or the limit of this user (ulimit -f) allows. Choose another place."
            raise OutputError(msg) from exc
        if exc.errno == errno.EIO:
            msg = f"{path} cannot be written: the disk fails ({exc.strerror}). Choose another disk."
            raise OutputError(msg) from exc
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            msg = f"{path} cannot be written: {exc.strerror}. Choose another output."
            raise OutputError(msg) from exc
        raise


def cache_folder() -> Path:
    """Where what can be made or fetched again lies: $UFR_CACHE, $XDG_CACHE_HOME/ufr-edge or ~/.cache/ufr-edge."""
    if own := os.environ.get("UFR_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "ufr-edge"
    return Path.home() / ".cache" / "ufr-edge"
