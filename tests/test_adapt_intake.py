"""What adapt makes of faces as users have them, what it says beforehand, and the camera it estimates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from script_loading import load_script
from training_fakes import make_faces, save_small_prior, save_small_restorer, small_targets, write_faces

from ufr_edge.adaptation import adapt as adapting
from ufr_edge.adaptation import forecast as forecasting
from ufr_edge.adaptation import targets as targeting
from ufr_edge.adaptation.adapt import AdaptConfig, adapt
from ufr_edge.adaptation.camera_pairs import (
    CameraEstimate,
    CameraModel,
    blur_anisotropy,
    camera_source,
    degrade_all,
    estimate_camera,
    varied,
)
from ufr_edge.adaptation.camera_spread import CameraSpread
from ufr_edge.adaptation.faces import FaceSet, weighted_by_detail
from ufr_edge.adaptation.finetune import FinetuneConfig, Pairs, _extras, _real_faces
from ufr_edge.adaptation.forecast import Forecast, for_machine, forecast, parts_for
from ufr_edge.adaptation.intake import take_in
from ufr_edge.adaptation.loop import LoopConfig
from ufr_edge.adaptation.qa import QaConfig
from ufr_edge.adaptation.real_faces import load_real
from ufr_edge.adaptation.restorer_task import LossWeights, RestorerTraining
from ufr_edge.adaptation.targets import TargetsConfig
from ufr_edge.adaptation.terms import check_terms
from ufr_edge.adaptation.training import resolve_precision
from ufr_edge.errors import ConfigError, InputFileError, ShapeError
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.align import template
from ufr_edge.runtime.faces.detect import Face

Image = NDArray[np.uint8]


class Finder:
    """A detector that finds `count` faces in pictures that are not square, none below a black edge, one in place else.

    `roll` degrees and `scale` put the one in place out of it, about the middle.
    """

    def __init__(self, count: int = 1, *, roll: float = 0.0, scale: float = 1.0) -> None:
        self.count = count
        turn = np.radians(roll)
        self.turn = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])

    @property
    def info(self) -> EngineInfo:
        raise NotImplementedError

    def detect(self, frame: Image) -> list[Face]:
        height, width = frame.shape[:2]
        if frame[0].max() == 0:
            return []
        if height == width:
            middle = np.float32((height - 1) / 2)
            return [self._face(((template(height) - middle) @ self.turn.T + middle).astype(np.float32))]
        return [self._face(template(120) + np.array([20 + 130 * i, 10], np.float32)) for i in range(self.count)]

    def _face(self, points: NDArray[np.float32]) -> Face:
        return Face(box=np.array([0, 0, 99, 99], np.float32), score=0.9, landmarks=points)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces", make_faces(10))


def save(path: Path, image: Image) -> None:
    cv2.imwrite(str(path), image)


def test_good_faces_are_taken_where_they_lie(faces: Path, tmp_path: Path) -> None:
    taken = take_in(faces, tmp_path / "out", 64, detector=Finder())
    assert (taken.folder, taken.count, taken.dropped) == (faces, 10, ())
    assert "few" in taken.lines()[0]


def test_photographs_are_aligned_and_duplicates_left_out(faces: Path, tmp_path: Path) -> None:
    save(faces / "group.png", np.full((200, 320, 3), 90, np.uint8))
    save(faces / "wall.png", np.zeros((200, 320, 3), np.uint8))
    night = make_faces(1, seed=7)[0] // 8
    night[0] = 0
    save(faces / "night.png", night)
    green = np.zeros((64, 64, 3), np.uint8)
    green[1:] = (0, 4, 0)
    save(faces / "green.png", green)
    (faces / "face_000_copy.png").write_bytes((faces / "face_000.png").read_bytes())
    (faces / "broken.png").write_bytes(b"no picture")
    taken = take_in(faces, tmp_path / "out", 64, detector=Finder(2))
    assert taken.folder == tmp_path / "out" and taken.count == 13
    assert taken.aligned == ("group-1.png", "group-2.png") and taken.unseen == ("night.png",)
    why = dict(taken.dropped)
    assert set(why) == {"wall.png", "face_000_copy.png", "broken.png", "green.png"}
    assert "shows nothing" in why["green.png"]
    assert "face_000.png" in why["face_000_copy.png"] and "no face" in why["wall.png"]
    assert len(list(taken.folder.glob("*.png"))) == 13
    before = (taken.folder / "faces.json").stat().st_mtime_ns
    assert take_in(faces, tmp_path / "out", 64, detector=Finder(2)) == taken
    assert (taken.folder / "faces.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("roll", "scale", "taken"), [(8, 1.1, True), (30, 1, False), (-20, 1, False), (0, 0.7, False)])
def test_a_turned_or_small_face_is_aligned_anew(
    tmp_path: Path, roll: float, scale: float, *, taken: bool
) -> None:
    large = np.stack([cv2.resize(face, (256, 256)) for face in make_faces(8)])
    found = take_in(
        write_faces(tmp_path / "in", large), tmp_path / "out", 64, detector=Finder(roll=roll, scale=scale)
    )
    assert len(found.aligned) == (0 if taken else 8) and found.count == 8


def test_mixed_sizes_are_said(faces: Path, tmp_path: Path) -> None:
    save(faces / "large.png", cv2.resize(make_faces(1, seed=3)[0], (200, 200)))
    for _ in range(2):  # looked at, then read again
        taken = take_in(faces, tmp_path / "out", 64, detector=None)
        assert taken.sides == (64, 200) and "sizes differ, from 64 to 200 px" in "\n".join(taken.lines())


def test_a_handful_is_refused_in_words(tmp_path: Path) -> None:
    few = write_faces(tmp_path / "few", make_faces(4))
    (few / "again.png").write_bytes((few / "face_001.png").read_bytes())
    save(few / "photo.png", np.full((100, 200, 3), 9, np.uint8))
    with pytest.raises(InputFileError, match=r"4 faces of 6 files; at least 8.*face_001.png \(the same.*ufr-edge collect"):
        take_in(few, tmp_path / "out", 64, detector=None)


def config_of(tmp_path: Path, **more: Any) -> AdaptConfig:
    losses = LossWeights(prior_features=0.0, adversarial=0.0)
    return AdaptConfig(
        targets=small_targets(tmp_path, qa=QaConfig(judge=False), device="cpu"),
        finetune=FinetuneConfig(
            batch=4, training=RestorerTraining(steps=3, precision="fp32", losses=losses), **more
        ),
        shown=2,
    )


def test_adapt_says_how_long_it_takes_and_learns_from_the_camera(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in (adapting, targeting):
        monkeypatch.setattr(part, "open_detector", lambda stack: (None, ("no detector here",)))
    told: list[str] = []
    config = config_of(tmp_path, camera_pairs=0.5)
    report = adapt(faces, tmp_path / "run", config, tell=told.append, show=False)
    said = "\n".join(told)
    assert "no detector here" in said and "expected: " in said and "10 targets in" in said
    assert said.index("expected: ") < said.index("10 targets in")
    assert "the worst and their scores" in report.report.read_text()
    assert (tmp_path / "run" / "camera.json").exists() and report.targets.verdicts["kept"] == 10
    told.clear()
    adapt(faces, tmp_path / "run", config, tell=told.append, show=False)
    assert "expected" not in "\n".join(told)  # nothing is left to do


def test_the_forecast_adds_up() -> None:
    line = Forecast(per_target=2.0, per_step=0.5, targets=400, training=500, choosing=60).line()
    assert line.startswith("expected: up to 60 s to choose") and line.endswith("about 16 min in all")
    with pytest.raises(ConfigError, match="one of the two"):
        AdaptConfig(targets=TargetsConfig(auto=True)).at_fidelity(0.2)
    assert AdaptConfig().at_fidelity(0.5) == AdaptConfig()


def test_the_forecast_of_several_processes_leaves_training_out_in_words(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasting, "time_call", lambda *_: 0.5)
    monkeypatch.setattr(forecasting, "time_step", lambda *_: 2.0)
    config = config_of(tmp_path, loop=LoopConfig(minutes=1.0))
    images = make_faces(10)
    several = forecast(faces, images, config.targets, config.finetune, wanted=10, steps=700, processes=2)
    assert several.training == 0 and several.targets == 5.0  # two calls each, on two processes
    assert "then 700 steps of training, whose time on 2 processes is not known" in several.line()
    assert "ends after 1 min (--minutes)" in several.line()
    alone = forecast(faces, images, config.targets, config.finetune, wanted=0, steps=700)
    assert alone.training == 60.0 and "60 s of training (2 s a step)" in alone.line()


def test_what_is_left_of_training_is_forecast(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def timed(*_: object, steps: int, **more: object) -> Forecast:
        asked.append(steps)
        return Forecast(per_target=1, per_step=1, targets=1, training=1)

    monkeypatch.setattr(adapting, "forecast", timed)
    config = dataclasses.replace(config_of(tmp_path), align=False)
    training = config.finetune.training
    for steps in (2, 5, 5):
        longer = dataclasses.replace(config.finetune, training=dataclasses.replace(training, steps=steps))
        adapt(faces, tmp_path / "run", dataclasses.replace(config, finetune=longer), tell=lambda _: None, show=False)
    assert asked == [2, 3]  # and nothing where nothing is left


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 7), "bf16")])
def test_an_old_gpu_does_not_pretend_to_know_bf16(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A T4 (7.5) emulates it; an A100 (8.0) and a Jetson Orin (8.7) compute it."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4e9, 8e9))
    monkeypatch.setattr(forecasting, "pick_device", lambda _: gpu)
    assert for_machine(TargetsConfig()).sampler.precision == precision
    assert resolve_precision(gpu, "auto") == ("bf16" if precision == "bf16" else "fp32")


@pytest.mark.parametrize(("total", "batch"), [(8.6e9, 8), (12.9e9, 32)])
def test_equal_gpus_sample_as_many_faces_at_once_whatever_is_free(
    total: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(forecasting, "pick_device", lambda _: torch.device("cuda", 0))
    for free in (0.2 * total, 0.99 * total):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, total))
        assert for_machine(TargetsConfig()).batch == batch


def test_a_batch_is_cut_into_the_fewest_parts_that_fit() -> None:
    gigabyte = 1e9
    assert parts_for(16, 80 * gigabyte, gigabyte) == 1
    assert parts_for(16, 10 * gigabyte, gigabyte) == 2
    assert parts_for(16, 10 * gigabyte, gigabyte, least=4) == 4  # as the recipe says
    assert parts_for(12, 5 * gigabyte, gigabyte) == 3
    assert parts_for(16, 0.1 * gigabyte, gigabyte) == 16
    assert parts_for(16, 10 * gigabyte, gigabyte, processes=2) == 1
    assert parts_for(6, gigabyte, gigabyte, processes=2) == 3


def test_several_processes_come_to_the_same_parts_whatever_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasting, "pick_device", lambda _: torch.device("cuda", 0))

    def parts(free: float, processes: int) -> int:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 8e9))
        return forecasting.for_memory(FinetuneConfig(batch=64), processes=processes).training.accumulate

    assert parts(0.5e9, 2) == parts(7.9e9, 2)
    assert parts(0.5e9, 1) > parts(7.9e9, 1)  # alone it goes by what is free


def detailed(count: int) -> Image:
    """Faces' worth of edges, uint8 (count, 128, 128, 3): fine blocks on gradients, flat in between."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 200, (count, 4, 4, 3)).astype(np.uint8)
    faces = np.stack([cv2.resize(c, (128, 128), interpolation=cv2.INTER_CUBIC) for c in coarse])
    for face in faces:
        for x, y in rng.integers(0, 110, (12, 2)):
            face[y : y + 14, x : x + 14] = rng.integers(20, 235, 3)
    return faces


