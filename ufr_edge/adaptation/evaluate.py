"""Measuring restored faces: against the truth where it is known, without it where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ufr_edge.adaptation.faces import load_faces
from ufr_edge.adaptation.finetune import load_pairs
from ufr_edge.adaptation.restorer_task import restore_batch
from ufr_edge.adaptation.training import pick_device, to_tensor
from ufr_edge.errors import ConfigError, ShapeError
from ufr_edge.metrics.frechet import frechet_distance
from ufr_edge.metrics.pairs import pair_by_name
from ufr_edge.metrics.quality import psnr, ssim
from ufr_edge.metrics.spectrum import high_frequency_energy, noise_sigma
from ufr_edge.priors.features import PriorFeatures, pooled_features, prior_feature_distance
from ufr_edge.priors.files import load_prior
from ufr_edge.restorers.files import load_restorer

Images = NDArray[np.uint8]


def reference_figures(restored: Images, truth: Images, features: PriorFeatures | None) -> dict[str, float]:
    """Mean figures of restored faces against the truth, both uint8 (N, S, S, 3) RGB.

    `psnr_db`, `ssim`: RGB, no border crop, no mean/std matching. `prior_feature_distance` (lower is better)
    and `prior_frechet_distance` (from two faces on) are on the frozen prior's own features: they are not LPIPS or FID.
    """
    if restored.shape != truth.shape:
        msg = f"Restored faces {restored.shape} and truth {truth.shape} must have the same shape."
        raise ShapeError(msg)
    pairs = list(zip(restored, truth, strict=True))
    figures = {
        "psnr_db": float(np.mean([psnr(a, b) for a, b in pairs])),
        "ssim": float(np.mean([ssim(a, b) for a, b in pairs])),
    }
    if features is not None:
        figures["prior_feature_distance"] = feature_distance(restored, truth, features)
    if features is not None and len(restored) > 1:  # one face has no covariance
        figures["prior_frechet_distance"] = frechet_distance(_pooled(restored, features), _pooled(truth, features))
    return figures


def no_reference_figures(restored: Images, lq: Images) -> dict[str, float]:
    """Mean figures that need no truth: noise left, detail, and agreement with the input at 1/8 of the size."""
    small = [psnr(_shrink(a), _shrink(b)) for a, b in zip(restored, lq, strict=True)]
    return {
        "noise_sigma": float(np.mean([noise_sigma(face) for face in restored])),
        "high_frequency_energy": float(np.mean([high_frequency_energy(face) for face in restored])),
        "input_consistency_db": float(np.mean(small)),
    }


@torch.no_grad()
def feature_distance(a: Images, b: Images, features: PriorFeatures, *, batch: int = 8) -> float:
    """Mean prior-feature distance between faces of two equal stacks."""
    device = next(features.parameters()).device
    values = []
    for i in range(0, len(a), batch):
        x, y = to_tensor(a[i : i + batch], device), to_tensor(b[i : i + batch], device)
        values.append(prior_feature_distance(features, x, y))
    return float(torch.cat(values).mean())


@torch.no_grad()
def _pooled(images: Images, features: PriorFeatures, *, batch: int = 8) -> NDArray[np.float64]:
    device = next(features.parameters()).device
    parts = [
        pooled_features(features, to_tensor(images[i : i + batch], device)) for i in range(0, len(images), batch)
    ]
    return torch.cat(parts).double().cpu().numpy()


def _shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    side = image.shape[0] // 8
    return np.asarray(image.reshape(side, 8, side, 8, 3).mean((1, 3)).round(), dtype=np.uint8)


def evaluate_faces(
    faces: Path, truth: Path | None, *, restorer: str | None, prior: str | None, side: int = 256, device: str = "auto"
) -> dict[str, dict[str, float]]:
    """Measure a folder of faces, and what `restorer` makes of them ("input", "restored").

    `truth`: clean faces of the same names; without it only the figures that need none are given.
    Raises InputFileError naming the files that do not pair up, ConfigError for an impossible `side`.
    """
    chosen = pick_device(device)
    loaded = load_restorer(restorer) if restorer else None
    side = loaded.side if loaded else side
    if side < 64 or side % 32:
        msg = f"The side must be a multiple of 32 from 64 on, such as 256; got {side}."
        raise ConfigError(msg)
    if truth is not None:
        pair_by_name(faces, truth)
        pairs = load_pairs(faces, truth, side, minimum=1)  # an unusable file takes its partner out with it
        lq, known = pairs.lq, pairs.truth
    else:
        lq, known = load_faces(faces, side, minimum=1).images, None
    stacks = {"input": lq}
    if loaded:
        stacks["restored"] = restore_batch(loaded.model.to(chosen), lq, chosen)
    features = PriorFeatures(load_prior(prior).to(chosen)) if prior else None
    return measure(stacks, lq, known, features)


def measure(
    restored: Mapping[str, Images], lq: Images, truth: Images | None, features: PriorFeatures | None
) -> dict[str, dict[str, float]]:
    """Figures of each restorer's output, with those that need the truth only where it is known."""
    figures = {}
    for name, images in restored.items():
        known = reference_figures(images, truth, features) if truth is not None else {}
        figures[name] = {**known, **no_reference_figures(images, lq)}
    return figures
