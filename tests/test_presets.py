"""The published recipes as presets: statements 12-15 of the method brief, section 13, each by its number."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from spandrel_nets import swinir, swinir_state
from torch import Tensor, nn
from training_fakes import SIDE, make_faces, save_small_prior, save_small_restorer, write_faces

from ufr_edge.adaptation.adapt import AdaptConfig, adapt
from ufr_edge.adaptation.discriminator import UNetDiscriminatorSN
from ufr_edge.adaptation.faces import FaceSet
from ufr_edge.adaptation.finetune import FinetuneConfig, Pairs, finetune, pair_source
from ufr_edge.adaptation.presets import CODEFORMER, PRESETS, SWINIR, get_preset
from ufr_edge.adaptation.real_faces import load_real
from ufr_edge.adaptation.restorer_task import NO_LOSSES, LossWeights, RestorerTask, RestorerTraining
from ufr_edge.adaptation.sources import face_source
from ufr_edge.adaptation.terms import check_terms, choose_perceptual
from ufr_edge.adaptation.training import Ema
from ufr_edge.adaptation.workers import Workers
from ufr_edge.cli import main
from ufr_edge.cli.finetune import finetune_config
from ufr_edge.cli.options import tell_licences
from ufr_edge.config import load_config
from ufr_edge.errors import BackendUnavailableError, ConfigError, InputFileError
from ufr_edge.metrics.lpips_net import NETS as LPIPS_NETS
from ufr_edge.metrics.lpips_net import Lpips, LpipsNet
from ufr_edge.priors.files import load_prior
from ufr_edge.restorers.edge import build_restorer
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.restorers.registry import KNOWN_MODELS
from ufr_edge.restorers.spandrel_loader import SwinIRRestorer

CONFIGS = Path(__file__).parents[1] / "configs"
def options(**given: Any) -> defaultdict[str, Any]:
    """A command's options, as click gives them: None for those that were left out."""
    return defaultdict(lambda: None, given)


def tiny_lpips() -> Lpips:
    """LPIPS on a random network of two layers, with positive weights as the published ones."""
    torch.manual_seed(3)
    vgg = LPIPS_NETS["vgg"]
    net = LpipsNet(
        layers=((4, 3, 1, 1), None, (6, 3, 1, 1)), pool=(2, 2), taps=(0, 1), backbone=vgg.backbone, head=vgg.head
    )
    lpips = Lpips(net)
    with torch.no_grad():
        for lin in lpips.lins.children():
            lin.get_parameter("weight").abs_()
    return lpips


def task(run: Path, training: RestorerTraining, *, batch: int = 4, model: Any = None, **given: Any) -> RestorerTask:
    torch.manual_seed(0)
    lq, goal = make_faces(batch, seed=1), make_faces(batch, seed=2)
    if model is None:
        model = build_restorer("edge-s")
        torch.nn.init.normal_(model.head.weight, std=0.01)
    return RestorerTask(
        model,
        training,
        pairs=lambda _, rows: (lq[rows], goal[rows]),
        batch=batch,
        run=run,
        workers=Workers("cpu"),
        **given,
    )


def small(training: RestorerTraining, **changes: Any) -> RestorerTraining:
    return dataclasses.replace(training, discriminator_features=4, **changes)


def gradient(found: RestorerTask) -> tuple[float, Tensor]:
    """The weighted loss of a whole batch, and the gradient it leaves, without a step taken."""
    found.optimizer.zero_grad(set_to_none=True)
    parts = [found._backward(0, part)[1]["total"] for part in found.parts]
    gradients = [p.grad.flatten() for p in found.model.parameters() if p.grad is not None]
    return float(torch.stack(parts).detach().mean()), torch.cat(gradients)


