"""Connections that can break: network streams, cameras, GStreamer pipelines. One attempt each."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import av
import cv2
import numpy as np

from ufr_edge.errors import BackendUnavailableError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.live.driver_thread import DriverThread
from ufr_edge.runtime.video.reader import EXACT, upright
from ufr_edge.runtime.video.source import ColourTags
from ufr_edge.runtime.video.uri import Uri

_DAMAGED_IN_A_ROW = 100


class LinkError(ConnectionError):
    """A connection could not be made, or broke. `final`: trying again cannot help (no such page, wrong password).

    Internal: `ReconnectingSource` tries again, or raises SourceLostError.
    """

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True, kw_only=True)
class Grabbed:
    """One picture of a connection, and the decoder's own frame of it."""

    image: Frame
    native: Any = None
    colour: ColourTags = field(default_factory=ColourTags)


class Link(Protocol):
    """A connection that stands."""

    @property
    def rate(self) -> Fraction | None:
        """Frames per second as declared."""

    @property
    def finite(self) -> bool:
        """Whether it is a recording that ends, not a camera."""

    def grab(self) -> Grabbed | None:
        """Wait for the next picture; None at the end of a recording. Raises LinkError."""

    def close(self) -> None:
        """Hang up; twice is fine."""


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """open_s, read_s: time limits of connecting, and of waiting for a picture. transport: of RTSP."""

    open_s: float = 5.0
    read_s: float = 5.0
    transport: str = "tcp"


class NetworkLink:
    """A network stream through PyAV. No wait is longer than the limits of `LinkConfig`."""

    def __init__(self, uri: Uri, config: LinkConfig) -> None:
        self._uri, self._config = uri, config
        # Not "nobuffer", which throws away what was read to learn the codec; but little is read for that.
        options = {"flags": "low_delay", "analyzeduration": "1000000"}
        if uri.scheme.startswith("rtsp"):
            options["rtsp_transport"] = config.transport
        started = time.monotonic()
        try:
            self._container = av.open(uri.target, options=options, timeout=(config.open_s, config.read_s))
        except (av.error.FFmpegError, OSError, ValueError) as exc:
            late = (
                time.monotonic() - started > 0.9 * config.open_s
            )  # FFmpeg calls what it gave up on "invalid data"
            reason = f"no usable answer within {config.open_s:g} s" if late else self._reason(exc)
            raise LinkError(reason, final=_is_final(exc)) from None
        if not self._container.streams.video:
            self._container.close()
            msg = "it has no picture stream"
            raise LinkError(msg, final=True)
        self._stream: Any = self._container.streams.video[0]
        self._stream.thread_type = "SLICE"  # threads by frame would hold frames back
        self.rate: Fraction | None = self._stream.average_rate or self._stream.guessed_rate
        self.finite = bool(self._container.duration and self._container.duration > 0)
        self._frames = self._decode()

    def grab(self) -> Grabbed | None:
        """The next picture, upright."""
        native = next(self._frames, None)
        if native is None:
            if self.finite:
                return None
            msg = "it ended"
            raise LinkError(msg)
        image = np.asarray(native.to_ndarray(format="rgb24", interpolation=EXACT, threads=1), dtype=np.uint8)
        context = self._stream.codec_context
        colour = ColourTags(
            space=int(native.colorspace),
            range=int(native.color_range),
            primaries=int(context.color_primaries or 2),
            transfer=int(context.color_trc or 2),
        )
        turned = native.rotation % 360 != 0
        return Grabbed(
            image=upright(image, native.rotation), native=None if turned else native, colour=colour
        )

    def close(self) -> None:
        """Hang up."""
        self._container.close()

    def _decode(self) -> Iterator[Any]:
        """Decoded frames; a damaged packet is skipped, too many in a row break the connection."""
        damaged, since = 0, time.monotonic()
        packets = self._container.demux(self._stream)
        while True:
            packet = self._next_packet(packets)
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.error.FFmpegError as exc:
                damaged += 1
                if damaged > _DAMAGED_IN_A_ROW:
                    raise LinkError(self._reason(exc)) from None
                frames = []
            for frame in frames:
                damaged = 0
                yield frame
                since = time.monotonic()
            if time.monotonic() - since > self._config.read_s:
                msg = f"data came, but no picture within {self._config.read_s:g} s"
                raise LinkError(msg)

    def _next_packet(self, packets: Iterator[Any]) -> Any:
        try:
            return next(packets, None)
        except (av.error.FFmpegError, OSError) as exc:
            raise LinkError(self._reason(exc)) from None

    def _reason(self, exc: BaseException) -> str:
        if isinstance(exc, av.error.ExitError):
            return f"no answer within {self._config.read_s:g} s"
        return self._uri.hide(getattr(exc, "strerror", None) or str(exc) or type(exc).__name__)


