"""Figures of stacks of faces: against the truth where it is known, without it where it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ufr_edge.adaptation.identity import inner_distances, nearest_is_own
from ufr_edge.adaptation.training import to_tensor
from ufr_edge.errors import ShapeError
from ufr_edge.metrics.artefacts import colour_shift, flat_energy, flat_tiles, grid_energy
from ufr_edge.metrics.fid_inception import FidInception
from ufr_edge.metrics.frechet import frechet_distance
from ufr_edge.metrics.landmarks import find_landmarks, landmark_shift
from ufr_edge.metrics.lpips_net import Lpips
from ufr_edge.metrics.quality import PLAIN, QualitySettings, psnr, ssim
from ufr_edge.metrics.spectrum import high_frequency_energy, noise_sigma
from ufr_edge.priors.features import PriorFeatures, pooled_features, prior_feature_distance
from ufr_edge.runtime.faces.detect import Detects

Images = NDArray[np.uint8]
Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Meters:
    """What to measure with; what is None is not measured. `artefacts`: measure these, and whose face it is."""

    quality: QualitySettings = PLAIN
    features: PriorFeatures | None = None
    lpips: Lpips | None = None
    inception: FidInception | None = None
    detector: Detects | None = None
    artefacts: bool = False


@dataclass(frozen=True, kw_only=True)
class Figures:
    """`each`: figures per face (N,), NaN where one could not be taken. `whole`: figures of all faces together."""

    each: Mapping[str, Values]
    whole: Mapping[str, float] = field(default_factory=dict)

    def means(self, index: NDArray[np.intp] | None = None) -> dict[str, float]:
        """Return the mean of each figure over all faces with `whole`, or over those at `index` without it."""
        chosen = {name: values if index is None else values[index] for name, values in self.each.items()}
        known = {name: values[~np.isnan(values)] for name, values in chosen.items()}
        means = {name: float(values.mean()) for name, values in known.items() if len(values)}
        return {**means, **self.whole} if index is None else means


@dataclass(frozen=True, kw_only=True)
class Flat:
    """The flat tiles of clean faces, bool (N, rows, columns); the faces' grid there, in 8-bit levels, and energy."""

    tiles: NDArray[np.bool_]
    grid: float
    energy: float

    @classmethod
    def of(cls, images: Images) -> Flat:
        """Find and measure the flat areas of clean faces uint8 (N, S, S, 3)."""
        tiles = np.stack([flat_tiles(face) for face in images])
        grid, energy = _flat_energies(images, tiles)
        return cls(tiles=tiles, grid=grid, energy=energy)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Clean faces uint8 (N, S, S, 3) and what is measured of them once, for every restorer."""

    images: Images
    detail: float
    pooled: Values | None
    inception: Values | None
    landmarks: Values | None
    flat: Flat | None

    @classmethod
    def of(cls, images: Images, meters: Meters) -> Truth:
        """Measure the clean faces."""
        return cls(
            images=images,
            detail=float(np.mean([high_frequency_energy(face) for face in images])),
            pooled=pooled_stack(images, meters.features) if meters.features else None,
            inception=_per_face(meters.inception, meters.inception, images) if meters.inception else None,
            landmarks=find_landmarks(images, meters.detector) if meters.detector else None,
            flat=Flat.of(images) if meters.artefacts else None,
        )


def measure_faces(images: Images, lq: Images, truth: Truth | None, meters: Meters) -> Figures:
    """Measure faces uint8 (N, S, S, 3) restored from `lq`; those figures that need `truth` only with it.

    Raises ShapeError when the shapes differ.
    """
    own = _unreferenced(images, lq)
    if truth is None:
        return Figures(each=own)
    known, extra = _referenced(images, truth, meters), _artefacts(images, truth, meters)
    return Figures(each={**known.each, **extra.each, **own}, whole={**known.whole, **extra.whole})


def reference_figures(restored: Images, truth: Images, features: PriorFeatures | None) -> dict[str, float]:
    """Mean figures of restored faces against the truth, both uint8 (N, S, S, 3) RGB.

    `psnr_db`, `ssim`: RGB, no border crop, no mean/std matching. `hf_energy_ratio`: fine detail beside the
    truth's. `prior_feature_distance` (lower is better) and `prior_frechet_distance` (from two faces on) are on
    the frozen prior's own features: they are not LPIPS or FID. Raises ShapeError when the shapes differ.
    """
    meters = Meters(features=features)
    return _referenced(restored, Truth.of(truth, meters), meters).means()


def no_reference_figures(restored: Images, lq: Images) -> dict[str, float]:
    """Mean figures that need no truth: noise left, detail, and agreement with the input at 1/8 of the size."""
    return Figures(each=_unreferenced(restored, lq)).means()


def feature_distance(a: Images, b: Images, features: PriorFeatures) -> float:
    """Mean prior-feature distance between faces of two equal stacks."""
    return float(_per_face(features, partial(prior_feature_distance, features), a, b).mean())


def measure(
    restored: Mapping[str, Images],
    lq: Images,
    truth: Images | None,
    features: PriorFeatures | None,
    *,
    lpips: Lpips | None = None,
) -> dict[str, dict[str, float]]:
    """Mean figures of each restorer's output, with those that need the truth only where it is known."""
    meters = Meters(features=features, lpips=lpips)
    known = Truth.of(truth, meters) if truth is not None else None
    return {name: measure_faces(images, lq, known, meters).means() for name, images in restored.items()}


