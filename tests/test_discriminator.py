"""The discriminator on the prior's features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_fakes import make_faces, small_prior

from ufr_edge.adaptation.discriminator import Adversary, PriorDiscriminator, build_discriminator
from ufr_edge.adaptation.training import to_tensor
from ufr_edge.adaptation.workers import Workers
from ufr_edge.errors import ConfigError, TrainingError
from ufr_edge.priors.features import PriorFeatures


def _adversary() -> tuple[Adversary, PriorFeatures]:
    torch.manual_seed(0)
    features = PriorFeatures(small_prior())
    return Adversary(PriorDiscriminator(features), lr=3e-3, workers=Workers("cpu"), betas=(0.5, 0.99)), features


def test_logits_of_every_level_on_the_finest_grid() -> None:
    adversary, features = _adversary()
    images = torch.rand(2, 3, 64, 64)
    maps = features(images)
    assert adversary.model(images).shape == (2, len(maps), *maps[0].shape[-2:])
    assert features.channels == tuple(level.shape[1] for level in maps)


def test_it_learns_to_tell_blurred_faces_from_sharp_ones() -> None:
    adversary, _ = _adversary()
    real = to_tensor(make_faces(8), torch.device("cpu"))
    fake = torch.nn.functional.avg_pool2d(real, 5, 1, 2)
    losses = [adversary.update([(fake, real)], step=0, run=Path()) for _ in range(40)]
    assert losses[0] == pytest.approx(2 * 0.693, abs=0.2)
    assert losses[-1] < 0.85 * losses[0]
    assert adversary.generator_loss(fake) > adversary.generator_loss(real)


def test_only_the_heads_learn_and_are_kept() -> None:
    adversary, features = _adversary()
    before = {name: value.clone() for name, value in features.state_dict().items()}
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    adversary.generator_loss(image).backward()  # type: ignore[no-untyped-call]
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert all(p.grad is None for p in adversary.model.parameters())
    adversary.update([(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))], step=0, run=Path())
    assert all(torch.equal(value, before[name]) for name, value in features.state_dict().items())
    assert not any(p.requires_grad for p in features.parameters())
    assert all(name.startswith("heads.") for name in adversary.state()["model"])


def test_it_needs_a_prior() -> None:
    with pytest.raises(ConfigError, match="needs a prior"):
        build_discriminator("prior-features", features=8, prior=None)


def test_a_gradient_that_is_not_finite_does_not_reach_the_discriminator(tmp_path: Path) -> None:
    """Its loss may still be finite then: the checkpoint of that step must be one to go on from."""
    adversary, _ = _adversary()
    parameters = [p for p in adversary.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    parameters[0].register_hook(lambda gradient: torch.full_like(gradient, float("inf")))  # type: ignore[no-untyped-call]
    faces = torch.rand(2, 3, 64, 64)
    with pytest.raises(TrainingError, match="gradient's norm is inf at step 5"):
        adversary.update([(faces, faces)], step=5, run=tmp_path)
    assert all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
