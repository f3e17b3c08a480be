"""H.264 files through PyAV: time stamps, colour tags and sound of the source kept."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ufr_edge.errors import ConfigError, OutputError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.video.reader import EXACT
from ufr_edge.runtime.video.source import CopiedPacket, SourceFrame, VideoInfo

VIDEO_SUFFIXES = frozenset({".m4v", ".mkv", ".mov", ".mp4"})
_BT709, _RGB = 1, 0


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """libx264: `crf` 0 (lossless) to 51, lower is better; `preset` trades time for size.

    extra: further encoder options, such as (("tune", "zerolatency"),).
    """

    crf: int = 18
    preset: str = "veryfast"
    threads: int | None = None
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.crf <= 51:
            msg = f"crf must be 0 (best) to 51 (smallest), not {self.crf}."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class Muxing:
    """Where to write when it is no file of a known suffix: FFmpeg's muxer (None: by suffix) and its options.

    timeout_s: for opening and for each write; None waits.
    """

    muxer: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    timeout_s: float | None = None


class VideoWriter:
    """Writes frames in order, and packets of other streams as they are."""

    def __init__(
        self,
        path: Path | str,
        info: VideoInfo,
        *,
        size: tuple[int, int],
        copied: dict[int, Any] | None = None,
        config: EncodeConfig | None = None,
        muxing: Muxing | None = None,
    ) -> None:
        """Start a file for frames of `size` = (width, height), made even by repeating the last line.

        copied: streams of the source to copy. muxing: for an address, or a container's own options.
        Raises OutputError when the container cannot hold them.
        """
        muxing = muxing or Muxing()
        suffix = Path(path).suffix.lower()
        if muxing.muxer is None and suffix not in VIDEO_SUFFIXES:
            msg = f"{path} is no video name this can write. End it with {', '.join(sorted(VIDEO_SUFFIXES))}."
            raise OutputError(msg)
        self._info, self._kind = info, muxing.muxer or suffix
        self._even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        with self._output_errors():
            self._container = av.open(
                str(path), "w", muxing.muxer, options=dict(muxing.options), timeout=muxing.timeout_s
            )
            self._stream = self._add_video(config or EncodeConfig())
            self._copied = {
                index: self._container.add_stream_from_template(stream)
                for index, stream in (copied or {}).items()
            }
            self._container.start_encoding()

    def write(self, frame: SourceFrame) -> None:
        """Encode one frame. Of a frame with `native`, only the touched boxes are converted from RGB."""
        coded = self._patched(frame) if self._fits(frame.native) else self._whole(frame.image)
        coded.pts, coded.time_base = frame.pts, self._info.time_base
        coded.pict_type = 0  # the encoder chooses, whatever the source had
        with self._output_errors():
            self._container.mux(self._stream.encode(coded))

    def copy(self, item: CopiedPacket) -> None:
        """Write a packet of a copied stream."""
        item.packet.stream = self._copied[item.stream]
        with self._output_errors():
            self._container.mux(item.packet)

    def finish(self) -> None:
        """Write what the encoder still holds, and the index."""
        with self._output_errors():
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def abort(self) -> None:
        """Close without caring for the file."""
        try:
            self._container.close()
        except (av.error.FFmpegError, OSError):
            return  # the file is thrown away

    def _add_video(self, config: EncodeConfig) -> Any:
        info = self._info
        options = {"crf": str(config.crf), "preset": config.preset, **dict(config.extra)}
        stream: Any = self._container.add_stream("libx264", rate=info.rate or Fraction(25), options=options)
        context = stream.codec_context
        stream.width, stream.height = self._even
        stream.pix_fmt = "yuv420p"
        context.time_base = stream.time_base = info.time_base
        context.thread_count = config.threads or 0
        if info.aspect:
            context.sample_aspect_ratio = info.aspect
        context.colorspace, context.color_range = self._space(), info.colour.range
        context.color_primaries, context.color_trc = info.colour.primaries, info.colour.transfer
        return stream

    def _space(self) -> int:
        return _BT709 if self._info.colour.space == _RGB else self._info.colour.space

    def _fits(self, native: Any) -> bool:
        return (
            native is not None
            and native.format.name in ("yuv420p", "yuvj420p")
            and (native.width, native.height) == self._even
        )

    def _whole(self, image: Frame) -> Any:
        right, below = self._even[0] - image.shape[1], self._even[1] - image.shape[0]
        if right or below:
            image = np.asarray(cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE))
        return self._from_rgb(image)

    def _patched(self, frame: SourceFrame) -> Any:
        if frame.touched:
            frame.native.make_writable()  # the decoder may still refer to its picture
        for x0, y0, x1, y1 in frame.touched:
            x0, y0, x1, y1 = x0 - x0 % 2, y0 - y0 % 2, x1 + x1 % 2, y1 + y1 % 2
            part = self._from_rgb(frame.image[y0:y1, x0:x1])
            for plane, fresh, shift in zip(frame.native.planes, part.planes, (0, 1, 1), strict=True):
                rows, columns = slice(y0 >> shift, y1 >> shift), slice(x0 >> shift, x1 >> shift)
                _pixels(plane)[rows, columns] = _pixels(fresh)[:, : (x1 - x0) >> shift]
        return frame.native

    def _from_rgb(self, image: Frame) -> Any:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        rgb.colorspace = self._space()
        return rgb.reformat(
            format="yuv420p",
            src_color_range=2,
            dst_color_range=self._info.colour.range or 1,
            interpolation=EXACT,
            threads=1,
        )

    @contextmanager
    def _output_errors(self) -> Iterator[None]:
        """The one border: FFmpeg's errors become OutputError, except those `atomic_file` words better."""
        try:
            yield
        except (av.error.FFmpegError, ValueError) as exc:
            if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
                raise
            msg = f"{self._kind} file cannot be written ({exc}). If it has unusual sound, choose .mkv."
            raise OutputError(msg) from exc


def _pixels(plane: Any) -> Frame:
    """A plane's rows as they lie in memory, padding included: uint8 (height, line size), not a copy."""
    return np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)
