"""Where live frames come from. A camera that goes away is waited for, with growing pauses, up to a limit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from glob import glob
from pathlib import Path
from typing import Protocol

from ufr_edge.errors import ConfigError, InputFileError, SourceLostError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import is_image, list_images, read_image
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.links import Grabbed, Link, LinkConfig, LinkError, open_link, require_gstreamer
from ufr_edge.runtime.live.timecode import TimeCode, draw_code
from ufr_edge.runtime.video.opening import SYNTHETIC_OPTIONS, synthetic_scene
from ufr_edge.runtime.video.reader import VideoReader
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo
from ufr_edge.runtime.video.synthetic import SyntheticScene
from ufr_edge.runtime.video.uri import Uri

_MEND = (
    "Copy it again from where it came, or cut off the damage: ffmpeg -i IN -c copy OUT"  # `run` has --partial
)
_TIME_BASE = Fraction(1, 90_000)
_SCENE_FRAMES = 600


class LiveSource(Protocol):
    """Frames for a stream. `live`: they come when they come; else they wait until they are asked for."""

    @property
    def info(self) -> VideoInfo:
        """What is known before the first frame."""

    @property
    def live(self) -> bool:
        """Whether frames come at their own speed."""

    def frames(self) -> Iterator[SourceFrame]:
        """Frames in order, until the end or the stop. Raises SourceLostError, InputFileError."""

    def close(self) -> None:
        """Release the source; twice is fine."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Pauses between tries: `first_s`, doubled each time up to `most_s`; after `tries` the source is lost.

    at_start: tries for the very first connection, which is more often a wrong address than a broken line.
    """

    first_s: float = 0.5
    most_s: float = 8.0
    tries: int = 10
    at_start: int = 3

    def __post_init__(self) -> None:
        if self.tries < 0 or self.at_start < 1 or not 0 <= self.first_s <= self.most_s:
            msg = "Back-off needs tries of 0 or more, and pauses that do not shrink."
            raise ConfigError(msg)

    def pause(self, failed: int) -> float:
        """Seconds to wait after the `failed`-th failure in a row (1, 2, ...)."""
        return float(min(self.most_s, self.first_s * 2.0 ** min(failed - 1, 30)))


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """code: draw the time code into the synthetic camera. picture_rate: of a folder of pictures."""

    link: LinkConfig = field(default_factory=LinkConfig)
    backoff: Backoff = field(default_factory=Backoff)
    code: bool = False
    picture_rate: Fraction = Fraction(30)
    threads: int | None = None


def open_live_source(
    uri: Uri, config: SourceConfig | None = None, *, stop: threading.Event, events: EventLog
) -> LiveSource:
    """Open a source and wait for its first picture. `stop`, once set, ends every wait and the frames.

    Raises ConfigError, InputFileError, SourceLostError, BackendUnavailableError.
    """
    config = config or SourceConfig()
    if uri.kind == "synthetic":
        return TestCamera(uri, code=config.code, stop=stop)
    if uri.kind == "path" and uri.path.is_file() and not is_image(uri.path):
        return FileSource([uri.path], name=uri.masked, config=config)
    if uri.kind in ("path", "glob"):
        return FileSource(_files(uri), name=uri.masked, config=config)
    if uri.kind in ("csi", "gst"):
        require_gstreamer(uri)
    if uri.kind in ("net", "http", "device", "csi", "gst"):
        return ReconnectingSource(
            uri.masked, lambda: open_link(uri, config.link), backoff=config.backoff, stop=stop, events=events
        )
    msg = f"{uri.masked} is no source. Give a file, folder, camera, rtsp://, http://, gst:, csi:// or synthetic://"
    raise ConfigError(msg)


class ReconnectingSource:
    """Frames of a connection that is made again when it breaks. Time goes on by the clock across breaks."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Link],
        *,
        backoff: Backoff,
        stop: threading.Event,
        events: EventLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect, and wait for the first picture. Raises SourceLostError."""
        self._name, self._connect, self._backoff = name, connect, backoff
        self._stop, self._events, self._clock = stop, events, clock
        self._link: Link | None = None
        self.reconnects = 0
        first = self._try_until(backoff.at_start)
        if first is None or self._link is None:
            msg = f"{name} gave no picture before it was stopped."
            raise SourceLostError(msg)
        self._first: Grabbed | None = first
        self.live: bool = not self._link.finite
        height, width = first.image.shape[:2]
        self.info = VideoInfo(
            name=name,
            width=width,
            height=height,
            rate=self._link.rate,
            time_base=_TIME_BASE,
            colour=first.colour,
        )

    def frames(self) -> Iterator[SourceFrame]:
        """Frames, numbered on across breaks; their time is that of their arrival."""
        started, index, last = self._clock(), 0, -1
        while not self._stop.is_set():
            grabbed = self._next()
            if grabbed is None:
                return
            now = self._clock()
            last = max(last + 1, round((now - started) / _TIME_BASE))
            yield SourceFrame(
                index=index,
                pts=last,
                time_base=_TIME_BASE,
                image=grabbed.image,
                native=grabbed.native,
                captured=now,
            )
            index += 1

    def close(self) -> None:
        """Hang up."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _next(self) -> Grabbed | None:
        """The next picture, connecting again if need be; None at the end or when stopped."""
        first, self._first = self._first, None
        if first is not None:
            return first
        try:
            return None if self._link is None else self._link.grab()
        except LinkError as exc:
            if self._stop.is_set():
                return None
            self._events.add("lost", f"{self._name}: {exc}; connecting again", level=logging.WARNING)
            self.close()
            grabbed = self._try_until(self._backoff.tries, failed=1, reason=exc)
        if grabbed is not None:
            self.reconnects += 1
            self._events.add("reconnect", f"{self._name}: connected again")
        return grabbed

    def _try_until(self, tries: int, *, failed: int = 0, reason: LinkError | None = None) -> Grabbed | None:
        """Try to get a picture, with pauses. Raises SourceLostError after `tries` failures more."""
        limit = tries + failed
        while not self._stop.is_set():
            if failed and (failed >= limit or (reason is not None and reason.final)):
                raise SourceLostError(self._lost(failed, reason)) from reason
            if failed and self._stop.wait(self._backoff.pause(failed)):
                return None
            try:
                self._link = self._connect()
                if (grabbed := self._link.grab()) is not None:
                    return grabbed
                reason = LinkError("it holds no picture", final=True)
            except LinkError as exc:
                reason = exc
            failed += 1
            self.close()
        return None

    def _lost(self, failed: int, reason: LinkError | None) -> str:
        return (
            f"{self._name} is lost after {failed} {'try' if failed == 1 else 'tries'}: {reason}. "
            "Check the address and that the camera is on; --reconnect N tries for longer."
        )