def _referenced(images: Images, truth: Truth, meters: Meters) -> Figures:
    if images.shape != truth.images.shape:
        msg = f"Restored faces {images.shape} and truth {truth.images.shape} must have the same shape."
        raise ShapeError(msg)
    pairs = list(zip(images, truth.images, strict=True))
    each = {
        "psnr_db": np.array([psnr(a, b, meters.quality) for a, b in pairs]),
        "ssim": np.array([ssim(a, b, meters.quality) for a, b in pairs]),
    }
    whole = {}
    if truth.detail > 0:
        whole["hf_energy_ratio"] = float(np.mean([high_frequency_energy(a) for a in images])) / truth.detail
    if meters.lpips:
        each["lpips"] = _per_face(meters.lpips, meters.lpips, images, truth.images)
    if meters.features:
        distance = partial(prior_feature_distance, meters.features)
        each["prior_feature_distance"] = _per_face(meters.features, distance, images, truth.images)
    if truth.landmarks is not None and meters.detector:
        points = find_landmarks(images, meters.detector)
        side = images.shape[1]
        shifts = [landmark_shift(p, q, side=side) for p, q in zip(points, truth.landmarks, strict=True)]
        each["landmark_px512"] = np.array(shifts)
        whole["landmark_none"] = float(np.isnan(points).any((1, 2)).sum())
    return Figures(each=each, whole={**whole, **_frechet(images, truth, meters)})


def _artefacts(images: Images, truth: Truth, meters: Meters) -> Figures:
    """Colour cast, grid and fluctuation on flat areas beside the truth's, and whose face is nearest."""
    if truth.flat is None:
        return Figures(each={})
    shifts = np.stack([colour_shift(a, b) for a, b in zip(images, truth.images, strict=True)])
    grid, energy = _flat_energies(images, truth.flat.tiles)
    whole = {"colour_cast_common": float(np.linalg.norm(shifts.mean(0))), "grid_levels": grid}
    if truth.flat.energy > 0:
        whole["flat_energy_ratio"] = energy / truth.flat.energy
    if meters.features and len(images) > 1:
        whole["own_is_nearest"] = nearest_is_own(inner_distances(images, truth.images, meters.features))
    return Figures(each={"colour_cast": np.linalg.norm(shifts, axis=1)}, whole=whole)


def _flat_energies(images: Images, tiles: NDArray[np.bool_]) -> tuple[float, float]:
    """Root of the grid's energy (8-bit levels, 0 without a grid) and all fine energy of the median face."""
    pairs = zip(images, tiles, strict=True)
    # Medians: the few faces without a flat area would outweigh all others.
    grid, energy = np.median([(grid_energy(*pair), flat_energy(*pair)) for pair in pairs], axis=0)
    return float(max(grid, 0.0) ** 0.5), float(energy)


def _frechet(images: Images, truth: Truth, meters: Meters) -> dict[str, float]:
    figures: dict[str, float] = {}
    if len(images) < 2:  # one face has no covariance
        return figures
    if meters.inception and truth.inception is not None:
        found = _per_face(meters.inception, meters.inception, images)
        figures["fid"] = frechet_distance(found, truth.inception)
    if meters.features and truth.pooled is not None:
        figures["prior_frechet_distance"] = frechet_distance(pooled_stack(images, meters.features), truth.pooled)
    return figures


def _unreferenced(images: Images, lq: Images) -> dict[str, Values]:
    return {
        "noise_sigma": np.array([noise_sigma(face) for face in images]),
        "high_frequency_energy": np.array([high_frequency_energy(face) for face in images]),
        "input_consistency_db": np.array(
            [psnr(_shrink(a), _shrink(b)) for a, b in zip(images, lq, strict=True)]
        ),
    }


def pooled_stack(images: Images, features: PriorFeatures) -> Values:
    """`pooled_features` of a stack of faces, float64 (N, C)."""
    return _per_face(features, partial(pooled_features, features), images)


@torch.no_grad()
def _per_face(network: nn.Module, call: Callable[..., Tensor], *stacks: Images, batch: int = 8) -> Values:
    """Call with batches of stacks as tensors on the network's device; the answers joined, float64 (N, ...)."""
    device = next(iter(network.parameters())).device
    parts = [
        call(*(to_tensor(stack[i : i + batch], device) for stack in stacks)).float().cpu()
        for i in range(0, len(stacks[0]), batch)
    ]
    return np.asarray(torch.cat(parts).double().numpy())


def _shrink(image: Images) -> Images:
    side = image.shape[0] // 8
    return np.asarray(image.reshape(side, 8, side, 8, 3).mean((1, 3)).round(), dtype=np.uint8)
