"""`ufr-edge pretrain`: recipes, resuming after a kill, accumulation, and what a folder of faces may hold."""

from __future__ import annotations

import csv
import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_training import CLASSIC, faces, task, weights_of
from training_fakes import (
    SIDE,
    make_faces,
    save_small_prior,
    save_small_restorer,
    small_prior,
    weight,
    write_faces,
)

from ufr_edge.adaptation.faces import evenly, load_faces, read_training_face
from ufr_edge.adaptation.journal import CURVES, TENSORBOARD
from ufr_edge.adaptation.loop import LoopConfig, run_loop
from ufr_edge.adaptation.optimizers import build_optimizer, orthogonal
from ufr_edge.adaptation.pixel_losses import pixel_loss
from ufr_edge.adaptation.pretrain import (
    PretrainPrior,
    PretrainRestorer,
    _found,
    pretrain_prior,
    pretrain_restorer,
)
from ufr_edge.adaptation.prior_task import PriorTask, PriorTraining
from ufr_edge.adaptation.restorer_task import LossWeights, RestorerTask, RestorerTraining
from ufr_edge.adaptation.sources import (
    cropping_source,
    degraded_pairs,
    degrading_source,
    drawn_ahead,
    face_source,
    mixed_source,
)
from ufr_edge.adaptation.training import CHECKPOINT, read_log
from ufr_edge.adaptation.workers import Workers
from ufr_edge.cli import main
from ufr_edge.config import from_json, load_config
from ufr_edge.errors import ConfigError, InputFileError, ModelFileError, TrainingError
from ufr_edge.restorers.edge import build_restorer
from ufr_edge.restorers.files import load_restorer, save_restorer
from ufr_edge.weights import find_weights

ALL = slice(None)
CONFIGS = Path(__file__).parents[1] / "configs"
PIXELS_ONLY = RestorerTraining(
    steps=2, precision="fp32", losses=LossWeights(prior_features=0.0, adversarial=0.0)
)
TINY = PretrainRestorer(arch="edge-s", side=SIDE, batch=2, training=PIXELS_ONLY)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "clean", make_faces(9))


# Recipes


@pytest.mark.parametrize("name", ["edge-m-256", "edge-m-256-sharp", "edge-l-256"])
def test_shipped_restorer_configs_load(name: str) -> None:
    config = load_config(PretrainRestorer, CONFIGS / f"{name}.toml")
    assert config.side == 256 and config.arch == name[:6]
    assert sum(config.degradations.values()) == pytest.approx(1)


def test_shipped_prior_config_loads() -> None:
    assert load_config(PretrainPrior, CONFIGS / "prior-256.toml").training.steps == 40_000


def test_the_stages_follow_each_other() -> None:
    first, sharp, large, last = (
        load_config(PretrainRestorer, CONFIGS / f"{name}.toml")
        for name in ("edge-m-256", "edge-m-256-sharp", "edge-l-256", "edge-l-256-sharp")
    )
    assert sharp.init == large.widen_from == "runs/edge-m-256" and first.init is None
    assert first.training.losses.pixel == large.training.losses.pixel == "log_mse"
    losses = sharp.training.losses
    assert losses.pixel == "log_mse" and min(losses.l1, losses.prior_features, losses.adversarial, losses.grid) > 0
    assert sharp.training.discriminator == "prior-features" and sharp.training.adversarial_crop == 128
    assert last.init == "runs/edge-l-256" and last.training == sharp.training


def test_the_recipe_of_the_shipped_weights_is_a_chain_of_configs() -> None:
    found = {path.stem: path for path in (CONFIGS / "shipped").glob("*.toml")}
    first, sharp, large, last = (
        load_config(PretrainRestorer, found.pop(name))
        for name in ("edge-m-256", "edge-m-256-sharp", "edge-l-256", "edge-l-256-sharp")
    )
    prior = load_config(PretrainPrior, found.pop("prior-256"))
    assert not found and sharp.init == large.widen_from == "runs/edge-m-first" and last.init == "runs/edge-l-first"
    assert {first.detail, sharp.detail, large.detail, last.detail} == {1.0} and prior.storage == "fp16"
    begun = (first.init, sharp.prior, last.prior, prior.init)
    assert all(str(name).startswith("runs/before/ufr_edge/weights/") for name in begun)


