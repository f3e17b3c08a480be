"""Statements 1-9 of the method brief, section 13 ("Faithful if ..."), each by its number.

The sampler runs at 64 px, where the paper's N of 16 and 8 at 512 px are 2 and 1.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from prior_fakes import ABAR, RecordingPrior, faces, oracle, wild, zero_noise
from torch import Tensor

from ufr_edge.priors import sampler
from ufr_edge.priors.lowpass import lowpass, lowpass_matrix, resize_matrix
from ufr_edge.priors.sampler import PAPER_CODEFORMER, PAPER_SWINIR, plan_chain, sample_targets
from ufr_edge.priors.schedule import respaced_schedule

SIDE = 64
PAPER_PRESETS = pytest.mark.parametrize(
    "config", [PAPER_SWINIR, PAPER_CODEFORMER], ids=["swinir", "codeformer"]
)


def draws(seed: int, count: int) -> list[Tensor]:
    """What the generator of one image gives, in order."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((3, SIDE, SIDE), generator=generator)[None] for _ in range(count)]


def test_statement_1_respaced_timesteps() -> None:
    """Statement 1: 250 distinct timesteps, with the values of the brief."""
    m = respaced_schedule(250).timesteps
    assert m.dtype == np.int64
    assert len(set(m.tolist())) == 250
    assert m[:5].tolist() == [0, 4, 8, 12, 16]
    assert m[[89, 90, 149, 150, 249]].tolist() == [357, 361, 598, 602, 999]


def test_statement_2_noise_levels() -> None:
    """Statement 2: A_150, A_149, A_90 to 1e-6, b_149; and the rest of the table of section 3."""
    s = respaced_schedule(250)
    levels = {
        0: 0.9999,
        89: 0.269307,
        90: 0.261569,
        100: 0.192006,
        148: 0.027489,
        149: 0.026195,
        150: 0.024953,
    }
    for i, expected in levels.items():
        assert s.abar[i] == pytest.approx(expected, abs=1e-6)
    assert s.betas[149] == pytest.approx(0.04707435, abs=1e-8)
    assert s.betas[[0, 89, 90]] == pytest.approx([1e-4, 0.02841816, 0.02873002], abs=1e-8)
    assert s.posterior_variance[[149, 90]] == pytest.approx([0.04701179, 0.02842899], abs=1e-8)
    assert s.posterior_log_variance_clipped[0] == s.posterior_log_variance_clipped[1]
    assert s.abar_prev[0] == 1.0


def test_statement_2_posterior_coefficients() -> None:
    """Statement 2 (section 3): the coefficients of eq. 4 at indices 149 and 90."""
    steps = {step.index: step for step in plan_chain(PAPER_SWINIR)}
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for i, (of_x0, of_x) in {149: (0.008015, 0.974882), 90: (0.020191, 0.975204)}.items():
        assert float(sampler.posterior_mean(one, none, steps[i])) == pytest.approx(of_x0, abs=1e-6)
        assert float(sampler.posterior_mean(none, one, steps[i])) == pytest.approx(of_x, abs=1e-6)


@PAPER_PRESETS
def test_statement_3_start_level_and_calls(config: sampler.SamplerConfig) -> None:
    """Statement 3: start noise at A_150; 150 calls, at timesteps 598, 594, ... 4, 0."""
    prior, told = RecordingPrior(zero_noise), list[tuple[int, int]]()
    reference = faces(1, SIDE)
    sample_targets(prior, reference, config, [5], on_step=lambda done, total: told.append((done, total)))
    m = respaced_schedule(250).timesteps
    assert prior.timesteps == m[149::-1].tolist()
    assert (prior.timesteps[:2], prior.timesteps[-2:]) == ([598, 594], [4, 0])
    assert told == [(k, 150) for k in range(1, 151)]
    assert config.calls == 150
    start = ABAR[602].sqrt() * (2 * reference - 1) + (1 - ABAR[602]).sqrt() * draws(5, 1)[0]
    torch.testing.assert_close(prior.states[0], start.float())


def test_statement_4_ancestral_with_learned_range() -> None:
    """Statement 4: each state follows from the one before by eqs. 3-5, x_0 clamped, f not clipped."""
    prior = RecordingPrior(wild)
    reference = faces(1, SIDE).double()
    free = replace(PAPER_SWINIR, hold_until=150)
    result = sample_targets(prior, reference, free, [7])
    noises = draws(7, 150)
    s = respaced_schedule(250)
    for k, i in enumerate(range(149, -1, -1)):
        x, a, prev, b = prior.states[k], s.abar[i], s.abar_prev[i], s.betas[i]
        eps, spread = wild(x, 0).chunk(2, 1)
        x0 = (x / a**0.5 - (1 / a - 1) ** 0.5 * eps).clamp(-1, 1)
        z = b * prev**0.5 / (1 - a) * x0 + (1 - prev) * (1 - b) ** 0.5 / (1 - a) * x
        f = (spread + 1) / 2
        log_variance = f * np.log(b) + (1 - f) * s.posterior_log_variance_clipped[i]
        if i > 0:
            z = z + (log_variance / 2).exp() * noises[k + 1].double()
            torch.testing.assert_close(prior.states[k + 1], z, rtol=1e-10, atol=1e-10)
        else:
            torch.testing.assert_close(result, (z / 2 + 0.5).clamp(0, 1), rtol=1e-10, atol=1e-10)


