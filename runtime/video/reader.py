"""Video files through PyAV: every frame once, upright, with its own time stamp."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, final

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from ufr_edge.errors import InputFileError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.video.planes import EXACT, Layout, converted, layout_of, turned
from ufr_edge.runtime.video.source import ColourTags, SourceFrame, VideoInfo

__all__ = ["EXACT", "JUMP_BACK", "VideoReader", "open_input", "picture_stream", "upright"]

_AGAIN = "Copy it again from where it came"
_MEND = f"{_AGAIN}, cut off the damage (ffmpeg -i IN -c copy OUT), or take what can be read of it: --partial"
_FALLBACK_RATE = Fraction(25)
JUMP_BACK = Fraction(1, 2)  # seconds: by less, time stamps are untidy; by more, another recording begins
_MARGIN = Fraction(1)  # seconds decoded before the first frame wanted: past the leading frames of an open GOP


@final
class VideoReader:
    """One video file. Frames come upright (display rotation applied), pixels as coded beside RGB."""

    def __init__(
        self, path: Path, *, threads: int | None = None, partial: bool = False, mend: str = _MEND
    ) -> None:
        """Open `path`. partial: a damaged file ends where it ends, and `notes` says so. mend: said of damage.

        Raises InputFileError when it is missing, no video, or has no picture stream.
        """
        if not path.is_file():
            msg = f"{path} does not exist or is no file. Check the path."
            raise InputFileError(msg)
        self._path, self._threads, self._partial, self._mend = path, threads, partial, mend
        with open_input(path) as probe:
            first = self._read_first(probe)
        self._decoded, self._sought, self._end = 0, False, Fraction(0)
        self._moved = 0
        self._container, self._stream = self._open()
        self._fresh = True
        self.steady = True
        """Whether no time stamp jumped back so far: else a later read cannot begin in the middle."""
        self._damage: list[str] = []
        self._layout, self.info = self._describe(first)
        self._peculiar = _peculiarities(first)

    def items(self, since: Fraction | None = None, *, seek: bool = True) -> Iterator[SourceFrame]:
        """Frames in order; see `VideoSource`. One pass at a time."""
        last: int | None = None
        self._decoded, self._moved, self._end = 0, 0, Fraction(0)
        for native in self._decode_from(since if seek else None):
            last = self._time_stamp(native, last)
            step = Fraction(native.duration or 0) * self.info.time_base
            self._end = max(self._end, last * self.info.time_base + step)
            if since is None or last * self.info.time_base >= since:
                yield self._hand_out(native, last)
            self._decoded += 1
        self._check_end(last)

    def notes(self) -> tuple[str, ...]:
        """What was read of a damaged file, and what of a frame its copy will not have."""
        return (*self._peculiar, *self._damage)

    def close(self) -> None:
        """Close the file; twice is fine."""
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> tuple[Any, Any]:
        container = open_input(self._path)
        stream = picture_stream(container, self._path)
        stream.thread_type = "AUTO"
        if self._threads is not None:
            stream.codec_context.thread_count = self._threads
        return container, stream

    def _decode_from(self, since: Fraction | None) -> Iterator[Any]:
        """Decoded frames from before `since` on; from the start of the file where seeking is not certain."""
        target = None if since is None else since - _MARGIN
        at_start, self._fresh, self._sought = self._fresh, False, False
        if target is not None and target > self.info.start:
            first = self._seek(target)
            if first is not None:
                yield first
                yield from self._demux()
                return
            at_start = False
        if not at_start:
            self.close()
            self._container, self._stream = self._open()
            self._sought = False
        yield from self._demux()

    def _seek(self, target: Fraction) -> Any:
        """The first frame after seeking; None unless its time proves that it is not too late."""
        try:
            self._container.seek(int(target / self.info.time_base), stream=self._stream)
            first = next(self._demux(), None)
        except (av.error.FFmpegError, InputFileError):
            return None
        self._sought = True
        if first is None or first.pts is None or first.pts * self.info.time_base > target:
            return None
        return first

    def _demux(self) -> Iterator[Any]:
        """Decoded frames. Third-party errors become InputFileError here."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as exc:
                self._damaged(exc)
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.error.FFmpegError as exc:
                self._damaged(exc)
                continue
            yield from frames

    def _damaged(self, exc: av.error.FFmpegError) -> None:
        what = f"{self._path} is damaged or cut short after {self._decoded} frames ({_reason(exc)})."
        if not self._partial:
            msg = f"{what} {self._mend}"
            raise InputFileError(msg) from exc
        if not self._damage:
            self._damage.append(f"{what} What could be decoded was taken.")

    def _hand_out(self, native: Any, pts: int) -> SourceFrame:
        shown = int(native.duration or 0)
        native = turned(converted(native, self._layout.name), native.rotation)
        if (native.width, native.height) != (self.info.width, self.info.height):
            msg = f"{self._path} changes its picture size at frame {self._decoded}. Cut it there into two files."
            raise InputFileError(msg)
        base = self.info.time_base
        image = _rgb(native)
        return SourceFrame(
            index=self._decoded, pts=pts, time_base=base, image=image, native=native, duration=shown
        )

    def _time_stamp(self, native: Any, last: int | None) -> int:
        step = max(1, round(1 / (self.info.rate or _FALLBACK_RATE) / self.info.time_base))
        if native.pts is None:
            self.steady = False
            return 0 if last is None else last + step
        when = int(native.pts) + self._moved
        if last is not None and (last - when) * self.info.time_base > JUMP_BACK:
            self._jumped(last + step - when)
            return last + step
        # A time stamp must grow; a file that repeats one still gets every frame written.
        return when if last is None else max(when, last + 1)

    def _jumped(self, by: int) -> None:
        """The clock was set back, as where two recordings meet: go on from the picture before."""
        if not self._moved:
            self._damage.append(
                f"Its time stamps jump back after frame {self._decoded}; the pictures go on where they were."
            )
        self.steady, self._moved = False, self._moved + by

    def _read_first(self, container: Any) -> Any:
        """Decode one frame to learn rotation and colours."""
        stream = picture_stream(container, self._path)
        try:
            first = next(container.decode(stream), None)
        except av.error.FFmpegError as exc:
            msg = f"{self._path}: no frame can be decoded ({_reason(exc)}). {self._mend}"
            raise InputFileError(msg) from exc
        if first is None:
            msg = f"{self._path}: no frame can be decoded. {self._mend}"
            raise InputFileError(msg)
        return first

    def _describe(self, first: Any) -> tuple[Layout, VideoInfo]:
        stream, context = self._stream, self._stream.codec_context
        sideways = first.rotation % 180 == 90
        width, height = (first.height, first.width) if sideways else (first.width, first.height)
        aspect = stream.sample_aspect_ratio or None
        layout = layout_of(first.format.name)
        uneven = layout.chroma == "420" and (width % 2 or height % 2)
        if (layout.chroma == "422" and sideways) or (uneven and first.rotation % 360):
            layout = replace(layout, chroma="444")  # chroma that is halved one way only cannot be turned
        colour = ColourTags(
            space=int(first.colorspace),
            range=2 if first.format.name.startswith("yuvj") else int(first.color_range),
            primaries=int(context.color_primaries or 2),
            transfer=int(context.color_trc or 2),
        )
        base = Fraction(stream.time_base)
        info = VideoInfo(
            name=self._path.name,
            width=width,
            height=height,
            rate=stream.average_rate or stream.guessed_rate,
            time_base=base,
            frames=stream.frames or None,
            colour=colour,
            aspect=1 / aspect if aspect and sideways else aspect,
            pix_fmt=layout.name,
            start=Fraction(stream.start_time or 0) * base,
            end=self._promised_end(base),
        )
        return layout, info

    def _check_end(self, last: int | None) -> None:
        """A file cut short may end without an error: compare with the length its header declares."""
        promised = self.info.end
        missing = self._sought or self.info.frames is None or self._decoded < self.info.frames
        slack = max(Fraction(1, 4), 3 / (self.info.rate or _FALLBACK_RATE))
        if last is None or (promised is not None and missing and self._end + slack < promised):
            wanted = "" if promised is None else f" of {float(promised):.2f} s"
            what = (
                f"{self._path} is cut short: {self._decoded} frames, {float(self._end):.2f} s{wanted}, "
                "could be read."
            )
            if not self._partial or last is None:
                msg = f"{what} {self._mend}"
                raise InputFileError(msg)
            self._damage.append(what)

    def _promised_end(self, base: Fraction) -> Fraction | None:
        stream = self._stream
        if stream.duration:
            return Fraction(stream.duration + (stream.start_time or 0)) * base
        if tag := stream.metadata.get("DURATION"):  # Matroska: 00:00:11.766000000
            return _clock_time(tag)
        if self._container.duration and not self._container.streams.audio:
            return Fraction(self._container.duration, av.time_base)
        return None