def test_the_docs_tell_how_far_the_shipped_weights_were_trained() -> None:
    text = (CONFIGS.parent / "docs" / "config.md").read_text(encoding="utf-8")
    first, sharp, large, last = (
        load_config(PretrainRestorer, CONFIGS / f"{name}.toml").training.steps
        for name in ("edge-m-256", "edge-m-256-sharp", "edge-l-256", "edge-l-256-sharp")
    )
    asked = {"edge-m-256": first + sharp, "edge-l-256": first + large + last}
    asked["prior-256"] = load_config(PretrainPrior, CONFIGS / "prior-256.toml").training.steps
    for name, steps in asked.items():
        card = find_weights(name).card
        assert f"| {name} | {card['steps']:,} | {steps:,} | {card['hours']} |" in text


def test_mixture_is_drawn_by_its_shares() -> None:
    found = faces(12)
    mixture = {"classic-light": 3.0, "classic-heavy": 1.0}
    mixed = degrading_source(found, mixture, 400, 0)(0, ALL)[0]
    light, heavy = (degrading_source(found, {name: 1.0}, 400, 0)(0, ALL)[0] for name in mixture)
    same = [(mixed == other).all((1, 2, 3)) for other in (light, heavy)]
    assert (same[0] ^ same[1]).all()  # each face by exactly one preset
    assert same[0].mean() == pytest.approx(0.75, abs=0.07)


def test_rows_are_those_of_the_whole_batch() -> None:
    config = PretrainRestorer(
        side=SIDE, batch=4, crop_share=0.5, crop=32, degradations={"classic": 1.0, "defocus": 1.0}
    )
    source = mixed_source(faces(), config)
    for step in range(4):
        whole = source(step, ALL)
        each = len(whole[0]) // 4
        for images, part in zip(whole, source(step, slice(1, 3)), strict=True):
            assert np.array_equal(images[each : 3 * each], part)


def test_crop_steps_have_their_share_and_their_own_mixture() -> None:
    config = PretrainRestorer(
        side=SIDE, batch=2, crop_share=0.75, crop=32, degradations=CLASSIC, crop_degradations={"defocus": 1.0}
    )
    source = mixed_source(faces(), config)
    shapes = [source(step, ALL)[0].shape for step in range(80)]
    assert set(shapes) == {(2, SIDE, SIDE, 3), (4, 32, 32, 3)}
    assert shapes.count((4, 32, 32, 3)) / 80 == pytest.approx(0.75, abs=0.13)
    step = shapes.index((4, 32, 32, 3))
    by_defocus = cropping_source(
        degrading_source(faces(), {"defocus": 1.0}, 2, 0), batch=2, crop=32, count=2, seed=0
    )
    assert np.array_equal(source(step, ALL)[0], by_defocus(step, ALL)[0])


def test_crops_of_a_pair_lie_at_the_same_place() -> None:
    clean_of = face_source(faces(), 2, 0)

    def itself(step: int, rows: slice) -> tuple[Any, Any]:
        return clean_of(step, rows), clean_of(step, rows)

    lq, goal = cropping_source(itself, batch=2, crop=32, count=2, seed=0)(0, ALL)
    assert np.array_equal(lq, goal) and not np.array_equal(lq[0], lq[1])
    whole = clean_of(0, ALL)[0]
    assert any(np.array_equal(whole[i : i + 32, j : j + 32], goal[0]) for i in range(33) for j in range(33))


def test_drawing_ahead_changes_nothing() -> None:
    source = degrading_source(faces(), CLASSIC, 4, 0)
    ahead = drawn_ahead(source, steps=2, threads=2)
    for step in (0, 1, 2, 7, 8, 3):  # a resumed run may start anywhere
        for rows in (slice(0, 2), slice(2, 4)):
            assert all(np.array_equal(a, b) for a, b in zip(ahead(step, rows), source(step, rows), strict=True))


def test_log_mse_weighs_each_image_alike() -> None:
    target = torch.zeros(2, 3, 8, 8)
    out = torch.stack([torch.full((3, 8, 8), 0.01), torch.full((3, 8, 8), 0.1)])
    expected = (np.log(1e-4 + 2e-5) + np.log(1e-2 + 2e-5)) / 2
    assert float(pixel_loss(out, target, "log_mse")) == pytest.approx(expected, rel=1e-5)
    assert float(pixel_loss(out, target, "l1")) == pytest.approx(0.055, rel=1e-5)
    assert torch.isfinite(pixel_loss(target, target, "log_mse"))