def test_statement_12_values() -> None:
    """Statement 12: AdamW 2e-5 -> 5e-6 over 20,000 iterations of 16, no augmentation, no average; all weights in fp32."""
    config = SWINIR.finetune
    training = config.training
    assert (training.optimizer, training.beta2, training.steps, config.batch) == ("adamw", 0.999, 20_000, 16)
    assert (config.flip, config.replay, config.camera_pairs, training.ema) == (False, 0.0, 0.0, 0.0)
    assert (training.precision, training.clip_norm, training.warmup) == ("fp32", 0.0, 0)
    rates = [training.rate(step) for step in (0, 10_000, 20_000)]
    assert rates == pytest.approx([2e-5, 1.25e-5, 5e-6])
    assert all(training.rate(s) > training.rate(s + 1) for s in range(0, 19_999, 500))
    assert (config.seed, training.accumulate) == (10_000, 4)


def test_statement_12_trains_as_it_says(tmp_path: Path) -> None:
    """Statement 12: the optimiser built is AdamW without decay over every weight; drop path draws in train mode only."""
    training = small(SWINIR.finetune.training, accumulate=1, losses=LossWeights(prior_features=0, adversarial=0))
    model = SwinIRRestorer(swinir(depths=2, img=8), side=64)
    found = task(tmp_path, training, batch=2, model=model)
    assert type(found.optimizer) is torch.optim.AdamW
    (group,) = found.optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.999), 0.0)
    assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in model.parameters())
    assert found.ema is None and found.result is found.model
    assert found.model.training
    dropped = [m for m in found.model.modules() if type(m).__name__ == "DropPath"]
    assert len(dropped) == 3 and all(m.training for m in dropped)
    first = found.step(0)["l1"]
    assert found.optimizer.param_groups[0]["lr"] == pytest.approx(2e-5)
    assert first > 0


def test_statement_12_no_flip(tmp_path: Path) -> None:
    """Statement 12: no augmentation, of the pairs or of the real faces."""
    faces = make_faces(6)
    config = dataclasses.replace(SWINIR.finetune, batch=4)
    known = {image.tobytes() for image in faces}
    draw = pair_source(Pairs(lq=faces, truth=faces), config)
    real = face_source(FaceSet(images=faces, names=tuple("abcdef")), 4, 0, flip=config.flip)
    for step in range(5):
        for images in (*draw(step, slice(None)), real(step, slice(None))):
            assert all(image.tobytes() in known for image in images)


def test_statement_13_weights() -> None:
    """Statement 13: 1.0 L1 + 0.4 mean LPIPS (on VGG) + 0.1 adversarial, and nothing else."""
    assert SWINIR.finetune.training.losses == LossWeights(
        pixel="l1", l1=1.0, lpips=0.4, lpips_net="vgg", prior_features=0.0, adversarial=0.1
    )


def test_statement_13_the_micro_batch_changes_nothing(tmp_path: Path) -> None:
    """Statement 13: loss and gradient of 4 faces are the same in one, two or four parts, all three terms in force."""
    found = []
    for accumulate in (1, 2, 4):
        training = small(SWINIR.finetune.training, accumulate=accumulate)
        one = task(tmp_path, training, real=lambda _, rows: make_faces(4, seed=3)[rows], lpips=tiny_lpips())
        found.append(gradient(one))
    (loss, whole), *others = found
    for other, parts in others:
        assert other == pytest.approx(loss, abs=1e-5)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_statement_13_terms_are_means(tmp_path: Path) -> None:
    """Statement 13: the LPIPS term is the mean over faces at weight 0.4: 0.1 of the sum over a micro-batch of 4."""
    lpips = tiny_lpips()
    training = small(SWINIR.finetune.training, accumulate=1)
    found = task(tmp_path, training, real=lambda _, rows: make_faces(4, seed=3)[rows], lpips=lpips)
    out, target = torch.rand(2, 4, 3, SIDE, SIDE)
    total, terms = found._losses(out, target, 0)
    with torch.no_grad():
        distances = lpips(out, target)
    assert float(terms["lpips"]) == pytest.approx(float(distances.mean()), rel=1e-5)
    assert 0.4 * float(distances.mean()) == pytest.approx(0.1 * float(distances.sum()))
    weighted = float(terms["l1"]) + 0.4 * float(terms["lpips"]) + 0.1 * float(terms["adversarial"])
    assert float(total) == pytest.approx(weighted, rel=1e-5)