def test_statement_4_x0_never_leaves_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statement 4: the x_0 prediction stays in [-1, 1] at all 150 calls, though the prior is far off."""
    seen: list[float] = []
    whole = sampler.predict_x0

    def watched(x: Tensor, eps: Tensor, abar: float) -> Tensor:
        x0 = whole(x, eps, abar)
        seen.append(float(x0.abs().max()))
        return x0

    monkeypatch.setattr(sampler, "predict_x0", watched)
    sample_targets(RecordingPrior(wild), faces(1, SIDE), PAPER_SWINIR, [1])
    assert len(seen) == 150
    assert max(seen) == 1.0


def test_statement_4_no_noise_at_the_last_step() -> None:
    """Statement 4: the sample is the last mean, which at index 0 is the predicted x_0."""
    prior = RecordingPrior(wild)
    result = sample_targets(prior, faces(1, SIDE), PAPER_SWINIR, [1])
    last = prior.states[-1]
    x0 = sampler.predict_x0(last, wild(last, 0)[:, :3], plan_chain(PAPER_SWINIR)[-1].abar)
    torch.testing.assert_close(result, (x0 + 1) / 2, rtol=0, atol=1e-6)


def watch_replacements(monkeypatch: pytest.MonkeyPatch, prior: RecordingPrior) -> list[tuple[int, Tensor]]:
    """Collect (calls of the prior so far, noised reference) of every replacement."""
    seen: list[tuple[int, Tensor]] = []
    whole = sampler.replace_low_frequencies

    def watched(z: Tensor, reference: Tensor, matrix: Tensor) -> Tensor:
        seen.append((len(prior.timesteps), reference.clone()))
        return whole(z, reference, matrix)

    monkeypatch.setattr(sampler, "replace_low_frequencies", watched)
    return seen


@PAPER_PRESETS
def test_statement_5_sixty_replacements(
    config: sampler.SamplerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statement 5: replacements after calls 149..90 and no other, at level A_{i-1}, each with fresh noise."""
    prior = RecordingPrior(zero_noise)
    seen = watch_replacements(monkeypatch, prior)
    reference = faces(1, SIDE)
    sample_targets(prior, reference, config, [3])
    assert [150 - calls for calls, _ in seen] == list(range(149, 89, -1))
    noises = draws(3, 1 + 2 * 60)
    abar = respaced_schedule(250).abar
    for k, (_, held) in enumerate(seen):
        a = abar[149 - k - 1]
        expected = a**0.5 * (2 * reference - 1) + (1 - a) ** 0.5 * noises[2 + 2 * k]
        torch.testing.assert_close(held, expected, rtol=0, atol=1e-5)


def test_statement_5_references_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statement 5: the noise of two successive references is uncorrelated, and unlike the start noise."""
    prior = RecordingPrior(zero_noise)
    seen = watch_replacements(monkeypatch, prior)
    sample_targets(prior, torch.full((1, 3, SIDE, SIDE), 0.5), PAPER_SWINIR, [3])
    noises = [prior.states[0], *(held for _, held in seen)]
    pairs = [torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in pairwise(noises)]
    assert max(abs(float(r)) for r in pairs) < 0.05


def test_statement_5_the_replacement_changes_low_frequencies_of_the_noisy_state() -> None:
    """Statement 5 (eq. 6): x = z - phi(z) + phi(reference), on the noisy state."""
    z, reference = torch.randn((2, 1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    p = lowpass_matrix(SIDE, 8).float()
    x = sampler.replace_low_frequencies(z, reference, p)
    torch.testing.assert_close(x, z - lowpass(z, p) + lowpass(reference, p), rtol=0, atol=1e-5)


def test_statement_6_only_the_restorer_output_enters() -> None:
    """Statement 6: with R's output fixed, another LQ image leaves the target bit-identical."""
    names = set(inspect.signature(sample_targets).parameters)
    assert names == {"prior", "reference", "config", "seeds", "on_step"}  # no way in for the LQ image
    restored = faces(1, SIDE)

    def target(lq: Tensor) -> Tensor:
        def restorer(y: Tensor) -> Tensor:
            return restored + 0 * y

        return sample_targets(RecordingPrior(wild), restorer(lq), PAPER_SWINIR, [11])

    assert torch.equal(target(faces(1, SIDE, seed=1)), target(faces(1, SIDE, seed=2)))
    other = sample_targets(RecordingPrior(wild), faces(1, SIDE, seed=3), PAPER_SWINIR, [11])
    assert not torch.equal(other, target(restored))


