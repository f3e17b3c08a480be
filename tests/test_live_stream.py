"""The threads of a live stream: order, counts, policies, faults, and no thread left behind."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import StubDetector, picture
from live_fakes import FakeSource, FaultyEngine, KeepingSink, full_disk, rig

from ufr_edge.errors import ConfigError, InferenceError, OutputError, SourceLostError
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.ladder import Step
from ufr_edge.runtime.live.links import LinkConfig
from ufr_edge.runtime.live.sinks import LiveFrame, SinkClosedError, SinkConfig, SinkContext, open_sink
from ufr_edge.runtime.live.sources import SourceConfig, open_live_source
from ufr_edge.runtime.live.stats import Labels, LiveStats, StatsBoard
from ufr_edge.runtime.live.stream import StreamConfig
from ufr_edge.runtime.live.timecode import TimeCode, draw_code, read_code
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo
from ufr_edge.runtime.video.uri import parse_uri

pytestmark = pytest.mark.timeout(60)  # a stream that hangs is a failure


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def adds_up(stats: LiveStats) -> bool:
    return stats.in_flight == 0 and stats.frames_in == stats.frames_out + stats.dropped_total


def until(release: threading.Event) -> Callable[[LiveFrame], None]:
    """A sink's `before` that hangs."""

    def before(frame: LiveFrame) -> None:
        release.wait(30)

    return before


class TestFlow:
    def test_a_file_loses_no_frame_and_keeps_the_order(self) -> None:
        source = FakeSource(count=40)
        it = rig(source)
        assert it.stream.run() == "the source ended"
        stats = it.stream.snapshot()
        assert it.sink.numbers == list(range(40)) and stats.dropped_total == 0 and adds_up(stats)
        assert (it.sink.opened, it.sink.closed, source.closed) == (1, 1, 1)
        counts = {s.name: s.count for s in stats.stages}
        assert {"capture", "track thread", "restore thread", "paste thread", "sink"} <= set(counts)
        assert counts.get("paste", 0) <= counts["paste thread"]  # a frame counts once under a name
        assert it.kinds() == ["start", "stop"] and stats.deadline_ms is None

    def test_the_sink_gets_the_original_beside_the_restored(self) -> None:
        it = rig(FakeSource(count=3))
        it.stream.run()
        for item in it.sink.got:
            np.testing.assert_array_equal(item.original, picture(item.frame.index))
            assert (item.frame.image != item.original).any() and item.frame.touched
            assert [view.id for view in item.tracks] == [1] and item.step is Step.FULL

    def test_a_camera_too_fast_for_the_engine_loses_frames_and_counts_them(self) -> None:
        slow = FaultyEngine(gate=lambda: time.sleep(0.02))
        it = rig(
            FakeSource(count=120, live=True, pause_s=0.002), engine=slow, config=StreamConfig(ladder=False)
        )
        it.stream.run()
        stats = it.stream.snapshot()
        assert adds_up(stats) and stats.frames_in == 120 and stats.dropped["track"] > 40
        assert it.sink.numbers == sorted(it.sink.numbers) and len(it.sink.got) == stats.frames_out

    def test_a_camera_too_fast_may_be_made_to_wait(self) -> None:
        config = StreamConfig(filling="wait", consuming="lazy")
        it = rig(
            FakeSource(count=30, live=True),
            engine=FaultyEngine(gate=lambda: time.sleep(0.005)),
            config=config,
        )
        it.stream.run()
        assert it.sink.numbers == list(range(30))

    def test_at_any_moment_the_counts_are_sound(self) -> None:
        seen: list[LiveStats] = []
        it = rig(FakeSource(count=200, live=True, pause_s=0.001))
        sampler = threading.Thread(target=lambda: seen.extend(it.stream.snapshot() for _ in range(300)))
        sampler.start()
        it.stream.run()
        sampler.join(20)
        assert seen and all(0 <= stats.in_flight <= 20 for stats in seen)

    def test_limits(self) -> None:
        it = rig(FakeSource(count=100), config=StreamConfig(frames=7))
        assert it.stream.run() == "7 frames are done" and it.sink.numbers == list(range(7))
        it = rig(FakeSource(count=100), config=StreamConfig(seconds=0.4))  # 25 frames a second
        assert it.stream.run() == "0.4 seconds are over" and it.sink.numbers == list(range(10))

    def test_a_picture_size_that_changes_is_told_and_taken(self) -> None:
        it = rig(FakeSource(count=12, sizes={5: (128, 96)}), detector=StubDetector([1]))
        it.stream.run()
        shapes = [item.frame.image.shape[:2] for item in it.sink.got]
        assert shapes == [(64, 96)] * 5 + [(96, 128)] * 7
        assert "size" in it.kinds() and it.stream.snapshot().failed == 0

    def test_no_frames_at_all(self) -> None:
        it = rig(FakeSource(count=0))
        assert it.stream.run() == "the source ended" and it.sink.closed == 1

    def test_refuses_settings_out_of_range(self) -> None:
        with pytest.raises(ConfigError):
            StreamConfig(frames=0)


