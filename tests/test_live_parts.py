"""The parts of a live stream that need no thread: queues, ladder, time code, statistics, events."""

from __future__ import annotations

import json
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import read_clip

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.ladder import Ladder, LadderConfig, Step
from ufr_edge.runtime.live.loopback import planar, v4l2_format
from ufr_edge.runtime.live.queues import FrameQueue, QueuePolicy
from ufr_edge.runtime.live.stats import Labels, StatsBoard, TrackView
from ufr_edge.runtime.live.timecode import TimeCode, draw_code, read_code
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo
from ufr_edge.runtime.video.writer import EncodeConfig, VideoWriter


class TestQueues:
    def queue(self, filling: str, consuming: str, depth: int = 3) -> FrameQueue[int]:
        policy = QueuePolicy(filling=filling, consuming=consuming, depth=depth)  # type: ignore[arg-type]
        return FrameQueue(policy)

    def drained(self, queue: FrameQueue[int]) -> list[int]:
        queue.close()
        return [item for item in iter(queue.get, None) if item is not None]

    def test_drop_oldest_keeps_the_newest(self) -> None:
        queue = self.queue("drop_oldest", "lazy")
        assert all(queue.put(n) for n in range(8))
        assert self.drained(queue) == [5, 6, 7] and queue.dropped == 5

    def test_drop_latest_keeps_the_oldest(self) -> None:
        queue = self.queue("drop_latest", "lazy")
        assert all(queue.put(n) for n in range(8))
        assert self.drained(queue) == [0, 1, 2] and queue.dropped == 5

    def test_eager_jumps_to_the_newest(self) -> None:
        queue = self.queue("drop_oldest", "eager")
        for n in range(3):
            queue.put(n)
        assert queue.get() == 2 and queue.dropped == 2 and len(queue) == 0

    def test_what_waits_at_the_end_is_handed_out_even_eagerly(self) -> None:
        queue = self.queue("drop_oldest", "eager")
        for n in range(3):
            queue.put(n)
        assert self.drained(queue) == [0, 1, 2] and queue.dropped == 0

    def test_wait_loses_nothing(self) -> None:
        queue = self.queue("wait", "lazy", depth=2)

        def give() -> None:
            for n in range(50):
                queue.put(n)
            queue.close()

        giver = threading.Thread(target=give)
        giver.start()
        got = [item for item in iter(queue.get, None) if item is not None]
        giver.join(10)
        assert got == list(range(50)) and queue.dropped == 0 and not giver.is_alive()

    def test_closing_wakes_who_waits_and_counts_what_is_lost(self) -> None:
        queue = self.queue("wait", "lazy", depth=1)
        queue.put(0)
        answers: list[bool] = []
        giver = threading.Thread(target=lambda: answers.append(queue.put(1)))
        giver.start()
        queue.abort()
        giver.join(10)
        assert answers == [False] and queue.dropped == 2 and queue.get() is None

    def test_refuses_unknown_policies(self) -> None:
        with pytest.raises(ConfigError, match="drop_oldest"):
            self.queue("drop_some", "lazy")
        with pytest.raises(ConfigError, match="1 to 1000"):
            self.queue("wait", "lazy", depth=0)


