"""The live page's server: who may look, what it answers, and that nobody who looks can hold up the stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import pytest
from clips import picture
from live_fakes import FakeSource, KeepingSink, rig

from ufr_edge.errors import ConfigError, OutputError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.ladder import Step
from ufr_edge.runtime.live.page_address import PageConfig, is_local, listen, needs_token, page_address
from ufr_edge.runtime.live.page_board import PageBoard, metrics_text
from ufr_edge.runtime.live.page_pictures import Shot, encode_pair, encode_snapshot, read_pair, shot_of
from ufr_edge.runtime.live.page_viewers import MOST_ASKED, Slot, Viewers
from ufr_edge.runtime.live.sinks import LiveFrame, SinkContext, open_sink
from ufr_edge.runtime.live.stats import Labels, LiveStats, StatsBoard, TrackView
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo
from ufr_edge.runtime.video.uri import parse_uri

aiohttp = pytest.importorskip("aiohttp", reason="needs the extra `live`")
from ufr_edge.runtime.live.page import PageSink

pytestmark = pytest.mark.timeout(120)
TOKEN = "a-token-of-twenty-chars"
SIZE = (96, 64)
INFO = VideoInfo(name="fake", width=96, height=64, rate=Fraction(25), time_base=Fraction(1, 25))
Client = Callable[[Any], Awaitable[Any]]


def live_frame(number: int) -> LiveFrame:
    """Original `picture(number)`, restored the same but brighter, one face."""
    original = picture(number % 30, size=SIZE)
    image = np.clip(original.astype(np.int16) + 40, 0, 255).astype(np.uint8)
    frame = SourceFrame(
        index=number, pts=number, time_base=Fraction(1, 25), image=image, captured=time.monotonic()
    )
    return LiveFrame(frame=frame, original=original, tracks=(TrackView(id=7, box=(1, 2, 30, 40), score=0.9),))


def unpacked(data: bytes) -> Frame:
    """RGB of a JPEG or PNG."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert found is not None
    return np.asarray(found, np.uint8)


def shot(number: int) -> Shot:
    return shot_of(live_frame(number), number)


@contextlib.contextmanager
def opened(
    address: str = "http://127.0.0.1:0", config: PageConfig | None = None, board: StatsBoard | None = None
) -> Iterator[tuple[PageSink, EventLog]]:
    """A page that is open; nobody writes to it yet."""
    events = EventLog()
    numbers = board or StatsBoard(Labels(source="fake", engine="stub engine", device="cpu"))
    sink = PageSink(parse_uri(address), config)
    sink.open(SinkContext(info=INFO, stats=numbers.snapshot, events=events))
    try:
        yield sink, events
    finally:
        sink.close()


def browse(sink: PageSink, work: Client, **settings: Any) -> Any:
    """Run `work(session)`; addresses in it begin with `/`."""

    async def run() -> Any:
        jar = aiohttp.CookieJar(unsafe=True)  # cookies for numbers, too
        async with aiohttp.ClientSession(sink.url, cookie_jar=jar, **settings) as session:
            return await asyncio.wait_for(work(session), 60)

    return asyncio.run(run())


def get(sink: PageSink, path: str, **settings: Any) -> tuple[int, bytes, dict[str, str]]:
    async def work(session: Any) -> tuple[int, bytes, dict[str, str]]:
        async with session.get(path, allow_redirects=False, **settings) as answer:
            return answer.status, await answer.read(), dict(answer.headers)

    result: tuple[int, bytes, dict[str, str]] = browse(sink, work)
    return result


# ---- addresses


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("LOCALHOST.", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("127.0.0.1.example.org", False),
     ("localhost.example.org", False)],
)  # fmt: skip
def test_what_is_local(host: str, local: bool) -> None:
    assert is_local(host) is local