class TestFaults:
    def test_a_frame_on_which_the_engine_throws_passes_through(self) -> None:
        it = rig(FakeSource(count=20), engine=FaultyEngine(faults={4, 11}))
        it.stream.run()
        stats = it.stream.snapshot()
        assert it.sink.numbers == list(range(20)) and stats.failed == 2 and adds_up(stats)
        untouched = [i.frame.index for i in it.sink.got if i.frame.image is i.original]
        assert untouched == [4, 11] and it.kinds().count("failed") == 2

    def test_an_engine_that_throws_on_every_frame_stops_with_the_cause(self) -> None:
        it = rig(FakeSource(count=500), engine=FaultyEngine(faults=set(range(500))))
        with pytest.raises(InferenceError, match="hung up"):
            it.stream.run()
        stats = it.stream.snapshot()
        assert stats.failed == 9 and adds_up(stats) and it.sink.closed == 1
        assert it.kinds().count("failed") == 1  # one line, not one for each frame

    def test_a_full_disk_stops_with_the_cause(self) -> None:
        source = FakeSource(count=500)
        it = rig(source, sink=KeepingSink(before=full_disk(5)))
        with pytest.raises(OutputError, match="disk is full"):
            it.stream.run()
        assert len(it.sink.got) == 5 and it.sink.closed == 1 and source.closed == 1
        assert adds_up(it.stream.snapshot())

    def test_one_dead_sink_does_not_leave_the_other_unfinished(self) -> None:
        other = KeepingSink(name="other", on_close=OutputError("cannot be finished"))
        it = rig(FakeSource(count=5), others=(other,))
        with pytest.raises(OutputError, match="cannot be finished"):
            it.stream.run()
        assert it.sink.closed == other.closed == 1 and len(it.sink.got) == 5

    def test_a_window_that_is_closed_ends_it_quietly(self) -> None:
        def before(frame: LiveFrame) -> None:
            if frame.frame.index == 6:
                msg = "The window was closed."
                raise SinkClosedError(msg)

        it = rig(FakeSource(count=500), sink=KeepingSink(before=before))
        assert it.stream.run() == "The window was closed." and adds_up(it.stream.snapshot())

    def test_a_source_that_is_lost_still_hands_on_what_came_before(self) -> None:
        it = rig(FakeSource(count=8, error=SourceLostError("rtsp://***@cam is lost")))
        with pytest.raises(SourceLostError):
            it.stream.run()
        assert it.sink.numbers == list(range(8)) and it.sink.closed == 1

    def test_a_fault_of_our_own_is_raised_not_swallowed(self) -> None:
        def wrong() -> None:
            msg = "a bug"
            raise ZeroDivisionError(msg)

        it = rig(FakeSource(count=100), engine=FaultyEngine(gate=wrong))
        with pytest.raises(ZeroDivisionError):
            it.stream.run()
        assert adds_up(it.stream.snapshot())

    def test_a_stop_finishes_the_frames_under_way(self) -> None:
        it = rig(FakeSource(count=100_000, pause_s=0.001))
        reason: list[str] = []
        runner = threading.Thread(target=lambda: reason.append(it.stream.run()))
        runner.start()
        while len(it.sink.got) < 10:
            time.sleep(0.005)
        it.stream.stop()
        runner.join(20)
        assert reason == ["stopped"] and it.sink.closed == 1
        stats = it.stream.snapshot()
        assert adds_up(stats) and stats.dropped_total == 0

    def test_ctrl_c_while_it_waits(self) -> None:
        it = rig(FakeSource(count=100_000, pause_s=0.001))

        def watch(stats: LiveStats) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            it.stream.run(watch)
        assert it.sink.closed == 1 and adds_up(it.stream.snapshot())

    def test_a_sink_that_hangs_does_not_hang_the_stop(self) -> None:
        release = threading.Event()
        config = StreamConfig(drain_s=0.2, join_s=0.3)
        it = rig(
            FakeSource(count=100_000, live=True, pause_s=0.001),
            sink=KeepingSink(before=until(release)),
            config=config,
        )

        def watch(stats: LiveStats) -> None:
            raise KeyboardInterrupt

        try:
            with pytest.raises(KeyboardInterrupt):
                it.stream.run(watch)
            assert "stuck" in it.kinds()
        finally:
            release.set()
            for thread in threading.enumerate():
                if thread.name.startswith("ufr-"):
                    thread.join(10)

    def test_a_sink_that_hangs_does_not_stop_the_camera(self) -> None:
        release = threading.Event()
        source = FakeSource(count=400, live=True, pause_s=0.001)
        it = rig(source, sink=KeepingSink(before=until(release)))
        runner = threading.Thread(target=it.stream.run)
        runner.start()
        while it.stream.snapshot().frames_in < 400:  # the camera goes on, frames are dropped
            time.sleep(0.01)
        assert sum(it.stream.snapshot().queues.values()) <= 2 + 3
        release.set()
        runner.join(20)
        assert not runner.is_alive() and adds_up(it.stream.snapshot())