class TestLadder:
    config = LadderConfig(
        deadline_ms=100, window=10, share=0.3, patience=40, trial=25, most_patience=100, settle=0
    )

    def ladder(self, *steps: Step) -> Ladder:
        return Ladder(self.config, steps=steps or tuple(Step))

    def feed(self, ladder: Ladder, age: float, count: int) -> list[tuple[Step, Step]]:
        moves = [ladder.observe(age) for _ in range(count)]
        return [(move.before, move.after) for move in moves if move is not None]

    def test_frames_in_time_change_nothing(self) -> None:
        assert self.feed(self.ladder(), 60, 500) == []

    def test_a_single_late_frame_changes_nothing(self) -> None:
        ladder = self.ladder()
        for _ in range(50):
            assert ladder.observe(500) is None
            assert self.feed(ladder, 50, 9) == []

    def test_goes_down_step_by_step_to_the_last(self) -> None:
        ladder = self.ladder()
        moves = self.feed(ladder, 150, 100)
        assert [after for _, after in moves] == [Step.SMALLER, Step.CARRY, Step.PASS]
        assert ladder.step is Step.PASS

    def test_leaves_out_steps_it_does_not_have(self) -> None:
        moves = self.feed(self.ladder(Step.FULL, Step.CARRY, Step.PASS), 150, 100)
        assert [after for _, after in moves] == [Step.CARRY, Step.PASS]

    def test_dropped_frames_count_as_late(self) -> None:
        ladder = self.ladder()
        moves = [ladder.observe(10, dropped=2) for _ in range(2)]
        assert moves[0] is None and moves[1] is not None and "older than 100 ms" in moves[1].reason

    def test_goes_up_again_after_its_patience(self) -> None:
        ladder = self.ladder()
        self.feed(ladder, 150, 4)
        assert self.feed(ladder, 50, 39) == []
        assert self.feed(ladder, 50, 1) == [(Step.SMALLER, Step.FULL)]

    def test_does_not_go_up_without_headroom(self) -> None:
        ladder = self.ladder()
        self.feed(ladder, 150, 4)
        assert self.feed(ladder, 95, 500) == []

    def test_does_not_flap_patience_doubles_when_a_try_fails(self) -> None:
        ladder = self.ladder(Step.FULL, Step.PASS)
        ups = 0
        for _ in range(1000):  # full is always too slow, pass-through always fast
            move = ladder.observe(150 if ladder.step is Step.FULL else 5)
            ups += move is not None and move.after is Step.FULL
        assert ladder.patience == 100
        assert ups <= 10

    def test_patience_comes_back_when_a_try_holds(self) -> None:
        ladder = self.ladder(Step.FULL, Step.PASS)
        for age, count in ((150, 4), (5, 40), (150, 4), (5, 80)):
            self.feed(ladder, age, count)
        assert ladder.step is Step.FULL and ladder.patience == 80
        self.feed(ladder, 50, 26)
        assert ladder.patience == 40

    def test_frames_under_way_at_a_move_are_not_judged(self) -> None:
        config = LadderConfig(deadline_ms=100, window=10, settle=6)
        ladder = Ladder(config)
        assert len(self.feed(ladder, 150, 4)) == 1  # more than 0.3 of 10
        assert self.feed(ladder, 150, 6 + 3) == []
        assert len(self.feed(ladder, 150, 1)) == 1
        assert ladder.observe(150, dropped=3) is None and ladder.observe(150, dropped=1) is None
        assert ladder.observe(150, dropped=3) is not None

    def test_refuses_settings_out_of_range(self) -> None:
        with pytest.raises(ConfigError):
            LadderConfig(deadline_ms=0)
        with pytest.raises(ConfigError):
            LadderConfig(deadline_ms=10, share=1.5)
        with pytest.raises(ConfigError):
            Ladder(self.config, steps=())


class TestTimeCode:
    def noisy(self, size: tuple[int, int], seed: int = 0) -> Frame:
        rng = np.random.default_rng(seed)
        return rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)

    @pytest.mark.parametrize("size", [(256, 144), (640, 360), (641, 361), (1280, 720)])
    def test_reads_what_was_drawn(self, size: tuple[int, int]) -> None:
        frame = self.noisy(size)
        draw_code(frame, TimeCode(12345.6789, 777))
        read = read_code(frame)
        assert read is not None and read.number == 777
        assert read.age(12345.7789) == pytest.approx(0.1)

    @pytest.mark.parametrize("crf", [18, 35, 45])
    def test_survives_h264(self, tmp_path: Path, crf: int) -> None:
        """Encoded by the writer of the streams, decoded by another: every code, to the 0.1 ms."""
        path, base = tmp_path / "code.mp4", Fraction(1, 30)
        info = VideoInfo(name="t", width=640, height=360, rate=Fraction(30), time_base=base)
        writer = VideoWriter(path, info, size=(640, 360), config=EncodeConfig(crf=crf, threads=1))
        ground = self.noisy((64, 36)).repeat(10, axis=0).repeat(10, axis=1)
        for n in range(20):
            frame = np.roll(ground, 3 * n, axis=1).copy()
            draw_code(frame, TimeCode(100 + n / 30, n))
            writer.write(SourceFrame(index=n, pts=n, time_base=base, image=frame))
        writer.finish()
        codes = [read_code(frame) for _, frame in read_clip(path)]
        assert [code.number if code else None for code in codes] == list(range(20))
        assert all(code and abs(code.seconds - (100 + n / 30)) <= 1e-4 for n, code in enumerate(codes))

    def test_a_picture_without_a_code_has_none(self) -> None:
        assert [read_code(self.noisy((640, 360), seed)) for seed in range(20)].count(None) >= 19
        assert read_code(np.zeros((360, 640, 3), np.uint8)) is None
        assert read_code(np.zeros((10, 10, 3), np.uint8)) is None

    def test_a_damaged_code_is_not_believed(self) -> None:
        frame = self.noisy((640, 360))
        draw_code(frame, TimeCode(1.0, 1))
        frame[-32:-16, :16] = 255 - frame[-32:-16, :16]
        assert read_code(frame) is None

    def test_the_clock_may_wrap(self) -> None:
        wrap = 2**32 / 10_000
        assert TimeCode(wrap - 0.05, 0).age(wrap + 0.05) == pytest.approx(0.1)

    def test_refuses_a_picture_too_small(self) -> None:
        with pytest.raises(ConfigError, match="256"):
            draw_code(np.zeros((100, 200, 3), np.uint8), TimeCode(0, 0))