class TestCamera:
    """`synthetic://` as a camera: frames at its rate, whatever becomes of them. `frames=0` never ends."""

    __test__ = False  # no test class, whatever pytest thinks of its name
    live = True

    def __init__(self, uri: Uri, *, code: bool, stop: threading.Event) -> None:
        uri.only({*SYNTHETIC_OPTIONS, "code"})
        options = {k: v for k, v in uri.options.items() if k != "code" and (k, v) != ("frames", "0")}
        self._scene, rate = synthetic_scene(replace(uri, options=options), frames=_SCENE_FRAMES)
        self._count = len(self._scene) if "frames" in options else None
        self._code = code or uri.options.get("code", "0") not in ("0", "no")
        self._stop, self._period = stop, float(1 / rate)
        width, height = self._scene.size
        self.info = VideoInfo(name=uri.masked, width=width, height=height, rate=rate, time_base=1 / rate)

    def frames(self) -> Iterator[SourceFrame]:
        """Frames when they are due. A frame that is late itself is not made up for by a burst."""
        started = due = time.monotonic()
        index, pts = 0, -1
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            if self._count is not None and index >= self._count:
                return
            captured = time.monotonic()
            image = _glance(self._scene, index)
            if self._code:
                draw_code(image, TimeCode(captured, index))
            pts = max(pts + 1, round((captured - started) / self._period))
            yield SourceFrame(
                index=index, pts=pts, time_base=self.info.time_base, image=image, captured=captured
            )
            index += 1
            due = max(due + self._period, time.monotonic() - self._period)

    def close(self) -> None:
        """Nothing to release."""


