"""A video that is interrupted, at any moment and in any way, goes on where it stopped; workers share one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import StubEngine, read_clip, sound_packets, write_clip

from ufr_edge.errors import ConfigError, InferenceError, OutputError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.lock import file_lock
from ufr_edge.runtime.report import RunReport
from ufr_edge.runtime.run import RunConfig, run_path
from ufr_edge.runtime.run_parts import PartFolder, Span, kept_frames
from ufr_edge.runtime.timing import StageClock
from ufr_edge.runtime.video.encoder import EncodeConfig
from ufr_edge.runtime.video.parts import PartRecord, PartWriter, read_record
from ufr_edge.runtime.video.reader import VideoReader

CONFIG = RunConfig(
    aligned=True,
    encode=EncodeConfig(crf=0, preset="ultrafast", threads=1),
    threads=1,
    segment_s=0.4,  # 10 frames
)


class Breaking(StubEngine):
    """Raises when it has restored `after` faces."""

    after = 10_000

    def infer(self, batch: Frame) -> Frame:
        if len(self.batches) >= self.after:
            msg = "The engine broke."
            raise InferenceError(msg)
        return super().infer(batch)


def breaking(after: int) -> Breaking:
    engine = Breaking()
    engine.after = after
    return engine


@contextmanager
def reopened() -> Iterator[StubEngine]:
    """What a worker opens; found by name in its process."""
    yield StubEngine()


@contextmanager
def reopened_to_break() -> Iterator[StubEngine]:
    yield breaking(15)


@contextmanager
def reopened_to_die() -> Iterator[StubEngine]:
    os._exit(7)
    yield StubEngine()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def clip_of(folder: Path, frames: int = 45) -> Path:
    return write_clip(folder / "in.mp4", frames, size=(64, 64), sound="aac")


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".out.mp4.parts").glob("*.part"))


def whole(folder: Path, clip: Path) -> list[tuple[Fraction, Frame]]:
    run_path(clip, folder / "whole.mp4", StubEngine(), CONFIG)
    return read_clip(folder / "whole.mp4")


def same(a: list[tuple[Fraction, Frame]], b: list[tuple[Fraction, Frame]]) -> None:
    assert [when for when, _ in a] == [when for when, _ in b]
    for (_, one), (_, other) in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


class TestResume:
    def test_goes_on_after_the_parts_that_were_finished(self, tmp_path: Path) -> None:
        clip, out = clip_of(tmp_path), tmp_path / "out.mp4"
        with pytest.raises(InferenceError, match="broke"):
            run_path(clip, out, breaking(27), CONFIG)
        assert parts(tmp_path) == ["0000000.part", "0000001.part"] and not out.exists()
        assert kept_frames(out) == 20
        engine, seen = StubEngine(), list[tuple[int, int | None]]()
        report = run_path(clip, out, engine, CONFIG, watch=lambda done, total: seen.append((done, total)))
        assert seen[0] == (20, 45) and seen[-1] == (45, 45)  # what is left is known from the start
        assert len(engine.batches) < 45 - 20 + 15  # the rest, and half a second before it
        assert (report.frames_in, report.frames_out, report.frames_kept, report.faces) == (45, 45, 20, 45)
        same(read_clip(out), whole(tmp_path, clip))
        assert [data for _, data in sound_packets(out)] == [data for _, data in sound_packets(clip)]
        assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.mp4", "whole.mp4"}

    def test_a_lost_part_in_the_middle_is_made_again(self, tmp_path: Path) -> None:
        clip, out = clip_of(tmp_path), tmp_path / "out.mp4"
        with pytest.raises(InferenceError):
            run_path(clip, out, breaking(37), CONFIG)
        folder = tmp_path / ".out.mp4.parts"
        (folder / "0000001.part").write_bytes(b"torn")
        run_path(clip, out, StubEngine(), CONFIG)
        same(read_clip(out), whole(tmp_path, clip))

    def test_ctrl_c_keeps_what_is_finished(self, tmp_path: Path) -> None:
        def stop(done: int, total: int | None) -> None:
            if done == 15:
                raise KeyboardInterrupt

        clip, out = clip_of(tmp_path), tmp_path / "out.mp4"
        before = set(threading.enumerate())
        with pytest.raises(KeyboardInterrupt):
            run_path(clip, out, StubEngine(), CONFIG, watch=stop)
        assert parts(tmp_path) == ["0000000.part"] and not list(tmp_path.glob(".out.mp4.parts/*.tmp"))
        assert set(threading.enumerate()) <= before
        assert run_path(clip, out, StubEngine(), CONFIG).frames_kept == 10

    @pytest.mark.parametrize("share", [0.04, 1.0])  # in the first part; of the largest: when they are joined
    def test_a_file_that_may_not_grow_is_named_and_what_is_finished_is_kept(
        self, tmp_path: Path, share: float
    ) -> None:
        clip, out = clip_of(tmp_path), tmp_path / "out.mp4"
        with pytest.raises(InferenceError):
            run_path(clip, out, breaking(44), CONFIG)
        largest = max(path.stat().st_size for path in tmp_path.glob(".out.mp4.parts/*.part"))
        if share < 1:
            shutil.rmtree(tmp_path / ".out.mp4.parts")
        with (
            files_up_to(round(1.1 * share * largest)),
            pytest.raises(OutputError, match=r"out\.mp4.*larger than"),
        ):
            run_path(clip, out, StubEngine(), CONFIG)
        assert not out.exists() and not list(tmp_path.rglob("*.tmp"))
        report = run_path(clip, out, StubEngine(), CONFIG)
        assert (report.frames_out, report.frames_kept) == (45, 0 if share < 1 else 45)
        same(read_clip(out), whole(tmp_path, clip))

    @pytest.mark.parametrize("change", ["settings", "source", "engine"])
    def test_parts_of_another_job_are_not_used(self, tmp_path: Path, change: str) -> None:
        clip, out = clip_of(tmp_path), tmp_path / "out.mp4"
        with pytest.raises(InferenceError):
            run_path(clip, out, breaking(27), CONFIG)
        config, engine = CONFIG, StubEngine()
        if change == "settings":
            config = replace(config, encode=replace(config.encode, crf=20))
        elif change == "source":
            clip = clip_of(tmp_path, 46)
        else:
            engine = StubEngine(info=replace(engine.info, precision="int8"))
        report = run_path(clip, out, engine, config)
        assert report.frames_kept == 0 and "2 parts of a run with other settings" in report.notes[-1]
        assert report.frames_out == len(read_clip(out)) == (46 if change == "source" else 45)

    def test_a_variable_frame_rate_with_a_long_pause(self, tmp_path: Path) -> None:
        stamps = [0, 40, 80, 390, 400, 410, 2500, 2540, 2600, 2999, 3000]
        clip = write_clip(tmp_path / "in.mkv", pts=stamps, size=(64, 64))
        for after in range(1, len(stamps)):
            out = tmp_path / f"{after}.mkv"
            with pytest.raises(InferenceError):
                run_path(clip, out, breaking(after), CONFIG)
            run_path(clip, out, StubEngine(), CONFIG)
            assert [when for when, _ in read_clip(out)] == [Fraction(t, 1000) for t in stamps]

    def test_two_runs_to_one_output_do_not_meet(self, tmp_path: Path) -> None:
        clip, out = clip_of(tmp_path, 5), tmp_path / "out.mp4"
        with file_lock(tmp_path / ".out.mp4.parts" / "lock"), pytest.raises(OutputError, match="in use"):
            run_path(clip, out, StubEngine(), CONFIG)

    def test_killed_at_any_moment(self, tmp_path: Path) -> None:
        clip, out = clip_of(tmp_path), tmp_path / "out.mp4"
        script = tmp_path / "run.py"
        script.write_text(
            "import sys, time\nfrom pathlib import Path\n"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from clips import StubEngine\nfrom test_run_resume import CONFIG\n"
            "from ufr_edge.runtime.run import run_path\n"
            f"run_path(Path({str(clip)!r}), Path({str(out)!r}), StubEngine(), CONFIG,"
            " watch=lambda done, total: time.sleep(0.05))\n"
        )
        process = subprocess.Popen([sys.executable, str(script)])
        while not parts(tmp_path) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists() and parts(tmp_path)
        report = run_path(clip, out, StubEngine(), CONFIG)
        assert report.frames_kept >= 10
        same(read_clip(out), whole(tmp_path, clip))
        assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.mp4", "whole.mp4", "run.py"}


class TestWorkers:
    def test_several_make_the_same_film(self, tmp_path: Path) -> None:
        clip, out = clip_of(tmp_path), tmp_path / "out.mp4"
        seen: list[int] = []
        config = replace(CONFIG, workers=2)
        report: RunReport = run_path(
            clip, out, StubEngine(), config, watch=lambda done, _total: seen.append(done), reopen=reopened
        )
        assert report.frames_out == 45 and seen == list(range(46))
        assert {stage.name for stage in report.stages} == {"decode", "warp", "restore", "paste", "encode"}
        assert report.notes == ()
        same(read_clip(out), whole(tmp_path, clip))

    def test_an_error_in_one_ends_the_others_and_leaves_no_film(self, tmp_path: Path) -> None:
        clip, out = clip_of(tmp_path), tmp_path / "out.mp4"
        config = replace(CONFIG, workers=2)
        with pytest.raises(InferenceError, match="broke"):
            run_path(clip, out, StubEngine(), config, reopen=reopened_to_break)
        assert not out.exists()  # whether a part was finished by then is a matter of luck
        run_path(clip, out, StubEngine(), CONFIG)
        same(read_clip(out), whole(tmp_path, clip))

    def test_one_that_dies_is_named(self, tmp_path: Path) -> None:
        clip, out = clip_of(tmp_path), tmp_path / "out.mp4"
        with pytest.raises(InferenceError, match=r"died \(exit code 7\).*--workers"):
            run_path(clip, out, StubEngine(), replace(CONFIG, workers=2), reopen=reopened_to_die)
        assert {path.name for path in tmp_path.iterdir()} == {"in.mp4"}

    def test_wrong_settings(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="reopen"):
            run_path(clip_of(tmp_path), tmp_path / "out.mp4", StubEngine(), replace(CONFIG, workers=2))
        with pytest.raises(ConfigError):
            RunConfig(workers=0)

    def test_spans(self, tmp_path: Path) -> None:
        folder = PartFolder(path=tmp_path, window=Fraction(10), start=Fraction(0))
        done = {index: PartRecord() for index in (0, 1, 4)}
        assert folder.missing(done, end=Fraction(75), workers=1) == [Span(2, 4), Span(5, None)]
        assert folder.missing({}, end=None, workers=4) == [Span(0, None)]
        many = folder.missing({}, end=Fraction(1000), workers=2)
        assert [span.first for span in many] == [0, 6, 12, *range(18, 100, 6), 100][: len(many)]
        covered = [i for span in many[:-1] for i in range(span.first, span.last or 0)]
        assert covered == list(range(100)) and many[-1] == Span(100, None)


class TestReading:
    def test_reading_from_the_middle_gives_the_same_frames(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mp4", 110, size=(64, 64))
        with VideoReader(clip) as reader:
            frames = {item.pts: item.image for item in reader.items()}
            for second in (Fraction(0), Fraction(1), Fraction(5, 2), Fraction(4)):
                later = list(reader.items(second))
                assert [f.pts for f in later] == [p for p in frames if p * reader.info.time_base >= second]
                assert all((f.image == frames[f.pts]).all() for f in later)

    def test_a_part_is_whole_or_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "0.part"
        with PartWriter(path):
            assert not path.exists()
        assert list(tmp_path.iterdir()) == []
        with PartWriter(path) as part:
            part.finish({"faces": 2})
        assert read_record(path) == PartRecord(faces=2)


class TestMemory:
    def test_a_clock_does_not_grow_and_is_right_to_a_hundredth(self) -> None:
        clock, other = StageClock(), StageClock()
        for n in range(1, 1001):
            (clock if n % 2 else other).add("decode", n / 1000)
        size = sum(counts.bins.nbytes for counts in clock.counts().values())
        clock.merge(other.counts())
        (timing,) = clock.timings()
        assert timing.count == 1000 and timing.total_ms == pytest.approx(500_500)
        assert timing.p50_ms == pytest.approx(500, rel=0.01) and timing.p99_ms == pytest.approx(990, rel=0.01)
        assert sum(counts.bins.nbytes for counts in clock.counts().values()) == size
        json.dumps(timing.p50_ms)
