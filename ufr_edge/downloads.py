"""Fetching model files: resumed where they broke off, checked before they get their name, kept in one cache folder."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ufr_edge import __version__
from ufr_edge.errors import BackendUnavailableError, DownloadError, ModelFileError, OutputError
from ufr_edge.files import sha256_file
from ufr_edge.progress import Advance, progress_bar

_CHUNK = 1 << 20
_TIMEOUT_S = 60.0
_RETRIED = (ConnectionError, TimeoutError, http.client.HTTPException, urllib.error.URLError)
_PAGES = ("text/html", "application/xhtml+xml")
_ZIP = b"PK\x03\x04"
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file to fetch: `size` in bytes and `sha256` (64 hex digits) where they are publicly known, else None."""

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None


def is_offline() -> bool:
    """Whether UFR_OFFLINE forbids the network (any value but empty, 0, false and no)."""
    return os.environ.get("UFR_OFFLINE", "").lower() not in ("", "0", "false", "no")


def fetch(
    file: RemoteFile,
    folder: Path,
    *,
    again: bool = False,
    offline: bool = False,
    show: bool = True,
    attempts: int = 4,
    pause_s: float = 1.0,
) -> Path:
    """Return `folder`/NAME, fetched and checked unless it is there and fits already.

    With `again` it is fetched even then; the old file stays until the new one is whole and checked.

    An interrupted download stays beside it as NAME.part and goes on where it stopped, in this call (`attempts`
    tries, `pause_s` seconds before the second and twice as long before each further one) or a later one.

    Raises BackendUnavailableError when `offline` (or UFR_OFFLINE) forbids the network, DownloadError when the
    server refuses, sends a web page, or the line breaks, OutputError without the room, ModelFileError when what came
    does not fit (see `misfit`).
    """
    target = folder / file.name
    if target.is_file() and not again and misfit(file, target) is None:
        return target
    if offline or is_offline():
        state = f"in {folder} has to be fetched again" if target.exists() else f"is not in {folder}"
        msg = (
            f"{file.name} {state}, and the network is switched off (--offline or UFR_OFFLINE). "
            f"Fetch {file.url} where there is a network and put it there."
        )
        raise BackendUnavailableError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{file.name}.part"
    with _alone(folder / f"{file.name}.lock", target):
        _fetch_part(file, part, show=show, attempts=attempts, pause_s=pause_s)
        _keep(file, part, target)
    return target


def misfit(file: RemoteFile, path: Path) -> str | None:
    """Say in words how `path` differs from what is known of `file`; None when nothing does.

    By its size and SHA-256; without the latter by its kind (`wrong_kind`).
    """
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size:,} bytes, not {file.size:,}"
    if file.sha256 is not None and (found := sha256_file(path)) != file.sha256:
        return f"its SHA-256 is {found}, not {file.sha256}"
    return wrong_kind(path, file.name) if file.sha256 is None else None


def wrong_kind(path: Path, name: str) -> str | None:
    """Say in words why `path` cannot be the file that is called `name`; None when it may be.

    A .json must be JSON, anything else an archive of torch, a pickle or safetensors: by the first bytes, which tell a
    web page from a model, and by the end of an archive, without which it was cut short.
    """
    with path.open("rb") as file:
        start = file.read(200)
    if _is_safetensors(start, path.stat().st_size):
        return None
    if (found := no_model(start)) is not None:
        return found
    if name.endswith(".json"):
        return None if _is_json(path) else "it is no JSON, or was cut short"
    if start.startswith(_ZIP):
        return None if zipfile.is_zipfile(path) else "it was cut short: the end is missing"
    if start.startswith(_PICKLES):
        return None
    return f"it begins with {start[:12]!r}: neither an archive of torch, nor a pickle, nor safetensors"


def no_model(start: bytes) -> str | None:
    """Say in words what the first bytes of a file tell at once: that it is empty, or a web page; else None."""
    if not start:
        return "it is empty"
    return "it is a web page, not a model" if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _is_safetensors(start: bytes, size: int) -> bool:
    """Eight bytes say how long the header is, which is a JSON object."""
    return start[8:9] == b"{" and 8 + int.from_bytes(start[:8], "little") <= size


def _keep(file: RemoteFile, part: Path, target: Path) -> None:
    wrong = misfit(file, part)
    if wrong is not None:
        _throw_away(part)
        msg = f"What {file.url} sent is not {file.name}: {wrong}. It was thrown away; try again, or report a new release."
        raise ModelFileError(msg)
    part.replace(target)
    _etag_file(part).unlink(missing_ok=True)