def open_input(path: Path) -> Any:
    """Open a media file with PyAV. Raises InputFileError."""
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError) as exc:
        what = "it is empty" if path.stat().st_size == 0 else _reason(exc)
        msg = f"{path} cannot be opened as a video ({what}). {_AGAIN}, or choose another file."
        raise InputFileError(msg) from exc


def picture_stream(container: Any, path: Path) -> Any:
    """The first stream of moving pictures; the cover of a song is none. Raises InputFileError."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    what = "only a cover picture" if container.streams.video else "no picture stream"
    sound = " beside its sound" if container.streams.audio else ""
    msg = f"{path} has {what}{sound}. Choose a video or picture file."
    raise InputFileError(msg)


def upright(image: Frame, rotation: int) -> Frame:
    """Turn a picture by `rotation` degrees counter-clockwise, the nearest multiple of 90."""
    turns = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _rgb(native: Any) -> Frame:
    # Colour matrix by the frame's own tags; one thread, as the pipeline's stages run side by side.
    return np.asarray(native.to_ndarray(format="rgb24", interpolation=EXACT, threads=1), dtype=np.uint8)


def _peculiarities(first: Any) -> tuple[str, ...]:
    layout, name = layout_of(first.format.name), first.format.name
    out = []
    if layout.alpha:
        out.append(f"Its transparency ({name}) is left out: video codecs hold none.")
    if layout.rgb:
        out.append(f"Its colours are stored as RGB ({name}); they are written as YUV 4:2:0.")
    if first.interlaced_frame:
        out.append("It is interlaced; its frames are written as they are, both fields in one.")
    if first.rotation % 90:
        out.append(f"It is tagged to be turned by {first.rotation} degrees: only multiples of 90 are kept.")
    if any(data.type is SideData.MASTERING_DISPLAY_METADATA for data in first.side_data):
        out.append("Its HDR mastering data are left out; its HDR colour tags are kept.")
    return tuple(out)


def _clock_time(text: str) -> Fraction | None:
    parts = text.split(":")
    if len(parts) != 3:
        return None
    try:
        hours, minutes, seconds = (Fraction(p) for p in parts)
    except ValueError:
        return None
    return hours * 3600 + minutes * 60 + seconds


def _reason(exc: BaseException) -> str:
    return getattr(exc, "strerror", None) or type(exc).__name__
