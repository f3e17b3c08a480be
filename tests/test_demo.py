"""The embedded demo: its camera, its cast, and (slow) the whole path."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest

from ufr_edge.demo.clearing import clear_written
from ufr_edge.demo.run import DemoConfig, run_demo
from ufr_edge.demo.scene import FACES, CameraConfig, film, load_cast, write_truth
from ufr_edge.errors import InputFileError, OutputError
from ufr_edge.runtime.video.opening import builtin_picture


def test_cast_keeps_the_test_people_out_of_the_collection() -> None:
    cast = load_cast(20)
    assert (len(cast.seen), len(cast.unseen)) == (20, 5)
    assert np.array_equal(cast.unseen[0], builtin_picture())
    seen = {picture.tobytes() for picture in cast.seen}
    assert len(seen) == 20 and not seen & {picture.tobytes() for picture in cast.unseen}
    with pytest.raises(InputFileError, match="too many"):
        load_cast(1000)


def test_the_default_cast_is_there() -> None:
    assert len(load_cast(DemoConfig().people).seen) == DemoConfig().people


def test_every_picture_has_its_licence_on_file() -> None:
    rows = (FACES / "SOURCES.csv").read_text(encoding="utf-8").splitlines()[1:]
    listed = {f"{row.split(',')[1]}/{row.split(',')[0]}" for row in rows}
    assert listed == {f"{path.parent.name}/{path.name}" for path in FACES.glob("*/*.jpg")}
    assert {row.split(",")[3] for row in rows} == {"MIT", "CC0-1.0"}


def test_camera_is_noisy_seeded_and_has_one_light() -> None:
    people = load_cast(4).seen
    scene = film(people, CameraConfig(size=(320, 180)), frames_each=2, take=0)
    first, again = scene.frame(0), film(people, CameraConfig(size=(320, 180)), frames_each=2, take=0).frame(0)
    assert len(scene) == 8 and np.array_equal(first, again)
    assert np.abs(first.astype(int) - scene.clean(0)).mean() > 8
    other = film(people, CameraConfig(size=(320, 180)), frames_each=2, take=1)
    assert not np.array_equal(other.clean(0), scene.clean(0))


def test_truth_is_cut_as_the_crop_was(tmp_path: Path) -> None:
    scene = film(load_cast(4).seen, CameraConfig(size=(320, 180)), frames_each=1, take=0)
    matrix = [[0.5, 0.0, 3.0], [0.0, 0.5, 4.0]]
    tmp_path.joinpath("index.jsonl").write_text(json.dumps({"file": "000000.png", "frame": 1, "matrix": matrix}) + "\n")
    truth = write_truth(scene, tmp_path, tmp_path / "truth", 64)
    assert truth.shape == (1, 64, 64, 3)
    pixel = scene.clean(1)[(32 - 4) * 2, (32 - 3) * 2].astype(int)
    assert np.abs(truth[0, 32, 32] - pixel).max() < 40
    assert (tmp_path / "truth" / "000000.png").exists()


def test_only_what_an_earlier_demo_wrote_is_cleared_away(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "demo", tmp_path / "elsewhere"
    for folder in (out / "faces", out / "mine", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.png").write_text("x")
    (out / "strip.jpg").write_text("x")
    (out / "linked").symlink_to(elsewhere, target_is_directory=True)
    clear_written(out, ("faces", "strip.jpg", "linked", "never-written"))
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert (out / "mine" / "a.png").is_file() and (elsewhere / "a.png").is_file()


def small_demo() -> DemoConfig:
    config = DemoConfig(people=16, frames_each=1, clip_people=2, clip_frames_each=3)
    adaptation = config.adaptation
    sampler = dataclasses.replace(adaptation.targets.sampler, fast_steps=2, samples_per_image=1)
    # Two steps at the usual rate leave weights that int8 does lose 0.7 dB on (Adam's first steps are as large as the rate
    # in every weight): the gate is right to refuse them, and not what is tested here.
    training = dataclasses.replace(adaptation.finetune.training, steps=2, lr=1e-7)
    return dataclasses.replace(
        config,
        adaptation=dataclasses.replace(
            adaptation,
            targets=dataclasses.replace(adaptation.targets, sampler=sampler),
            finetune=dataclasses.replace(adaptation.finetune, training=training, batch=2),
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    said: list[str] = []
    report = run_demo(tmp_path / "demo", small_demo(), show=False, tell=said.append)
    assert len(said) == 6
    assert set(report.figures) == {"base", "adapted", "oracle"}
    assert {engine.name for engine in report.engines} == {"onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-int8"}
    assert "perceptual distance" in report.closing_line()
    for name in ("camera.mp4", "restored.mp4", "side-by-side.mp4"):
        with av.open(str(tmp_path / "demo" / name)) as clip:
            assert sum(1 for _ in clip.decode(video=0)) == 6
    for name in ("report.html", "strip.jpg", "figures.json", "camera.ufr/manifest.json", "adapted/report.html"):
        assert (tmp_path / "demo" / name).exists()
    with pytest.raises(OutputError, match="--overwrite"):
        run_demo(tmp_path / "demo", small_demo(), show=False)