def test_statement_13_output_is_not_clamped_before_the_losses(tmp_path: Path) -> None:
    """Statement 13 (section 6): what lies outside of [0, 1] is punished too."""
    found = task(tmp_path, RestorerTraining(steps=1, losses=LossWeights(prior_features=0, adversarial=0)))
    target = torch.ones(1, 3, SIDE, SIDE)
    assert float(found._losses(target + 1, target, 0)[0]) == pytest.approx(1.0)


def test_lpips_has_a_gradient_where_features_are_zero() -> None:
    lpips = tiny_lpips()
    black = torch.zeros(1, 3, 16, 16, requires_grad=True)
    with torch.no_grad():
        for parameter in lpips.features.parameters():
            parameter.zero_()
    lpips(black, torch.rand(1, 3, 16, 16)).sum().backward()
    assert black.grad is not None and bool(torch.isfinite(black.grad).all())


def test_lpips_that_cannot_be_computed_is_said_with_its_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statement 13: no other distance takes LPIPS's place unless it is named."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BackendUnavailableError, match="--perceptual prior-features") as caught:
        check_terms(SWINIR.finetune, tmp_path)
    assert "--lpips-backbone" in str(caught.value) or "pip install" in str(caught.value)
    chosen = choose_perceptual(SWINIR.finetune.training.losses, "prior-features")
    assert (chosen.lpips, chosen.prior_features) == (0.0, 0.4)
    training = dataclasses.replace(SWINIR.finetune.training, losses=chosen)
    check_terms(dataclasses.replace(SWINIR.finetune, training=training), tmp_path)
    none = choose_perceptual(chosen, "none")
    assert (none.lpips, none.prior_features, none.l1) == (0.0, 0.0, 1.0)
    assert choose_perceptual(none, "lpips").lpips == 0.4


def test_statement_14_the_rate_of_the_discriminator_is_constant(tmp_path: Path) -> None:
    """Statement 14: 2e-5 from the first step to the last, one step for each of the generator's, from scratch."""
    training = small(SWINIR.finetune.training, accumulate=1, steps=4, losses=LossWeights(l1=1, prior_features=0, adversarial=0.1))
    assert (SWINIR.finetune.training.discriminator_lr, SWINIR.finetune.training.discriminator_features) == (2e-5, 64)
    assert (training.adversarial_crop, training.adversarial_delay, training.adversarial_ramp) == (0, 0, 0)
    found = task(tmp_path, training, real=lambda _, rows: make_faces(4, seed=3)[rows])
    assert found.adversary is not None and isinstance(found.adversary.model, UNetDiscriminatorSN)
    assert found.adversary.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    before = copy.deepcopy(found.adversary.model.state_dict())
    for step in range(4):
        found.step(step)
        assert found.adversary.optimizer.param_groups[0]["lr"] == 2e-5
        assert found.optimizer.param_groups[0]["lr"] == pytest.approx(training.rate(step))
    assert any(not torch.equal(before[k], v) for k, v in found.adversary.model.state_dict().items())
    steps = {int(s["step"]) for s in found.adversary.optimizer.state.values()}
    assert steps == {4}


def test_statement_14_real_faces_are_the_clean_set_alone(tmp_path: Path) -> None:
    """Statement 14: what the discriminator is told is real comes from the clean folder, never from the targets."""
    clean = make_faces(4, seed=9)
    seen: list[Tensor] = []
    found = task(
        tmp_path,
        small(SWINIR.finetune.training, accumulate=2, losses=LossWeights(l1=1, prior_features=0, adversarial=0.1)),
        real=lambda _, rows: clean[rows],
    )
    assert found.adversary is not None
    whole = found.adversary.update

    def watched(parts: Any, **rest: Any) -> float:
        seen.extend(real for _, real in parts)
        return whole(parts, **rest)

    found.adversary.update = watched  # type: ignore[method-assign]
    found.step(0)
    expected = torch.from_numpy(clean).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(torch.cat(seen), expected, check_stride=False)