def test_muon_steps_are_orthogonal_and_of_adams_size() -> None:
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    for found in (orthogonal(matrix, 4), orthogonal(matrix.T, 4).T):
        values = torch.linalg.svdvals(found)
        assert 0.5 < values.min() and values.max() < 1.3
        assert (found * matrix).sum() > 0.8 * torch.linalg.svdvals(matrix).sum()  # the steepest such step
    model = build_restorer("edge-s")
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer("muon", model.parameters(), lr=1e-3, beta2=0.99)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert 0.1e-3 < (p - old).square().mean().sqrt() < 1.1e-3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_optimizer_learns_and_resumes(tmp_path: Path, optimizer: Any) -> None:
    def fresh(run: str) -> RestorerTask:
        torch.manual_seed(0)
        config = dataclasses.replace(PIXELS_ONLY, steps=12, lr=1e-3, optimizer=optimizer, beta2=0.99)
        clean_of = face_source(faces(), 2, 0)

        def blurred(step: int, rows: slice) -> tuple[Any, Any]:
            face = clean_of(0, rows)
            return np.stack([cv2.GaussianBlur(image, (0, 0), 2.0) for image in face]), face

        model = build_restorer("edge-s")
        return RestorerTask(model, config, pairs=blurred, batch=2, run=tmp_path / run, workers=Workers("cpu"))

    whole = fresh("whole")
    run_loop(whole, tmp_path / "whole", LoopConfig(log_every=1), steps=12, show=False)
    losses = [entry["l1"] for entry in read_log(tmp_path / "whole") if "l1" in entry]
    assert losses[-1] < 0.97 * losses[0]
    run_loop(fresh("part"), tmp_path / "part", LoopConfig(), steps=7, show=False)
    resumed = fresh("part")
    run_loop(resumed, tmp_path / "part", LoopConfig(), steps=12, show=False)
    assert same(whole.state(), resumed.state())


def test_the_adversary_is_heard_late_and_softly(tmp_path: Path) -> None:
    found = task(tmp_path, losses=LossWeights())
    found.config = dataclasses.replace(
        found.config, adversarial_delay=2, adversarial_ramp=4, features_crop=32
    )
    assert [found._adversarial_share(step) for step in (0, 2, 4, 6, 9)] == [0, 0, 0.5, 1, 1]
    first, later = found.step(0), found.step(3)
    assert "adversarial" not in first and {"discriminator", "prior_features"} <= set(first)
    assert "adversarial" in later
    found.config = dataclasses.replace(found.config, adversarial_ramp=0)
    assert [found._adversarial_share(step) for step in (1, 2)] == [0, 1]


def test_impossible_settings_are_refused() -> None:
    for wrong, word in (
        ({"degradations": {"classik": 1.0}}, "classik"),
        ({"degradations": {}}, "shares"),
        ({"degradations": {"classic": -1.0}}, "shares"),
        ({"crop_share": 1.5}, "crop_share"),
        ({"crop_share": 0.5, "crop": 512}, "multiple of 32"),
        ({"init": "a", "widen_from": "b"}, "one of them"),
        ({"training": {"losses": {"pixel": "l2"}, "steps": 1}}, "log_mse"),
    ):
        with pytest.raises(ConfigError, match=word):
            from_json(PretrainRestorer, wrong)


def test_several_degradations_have_figures_of_their_own(tmp_path: Path) -> None:
    found = task(tmp_path)
    found.held_out = degraded_pairs(faces(3), ("classic-light", "classic-heavy"), seed=0)
    figures = found.evaluate(0)
    assert set(figures) == {"psnr", "gain"} | {
        f"{a}_classic-{b}" for a in ("psnr", "gain") for b in ("light", "heavy")
    }
    assert figures["gain"] == pytest.approx(0, abs=0.01)  # untrained: the identity
    assert figures["psnr_classic-light"] > figures["psnr_classic-heavy"]
    assert figures["psnr"] == pytest.approx(
        (figures["psnr_classic-light"] + figures["psnr_classic-heavy"]) / 2
    )


