"""What can be measured of a prior on held-out faces. Images are uint8 (N, S, S, 3) RGB throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ufr_edge.adaptation.evaluate import pooled_stack
from ufr_edge.adaptation.identity import inner_distances, nearest_is_own
from ufr_edge.adaptation.prior_task import EVALUATED_TIMESTEPS
from ufr_edge.adaptation.training import autocast, to_tensor, to_uint8
from ufr_edge.errors import ShapeError
from ufr_edge.metrics.frechet import frechet_distance
from ufr_edge.metrics.landmarks import find_landmarks, landmark_shift
from ufr_edge.metrics.quality import psnr
from ufr_edge.metrics.spectrum import high_frequency_energy
from ufr_edge.priors.features import PriorFeatures
from ufr_edge.priors.model import DiffusionPrior, base_abar
from ufr_edge.priors.sampler import Denoiser, ImageNoise, SamplerConfig, add_noise, sample_targets
from ufr_edge.priors.wiener import wiener_estimate
from ufr_edge.progress import Advance
from ufr_edge.runtime.faces.detect import Detects

Images = NDArray[np.uint8]
Figures = dict[str, Any]


@torch.no_grad()
def epsilon_losses(
    prior: DiffusionPrior, faces: Images, seeds: Sequence[int], *, precision: str, batch: int, advance: Advance
) -> Figures:
    """Mean squared error of the noise estimate by base timestep: `linear` (Wiener's filter alone) and `prior`.

    One seed per face: its noise depends on nothing else. `advance` is told of each face.
    """
    device = next(prior.parameters()).device
    abar = base_abar(device)
    sums = {t: np.zeros(2) for t in EVALUATED_TIMESTEPS}
    for i in range(0, len(faces), batch):
        x_0 = 2 * to_tensor(faces[i : i + batch], device) - 1
        noise = ImageNoise(seeds[i : i + batch], x_0)
        for t in EVALUATED_TIMESTEPS:
            eps, at = noise.draw(), torch.full((len(x_0),), t, device=device)
            x_t = add_noise(x_0, float(abar[t]), eps)
            with autocast(device, precision):
                predicted = prior(x_t, at)[:, :3].float()
            guesses = (_linear_noise(x_t, abar[at]), predicted)
            sums[t] += [float((guess - eps).square().mean((1, 2, 3)).sum()) for guess in guesses]
        advance(len(x_0))
    means = {t: total / len(faces) for t, total in sums.items()}
    return {str(t): {"linear": float(linear), "prior": float(own)} for t, (linear, own) in means.items()}


def _linear_noise(x_t: Tensor, abar: Tensor) -> Tensor:
    x_0, _ = wiener_estimate(x_t, abar)
    a = abar[:, None, None, None]
    return (x_t - a.sqrt() * x_0) / (1 - a).sqrt()


def unconditional(
    prior: DiffusionPrior, side: int, seeds: Sequence[int], *, calls: int, precision: str
) -> Images:
    """Faces out of noise, uint8 (B, side, side, 3): the paper's chain from its noisiest level, nothing held.

    The noised reference at that level (abar 4e-5) is noise alone; grey stands in for it. `calls` of the prior.
    """
    start = SamplerConfig().steps - 1
    config = SamplerConfig(start=start, hold_until=start, fast_steps=calls, precision=precision)  # type: ignore[arg-type]
    device = next(prior.parameters()).device
    grey = torch.full((len(seeds), 3, side, side), 0.5, device=device)
    return to_uint8(sample_targets(prior, grey, config, seeds))


def variance_choices(prior: DiffusionPrior) -> dict[str, Denoiser]:
    """The variances that a chain over this prior can have, and what to run it with; `sampler.variance` names the fixed.

    "posterior" and "beta" for every prior, and "learned" for one that predicts its own: for the fixed ones that is cut off.
    """
    if not prior.learns_variance:
        return {"posterior": prior, "beta": prior}

    def noise_alone(x: Tensor, t: Tensor) -> Tensor:
        predicted: Tensor = prior(x, t)
        return predicted[:, :3]

    return {"learned": prior, "posterior": noise_alone, "beta": noise_alone}


def target_figures(targets: Images, restored: Images, truth: Images) -> Figures:
    """What sampling made of a restorer's output: PSNR in dB against the truth, and fine detail beside clean faces'.

    `psnr_change_db`: target's minus restorer's. `detail_ratio`: mean `high_frequency_energy` of the targets over that
    of the truth; `restored_detail_ratio` likewise.
    """
    detail = {
        name: float(np.mean([high_frequency_energy(face) for face in stack]))
        for name, stack in (("targets", targets), ("restored", restored), ("truth", truth))
    }
    own, base = (float(np.mean([psnr(a, b) for a, b in zip(s, truth, strict=True)])) for s in (targets, restored))
    return {
        "psnr_db": own,
        "restored_psnr_db": base,
        "psnr_change_db": own - base,
        "detail_ratio": detail["targets"] / detail["truth"],
        "restored_detail_ratio": detail["restored"] / detail["truth"],
    }


def frechet_figures(stacks: Mapping[str, Images], others: Images, features: PriorFeatures) -> Figures:
    """Fréchet distance of each stack to `others`, on the prior's pooled features; equal counts only.

    It is not FID, and comparable only at one count and on the features of one prior. Raises ShapeError.
    """
    for name, stack in stacks.items():
        if len(stack) != len(others):
            msg = f"Fréchet distances need equal counts: {name} has {len(stack)} faces, the others {len(others)}."
            raise ShapeError(msg)
    known = pooled_stack(others, features)
    return {name: frechet_distance(pooled_stack(stack, features), known) for name, stack in stacks.items()}


def identity_figures(sampled: Images, faces: Images, features: PriorFeatures, detector: Detects) -> Figures:
    """Is a resampled face still the same one? Landmarks, and whether its nearest original is its own.

    Distances are prior-feature distances on the inner face (half the side), so that hair and background do not tell;
    the features are no face recogniser's. Landmark displacement is in pixels at 512.
    """
    distances = inner_distances(sampled, faces, features)
    own = np.diagonal(distances)
    others = distances + np.diag(np.full(len(own), np.inf))
    return {
        "own_is_nearest": nearest_is_own(distances),
        "own_distance": float(own.mean()),
        "nearest_other_distance": float(others.min(1).mean()),
        **_landmark_figures(sampled, faces, detector),
    }


def _landmark_figures(sampled: Images, faces: Images, detector: Detects) -> Figures:
    pairs = zip(find_landmarks(sampled, detector), find_landmarks(faces, detector), strict=True)
    shifts = np.array([landmark_shift(new, old, side=faces.shape[1]) for new, old in pairs])
    moved = shifts[~np.isnan(shifts)]
    figures: Figures = {"faces": len(faces), "faces_detected": len(moved)}
    if len(moved):
        figures["landmarks_px"] = float(moved.mean())
        figures["landmarks_px_p95"] = float(np.percentile(moved, 95))
    return figures