@pytest.mark.slow
@pytest.mark.parametrize(
    "true",
    [
        CameraModel(noise=(6.0, 8.0, 10.0, 12.0, 14.0), chroma=8.0),
        CameraModel(blur=2.5, noise=(2.0,) * 5, chroma=2.0),
    ],
)
def test_a_known_camera_is_estimated(true: CameraModel) -> None:
    clean = detailed(8)
    lq = degrade_all(clean, true, seed=99)
    found = estimate_camera(lq, clean, probe=8)
    assert found.distance < 0.5 * found.before
    if true.blur:
        assert found.model.blur == pytest.approx(true.blur, rel=0.4)
    else:
        assert np.mean(found.model.noise) == pytest.approx(np.mean(true.noise), rel=0.4)
    assert found.to_json()["model"]["kind"] == "camera-estimate"


def test_camera_pairs_are_fixed_by_the_step() -> None:
    clean = make_faces(5)
    draw = camera_source(clean, CameraModel(noise=(5.0,) * 5, shrink=2.0, quality=50), 4, seed=3)
    lq, goal = draw(7, slice(None))
    assert lq.shape == goal.shape == (4, 64, 64, 3) and not np.array_equal(lq, goal)
    again = draw(7, slice(1, 3))
    assert np.array_equal(again[0], lq[1:3]) and np.array_equal(again[1], goal[1:3])
    assert not np.array_equal(draw(8, slice(None))[0], lq)
    with pytest.raises(ShapeError):
        estimate_camera(clean, clean[:2])
    with pytest.raises(ConfigError):
        CameraModel(noise=(1.0,))