@pytest.mark.parametrize(
    "text",
    ["http://127.0.0.1", "https://127.0.0.1:8080", "http://127.0.0.1:8080/x", "http://127.0.0.1:8080?token=x",
     "http://me:secret@127.0.0.1:8080"],
)  # fmt: skip
def test_an_address_that_says_more_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT and no more") as caught:
        page_address(parse_uri(text))
    assert "secret" not in str(caught.value)


def test_a_page_for_others_needs_a_token_of_some_length() -> None:
    assert needs_token(parse_uri("http://0.0.0.0:1")) and not needs_token(parse_uri("http://[::1]:1"))
    with pytest.raises(ConfigError, match="needs a token: --token or UFR_TOKEN"):
        PageSink(parse_uri("http://0.0.0.0:0"))
    for bad in ("", "short", "ä" * 20, "with\nline feeds in it"):
        with pytest.raises(ConfigError, match="openssl rand"):
            PageConfig(token=bad)
    assert TOKEN not in repr(PageConfig(token=TOKEN))


def test_a_port_in_use_is_told_before_anything_is_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OutputError, match=f"127.0.0.1:{port}/: another program listens on it. Try another"
        ):
            open_sink(parse_uri(f"http://127.0.0.1:{port}"))


def test_an_address_of_another_machine_and_an_unknown_name() -> None:
    for host in ("203.0.113.7", "no-such-host.invalid"):
        with pytest.raises(OutputError, match="cannot listen on"):
            listen(page_address(parse_uri(f"http://{host}:8080")))


@pytest.mark.parametrize("host", ["[::1]", "localhost"])
def test_ipv6_and_names(host: str) -> None:
    if not socket.has_ipv6 or not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with opened(f"http://{host}:0") as (sink, _):
        assert sink.url.startswith(f"http://{host}:") and ":0/" not in sink.url
        assert get(sink, "/")[0] == 200


def test_a_name_with_two_numbers_of_which_one_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        (socket.AF_INET6, 1, 6, "", ("2001:db8::7", 0, 0, 0)),
        (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: both)
    (only,) = listen(page_address(parse_uri("http://localhost:0")))
    with only:
        assert only.family is socket.AF_INET
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: both[:1])
    with pytest.raises(OutputError, match="cannot listen"):
        listen(page_address(parse_uri("http://localhost:0")))


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# ---- what it answers


def test_health_follows_the_frames() -> None:
    with opened(config=PageConfig(stall_s=2.0)) as (sink, events):
        code, body, _ = get(sink, "/healthz")
        assert code == 503 and "no frame yet" in json.loads(body)["reason"]
        with writing(sink) as written:
            while not written[0]:
                time.sleep(0.01)
            assert get(sink, "/healthz")[0] == 200
        events.add("lost", "rtsp://me:hunter2@cam/1: no answer within 5 s")
        while get(sink, "/healthz")[0] == 200:
            time.sleep(0.1)
        told = json.loads(get(sink, "/healthz")[1])
        assert told["status"] == "stalled"
        assert "no answer within 5 s" in told["reason"] and "hunter2" not in told["reason"]


def test_health_and_samples_by_a_clock_of_our_own() -> None:
    now = [100.0]
    stats = StatsBoard(Labels())
    context = SinkContext(info=INFO, stats=stats.snapshot, events=EventLog())
    board = PageBoard(context, stall_s=5.0, now=lambda: now[0])
    assert board.health().reason == "no frame yet, 0 s after the start"
    for number in range(30):
        now[0] += 1 / 30
        stats.came_in()
        board.frame(age_ms=10.0 + number)
    first = board.sample()
    assert (first.n, round(first.fps_out), round(first.fps_in)) == (1, 30, 30)
    assert (first.p50_ms, first.most_ms) == (25.0, 39.0)
    now[0] += 4.9
    assert board.health().ok
    now[0] += 0.2
    assert board.health().reason == "no frame for 5 s"
    quiet = board.sample()
    assert quiet.n == 2 and quiet.fps_out == 0 and quiet.p50_ms is None
    for _ in range(2000):
        board.sample()
    assert len(board.history()) == 900


