"""Video files and network streams through PyAV: time stamps and colour tags kept."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from ufr_edge.errors import OutputError
from ufr_edge.runtime.video.encoder import (
    CODECS,
    EncodeConfig,
    FrameCoder,
    coded_format,
    configure,
    encoder_options,
)
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo

__all__ = ["VIDEO_SUFFIXES", "EncodeConfig", "Muxing", "VideoWriter", "check_video_name", "output_errors"]

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EFBIG)
VIDEO_SUFFIXES = frozenset({".m4v", ".mkv", ".mov", ".mp4"})


@dataclass(frozen=True, kw_only=True)
class Muxing:
    """Where to write when it is no file of a known suffix: FFmpeg's muxer (None: by suffix) and its options.

    timeout_s: for opening and for each write; None waits.
    """

    muxer: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    timeout_s: float | None = None


class VideoWriter:
    """Writes frames in order as they come."""

    def __init__(
        self,
        path: Path | str,
        info: VideoInfo,
        *,
        size: tuple[int, int],
        config: EncodeConfig | None = None,
        muxing: Muxing | None = None,
    ) -> None:
        """Start a file for frames of `size` = (width, height), made even by repeating the last line.

        muxing: for an address, or a container's own options. Raises OutputError, ConfigError.
        """
        muxing, config = muxing or Muxing(), config or EncodeConfig()
        if muxing.muxer is None:
            check_video_name(Path(path))
        self._kind = muxing.muxer or Path(path).suffix.lower()
        pix_fmt = coded_format(info, config)
        self._coder = FrameCoder(info, size, pix_fmt)
        with output_errors(self._kind):
            self._container = av.open(
                str(path), "w", muxing.muxer, options=dict(muxing.options), timeout=muxing.timeout_s
            )
            self._stream = add_picture_stream(self._container, info, self._coder.size, config)
            self._container.start_encoding()

    def write(self, frame: SourceFrame) -> None:
        """Encode one frame. Of a frame with `native`, only the touched boxes are converted from RGB."""
        coded = self._coder.coded(frame)
        with output_errors(self._kind):
            self._container.mux(self._stream.encode(coded))

    def finish(self) -> None:
        """Write what the encoder still holds, and the index."""
        with output_errors(self._kind):
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def abort(self) -> None:
        """Close without caring for the file."""
        try:
            self._container.close()
        except (av.error.FFmpegError, OSError):
            return  # the file is thrown away


def check_video_name(path: Path) -> None:
    """Raise OutputError unless `path` ends as a video does that can be written."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        msg = f"{path} is no video name this can write. End it with {', '.join(sorted(VIDEO_SUFFIXES))}."
        raise OutputError(msg)


def add_picture_stream(container: Any, info: VideoInfo, size: tuple[int, int], config: EncodeConfig) -> Any:
    """The stream of pictures of a new file, with its encoder; size: (width, height) as coded."""
    codec, options = CODECS[config.codec], encoder_options(config)
    stream: Any = container.add_stream(codec, rate=info.rate or Fraction(25), options=options)
    configure(stream.codec_context, info, size, coded_format(info, config), config.threads)
    stream.time_base = info.time_base
    return stream


@contextmanager
def output_errors(kind: str) -> Iterator[None]:
    """The one border: FFmpeg's errors become OutputError, except those `atomic_file` words better."""
    try:
        yield
    except (av.error.FFmpegError, ValueError) as exc:
        if isinstance(exc, OSError) and exc.errno in _OF_THE_DISK:
            raise
        if not kind.startswith("."):  # a muxer's name: an address, not a file
            msg = f"{kind} stream cannot be written ({exc})."
        else:
            msg = f"{kind} file cannot be written ({exc}). If it has unusual sound, choose .mkv."
        raise OutputError(msg) from exc