def test_the_share_of_the_gap_is_told_per_camera() -> None:
    module = load_script("adaptation")
    figures = {
        "base": {"psnr_db": 20.0, "prior_feature_distance": 0.5, "prior_frechet_distance": 9.0},
        "adapted": {"psnr_db": 21.0, "prior_feature_distance": 0.4, "prior_frechet_distance": 8.0},
        "oracle": {"psnr_db": 22.0, "prior_feature_distance": 0.3, "prior_frechet_distance": 10.0},
    }
    assert module.gap_closed(figures, "prior_feature_distance") == pytest.approx(0.5)
    assert module.gap_closed(figures, "prior_frechet_distance") is None
    cell = {"camera": "defocus", "seed": 0, "faces": 200, "calls_per_target": 60, "figures": figures, "classic": figures}
    result = {"cells": [cell, {**cell, "seed": 1}], "restorer": "r", "prior": "p", "replay": 0.25, "command": "c"}
    result["summary"] = module.summary(result["cells"])
    text = module.markdown(result)
    assert "| defocus | 0, 1 | 50 ± 0 % | no gap | +1.00 ± 0 | +1.00 ± 0 | no |" in text


@pytest.mark.slow
def test_the_benchmark_runs_from_folders_to_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_faces(tmp_path / "a", make_faces(9))
    write_faces(tmp_path / "v", make_faces(9, seed=1))
    restorer, prior = save_small_restorer(tmp_path / "r.safetensors"), save_small_prior(tmp_path / "prior")
    words = ["--faces", tmp_path / "a", "--val", tmp_path / "v", "--real", tmp_path / "v", "-o", tmp_path / "out"]
    words += ["--restorer", restorer, "--prior", prior, "--cameras", "defocus", "--steps", "2", "--side", "64"]
    words += ["--fast-steps", "2", "--device", "cpu", "--fidelity", "0.5", "--w-features", "0.05"]
    module = load_script("adaptation")
    module.main([str(word) for word in words])
    text = (tmp_path / "out" / "adaptation.md").read_text()
    assert "| defocus | 0 |" in text and str(tmp_path) not in text.split("\n")[0].replace(restorer, "").replace(prior, "")
    module.main([str(word) for word in words])  # nothing is done again
    with pytest.raises(SystemExit, match="other settings"):
        module.main([str(word) for word in [*words, "--limit", "8"]])


