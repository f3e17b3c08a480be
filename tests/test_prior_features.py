"""The perceptual distance on the prior's own features."""

from __future__ import annotations

import pytest
import torch
from prior_fakes import faces
from torch.nn import functional as F

from ufr_edge.errors import ConfigError, ShapeError
from ufr_edge.priors.features import PriorFeatures, prior_feature_distance
from ufr_edge.priors.lowpass import lowpass, lowpass_matrix
from ufr_edge.priors.model import DiffusionPrior, build_prior


@pytest.fixture(scope="module")
def prior() -> DiffusionPrior:
    torch.manual_seed(0)
    return build_prior(side=64, factor=4, channels=(32, 64, 96), prediction_type="epsilon")


@pytest.fixture(scope="module")
def features(prior: DiffusionPrior) -> PriorFeatures:
    return PriorFeatures(prior)


def sharp(count: int) -> torch.Tensor:
    """Images with detail at every scale."""
    noise = torch.rand((count, 3, 64, 64), generator=torch.Generator().manual_seed(5))
    return (faces(count, 64) + 0.4 * (noise - 0.5)).clamp(0, 1)


def test_equal_images_are_at_distance_zero(features: PriorFeatures) -> None:
    a = sharp(3)
    distance = prior_feature_distance(features, a, a.clone())
    assert distance.shape == (3,)
    assert distance.dtype == torch.float32
    assert torch.equal(distance, torch.zeros(3))


def test_distance_grows_with_blur(features: PriorFeatures) -> None:
    a = sharp(2)
    blurred = [lowpass(a, lowpass_matrix(64, n)).clamp(0, 1) for n in (2, 4, 8)]
    rising = torch.stack([prior_feature_distance(features, a, b) for b in blurred])
    assert (rising[0] > 0).all()
    assert (rising.diff(dim=0) > 0).all()
    assert float(rising.max()) <= 4


def test_distance_is_symmetric_and_per_image(features: PriorFeatures) -> None:
    a, b = sharp(3), faces(3, 64, seed=9)
    both = prior_feature_distance(features, a, b)
    torch.testing.assert_close(both, prior_feature_distance(features, b, a))
    alone = torch.cat([prior_feature_distance(features, a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(both, alone)


def test_gradient_reaches_the_image_and_not_the_prior(prior: DiffusionPrior) -> None:
    features = PriorFeatures(prior)
    a = sharp(1).requires_grad_()
    (gradient,) = torch.autograd.grad(prior_feature_distance(features, a, faces(1, 64)).sum(), a)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) > 0
    assert not any(p.requires_grad for p in features.parameters())
    assert all(p.requires_grad and p.grad is None for p in prior.parameters())


def test_descending_the_distance_brings_the_image_nearer(features: PriorFeatures) -> None:
    target, x = sharp(1), torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.02)
    losses = []
    for _ in range(15):
        loss = prior_feature_distance(features, x, target).mean()
        (x.grad,) = torch.autograd.grad(loss, x)
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_features_equal_the_unets_own_states(prior: DiffusionPrior) -> None:
    """The down path alone gives what the whole network computes on its way."""
    features = PriorFeatures(prior, timestep=30)
    seen: list[torch.Tensor] = []
    hooks = [
        block.resnets[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
        for block in list(prior.unet.down_blocks)[:-1]
    ]
    images = sharp(1)
    with torch.no_grad():
        prior.unet(F.pixel_unshuffle(features.abar**0.5 * (2 * images - 1), 4), torch.tensor([30]))
        maps = features(images)
    for hook in hooks:
        hook.remove()
    for ours, theirs in zip(maps[:-1], seen, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 16, 16), (64, 8, 8), (96, 4, 4)]


def test_the_features_are_a_copy(prior: DiffusionPrior) -> None:
    features = PriorFeatures(prior)
    before = features(sharp(1))[0]
    other = build_prior(side=64, factor=4, channels=(32, 64, 96), prediction_type="epsilon")
    features_state = {k: v.clone() for k, v in features.state_dict().items()}
    kept = prior.state_dict()
    saved = {k: v.clone() for k, v in kept.items()}
    prior.load_state_dict(other.state_dict())
    torch.testing.assert_close(features(sharp(1))[0], before)
    prior.load_state_dict(saved)
    assert sum(v.numel() for v in features_state.values()) < 0.6 * sum(v.numel() for v in saved.values())


def test_bad_arguments(prior: DiffusionPrior, features: PriorFeatures) -> None:
    for timestep in (-1, 1000):
        with pytest.raises(ConfigError, match="timestep"):
            PriorFeatures(prior, timestep=timestep)
    with pytest.raises(ShapeError, match="multiples of 16"):
        features(torch.zeros(1, 3, 40, 64))
    with pytest.raises(ShapeError, match="multiples"):
        features(torch.zeros(3, 64, 64))
    with pytest.raises(ShapeError, match="differ in shape"):
        prior_feature_distance(features, torch.zeros(1, 3, 64, 64), torch.zeros(2, 3, 64, 64))