_LINE = re.compile(
    r'^(ufr_[a-z_]+)(\{[a-z_]+="(?:[^"\\\n]|\\.)*"(?:,[a-z_]+="(?:[^"\\\n]|\\.)*")*\})? (\S+)$'
)


def parse_metrics(text: str) -> dict[str, float]:
    """Every sample by name and labels; each family must have been declared before, and once."""
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# "):
            _, what, name, rest = line.split(" ", 3)
            if what == "TYPE":
                assert name not in kinds
                kinds[name] = rest
            continue
        match = _LINE.match(line)
        assert match, line
        name = match[1]
        base = re.sub(r"_(sum|count)$", "", name)
        assert name in kinds or kinds.get(base) == "summary", line
        found[name + (match[2] or "")] = float(match[3])
    return found


def busy_stats() -> LiveStats:
    stats = StatsBoard(Labels(source="cam", engine='a "quoted" \\ engine\nof two lines', device="cpu"))
    stats.watch_queues(lambda: {"track": (1, 4), "sink": (0, 0)})
    for _ in range(10):
        stats.came_in()
    stats.lost("restore")
    stats.clock.add("restore", 0.02)
    stats.stepped(Step.CARRY)
    for age in (30.0, 50.0):
        stats.went_out(age, tracks=live_frame(0).tracks, late=age > 40)
    return stats.snapshot()


def test_metrics_can_be_parsed_and_say_what_the_statistics_say() -> None:
    found = parse_metrics(metrics_text(busy_stats(), memory=12345678, viewers=3, healthy=True))
    assert found["ufr_frames_in_total"] == 10 and found["ufr_frames_out_total"] == 2
    assert (
        found['ufr_dropped_total{reason="track"}'] == 4 and found['ufr_dropped_total{reason="restore"}'] == 1
    )
    assert found["ufr_late_total"] == 1 and found["ufr_ladder_step"] == 2 and found["ufr_tracks"] == 1
    assert found['ufr_stage_seconds{stage="restore",quantile="0.95"}'] == pytest.approx(0.02)
    assert found['ufr_stage_seconds_sum{stage="restore"}'] == pytest.approx(0.02)
    assert found['ufr_stage_seconds_count{stage="restore"}'] == 1
    assert found['ufr_latency_seconds{quantile="0.5"}'] == pytest.approx(0.04)
    assert found["ufr_resident_memory_bytes"] == 12345678 and found["ufr_page_viewers"] == 3
    (info,) = [name for name in found if name.startswith("ufr_engine_info")]
    assert r'engine="a \"quoted\" \\ engine\nof two lines"' in info


def test_every_address_answers_with_the_safety_headers() -> None:
    with opened() as (sink, _):
        sink.write(live_frame(3))
        for path in ("/", "/page.js", "/plots.js", "/page.css", "/icon.svg", "/stats.json", "/history.json",
                     "/metrics", "/healthz", "/snapshot.png", "/nothing"):  # fmt: skip
            code, body, headers = get(sink, path)
            assert code == (404 if path == "/nothing" else 200), path
            assert body
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert not [name for name in headers if name.lower().startswith("access-control")]
        parse_metrics(get(sink, "/metrics")[1].decode())
        told = json.loads(get(sink, "/stats.json")[1])
        assert told["stats"]["engine"] == "stub engine" and told["memory_bytes"] > 1e6
        assert told["health"]["ok"] and told["events"][0]["kind"] == "page"


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    with opened() as (sink, _):
        for path in ("/", "/page.js", "/plots.js", "/page.css"):
            text = get(sink, path)[1].decode()
            assert not re.search(r"https?://", text), path
            assert not re.search(r"<[^>]+\s(?:style|on[a-z]+)=", text), path  # the policy forbids them


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_snapshot_holds_both_pictures_at_full_size(suffix: str) -> None:
    with opened(config=PageConfig(long_side=32)) as (sink, _):
        assert get(sink, f"/snapshot.{suffix}")[0] == 503
        sink.write(live_frame(3))
        code, body, headers = get(sink, f"/snapshot.{suffix}")
        assert code == 200 and f'.{suffix}"' in headers["Content-Disposition"]
    image = unpacked(body)
    both = np.hstack([live_frame(3).original, live_frame(3).frame.image])
    assert image.shape == both.shape
    assert np.abs(image.astype(int) - both).mean() < (0.01 if suffix == "png" else 4)