def test_widening_and_a_second_stage(clean: Path, tmp_path: Path) -> None:
    start = save_small_restorer(tmp_path / "small.safetensors")
    still = dataclasses.replace(PIXELS_ONLY, lr=1e-12, lr_end=1e-12)
    wide = dataclasses.replace(TINY, arch="edge-m", widen_from=start, training=still)
    path = pretrain_restorer(clean, tmp_path / "wide", wide, val=clean, show=False)
    image = torch.rand(1, 3, SIDE, SIDE)
    assert load_restorer(path).arch == "edge-m"
    torch.testing.assert_close(
        load_restorer(path).model(image), load_restorer(start).model(image), atol=1e-4, rtol=0
    )
    sharp = dataclasses.replace(
        TINY,
        init=start,
        prior=save_small_prior(tmp_path / "prior"),
        crop_share=0.5,
        crop=32,
        training=RestorerTraining(
            steps=3, precision="fp32", discriminator_features=8, adversarial_crop=32, losses=LossWeights()
        ),
    )
    pretrain_restorer(clean, tmp_path / "sharp", sharp, val=clean, show=False)
    assert {"l1", "prior_features", "adversarial", "discriminator"} <= set(read_log(tmp_path / "sharp")[0])


def test_held_out_faces_are_taken_evenly_over_the_folder() -> None:
    whole = faces(10)
    some = evenly(whole, 4)
    assert some.names == tuple(whole.names[i] for i in (0, 3, 6, 9)) and evenly(whole, 10) is whole
    assert np.array_equal(some.images, whole.images[[0, 3, 6, 9]])


def test_sharp_faces_are_drawn_more_often_where_one_folder_is_trained_on_and_held_out(clean: Path) -> None:
    config = dataclasses.replace(TINY, detail=1.0)
    (found,) = _found(clean, clean, config, Workers("cpu"), show=False).values()
    assert found.weights is not None and len(found) == 9


# Resuming


class Killed(BaseException):
    """Stands for a kill: nothing catches it, nothing is saved after it."""


@pytest.mark.parametrize("moment", ["in a step", "while saving"])
def test_killed_at_any_moment_and_resumed_is_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    losses, loop = LossWeights(), LoopConfig(save_every=2, evaluate_every=100)
    whole = task(tmp_path / "whole", losses=losses)
    run_loop(whole, tmp_path / "whole", loop, steps=5, show=False)

    def killed(*_: object) -> None:
        raise Killed

    part = task(tmp_path / "part", losses=losses)
    run_loop(part, tmp_path / "part", loop, steps=2, show=False)
    part = task(tmp_path / "part", losses=losses)
    with monkeypatch.context() as patch:
        if moment == "in a step":
            assert part.ema
            patch.setattr(part.ema, "update", killed)  # after the optimiser's step, before the average's
        else:
            patch.setattr(torch, "save", killed)
        with pytest.raises(Killed):
            run_loop(part, tmp_path / "part", loop, steps=5, show=False)
    resumed = task(tmp_path / "part", losses=losses)
    run_loop(resumed, tmp_path / "part", loop, steps=5, show=False)
    assert not list((tmp_path / "part").glob(".*"))
    assert same(whole.state(), resumed.state())


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def test_an_average_that_starts_late_starts_from_the_weights(tmp_path: Path) -> None:
    without = task(tmp_path)
    without.ema = None
    run_loop(without, tmp_path, LoopConfig(), steps=3, show=False)
    late = task(tmp_path)
    run_loop(late, tmp_path, LoopConfig(), steps=3, show=False)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(late), without.model.parameters(), strict=True))


# Accumulation


def test_accumulated_gradient_is_the_large_batchs(tmp_path: Path) -> None:
    gradients = []
    for parts in (1, 4):
        found = task(tmp_path, losses=LossWeights(), batch=4)
        torch.manual_seed(4)
        torch.nn.init.normal_(weight(found, "head"), std=0.01)
        found.parts = found.workers.parts(4, parts)
        terms = [found._backward(0, part)[1] for part in found.parts]
        gradients.append(([p.grad for p in found.model.parameters()], found.workers.mean(terms)))
    (one, figures), (four, accumulated) = gradients
    assert accumulated == pytest.approx(figures, abs=1e-5)
    for a, b in zip(one, four, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_accumulated_discriminator_is_the_large_batchs(tmp_path: Path) -> None:
    discriminators = []
    for parts in (1, 2):
        found = task(tmp_path, losses=LossWeights(), batch=4)
        found.parts = found.workers.parts(4, parts)
        figures = found.step(0)
        assert found.adversary
        discriminators.append((figures, [p.grad for p in found.adversary.model.parameters()]))
    (one, a), (two, b) = discriminators
    assert one == pytest.approx(two, abs=1e-5)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-3)


