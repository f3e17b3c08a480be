"""The finished film: coded pictures of the parts, and every other track of the source as it is."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from ufr_edge.errors import InputFileError, OutputError
from ufr_edge.runtime.video.encoder import EncodeConfig
from ufr_edge.runtime.video.parts import PartRecord, coding_times, read_packets
from ufr_edge.runtime.video.reader import JUMP_BACK, open_input, picture_stream
from ufr_edge.runtime.video.source import VideoInfo
from ufr_edge.runtime.video.writer import add_picture_stream, output_errors

_COPIED = ("audio", "subtitle", "attachment")
_WRITTEN_BY_MUXER = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder", "DURATION"})


@dataclass(frozen=True, kw_only=True)
class Film:
    """What is joined. parts: their files and records, in order. size: (width, height) as coded.

    source: the file whose `tracks` are copied, None for none. partial: it may be damaged.
    """

    parts: Sequence[tuple[Path, PartRecord]]
    info: VideoInfo
    size: tuple[int, int]
    encode: EncodeConfig
    source: Path | None
    tracks: tuple[int, ...] = ()
    partial: bool = False


def join(film: Film, out: Path) -> None:
    """Write the film to `out`. Raises InputFileError, OutputError."""
    kind = out.suffix.lower()
    with ExitStack() as stack:
        source = None if film.source is None else stack.enter_context(closing(open_input(film.source)))
        with output_errors(kind):
            target: Any = stack.enter_context(_written(out))
            pictures = add_picture_stream(target, film.info, film.size, film.encode)
            copied = {} if source is None else _copy_tracks(source, film.tracks, target)
            target.start_encoding()
        _check_headers(film, bytes(pictures.codec_context.extradata or b""))
        written = 0
        for packet, stream in _interleaved(film, source, copied, pictures):
            packet.stream = stream
            written += stream is pictures
            with output_errors(kind):
                target.mux(packet)
        with output_errors(kind):
            target.close()
    if written != (wanted := sum(record.frames for _, record in film.parts)):
        msg = f"{written} frames were joined, {wanted} restored. Delete the folder of parts and run again."
        raise OutputError(msg)


@contextmanager
def _written(out: Path) -> Iterator[Any]:
    """A new media file, to be closed by the caller; after an error it is closed whatever state it is in."""
    target = av.open(str(out), "w")
    try:
        yield target
    except BaseException:
        with suppress(av.error.FFmpegError, OSError, ValueError):  # thrown away; the first error says why
            target.close()
        raise


def fitting_tracks(source: Path, probe: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Indices of the tracks beside the pictures that a file named as `probe` takes, and notes on the others.

    Found by trying each in a file `probe`, which is not kept: before hours of work rather than after. All sound is
    taken, or OutputError names the track.
    """
    fitting, notes = list[int](), list[str]()
    kind = probe.suffix.lower()
    with closing(open_input(source)) as opened:
        picture = picture_stream(opened, source)
        for stream in opened.streams:
            if stream.index == picture.index:
                continue
            if stream.type in _COPIED and _fits(stream, probe):
                fitting.append(stream.index)
                continue
            if stream.type == "audio":
                msg = f"{_track(stream)} cannot go into a {kind} file. Choose .mkv."
                raise OutputError(msg)
            notes.append(_left_out(stream, kind))
    return tuple(fitting), tuple(notes)


def _left_out(stream: Any, kind: str) -> str:
    if stream.type in _COPIED:
        mend = " Choose .mkv to keep it." if kind != ".mkv" and stream.type != "attachment" else ""
        return f"{_track(stream)} is left out: a {kind} file does not take it.{mend}"
    return f"{_track(stream)} is left out: only sound, subtitles and attachments are copied."


def _fits(stream: Any, probe: Path) -> bool:
    try:
        with closing(av.open(str(probe), "w")) as target:
            target.add_stream_from_template(stream)
            target.start_encoding()
    except (av.error.FFmpegError, ValueError, TypeError, NotImplementedError):
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True


def _copy_tracks(source: Any, indices: Iterable[int], target: Any) -> dict[int, Any]:
    """New streams by the source's index."""
    copied = {}
    for index in indices:
        stream = source.streams[index]
        new = target.add_stream_from_template(stream)
        new.metadata.update(_plain(stream.metadata))
        new.disposition = stream.disposition
        copied[index] = new
    target.metadata.update(_plain(source.metadata))
    if chapters := source.chapters():
        target.set_chapters(chapters)
    return copied


def _plain(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key not in _WRITTEN_BY_MUXER}


def _track(stream: Any) -> str:
    context = getattr(stream, "codec_context", None)
    codec = context.name if context is not None else "unknown"
    language = f", {stream.metadata['language']}" if stream.metadata.get("language") else ""
    return f"Track {stream.index} ({stream.type}, {codec}{language})"


def _check_headers(film: Film, header: bytes) -> None:
    if any(record.header != header.hex() for _, record in film.parts if record.frames):
        msg = (
            "The finished parts were coded by another encoder. Delete their folder and run the command again."
        )
        raise OutputError(msg)


def _interleaved(film: Film, source: Any, copied: dict[int, Any], pictures: Any) -> Iterator[tuple[Any, Any]]:
    """(packet, its stream), by decoding time; one packet of each at a time is held."""
    base = film.info.time_base
    step = max(1, round(1 / (film.info.rate or Fraction(25)) / base))
    parts = (p for path, record in film.parts for p in read_packets(path, record.frames, base))
    reorder = max((record.reorder for _, record in film.parts), default=0)
    coded = ((packet, pictures) for packet in coding_times(parts, reorder=reorder, step=step))
    if not copied:
        yield from coded
        return
    other = ((packet, copied[packet.stream.index]) for packet in _packets(film, source, copied))
    yield from heapq.merge(coded, other, key=lambda pair: pair[0].dts * pair[0].time_base)


class _Clock:
    """The time of one track: where it jumps back, as where two recordings meet, it goes on, as the pictures do.

    moves: seconds of every such jump, shared by all tracks: the first that jumps says by how much.
    """

    def __init__(self, moves: list[Fraction]) -> None:
        self._moves, self._jumps = moves, 0
        self._last: tuple[int, int] | None = None  # dts as in the source, duration

    def moved(self, packet: Any) -> Any:
        """The packet, its time put behind that of those before."""
        base, dts = packet.time_base, packet.dts
        if self._last is not None and (self._last[0] - dts) * base > JUMP_BACK:
            if self._jumps == len(self._moves):
                self._moves.append((sum(self._last) - dts) * base)
            self._jumps += 1
        self._last = dts, packet.duration or 0
        if by := round(sum(self._moves[: self._jumps], Fraction(0)) / base):
            packet.dts, packet.pts = dts + by, None if packet.pts is None else packet.pts + by
        return packet


def _packets(film: Film, source: Any, copied: Iterable[int]) -> Iterator[Any]:
    moves = list[Fraction]()
    clocks = {index: _Clock(moves) for index in copied}
    try:
        for packet in source.demux([source.streams[index] for index in copied]):
            if packet.dts is not None:
                yield clocks[packet.stream.index].moved(packet)
    except av.error.FFmpegError as exc:
        if film.partial:
            return
        msg = f"{film.source}: its sound or subtitles are damaged ({exc.strerror}). --partial takes what can be read."
        raise InputFileError(msg) from exc
