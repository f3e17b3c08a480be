"""Stage 2 of the paper: fine-tune the restorer on (low-quality face, target) pairs (paper.md section 6)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ufr_edge.adaptation.faces import MINIMUM_FACES, FaceSet, load_faces
from ufr_edge.adaptation.loop import LoopConfig, check_origin, run_loop
from ufr_edge.adaptation.restorer_task import HeldOut, LossWeights, PairSource, RestorerTask, RestorerTraining
from ufr_edge.adaptation.sources import degrading_source, face_source
from ufr_edge.adaptation.workers import Workers
from ufr_edge.config import to_json
from ufr_edge.errors import ConfigError, InputFileError
from ufr_edge.files import sha256_file, write_json
from ufr_edge.priors.features import PriorFeatures, load_features
from ufr_edge.restorers.loading import WEIGHTS_NAME, load_any_restorer, save_any_restorer

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """`restorer` is what training starts from; `prior` gives the features of the perceptual term.

    `flip`: mirror pairs at random (the paper does not). `replay`: share of each batch that is clean faces
    of `real`, degraded by the classic pipeline, so that the old skill is kept (not in the paper).
    """

    restorer: str = "edge-m-256"
    prior: str = "prior-256"
    batch: int = 8
    flip: bool = True
    replay: float = 0.0
    training: RestorerTraining = field(
        default_factory=lambda: RestorerTraining(
            steps=1_000,
            lr=6e-4,
            lr_end=3e-5,
            warmup=10,
            clip_norm=1.0,
            discriminator_lr=2e-4,
            discriminator_features=16,
            adversarial_crop=128,
            losses=LossWeights(prior_features=0.1, adversarial=0.01),
        )
    )
    loop: LoopConfig = field(default_factory=LoopConfig)
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError when `replay` is no share."""
        if not 0 <= self.replay <= 1:
            msg = f"replay is a share from 0 to 1; got {self.replay}."
            raise ConfigError(msg)


def finetune(
    faces: Path,
    targets: Path,
    out: Path,
    config: FinetuneConfig,
    *,
    real: Path | None = None,
    held_out: HeldOut | None = None,
    overwrite: bool = False,
    show: bool = True,
) -> Path:
    """Fine-tune on pairs matched by stem and write `out`/weights.safetensors; returns its path.

    `real`: a folder of unrelated clean faces, for the adversarial term and replay. Goes on from
    `out`/checkpoint.pt. Raises InputFileError with fewer than 8 pairs, TrainingError on a NaN loss,
    ConfigError when the checkpoint has other weights, pairs or losses behind it (`overwrite` starts afresh).
    """
    start = load_any_restorer(config.restorer)
    pairs = load_pairs(faces, targets, start.side, show=show)
    origin = _origin(start.path, pairs, config)
    workers = Workers(config.device)
    with workers.main_first():
        check_origin(out, kind=RestorerTask.kind, origin=origin, overwrite=overwrite)
    clean = load_faces(real, start.side, show=show) if real else None
    torch.manual_seed(config.seed)  # the discriminator's initialisation
    task = RestorerTask(
        start.model,
        config.training,
        pairs=_mixed(pair_source(pairs, config), clean, config),
        batch=config.batch,
        real=face_source(clean, config.batch, config.seed + 7) if clean else None,
        features=_features(config, workers.device),
        held_out=held_out,
        run=out,
        workers=workers,
    )
    steps = run_loop(
        task,
        out,
        config.loop,
        steps=config.training.steps,
        origin=origin,
        on_start=lambda: write_json(out / "config.json", to_json(config)),
        show=show,
    )
    path = out / WEIGHTS_NAME
    meta = {"steps": str(steps), "parent_sha256": sha256_file(start.path), "pairs": str(len(pairs.lq))}
    if workers.main:
        save_any_restorer(task.result, path, arch=start.arch, side=start.side, meta=meta)
    workers.wait()
    return path


def load_pairs(
    faces: Path, targets: Path, side: int, *, minimum: int = MINIMUM_FACES, show: bool = False
) -> HeldOut:
    """Load (low-quality, target) pairs matched by file stem. Raises InputFileError with fewer than `minimum`."""
    lq = load_faces(faces, side, minimum=minimum, show=show)
    goal = load_faces(targets, side, minimum=1, show=show)
    by_stem = {Path(name).stem: i for i, name in enumerate(goal.names)}
    matched = [(i, by_stem[Path(n).stem]) for i, n in enumerate(lq.names) if Path(n).stem in by_stem]
    if len(matched) < minimum:
        msg = (
            f"Only {len(matched)} faces of {faces} have a target of the same name in {targets}; "
            f"at least {minimum} are needed. Run: ufr-edge targets -i {faces} -o {targets}"
        )
        raise InputFileError(msg)
    return HeldOut(lq=lq.images[[i for i, _ in matched]], truth=goal.images[[j for _, j in matched]])


def pair_source(pairs: HeldOut, config: FinetuneConfig) -> PairSource:
    """Return (step, rows) -> (low-quality, target), without repeats inside a batch, fixed by (seed, step)."""

    def draw(step: int, rows: slice) -> tuple[Images, Images]:
        rng = np.random.default_rng((config.seed, step))
        index = rng.choice(len(pairs.lq), config.batch, replace=len(pairs.lq) < config.batch)[rows]
        lq, goal = pairs.lq[index], pairs.truth[index]
        flip = (rng.random(config.batch) < 0.5)[rows] & config.flip
        lq[flip], goal[flip] = lq[flip, :, ::-1], goal[flip, :, ::-1]
        return lq, goal

    return draw


def _mixed(draw: PairSource, clean: FaceSet | None, config: FinetuneConfig) -> PairSource:
    if config.replay > 0 and clean is None:
        msg = "Replay needs clean faces: give --real FOLDER, or set it to 0."
        raise ConfigError(msg)
    count = round(config.replay * config.batch)
    if count == 0 or clean is None:
        return draw
    old = degrading_source(clean, {"classic": 1.0}, count, config.seed + 13)
    everything = slice(None)

    def both(step: int, rows: slice) -> tuple[Images, Images]:
        new_pairs, old_pairs = draw(step, everything), old(step, everything)
        lq, goal = (np.concatenate([n[:-count], o])[rows] for n, o in zip(new_pairs, old_pairs, strict=True))
        return lq, goal

    return both


def _origin(start: Path, pairs: HeldOut, config: FinetuneConfig) -> str:
    """Digest of what decides the result beside the length and the rate of training, which may change midway."""
    settings = (config.prior, config.flip, config.replay, config.seed, config.training.losses)
    digest = hashlib.sha256(f"{sha256_file(start)} {settings}".encode())
    for images in (pairs.lq, pairs.truth):
        digest.update(images.tobytes())
    return digest.hexdigest()


def _features(config: FinetuneConfig, device: torch.device) -> PriorFeatures | None:
    if config.training.losses.prior_features <= 0:
        return None
    return load_features(config.prior, device)