def test_accumulated_prior_is_the_large_batchs(tmp_path: Path) -> None:
    gradients = []
    for parts in (1, 2):
        found = PriorTask(
            small_prior(), small_prior(), PriorTraining(steps=2, precision="fp32", accumulate=parts),
            faces=face_source(faces(), 4, 0), batch=4, held_out=make_faces(2), run=tmp_path, workers=Workers("cpu"),
        )  # fmt: skip
        gradients.append((found.step(0), [p.grad for p in found.prior.parameters()]))
    (one, a), (two, b) = gradients
    assert one == pytest.approx(two, abs=1e-5)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-3)


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 3"):
        Workers("cpu").parts(8, 3)
    assert Workers("cpu").parts(4, 2) == [slice(0, 2), slice(2, 4)]


# What is written


def test_curves_and_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    run_loop(task(tmp_path), tmp_path, LoopConfig(log_every=1), steps=2, show=False)
    run_loop(task(tmp_path), tmp_path, LoopConfig(log_every=1), steps=4, show=False)
    board = EventAccumulator(str(tmp_path / TENSORBOARD))
    board.Reload()
    assert [event.step for event in board.Scalars("train/l1")] == [1, 2, 3, 4]
    assert {"held_out/psnr", "held_out/gain"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Images("held_out")] == [2, 4]
    curves = cv2.imread(str(tmp_path / CURVES))
    assert curves is not None and curves.std() > 5


def test_without_tensorboard_it_is_said_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with caplog.at_level(logging.WARNING, logger="ufr_edge"):
        assert run_loop(task(tmp_path), tmp_path, LoopConfig(), steps=1, show=False) == 1
    assert 'pip install "ufr-edge[train]"' in caplog.text
    assert not (tmp_path / TENSORBOARD).exists() and (tmp_path / CURVES).is_file()


# Bad input


def write_unfit(folder: Path) -> dict[str, str]:
    """Write one file of each unfit kind, beside a few odd ones that are fine; returns name -> kind."""
    face = make_faces(1, seed=3)[0]
    cv2.imwrite(str(folder / "grey.png"), face[..., 0])
    cv2.imwrite(str(folder / "grey3.jpg"), np.repeat(face[..., :1], 3, 2))
    cv2.imwrite(str(folder / "deep.png"), face.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "deep.tif"), face.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "deepgrey.png"), face[..., 0].astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "tiny.png"), face[:16, :16])
    cv2.imwrite(str(folder / "wide.png"), face[:64, :32].repeat(4, 1))
    Image.fromarray(face).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(face).convert("CMYK").save(folder / "cmyk.tif")
    (folder / "broken.png").write_bytes(b"nothing")
    Image.fromarray(face).save(folder / "whole.jpg", quality=95)
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-400])
    (folder / "empty.jpg").write_bytes(b"")
    Image.fromarray(face).convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(face).quantize(64).save(folder / "palette.png")
    return {
        "broken.png": "broken", "cmyk.jpg": "CMYK", "cmyk.tif": "CMYK", "cut.jpg": "broken", "deep.png": "16-bit",
        "deep.tif": "16-bit", "deepgrey.png": "16-bit", "empty.jpg": "broken", "grey.png": "grey",
        "grey3.jpg": "grey", "tiny.png": "tiny", "wide.png": "not square",
    }  # fmt: skip


def test_unfit_training_faces_are_named_counted_and_skipped(clean: Path) -> None:
    unfit = write_unfit(clean)
    found = load_faces(clean, SIDE, read=read_training_face)
    assert dict(zip([name for name, _ in found.skipped], found.kinds, strict=True)) == unfit
    assert {"alpha.png", "palette.png", "whole.jpg"} < set(found.names) and len(found) == 12
    assert all(name in reason for name, reason in found.skipped)
    lenient = load_faces(clean, SIDE)  # a camera's faces may be grey or deep: they are what there is
    assert {"grey.png", "deep.png"} <= set(lenient.names)


def test_a_face_below_half_the_side_is_tiny(tmp_path: Path) -> None:
    face = cv2.resize(make_faces(1)[0], (120, 120))
    cv2.imwrite(str(tmp_path / "a.png"), face)
    assert read_training_face(tmp_path / "a.png", 240).shape == (240, 240, 3)
    with pytest.raises(InputFileError, match="at least 128x128"):
        read_training_face(tmp_path / "a.png", 256)


