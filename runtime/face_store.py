"""A folder of recorded faces that survives a power cut: crops, and an index that is only appended to.

`index.jsonl` has one JSON object a line: a face (`seq`, `file`, `time`, ...), or `{"gone": FILE, "why": ...}`; it is
written anew, in one step, when most of its lines are of faces that are gone. A crop is written beside and renamed
before its line is written; `open_store` mends what a cut left between the two. Order is by `seq`, which only grows:
clocks jump. The folder is its owner's only (0700), the files too (0600).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ufr_edge.errors import InputFileError, OutputError
from ufr_edge.files import atomic_file, disk_errors, write_json
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import write_image
from ufr_edge.runtime.lock import file_lock

INDEX = "index.jsonl"
RECORD = "collect.json"
LOCK = ".lock"
DAY_S = 86400.0
_PRIVATE_DIR, _PRIVATE = 0o700, 0o600
_CROP = re.compile(r"\d{6,}\.png")
_BESIDE = re.compile(
    rf"\.(\d{{6,}}|{re.escape(Path(INDEX).stem)}|{re.escape(Path(RECORD).stem)})\..*\.(png|jsonl|json)"
)
_PNG_END = b"IEND\xaeB`\x82"
_SYNC_S = 1.0
_FEW_GONE = 100  # lines of gone faces that are never worth a new index


@dataclass(frozen=True, kw_only=True)
class FaceRow:
    """A face of the folder. time: seconds since 1970 by the clock of the device. track: whose face, None: unknown.

    look: yaw, pitch, size and brightness, each in units of a difference that matters. rest: all else of its line.
    """

    seq: int
    file: str
    time: float
    track: str | None = None
    size: int = 0
    look: tuple[float, ...] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The line of the index."""
        own = {"seq": self.seq, "file": self.file, "time": round(self.time, 3), "track": self.track}
        return own | {"size": self.size, "look": [round(v, 3) for v in self.look]} | dict(self.rest)

    @classmethod
    def from_json(cls, value: Any) -> FaceRow | None:
        """Read a line; None when it is no face of ours."""
        if not isinstance(value, dict) or not _CROP.fullmatch(str(value.get("file"))):
            return None
        known = {"seq", "file", "time", "track", "size", "look"}
        try:
            return cls(
                seq=int(value.get("seq", Path(value["file"]).stem)),
                file=value["file"],
                time=float(value.get("time", 0.0)),
                track=None if value.get("track") is None else str(value["track"]),
                size=int(value.get("size", 0)),
                look=tuple(float(v) for v in value.get("look", ())),
                rest={k: v for k, v in value.items() if k not in known},
            )
        except (TypeError, ValueError):
            return None