class TestLadder:
    def slow_then_fast(self) -> tuple[FaultyEngine, list[bool]]:
        slow = [True]
        return FaultyEngine(gate=lambda: time.sleep(0.05 if slow[0] else 0)), slow

    def test_goes_down_when_late_and_lets_frames_through(self) -> None:
        engine, _ = self.slow_then_fast()
        it = rig(
            FakeSource(count=600, live=True, pause_s=0.004),
            engine=engine,
            config=StreamConfig(deadline_ms=20),
        )
        it.stream.run()
        stats = it.stream.snapshot()
        assert stats.step is Step.PASS and stats.passed > 0 and stats.carried > 0 and stats.ladder_moves >= 2
        assert stats.failed == 0
        texts = [event.text for event in it.events.last() if event.kind == "ladder"]
        assert texts[0].startswith("full -> every-second-frame: ") and adds_up(stats)

    def test_takes_the_smaller_engine_first(self) -> None:
        engine, _ = self.slow_then_fast()
        smaller = FaultyEngine()
        it = rig(
            FakeSource(count=500, live=True, pause_s=0.004),
            engine=engine,
            smaller=smaller,
            config=StreamConfig(deadline_ms=40),
        )
        it.stream.run()
        texts = [event.text for event in it.events.last() if event.kind == "ladder"]
        assert texts[0].startswith("full -> smaller-engine: ") and smaller.calls > 0
        assert it.stream.snapshot().failed == 0

    def test_without_a_ladder_nothing_changes_and_late_frames_are_counted(self) -> None:
        engine, _ = self.slow_then_fast()
        config = StreamConfig(deadline_ms=20, ladder=False)
        it = rig(FakeSource(count=60, live=True, pause_s=0.004), engine=engine, config=config)
        it.stream.run()
        stats = it.stream.snapshot()
        assert stats.step is Step.FULL and stats.ladder_moves == 0 and stats.late == stats.frames_out

    def test_the_default_deadline_follows_the_frame_rate(self) -> None:
        it = rig(FakeSource(count=3, live=True))
        it.stream.run()
        assert it.stream.snapshot().deadline_ms == pytest.approx(120)  # three periods of 25 frames/s