def test_the_command_tells_what_it_left_out(clean: Path, tmp_path: Path) -> None:
    val = write_faces(tmp_path / "val", make_faces(8, seed=9))
    unfit = write_unfit(clean)
    run = tmp_path / "run"
    result = CliRunner().invoke(
        main,
        ["pretrain", "restorer", "-i", str(clean), "--val", str(val), "-o", str(run), "--arch", "edge-s"]
        + ["--side", str(SIDE), "--steps", "1", "--batch", "2", "--train-precision", "fp32", "--no-progress"],
    )
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "left out" in line]
    assert len(lines) == 1 and f"left out {len(unfit)} of 24 files" in lines[0] and "3 broken" in lines[0]
    assert result.stdout == f"weights: {run / 'weights.safetensors'}\n"
    with (run / "skipped.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"]: row["kind"] for row in rows} == unfit
    assert all(row["reason"] and row["folder"] == str(clean) for row in rows)


def test_fewer_than_eight_good_faces(tmp_path: Path) -> None:
    folder = write_faces(tmp_path / "few", make_faces(4))
    write_unfit(folder)
    with pytest.raises(
        InputFileError, match="7 good faces of 19 files; at least 8 are needed. Left out: 3 broken"
    ):
        pretrain_restorer(folder, tmp_path / "run", TINY, val=folder, show=False)
    assert not (tmp_path / "run").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_another_or_damaged_checkpoint_changes_nothing(clean: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain_restorer(clean, run, TINY, val=clean, show=False)
    before = contents(run)
    other = dataclasses.replace(TINY, arch="edge-m", seed=5)
    less = write_faces(clean.parent / "less", make_faces(8))
    losses = dataclasses.replace(TINY.training.losses, pixel="log_mse")
    for folder, config in (
        (clean, other),
        (clean, dataclasses.replace(TINY, degradations={"defocus": 1.0})),
        (clean, dataclasses.replace(TINY, training=dataclasses.replace(TINY.training, losses=losses))),
        (less, TINY),
    ):
        with pytest.raises(ConfigError, match="other settings. Choose another folder"):
            pretrain_restorer(folder, run, config, val=clean, show=False)
    with pytest.raises(ModelFileError, match="no checkpoint of prior"):
        pretrain_prior(clean, run, PretrainPrior(side=SIDE, channels=(32, 32)), val=clean, show=False)
    assert contents(run) == before
    cut = (run / CHECKPOINT).read_bytes()[:-5000]
    (run / CHECKPOINT).write_bytes(cut)
    before = contents(run)
    with pytest.raises(ModelFileError, match="damaged"):
        pretrain_restorer(clean, run, TINY, val=clean, show=False)
    (run / CHECKPOINT).unlink()
    with pytest.raises(ConfigError, match="not replaced"):
        pretrain_restorer(clean, run, TINY, val=clean, show=False)
    before.pop(str(run / CHECKPOINT))
    assert contents(run) == before


def test_unfit_start_weights_are_refused(clean: Path, tmp_path: Path) -> None:
    start = tmp_path / "m.safetensors"
    save_restorer(build_restorer("edge-m"), start, arch="edge-m", side=SIDE)
    with pytest.raises(ConfigError, match="Set arch to edge-m"):
        pretrain_restorer(
            clean, tmp_path / "run", dataclasses.replace(TINY, init=str(start)), val=clean, show=False
        )
    with pytest.raises(ConfigError, match="cannot be widened"):
        wide = dataclasses.replace(TINY, widen_from=str(start))
        pretrain_restorer(clean, tmp_path / "run", wide, val=clean, show=False)
    start.write_bytes(start.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="damaged"):
        pretrain_restorer(
            clean, tmp_path / "run", dataclasses.replace(TINY, init=str(start)), val=clean, show=False
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("what", "where"), [("loss", "forward"), ("gradient's norm", "backward")])
def test_nan_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, where: str
) -> None:
    class Broken(RestorerTask):
        def _backward(self, step: int, part: slice) -> Any:
            out, terms = super()._backward(step, part)
            if step == 3 and where == "forward":
                return out, {**terms, "total": terms["total"] * float("nan")}
            if step == 3:
                weight(self, "stem").grad.fill_(float("inf"))  # type: ignore[union-attr]
            return out, terms

    found = task(tmp_path)
    found.__class__ = Broken
    with pytest.raises(TrainingError, match=f"{what} is (nan|inf) at step 3.*kept in .*{CHECKPOINT}"):
        run_loop(found, tmp_path, LoopConfig(save_every=2), steps=6, show=False)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["step"] == 2
    assert all(torch.isfinite(value).all() for value in saved["task"]["model"].values())
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    found = task(fresh)
    found.__class__ = Broken
    with pytest.raises(TrainingError, match="No checkpoint was saved yet"):
        run_loop(found, fresh, LoopConfig(), steps=6, show=False)