# ---- who may look


def test_without_the_token_nobody_sees_anything() -> None:
    with opened("http://0.0.0.0:0", PageConfig(token=TOKEN)) as (sink, _):
        sink.write(live_frame(1))
        for path in (
            "/stats.json",
            "/metrics",
            "/healthz",
            "/snapshot.png",
            "/frames",
            "/page.js",
            "/history.json",
        ):
            for given in ({}, {"Authorization": "Bearer " + TOKEN[:-1]}, {"Authorization": TOKEN}):
                code, body, headers = get(sink, path, headers=given)
                assert (code, headers["WWW-Authenticate"]) == (401, "Bearer"), path
                assert TOKEN.encode() not in body
        code, body, _ = get(sink, "/")
        assert code == 401 and b'type="password"' in body
        assert get(sink, "/?token=wrong")[0] == 401 and get(sink, "/metrics?token=%C3%A4")[0] == 401


def test_the_token_by_header_query_form_and_then_cookie(caplog: pytest.LogCaptureFixture) -> None:
    async def work(session: Any) -> None:
        async with session.get("/healthz", headers={"Authorization": f"bearer {TOKEN}"}) as answer:
            assert answer.status == 200
        async with session.get(f"/metrics?token={TOKEN}") as answer:
            assert answer.status == 200
        async with session.get("/stats.json") as answer:
            assert answer.status == 401  # a query alone leaves nothing behind
        async with session.post("/", data={"token": "wrong"}) as answer:
            assert answer.status == 401 and "That is not the token" in await answer.text()

    async def first_visit(session: Any) -> None:
        async with session.get(f"/?token={TOKEN}") as answer:
            assert answer.status == 200 and answer.url.query_string == ""  # sent on, the token out of sight
        cookie = next(iter(session.cookie_jar))
        assert cookie["httponly"] and cookie["samesite"] == "Lax" and TOKEN not in cookie.value
        async with session.get("/stats.json") as answer:
            assert answer.status == 200

    async def login(session: Any) -> None:
        async with session.post("/", data={"token": f" {TOKEN} "}) as answer:
            assert answer.status == 200 and "ufr-edge" in await answer.text()
        async with session.ws_connect("/frames") as ws:
            assert not ws.closed

    caplog.set_level(logging.DEBUG)
    with opened("http://0.0.0.0:0", PageConfig(token=TOKEN)) as (sink, events):
        sink.write(live_frame(1))
        for visit in (work, first_visit, login):
            browse(sink, visit)
        told = " ".join(event.text for event in events.last())
    logged = " ".join(r.getMessage() for r in caplog.records if not r.name.startswith("aiohttp.client"))
    assert TOKEN not in logged + told


def test_other_web_sites_may_not_ask() -> None:
    """A local page has no token: a site open in the same browser must not get at it."""
    with opened() as (sink, _):
        sink.write(live_frame(1))
        port = sink.url.rsplit(":", 1)[1].strip("/")
        for bad in ({"Origin": "https://evil.example"}, {"Host": f"evil.example:{port}"}, {"Origin": "null"}):
            for path in ("/stats.json", "/frames", "/"):
                assert get(sink, path, headers=bad)[0] == 403, (bad, path)
        own = sink.url.rstrip("/")
        assert get(sink, "/stats.json", headers={"Origin": own})[0] == 200
        assert get(sink, "/stats.json", headers={"Host": f"localhost:{port}"})[0] == 200


# ---- pictures