class TestStats:
    def board(self) -> tuple[StatsBoard, list[float]]:
        now = [100.0]
        return StatsBoard(Labels(source="a", sink="b", deadline_ms=50.0), now=lambda: now[0]), now

    def test_counts_rates_and_ages(self) -> None:
        board, now = self.board()
        for n in range(100):
            now[0] += 0.04
            board.came_in()
            if n % 2:
                late = n > 90
                board.went_out(
                    60.0 if late else 20.0, tracks=(TrackView(id=3, box=(1, 2, 3, 4), score=1.0),), late=late
                )
        board.lost("sink")
        stats = board.snapshot()
        assert (stats.frames_in, stats.frames_out, stats.dropped_total, stats.in_flight) == (100, 50, 1, 49)
        assert stats.late == 5 and stats.faces == 50
        assert stats.fps_in == pytest.approx(25, rel=0.02) and stats.fps_out == pytest.approx(12.5, rel=0.03)
        assert stats.age is not None and stats.age.p50_ms == 20 and stats.age.most_ms == 60
        plain = json.loads(json.dumps(stats.to_json()))
        assert plain["step"] == "full" and plain["dropped"] == {"sink": 1}
        assert plain["tracks"][0]["id"] == 3

    def test_a_stream_that_stands_still_shows_no_rate(self) -> None:
        board, now = self.board()
        for _ in range(50):
            now[0] += 0.04
            board.came_in()
        now[0] += 20
        assert board.snapshot().fps_in == 0

    def test_memory_stays_bounded_and_totals_go_on(self) -> None:
        board, _ = self.board()
        for n in range(5000):
            board.clock.add("restore", 0.001 if n < 4000 else 0.002)
            board.went_out(1.0, tracks=(), late=False)
        (timing,) = board.snapshot().stages
        assert timing.count == 5000 and timing.p50_ms == pytest.approx(2.0)
        assert timing.total_ms == pytest.approx(6000)
        age = board.snapshot().age
        assert age is not None and age.count < 2000

    def test_codes_read_and_not(self) -> None:
        board, _ = self.board()
        assert board.snapshot().glass is None
        board.read_code(80.0)
        board.read_code(None)
        stats = board.snapshot()
        assert stats.glass is not None and stats.glass.p50_ms == 80 and stats.unreadable == 1


class TestEvents:
    def test_keeps_the_last_and_hides_credentials(self, caplog: pytest.LogCaptureFixture) -> None:
        log = EventLog(kept=3)
        with caplog.at_level("INFO", logger="ufr_edge"):
            for n in range(5):
                log.add("lost", f"rtsp://me:hunter2@cam/{n} is gone")
        assert [event.text for event in log.last()] == [f"rtsp://***@cam/{n} is gone" for n in (2, 3, 4)]
        assert "hunter2" not in caplog.text and "cam/4" in caplog.text
        json.dumps([event.to_json() for event in log.last(1)])


class TestLoopback:
    def test_the_format_is_as_the_kernel_reads_it(self) -> None:
        data = v4l2_format(640, 480)
        assert len(data) == 208
        kind, _, width, height, code = np.frombuffer(data[:20], "<u4")
        assert (kind, width, height) == (2, 640, 480) and int(code).to_bytes(4, "little") == b"YU12"

    def test_pictures_are_planar(self) -> None:
        grey = np.full((48, 64, 3), 128, np.uint8)
        data = np.frombuffer(planar(grey), np.uint8)
        assert len(data) == 48 * 64 * 3 // 2
        assert abs(int(data[0]) - 126) <= 1 and abs(int(data[-1]) - 128) <= 1


def test_the_muxers_that_the_sinks_need_are_there() -> None:
    assert {"mpegts", "rtsp", "flv", "mp4", "matroska"} <= set(av.formats_available)
