"""Where restored frames go. A sink lives in one thread: opened, written to and closed there."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from ufr_edge.errors import BackendUnavailableError, ConfigError, OutputError, UfrEdgeError
from ufr_edge.files import check_free
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import write_image
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.ladder import Step
from ufr_edge.runtime.live.loopback import LoopbackSink
from ufr_edge.runtime.live.network_sink import NetworkSink
from ufr_edge.runtime.live.sources import Backoff
from ufr_edge.runtime.live.stats import LiveStats, TrackView
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo
from ufr_edge.runtime.video.uri import Uri
from ufr_edge.runtime.video.writer import VIDEO_SUFFIXES, EncodeConfig, Muxing, VideoWriter

_TIMEOUT_S = 5.0
LIVE_ENCODE = EncodeConfig(crf=23, preset="superfast", extra=(("tune", "zerolatency"), ("g", "60")))
_FRAGMENTS = (("movflags", "frag_keyframe+empty_moov+default_base_moof"), ("frag_duration", "1000000"))
PACED_KINDS = frozenset({"display", "http", "net", "device"})
"""Sinks that people watch as it happens: a file is played into them at its own speed."""


class SinkClosedError(UfrEdgeError, BrokenPipeError):
    """Who watched has closed the window: the stream ends, and nothing is wrong."""


@dataclass(frozen=True, kw_only=True)
class LiveFrame:
    """A frame at the sink.

    frame: the restored picture with its time stamp; `frame.captured` is when it was taken. original: the
    same before. tracks: its faces. step: the ladder's, when it was restored.
    """

    frame: SourceFrame
    original: Frame
    tracks: tuple[TrackView, ...] = ()
    step: Step = Step.FULL


@dataclass(frozen=True, kw_only=True)
class SinkContext:
    """What a sink may know: the video it will get, and the stream's numbers and events at any moment.

    stop: set once the stream is to end; a sink that waits for a connection gives up then.
    """

    info: VideoInfo
    stats: Callable[[], LiveStats]
    events: EventLog
    stop: threading.Event = field(default_factory=threading.Event)


class Sink(Protocol):
    """Takes frames in order, in one thread. `write` may wait for as long as its own work takes."""

    @property
    def name(self) -> str:
        """For messages; credentials hidden."""

    def open(self, context: SinkContext) -> None:
        """Get ready. Raises OutputError, BackendUnavailableError."""

    def write(self, frame: LiveFrame) -> None:
        """Take a frame. Raises OutputError when the sink is dead, SinkClosedError when it was closed."""

    def close(self) -> None:
        """Finish what was written, so that it can be played; twice is fine. Raises OutputError."""


@dataclass(frozen=True, kw_only=True)
class SinkConfig:
    """overwrite: replace a file that exists. encode: for a file or network sink. timeout_s: of a network.

    backoff: of a network sink that breaks. token: of the live page.
    """

    overwrite: bool = False
    encode: EncodeConfig = field(default_factory=lambda: LIVE_ENCODE)
    timeout_s: float = _TIMEOUT_S
    backoff: Backoff = field(default_factory=Backoff)
    token: str | None = field(default=None, repr=False)


def open_sink(uri: Uri, config: SinkConfig | None = None) -> Sink:
    """The sink of an address; it opens later, in its thread. Raises ConfigError, OutputError (it exists),
    BackendUnavailableError (no display, no page).
    """
    config = config or SinkConfig()
    makers: dict[str, Callable[[], Sink]] = {
        "path": lambda: _path_sink(uri, config),
        "net": lambda: _net_sink(uri, config),
        "null": NullSink,
        "display": lambda: DisplaySink(uri),
        "device": lambda: LoopbackSink(uri),
        "http": lambda: _page(uri, config),
    }
    if uri.kind not in makers:
        msg = (
            f"{uri.masked} is no sink. Give a video file, a folder, display://, http://HOST:PORT, "
            "v4l2:///dev/video9, rtsp://, udp:// or null://"
        )
        raise ConfigError(msg)
    return makers[uri.kind]()


class NullSink:
    """Takes frames and keeps none."""

    name = "null://"

    def open(self, context: SinkContext) -> None:
        """Nothing to do."""

    def write(self, frame: LiveFrame) -> None:
        """Forget the frame."""

    def close(self) -> None:
        """Nothing to do."""


class VideoSink:
    """A video file, or a network address. A file can be played to the last second whenever it is cut off."""

    def __init__(self, uri: Uri, config: SinkConfig, *, muxing: Muxing) -> None:
        self._uri, self._config, self._muxing = uri, config, muxing
        self.name = uri.masked
        self._writer: VideoWriter | None = None
        self._info: VideoInfo | None = None

    def open(self, context: SinkContext) -> None:
        """Start the file or connect."""
        info = context.info
        if self._uri.kind == "path":
            self._translate(lambda: self._uri.path.parent.mkdir(parents=True, exist_ok=True))
        target = self._uri.path if self._uri.kind == "path" else self._uri.target
        self._info = info
        self._writer = self._translate(
            lambda: VideoWriter(
                target, info, size=(info.width, info.height), config=self._config.encode, muxing=self._muxing
            )
        )

    def write(self, frame: LiveFrame) -> None:
        """Encode and write; a picture of another size is fitted into the first one's."""
        writer, info = self._writer, self._info
        if writer is None or info is None:
            msg = f"{self.name} is not open. Call open() first."
            raise OutputError(msg)
        item = fitted(frame.frame, (info.width, info.height))
        self._translate(lambda: writer.write(item))

    def close(self) -> None:
        """Write what the encoder holds, and the file's end."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            self._translate(writer.finish)
        except OutputError:
            writer.abort()
            raise

    def _translate(self, act: Callable[[], Any]) -> Any:
        # `from None`: FFmpeg's own message may hold the password of the address.
        try:
            return act()
        except (OSError, ValueError) as exc:  # OutputError too: its text may quote the address
            what = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            tail = " What was written until then is kept." if self._uri.kind == "path" else ""
            msg = f"{self.name} cannot be written: {self._uri.hide(str(what)).rstrip('.')}.{tail}"
            raise OutputError(msg) from None


class FolderSink:
    """A folder of pictures `00000000.png`, ... by frame number."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = str(folder), folder

    def open(self, context: SinkContext) -> None:
        """Nothing to do: the folder is made with its first picture."""

    def write(self, frame: LiveFrame) -> None:
        """Write one picture."""
        write_image(self._folder / f"{frame.frame.index:08d}.png", frame.frame.image)

    def close(self) -> None:
        """Nothing to do."""


