"""Stage 1 of the paper: pseudo targets for low-quality faces (paper.md section 2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ufr_edge.adaptation.faces import FaceSet, load_faces
from ufr_edge.adaptation.restorer_task import restore_batch
from ufr_edge.adaptation.training import pick_device, to_tensor, to_uint8
from ufr_edge.config import to_json
from ufr_edge.errors import ConfigError, InputFileError
from ufr_edge.files import read_json, sha256_file, write_json
from ufr_edge.priors.files import load_prior, prior_digest
from ufr_edge.priors.model import DiffusionPrior
from ufr_edge.priors.sampler import LIGHT_TOUCH, SamplerConfig, sample_targets
from ufr_edge.progress import progress_bar
from ufr_edge.restorers.loading import AnyModel, load_any_restorer
from ufr_edge.runtime.images import write_image

INDEX = "index.jsonl"
CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """Who restores, who samples, and how. `sampler` names the steps; every image gets its own seed from `seed`."""

    restorer: str = "edge-m-256"
    prior: str = "prior-256"
    sampler: SamplerConfig = LIGHT_TOUCH
    batch: int = 8
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class TargetsReport:
    """What `make_targets` did: how many targets lie in `folder`, how many were there before, which faces were skipped."""

    folder: Path
    total: int
    reused: int
    skipped: tuple[tuple[str, str], ...]


def image_seed(seed: int, name: str) -> int:
    """Return the seed of one image: it depends on its name, not on the order or the number of processes."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def target_name(name: str) -> str:
    """Return the file name of a face's target: the same stem, PNG."""
    return Path(name).stem + ".png"


def sample_batch(
    prior: DiffusionPrior, restored: NDArray[np.uint8], config: SamplerConfig, seeds: Sequence[int], device: torch.device
) -> NDArray[np.uint8]:
    """Targets, uint8 (B, S, S, 3), for 8-bit restorer outputs of the same shape. The low-quality input plays no part."""
    return to_uint8(sample_targets(prior, to_tensor(restored, device), config, seeds))


def make_targets(
    faces: Path, out: Path, config: TargetsConfig, *, overwrite: bool = False, show: bool = True
) -> TargetsReport:
    """Write one PNG target per face of `faces` into `out`, with provenance in `out`/index.jsonl.

    Goes on where an earlier call with the same config stopped. Raises ConfigError when `out` holds targets
    of another config (give `overwrite`), InputFileError with fewer than 8 good faces or two of one stem.
    A target whose face has changed since is drawn again.
    """
    device = pick_device(config.device)
    restorer, prior = load_any_restorer(config.restorer), load_prior(config.prior).to(device).eval()
    found = load_faces(faces, restorer.side, show=show)
    _check_stems(faces, found.names)
    made_by = {"restorer_sha256": sha256_file(restorer.path), "prior_sha256": prior_digest(config.prior)}
    done = _prepare(out, {**to_json(config), **made_by}, overwrite=overwrite)
    wanted = [i for i, name in enumerate(found.names) if done.get(name) != _digest(found.images[i])]
    model = restorer.model.to(device)
    with progress_bar("targets", len(found), done=len(found) - len(wanted), show=show) as advance:
        for start in range(0, len(wanted), config.batch):
            chosen = wanted[start : start + config.batch]
            _one_batch(found.subset(chosen), model, prior, out, config, device)
            advance(len(chosen))
    return TargetsReport(
        folder=out, total=len(found), reused=len(found) - len(wanted), skipped=found.skipped
    )


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the provenance of each target by the name of its face; a torn last line is left out."""
    entries: dict[str, dict[str, Any]] = {}
    path = folder / INDEX
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if (folder / entry["target"]).exists():
            entries[entry["face"]] = entry
    return entries


def _check_stems(folder: Path, names: Sequence[str]) -> None:
    stems: dict[str, str] = {}
    for name in names:
        if (other := stems.setdefault(Path(name).stem, name)) != name:
            msg = f"{folder} holds {other} and {name}, whose targets would have one name. Rename one of them."
            raise InputFileError(msg)


def _digest(image: NDArray[np.uint8]) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def _prepare(out: Path, config: dict[str, Any], *, overwrite: bool) -> dict[str, str]:
    path = out / CONFIG
    if path.exists() and read_json(path) != json.loads(json.dumps(config)):
        if not overwrite:
            msg = f"{out} holds targets made with other settings. Give --overwrite, or choose another folder."
            raise ConfigError(msg)
        (out / INDEX).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, config)
    return {name: entry["face_sha256"] for name, entry in read_index(out).items()}


def _one_batch(
    faces: FaceSet, model: AnyModel, prior: DiffusionPrior, out: Path, config: TargetsConfig, device: torch.device
) -> None:
    restored = restore_batch(model, faces.images, device, batch=config.batch)
    seeds = [image_seed(config.seed, name) for name in faces.names]
    targets = sample_batch(prior, restored, config.sampler, seeds, device)
    with (out / INDEX).open("a", encoding="utf-8") as index:
        for name, seed, face, target in zip(faces.names, seeds, faces.images, targets, strict=True):
            write_image(out / target_name(name), target)
            entry = {
                "face": name,
                "target": target_name(name),
                "seed": seed,
                "face_sha256": _digest(face),
                "target_sha256": _digest(target),
            }
            index.write(json.dumps(entry) + "\n")