def test_a_pair_is_of_one_frame_and_says_which() -> None:
    head, restored, original = read_pair(encode_pair(shot(12), long_side=48, quality=95))
    assert head["index"] == 12 and head["size"] == [96, 64] and head["tracks"] == [[7, 1, 2, 30, 40]]
    first, second = unpacked(restored), unpacked(original)
    assert first.shape == second.shape == (32, 48, 3)
    assert abs(float(second[..., 0].mean()) - (20 + 6 * 12)) < 2  # the number drawn into it
    assert abs(float(first[..., 0].mean()) - (20 + 6 * 12 + 40)) < 2


def test_a_frame_let_through_is_encoded_once() -> None:
    one = shot(1)
    head, restored, original = read_pair(
        encode_pair(replace(one, original=one.restored), long_side=96, quality=80)
    )
    assert original == b"" and head["lengths"] == [len(restored), 0]


def test_a_snapshot_after_a_change_of_size() -> None:
    odd = replace(shot(1), original=picture(1, size=(33, 47)))
    assert encode_snapshot(odd, ".png")[:4] == b"\x89PNG"


def test_a_viewer_gets_the_newest_and_what_it_did_not_ask_for_is_never_encoded() -> None:
    async def work() -> None:
        encoded: list[int] = []

        def encode(item: Shot) -> bytes:
            encoded.append(item.number)
            return b"%d" % item.number

        slot = Slot()
        with ThreadPoolExecutor(1) as pool:
            viewers = Viewers(slot, encode, pool=pool, most_fps=1000)
            serving = asyncio.ensure_future(viewers.serve(pytest.fail))
            eager, idle = viewers.join(), viewers.join()

            async def put(number: int) -> None:
                slot.put(shot(number))
                viewers.wake()
                await asyncio.sleep(0.02)

            for number in (1, 2, 3):
                await put(number)
            assert encoded == []  # nobody asked
            for _ in range(10):
                eager.ask()
            assert (await eager.next()).data == b"3"
            for number in range(4, 40):
                await put(number)
            assert viewers.queued == 1  # one waits for the eager one, which does not read
            assert encoded == [3, 4]
            assert (await eager.next()).data == b"4"
            await put(40)
            assert viewers.queued == 0 and encoded == [3, 4]  # it had asked for MOST_ASKED, and got them
            idle.ask()
            assert (await idle.next()).data == b"40"
            viewers.leave(idle)
            viewers.leave(eager)
            assert len(viewers) == 0 and viewers.encoded == 3
            serving.cancel()

    assert MOST_ASKED == 2
    asyncio.run(asyncio.wait_for(work(), 30))


def test_a_picture_that_cannot_be_encoded_is_told_once() -> None:
    def encode(item: Shot) -> bytes:
        msg = "too large"
        raise OutputError(msg)

    async def work() -> list[str]:
        told: list[str] = []
        slot = Slot()
        with ThreadPoolExecutor(1) as pool:
            viewers = Viewers(slot, encode, pool=pool, most_fps=1000)
            serving = asyncio.ensure_future(viewers.serve(told.append))
            viewers.join().ask()
            for number in range(1, 6):
                slot.put(shot(number))
                viewers.wake()
                await asyncio.sleep(0.02)
            assert not serving.done()
            serving.cancel()
        return told

    assert asyncio.run(work()) == ["too large"]


async def next_pair(ws: Any) -> tuple[dict[str, Any], bytes, bytes]:
    await ws.send_str("next")
    message = await ws.receive(timeout=20)
    assert message.type is aiohttp.WSMsgType.BINARY, message
    return read_pair(message.data)


def test_pictures_over_the_socket_while_the_stream_runs() -> None:
    async def work(session: Any) -> list[Any]:
        async with session.ws_connect("/frames") as ws:
            return [(await next_pair(ws))[0]["index"] for _ in range(5)]

    with opened() as (sink, _), writing(sink):
        numbers = browse(sink, work)
        assert numbers == sorted(set(numbers)) and sink.encoded >= 5
    assert sink.queued == 0