def test_statement_14_no_adversarial_gradient_in_the_discriminator_in_an_accumulated_step(tmp_path: Path) -> None:
    """Statement 14: when the discriminator's turn comes, the generator's parts have left nothing in its gradients."""
    found = task(
        tmp_path,
        small(SWINIR.finetune.training, accumulate=2, losses=LossWeights(l1=1, prior_features=0, adversarial=0.1)),
        real=lambda _, rows: make_faces(4, seed=3)[rows],
    )
    assert found.adversary is not None and len(found.parts) == 2
    parameters, whole = list(found.adversary.model.parameters()), found.adversary.update
    entered: list[list[Tensor | None]] = []

    def gradients() -> list[Tensor | None]:
        return [None if p.grad is None else p.grad.clone() for p in parameters]

    def watched(parts: Any, **rest: Any) -> float:
        entered.append(gradients())
        return whole(parts, **rest)

    found.adversary.update = watched  # type: ignore[method-assign]
    for step in range(2):
        before = gradients()
        figures = found.step(step)
        assert figures["adversarial"] > 0
        for old, new in zip(before, entered[step], strict=True):
            assert (old is None) == (new is None) and (old is None or new is None or torch.equal(old, new))


def test_many_real_faces_are_read_when_drawn(tmp_path: Path) -> None:
    """FFHQ at 512 px does not fit into memory: what is drawn is the same, a broken file is named."""
    folder = write_faces(tmp_path / "clean", make_faces(9))
    held, read = (load_real(folder, SIDE, in_memory=size) for size in (10**9, 1000))
    assert isinstance(held.images, np.ndarray) and not isinstance(read.images, np.ndarray)
    for step in range(3):
        a, b = (face_source(faces, 4, 5)(step, slice(1, 4)) for faces in (held, read))
        assert np.array_equal(a, b)
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(InputFileError, match="face_00"):
        face_source(read, 4, 5)(0, slice(None))


def test_statement_15_values() -> None:
    """Statement 15: Adam 1e-4 (0.9, 0.99), halved at 35,000 and 38,000 of 40,000, batch 8, EMA 0.995, flips, MSE + 0.5 CE."""
    config = CODEFORMER.finetune
    training = config.training
    assert (training.optimizer, training.beta2, training.steps, config.batch) == ("adam", 0.99, 40_000, 8)
    rates = [training.rate(step) for step in (0, 34_999, 35_000, 37_999, 38_000, 39_999)]
    assert rates == pytest.approx([1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 2.5e-5])
    assert (training.ema, training.ema_warmup, config.flip, config.seed) == (0.995, False, True, 0)
    assert (training.objective, training.losses) == ("codes", NO_LOSSES)
    assert (training.code_losses.features, training.code_losses.codes) == (1.0, 0.5)


def test_statement_15_the_average_has_a_constant_decay() -> None:
    """Statement 15: after every step 0.995 of the average is kept, from the first on; by default it is warmed up."""
    constant, warmed = (
        (source := nn.Linear(1, 1, bias=False), Ema(source, nn.Linear(1, 1, bias=False), 0.995, warmup=warmup))
        for warmup in (False, True)
    )
    for source, average in (constant, warmed):
        with torch.no_grad():
            source.weight.fill_(1.0)
            average.module.get_parameter("weight").fill_(0.0)
        for step in range(10):
            average.update(step)
    assert float(constant[1].module.get_parameter("weight").detach()) == pytest.approx(1 - 0.995**10, rel=1e-4)
    assert float(warmed[1].module.get_parameter("weight").detach()) > 0.9