def _fetch_part(file: RemoteFile, part: Path, *, show: bool, attempts: int, pause_s: float) -> None:
    for attempt in range(attempts):
        try:
            with progress_bar(file.name, file.size, done=_size(part), show=show) as advance:
                _request(file, part, advance)
        except urllib.error.HTTPError as exc:
            exc.close()
            msg = f"{file.url} answered {exc.code} {exc.reason}. Fetch the file by hand, or look for where it moved."
            raise DownloadError(msg) from exc
        except DownloadError:  # a ConnectionError too, but another try would not mend it
            raise
        except _RETRIED as exc:
            if attempt + 1 == attempts:
                reason = getattr(exc, "reason", None) or exc
                msg = (
                    f"{file.url} broke off after {_size(part):,} bytes ({reason}). "
                    "Run the command again: it goes on from there."
                )
                raise DownloadError(msg) from exc
            time.sleep(pause_s * 2**attempt)
        else:
            return


def _request(file: RemoteFile, part: Path, advance: Advance) -> None:
    """One request for what is missing of `part`; raises a ConnectionError when the answer ends early."""
    done = _size(part)
    if file.size is not None and done >= file.size:
        return
    headers = {"User-Agent": f"ufr-edge/{__version__}", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
        if etag := _read_etag(part):
            headers["If-Range"] = etag  # another file by now: the server then sends it whole
    try:
        answer = urllib.request.urlopen(urllib.request.Request(file.url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as exc:
        if exc.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not done:
            raise
        exc.close()
        if exc.headers.get("Content-Range") == f"bytes */{done}":
            return  # all of it is here already
        _throw_away(part)
        msg = "what was there is longer than the file"
        raise ConnectionError(msg) from exc
    with answer:
        _receive(answer, part, advance, done)


def _receive(answer: Any, part: Path, advance: Advance, done: int) -> None:
    if answer.headers.get_content_type() in _PAGES:
        msg = (
            f"{answer.url} is a web page, not {part.stem}: one to log in on, or a proxy's. "
            f"Fetch the file in a browser and put it into {part.parent}."
        )
        raise DownloadError(msg)
    goes_on = answer.status == http.client.PARTIAL_CONTENT
    start = done if goes_on else 0
    if goes_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
        _throw_away(part)
        msg = f"the server sent another part than was asked for ({answer.headers.get('Content-Range')})"
        raise ConnectionError(msg)
    length = answer.headers.get("Content-Length")
    _check_room(part, int(length) if length else 0)
    if not goes_on:
        _etag_file(part).write_text(answer.headers.get("ETag") or "", encoding="utf-8")
        advance(-done)
    with part.open("ab" if goes_on else "wb") as out:
        received = _copy(answer, out, part, advance)
    if length and received < int(length):
        msg = f"{start + received:,} of {start + int(length):,} bytes came"
        raise ConnectionError(msg)


def _copy(answer: Any, out: BinaryIO, part: Path, advance: Advance) -> int:
    received = 0
    for chunk in _chunks(answer):
        try:
            out.write(chunk)
        except OSError as exc:
            msg = f"{part} cannot be written: {exc.strerror}. Free some space, or set UFR_CACHE to another folder."
            raise OutputError(msg) from exc
        received += len(chunk)
        advance(len(chunk))
    return received


def _chunks(answer: Any) -> Iterator[bytes]:
    """What comes, piece by piece; raises a ConnectionError after the last piece of an answer that is cut."""
    while True:
        try:
            chunk = answer.read1(_CHUNK)  # read() would lose what came of the piece that is cut
        except http.client.IncompleteRead as exc:
            yield exc.partial
            msg = "the answer ended before its end"
            raise ConnectionError(msg) from exc
        if not chunk:
            return
        yield chunk


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        msg = (
            f"{part.parent} has {free / 1e6:,.0f} MB free; {needed / 1e6:,.0f} MB more are needed for {part.stem}. "
            "Free some space, or set UFR_CACHE to another folder."
        )
        raise OutputError(msg)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _throw_away(part: Path) -> None:
    part.unlink()
    _etag_file(part).unlink(missing_ok=True)


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _read_etag(part: Path) -> str:
    path = _etag_file(part)
    etag = path.read_text(encoding="utf-8") if path.exists() else ""
    return "" if etag.startswith("W/") else etag  # If-Range takes no weak ones


@contextmanager
def _alone(lock: Path, target: Path) -> Iterator[None]:
    """Keep a second process from writing the same part; where the system has no such lock, go on without."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            msg = f"{target.name} is being fetched by another process. Wait for it, then run the command again."
            raise OutputError(msg) from exc
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