@contextlib.contextmanager
def writing(sink: PageSink, image: Frame | None = None) -> Iterator[list[int]]:
    """Frames come all the time; yields a list whose only number grows with them."""
    stop, written = threading.Event(), [0]

    def write() -> None:
        while not stop.wait(0.005):
            item = live_frame(written[0])
            if image is not None:
                item = replace(item, original=image, frame=replace(item.frame, image=image[::-1]))
            sink.write(item)
            written[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield written
    finally:
        stop.set()
        thread.join()


def test_a_browser_that_stops_reading_holds_up_nobody_and_queues_nothing() -> None:
    """It asks all the time and never reads: the others still get theirs, and it is closed in the end."""

    async def deaf(port: int) -> None:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", port))
        await loop.sock_sendall(
            raw,
            b"GET /frames HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        with raw, contextlib.suppress(ConnectionError):
            while True:
                await loop.sock_sendall(raw, b"\x81\x84\0\0\0\0next")
                await asyncio.sleep(0.01)

    async def work(session: Any) -> list[int]:
        asking = asyncio.ensure_future(deaf(int(sink.url.rsplit(":", 1)[1].strip("/"))))
        queued, before = [], written[0]
        async with session.ws_connect("/frames", max_msg_size=0) as ws:
            for _ in range(10):
                await next_pair(ws)
                queued.append(sink.queued)
        assert written[0] > before  # the pipeline went on
        await asking  # until it was closed
        async with session.get("/stats.json") as answer:
            assert (await answer.json())["viewers"] == 0
        return queued

    # Noise does not compress: two pictures are more than what the system takes off our hands.
    noise = np.random.default_rng(0).integers(0, 256, (960, 1280, 3), dtype=np.uint8)
    with opened(config=PageConfig(send_s=1.0, quality=100)) as (sink, _), writing(sink, noise) as written:
        assert max(browse(sink, work)) <= 2


def test_too_many_pages_and_nonsense_over_the_socket() -> None:
    async def work(session: Any) -> None:
        async with session.ws_connect("/frames") as first, session.ws_connect("/frames"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect("/frames")
            assert caught.value.status == 503
            await first.send_str("x" * 10_000)
            assert (await first.receive(timeout=20)).type in (
                aiohttp.WSMsgType.CLOSE,
                aiohttp.WSMsgType.CLOSED,
            )
        async with session.get("/frames") as answer:  # no upgrade
            assert answer.status == 400

    with opened(config=PageConfig(most_viewers=2)) as (sink, _):
        browse(sink, work)


# ---- the end


def test_close_ends_the_server_within_its_limit_whoever_looks() -> None:
    async def work(session: Any) -> Any:
        ws = await session.ws_connect("/frames")
        await session.get("/stats.json")
        await asyncio.get_running_loop().run_in_executor(None, sink.close)
        return (await ws.receive(timeout=20)).type

    with opened() as (sink, events):
        port = int(sink.url.rsplit(":", 1)[1].strip("/"))
        assert browse(sink, work) in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        sink.close()  # twice is fine
        assert "stuck" not in [event.kind for event in events.last()]
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("ufr-page")]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        PageSink(parse_uri(f"http://127.0.0.1:{port}"))  # the port is free again
        with pytest.raises(OutputError, match="is not open"):
            sink.write(live_frame(0))


def test_a_stream_with_the_page_beside_another_sink() -> None:
    page = PageSink(parse_uri("http://127.0.0.1:0"))
    seen: list[int] = []

    def look(frame: LiveFrame) -> None:
        if frame.frame.index == 20:
            seen.append(get(page, "/stats.json")[0])

    made = rig(FakeSource(count=40), sink=KeepingSink(before=look), others=(page,))
    assert made.stream.run() == "the source ended"
    assert seen == [200] and made.sink.numbers == list(range(40))
    assert made.kinds() == ["start", "page", "stop"]
    assert page.encoded == 0  # nobody looked at pictures
    with pytest.raises(aiohttp.ClientConnectorError):
        get(page, "/")