def test_blur_along_one_direction_is_told_from_a_round_one() -> None:
    clean = detailed(8)
    none, round_, along = (
        blur_anisotropy(degrade_all(clean, model, seed=1), clean).mean()
        for model in (CameraModel(noise=(1.0,) * 5), CameraModel(blur=3.0), CameraModel(motion=10.0))
    )
    assert none < 0.1 and round_ < 0.15 and along > 2 * round_
    assert CameraModel(motion=10.0).describe()["motion"] == 10.0
    with pytest.raises(ConfigError):
        CameraModel(motion=-1.0)


@pytest.mark.slow
def test_a_motion_is_estimated() -> None:
    clean = detailed(12)
    found = estimate_camera(degrade_all(clean, CameraModel(motion=8.0), seed=3), clean)
    assert 4.0 <= found.model.motion <= 12.0 and found.distance < found.before


def test_a_camera_varies_from_picture_to_picture() -> None:
    model = CameraModel(blur=1.0, motion=8.0, quality=30)
    drawn = [varied(model, np.random.default_rng(seed)) for seed in range(30)]
    lengths, qualities = [m.motion for m in drawn], [m.quality or 0 for m in drawn]
    assert min(lengths) >= 4.0 and max(lengths) <= 12.0 and max(lengths) > 1.5 * min(lengths)
    assert 21 <= min(qualities) < max(qualities) <= 42


