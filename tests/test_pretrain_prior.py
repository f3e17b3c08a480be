"""What a prior's training does with bad input: faces, checkpoints, start weights, a loss that is not finite."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from click.testing import CliRunner
from training_fakes import SIDE, make_faces, save_small_prior, write_faces

from ufr_edge.adaptation import pretrain
from ufr_edge.adaptation.loop import LoopConfig
from ufr_edge.adaptation.pretrain import PretrainPrior, pretrain_prior
from ufr_edge.adaptation.prior_task import PriorTask, PriorTraining
from ufr_edge.adaptation.training import CHECKPOINT
from ufr_edge.cli import main
from ufr_edge.errors import ConfigError, InputFileError, ModelFileError, TrainingError
from ufr_edge.priors.files import load_prior

TINY = PretrainPrior(
    side=SIDE, channels=(32, 32), batch=2, training=PriorTraining(steps=1, precision="fp32"), loop=LoopConfig(save_every=1)
)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "clean", make_faces(8))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def longer(steps: int) -> PretrainPrior:
    return dataclasses.replace(TINY, training=dataclasses.replace(TINY.training, steps=steps))


def test_unfit_faces_are_left_out_and_the_prior_is_trained(clean: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(clean / "grey.png"), make_faces(1)[0][..., 0])
    (clean / "broken.jpg").write_bytes(b"nothing")
    told: list[str] = []
    trained = pretrain_prior(clean, tmp_path / "run", TINY, val=clean, show=False, tell=told.append)
    assert load_prior(trained).side == SIDE
    assert any("left out 2 of 10 files" in line for line in told)
    with (tmp_path / "run" / "skipped.csv").open(encoding="utf-8") as file:
        assert {row["file"]: row["kind"] for row in csv.DictReader(file)} == {"grey.png": "grey", "broken.jpg": "broken"}


def test_fewer_than_eight_good_faces_train_no_prior(clean: Path, tmp_path: Path) -> None:
    (clean / "face_003.png").write_bytes(b"nothing")
    command = ["pretrain", "prior", "-i", str(clean), "--val", str(clean), "-o", str(tmp_path / "run"), "--side", str(SIDE)]
    result = CliRunner().invoke(main, [*command, "--no-progress"])
    assert result.exit_code == 1
    assert "7 good faces of 8 files; at least 8 are needed" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("empty", [True, False])
def test_a_folder_without_pictures_is_said(tmp_path: Path, *, empty: bool) -> None:
    folder = tmp_path / "none"
    if empty:
        folder.mkdir()
    with pytest.raises(InputFileError, match="none"):
        pretrain_prior(folder, tmp_path / "run", TINY, val=folder, show=False)
    assert not (tmp_path / "run").exists()


def test_another_or_damaged_checkpoint_of_a_prior_changes_nothing(clean: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain_prior(clean, run, TINY, val=clean, show=False)
    before = contents(run)
    with pytest.raises(ConfigError, match="other settings"):
        pretrain_prior(clean, run, dataclasses.replace(TINY, channels=(32, 64)), val=clean, show=False)
    assert contents(run) == before
    whole = (run / CHECKPOINT).read_bytes()
    (run / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    before = contents(run)
    with pytest.raises(ModelFileError, match="damaged"):
        pretrain_prior(clean, run, longer(2), val=clean, show=False)
    assert contents(run) == before


def test_a_checkpoint_of_another_prediction_changes_nothing(clean: Path, tmp_path: Path) -> None:
    """Its tensors have the same shapes."""
    run, epsilon = tmp_path / "run", dataclasses.replace(TINY, prediction_type="epsilon")
    pretrain_prior(clean, run, epsilon, val=clean, show=False)
    before = contents(run)
    with pytest.raises(ConfigError, match="with other settings. Choose another folder"):
        pretrain_prior(
            clean, run, dataclasses.replace(epsilon, prediction_type="v_prediction"), val=clean, show=False
        )
    assert contents(run) == before


def test_a_prior_stopped_and_gone_on_with_is_bit_identical(clean: Path, tmp_path: Path) -> None:
    cropped = PriorTraining(steps=4, precision="fp32", crop_steps=2, crop=SIDE // 2, lr_end=4e-4, warmup=0)
    whole = dataclasses.replace(TINY, training=cropped)
    pretrain_prior(clean, tmp_path / "whole", whole, val=clean, show=False)
    for steps in (1, 3, 4):  # `lr_end` is `lr`: the rate does not depend on the length
        part = dataclasses.replace(whole, training=dataclasses.replace(cropped, steps=steps))
        pretrain_prior(clean, tmp_path / "part", part, val=clean, show=False)
    states = [
        torch.load(tmp_path / name / CHECKPOINT, weights_only=True)["task"]["ema"] for name in ("whole", "part")
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_prior_is_stored_as_fp16_where_asked(clean: Path, tmp_path: Path) -> None:
    sizes = {}
    for storage in ("fp32", "fp16"):
        path = pretrain_prior(
            clean, tmp_path / storage, dataclasses.replace(TINY, storage=storage), val=clean, show=False
        )
        sizes[storage] = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
        assert load_prior(path).side == SIDE
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


def test_a_prior_without_its_checkpoint_is_not_replaced(clean: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain_prior(clean, run, TINY, val=clean, show=False)
    (run / CHECKPOINT).unlink()
    before = contents(run)
    with pytest.raises(ConfigError, match="not replaced"):
        pretrain_prior(clean, run, TINY, val=clean, show=False)
    assert contents(run) == before


def test_a_prior_starts_from_one_of_its_own_shape_alone(clean: Path, tmp_path: Path) -> None:
    start = save_small_prior(tmp_path / "start")
    shape = load_prior(start).unet.config["block_out_channels"]
    same = dataclasses.replace(TINY, init=start, channels=tuple(shape))
    made = pretrain_prior(clean, tmp_path / "fine", same, val=clean, show=False)
    assert str(tmp_path) not in (made / "unet" / "config.json").read_text(encoding="utf-8")
    for wrong in ({"channels": (32, 96)}, {"factor": 2}, {"prediction_type": "epsilon"}):
        with pytest.raises(ConfigError, match="another shape than the settings say"):
            pretrain_prior(clean, tmp_path / "run", dataclasses.replace(same, **wrong), val=clean, show=False)
    weights = next(Path(start).rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelFileError):
        pretrain_prior(clean, tmp_path / "run", same, val=clean, show=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    class Broken(PriorTask):
        def _backward(self, step: int, part: slice, eps: torch.Tensor, t: torch.Tensor) -> Any:
            terms = super()._backward(step, part, eps, t)
            if step == 2 and where == "forward":
                return {"loss": terms["loss"] * float("nan")}
            if step == 2:
                next(p for p in self.prior.parameters() if p.grad is not None).grad.fill_(float("inf"))  # type: ignore[union-attr]
            return terms

    monkeypatch.setattr(pretrain, "PriorTask", Broken)
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=rf"is (nan|inf) at step 2.*kept in .*{CHECKPOINT}"):
        pretrain_prior(clean, run, longer(4), val=clean, show=False)
    saved = torch.load(run / CHECKPOINT, weights_only=True)
    assert saved["step"] == 2 and not (run / "prior").exists()
    monkeypatch.undo()
    assert load_prior(pretrain_prior(clean, run, longer(4), val=clean, show=False)).side == SIDE  # goes on from there
