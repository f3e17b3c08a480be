"""Small faces, a small prior and a small restorer for the training tests (64 px)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ufr_edge.adaptation.restorer_task import RestorerTask
from ufr_edge.adaptation.targets import TargetsConfig
from ufr_edge.priors.model import DiffusionPrior, build_prior
from ufr_edge.priors.sampler import SamplerConfig
from ufr_edge.restorers.edge import build_restorer
from ufr_edge.restorers.files import save_restorer

SIDE = 64


def make_faces(count: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth blobs with edges, uint8 (count, 64, 64, 3): no faces, but not flat and not noise either."""
    rng = np.random.default_rng(seed)
    faces = []
    for _ in range(count):
        coarse = rng.integers(30, 225, (6, 6, 3), dtype=np.uint8)
        face = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        cv2.circle(face, tuple(rng.integers(16, 48, 2).tolist()), 9, rng.integers(0, 255, 3).tolist(), -1)
        faces.append(face)
    return np.stack(faces)


def write_faces(folder: Path, faces: NDArray[np.uint8]) -> Path:
    """Write faces as `face_000.png` ...; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, face in enumerate(faces):
        cv2.imwrite(str(folder / f"face_{i:03d}.png"), face[..., ::-1])
    return folder


def small_prior(seed: int = 0) -> DiffusionPrior:
    """An untrained prior at 64 px."""
    torch.manual_seed(seed)
    return build_prior(side=SIDE, factor=4, channels=(32, 32), layers=1)


def save_small_prior(folder: Path) -> str:
    """Save the small prior in diffusers' layout; returns the folder as text."""
    small_prior().save_pretrained(folder)
    return str(folder)


def save_small_restorer(path: Path) -> str:
    """Save an untrained edge-s at 64 px whose output is not the identity; returns the path as text."""
    torch.manual_seed(1)
    model = build_restorer("edge-s")
    torch.nn.init.normal_(model.head.weight, std=0.003)
    save_restorer(model, path, arch="edge-s", side=SIDE)
    return str(path)


FEW = SamplerConfig(start=20, hold_until=10, filter_n=8, fast_steps=2)
"""Two calls of the prior for a target."""


def small_targets(folder: Path, *, sampler: SamplerConfig = FEW, **settings: Any) -> TargetsConfig:
    """The small restorer and the small prior, saved in `folder`, as what makes targets."""
    restorer, prior = save_small_restorer(folder / "base.safetensors"), save_small_prior(folder / "prior")
    return TargetsConfig(restorer=restorer, prior=prior, sampler=sampler, **settings)


def weight(task: RestorerTask, layer: str) -> torch.Tensor:
    """Return the weight of a task's own convolution, "stem" or "head"."""
    return cast("nn.Conv2d", task.model.get_submodule(layer)).weight
