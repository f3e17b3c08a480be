"""Sinks that die: what goes on without them, what is connected again, and names with the time in them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path

import pytest
from clips import picture, read_clip
from live_fakes import FakeSource, KeepingSink, full_disk, rig

from ufr_edge.errors import ConfigError, OutputError
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.file_names import sink_at, with_time
from ufr_edge.runtime.live.network_sink import NetworkSink
from ufr_edge.runtime.live.sinks import LiveFrame, SinkConfig, SinkContext, open_sink
from ufr_edge.runtime.live.sources import Backoff
from ufr_edge.runtime.live.stats import Labels, StatsBoard
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo
from ufr_edge.runtime.video.uri import parse_uri

pytestmark = pytest.mark.timeout(60)
QUICK = Backoff(first_s=0.001, most_s=0.01, tries=3, at_start=2)
NOON = datetime(2026, 1, 2, 13, 14, 15, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def wait_until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.002)


class TestOneDead:
    def test_another_sink_that_dies_is_given_up_and_the_rest_goes_on(self) -> None:
        other = KeepingSink(name="record.mkv", before=full_disk(5))
        it = rig(FakeSource(count=30), others=(other,))
        assert it.stream.run() == "the source ended"
        assert it.sink.numbers == list(range(30)) and other.numbers == list(range(5))
        assert other.closed == 1 == it.sink.closed
        (told,) = [event.text for event in it.events.last() if event.kind == "failed"]
        assert told.startswith("record.mkv is given up, the rest goes on: The disk is full")

    def test_what_a_dead_sink_says_when_closed_ends_nothing(self) -> None:
        other = KeepingSink(name="r", before=full_disk(2), on_close=OutputError("cannot be finished"))
        it = rig(FakeSource(count=9), others=(other,))
        assert it.stream.run() == "the source ended" and it.sink.numbers == list(range(9))

    def test_the_first_sink_is_what_the_stream_is_for(self) -> None:
        other = KeepingSink(name="record.mkv")
        it = rig(FakeSource(count=500), sink=KeepingSink(before=full_disk(5)), others=(other,))
        with pytest.raises(OutputError, match="disk is full"):
            it.stream.run()
        assert other.closed == 1

    def test_at_the_start_every_sink_must_open(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        bad = open_sink(parse_uri(tmp_path / "file" / "out.mkv"), SinkConfig())
        it = rig(FakeSource(count=5), others=(bad,))
        with pytest.raises(OutputError, match="cannot be written"):
            it.stream.run()


@dataclass
class Listener:
    """A server in place of the network: each connection is a sink of its own."""

    faults: dict[int, set[int]] = field(default_factory=dict)  # connection -> writes that fail
    refuse: Callable[[int], bool] = lambda _: False
    gate: Callable[[], None] | None = None
    made: list[KeepingSink] = field(default_factory=list)
    tries: int = 0

    def make(self) -> KeepingSink:
        listener = self

        class Connection(KeepingSink):
            def open(self, context: SinkContext) -> None:
                listener.tries += 1
                if listener.refuse(listener.tries):
                    msg = "rtsp://x cannot be written: Connection refused."
                    raise OutputError(msg)
                self.number = len(listener.made)
                listener.made.append(self)
                super().open(context)

            def write(self, frame: LiveFrame) -> None:
                if listener.gate is not None:
                    listener.gate()
                if len(self.got) in listener.faults.get(self.number, set()):
                    msg = "rtsp://x cannot be written: Broken pipe."
                    raise OutputError(msg)
                super().write(frame)

        return Connection(name="rtsp://x")

    def sink(self, backoff: Backoff = QUICK, close_s: float = 8.0) -> NetworkSink:
        return NetworkSink("rtsp://x", self.make, backoff=backoff, close_s=close_s)


def context(events: EventLog | None = None, stop: threading.Event | None = None) -> SinkContext:
    info = VideoInfo(name="x", width=96, height=64, rate=Fraction(25), time_base=Fraction(1, 25))
    return SinkContext(
        info=info,
        stats=StatsBoard(Labels()).snapshot,
        events=events or EventLog(),
        stop=stop or threading.Event(),
    )


def frame(number: int) -> LiveFrame:
    image = picture(number % 30)
    return LiveFrame(
        frame=SourceFrame(index=number, pts=number, time_base=Fraction(1, 25), image=image), original=image
    )


def kinds(events: EventLog) -> list[str]:
    return [event.kind for event in events.last()]


def held(release: threading.Event) -> Callable[[], None]:
    def gate() -> None:
        release.wait(30)

    return gate


class TestNetworkSink:
    def test_a_connection_that_breaks_is_made_again(self) -> None:
        there, events = Listener(faults={0: {2}}), EventLog()
        sink = there.sink()
        sink.open(context(events))
        for number in range(10):
            sink.write(frame(number))
            wait_until(lambda: not len(sink._queue))
        sink.close()
        first, second = there.made
        assert first.numbers == [0, 1] and first.closed == 1
        assert second.numbers == list(range(3, 10)) and second.closed == 1
        assert kinds(events) == ["lost", "reconnect"]
        assert "Broken pipe" in events.last()[0].text

    def test_a_server_that_is_down_for_a_while(self) -> None:
        there, events = Listener(faults={0: {0}}, refuse=lambda n: n in (2, 3)), EventLog()
        sink = there.sink()
        sink.open(context(events))
        sink.write(frame(0))
        wait_until(lambda: len(there.made) == 2)
        sink.write(frame(1))
        sink.close()
        assert there.tries == 4 and there.made[1].numbers == [1]

    def test_after_all_tries_the_stream_ends_with_the_cause(self) -> None:
        there = Listener(faults={0: {3}}, refuse=lambda n: n > 1)
        sink = there.sink()
        sink.open(context())
        with pytest.raises(OutputError, match=r"lost after 4 tries: .*Connection refused.*--reconnect"):
            for number in range(100_000):
                sink.write(frame(number))
                time.sleep(0.001)
        with pytest.raises(OutputError, match="lost after"):
            sink.close()  # what nobody may have been told yet
        sink.close()
        assert there.tries == 4

    def test_one_that_is_refused_at_the_start_is_told_at_once(self) -> None:
        there = Listener(refuse=lambda n: True)
        sink = there.sink()
        with pytest.raises(OutputError, match="Connection refused"):
            sink.open(context())
        sink.close()
        assert there.tries == 2

    def test_a_server_that_stalls_holds_nobody_up(self) -> None:
        release, events = threading.Event(), EventLog()
        there = Listener(gate=held(release))
        sink, page = there.sink(), KeepingSink(name="page")
        it = rig(FakeSource(count=200), sink=page, others=(sink,))
        runner = threading.Thread(target=it.stream.run)
        runner.start()
        wait_until(lambda: len(page.got) == 200)  # all of them, while the network hangs
        release.set()
        runner.join(20)
        assert not runner.is_alive() and 0 < len(there.made[0].got) <= 8
        assert "dropped" in it.kinds() and events.last() == ()

    def test_one_that_hangs_for_ever_does_not_hold_up_the_end(self) -> None:
        release, events = threading.Event(), EventLog()
        there = Listener(gate=held(release))
        sink = there.sink(close_s=0.05)
        sink.open(context(events))
        sink.write(frame(0))
        sink.close()
        assert "stuck" in kinds(events)
        release.set()
        sink._thread.join(20)

    def test_a_stop_ends_the_waiting(self) -> None:
        stop = threading.Event()
        there = Listener(faults={0: {0}}, refuse=lambda n: n > 1)
        sink = there.sink(Backoff(first_s=30, most_s=30, tries=100))
        events = EventLog()
        sink.open(context(events, stop))
        sink.write(frame(0))
        wait_until(lambda: "lost" in kinds(events))
        stop.set()
        sink.close()  # no error: it was asked to end
        assert there.tries == 1

    def test_the_end_of_the_source_ends_the_waiting(self) -> None:
        there, events = Listener(faults={0: {0}}, refuse=lambda n: n > 1), EventLog()
        sink = there.sink(Backoff(first_s=30, most_s=30, tries=100))
        sink.open(context(events))
        sink.write(frame(0))
        wait_until(lambda: "lost" in kinds(events))
        sink.close()
        assert there.tries == 1 and "stuck" not in kinds(events)

    def test_connections_that_break_at_once_count_as_one_row(self) -> None:
        there = Listener(faults={number: {0} for number in range(100)})
        sink = there.sink(Backoff(first_s=0.001, most_s=5.0, tries=3))
        sink.open(context())
        with pytest.raises(OutputError, match="lost after 4 tries"):
            for number in range(100_000):
                sink.write(frame(number))
                time.sleep(0.001)
        with pytest.raises(OutputError):
            sink.close()
        assert len(there.made) == 4


class TestOverTcp:
    def test_a_server_that_hangs_up_gets_the_stream_again(self) -> None:
        """H.264 in MPEG-TS over a real socket; the server closes it in mid-stream, and listens on."""
        got: list[bytes] = []
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(30)
            address = f"tcp://127.0.0.1:{server.getsockname()[1]}"

            def serve() -> None:
                for _ in range(2):
                    peer, _ = server.accept()
                    with peer:
                        peer.settimeout(30)
                        got.append(peer.recv(4096))

            thread = threading.Thread(target=serve)
            thread.start()
            events = EventLog()
            sink = open_sink(parse_uri(address), SinkConfig(backoff=QUICK, timeout_s=5))
            sink.open(context(events))
            number = 0
            while thread.is_alive():
                sink.write(frame(number))
                number += 1
                time.sleep(0.005)
            thread.join()
        with contextlib.suppress(OutputError):  # nobody listens any more
            sink.close()
        assert len(got) == 2 and all(part[:1] == b"G" for part in got)  # MPEG-TS begins with 0x47
        assert kinds(events)[:2] == ["lost", "reconnect"]


class TestNames:
    def test_the_time_is_put_in(self) -> None:
        assert with_time("a/cam-%Y%m%d-%H%M%S.mkv", NOON) == "a/cam-20260102-131415.mkv"
        assert with_time("100%%.mkv", NOON) == "100%.mkv" and with_time("plain.mkv", NOON) == "plain.mkv"

    @pytest.mark.parametrize("wrong", ["a%20b.mkv", "50%", "%Q.mkv", "%-d.mkv"])
    def test_anything_else_is_refused_with_the_mend(self, wrong: str) -> None:
        with pytest.raises(ConfigError, match="write %% for a percent sign"):
            with_time(wrong, NOON)

    def test_only_files_have_it(self) -> None:
        assert sink_at(parse_uri("cam-%Y.mkv"), NOON).target == "cam-2026.mkv"
        assert sink_at(parse_uri("cam-%Y.mkv"), NOON).masked == "cam-2026.mkv"
        address = "rtsp://me:a%20b@host/%Y"
        assert sink_at(parse_uri(address), NOON).target == address

    def test_a_stream_into_a_name_with_the_time(self, tmp_path: Path) -> None:
        sink = open_sink(sink_at(parse_uri(tmp_path / "%Y" / "cam-%H%M.mkv"), NOON))
        rig(FakeSource(count=4), others=(sink,)).stream.run()
        assert len(read_clip(tmp_path / "2026" / "cam-1314.mkv")) == 4
