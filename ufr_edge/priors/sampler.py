"""The paper's constrained sampler: from restorer outputs to pseudo targets (paper.md section 2, 3).

The state is noised to the level of index `start`, denoised by the prior, and has its low frequencies
replaced by those of the freshly noised restorer output while the index is at least `hold_until`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ufr_edge.errors import ConfigError, InferenceError, ShapeError
from ufr_edge.priors.lowpass import filter_scale, lowpass, lowpass_matrix
from ufr_edge.priors.schedule import chain_indices, respaced_schedule, schedule_at

Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A prior: (x_t (B, 3, S, S), t int64 (B,)) to eps (B, 3, S, S), or (B, 6, S, S) with learned range."""

OnStep: TypeAlias = Callable[[int, int], None]
"""Told (calls done, calls in all) after each call of the prior."""

USUAL_STEPS = 250
"""Steps of the paper's chain, whose indices `start` and `hold_until` are given in where nothing else is said."""
_HALF: Mapping[str, torch.dtype] = MappingProxyType({"bf16": torch.bfloat16, "fp16": torch.float16})


def _need(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        msg = f"Sampler setting {name} = {value!r} is out of range: {allowed}."
        raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How targets are sampled; the defaults are the paper's for SwinIR.

    `steps`: length T of the respaced schedule. `start`: index whose noise level the chain starts from;
    the first call is at start - 1. `hold_until`: the low frequencies are replaced while the index is at
    least this; `start` means never, 0 also after the last call, by those of the clean reference.
    `filter_n`: the paper's N at 512 px, scaled to the image side. `tail_filter_n`: below `hold_until`
    go on holding with this coarser N, against colour drift of a weak prior (not in the paper).
    `method`: "ddpm" (ancestral, the paper's) or "ddim" with `eta`. `fast_steps`: this many calls spread
    over the chain in place of all `start` (not in the paper). `variance`: "posterior" (v_i), "beta"
    (b_i) or "auto", for priors that do not predict it; those that do use their own learned range. "auto" is
    "beta" in the full chain, where the posterior's loses fine detail, and "posterior" with `fast_steps`, where
    beta's leaves noise (`ufr-edge prior-report --variances` measures it).
    `samples_per_image`: the target is the mean of this many samples. `precision` is that of the prior
    alone; the state is float32.

    Raises ConfigError on a value out of range.
    """

    steps: int = USUAL_STEPS
    start: int = 150
    hold_until: int = 90
    filter_n: int = 16
    tail_filter_n: int | None = None
    method: Literal["ddpm", "ddim"] = "ddpm"
    eta: float = 0.0
    fast_steps: int | None = None
    variance: Literal["auto", "posterior", "beta"] = "auto"
    samples_per_image: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        """Check every field."""
        fast = self.fast_steps
        tail = self.tail_filter_n
        _need(2 <= self.steps <= 1000, "steps", self.steps, "2 to 1000")
        _need(1 <= self.start < self.steps, "start", self.start, f"1 to {self.steps - 1} (steps - 1)")
        _need(0 <= self.hold_until <= self.start, "hold_until", self.hold_until, f"0 to {self.start} (start)")
        _need(self.filter_n >= 1, "filter_n", self.filter_n, "1 or more")
        _need(
            tail is None or tail >= self.filter_n,
            "tail_filter_n",
            tail,
            f"{self.filter_n} (filter_n) or more",
        )
        _need(self.method in ("ddpm", "ddim"), "method", self.method, "ddpm or ddim")
        _need(0 <= self.eta <= (self.method == "ddim"), "eta", self.eta, "0 to 1 with ddim, and 0 with ddpm")
        _need(fast is None or 1 <= fast <= self.start, "fast_steps", fast, f"1 to {self.start} (start)")
        _need(
            self.variance in ("auto", "posterior", "beta"), "variance", self.variance, "auto, posterior or beta"
        )
        _need(self.samples_per_image >= 1, "samples_per_image", self.samples_per_image, "1 or more")
        _need(self.precision in ("fp32", *_HALF), "precision", self.precision, "fp32, bf16 or fp16")

    def index_of(self, usual: float) -> int:
        """The index of this chain at the noise level that `usual` has of `USUAL_STEPS`."""
        return round(usual * self.steps / USUAL_STEPS)

    @property
    def fixed_variance(self) -> Literal["posterior", "beta"]:
        """The variance of priors that do not predict it."""
        if self.variance == "auto":
            return "posterior" if self.fast_steps else "beta"
        return self.variance

    @property
    def calls(self) -> int:
        """Calls of the prior for one target."""
        return (self.fast_steps or self.start) * self.samples_per_image


PAPER_SWINIR = SamplerConfig(filter_n=16)
PAPER_CODEFORMER = SamplerConfig(filter_n=8)
LIGHT_TOUCH = SamplerConfig(start=100, hold_until=40, filter_n=8)
"""For small priors: start at 0.4 T, hold to 0.16 T, with the finer N. Keeps the person; re-invents less."""

PRESETS: Mapping[str, SamplerConfig] = MappingProxyType(
    {"paper-swinir": PAPER_SWINIR, "paper-codeformer": PAPER_CODEFORMER, "light": LIGHT_TOUCH}
)


@dataclass(frozen=True)
class Step:
    """One call of the prior and what follows it; symbols of paper.md section 3.

    `filter_n` is the N (at 512 px) of the replacement after the call, None for no replacement.
    """

    index: int
    t: int
    abar: float
    abar_prev: float
    beta: float
    posterior_variance: float
    posterior_log_variance: float
    filter_n: int | None
    last: bool


def plan_chain(config: SamplerConfig) -> tuple[Step, ...]:
    """Return the steps of one chain in the order they run, the noisiest first."""
    indices = chain_indices(config.start, config.fast_steps)
    full = respaced_schedule(config.steps)
    chain = schedule_at([int(full.timesteps[i]) for i in indices])
    return tuple(
        Step(
            index=i,
            t=int(chain.timesteps[k]),
            abar=float(chain.abar[k]),
            abar_prev=float(chain.abar_prev[k]),
            beta=float(chain.betas[k]),
            posterior_variance=float(chain.posterior_variance[k]),
            posterior_log_variance=float(chain.posterior_log_variance_clipped[k]),
            filter_n=config.filter_n if i >= config.hold_until else config.tail_filter_n,
            last=k == 0,
        )
        for k, i in reversed(list(enumerate(indices)))
    )


def add_noise(x0: Tensor, abar: float, noise: Tensor) -> Tensor:
    """Eq. 1: the clean image at noise level abar."""
    return sqrt(abar) * x0 + sqrt(1 - abar) * noise


def predict_x0(x: Tensor, eps: Tensor, abar: float) -> Tensor:
    """Eq. 3: the clean image implied by the noise estimate, always clamped to [-1, 1]."""
    return (x / sqrt(abar) - sqrt(1 / abar - 1) * eps).clamp(-1, 1)


def posterior_mean(x0: Tensor, x: Tensor, step: Step) -> Tensor:
    """Eq. 4: the mean of the next state given x0 and this one."""
    of_x0 = step.beta * sqrt(step.abar_prev) / (1 - step.abar)
    of_x = (1 - step.abar_prev) * sqrt(1 - step.beta) / (1 - step.abar)
    return of_x0 * x0 + of_x * x


def learned_log_variance(s: Tensor, step: Step) -> Tensor:
    """Eq. 4, learned range: f log b + (1 - f) log v with f = (s + 1) / 2, not clipped."""
    f = (s + 1) / 2
    return f * log(step.beta) + (1 - f) * step.posterior_log_variance


def replace_low_frequencies(z: Tensor, reference: Tensor, matrix: Tensor) -> Tensor:
    """Eq. 6: z with the low frequencies of the noised reference, z + phi(reference - z)."""
    return z + lowpass(reference - z, matrix)


def ddpm_step(x: Tensor, out: Tensor, step: Step, config: SamplerConfig, noise: Tensor | None) -> Tensor:
    """Eqs. 3-5: one ancestral step; `noise` is None at the last one."""
    mean = posterior_mean(predict_x0(x, out[:, :3], step.abar), x, step)
    if noise is None:
        return mean
    if out.shape[1] == 6:
        return mean + (learned_log_variance(out[:, 3:], step) / 2).exp() * noise
    fixed = step.beta if config.fixed_variance == "beta" else step.posterior_variance
    return mean + sqrt(fixed) * noise


def ddim_step(x: Tensor, out: Tensor, step: Step, config: SamplerConfig, noise: Tensor | None) -> Tensor:
    """Eq. 12 of Song et al. 2021 with the clamped x0; eta = 0 adds no noise."""
    x0 = predict_x0(x, out[:, :3], step.abar)
    eps = (x - sqrt(step.abar) * x0) / sqrt(1 - step.abar)
    variance = config.eta**2 * step.posterior_variance
    mean = sqrt(step.abar_prev) * x0 + sqrt(max(1 - step.abar_prev - variance, 0.0)) * eps
    return mean if noise is None else mean + sqrt(variance) * noise


class ImageNoise:
    """Gaussian noise with one CPU generator per image, so that no image depends on its batch."""

    def __init__(self, seeds: Sequence[int], like: Tensor) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._like = like

    def draw(self) -> Tensor:
        """Return N(0, 1) noise of the batch's shape, drawn in float32, on its device and in its dtype."""
        shape = self._like.shape[1:]
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators]).to(self._like)


