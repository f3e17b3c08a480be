"""Whose face is it? Nearest neighbours on the prior's features of the inner face. Images are uint8 (N, S, S, 3) RGB."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ufr_edge.adaptation.training import to_tensor
from ufr_edge.priors.features import PriorFeatures

Images = NDArray[np.uint8]


def nearest_is_own(distances: NDArray[np.float64]) -> float:
    """Share of faces (rows, N) whose nearest original (columns, N) is their own, from 0 to 1; a tie counts."""
    others = distances + np.diag(np.full(len(distances), np.inf))
    return float(np.mean(np.diagonal(distances) <= others.min(1)))


def inner_distances(images: Images, truth: Images, features: PriorFeatures) -> NDArray[np.float64]:
    """Prior-feature distance of every face's middle to that of every original, float64 (N, M).

    Half the side, so that hair and background do not tell. The features are no face recogniser's.
    """
    return feature_distances(inner_face(images, features), inner_face(truth, features), features)


def inner_face(faces: Images, features: PriorFeatures) -> Images:
    """Cut the middle of aligned faces, brows to chin: half the side, rounded to what the features take."""
    side = faces.shape[1]
    size = max(features.multiple_of, side // 2 // features.multiple_of * features.multiple_of)
    top, left = (side * 5 // 8) - size // 2, (side - size) // 2
    return faces[:, top : top + size, left : left + size]


@torch.no_grad()
def feature_distances(
    a: Images, b: Images, features: PriorFeatures, *, batch: int = 8
) -> NDArray[np.float64]:
    """`prior_feature_distance` of every face of `a` (N) with every one of `b` (M), float64 (N, M)."""
    known = [torch.cat(level) for level in zip(*_directions(b, features, batch), strict=True)]
    rows = []
    for part in _directions(a, features, batch):
        # |p - q|^2 of unit vectors is 2 - 2 pq: one matrix product a level in place of N M comparisons.
        levels = zip(part, known, strict=True)
        found = [2 - 2 * (p.flatten(1) @ q.flatten(1).T) / p[0, 0].numel() for p, q in levels]
        rows.append(torch.stack(found).mean(0).double().cpu().numpy())
    return np.concatenate(rows)


def _directions(images: Images, features: PriorFeatures, batch: int) -> Iterator[list[Tensor]]:
    device = next(features.parameters()).device
    for i in range(0, len(images), batch):
        maps = features(to_tensor(images[i : i + batch], device))
        yield [F.normalize(level.float(), dim=1, eps=1e-5) for level in maps]
