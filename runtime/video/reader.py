"""Video files through PyAV: every frame once, with its own time stamp."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, final

import av
import numpy as np
from av.video.reformatter import Interpolation

from ufr_edge.errors import InputFileError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.video.source import ColourTags, CopiedPacket, SourceFrame, SourceItem, VideoInfo

_MEND = "Copy it again from where it came, or cut off the damage: ffmpeg -i IN -c copy OUT"
_FALLBACK_RATE = Fraction(25)
EXACT = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
"""Conversion without swscale's shortcuts, which darken by one level in each round trip."""


@final
class VideoReader:
    """One video file. Frames come upright (display rotation applied), sound packets as they are."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Open `path`. Raises InputFileError when it is missing, no video, or has no picture stream."""
        if not path.is_file():
            msg = f"{path} does not exist or is no file. Check the path."
            raise InputFileError(msg)
        self._path = path
        # Opened twice: seeking back after the first frame would lose sound before time 0.
        with _open(path) as probe:
            first = self._read_first(probe)
        self._container = _open(path)
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        if threads is not None:
            self._stream.codec_context.thread_count = threads
        self.copied: dict[int, Any] = {s.index: s for s in self._container.streams.audio}
        self._decoded = 0
        self._end = Fraction(0)
        self.info = self._describe(first)

    def items(self) -> Iterator[SourceItem]:
        """Frames and sound packets in file order; see `VideoSource`. One pass per reader."""
        last: int | None = None
        for item in self._demux():
            if isinstance(item, CopiedPacket):
                yield item
                continue
            pts = self._time_stamp(item, last)
            yield self._hand_out(item, pts)
            last = pts
        self._check_end(last)

    def close(self) -> None:
        """Close the file; twice is fine."""
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _demux(self) -> Iterator[Any]:
        """Decoded frames and `CopiedPacket`s. Third-party errors become InputFileError here."""
        streams = [self._stream, *self.copied.values()]
        try:
            for packet in self._container.demux(*streams):
                if packet.stream.index in self.copied:
                    if packet.dts is not None:
                        yield CopiedPacket(stream=packet.stream.index, packet=packet)
                    continue
                yield from packet.decode()
        except av.error.FFmpegError as exc:
            msg = (
                f"{self._path} is damaged or cut short after {self._decoded} frames ({_reason(exc)}). {_MEND}"
            )
            raise InputFileError(msg) from exc

    def _hand_out(self, native: Any, pts: int) -> SourceFrame:
        rotation = native.rotation
        image = upright(_rgb(native), rotation)
        if image.shape[:2] != (self.info.height, self.info.width):
            msg = f"{self._path} changes its picture size at frame {self._decoded}. Cut it there into two files."
            raise InputFileError(msg)
        index, self._decoded = self._decoded, self._decoded + 1
        step = Fraction(native.duration or 0) * self.info.time_base
        self._end = max(self._end, pts * self.info.time_base + step)
        kept = native if rotation % 360 == 0 else None
        return SourceFrame(index=index, pts=pts, time_base=self.info.time_base, image=image, native=kept)

    def _time_stamp(self, native: Any, last: int | None) -> int:
        step = max(1, round(1 / (self.info.rate or _FALLBACK_RATE) / self.info.time_base))
        if native.pts is None:
            return 0 if last is None else last + step
        # A time stamp must grow; a file that repeats one still gets every frame written.
        return int(native.pts) if last is None else max(int(native.pts), last + 1)

    def _read_first(self, container: Any) -> Any:
        """Decode one frame to learn rotation and colours."""
        if not container.streams.video:
            msg = f"{self._path} has no picture stream. Choose a video or picture file."
            raise InputFileError(msg)
        try:
            first = next(container.decode(video=0), None)
        except av.error.FFmpegError as exc:
            msg = f"{self._path}: no frame can be decoded ({_reason(exc)}). {_MEND}"
            raise InputFileError(msg) from exc
        if first is None:
            msg = f"{self._path}: no frame can be decoded. {_MEND}"
            raise InputFileError(msg)
        return first

    def _describe(self, first: Any) -> VideoInfo:
        stream, context = self._stream, self._stream.codec_context
        turned = first.rotation % 180 == 90
        width, height = (first.height, first.width) if turned else (first.width, first.height)
        aspect = stream.sample_aspect_ratio or None
        colour = ColourTags(
            space=int(first.colorspace),
            range=int(first.color_range),
            primaries=int(context.color_primaries or 2),
            transfer=int(context.color_trc or 2),
        )
        return VideoInfo(
            name=self._path.name,
            width=width,
            height=height,
            rate=stream.average_rate or stream.guessed_rate,
            time_base=Fraction(stream.time_base),
            frames=stream.frames or None,
            colour=colour,
            aspect=1 / aspect if aspect and turned else aspect,
        )

    def _check_end(self, last: int | None) -> None:
        """A file cut short may end without an error: compare with the length its header declares."""
        promised = self._promised_end()
        missing = self.info.frames is None or self._decoded < self.info.frames
        slack = max(Fraction(1, 4), 3 / (self.info.rate or _FALLBACK_RATE))
        if last is None or (promised is not None and missing and self._end + slack < promised):
            wanted = "" if promised is None else f" of {float(promised):.2f} s"
            msg = (
                f"{self._path} is cut short: {self._decoded} frames, {float(self._end):.2f} s{wanted}, "
                f"could be read. {_MEND}"
            )
            raise InputFileError(msg)

    def _promised_end(self) -> Fraction | None:
        stream = self._stream
        if stream.duration:
            return Fraction(stream.duration + (stream.start_time or 0)) * self.info.time_base
        if tag := stream.metadata.get("DURATION"):  # Matroska: 00:00:11.766000000
            return _clock_time(tag)
        if self._container.duration and not self.copied:
            return Fraction(self._container.duration, av.time_base)
        return None


def _open(path: Path) -> Any:
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError) as exc:
        msg = f"{path} cannot be opened as a video ({_reason(exc)}). {_MEND}"
        raise InputFileError(msg) from exc


def upright(image: Frame, rotation: int) -> Frame:
    """Turn a picture by `rotation` degrees counter-clockwise, the nearest multiple of 90."""
    turns = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _rgb(native: Any) -> Frame:
    # Colour matrix by the frame's own tags; one thread, as the pipeline's stages run side by side.
    return np.asarray(native.to_ndarray(format="rgb24", interpolation=EXACT, threads=1), dtype=np.uint8)


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