def test_camera_pairs_are_made_of_real_faces_where_asked(tmp_path: Path) -> None:
    clean, goal = make_faces(9), make_faces(4)[:, ::-1].copy()
    pairs = Pairs(lq=goal, truth=goal)
    real = FaceSet(images=clean, names=tuple(f"{i}.png" for i in range(9)))
    one = estimate_camera(goal, goal)
    each = CameraSpread(models=(one.model, CameraModel(shrink=2.0)), faces=4)
    # Of what, the faces, the estimate.
    Case = tuple[Literal["real", "targets"], NDArray[np.uint8], CameraEstimate | CameraSpread]
    cases: tuple[Case, ...] = (("real", clean, each), ("targets", goal, one))
    for of, faces, camera in cases:
        config = FinetuneConfig(batch=4, camera_pairs=0.5, camera_pairs_of=of, replay=0.0)
        ((count, draw),) = _extras(real, pairs, camera, config, None, ())
        _, shown = draw(0, slice(None))
        assert count == 2
        known = [faces, faces[:, :, ::-1]]
        assert all(any((face == one).all((1, 2, 3)).any() for one in known) for face in shown)
    with pytest.raises(ConfigError, match="--real"):
        losses = LossWeights(prior_features=0.0, adversarial=0.0)
        training = RestorerTraining(steps=1, losses=losses)
        check_terms(FinetuneConfig(camera_pairs=0.5, camera_pairs_of="real", training=training), None)


def test_sharp_real_faces_are_drawn_more_often_where_asked(tmp_path: Path) -> None:
    sharp = detailed(4)
    soft = np.stack([cv2.GaussianBlur(face, (0, 0), 3) for face in sharp])
    folder, side = write_faces(tmp_path / "real", np.concatenate([soft, sharp, soft, sharp])), sharp.shape[1]
    config = FinetuneConfig(replay=0.5, real_detail=2.0)
    real = _real_faces(folder, side, config, show=False)
    plain = _real_faces(folder, side, dataclasses.replace(config, real_detail=0.0), show=False)
    assert real is not None and real.weights is not None and plain is not None and plain.weights is None
    read = weighted_by_detail(load_real(folder, side, in_memory=1), 2.0)  # one by one
    assert read.weights == pytest.approx(real.weights)
    draw = camera_source(real.images, CameraModel(), 8, seed=0, weights=real.weights)
    shown = np.concatenate([draw(step, slice(None))[1] for step in range(4)])
    assert np.mean([any((face == one).all() for one in (*soft, *soft[:, :, ::-1])) for face in shown]) < 0.2
    with pytest.raises(ConfigError, match="real_detail"):
        FinetuneConfig(real_detail=-1.0)