class TestRecording:
    def test_a_file_is_playable_when_the_disk_is_full(self, tmp_path: Path) -> None:
        path = tmp_path / "out.mp4"
        video = open_sink(parse_uri(path), SinkConfig())
        it = rig(FakeSource(count=200), sink=KeepingSink(before=full_disk(30)), others=(video,))
        with pytest.raises(OutputError, match="disk is full"):
            it.stream.run()
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 30

    def test_a_size_change_is_fitted_into_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "out.mkv"
        video = open_sink(parse_uri(path), SinkConfig())
        it = rig(FakeSource(count=12, sizes={5: (64, 96)}), others=(video,))
        it.stream.run()
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert [frame.shape for frame in frames] == [(64, 96, 3)] * 12
        assert frames[8][:, :20].mean() < 5 and frames[8][:, 40:56].mean() > 40  # black bars beside it

    def test_pictures_into_a_folder(self, tmp_path: Path) -> None:
        folder = open_sink(parse_uri(tmp_path / "pictures"))
        rig(FakeSource(count=3), others=(folder,)).stream.run()
        assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [f"{n:08d}.png" for n in range(3)]


class TestNetwork:
    @pytest.mark.slow
    @pytest.mark.timeout(120)
    def test_the_time_code_comes_through_a_network_sink_and_source(self) -> None:
        """H.264 over UDP: drawn before the encoder of the sink, read after the decoder of a source."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            address = f"udp://127.0.0.1:{taken.getsockname()[1]}"
        stop, over = threading.Event(), threading.Event()
        giver = threading.Thread(target=send_codes, args=(address, over))
        giver.start()
        try:
            config = SourceConfig(link=LinkConfig(open_s=20, read_s=20))
            source = open_live_source(parse_uri(address), config, stop=stop, events=EventLog())
            limits = StreamConfig(frames=60, latency=True, ladder=False)
            it = rig(source, stop=stop, detector=StubDetector([0]), config=limits)
            it.stream.run()
        finally:
            over.set()
            giver.join(20)
        glass = it.stream.snapshot().glass
        assert glass is not None and glass.count > 10 and 0 < glass.p50_ms < 60_000
        numbers = [code.number for item in it.sink.got if (code := read_code(item.frame.image))]
        assert numbers == sorted(set(numbers))


def send_codes(address: str, over: threading.Event) -> None:
    """Write the test camera into a network sink until `over`."""
    sink = open_sink(parse_uri(address))
    base = Fraction(1, 30)
    info = VideoInfo(name="x", width=320, height=192, rate=Fraction(30), time_base=base)
    sink.open(SinkContext(info=info, stats=StatsBoard(Labels()).snapshot, events=EventLog()))
    number = 0
    while not over.wait(1 / 60):
        image = picture(5, size=(320, 192))
        draw_code(image, TimeCode(time.monotonic(), number))
        frame = SourceFrame(index=number, pts=number, time_base=base, image=image)
        sink.write(LiveFrame(frame=frame, original=image))
        number += 1
    sink.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory from Linux' /proc")
def test_memory_does_not_grow() -> None:
    marks: dict[int, float] = {}

    def before(frame: LiveFrame) -> None:
        if frame.frame.index % 3000 == 2999:
            marks[frame.frame.index] = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    sink = KeepingSink(before=before)
    sink.got = deque(maxlen=1)  # type: ignore[assignment]
    it = rig(FakeSource(count=9000, size=(64, 48)), sink=sink)
    it.stream.run()
    assert sorted(marks) == [2999, 5999, 8999]
    assert marks[8999] - marks[2999] < 20