class FileSource:
    """Videos and pictures one after the other, every frame; sound is left out."""

    live = False

    def __init__(self, files: list[Path], *, name: str, config: SourceConfig) -> None:
        """Raises InputFileError when the first is missing or damaged."""
        self._files, self._config = files, config
        with closing(_Opened(files[0], config)) as first:
            info = first.info
        base = info.time_base if len(files) == 1 else _TIME_BASE
        self.info = VideoInfo(
            name=name,
            width=info.width,
            height=info.height,
            rate=info.rate,
            time_base=base,
            frames=info.frames if len(files) == 1 else None,
            colour=info.colour,
            aspect=info.aspect,
        )

    def frames(self) -> Iterator[SourceFrame]:
        """Frames with the time of their file, each file after the one before."""
        index, offset = 0, Fraction(0)
        step = 1 / (self.info.rate or self._config.picture_rate)
        last: int | None = None
        for file in self._files:
            with closing(_Opened(file, self._config)) as opened:
                end = offset
                for item in opened.frames():
                    when = offset + item.pts * item.time_base
                    end = when + step
                    pts = round(when / self.info.time_base)
                    last = pts if last is None else max(last + 1, pts)
                    yield SourceFrame(
                        index=index,
                        pts=last,
                        time_base=self.info.time_base,
                        image=item.image,
                        native=item.native,
                    )
                    index += 1
            offset = end

    def close(self) -> None:
        """Nothing to release: each file is closed when it has been read."""


class _Opened:
    """One file: a video, or a picture as a video of one frame."""

    def __init__(self, file: Path, config: SourceConfig) -> None:
        self._file, self._reader = file, None
        if is_image(file):
            self._image = read_image(file)
            height, width = self._image.shape[:2]
            rate = config.picture_rate
            self.info = VideoInfo(name=file.name, width=width, height=height, rate=rate, time_base=1 / rate)
        else:
            self._reader = VideoReader(file, threads=config.threads, mend=_MEND)
            self.info = self._reader.info

    def frames(self) -> Iterator[SourceFrame]:
        if self._reader is None:
            yield SourceFrame(index=0, pts=0, time_base=self.info.time_base, image=self._image)
            return
        for item in self._reader.items():
            if isinstance(item, SourceFrame):
                yield item

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def paced(source: LiveSource, *, stop: threading.Event) -> Iterator[SourceFrame]:
    """Frames of a file when their time has come, for a sink that people watch."""
    started: float | None = None
    for frame in source.frames():
        if started is None:
            started = time.monotonic() - frame.seconds
        if stop.wait(max(0.0, started + frame.seconds - time.monotonic())):
            return
        yield frame


def _glance(scene: SyntheticScene, index: int) -> Frame:
    """Frame `index` of a scene played to and fro, so that it goes on without a jump."""
    span = max(1, 2 * (len(scene) - 1))
    place = index % span
    return scene.glance(place if place < len(scene) else span - place)


def _files(uri: Uri) -> list[Path]:
    """The files of a glob, the pictures of a folder, or the one path. Raises InputFileError."""
    if uri.kind == "glob":
        found = [path for name in sorted(glob(uri.target)) if (path := Path(name)).is_file()]  # noqa: PTH207
        if not found:
            msg = f"{uri.masked} matches no file. Check the pattern."
            raise InputFileError(msg)
        return found
    return list_images(uri.path) if uri.path.is_dir() else [uri.path]