class DisplaySink:
    """A window; q, Escape or its cross end the stream."""

    def __init__(self, uri: Uri) -> None:
        self.name, self._title = "display://", f"ufr-edge {uri.target}".strip()
        if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
            msg = (
                "display:// needs a screen, and there is none (DISPLAY is not set). Use http://127.0.0.1:8080"
            )
            raise BackendUnavailableError(msg)

    def open(self, context: SinkContext) -> None:
        """Open the window."""
        try:
            cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as exc:
            msg = (
                "display:// needs an OpenCV that has windows. Run: pip install opencv-python (not -headless)"
            )
            raise BackendUnavailableError(msg) from exc

    def write(self, frame: LiveFrame) -> None:
        """Show the picture."""
        cv2.imshow(self._title, cv2.cvtColor(frame.frame.image, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(1) & 0xFF
        if key in (27, ord("q")) or cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1:
            msg = "The window was closed."
            raise SinkClosedError(msg)

    def close(self) -> None:
        """Close the window."""
        try:
            cv2.destroyWindow(self._title)
        except cv2.error:
            return  # it is closed already


def fitted(frame: SourceFrame, size: tuple[int, int]) -> SourceFrame:
    """The frame at `size` = (width, height): scaled as a whole, with black bars; itself when it has that size."""
    height, width = frame.image.shape[:2]
    if (width, height) == size:
        return frame
    scale = min(size[0] / width, size[1] / height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(frame.image, inner, interpolation=how)
    return SourceFrame(
        index=frame.index, pts=frame.pts, time_base=frame.time_base, image=canvas, captured=frame.captured
    )


def _path_sink(uri: Uri, config: SinkConfig) -> Sink:
    path = uri.path
    check_free(path, overwrite=config.overwrite)
    if path.is_dir() or not path.suffix:
        return FolderSink(path)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        names = ", ".join(sorted(VIDEO_SUFFIXES))
        msg = f"{path} is no video name this can write. End it with {names}, or name a folder for pictures."
        raise OutputError(msg)
    fragments = () if path.suffix.lower() == ".mkv" else _FRAGMENTS
    return VideoSink(uri, config, muxing=Muxing(options=fragments))


def _net_sink(uri: Uri, config: SinkConfig) -> Sink:
    muxing = _net_muxing(uri, config)
    return NetworkSink(
        uri.masked,
        lambda: VideoSink(uri, config, muxing=muxing),
        backoff=config.backoff,
        close_s=config.timeout_s + 3,
    )


def _net_muxing(uri: Uri, config: SinkConfig) -> Muxing:
    known = {"rtsp": "rtsp", "rtsps": "rtsp", "rtmp": "flv", "udp": "mpegts", "tcp": "mpegts"}
    rtsp = known[uri.scheme] == "rtsp"
    options = (("rtsp_transport", "tcp"),) if rtsp else ()
    return Muxing(muxer=known[uri.scheme], options=options, timeout_s=config.timeout_s)


def _page(uri: Uri, config: SinkConfig) -> Sink:
    name = "ufr_edge.runtime.live.page"
    try:
        page = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        missing = "not part of this installation" if exc.name == name else "in need of a package"
        msg = f'{uri.masked}: the live page is {missing}. Run: pip install "ufr-edge[live]"'
        raise BackendUnavailableError(msg) from exc
    sink: Sink = page.PageSink(uri, page.PageConfig(token=config.token))
    return sink