class CaptureLink:
    """A camera or a GStreamer pipeline through OpenCV. No wait is longer than the limits of `LinkConfig`.

    A thread keeps the limits: OpenCV's own exist for some of its backends and versions only, and others refuse to
    open when asked for them.
    """

    finite = False

    def __init__(self, target: int | str, backend: int, *, uri: Uri, config: LinkConfig) -> None:
        self._config, self._closed = config, False
        self._capture: Any = None
        self.rate: Fraction | None = None
        self._driver = DriverThread("ufr-camera")
        try:
            self._within(lambda: self._open(target, backend, uri), config.open_s)
        except BaseException:
            self.close()
            raise

    def grab(self) -> Grabbed:
        """The next picture. Raises LinkError when the camera gives none (unplugged), or hangs."""
        done, picture = self._within(self._read, self._config.read_s)
        if not done or picture is None:
            msg = "it gives no more pictures"
            raise LinkError(msg)
        code = cv2.COLOR_GRAY2RGB if picture.ndim == 2 else cv2.COLOR_BGR2RGB
        return Grabbed(image=np.asarray(cv2.cvtColor(picture, code), dtype=np.uint8))

    def close(self) -> None:
        """Let go of the camera; of one that hangs, when it comes back. Twice is fine."""
        if not self._closed:
            self._closed = True
            self._driver.end(self._release, self._config.open_s)

    def _within(self, act: Callable[[], Any], seconds: float) -> Any:
        try:
            return self._driver.call(act, seconds)
        except TimeoutError as exc:
            raise LinkError(str(exc)) from None
        except cv2.error as exc:
            reason = str(getattr(exc, "err", "") or exc).strip().splitlines()
            msg = f"its driver failed: {' '.join(reason)[:200]}"
            raise LinkError(msg) from None

    def _open(self, target: int | str, backend: int, uri: Uri) -> None:
        with _quiet_opencv():
            capture: Any = cv2.VideoCapture(target, backend)
            self._capture = capture
            if not capture.isOpened():
                msg = "it cannot be opened (not there, in use by another program, or no permission)"
                raise LinkError(msg)
            if uri.kind == "device":
                self._ask(uri)
            fps = float(capture.get(cv2.CAP_PROP_FPS))
        self.rate = Fraction(fps).limit_denominator(1001) if 0 < fps < 1000 else None

    def _read(self) -> tuple[bool, Any]:
        done, picture = self._capture.read()
        return bool(done), picture

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.release()

    def _ask(self, uri: Uri) -> None:
        # MJPEG first: raw pictures of HD size do not pass through USB 2 at 30 frames/s.
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if size := uri.size():
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        if rate := uri.rate():
            self._capture.set(cv2.CAP_PROP_FPS, float(rate))


def open_link(uri: Uri, config: LinkConfig) -> Link:
    """Connect once. Raises LinkError, BackendUnavailableError, ConfigError."""
    if uri.kind in ("net", "http"):
        return NetworkLink(uri, config)
    if uri.kind == "device":
        uri.only({"size", "rate"})
        return CaptureLink(*_camera(uri), uri=uri, config=config)
    require_gstreamer(uri)
    pipeline = csi_pipeline(uri) if uri.kind == "csi" else uri.target
    return CaptureLink(pipeline, cv2.CAP_GSTREAMER, uri=uri, config=config)


def _camera(uri: Uri) -> tuple[int | str, int]:
    """What to open of `0`, `/dev/video0` or a link to one, and with which of OpenCV's backends.

    V4L2 itself, by number: by name FFmpeg or GStreamer would come first, which take no size and no format.
    """
    number = re.fullmatch(r"/dev/video(\d+)", str(uri.path.resolve()))
    if uri.target.isdecimal() or number:
        linux = sys.platform.startswith("linux")
        return int(number[1] if number else uri.target), cv2.CAP_V4L2 if linux else cv2.CAP_ANY
    return uri.target, cv2.CAP_ANY


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's own lines about a camera that is not there to itself, unless OPENCV_LOG_LEVEL asks for them."""
    log: Any = getattr(getattr(cv2, "utils", None), "logging", None)
    if "OPENCV_LOG_LEVEL" in os.environ or not hasattr(log, "setLogLevel"):
        yield
        return
    before = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(before)


def require_gstreamer(uri: Uri) -> None:
    """Raise BackendUnavailableError when this OpenCV was built without GStreamer, as the wheels are."""
    lines = [line.split() for line in cv2.getBuildInformation().splitlines()]
    if not any(line[:2] == ["GStreamer:", "YES"] for line in lines):
        msg = (
            f"{uri.scheme} sources need an OpenCV with GStreamer, which the wheels from PyPI lack. On Jetson use the "
            "system's OpenCV: python3 -m venv --system-site-packages, then pip uninstall opencv-python"
        )
        raise BackendUnavailableError(msg)


def csi_pipeline(uri: Uri) -> str:
    """The GStreamer pipeline of a Jetson camera, `csi://0?size=1280x720&rate=30`. Raises ConfigError."""
    uri.only({"size", "rate"})
    width, height = uri.size() or (1280, 720)
    rate = uri.rate() or Fraction(30)
    sensor = int(uri.target) if uri.target.isdecimal() else 0
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),width={width},height={height},"
        f"framerate={rate.numerator}/{rate.denominator} ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! "
        "video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    )


def _is_final(exc: BaseException) -> bool:
    kinds = (
        "HTTPBadRequestError",
        "HTTPUnauthorizedError",
        "HTTPForbiddenError",
        "HTTPNotFoundError",
        "ProtocolNotFoundError",
    )
    return isinstance(exc, tuple(getattr(av.error, kind) for kind in kinds if hasattr(av.error, kind)))