def derive_seed(seed: int, sample: int) -> int:
    """Return the seed of an image's n-th sample; the first is the image's own seed."""
    if sample == 0:
        return seed
    return int(
        np.random.SeedSequence(seed, spawn_key=(sample,)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def sample_targets(
    prior: Denoiser,
    reference: Tensor,
    config: SamplerConfig,
    seeds: Sequence[int],
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return pseudo targets (B, 3, S, S) in [0, 1], float32, for restorer outputs `reference`.

    `reference` is RGB float (B, 3, S, S), clamped to [0, 1], on the prior's device; float64 runs the
    chain in float64. One seed (0 to 2^63 - 1) per image; an image's target depends on nothing but the
    prior, that image, its seed and `config`. Start and constraint both come from `reference` alone.

    Raises ShapeError, ConfigError (seeds, filter and side do not fit), InferenceError (not finite).
    """
    _check_inputs(reference, seeds)
    dtype = torch.promote_types(reference.dtype, torch.float32)
    x_ref = 2 * reference.to(dtype).clamp(0, 1) - 1
    total = config.calls
    mean = torch.zeros_like(x_ref)
    for sample in range(config.samples_per_image):
        noise = ImageNoise([derive_seed(seed, sample) for seed in seeds], x_ref)
        told = _counter(on_step, total // config.samples_per_image * sample, total)
        mean += sample_chain(prior, x_ref, config, noise, told) / config.samples_per_image
    if not torch.isfinite(mean).all():
        msg = f"Sampled targets are not finite at precision {config.precision}: check the prior, or use fp32."
        raise InferenceError(msg)
    return mean


@torch.no_grad()
def sample_chain(
    prior: Denoiser, x_ref: Tensor, config: SamplerConfig, noise: ImageNoise, on_call: Callable[[], None]
) -> Tensor:
    """Run one chain from x_ref in [-1, 1] (B, 3, S, S) and return the sample in [0, 1]."""
    take = ddpm_step if config.method == "ddpm" else ddim_step
    noisy = config.method == "ddpm" or config.eta > 0
    steps = plan_chain(config)
    filters = {
        n: lowpass_matrix(x_ref.shape[-1], filter_scale(n, x_ref.shape[-1])).to(x_ref)
        for n in {step.filter_n for step in steps}
        if n is not None
    }
    x = add_noise(x_ref, float(respaced_schedule(config.steps).abar[config.start]), noise.draw())
    for step in steps:
        out = _call_prior(prior, x, step.t, config)
        on_call()
        x = take(x, out, step, config, noise.draw() if noisy and not step.last else None)
        if step.filter_n is not None:
            held = add_noise(x_ref, step.abar_prev, noise.draw())
            x = replace_low_frequencies(x, held, filters[step.filter_n])
    return ((x + 1) / 2).clamp(0, 1)


def _call_prior(prior: Denoiser, x: Tensor, t: int, config: SamplerConfig) -> Tensor:
    at = torch.full((x.shape[0],), t, dtype=torch.int64, device=x.device)
    half = _HALF.get(config.precision)
    with torch.autocast(x.device.type, dtype=half or torch.bfloat16, enabled=half is not None):
        out = prior(x, at)
    if out.shape[1] not in (3, 6) or out.shape[2:] != x.shape[2:]:
        msg = f"A prior returns 3 or 6 channels at the size of its input {tuple(x.shape)}; got {tuple(out.shape)}."
        raise ShapeError(msg)
    if half == torch.float16 and not torch.isfinite(out).all():  # clamped, an overflow would pass for a picture
        msg = "The prior overflows in fp16. Give --precision fp32, or bf16."
        raise InferenceError(msg)
    return out.to(x.dtype)


def _check_inputs(reference: Tensor, seeds: Sequence[int]) -> None:
    if reference.ndim != 4 or reference.shape[1] != 3 or reference.shape[2] != reference.shape[3]:
        msg = f"Restorer outputs must be (B, 3, S, S); got {tuple(reference.shape)}."
        raise ShapeError(msg)
    if not reference.is_floating_point():
        msg = f"Restorer outputs must be floats in [0, 1]; got {reference.dtype}."
        raise ShapeError(msg)
    if len(seeds) != reference.shape[0] or any(not 0 <= seed < 2**63 for seed in seeds):
        msg = f"Need one seed from 0 to 2^63 - 1 for each of {reference.shape[0]} images; got {list(seeds)}."
        raise ConfigError(msg)


def _counter(on_step: OnStep | None, done: int, total: int) -> Callable[[], None]:
    def told() -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, total)

    return told
