"""The training loop, its losses, and what a folder of faces may hold."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from training_fakes import SIDE, make_faces, save_small_prior, small_prior, weight, write_faces

from ufr_edge.adaptation import training
from ufr_edge.adaptation.discriminator import Adversary, UNetDiscriminatorSN
from ufr_edge.adaptation.faces import FaceSet, load_faces, source_weights, weighted_by_detail
from ufr_edge.adaptation.loop import LoopConfig, run_loop
from ufr_edge.adaptation.pretrain import PretrainPrior, PretrainRestorer, pretrain_prior, pretrain_restorer
from ufr_edge.adaptation.prior_task import PriorTask, PriorTraining
from ufr_edge.adaptation.restorer_task import LossWeights, RestorerTask, RestorerTraining
from ufr_edge.adaptation.sources import degraded_pairs, degrading_source, face_source
from ufr_edge.adaptation.training import CHECKPOINT, append_log, pick_device, read_log
from ufr_edge.adaptation.workers import Workers
from ufr_edge.errors import ConfigError, InputFileError, ModelFileError, TrainingError
from ufr_edge.priors.features import PriorFeatures
from ufr_edge.priors.files import load_prior
from ufr_edge.restorers.edge import build_restorer
from ufr_edge.restorers.files import load_restorer

CLASSIC = {"classic": 1.0}
L1_ONLY = LossWeights(prior_features=0.0, adversarial=0.0)


def faces(count: int = 12) -> FaceSet:
    return FaceSet(images=make_faces(count), names=tuple(f"a_x_{i}.png" for i in range(count)))


def task(run: Path, *, losses: LossWeights = L1_ONLY, batch: int = 2, steps: int = 6, **kwargs: Any) -> RestorerTask:
    torch.manual_seed(0)
    config = RestorerTraining(
        steps=steps, lr=1e-3, ema=0.9, precision="fp32", discriminator_features=8, losses=losses
    )
    found = faces()
    return RestorerTask(
        build_restorer("edge-s"),
        config,
        pairs=degrading_source(found, CLASSIC, batch, 0),
        batch=batch,
        real=face_source(found, batch, 1),
        features=PriorFeatures(small_prior()),
        held_out=degraded_pairs(found.subset([0, 1]), ("classic",), seed=0),
        run=run,
        workers=Workers("cpu"),
        **kwargs,
    )


def weights_of(found: RestorerTask) -> list[torch.Tensor]:
    return [p.detach().clone() for p in found.result.parameters()]


def test_interrupted_and_resumed_is_bit_identical(tmp_path: Path) -> None:
    losses = LossWeights()
    whole = task(tmp_path / "whole", losses=losses)
    run_loop(whole, tmp_path / "whole", LoopConfig(evaluate_every=3), steps=6, show=False)
    part = task(tmp_path / "part", losses=losses)
    run_loop(part, tmp_path / "part", LoopConfig(evaluate_every=3), steps=3, show=False)
    resumed = task(tmp_path / "part", losses=losses)
    assert run_loop(resumed, tmp_path / "part", LoopConfig(evaluate_every=3), steps=6, show=False) == 6
    assert all(torch.equal(a, b) for a, b in zip(weights_of(whole), weights_of(resumed), strict=True))


def test_ctrl_c_saves_and_the_same_call_goes_on(tmp_path: Path) -> None:
    class Interrupted(RestorerTask):
        def step(self, step: int) -> dict[str, float]:
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().step(step)

    first = task(tmp_path)
    first.__class__ = Interrupted
    with pytest.raises(KeyboardInterrupt):
        run_loop(first, tmp_path, LoopConfig(), steps=5, show=False)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["step"] == 3  # the step in hand was finished


def test_nan_loss_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    found = task(tmp_path)
    run_loop(found, tmp_path, LoopConfig(), steps=2, show=False)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with torch.no_grad():
        weight(found, "head").fill_(float("nan"))
    with pytest.raises(TrainingError, match="at step 2"):
        found.step(2)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    torch.save({"kind": "prior", "step": 3, "task": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(ModelFileError, match="no checkpoint of restorer"):
        run_loop(task(tmp_path), tmp_path, LoopConfig(), steps=2, show=False)
    (tmp_path / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(ModelFileError, match="damaged"):
        run_loop(task(tmp_path), tmp_path, LoopConfig(), steps=2, show=False)


def test_one_batch_is_overfitted(tmp_path: Path) -> None:
    clean = make_faces(2, seed=5)
    lq = np.stack([cv2.GaussianBlur(face, (0, 0), 2.0) for face in clean])
    found = task(tmp_path, steps=80)
    found.pairs = lambda _, rows: (lq[rows], clean[rows])
    losses = [found.step(i)["l1"] for i in range(80)]
    assert losses[-1] < 0.8 * losses[0]


def test_terms_need_their_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--prior"):
        RestorerTask(
            build_restorer("edge-s"),
            RestorerTraining(steps=1),
            pairs=degrading_source(faces(), CLASSIC, 2, 0),
            batch=2,
            run=tmp_path,
            workers=Workers("cpu"),
        )


def test_losses_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """Paper statement 13: changing the micro-batch changes neither loss nor gradient."""
    found = task(tmp_path, losses=LossWeights(adversarial=0.0))
    torch.nn.init.normal_(weight(found, "head"), std=0.01)
    lq, goal = (torch.rand(4, 3, SIDE, SIDE) for _ in range(2))

    def gradient(chunks: int) -> tuple[float, torch.Tensor]:
        found.model.zero_grad()
        total = 0.0
        for x, y in zip(lq.chunk(chunks), goal.chunk(chunks), strict=True):
            loss, _ = found._losses(found.trained(x), y, 0)
            (loss / chunks).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / chunks
        gradient = weight(found, "stem").grad
        assert gradient is not None
        return total, gradient.clone()

    (one, g1), (four, g4) = gradient(1), gradient(4)
    assert one == pytest.approx(four, abs=1e-5)
    torch.testing.assert_close(g1, g4, atol=1e-5, rtol=1e-3)


def test_discriminator_has_the_papers_size() -> None:
    """Paper statement 14: 4,376,897 parameters, per-pixel logits."""
    model = UNetDiscriminatorSN()
    trainable = sum(p.numel() for p in model.parameters())
    assert trainable == 4_376_897
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_generator_gradient_never_reaches_the_discriminator() -> None:
    """Paper statement 14: the adversarial gradient goes to the image only."""
    adversary = Adversary(UNetDiscriminatorSN(8), lr=1e-4, workers=Workers("cpu"))
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    adversary.generator_loss(image).backward()  # type: ignore[no-untyped-call]
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert all(p.grad is None for p in adversary.model.parameters())
    assert all(p.requires_grad for p in adversary.model.parameters())


def test_bad_files_are_named_and_skipped(tmp_path: Path) -> None:
    write_faces(tmp_path, make_faces(9))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((16, 16, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((64, 128, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "grey.png"), make_faces(1)[0][..., 0])
    cv2.imwrite(str(tmp_path / "deep.png"), make_faces(1)[0].astype(np.uint16) * 257)
    found = load_faces(tmp_path, SIDE)
    assert [name for name, _ in found.skipped] == ["broken.png", "tiny.png", "wide.png"]
    assert len(found) == 11 and found.images.shape == (11, SIDE, SIDE, 3)


def test_too_few_faces(tmp_path: Path) -> None:
    write_faces(tmp_path, make_faces(7))
    with pytest.raises(InputFileError, match="7 good faces of 7 files; at least 8"):
        load_faces(tmp_path, SIDE)
    with pytest.raises(InputFileError, match="is no folder"):
        load_faces(tmp_path / "absent", SIDE)


def test_sources_are_balanced() -> None:
    weights = source_weights(("big_1", "big_2", "big_3", "big_4", "small_1"))
    assert weights.sum() == pytest.approx(1)
    assert weights[:4].sum() / weights[4] == pytest.approx(2)  # sqrt(4) to sqrt(1)


def test_sharp_faces_are_drawn_more_often() -> None:
    images = make_faces(6)
    images[:3] = 128 + (images[:3].astype(np.int16) - 128) // 8  # an eighth of the contrast: a 64th of the energy
    even = FaceSet(images=images, names=tuple(f"a_{i}.png" for i in range(6)))
    sharp = weighted_by_detail(even, 1.0)
    assert weighted_by_detail(even, 0.0) is even and sharp.weights is not None
    assert sharp.weights.sum() == pytest.approx(1) and sharp.weights[:3].max() < sharp.weights[3:].min()
    drawn = np.concatenate([face_source(sharp, 4, 0, flip=False)(step, slice(None)) for step in range(25)])
    soft = np.mean([any(np.array_equal(face, one) for one in images[:3]) for face in drawn])
    assert soft == pytest.approx(float(sharp.weights[:3].sum()), abs=0.15)


def test_pretrain_restorer_writes_weights_that_load(tmp_path: Path) -> None:
    clean, val = write_faces(tmp_path / "clean", make_faces(10)), write_faces(tmp_path / "val", make_faces(8, seed=9))
    config = PretrainRestorer(
        arch="edge-s", side=SIDE, batch=2, training=RestorerTraining(steps=4, precision="fp32", losses=L1_ONLY)
    )
    path = pretrain_restorer(clean, tmp_path / "run", config, val=val, show=False)
    loaded = load_restorer(path)
    assert loaded.side == SIDE and loaded.meta["steps"] == "4"
    assert any("psnr" in entry for entry in read_log(tmp_path / "run"))
    assert list((tmp_path / "run" / "strips").glob("*.jpg"))
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=6))
    assert load_restorer(pretrain_restorer(clean, tmp_path / "run", longer, val=val, show=False)).meta["steps"] == "6"


def test_pretrain_prior_is_read_by_diffusers(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    clean, val = write_faces(tmp_path / "clean", make_faces(10)), write_faces(tmp_path / "val", make_faces(8, seed=9))
    config = PretrainPrior(
        side=SIDE, channels=(32, 32), batch=2, training=PriorTraining(steps=3, precision="fp32", warmup=1)
    )
    folder = pretrain_prior(clean, tmp_path / "run", config, val=val, show=False)
    assert UNet2DModel.from_pretrained(folder / "unet").config["sample_size"] == SIDE // 4
    assert load_prior(folder).prediction_type == "wiener_residual"
    logged = read_log(tmp_path / "run")
    assert any("eps_600" in entry for entry in logged)


def test_small_prior_fixture_round_trip(tmp_path: Path) -> None:
    loaded = load_prior(save_small_prior(tmp_path))
    x, t = torch.rand(1, 3, SIDE, SIDE), torch.tensor([100])
    torch.testing.assert_close(loaded(x, t), small_prior()(x, t))


def test_prior_crops_come_first(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Watched(PriorTask):
        def _draw_timesteps(self, count: int, generator: torch.Generator, *, cropped: bool) -> torch.Tensor:
            t = super()._draw_timesteps(count, generator, cropped=cropped)
            seen.append((int(cropped), int(t.max())))
            return t

    config = PriorTraining(steps=4, precision="fp32", crop_steps=2, crop=32, crop_visited=50, beyond=0.5, low=10)
    found = Watched(
        small_prior(), small_prior(), config, faces=face_source(faces(), 4, 0), batch=4,
        held_out=make_faces(2), run=tmp_path, workers=Workers("cpu"),
    )  # fmt: skip
    for step in range(4):
        found.step(step)
    assert [cropped for cropped, _ in seen] == [1, 1, 0, 0]
    assert all(highest < 50 for cropped, highest in seen if cropped)


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run_loop(task(tmp_path), tmp_path, LoopConfig(), steps=1, show=False)
    other = task(tmp_path)
    other.model = build_restorer("edge-m")
    with pytest.raises(ModelFileError, match="another network"):
        run_loop(other, tmp_path, LoopConfig(), steps=2, show=False)


def test_log_holds_each_step_once_after_a_crash(tmp_path: Path) -> None:
    for step in (10, 20, 30, 20, 30, 40):
        append_log(tmp_path, {"step": step, "l1": 1.0})
    steps = [entry["step"] for entry in read_log(tmp_path)]
    assert steps == sorted(steps) and steps[-1] == 40 and steps.count(30) == 1


def test_unknown_device_is_a_settings_error() -> None:
    with pytest.raises(ConfigError, match="no device 'foo'"):
        pick_device("foo")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_saving_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def full(path: Path) -> Iterator[Path]:
        yield Path("/dev/full")

    monkeypatch.setattr(training, "atomic_file", full)
    with pytest.raises(OSError, match="No space left"):
        training.save_checkpoint(tmp_path / CHECKPOINT, {"a": torch.zeros(100_000)})


def test_prior_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="highest"):
        PriorTraining(steps=1, visited=800)
    config = PretrainPrior(side=SIDE, channels=(32, 32), training=PriorTraining(steps=1, crop_steps=1, crop=128))
    write_faces(tmp_path / "f", make_faces(8))
    with pytest.raises(ConfigError, match="training.crop"):
        pretrain_prior(tmp_path / "f", tmp_path / "run", config, val=tmp_path / "f", show=False)
