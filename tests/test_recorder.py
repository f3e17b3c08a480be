"""The recorder: what it keeps, what makes room, who may read it, and that a power cut leaves it whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ufr_edge.cli.faces import command as faces_command
from ufr_edge.cli.faces import parse_age
from ufr_edge.errors import ConfigError, InputFileError, OutputError
from ufr_edge.runtime.face_store import DAY_S, FaceRow, expired, open_store, purge, read_rows
from ufr_edge.runtime.faces.align import estimate_alignment, template
from ufr_edge.runtime.faces.detect import Face
from ufr_edge.runtime.images import read_image
from ufr_edge.runtime.recorder import (
    FaceRecorder,
    RecorderConfig,
    Sighting,
    apart,
    around,
    look_of,
    open_recorder,
    share_inside,
    victim,
)

SIDE = 64
SMALL = RecorderConfig(min_free_mb=0, min_pixels=16)
FRAME = (640, 480)


def sighting(
    track: int = 1,
    time_s: float = 0.0,
    *,
    score: float = 0.9,
    light: int = 100,
    scale: float = 1.5,
    at: tuple[float, float] = (200.0, 150.0),
    seed: int = 0,
) -> Sighting:
    points = template(SIDE) * scale + np.array(at, np.float32)
    box = np.array([*points.min(axis=0), *points.max(axis=0)], np.float32)
    noise = np.random.default_rng(seed).integers(0, 8, (SIDE, SIDE, 3))
    return Sighting(
        crop=(light + noise).astype(np.uint8),
        face=Face(box=box, score=score, landmarks=points),
        matrix=estimate_alignment(points, SIDE),
        frame_size=FRAME,
        track=track,
        frame=round(time_s * 30),
        time_s=time_s,
        source="camera",
        measures={"blur": 0.5},
    )


def modes(folder: Path) -> set[str]:
    return {stat.filemode(p.stat().st_mode) for p in folder.iterdir() if p.name != ".lock"}


class TestWhatIsKept:
    def test_crop_and_index_agree(self, tmp_path: Path) -> None:
        one = sighting()
        with open_recorder(tmp_path / "faces", RecorderConfig(min_free_mb=0, camera="door")) as recorder:
            assert recorder.offer(one) is None
            assert recorder.stats.kept == recorder.stats.held == recorder.stats.tracks == 1
        (row,) = read_rows(tmp_path / "faces")
        np.testing.assert_array_equal(read_image(tmp_path / "faces" / row.file), one.crop)
        assert row.track == "0.1" and row.seq == 0 and row.size > 0
        assert row.time == pytest.approx(time.time(), abs=3600)
        assert (
            row.rest["camera"] == "door"
            and row.rest["score"] == 0.9
            and row.rest["measures"] == {"blur": 0.5}
        )
        assert len(row.rest["landmarks"]) == 5 and row.rest["pixels"] == pytest.approx(96, abs=0.5)

    def test_a_camera_named_by_its_address_keeps_its_password(self, tmp_path: Path) -> None:
        config = RecorderConfig(min_free_mb=0, camera="rtsp://admin:secret@10.0.0.7/live")
        with open_recorder(tmp_path / "faces", config) as recorder:
            assert recorder.offer(sighting()) is None
        (row,) = read_rows(tmp_path / "faces")
        assert row.rest["camera"].endswith("10.0.0.7/live")
        assert all(b"secret" not in path.read_bytes() for path in (tmp_path / "faces").iterdir())

    def test_reasons_to_leave_a_face_out(self, tmp_path: Path) -> None:
        config = RecorderConfig(min_free_mb=0, min_pixels=64, per_track=2, gap_s=1.0)
        with open_recorder(tmp_path / "faces", config) as recorder:
            assert recorder.offer(sighting(score=0.3)) == "unsure"
            assert recorder.offer(sighting(scale=0.5)) == "small"
            assert recorder.offer(sighting(at=(600.0, 150.0))) == "cut off"
            assert recorder.offer(sighting(1, 0.0)) is None
            assert recorder.offer(sighting(1, 0.5, light=160)) == "soon"
            assert recorder.offer(sighting(1, 2.0)) == "alike"
            assert recorder.offer(sighting(1, 3.0, light=160)) is None
            assert recorder.offer(sighting(3, 0.0)) is None
            assert recorder.offer(sighting(3, 4.9)) == "alike"
            assert recorder.offer(sighting(3, 5.1)) is None  # it was long ago: its noise is new
            assert recorder.offer(sighting(1, 5.0, light=30)) == "enough"
            assert recorder.offer(sighting(2, 5.0)) is None  # another person
            assert recorder.stats.refused == {
                "unsure": 1, "small": 1, "cut off": 1, "soon": 1, "alike": 2, "enough": 1,
            }  # fmt: skip

    def test_tracks_of_a_stream_that_runs_for_weeks_are_not_all_remembered(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ufr_edge.runtime.recorder._LAST_KEPT", 3)
        config = RecorderConfig(min_free_mb=0, min_pixels=64, max_faces=5, gap_s=1.0)
        with open_recorder(tmp_path / "faces", config) as recorder:
            assert all(recorder.offer(sighting(track, track / 10)) is None for track in range(1, 12))
            assert len(recorder._last) == 3
            assert recorder.offer(sighting(11, 1.2)) == "soon"  # the newest are

    def test_pose_size_and_light_each_make_another_look(self) -> None:
        base = look_of(sighting())
        assert apart(base, look_of(sighting(seed=1))) < 0.2
        assert apart(base, look_of(sighting(light=120))) > 1
        assert apart(base, look_of(sighting(scale=2.2))) > 1
        turned = sighting()
        turned.face.landmarks[2] += (12, 0)
        assert apart(base, look_of(turned)) > 1
        assert apart(base, ()) == float("inf")

    def test_share_of_a_crop_inside_the_frame(self) -> None:
        assert share_inside(sighting()) == 1
        assert share_inside(sighting(at=(-48.0, 100.0))) == pytest.approx(0.5)

    def test_the_piece_of_the_frame_begins_on_the_grid(self) -> None:
        frame = np.arange(100 * 120 * 3, dtype=np.uint32).reshape(100, 120, 3).astype(np.uint8)
        piece = around(frame, np.array([13, 22, 60, 90], np.float32))
        np.testing.assert_array_equal(piece, frame[16:90, 8:60])
        assert around(frame, np.array([-9, np.nan, 500, 500], np.float32)).shape == (100, 120, 3)
        assert around(frame, np.array([200, 200, 300, 300], np.float32)).size == 0

    def test_tracks_of_another_run_are_others(self, tmp_path: Path) -> None:
        for _ in range(2):
            with open_recorder(tmp_path / "faces", SMALL) as recorder:
                assert recorder.offer(sighting(1)) is None
        assert [row.track for row in read_rows(tmp_path / "faces")] == ["0.1", "1.1"]

    @pytest.mark.parametrize(
        "wrong", [{"per_track": 0}, {"max_mb": 0}, {"keep_days": 0}, {"min_score": 2}, {"gap_s": -1}]
    )
    def test_settings_that_do_not_fit(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ConfigError):
            RecorderConfig(**wrong)  # type: ignore[arg-type]


class TestRoom:
    def test_the_crowded_track_makes_room_for_new_people(self, tmp_path: Path) -> None:
        config = RecorderConfig(min_free_mb=0, min_pixels=16, max_faces=6, gap_s=0)
        with open_recorder(tmp_path / "faces", config) as recorder:
            for n in range(5):
                recorder.offer(sighting(1, float(n), light=40 + 30 * n))
            for n in range(4):
                recorder.offer(sighting(2 + n, 10.0 + n))
            assert recorder.stats.held == 6 and recorder.stats.removed == 3
        tracks = [row.track for row in read_rows(tmp_path / "faces")]
        assert tracks.count("0.1") == 2 and len(set(tracks)) == 5
        assert len(list((tmp_path / "faces").glob("*.png"))) == 6

    def test_megabytes_are_a_limit_too(self, tmp_path: Path) -> None:
        config = RecorderConfig(min_free_mb=0, min_pixels=16, max_mb=0.02)
        with open_recorder(tmp_path / "faces", config) as recorder:
            for n in range(12):
                recorder.offer(sighting(n, seed=n))
            assert recorder.stats.megabytes <= 0.02 and 1 < recorder.stats.held < 12
        files = [*(tmp_path / "faces").glob("*.png"), tmp_path / "faces" / "index.jsonl"]
        assert sum(p.stat().st_size for p in files) <= 20000

    def test_the_index_does_not_grow_without_limit(self, tmp_path: Path) -> None:
        index, sizes = tmp_path / "faces" / "index.jsonl", []
        config = replace(SMALL, max_faces=9)
        with open_recorder(tmp_path / "faces", config) as recorder:
            for n in range(500):
                recorder.offer(sighting(n, seed=n % 5))
                sizes.append(index.stat().st_size)
        assert max(sizes) < 150 * 800 and sizes[-1] > 0
        crops = sum(p.stat().st_size for p in (tmp_path / "faces").glob("*.png"))
        assert recorder.stats.megabytes * 1e6 == pytest.approx(crops + sizes[-1], abs=501)
        rows = read_rows(tmp_path / "faces")
        assert len(rows) == 9 and rows[-1].seq == 499
        with open_recorder(tmp_path / "faces", config) as again:
            again.offer(sighting(1))
        assert read_rows(tmp_path / "faces")[-1].seq == 500

    def test_an_index_that_cannot_be_written_anew_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("ufr_edge.runtime.face_store._rewrite", full)
        with open_recorder(tmp_path / "faces", replace(SMALL, max_faces=2)) as recorder:
            for n in range(120):
                recorder.offer(sighting(n, seed=n % 5))
        assert [row.seq for row in read_rows(tmp_path / "faces")] == [118, 119]

    def test_the_redundant_goes_first_then_the_oldest_of_the_fullest_hour(self) -> None:
        def row(seq: int, track: str, light: float, *, hour: int = 0) -> tuple[str, FaceRow]:
            return track, FaceRow(
                seq=seq, file=f"{seq:08d}.png", time=hour * 3600.0, track=track, look=(0, 0, 0, light)
            )

        def chosen(*rows: tuple[str, FaceRow]) -> int:
            groups: dict[str, dict[int, FaceRow]] = {}
            for track, one in rows:
                groups.setdefault(track, {})[one.seq] = one
            return victim(groups.values()).seq

        assert chosen(row(0, "a", 0), row(1, "b", 0), row(2, "b", 5), row(3, "b", 5.5), row(4, "a", 9)) == 2
        assert chosen(row(0, "a", 0, hour=1), row(1, "b", 0, hour=2), row(2, "c", 0, hour=2)) == 1

    def test_a_full_disk_stops_recording_in_words(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open_recorder(tmp_path / "faces", RecorderConfig(min_free_mb=500)) as recorder:
            usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
            with pytest.raises(OutputError, match="10 MB left"):
                recorder.offer(sighting())

    def test_old_faces_go_by_themselves(self, tmp_path: Path) -> None:
        now = 1_000_000.0
        with open_recorder(tmp_path / "faces", SMALL, now=lambda: now) as recorder:
            recorder.offer(sighting(1))
        with open_recorder(tmp_path / "faces", SMALL, now=lambda: now + 31 * DAY_S) as recorder:
            recorder.offer(sighting(2))
            assert recorder.stats.held == 1 and recorder.stats.removed == 1
        (row,) = read_rows(tmp_path / "faces")
        assert row.track == "1.2" and not (tmp_path / "faces" / "00000000.png").exists()


class TestAge:
    def rows(self, *times: float) -> list[FaceRow]:
        return [FaceRow(seq=n, file=f"{n:08d}.png", time=t) for n, t in enumerate(times)]

    def test_by_time(self) -> None:
        assert [r.seq for r in expired(self.rows(0, 50, 99), 60, now=100)] == [0]

    def test_a_clock_that_jumped_back_keeps_no_face_for_ever(self) -> None:
        # The first face says the year 2100; the one after it, 40 s ago.
        assert [r.seq for r in expired(self.rows(4e9, 60), 30, now=100)] == [0, 1]
        assert expired(self.rows(4e9, 60), 50, now=100) == []

    def test_ages_in_words(self) -> None:
        assert parse_age("30d") == 30 * DAY_S and parse_age("1.5 h") == 5400 and parse_age("90min") == 5400
        with pytest.raises(ConfigError, match="30d"):
            parse_age("soon")


class TestPrivacy:
    def test_only_the_owner_can_read(self, tmp_path: Path) -> None:
        folder = tmp_path / "deep" / "faces"
        before = os.umask(0)
        try:
            with open_recorder(folder, SMALL) as recorder:
                recorder.offer(sighting())
        finally:
            os.umask(before)
        assert stat.filemode(folder.stat().st_mode) == "drwx------"
        assert modes(folder) == {"-rw-------"}

    def test_purge_by_age_and_whole(self, tmp_path: Path) -> None:
        folder = tmp_path / "faces"
        with open_recorder(folder, SMALL, now=lambda: 1000.0) as recorder:
            recorder.offer(sighting(1))
        with open_recorder(folder, SMALL, now=lambda: 2000.0) as recorder:
            recorder.offer(sighting(1))
        assert purge(folder, older_than_s=500, now=lambda: 2100.0) == (1, 1)
        assert [row.seq for row in read_rows(folder)] == [1]
        assert purge(folder) == (1, 0) and not folder.exists()

    def test_purge_leaves_what_is_not_ours(self, tmp_path: Path) -> None:
        folder = tmp_path / "faces"
        with open_recorder(folder, SMALL) as recorder:
            recorder.offer(sighting())
        (folder / "holiday.jpg").write_bytes(b"x")
        assert purge(folder) == (1, 0)
        assert [p.name for p in folder.iterdir()] == ["holiday.jpg"]
        with pytest.raises(InputFileError, match="no folder of collected faces"):
            purge(folder)

    def test_an_index_cannot_name_files_elsewhere(self, tmp_path: Path) -> None:
        folder, other = tmp_path / "faces", tmp_path / "precious.png"
        other.write_bytes(b"x")
        with open_recorder(folder, SMALL) as recorder:
            recorder.offer(sighting())
        with (folder / "index.jsonl").open("a") as index:
            index.write(json.dumps({"seq": 7, "file": "../precious.png"}) + "\n")
        purge(folder)
        assert other.exists()

    def test_a_folder_of_other_files_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "holiday.jpg").write_bytes(b"x")
        with pytest.raises(OutputError, match="Choose another folder"), open_recorder(tmp_path, SMALL):
            pass
        with pytest.raises(OutputError, match="no folder"), open_recorder(tmp_path / "holiday.jpg", SMALL):
            pass

    def test_two_recorders_do_not_share_a_folder(self, tmp_path: Path) -> None:
        with open_recorder(tmp_path / "faces", SMALL):
            with pytest.raises(OutputError, match="in use"), open_recorder(tmp_path / "faces", SMALL):
                pass
            with pytest.raises(OutputError, match="in use"):
                purge(tmp_path / "faces")


class TestPowerCut:
    def filled(self, tmp_path: Path, count: int = 3) -> Path:
        with open_recorder(tmp_path / "faces", SMALL) as recorder:
            for n in range(count):
                recorder.offer(sighting(n, seed=n))
        return tmp_path / "faces"

    def test_a_crop_without_its_line_is_kept(self, tmp_path: Path) -> None:
        folder = self.filled(tmp_path)
        lines = (folder / "index.jsonl").read_text().splitlines()
        (folder / "index.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
        with open_store(folder) as store:
            assert sorted(store.rows) == [0, 1, 2] and len(store.notes) == 2
            assert store.rows[2].rest == {"recovered": True} and store.rows[2].track is None
        assert [row.seq for row in read_rows(folder)] == [0, 1, 2]
        with open_store(folder) as store:
            assert store.notes == ()

    def test_a_line_without_its_crop_goes_and_so_does_a_torn_crop(self, tmp_path: Path) -> None:
        folder = self.filled(tmp_path)
        (folder / "00000000.png").unlink()
        whole = (folder / "00000001.png").read_bytes()
        (folder / "00000001.png").write_bytes(whole[: len(whole) // 2])
        (folder / ".00000003.x1y2.png").write_bytes(b"half")
        (folder / ".index.abc.jsonl").write_bytes(b"half")
        with open_store(folder) as store:
            assert sorted(store.rows) == [2] and store.next_seq == 3
        assert sorted(p.name for p in folder.glob("*.png")) == ["00000002.png"]
        assert not list(folder.glob(".*.png")) + list(folder.glob(".*.jsonl"))

    def test_what_was_kept_is_on_the_disk_within_a_second_whatever_comes_then(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """People who stand there are looked at all the time, and refused: their first face must not wait for that."""
        clock, synced = [100.0], list[str]()
        monkeypatch.setattr("ufr_edge.runtime.face_store.time.monotonic", lambda: clock[0])
        monkeypatch.setattr("ufr_edge.runtime.face_store._sync", lambda path: synced.append(path.name))
        with open_recorder(tmp_path, SMALL) as recorder:
            clock[0] += 0.4
            assert recorder.offer(sighting(1)) is None
            assert synced == []
            for _ in range(20):
                clock[0] += 0.05
                assert recorder.offer(sighting(1)) == "soon"
            assert synced == ["00000000.png", tmp_path.name]
            # Where nothing was written, nothing is: a recorder that waits for days does not wear its disk out.
            for _ in range(5):
                clock[0] += 1.0
                recorder.sync()
            assert len(synced) == 2

    def test_numbers_are_never_given_twice(self, tmp_path: Path) -> None:
        folder = self.filled(tmp_path)
        with open_store(folder) as store:
            for row in list(store.rows.values()):
                store.drop(row, "test")
        for _ in range(2):  # the second time from an index that was written anew
            with open_store(folder) as store:
                assert store.next_seq == 3 and store.rows == {}

    def test_order_is_by_number_when_the_clock_jumps(self, tmp_path: Path) -> None:
        clock = iter([5000.0] * 3 + [100.0] * 9)
        with open_recorder(tmp_path / "faces", SMALL, now=lambda: next(clock)) as recorder:
            for n in range(3):
                recorder.offer(sighting(n, seed=n))
        assert [row.seq for row in read_rows(tmp_path / "faces")] == [0, 1, 2]

    def test_an_index_that_was_emptied_costs_no_face(self, tmp_path: Path) -> None:
        folder = self.filled(tmp_path)
        (folder / "index.jsonl").write_text("")
        with open_store(folder) as store:
            assert sorted(store.rows) == [0, 1, 2]

    @pytest.mark.slow
    def test_killed_at_random_points_it_is_always_whole(self, tmp_path: Path) -> None:
        folder = tmp_path / "faces"
        code = (
            "import sys, itertools; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
            "from test_recorder import SMALL, sighting, open_recorder\n"
            "from dataclasses import replace\n"
            "with open_recorder(Path(sys.argv[1]), replace(SMALL, max_faces=9)) as recorder:\n"
            "    print('open', flush=True)\n"
            "    for n in itertools.count():\n"
            "        recorder.offer(sighting(n, seed=n))\n"
        )
        rng, highest = np.random.default_rng(0), -1
        for _ in range(5):
            child = subprocess.Popen(
                [sys.executable, "-c", code, str(folder), str(Path(__file__).parent)], stdout=subprocess.PIPE
            )
            assert child.stdout is not None and child.stdout.readline() == b"open\n"
            time.sleep(float(rng.uniform(0, 0.3)))
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
            with open_store(folder) as store:
                assert {row.file for row in store.rows.values()} == {p.name for p in folder.glob("*.png")}
                assert len(store.rows) <= 10 and store.next_seq > highest
                highest = store.next_seq - 1
            for path in folder.glob("*.png"):
                assert read_image(path).shape == (SIDE, SIDE, 3)

    def test_a_disk_that_fills_up_leaves_what_was_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = self.filled(tmp_path)

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with open_recorder(folder, SMALL) as recorder:
            with monkeypatch.context() as patch:
                patch.setattr(Path, "write_bytes", full)
                with pytest.raises(OutputError, match="disk is full"):
                    recorder.offer(sighting(9))
            assert recorder.stats.held == 3
        assert len(read_rows(folder)) == 3


class TestCommand:
    def run(self, *args: str) -> str:
        result = CliRunner().invoke(faces_command, args, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    def filled(self, tmp_path: Path) -> str:
        folder = tmp_path / "faces"
        with open_recorder(folder, RecorderConfig(min_free_mb=0, min_pixels=16, camera="door")) as recorder:
            for n in range(3):
                recorder.offer(sighting(n, seed=n))
        return str(folder)

    def test_info(self, tmp_path: Path) -> None:
        value = json.loads(self.run("info", self.filled(tmp_path), "--json"))
        assert value["faces"] == 3 and value["tracks"] == 3 and value["cameras"] == "door (3)"

    def test_purge_asks_first(self, tmp_path: Path) -> None:
        folder = self.filled(tmp_path)
        refused = CliRunner().invoke(faces_command, ["purge", folder], input="n\n")
        assert refused.exit_code == 1 and len(read_rows(Path(folder))) == 3
        assert "0 faces removed, 3 left" in self.run("purge", folder, "--older-than", "1d", "--yes")
        assert "3 faces removed, 0 left" in self.run("purge", folder, "--yes")
        assert not Path(folder).exists()

    def test_fingerprint(self, tmp_path: Path) -> None:
        value = json.loads(self.run("fingerprint", self.filled(tmp_path), "--json"))
        assert value["faces"] == 3 and value["side"] == SIDE and "blur" in value["values"]
        assert "noise_1" in self.run("fingerprint", self.filled(tmp_path))


def test_a_recorder_is_of_one_folder_and_says_what_it_holds(tmp_path: Path) -> None:
    with open_recorder(tmp_path / "faces", SMALL) as recorder:
        assert isinstance(recorder, FaceRecorder)
        recorder.offer(sighting())
        plain = recorder.stats.to_json()
    assert json.loads(json.dumps(plain))["kept"] == 1
