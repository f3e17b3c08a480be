"""Where frames come from: addresses, hidden passwords, cameras that go away, servers that misbehave."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from clips import picture, write_clip, write_picture

from ufr_edge.errors import (
    BackendUnavailableError,
    ConfigError,
    InputFileError,
    OutputError,
    SourceLostError,
    UfrEdgeError,
)
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.links import Grabbed, LinkConfig, LinkError, csi_pipeline
from ufr_edge.runtime.live.sinks import SinkConfig, SinkContext, open_sink
from ufr_edge.runtime.live.sources import (
    Backoff,
    LiveSource,
    ReconnectingSource,
    SourceConfig,
    open_live_source,
)
from ufr_edge.runtime.live.stats import Labels, StatsBoard
from ufr_edge.runtime.live.timecode import read_code
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo
from ufr_edge.runtime.video.uri import mask, parse_uri

pytestmark = pytest.mark.timeout(90)  # whatever a server does, nothing hangs

SECRET = "hunter2"
QUICK = SourceConfig(
    link=LinkConfig(open_s=0.6, read_s=0.6), backoff=Backoff(first_s=0.01, most_s=0.02, tries=2, at_start=1)
)


def opened(uri: str | Path, config: SourceConfig = QUICK) -> LiveSource:
    return open_live_source(parse_uri(uri), config, stop=threading.Event(), events=EventLog())


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "kind", "target"),
        [
            ("0", "device", "0"),
            ("/dev/video3", "device", "/dev/video3"),
            ("v4l2:///dev/video0?size=640x480", "device", "/dev/video0"),
            ("csi://1", "csi", "1"),
            ("gst:videotestsrc ! appsink", "gst", "videotestsrc ! appsink"),
            ("rtsp://cam:554/a", "net", "rtsp://cam:554/a"),
            ("udp://@:1234", "net", "udp://@:1234"),
            ("http://0.0.0.0:8080", "http", "http://0.0.0.0:8080"),
            ("https://h/a.m3u8?x=1", "http", "https://h/a.m3u8?x=1"),
            ("display://", "display", ""),
            ("null://", "null", ""),
            ("clip.mp4", "path", "clip.mp4"),
            ("file:///a/b.mp4", "path", "/a/b.mp4"),
            ("shots/*.png", "glob", "shots/*.png"),
        ],
    )
    def test_kinds(self, text: str, kind: str, target: str) -> None:
        uri = parse_uri(text)
        assert (uri.kind, uri.target) == (kind, target)

    def test_settings(self) -> None:
        uri = parse_uri("v4l2:///dev/video0?size=640x480&rate=30000/1001")
        assert uri.size() == (640, 480) and uri.rate() == Fraction(30000, 1001)
        assert "width=640,height=480,framerate=15/1" in csi_pipeline(
            parse_uri("csi://0?size=640x480&rate=15")
        )

    @pytest.mark.parametrize(
        "text",
        ["", "  ", "ftp://h/x", "rtsp://", "http://:x/", "synthetic://?colour=red", "null:///x?size=3"],
    )
    def test_refuses_what_it_does_not_understand(self, text: str) -> None:
        with pytest.raises(ConfigError):
            uri = parse_uri(text)
            uri.size()
            opened(text)

    @pytest.mark.parametrize(
        "text",
        [
            f"rtsp://me:{SECRET}@cam/1",
            f"rtsp://{SECRET}@cam/1",
            f"rtsp://me:a@b/{SECRET}@cam/1",
            f"rtsp://me:{SECRET} x@cam/1",
            f"http://cam/a.mjpg?user=me&password={SECRET}&x=1",
            f"http://cam/a.mjpg?x=1&access_token={SECRET}",
            f'gst:rtspsrc location=rtsp://cam user-id=me user-pw="{SECRET} 3" ! appsink',
            f"gst:rtspsrc location=rtsp://me:{SECRET}@cam/1 ! appsink",
            f"udp://me:{SECRET}@h:99999999/",
        ],
    )
    def test_passwords_never_show(self, text: str) -> None:
        try:
            uri = parse_uri(text)
        except ConfigError as exc:
            assert SECRET not in str(exc)
            return
        assert SECRET not in f"{uri} {uri!r} {uri.masked}"
        assert SECRET not in mask(text) or " x@" in text  # in running text an address ends at a space
        assert SECRET not in uri.hide(f"[Errno 5] Input/output error: '{uri.target}'")
        assert SECRET in uri.target


class TestFiles:
    def test_a_video(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv", pts=[0, 40, 95, 300])
        source = opened(clip)
        frames = list(source.frames())
        assert not source.live and [f.seconds for f in frames] == [0, 0.04, 0.095, 0.3]
        assert all(f.native is not None for f in frames)

    def test_folders_and_globs_of_anything(self, tmp_path: Path) -> None:
        for n in range(3):
            write_picture(tmp_path / f"{n}.png", picture(n))
        write_clip(tmp_path / "x.mkv", 4)
        folder = list(opened(str(tmp_path)).frames())
        assert [f.index for f in folder] == [0, 1, 2] and folder[1].seconds == pytest.approx(1 / 30, abs=1e-4)
        both = list(opened(str(tmp_path / "*.*")).frames())
        assert len(both) == 7
        times = [f.seconds for f in both]
        assert times == sorted(set(times)) and times[4] - times[3] == pytest.approx(0.04, abs=1e-3)

    def test_cut_in_the_middle_of_a_gop(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv", 60)
        clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
        got: list[SourceFrame] = []
        with pytest.raises(InputFileError, match="cut short"):
            got.extend(opened(clip).frames())  # extend keeps what came before the error
        assert 5 < len(got) < 60  # what is there comes out first

    @pytest.mark.parametrize("name", ["empty.mp4", "empty.png", "none.mp4", "no*.mp4"])
    def test_nothing_there(self, tmp_path: Path, name: str) -> None:
        if name.startswith("empty"):
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputFileError, match=name.replace("*", r"\*").split(".")[0]):
            opened(str(tmp_path / name))

    def test_sound_without_pictures(self, tmp_path: Path) -> None:
        import av
        from clips import _write_sound

        path = tmp_path / "sound.mkv"
        with av.open(str(path), "w") as container:
            _write_sound(container, container.add_stream("aac", rate=48000), seconds=1)
        with pytest.raises(InputFileError, match="no picture stream"):
            opened(path)


class TestTestCamera:
    def test_comes_in_real_time_with_a_code(self) -> None:
        source = opened("synthetic://?size=320x180&rate=100&frames=8&code=1")
        frames = list(source.frames())
        assert source.live and len(frames) == 8
        codes = [read_code(frame.image) for frame in frames]
        assert [code.number if code else None for code in codes] == list(range(8))
        assert all(c and abs(c.age(f.captured)) < 1e-3 for c, f in zip(codes, frames, strict=True))
        assert frames[-1].captured - frames[0].captured > 0.06
        assert [f.pts for f in frames] == sorted({f.pts for f in frames})

    def test_never_ends_and_stops_at_once(self) -> None:
        stop = threading.Event()
        source = open_live_source(parse_uri("synthetic://?size=64x48&rate=500"), stop=stop, events=EventLog())
        got = 0
        for _ in source.frames():
            got += 1
            if got == 30:
                stop.set()
        assert got == 30


@dataclass
class FakeLink:
    """Gives `count` pictures, then breaks (or ends, when finite)."""

    count: int = 3
    finite: bool = False
    rate: Fraction | None = Fraction(25)
    size: tuple[int, int] = (96, 64)
    closed: int = 0

    def grab(self) -> Grabbed | None:
        if self.count == 0:
            if self.finite:
                return None
            msg = "the cable is out"
            raise LinkError(msg)
        self.count -= 1
        return Grabbed(image=picture(0, size=self.size))

    def close(self) -> None:
        self.closed += 1


@dataclass
class Waits:
    """A stop event that keeps how long it was asked to wait, and waits not at all."""

    asked: list[float] = field(default_factory=list)
    set_after: int = 10**9
    _set: bool = False

    def wait(self, seconds: float) -> bool:
        self.asked.append(seconds)
        self._set = self._set or len(self.asked) >= self.set_after
        return self._set

    def is_set(self) -> bool:
        return self._set


def reconnecting(
    links: list[FakeLink | LinkError],
    *,
    tries: int = 5,
    waits: Waits | None = None,
    events: EventLog | None = None,
) -> ReconnectingSource:
    plan = iter(links)

    def connect() -> FakeLink:
        link = next(plan, LinkError("still gone"))
        if isinstance(link, LinkError):
            raise link
        return link

    return ReconnectingSource(
        "rtsp://***@cam",
        connect,
        backoff=Backoff(first_s=1, most_s=4, tries=tries, at_start=2),
        stop=waits or Waits(),  # type: ignore[arg-type]
        events=events or EventLog(),
    )


class TestReconnecting:
    def test_goes_on_after_a_break_with_time_and_numbers(self) -> None:
        events = EventLog()
        source = reconnecting([FakeLink(), LinkError("no route"), FakeLink(2), FakeLink(1)], events=events)
        frames: list[SourceFrame] = []
        with pytest.raises(SourceLostError, match=r"cam is lost after \d tries: still gone"):
            frames.extend(source.frames())
        assert [f.index for f in frames] == list(range(6)) and source.reconnects == 2
        assert all(a.pts < b.pts for a, b in pairwise(frames))
        assert [event.kind for event in events.last()][:4] == ["lost", "reconnect", "lost", "reconnect"]

    def test_pauses_grow_up_to_a_limit(self) -> None:
        waits = Waits()
        source = reconnecting([FakeLink(1)], tries=6, waits=waits)
        with pytest.raises(SourceLostError):
            list(source.frames())
        assert waits.asked == [1, 2, 4, 4, 4, 4]

    def test_the_first_connection_is_given_up_sooner(self) -> None:
        with pytest.raises(SourceLostError, match="after 2 tries: no route"):
            reconnecting([LinkError("no route"), LinkError("no route"), FakeLink()])

    def test_what_cannot_be_mended_is_not_tried_again(self) -> None:
        waits = Waits()
        with pytest.raises(SourceLostError, match="after 1 try: wrong password"):
            reconnecting([LinkError("wrong password", final=True), FakeLink()], waits=waits)
        assert waits.asked == []

    def test_a_stop_ends_the_waiting(self) -> None:
        waits = Waits(set_after=2)
        source = reconnecting([FakeLink(1)], tries=50, waits=waits)
        assert len(list(source.frames())) == 1 and len(waits.asked) == 2

    def test_a_recording_ends(self) -> None:
        link = FakeLink(3, finite=True)
        source = reconnecting([link])
        assert len(list(source.frames())) == 3 and not source.live
        source.close()
        source.close()
        assert link.closed == 1

    def test_refuses_settings_out_of_range(self) -> None:
        with pytest.raises(ConfigError):
            Backoff(first_s=2, most_s=1)


Serve = Callable[[socket.socket], None]


@contextmanager
def server(serve: Serve) -> Iterator[tuple[int, list[int]]]:
    """A TCP server that does `serve` with each connection; yields its port and the count of connections."""
    listener = socket.create_server(("127.0.0.1", 0))
    count, over = [0], threading.Event()

    def handle(client: socket.socket) -> None:
        with client:
            try:
                serve(client)
            except OSError:
                return

    def accept() -> None:
        while not over.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            count[0] += 1
            handle(client)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], count
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def stalls(client: socket.socket) -> None:
    client.settimeout(3)
    while client.recv(4096):
        pass


def garbage(client: socket.socket) -> None:
    client.recv(4096)
    client.sendall(bytes(range(1, 256)) * 400)


def refuses_password(client: socket.socket) -> None:
    client.recv(4096)
    client.sendall(b"RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\n\r\n")


class TestServers:
    @pytest.mark.parametrize("serve", [stalls, garbage, refuses_password])
    @pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp"])
    def test_one_that_misbehaves_is_given_up_in_time(self, serve: Serve, scheme: str) -> None:
        with server(serve) as (port, _):
            started = time.monotonic()
            with pytest.raises(SourceLostError) as caught:
                opened(f"{scheme}://me:{SECRET}@127.0.0.1:{port}/live")
            assert time.monotonic() - started < 30  # a limit, not a measurement: it must not hang
        assert SECRET not in str(caught.value) and f"{scheme}://***@127.0.0.1" in str(caught.value)
        if serve is stalls:
            assert "answer within" in str(caught.value)

    def test_one_that_is_not_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with pytest.raises(SourceLostError, match="refused") as caught:
            opened(f"rtsp://me:{SECRET}@127.0.0.1:{port}/live")
        assert SECRET not in str(caught.value)

    def test_a_live_stream_that_breaks_in_mid_gop_is_taken_up_again(self, tmp_path: Path) -> None:
        """A server sends half of an MPEG-TS clip and hangs up: frames come, then it is connected to again."""
        clip = write_clip(tmp_path / "in.ts", 50, time_base=Fraction(1, 90_000))
        data = clip.read_bytes()

        def half(client: socket.socket) -> None:
            client.recv(4096)
            client.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n")
            client.sendall(data[: len(data) * 6 // 10])

        events, stop = EventLog(), threading.Event()
        with server(half) as (port, connections):
            uri = parse_uri(f"http://me:{SECRET}@127.0.0.1:{port}/live.ts")
            source = open_live_source(uri, QUICK, stop=stop, events=events)
            got = 0
            for _ in source.frames():
                got += 1
                if connections[0] >= 3:
                    stop.set()
            source.close()
        assert got > 20 and connections[0] >= 3
        kinds = [event.kind for event in events.last()]
        assert kinds[:3] == ["lost", "reconnect", "lost"]
        assert not [e for e in events.last() if SECRET in e.text]

    def test_nothing_of_it_reaches_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG), server(garbage) as (port, _), pytest.raises(SourceLostError):
            opened(f"rtsp://me:{SECRET}@127.0.0.1:{port}/live")
        assert SECRET not in caplog.text


class TestRefusals:
    def test_gstreamer_that_opencv_lacks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cv2.getBuildInformation", lambda: "  Video I/O:\n    GStreamer:   NO\n")
        for text in ("gst:videotestsrc ! appsink", "csi://0"):
            with pytest.raises(BackendUnavailableError, match="GStreamer"):
                opened(text)

    def test_a_camera_that_is_not_there(self) -> None:
        with pytest.raises(SourceLostError, match="cannot be opened"):
            opened("/dev/video97")

    def test_a_window_without_a_screen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        with pytest.raises(BackendUnavailableError, match="screen"):
            open_sink(parse_uri("display://"))

    @pytest.mark.parametrize(
        ("text", "error", "words"),
        [
            ("v4l2:///dev/video97", BackendUnavailableError, "modprobe v4l2loopback video_nr=97"),
            ("synthetic://", ConfigError, "no sink"),
            ("out.avi", OutputError, "no video name"),
        ],
    )
    def test_sinks(self, text: str, error: type[UfrEdgeError], words: str) -> None:
        with pytest.raises(error, match=words):
            open_sink(parse_uri(text))

    def test_a_file_that_exists(self, tmp_path: Path) -> None:
        (tmp_path / "a.mp4").write_bytes(b"x")
        with pytest.raises(OutputError, match="--overwrite"):
            open_sink(parse_uri(tmp_path / "a.mp4"))
        open_sink(parse_uri(tmp_path / "a.mp4"), SinkConfig(overwrite=True))

    def test_a_network_sink_that_refuses_hides_the_password(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        sink = open_sink(parse_uri(f"rtsp://me:{SECRET}@127.0.0.1:{port}/x"), SinkConfig(timeout_s=1))
        info = VideoInfo(name="x", width=64, height=64, rate=Fraction(25), time_base=Fraction(1, 25))
        board = StatsBoard(Labels())
        with pytest.raises(OutputError) as caught:
            sink.open(SinkContext(info=info, stats=board.snapshot, events=EventLog()))
        assert SECRET not in str(caught.value) and "***@127.0.0.1" in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        sink.close()