@pytest.mark.parametrize(
    ("n", "trace", "middle", "corner", "non_idempotence"),
    [(8, 52.37, 0.081619, 0.159547, 0.1817), (16, 26.31, 0.040233, 0.080002, 0.1790)],
)
def test_statement_7_filter_table(
    n: int, trace: float, middle: float, corner: float, non_idempotence: float
) -> None:
    """Statement 7: P at 512 px reproduces the table of section 3, and keeps a constant image."""
    p = lowpass_matrix(512, n)
    assert p.dtype == torch.float64
    assert float((p.sum(1) - 1).abs().max()) < 1e-12
    assert float(p.trace()) == pytest.approx(trace, abs=5e-3)
    assert float(p[256, 256]) == pytest.approx(middle, abs=1e-6)
    assert float(p[0, 0]) == pytest.approx(corner, abs=1e-6)
    assert float((p @ p - p).norm() / p.norm()) == pytest.approx(non_idempotence, abs=1e-4)
    flat = torch.full((1, 3, 512, 512), 0.7)
    assert float((lowpass(flat, p) - flat).abs().max()) < 1e-6


@pytest.mark.parametrize("n", [8, 16])
def test_statement_7_filter_gains(n: int) -> None:
    """Statement 7 (section 3): gain over frequency, its first zero at half of 512 / N cycles."""
    p = lowpass_matrix(512, n).numpy()
    k = np.arange(512) + 0.5
    expected = {1 / 8: 0.991, 1 / 4: 0.882, 3 / 8: 0.586, 1 / 2: 0.0, 5 / 8: 0.051, 3 / 4: 0.004}
    for share, gain in expected.items():
        # Half-sample cosines: the waves that the reflected boundary continues.
        wave = np.cos(2 * np.pi * share / n * k)
        assert wave @ p @ wave / (wave @ wave) == pytest.approx(gain, abs=1e-3)


def test_statement_7_small_vectors() -> None:
    """Statement 7 (section 3): the ramps of the brief, shrunk, and shrunk and grown."""
    eight = resize_matrix(32, 4) @ np.arange(32.0)
    assert eight == pytest.approx([3.201721, 11.470154, 19.529846, 27.798279], abs=1e-6)
    sixteen = resize_matrix(64, 4) @ np.arange(64.0)
    assert sixteen == pytest.approx([6.8946, 23.441338, 39.558662, 56.1054], abs=1e-6)
    two = lowpass_matrix(8, 2).numpy() @ np.arange(8.0)
    expected = [0.258057, 0.815979, 1.931824, 2.994873, 4.005127, 5.068176, 6.184021, 6.741943]
    assert two == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("hold_until", [90, 150], ids=["held", "free"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.float64, 1e-12)])
def test_statement_8_oracle_returns_the_reference(hold_until: int, dtype: torch.dtype, bound: float) -> None:
    """Statement 8: with an oracle for x_0 = x_ref the chain of 150 calls returns x_ref."""
    reference = faces(1, SIDE).to(dtype)
    prior = RecordingPrior(oracle(2 * reference - 1))
    result = sample_targets(prior, reference, replace(PAPER_SWINIR, hold_until=hold_until), [2])
    assert len(prior.timesteps) == 150
    assert result.dtype == dtype
    assert float((result - reference).abs().max()) < bound


def test_statement_9_larger_n_keeps_less() -> None:
    """Statement 9: the share of white-noise variance kept falls from 0.0077 (N = 8) to 0.0020 (N = 16)."""
    kept = [float((lowpass_matrix(512, n).norm() ** 2 / 512) ** 2) for n in (8, 16)]
    assert kept == pytest.approx([0.00774, 0.00197], abs=5e-6)
    noise = torch.randn((4, 3, 512, 512), generator=torch.Generator().manual_seed(0))
    measured = [float(lowpass(noise, lowpass_matrix(512, n)).var()) for n in (8, 16)]
    assert measured == pytest.approx(kept, rel=0.05)


def test_every_statement_of_the_presets_has_a_test_of_its_number() -> None:
    """Statements 1-17, 19 and 20 each have one; 18 is about data sets that are not ours to split."""
    named = re.compile(r"^def test_statements?_(\d+)(?:_and_(\d+))?|and_statement_(\d+)_", re.MULTILINE)
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    found = {int(number) for text in texts for groups in named.findall(text) for number in groups if number}
    assert found >= {*range(1, 18), 19, 20}