class FaceStore:
    """An open folder of faces: `rows` by seq. One process at a time, one thread. Made by `open_store`."""

    def __init__(
        self, folder: Path, rows: Iterable[FaceRow], *, top: int, gone: int, notes: tuple[str, ...]
    ) -> None:
        self.folder, self.notes, self._gone = folder, notes, gone
        self._index = _private_append(folder / INDEX)
        self._index_size = (folder / INDEX).stat().st_size
        self.rows: dict[int, FaceRow] = {row.seq: row for row in rows}
        self._waste = self._index_size - sum(len(_line(row)) for row in self.rows.values())
        self._next: int = max([top, *self.rows]) + 1
        self._unsynced: list[Path] = []
        self._dirty = True  # an earlier process may have been killed before it came to it
        self._synced = time.monotonic()

    @property
    def size(self) -> int:
        """Bytes of the crops, and of the index."""
        return sum(row.size for row in self.rows.values()) + self._index_size

    @property
    def index_size(self) -> int:
        """Bytes of the index."""
        return self._index_size

    @property
    def waste(self) -> int:
        """Bytes of the index that say nothing of a face that is there; `compact` gives them back."""
        return self._waste

    @property
    def next_seq(self) -> int:
        """The number the next face gets: above every number the folder ever gave."""
        return self._next

    def add(
        self, crop: Frame, *, track: str | None, look: tuple[float, ...], at: float, rest: Mapping[str, Any]
    ) -> FaceRow:
        """Write a crop, then its line. Raises OutputError (disk full)."""
        seq = self._next
        path = self.folder / f"{seq:08d}.png"
        write_image(path, crop, mode=_PRIVATE)
        row = FaceRow(
            seq=seq, file=path.name, time=at, track=track, size=path.stat().st_size, look=look, rest=rest
        )
        self._append(_line(row))
        self._next, self.rows[seq] = seq + 1, row
        self._unsynced.append(path)
        self.keep_up()
        return row

    def drop(self, row: FaceRow, why: str) -> None:
        """Remove a face: its crop first, so that no cut leaves a picture behind that is believed gone."""
        (self.folder / row.file).unlink(missing_ok=True)
        gone = json.dumps({"gone": row.file, "seq": row.seq, "why": why}) + "\n"
        self._append(gone)
        self.rows.pop(row.seq, None)
        self._waste += len(_line(row)) + len(gone)
        self._gone += 1
        if self._gone > max(_FEW_GONE, 2 * len(self.rows)):
            self.compact()

    def expire(self, older_than_s: float, *, now: float) -> int:
        """Drop faces older than this; returns how many."""
        old = expired(self.rows.values(), older_than_s, now=now)
        for row in old:
            self.drop(row, "too old")
        return len(old)

    def keep_up(self) -> None:
        """`sync`, at most once a second. Raises OutputError."""
        if time.monotonic() - self._synced >= _SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Make what was written survive a power cut; nothing where nothing was. Raises OutputError."""
        if not self._dirty:
            return
        with disk_errors(self.folder):
            for path in self._unsynced:
                if path.exists():
                    _sync(path)
            self._index.flush()
            os.fsync(self._index.fileno())
            _sync(self.folder)
        self._unsynced.clear()
        self._dirty, self._synced = False, time.monotonic()

    def close(self) -> None:
        """Make it survive a power cut, and close the index. Raises OutputError."""
        try:
            self.sync()
        finally:
            with disk_errors(self.folder / INDEX):
                self._index.close()

    def _append(self, line: str) -> None:
        self._dirty = True
        with disk_errors(self.folder / INDEX):
            self._index.write(line)
            self._index.flush()
        self._index_size += len(line)

    def compact(self) -> None:
        """Write the index anew, without the lines of faces that are gone; where the disk is too full, later."""
        path = self.folder / INDEX
        try:
            _rewrite(path, self.rows.values(), self._next - 1)
        except OSError:
            return
        before, self._index = self._index, _private_append(path)
        with suppress(OSError):  # all it may still have to write is in the new one
            before.close()
        self._gone = self._waste = 0
        self._index_size = path.stat().st_size


@contextmanager
def open_store(folder: Path, *, record: Mapping[str, Any] | None = None) -> Iterator[FaceStore]:
    """Open or make a folder of faces, mended. record: settings, written into collect.json.

    Raises OutputError when it holds other files, is in use by another process, or cannot be written.
    """
    check_ours(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_DIR)
        folder.chmod(_PRIVATE_DIR)
    with file_lock(folder / LOCK, timeout_s=0.0):
        rows, top, gone, notes = _mended(folder)
        if record is not None:
            write_json(folder / RECORD, record, mode=_PRIVATE)
        with disk_errors(folder / INDEX):
            store = FaceStore(folder, rows, top=top, gone=gone, notes=notes)
        try:
            yield store
        finally:
            store.close()


def read_rows(folder: Path) -> list[FaceRow]:
    """The faces of a folder by seq, as its index says; nothing is mended. Raises InputFileError without an index."""
    path = folder / INDEX
    if not path.is_file():
        msg = f"{folder} has no {INDEX}: it is no folder of collected faces. Make one with: ufr-edge collect"
        raise InputFileError(msg)
    return _read_index(path)[0]


def expired(rows: Iterable[FaceRow], older_than_s: float, *, now: float) -> list[FaceRow]:
    """Faces older than this. A time later than that of a later face, or than now, is a clock that jumped: the
    face is taken to be as old as that later one.
    """
    out: list[FaceRow] = []
    latest = now
    for row in sorted(rows, key=lambda row: -row.seq):
        latest = min(latest, row.time)
        if now - latest > older_than_s:
            out.append(row)
    return out[::-1]


def purge(
    folder: Path, *, older_than_s: float | None = None, now: Callable[[], float] = time.time
) -> tuple[int, int]:
    """Remove the faces older than this, or all with the index; returns how many went and stayed.

    Files that are not of ours stay, and so does the folder then. Raises InputFileError, OutputError (in use).
    """
    read_rows(folder)
    with open_store(folder) as store:
        rows = list(store.rows.values())
        gone = rows if older_than_s is None else expired(rows, older_than_s, now=now())
        for row in gone:
            store.drop(row, "purged")
    if older_than_s is None:
        for name in (INDEX, RECORD, LOCK):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return len(gone), len(rows) - len(gone)


def check_ours(folder: Path) -> None:
    """Raise OutputError when the folder holds something and no index of ours."""
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is no folder. Choose another output."
        raise OutputError(msg)
    # A cut may have come before the first line; then there is but the lock.
    if folder.is_dir() and not (folder / INDEX).is_file() and any(p.name != LOCK for p in folder.iterdir()):
        msg = f"{folder} holds files but no {INDEX}: faces are not recorded into it. Choose another folder."
        raise OutputError(msg)


def _mended(folder: Path) -> tuple[list[FaceRow], int, int, tuple[str, ...]]:
    """Make crops and index agree: the faces, the highest number ever given, how many lines say that a face is gone,
    and what could not be saved.
    """
    rows, spoilt, gone, top = _read_index(folder / INDEX) if (folder / INDEX).is_file() else ([], 0, 0, -1)
    for path in folder.iterdir():
        if _BESIDE.fullmatch(path.name):
            path.unlink()
    crops = {p.name: p for p in folder.iterdir() if _CROP.fullmatch(p.name) and not p.is_symlink()}
    broken = {name for name, path in crops.items() if not _is_whole(path)}
    for name in broken:
        crops.pop(name).unlink()
    kept = [row for row in rows if row.file in crops]
    known = {row.file for row in kept}
    found = [_recovered(path) for name, path in sorted(crops.items()) if name not in known]
    lost = len(rows) - len(kept)
    kept = sorted([*kept, *found], key=lambda row: row.seq)
    if lost or found or spoilt or gone > len(kept):
        _rewrite(folder / INDEX, kept, top)
        gone = 0
    said = (
        (lost, "without its crop, left out"),
        (len(found), "without its line, kept"),
        (spoilt, "damaged line, left out"),
    )
    return kept, top, gone, tuple(f"{count} x {what}" for count, what in said if count)


def _read_index(path: Path) -> tuple[list[FaceRow], int, int, int]:
    """Faces by seq; and how many lines were damaged, how many say that a face is gone, and the highest number given."""
    rows: dict[str, FaceRow] = {}
    spoilt = gone = 0
    top = -1
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            spoilt += 1
            continue
        if isinstance(value, dict) and isinstance(value.get("seq"), int):
            top = max(top, value["seq"])
        if isinstance(value, dict) and "gone" in value:
            gone += 1
            rows.pop(str(value["gone"]), None)
        elif (row := FaceRow.from_json(value)) is not None:
            rows[row.file] = row
        else:
            spoilt += 1
    return sorted(rows.values(), key=lambda row: row.seq), spoilt, gone, top


def _recovered(path: Path) -> FaceRow:
    """A crop whose line was cut off: its time is that of the file, whose face it is nobody knows."""
    about = path.stat()
    return FaceRow(
        seq=int(path.stem), file=path.name, time=about.st_mtime, size=about.st_size, rest={"recovered": True}
    )


def _line(row: FaceRow) -> str:
    return json.dumps(row.to_json()) + "\n"


def _is_whole(path: Path) -> bool:
    """Whether a PNG ends as one does: a cut leaves it short or empty."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_PNG_END)))
        return file.read() == _PNG_END


def _rewrite(path: Path, rows: Iterable[FaceRow], top: int) -> None:
    """Write the index anew; the highest number ever given is kept, so that none is given twice."""
    with atomic_file(path, mode=_PRIVATE) as beside, beside.open("w", encoding="utf-8") as file:
        highest = -1
        for row in rows:
            file.write(_line(row))
            highest = max(highest, row.seq)
        if top > highest:
            file.write(json.dumps({"gone": f"{top:08d}.png", "seq": top, "why": "mended"}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _private_append(path: Path) -> TextIO:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _PRIVATE)
    path.chmod(_PRIVATE)
    return os.fdopen(handle, "a", encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
