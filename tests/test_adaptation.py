"""Targets, fine-tuning and the whole adaptation, on small stand-ins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from test_presets import tiny_lpips
from training_fakes import FEW, SIDE, make_faces, small_targets, write_faces

import ufr_edge.adaptation.finetune as finetuning
from ufr_edge.adaptation import terms
from ufr_edge.adaptation.adapt import AdaptConfig, adapt
from ufr_edge.adaptation.camera_pairs import CameraEstimate, CameraModel, flat_noise
from ufr_edge.adaptation.camera_spread import CameraSpread
from ufr_edge.adaptation.finetune import FinetuneConfig, finetune, load_pairs
from ufr_edge.adaptation.loop import LoopConfig
from ufr_edge.adaptation.pretrain import PretrainRestorer, pretrain_restorer
from ufr_edge.adaptation.restorer_task import LossWeights, RestorerTraining
from ufr_edge.adaptation.targets import TargetsConfig, image_seed, make_targets, read_index
from ufr_edge.adaptation.training import read_log
from ufr_edge.cli.options import override
from ufr_edge.config import load_config
from ufr_edge.degradations.presets import degrade
from ufr_edge.errors import ConfigError, InputFileError
from ufr_edge.priors.sampler import PRESETS
from ufr_edge.progress import Advance
from ufr_edge.restorers.files import load_restorer


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    clean = make_faces(10)
    lq = np.stack([degrade(face, "classic-light", seed=i) for i, face in enumerate(clean)])
    write_faces(tmp_path / "clean", clean)
    return write_faces(tmp_path / "faces", lq)


@pytest.fixture
def config(tmp_path: Path) -> TargetsConfig:
    return small_targets(tmp_path, sampler=dataclasses.replace(FEW, fast_steps=3), batch=4)


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def head_of(source: Path) -> list[float]:
    values: list[float] = load_restorer(source).model.head.weight.detach().flatten().tolist()
    return values


def test_targets_resume_and_do_not_depend_on_the_batch(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    whole = make_targets(camera, tmp_path / "a", config, show=False)
    assert (whole.total, whole.reused) == (10, 0)
    lines = (tmp_path / "a" / "index.jsonl").read_text().splitlines()
    assert len(lines) == 10 and json.loads(lines[0])["seed"] == image_seed(0, "face_000.png")

    make_targets(camera, tmp_path / "b", config, show=False)
    for name in ("face_003.png", "face_007.png"):
        (tmp_path / "b" / name).unlink()
    resumed = make_targets(camera, tmp_path / "b", config, show=False)
    assert resumed.reused == 8
    assert pixels(tmp_path / "a") == pixels(tmp_path / "b")


def test_targets_with_other_settings_are_refused(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    make_targets(camera, tmp_path / "t", config, show=False)
    before = pixels(tmp_path / "t")
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(ConfigError, match="--overwrite"):
        make_targets(camera, tmp_path / "t", other, show=False)
    assert pixels(tmp_path / "t") == before
    make_targets(camera, tmp_path / "t", other, overwrite=True, show=False)
    assert pixels(tmp_path / "t") != before
    assert len(read_index(tmp_path / "t")) == 10


def test_pairs_are_matched_by_name(camera: Path, tmp_path: Path) -> None:
    pairs = load_pairs(camera, tmp_path / "clean", SIDE)
    assert np.array_equal(pairs.truth, make_faces(10))
    few = write_faces(tmp_path / "few", make_faces(3))
    with pytest.raises(InputFileError, match="Only 3 faces"):
        load_pairs(camera, few, SIDE)


def test_finetune_moves_toward_its_targets(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    training = RestorerTraining(
        steps=40, lr=1e-3, lr_end=1e-4, precision="fp32", losses=LossWeights(prior_features=0.1, adversarial=0.0)
    )
    settings = FinetuneConfig(restorer=config.restorer, prior=config.prior, batch=4, training=training)
    path = finetune(camera, tmp_path / "clean", tmp_path / "run", settings, show=False)
    pairs = load_pairs(camera, tmp_path / "clean", SIDE)
    lq, goal = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 for x in (pairs.lq, pairs.truth))
    with torch.no_grad():
        before, after = ((load_restorer(p).model(lq) - goal).abs().mean() for p in (config.restorer, path))
    assert after < 0.92 * before
    assert load_restorer(path).meta["pairs"] == "10"


def test_adapt_end_to_end(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    training = RestorerTraining(steps=3, precision="fp32", discriminator_features=8)
    settings = AdaptConfig(targets=config, finetune=FinetuneConfig(batch=2, training=training), shown=2)
    others = make_faces(4, seed=9)
    lq = np.stack([degrade(face, "classic-light", seed=i) for i, face in enumerate(others, 20)])
    report = adapt(
        camera,
        tmp_path / "run",
        settings,
        real=tmp_path / "clean",
        test_faces=write_faces(tmp_path / "test", lq),
        truth=write_faces(tmp_path / "truth", others),
        show=False,
    )
    assert set(report.figures) == {"base", "adapted"}
    assert report.figures["base"]["psnr_db"] != report.figures["adapted"]["psnr_db"]
    page = report.report.read_text()
    assert page.count("data:image/jpeg") >= 2 and "data:image/png" in page and "psnr_db" in page
    assert load_restorer(report.weights).arch == "edge-s"
    for name in ("strip-training.jpg", "strip-held-out.jpg", "figures.json", "config.json"):
        assert (tmp_path / "run" / name).exists()
    assert "3 of 3 steps." in page and "stopped early" not in page
    assert load_config(AdaptConfig, tmp_path / "run" / "adapt.json") == settings.aligned()


def test_the_report_of_a_training_on_lpips_tells_it_and_an_early_end(
    camera: Path, config: TargetsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "load_lpips", lambda *_, **__: tiny_lpips())
    for name in ("find_head", "find_backbone"):
        monkeypatch.setattr(terms, name, lambda *_, **__: None)
    losses = LossWeights(lpips=0.4, prior_features=0.0, adversarial=0.0)
    training = RestorerTraining(steps=2, precision="fp32", losses=losses)
    tuning = FinetuneConfig(batch=2, training=training, loop=LoopConfig(minutes=1e-9))
    settings = AdaptConfig(targets=config, finetune=tuning, shown=2, align=False)
    others = write_faces(tmp_path / "others", make_faces(4, seed=9))
    report = adapt(camera, tmp_path / "run", settings, test_faces=others, truth=others, show=False)
    assert report.figures["base"]["lpips"] >= 0.0
    assert "0 of 2 steps. It was stopped early (--minutes)" in report.report.read_text()


def test_adapt_without_truth_gives_no_reference_figures(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    losses = LossWeights(adversarial=0.0)
    training = RestorerTraining(steps=2, precision="fp32", losses=losses)
    settings = AdaptConfig(targets=config, finetune=FinetuneConfig(batch=2, training=training), shown=2)
    report = adapt(camera, tmp_path / "run", settings, show=False)
    assert "psnr_db" not in report.figures["adapted"]
    assert {"noise_sigma", "input_consistency_db"} <= set(report.figures["adapted"])


def test_targets_of_changed_faces_are_drawn_again(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    make_targets(camera, tmp_path / "t", config, show=False)
    before = pixels(tmp_path / "t")
    (camera / "face_001.png").write_bytes((camera / "face_004.png").read_bytes())
    assert make_targets(camera, tmp_path / "t", config, show=False).reused == 9
    after = pixels(tmp_path / "t")
    assert {name for name in after if after[name] != before[name]} == {"face_001.png"}


def test_faces_of_one_stem_are_refused(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    (camera / "face_001.jpg").write_bytes((camera / "face_001.png").read_bytes())
    with pytest.raises(InputFileError, match=r"face_001\.jpg and face_001\.png"):
        make_targets(camera, tmp_path / "t", config, show=False)


def test_finetune_never_passes_old_training_off_as_new(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    training = RestorerTraining(steps=2, precision="fp32", losses=LossWeights(prior_features=0.0, adversarial=0.0))
    settings = FinetuneConfig(restorer=config.restorer, prior=config.prior, batch=2, training=training)
    clean, run = tmp_path / "clean", tmp_path / "run"
    first = head_of(finetune(camera, clean, run, settings, show=False))
    assert head_of(finetune(camera, clean, run, settings, show=False)) == first  # nothing left to do
    pretraining = PretrainRestorer(arch="edge-s", side=SIDE)
    with pytest.raises(ConfigError, match="another folder"):
        pretrain_restorer(clean, run, pretraining, val=clean, show=False)
    write_faces(clean, make_faces(10, seed=5))
    with pytest.raises(ConfigError, match="--overwrite"):
        finetune(camera, clean, run, settings, show=False)
    assert head_of(run) == first
    assert head_of(finetune(camera, clean, run, settings, overwrite=True, show=False)) != first


def test_training_that_ends_early_is_told(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    told: list[str] = []
    losses = LossWeights(prior_features=0.0, adversarial=0.0)
    training = RestorerTraining(steps=4, precision="fp32", losses=losses)
    settings = FinetuneConfig(restorer=config.restorer, batch=2, training=training, device="cpu")
    early = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, minutes=1e-9))
    for part in (early, settings):
        finetune(camera, tmp_path / "clean", tmp_path / "run", part, tell=told.append, show=False)
    assert [line for line in told if "stopped" in line] == [
        "stopped after 0 of 4 steps (--minutes): the same command goes on"
    ]


def test_replay_and_truth_need_their_folders(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    training = RestorerTraining(steps=1, losses=LossWeights(prior_features=0.0, adversarial=0.0))
    settings = FinetuneConfig(restorer=config.restorer, batch=2, replay=0.5, training=training)
    with pytest.raises(ConfigError, match="--real"):
        finetune(camera, tmp_path / "clean", tmp_path / "run", settings, show=False)
    with pytest.raises(ConfigError, match="0 to 1"):
        FinetuneConfig(replay=2.0)
    with pytest.raises(ConfigError, match="--test"):
        adapt(camera, tmp_path / "run", AdaptConfig(targets=config), truth=camera, show=False)


def test_what_is_replayed_is_what_the_restorer_made_before(camera: Path, config: TargetsConfig, tmp_path: Path) -> None:
    losses = LossWeights(prior_features=0.0, adversarial=0.0)
    training = RestorerTraining(steps=1, precision="fp32", losses=losses)
    settings = FinetuneConfig(restorer=config.restorer, batch=2, replay=1.0, training=training)
    l1 = {}
    for target in ("before", "truth"):
        run = tmp_path / target
        own = dataclasses.replace(settings, replay_target=target)
        finetune(camera, tmp_path / "clean", run, own, real=tmp_path / "clean", show=False)
        l1[target] = next(entry["l1"] for entry in read_log(run) if "l1" in entry)
    # nothing to learn but the rounding to 8 bits
    assert l1["before"] <= 0.5 / 255 < l1["truth"]


@pytest.mark.parametrize("of", ["targets", "real"])
def test_a_resumed_training_takes_the_camera_it_began_with(
    camera: Path, config: TargetsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: Literal["targets", "real"]
) -> None:
    bars: list[tuple[str, int | None, bool]] = []

    @contextmanager
    def bar(title: str, total: int | None, *, show: bool) -> Iterator[Advance]:
        bars.append((title, total, show))
        yield lambda *_: None

    def one(*_: object, seed: int, advance: Advance) -> CameraEstimate:
        advance()
        model = CameraModel(blur=1 / (3 + seed), noise=flat_noise(20 / (3 + len(bars))))  # another one each time
        return CameraEstimate(model=model, distance=1 / 7, before=1 / 3, faces=10)

    def each(*_: object, seed: int, advance: Advance) -> CameraSpread:
        return CameraSpread(models=(one(seed=seed, advance=advance).model, CameraModel(shrink=4 / 3)), faces=10)

    monkeypatch.setattr(finetuning, "progress_bar", bar)
    monkeypatch.setattr(finetuning, "estimate_camera", one)
    monkeypatch.setattr(finetuning, "estimate_spread", each)
    losses = LossWeights(prior_features=0.0, adversarial=0.0)

    def trained(run: Path, steps: int, seed: int = 0) -> list[float]:
        training = RestorerTraining(steps=steps, lr=1e-3, lr_end=1e-3, precision="fp32", losses=losses)
        own = FinetuneConfig(
            restorer=config.restorer, batch=2, camera_pairs=0.5, camera_pairs_of=of, training=training, seed=seed
        )
        return head_of(finetune(camera, tmp_path / "clean", run, own, real=tmp_path / "clean", overwrite=seed > 0))

    whole, part = tmp_path / "whole", tmp_path / "part"
    expected = trained(whole, 4)
    assert len(bars) == 1 and all(total and show for _, total, show in bars)
    part.mkdir()
    (part / finetuning.CAMERA_MODELS).write_bytes((whole / finetuning.CAMERA_MODELS).read_bytes())  # as a killed run
    trained(part, 2)
    assert trained(part, 4) == expected and len(bars) == 1
    trained(part, 4, seed=1)  # another training
    assert len(bars) == 2
    assert (part / finetuning.CAMERA_MODELS).read_bytes() != (whole / finetuning.CAMERA_MODELS).read_bytes()


def test_settings_that_bind_each_other_change_together() -> None:
    given = {"start": 60, "hold_until": 10, "method": None}
    changed = override(TargetsConfig(sampler=PRESETS["paper-swinir"]), {f"sampler.{k}": v for k, v in given.items()})
    assert (changed.sampler.start, changed.sampler.hold_until) == (60, 10)
    assert override(changed, {"sampler": None, "sampler.start": None}) == changed
