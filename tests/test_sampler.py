"""The constrained sampler beyond the paper's statements: batches, seeds, fast chains, options, errors."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from prior_fakes import ABAR, RecordingPrior, faces, oracle, wild, zero_noise
from torch import Tensor

from ufr_edge.errors import ConfigError, InferenceError, ShapeError
from ufr_edge.priors import sampler
from ufr_edge.priors.lowpass import filter_scale, lowpass, lowpass_matrix
from ufr_edge.priors.model import DiffusionPrior, build_prior
from ufr_edge.priors.sampler import (
    LIGHT_TOUCH,
    PAPER_SWINIR,
    PRESETS,
    SamplerConfig,
    derive_seed,
    plan_chain,
    sample_targets,
)
from ufr_edge.priors.schedule import chain_indices, respaced_schedule, respaced_timesteps, schedule_at

FAST = SamplerConfig(filter_n=32, fast_steps=6)
FREE = replace(FAST, hold_until=150)
SIDE = 32


@pytest.fixture(scope="module")
def prior() -> DiffusionPrior:
    """A small untrained network of the real kind."""
    torch.manual_seed(0)
    return build_prior(side=SIDE, factor=2, channels=(32, 32, 32), prediction_type="v_prediction").eval()


def test_a_batch_equals_its_images_alone(prior: DiffusionPrior) -> None:
    images, seeds = faces(3), [4, 2**62, 9]
    together = sample_targets(prior, images, FAST, seeds)
    alone = [sample_targets(prior, images[i : i + 1], FAST, seeds[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    assert together.shape == images.shape
    assert together.dtype == torch.float32
    assert 0 <= float(together.min()) <= float(together.max()) <= 1


def test_noise_is_bit_exact_whatever_the_batch() -> None:
    images, seeds = faces(3), [4, 5, 6]
    together, alone = RecordingPrior(zero_noise), RecordingPrior(zero_noise)
    sample_targets(together, images, FREE, seeds)
    sample_targets(alone, images[1:2], FREE, seeds[1:2])
    for batch, single in zip(together.states, alone.states, strict=True):
        assert torch.equal(batch[1:2], single)


def test_same_seed_repeats_and_another_differs(prior: DiffusionPrior) -> None:
    image = faces(1)
    first, again, other = (sample_targets(prior, image, FAST, [seed]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    sample_targets(RecordingPrior(zero_noise), faces(1), FAST, [1])
    assert torch.equal(before, torch.random.get_rng_state())


def test_targets_carry_no_gradient_but_can_be_trained_on(prior: DiffusionPrior) -> None:
    target = sample_targets(prior, faces(1).requires_grad_(), FAST, [1])
    assert not target.requires_grad
    weight = torch.ones(1, requires_grad=True)
    (gradient,) = torch.autograd.grad((weight * target).sum(), weight)
    assert float(gradient) == pytest.approx(float(target.sum()))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_fp32_and_keeps_a_float32_state(
    prior: DiffusionPrior, precision: Literal["bf16", "fp16"]
) -> None:
    image = faces(1)
    seen: list[torch.dtype] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        assert torch.is_autocast_enabled(x.device.type)
        seen.append(x.dtype)
        out: Tensor = prior(x, t)
        return out

    # One call, so that the chain does not amplify the rounding of an untrained network.
    config = SamplerConfig(filter_n=32, start=20, hold_until=10, fast_steps=1)
    half = sample_targets(watched, image, replace(config, precision=precision), [1])
    whole = sample_targets(prior, image, config, [1])
    assert set(seen) == {torch.float32}
    assert half.dtype == torch.float32
    assert 0 < float((half - whole).abs().max()) < 0.02


def test_an_overflow_in_fp16_is_no_picture() -> None:
    def loud(x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, float("inf"))

    config = SamplerConfig(filter_n=32, start=20, hold_until=10, fast_steps=2)
    with pytest.raises(InferenceError, match="--precision fp32"):
        sample_targets(loud, faces(1), replace(config, precision="fp16"), [1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_matches_the_cpu(prior: DiffusionPrior) -> None:
    image = faces(2)
    there = build_prior(side=SIDE, factor=2, channels=(32, 32, 32), prediction_type="v_prediction").eval()
    there.load_state_dict(prior.state_dict())
    there.cuda()
    on_gpu = sample_targets(there, image.cuda(), FAST, [1, 2])
    torch.testing.assert_close(on_gpu.cpu(), sample_targets(prior, image, FAST, [1, 2]), rtol=0, atol=1e-2)
    half = sample_targets(there, image.cuda(), replace(FAST, precision="bf16"), [1, 2])
    assert half.device.type == "cuda"
    assert torch.isfinite(half).all()


def test_fast_chain_with_every_index_is_the_full_chain() -> None:
    image = faces(1)
    full = sample_targets(RecordingPrior(wild), image, replace(FAST, fast_steps=None), [1])
    fast = sample_targets(RecordingPrior(wild), image, replace(FAST, fast_steps=150), [1])
    assert torch.equal(full, fast)


def test_fast_chain_calls_and_holds() -> None:
    prior = RecordingPrior(zero_noise)
    config = replace(FAST, fast_steps=16)
    sample_targets(prior, faces(1), config, [1])
    assert prior.timesteps == [
        int(respaced_schedule().timesteps[i]) for i in reversed(chain_indices(150, 16))
    ]
    assert (prior.timesteps[0], prior.timesteps[-1], len(prior.timesteps)) == (598, 0, 16)
    for step in plan_chain(config):
        assert (step.filter_n is not None) == (step.index >= 90)
    torch.testing.assert_close(
        torch.tensor([step.abar_prev for step in plan_chain(config)][:-1]),
        torch.tensor([step.abar for step in plan_chain(config)][1:]),
    )


# With one call, the held one is the last: its filter acts on the answer.
@pytest.mark.parametrize(
    ("fast_steps", "hold_until"), [(1, 150), (2, 90), (2, 150), (10, 90), (10, 150), (None, 90), (None, 150)]
)
@pytest.mark.parametrize(("method", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0)])
def test_every_chain_returns_the_oracle_image(
    method: Any, eta: float, fast_steps: int | None, hold_until: int
) -> None:
    image = faces(1)
    config = replace(FAST, method=method, eta=eta, fast_steps=fast_steps, hold_until=hold_until)
    result = sample_targets(RecordingPrior(oracle(2 * image - 1)), image, config, [1])
    assert float((result - image).abs().max()) < 1e-3


def test_ddim_eta_one_is_the_ancestral_step_with_posterior_variance() -> None:
    image = faces(1).double()
    ddpm, ddim = RecordingPrior(zero_noise), RecordingPrior(zero_noise)
    sample_targets(ddpm, image, FREE, [1])
    sample_targets(ddim, image, replace(FREE, method="ddim", eta=1.0), [1])
    for a, b in zip(ddpm.states, ddim.states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_ddim_eta_zero_draws_noise_only_at_the_start() -> None:
    prior = RecordingPrior(zero_noise)
    sample_targets(prior, faces(1), replace(FREE, method="ddim"), [1])
    for step, x, after in zip(plan_chain(FREE), prior.states, prior.states[1:], strict=False):
        x0 = sampler.predict_x0(x, torch.zeros_like(x), step.abar)
        eps = (x - step.abar**0.5 * x0) / (1 - step.abar) ** 0.5
        torch.testing.assert_close(after, step.abar_prev**0.5 * x0 + (1 - step.abar_prev) ** 0.5 * eps)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_fixed_variance_equals_the_learned_one_at_its_ends(variance: Any) -> None:
    s = 1.0 if variance == "beta" else -1.0
    learned = RecordingPrior(lambda x, _: torch.cat([torch.zeros_like(x), torch.full_like(x, s)], 1))
    fixed = RecordingPrior(zero_noise)
    image = faces(1).double()
    sample_targets(learned, image, FREE, [1])
    sample_targets(fixed, image, replace(FREE, variance=variance), [1])
    for a, b in zip(learned.states, fixed.states, strict=True):
        torch.testing.assert_close(a, b)


def test_the_constraint_holds_the_low_frequencies(prior: DiffusionPrior) -> None:
    """An untrained prior drifts; held to the end, its samples keep the coarse image."""
    image = faces(1)
    p = lowpass_matrix(SIDE, 4)

    def drift(config: SamplerConfig) -> float:
        return float(lowpass(sample_targets(prior, image, config, [1]) - image, p).square().mean())

    config = SamplerConfig(filter_n=64, fast_steps=20)
    assert drift(replace(config, hold_until=0)) < 0.1 * drift(replace(config, hold_until=150))


def test_a_tail_filter_goes_on_after_the_paper_stops() -> None:
    config = SamplerConfig(filter_n=16, tail_filter_n=64)
    assert [step.filter_n for step in plan_chain(config)] == [16] * 60 + [64] * 90
    colour = RecordingPrior(lambda x, t: oracle(torch.full_like(x, 0.9))(x, t))
    image = torch.full((1, 3, SIDE, SIDE), 0.3)
    drifted = sample_targets(colour, image, replace(FAST, filter_n=32), [1])
    kept = sample_targets(colour, image, replace(FAST, filter_n=32, tail_filter_n=64), [1])
    assert float(drifted.mean()) == pytest.approx(0.95, abs=1e-3)
    assert float(kept.mean()) == pytest.approx(0.3, abs=1e-3)


def test_several_samples_are_averaged(prior: DiffusionPrior) -> None:
    image, told = faces(2), list[tuple[int, int]]()
    config = replace(FAST, samples_per_image=3)
    mean = sample_targets(
        prior, image, config, [1, 2], on_step=lambda done, total: told.append((done, total))
    )
    singles = [sample_targets(prior, image, FAST, [derive_seed(s, k) for s in (1, 2)]) for k in range(3)]
    torch.testing.assert_close(mean, torch.stack(singles).mean(0), rtol=0, atol=1e-6)
    assert told == [(k, 18) for k in range(1, 19)]
    assert config.calls == 18
    assert derive_seed(7, 0) == 7
    assert len({derive_seed(s, k) for s in range(20) for k in range(20)}) == 400


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 1},
        {"steps": 1001},
        {"start": 0},
        {"start": 250},
        {"hold_until": -1},
        {"hold_until": 151},
        {"filter_n": 0},
        {"tail_filter_n": 8},
        {"method": "euler"},
        {"eta": 0.5},
        {"method": "ddim", "eta": 1.5},
        {"fast_steps": 0},
        {"fast_steps": 151},
        {"variance": "learned"},
        {"samples_per_image": 0},
        {"precision": "int8"},
    ],
)
def test_settings_out_of_range_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=list(change)[-1]):
        replace(PAPER_SWINIR, **change)


def test_variance_is_betas_in_the_full_chain_and_the_posteriors_in_a_short_one() -> None:
    assert replace(PAPER_SWINIR, variance="auto").fixed_variance == "beta"
    assert replace(PAPER_SWINIR, variance="auto", fast_steps=10).fixed_variance == "posterior"
    assert replace(PAPER_SWINIR, variance="beta", fast_steps=10).fixed_variance == "beta"


def test_presets_are_what_they_say() -> None:
    assert set(PRESETS) == {"paper-swinir", "paper-codeformer", "light"}
    assert {(c.start, c.hold_until, c.steps) for n, c in PRESETS.items() if n != "light"} == {(150, 90, 250)}
    assert [PRESETS[f"paper-{n}"].filter_n for n in ("swinir", "codeformer")] == [16, 8]
    assert (LIGHT_TOUCH.start / 250, LIGHT_TOUCH.hold_until / 250) == (0.4, 0.16)
    with pytest.raises(FrozenInstanceError):
        PAPER_SWINIR.start = 100  # type: ignore[misc]


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 32, 64)]
)
def test_wrong_shapes_are_refused(bad: Tensor) -> None:
    with pytest.raises(ShapeError, match="must be"):
        sample_targets(RecordingPrior(zero_noise), bad, FAST, [1])


def test_bytes_wrong_seeds_and_wrong_priors_are_refused() -> None:
    image = faces(1)
    with pytest.raises(ShapeError, match="uint8"):
        sample_targets(RecordingPrior(zero_noise), (image * 255).byte(), FAST, [1])
    for seeds in ([], [1, 2], [-1], [2**63]):
        with pytest.raises(ConfigError, match="one seed"):
            sample_targets(RecordingPrior(zero_noise), image, FAST, seeds)
    with pytest.raises(ShapeError, match="3 or 6 channels"):
        sample_targets(RecordingPrior(lambda x, _: x[:, :1]), image, FAST, [1])
    with pytest.raises(InferenceError, match="not finite"):
        sample_targets(RecordingPrior(lambda x, _: x * torch.nan), image, FAST, [1])


def test_filter_scale_keeps_the_frequencies() -> None:
    assert [filter_scale(n, side) for n, side in ((8, 512), (8, 256), (16, 128), (16, 32), (8, 1024))] == [
        8,
        4,
        4,
        1,
        16,
    ]
    for n, side in ((8, 32), (16, 100), (0, 512), (8, 0)):
        with pytest.raises(ConfigError, match="whole number"):
            filter_scale(n, side)
    with pytest.raises(ConfigError, match="whole number at 32 px"):
        sample_targets(RecordingPrior(zero_noise), faces(1), replace(FAST, filter_n=8), [1])


@pytest.mark.parametrize(("side", "n"), [(32, 1), (32, 8), (32, 32), (33, 3), (96, 6), (512, 64)])
def test_filters_of_any_size_keep_constants(side: int, n: int) -> None:
    p = lowpass_matrix(side, n)
    assert p.shape == (side, side)
    assert float((p.sum(1) - 1).abs().max()) < 1e-12
    torch.testing.assert_close(p, p.flip(0, 1))  # mirrored image, mirrored result
    if n == 1:
        torch.testing.assert_close(p, torch.eye(side, dtype=torch.float64))


@pytest.mark.parametrize(("side", "n"), [(32, 3), (32, 64), (32, 0)])
def test_filters_that_do_not_divide_are_refused(side: int, n: int) -> None:
    with pytest.raises(ConfigError, match="multiple of N"):
        lowpass_matrix(side, n)


def test_lowpass_acts_on_rows_and_columns_in_the_dtype_of_its_input() -> None:
    x = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    p = lowpass_matrix(16, 4)
    out = lowpass(x, p)
    assert out.dtype == torch.float32
    expected = np.einsum("ij,bcjk,lk->bcil", p.numpy(), x.double().numpy(), p.numpy())
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)


def test_schedule_bounds() -> None:
    assert respaced_timesteps(1000) == tuple(range(1000))
    assert chain_indices(150) == tuple(range(150))
    assert chain_indices(150, 1) == (149,)
    assert chain_indices(5, 3) == (0, 2, 4)
    assert float(schedule_at([0]).abar[0]) == float(ABAR[0])
    for steps in (0, 1, 1001):
        with pytest.raises(ConfigError, match="2 to 1000"):
            respaced_timesteps(steps)
    for timesteps in ([], [4, 0], [3, 3], [-1, 2], [5, 1000]):
        with pytest.raises(ConfigError, match="ascend"):
            schedule_at(timesteps)
    with pytest.raises(ConfigError, match="calls"):
        chain_indices(10, 11)
