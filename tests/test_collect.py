"""Collecting faces, and the synthetic camera they may come from."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from clips import StubDetector, picture, write_clip, write_picture

from ufr_edge.cli import main
from ufr_edge.cli.collect import command
from ufr_edge.errors import ConfigError, InputFileError, OutputError, ShapeError
from ufr_edge.runtime.collect import CollectConfig, collect, collect_faces, picture_frames
from ufr_edge.runtime.face_store import read_rows
from ufr_edge.runtime.faces.align import template
from ufr_edge.runtime.faces.detect import FaceDetector
from ufr_edge.runtime.faces.warp import apply
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import read_image
from ufr_edge.runtime.recorder import RecorderConfig
from ufr_edge.runtime.video.opening import builtin_picture, open_source
from ufr_edge.runtime.video.source import SourceFrame
from ufr_edge.runtime.video.synthetic import Motion, SyntheticScene, SyntheticSource

SMALL = CollectConfig(side=64, min_pixels=16)


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


class TestCollect:
    def test_crops_and_index_agree(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mp4", 6)
        report = collect(clip, tmp_path / "faces", detector=StubDetector([2, 0, 1]), config=SMALL)
        rows = lines(report.out)
        assert (report.faces, report.frames, report.frames_without_face) == (2 + 0 + 4, 6, 1)
        assert [row["frame"] for row in rows] == [0, 0, 2, 3, 4, 5]
        assert rows[2]["time"] == pytest.approx(0.08)
        for row in rows:
            assert read_image(report.out / str(row["file"])).shape == (64, 64, 3)
            points = apply(np.array(row["matrix"]), np.array(row["landmarks"], np.float32))
            np.testing.assert_allclose(points, template(64), atol=0.2)
        assert {p.suffix for p in report.out.iterdir()} == {".png", ".jsonl", ".json"}

    def test_every_and_limit(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mp4", 9)
        config = CollectConfig(side=64, min_pixels=16, every=3, limit=5)
        report = collect(clip, tmp_path / "faces", detector=StubDetector([2]), config=config)
        assert [row["frame"] for row in lines(report.out)] == [0, 0, 3, 3, 6]
        assert report.faces == 5

    def test_small_or_unsure_faces_are_left_out(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mp4", 2)
        for config in (
            CollectConfig(side=64, min_pixels=40),
            CollectConfig(side=64, min_pixels=8, min_score=0.95),
        ):
            with pytest.raises(InputFileError, match="No face was found in 2 frames"):
                collect(clip, tmp_path / "faces", detector=StubDetector([1]), config=config)
        assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]

    def test_folder_of_pictures(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for n in range(3):
            write_picture(tmp_path / "in" / f"{n}.png", picture(n))
        report = collect(tmp_path / "in", tmp_path / "faces", detector=StubDetector([1]), config=SMALL)
        assert [row["source"] for row in lines(report.out)] == ["0.png", "1.png", "2.png"]

    def test_refuses_to_overwrite_and_bad_settings(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mp4", 2)
        collect(clip, tmp_path / "faces", detector=StubDetector([1]), config=SMALL)
        with pytest.raises(OutputError, match="--overwrite"):
            collect(clip, tmp_path / "faces", detector=StubDetector([1]), config=SMALL)
        collect(clip, tmp_path / "faces", detector=StubDetector([1]), config=SMALL, overwrite=True)
        with pytest.raises(ConfigError):
            CollectConfig(every=0)

    def test_command_takes_every_face_when_asked(self, tmp_path: Path) -> None:
        out = tmp_path / "faces"
        arguments = [
            "synthetic://?frames=6&size=480x360",
            "-o",
            str(out),
            "--all",
            "--side",
            "128",
            "--every",
            "2",
        ]
        result = CliRunner().invoke(command, [*arguments, "--threads", "1", "--json"], catch_exceptions=False)
        assert result.exit_code == 0
        assert json.loads(result.output)["faces"] == 3
        assert read_image(out / "000002.png").shape == (128, 128, 3)


def frames(count: int, *, step: int = 5) -> list[SourceFrame]:
    """A frame a fifth of a second, slowly brighter."""
    return [
        SourceFrame(index=n, pts=n, time_base=Fraction(1, step), image=picture(n % 30)) for n in range(count)
    ]


class TestCollectFaces:
    RECORDER = RecorderConfig(min_pixels=16, min_inside=0, min_free_mb=0)

    def test_of_one_person_only_what_differs_is_kept(self, tmp_path: Path) -> None:
        report = collect_faces(
            frames(30),
            tmp_path / "faces",
            source="cam",
            detector=StubDetector([1]),
            config=SMALL,
            recorder=self.RECORDER,
        )
        done = report.recorded
        assert report.frames == 30 and report.frames_without_face == 0
        assert 1 <= done.kept < 8 and done.refused["soon"] > 10
        rows = read_rows(tmp_path / "faces")
        assert len(rows) == done.kept and {row.track for row in rows} == {"0.1"}
        gaps = np.diff([float(row.rest["stream_s"]) for row in rows])
        assert (gaps >= 1).all()
        for row in rows:
            assert read_image(tmp_path / "faces" / row.file).shape == (64, 64, 3)

    def test_adds_to_what_was_collected_and_stops_at_the_limit(self, tmp_path: Path) -> None:
        for limit in (1, 1):
            collect_faces(
                frames(20),
                tmp_path / "faces",
                source="cam",
                detector=StubDetector([2]),
                config=CollectConfig(side=64, limit=limit),
                recorder=self.RECORDER,
            )
        assert len(read_rows(tmp_path / "faces")) >= 2

    def test_frames_without_faces_are_counted(self, tmp_path: Path) -> None:
        report = collect_faces(
            frames(4),
            tmp_path / "faces",
            source="cam",
            detector=StubDetector([0]),
            config=SMALL,
            recorder=self.RECORDER,
        )
        assert report.frames_without_face == 4 and report.recorded.held == 0

    def test_pictures_of_a_folder_are_of_different_people(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for n in range(3):
            write_picture(tmp_path / "in" / f"{n}.png", picture(0))
        found = picture_frames(tmp_path / "in")
        assert found is not None
        collect_faces(
            found,
            tmp_path / "faces",
            source="in",
            detector=StubDetector([1]),
            config=SMALL,
            recorder=self.RECORDER,
        )
        assert len({row.track for row in read_rows(tmp_path / "faces")}) == 3
        assert picture_frames(tmp_path / "in.mp4") is None


class TestCommand:
    def run(self, *words: str) -> Result:
        return CliRunner().invoke(main, ["collect", *words, "--threads", "1", "--no-progress"])

    def test_on_the_synthetic_camera(self, tmp_path: Path) -> None:
        out = tmp_path / "faces"
        camera = "synthetic://?frames=8&size=480x360"
        first = self.run(camera, "-o", str(out), "--side", "128", "--camera", "door", "--json")
        assert first.exit_code == 0, first.output
        told = json.loads(first.output)
        assert told["faces"] == told["recorded"]["kept"] >= 1
        row = read_rows(out)[0]
        assert row.rest["camera"] == "door" and read_image(out / row.file).shape == (128, 128, 3)
        again = self.run(camera, "-o", str(out))
        assert again.exit_code == 1 and "exists already" in again.output
        assert self.run(camera, "-o", str(out), "--side", "128", "--append").exit_code == 0
        assert len(read_rows(out)) > told["faces"]
        assert self.run(camera, "-o", str(out), "--side", "128", "--overwrite").exit_code == 0
        assert len(read_rows(out)) <= told["faces"] + 1
        assert self.run(camera, "-o", str(out), "--append", "--overwrite").exit_code == 2

    def test_no_face_is_an_error_in_words(self, tmp_path: Path) -> None:
        result = self.run("synthetic://?frames=2&size=96x64", "-o", str(tmp_path / "faces"))
        assert result.exit_code == 1 and "No face was kept" in result.output

    def test_seconds_end_a_camera(self, tmp_path: Path) -> None:
        words = ("synthetic://?size=320x240", "-o", str(tmp_path / "faces"), "--seconds", "0.5")
        assert self.run(*words).exit_code in (0, 1)  # it ends; whether a face was kept is not asked here


class TestSyntheticCamera:
    def scene(self, seed: int = 1, frames: int = 11) -> SyntheticScene:
        pictures = [builtin_picture(), builtin_picture()[:, ::-1].copy()]
        return SyntheticScene(pictures, size=(320, 240), frames=frames, seed=seed)

    def test_same_seed_same_clip(self) -> None:
        one, two, other = self.scene(), self.scene(), self.scene(seed=2)
        for index in (0, 5, 10):
            np.testing.assert_array_equal(one.clean(index), two.clean(index))
        assert (one.clean(3) != other.clean(3)).any()
        assert one.clean(3).shape == (240, 320, 3) and one.clean(3).dtype == np.uint8

    def test_moves_slowly_and_shows_each_picture(self) -> None:
        assert [self.scene().picture_index(i) for i in range(11)] == [0] * 6 + [1] * 5
        scene = self.scene(frames=120)
        corners = np.array([[0, 0], [384, 0], [0, 288], [384, 288]], np.float32)
        seen = np.stack([apply(scene.matrix(i), corners) for i in range(60)])
        steps = np.linalg.norm(np.diff(seen, axis=0), axis=2)
        assert 0.2 < steps.mean() and steps.max() < 8

    def test_matrix_is_the_truth_for_landmarks(self) -> None:
        scene = self.scene()
        with FaceDetector(threads=1) as detector:
            (truth,) = detector.detect(builtin_picture())
            for index in (0, 3, 5):
                (seen,) = detector.detect(scene.clean(index))
                wanted = apply(scene.matrix(index), truth.landmarks)
                eyes = float(np.linalg.norm(wanted[1] - wanted[0]))
                assert np.linalg.norm(seen.landmarks - wanted, axis=1).mean() < 0.12 * eyes

    def test_the_sensor_sees_the_clean_frame_and_its_number(self) -> None:
        def sensor(frame: Frame, index: int) -> Frame:
            return np.asarray(cv2.add(frame, (index, 0, 0, 0)), dtype=np.uint8)

        scene = SyntheticScene([picture(0)], size=(64, 64), frames=4, sensor=sensor)
        np.testing.assert_array_equal(scene.frame(3), sensor(scene.clean(3), 3))
        assert (scene.frame(3) != scene.clean(3)).any()

    def test_without_motion_the_picture_is_shown_as_it_is(self) -> None:
        still = Motion(zoom=(1.0, 1.0), pan=0.0, turn=0.0)
        scene = SyntheticScene([picture(0)], size=(96, 64), frames=2, motion=still)
        np.testing.assert_array_equal(scene.clean(1)[12:-12, 12:-12], picture(0)[12:-12, 12:-12])

    def test_as_a_source(self) -> None:
        source = SyntheticSource(self.scene())
        items = [item for item in source.items() if isinstance(item, SourceFrame)]
        assert [item.index for item in items] == list(range(11))
        assert items[3].seconds == pytest.approx(0.1)
        assert source.info.frames == 11

    @pytest.mark.parametrize("query", ["frames=x", "size=640", "colour=red", "rate=0", "seed=-1", "frames=0"])
    def test_refuses_what_it_does_not_understand(self, query: str) -> None:
        with pytest.raises(ConfigError):
            open_source(f"synthetic://?{query}")

    def test_refuses_bad_pictures_and_frames_beyond_the_end(self) -> None:
        with pytest.raises(ConfigError):
            SyntheticScene([], size=(64, 64))
        with pytest.raises(ShapeError):
            SyntheticScene([np.zeros((8, 8), np.uint8)], size=(64, 64))
        with pytest.raises(IndexError, match="0 to 10"):
            self.scene().clean(11)