@pytest.mark.parametrize("name", ["paper-swinir", "paper-codeformer"])
def test_the_config_files_mirror_the_presets(name: str) -> None:
    assert load_config(AdaptConfig, CONFIGS / f"{name}.toml") == PRESETS[name]


def test_free_choices_are_the_brief_s() -> None:
    """Section 13, free choices: N = 16 (SwinIR), 8 (CodeFormer), one sample; the sampler is the paper's."""
    assert (SWINIR.targets.sampler.filter_n, CODEFORMER.targets.sampler.filter_n) == (16, 8)
    for preset in (SWINIR, CODEFORMER):
        sampler = preset.targets.sampler
        assert (sampler.steps, sampler.start, sampler.hold_until, sampler.method) == (250, 150, 90, "ddpm")
        assert (sampler.samples_per_image, sampler.fast_steps, sampler.precision) == (1, None, "fp32")
        assert not preset.targets.qa.judge and not preset.targets.auto
        assert preset.targets.restorer == preset.finetune.restorer == preset.aligned().finetune.restorer
        for source in (preset.targets.restorer, preset.targets.prior):
            assert source in KNOWN_MODELS


def test_a_file_lies_over_the_preset_and_flags_over_both(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("batch = 32\n[training]\nlr = 1e-5\n[training.losses]\nlpips = 0.2\n")
    config = load_config(FinetuneConfig, tmp_path / "own.toml", get_preset("paper-swinir").finetune)
    assert (config.batch, config.training.lr, config.training.losses.lpips) == (32, 1e-5, 0.2)
    assert (config.training.steps, config.training.losses.adversarial) == (20_000, 0.1)
    given = options(batch=64, perceptual="prior-features")
    final = finetune_config(config, given, tmp_path, stated=True)
    assert (final.batch, final.training.losses.prior_features, final.training.losses.lpips) == (64, 0.2, 0.0)
    with pytest.raises(ConfigError, match="paper-swinir"):
        get_preset("paper")


def test_an_adversarial_weight_that_was_set_is_never_dropped_unsaid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    default = FinetuneConfig()
    assert default.training.losses.adversarial > 0
    without = finetune_config(default, options(), None, stated=False)
    assert without.training.losses.adversarial == 0
    assert "no --real" in capsys.readouterr().err
    kept = finetune_config(default, options(), tmp_path, stated=False)
    assert kept.training.losses.adversarial == default.training.losses.adversarial
    for given, stated in ((options(), True), (options(w_adversarial=0.5), False)):
        with pytest.raises(ConfigError, match="--w-adversarial 0"):
            finetune_config(default, given, None, stated=stated)
    explicit = finetune_config(default, options(w_adversarial=0.0), None, stated=True)
    assert explicit.training.losses.adversarial == 0
    capsys.readouterr()


def test_the_command_says_what_lacks_before_it_reads_anything(tmp_path: Path) -> None:
    order = ["finetune", "-i", "none", "-t", "none", "-o", str(tmp_path / "run")]
    refused = CliRunner().invoke(main, [*order, "--preset", "paper-swinir"])
    assert refused.exit_code == 1 and "needs real faces" in refused.stderr
    fetch = CliRunner().invoke(main, [*order, "--preset", "paper-codeformer"], env={"UFR_CACHE": str(tmp_path)})
    assert fetch.exit_code == 1 and "models fetch codeformer --accept-licence" in fetch.stderr


def test_adapt_refuses_codes_of_another_network_before_it_makes_targets(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CODEFORMER,
        targets=dataclasses.replace(CODEFORMER.targets, restorer=save_small_restorer(tmp_path / "base.safetensors")),
    )
    faces = write_faces(tmp_path / "faces", make_faces(8))
    with pytest.raises(ConfigError, match="a CodeFormer only"):
        adapt(faces, tmp_path / "run", config, show=False)
    assert not (tmp_path / "run").exists()


def test_a_licence_is_told_and_accepted_by_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our own restorers say nothing; a restricted one is refused until accepted, then named by its licence."""
    monkeypatch.setenv("UFR_CACHE", str(tmp_path / "cache"))
    path = KNOWN_MODELS["swinir-face-gan"].path
    path.parent.mkdir(parents=True)
    torch.save(swinir_state(swinir()), path)
    tell_licences([save_small_restorer(tmp_path / "base.safetensors")], accept=False)
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="--accept-licence"):
        tell_licences(["swinir-face-gan"], accept=False)
    for accept in (True, False):  # once is enough
        tell_licences(["swinir-face-gan"], accept=accept)
        assert "weights CC BY-NC-SA 4.0" in capsys.readouterr().err
    assert load_any_restorer("swinir-face-gan").meta["weights_licence"].startswith("CC BY-NC-SA")


def test_a_swinir_is_fine_tuned_and_read_again(tmp_path: Path) -> None:
    """A checkpoint of others goes in, and weights that every command reads come out; two runs agree to the last bit."""
    network = swinir()
    torch.save(swinir_state(network), tmp_path / "net.pth")
    faces = write_faces(tmp_path / "lq", make_faces(8, seed=1))
    targets = write_faces(tmp_path / "targets", make_faces(8, seed=2))
    losses = LossWeights(prior_features=0, adversarial=0.1)
    training = small(SWINIR.finetune.training, steps=4, accumulate=2, losses=losses)
    config = dataclasses.replace(
        SWINIR.finetune, restorer=str(tmp_path / "net.pth"), batch=2, training=training, device="cpu"
    )
    whole = finetune(faces, targets, tmp_path / "whole", config, real=targets, show=False)
    found = load_any_restorer(whole)
    assert (found.arch, found.side, found.meta["pairs"], found.meta["weights_licence"]) == (
        "swinir", 128, "8", "as their source says"
    )  # fmt: skip
    before = load_any_restorer(tmp_path / "net.pth").model.state_dict()
    assert any(not torch.equal(before[k], v) for k, v in found.model.state_dict().items())
    again = finetune(faces, targets, tmp_path / "again", config, real=targets, show=False)
    assert all(torch.equal(v, load_any_restorer(again).model.state_dict()[k]) for k, v in found.model.state_dict().items())


def test_two_kinds_of_perceptual_prior(tmp_path: Path) -> None:
    """--features-prior gives the features where the sampler's prior has none to give."""
    faces = write_faces(tmp_path / "faces", make_faces(8))
    training = RestorerTraining(steps=1, precision="fp32", losses=LossWeights(prior_features=0.1, adversarial=0))
    config = FinetuneConfig(
        restorer=save_small_restorer(tmp_path / "base.safetensors"),
        prior="no-such-prior",
        features_prior=save_small_prior(tmp_path / "prior"),
        batch=2,
        training=training,
        device="cpu",
    )
    assert finetune(faces, faces, tmp_path / "run", config, show=False).exists()


def _fetched(name: str) -> Path:
    known = KNOWN_MODELS[name]
    if not known.fetched:
        pytest.skip(f"{name} is not here. Run: ufr-edge models fetch {name} --accept-licence")
    return known.path


@pytest.mark.slow
def test_statement_10_the_released_prior_loads_strictly() -> None:
    """Statement 10: DifFace's file loads strictly."""
    prior = load_prior(_fetched("iddpm-ffhq-512"))
    assert sum(p.numel() for p in prior.parameters()) == 159_788_454
    assert (prior.side, prior.learns_variance) == (512, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swinir-face-gan", "swinir-face-l1", "swinir-face-diffbir"])
def test_statement_11_the_released_restorers_load_strictly(name: str) -> None:
    """Statement 11: swinir_gan_v1.pth and DifFace's L1 file load strictly; 512 px, 15,792,587 parameters."""
    found = load_any_restorer(_fetched(name))
    assert (found.arch, found.side) == ("swinir", 512)
    assert sum(p.numel() for p in found.model.parameters()) == 15_792_587
    assert np.isfinite([float(t.float().abs().max()) for t in found.model.state_dict().values()]).all()
