"""A stretch of coded pictures on disk: packets with their exact times, whole or not there at all.

A part is a file of our own rather than a small video: containers round time stamps (Matroska to a millisecond)
or shift them (MP4), and the parts of one film must fit each other to the tick.
"""

from __future__ import annotations

import heapq
import json
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, final

import av

from ufr_edge.errors import InputFileError
from ufr_edge.files import disk_errors

_MAGIC = b"UFRPART1"
_PACKET = struct.Struct("<qqqIB")  # pts, dts, duration, bytes, key frame
_TAIL = struct.Struct("<I8s")


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What a finished part holds. header: the encoder's, hex. reorder: most packets that any one overtakes.

    left_alone: faces not restored, by reason. steady: see `VideoReader.steady`.
    """

    header: str = ""
    frames: int = 0
    faces: int = 0
    faceless: int = 0
    left_alone: dict[str, int] = field(default_factory=dict)
    reorder: int = 0
    steady: bool = True


@final
class PartWriter:
    """Collects packets beside `path`; only `finish` makes the part. To be used as a context."""

    def __init__(self, path: Path) -> None:
        """Raises OutputError."""
        self._path, self._beside = path, path.with_suffix(f".{os.getpid()}.tmp")
        self._times: list[int] = []
        with disk_errors(path):
            self._file: BinaryIO = self._beside.open("wb")
            self._file.write(_MAGIC)

    def add(self, packets: Iterable[Any]) -> None:
        """Write packets of the encoder, in coding order."""
        with disk_errors(self._path):
            for packet in packets:
                data = bytes(packet)
                self._times.append(packet.pts)
                row = (packet.pts, packet.dts or 0, packet.duration or 0, len(data), packet.is_keyframe)
                self._file.write(_PACKET.pack(*row))
                self._file.write(data)

    def finish(self, record: dict[str, Any]) -> PartRecord:
        """Write the record (`PartRecord`, less what is counted here) and put the part in its place."""
        done = PartRecord(**record, frames=len(self._times), reorder=_reorder(self._times))
        tail = json.dumps(asdict(done)).encode()
        with disk_errors(self._path):
            self._file.write(tail + _TAIL.pack(len(tail), _MAGIC))
            self._file.flush()
            os.fsync(self._file.fileno())  # a part that is there is whole, even after a power cut
            self._file.close()
            self._beside.replace(self._path)
        return done

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(
            OSError
        ):  # a full disk: what is buffered cannot be written now either, and nobody wants it
            self._file.close()
        self._beside.unlink(missing_ok=True)


def read_record(path: Path) -> PartRecord:
    """What the part holds. Raises InputFileError when it is none, or damaged."""
    try:
        with path.open("rb") as file:
            file.seek(-_TAIL.size, os.SEEK_END)
            size, magic = _TAIL.unpack(file.read(_TAIL.size))
            file.seek(-_TAIL.size - size, os.SEEK_END)
            record = PartRecord(**json.loads(file.read(size))) if magic == _MAGIC else None
    except (OSError, ValueError, TypeError, struct.error):
        record = None
    if record is None:
        msg = f"{path} is no finished part. Delete its folder and run the command again."
        raise InputFileError(msg)
    return record


def read_packets(path: Path, count: int, time_base: Fraction) -> Iterator[Any]:
    """The `count` packets of a part, in coding order. Raises InputFileError when it is damaged."""
    with path.open("rb") as file:
        file.seek(len(_MAGIC))
        for _ in range(count):
            head = file.read(_PACKET.size)
            data = file.read(_PACKET.unpack(head)[3]) if len(head) == _PACKET.size else b""
            if not data:
                msg = f"{path} is damaged. Delete its folder and run the command again."
                raise InputFileError(msg)
            pts, dts, duration, _, key = _PACKET.unpack(head)
            packet = av.Packet(data)
            packet.pts, packet.dts, packet.duration = pts, dts, duration or None
            packet.time_base, packet.is_keyframe = time_base, bool(key)
            yield packet


def coding_times(packets: Iterable[Any], *, reorder: int, step: int) -> Iterator[Any]:
    """Give packets of parts that follow each other one line of growing decoding times.

    Each encoder began anew, so that their own would overlap at the joints. The i-th packet is decoded when the
    (i - reorder)-th picture is shown: no later than it is shown itself. step: a frame's, for those before.
    """
    shown: list[int] = []
    held, end = None, 0
    for number, packet in enumerate(packets):
        if held is not None:
            yield held
        held, end = packet, max(end, packet.pts + (packet.duration or 0))
        heapq.heappush(shown, packet.pts)
        if number < reorder:
            packet.dts = shown[0] - (reorder - number) * step
        else:
            packet.dts = heapq.heappop(shown)
    if held is not None:
        # MP4 knows no length of a picture but the time to the next one decoded: where the last one shown stands
        # for long, the last one decoded has to.
        stands = end - held.pts > (reorder + 2) * step
        held.duration = max(held.duration or 0, end - held.pts) if stands else held.duration
        yield held


def _reorder(times: list[int]) -> int:
    """How many packets at most come, in coding order, before one that is shown before them."""
    most, earlier = 0, list[int]()
    for time in times:
        most = max(most, sum(other > time for other in earlier[-32:]))
        earlier.append(time)
    return most
