"""Pretraining over a folder of clean aligned faces: the restorer (paper.md 8.1) and the prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ufr_edge.adaptation.faces import FaceSet, load_faces, source_weights
from ufr_edge.adaptation.loop import LoopConfig, check_origin, run_loop
from ufr_edge.adaptation.prior_task import PriorTask, PriorTraining
from ufr_edge.adaptation.restorer_task import HeldOut, LossWeights, RestorerTask, RestorerTraining
from ufr_edge.adaptation.training import pick_device
from ufr_edge.config import to_json
from ufr_edge.degradations.presets import degrade, get_preset
from ufr_edge.files import atomic_folder, write_json
from ufr_edge.priors.features import PriorFeatures
from ufr_edge.priors.files import load_prior
from ufr_edge.priors.model import DiffusionPrior, build_prior
from ufr_edge.restorers.edge import EdgeUNet, build_restorer
from ufr_edge.restorers.files import WEIGHTS_NAME, load_restorer, save_restorer

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class PretrainRestorer:
    """`ufr-edge pretrain restorer`: classic blind degradations drawn on the fly, held-out PSNR on `val`."""

    arch: str = "edge-m"
    side: int = 256
    batch: int = 8
    degradation: str = "classic"
    init: str | None = None
    prior: str | None = None
    training: RestorerTraining = field(
        default_factory=lambda: RestorerTraining(
            steps=20_000,
            lr=5e-4,
            lr_end=1e-5,
            warmup=200,
            ema=0.999,
            clip_norm=1.0,
            losses=LossWeights(prior_features=0.0, adversarial=0.0),
        )
    )
    loop: LoopConfig = field(default_factory=LoopConfig)
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class PretrainPrior:
    """`ufr-edge pretrain prior`: a pixel-unshuffled UNet2DModel at `side` px."""

    side: int = 256
    factor: int = 4
    channels: tuple[int, ...] = (64, 96, 160, 224)
    layers: int = 1
    prediction_type: Literal["epsilon", "v_prediction", "wiener_residual"] = "wiener_residual"
    batch: int = 16
    init: str | None = None
    training: PriorTraining = field(default_factory=lambda: PriorTraining(steps=20_000))
    loop: LoopConfig = field(default_factory=LoopConfig)
    seed: int = 0
    device: str = "auto"


def pretrain_restorer(faces: Path, out: Path, config: PretrainRestorer, *, val: Path, show: bool = True) -> Path:
    """Train a restorer on `faces`; writes `out`/weights.safetensors, config, log and strips, and returns its path.

    Goes on from `out`/checkpoint.pt when there is one. Raises InputFileError with fewer than 8 good faces,
    TrainingError on a NaN loss, ConfigError or ModelFileError when `out` holds another training.
    """
    get_preset(config.degradation)
    check_origin(out, kind=RestorerTask.kind)
    device = pick_device(config.device)
    train = load_faces(faces, config.side, show=show)
    held_out = degraded_pairs(load_faces(val, config.side, show=show, limit=64), config.degradation, seed=0)
    model = load_restorer(config.init).model if config.init else build_restorer(config.arch)
    task = RestorerTask(
        model,
        config.training,
        pairs=degrading_source(train, config.degradation, config.batch, config.seed),
        real=face_source(train, config.batch, config.seed + 1),
        features=_features(config, device),
        held_out=held_out,
        run=out,
        device=device,
    )
    write_json(out / "config.json", to_json(config))
    steps = run_loop(task, out, config.loop, steps=config.training.steps, show=show)
    return _save_result(task.result, out, config, steps, held=task.evaluate(steps))


def pretrain_prior(faces: Path, out: Path, config: PretrainPrior, *, val: Path, show: bool = True) -> Path:
    """Train a prior on `faces`; writes `out`/prior (diffusers layout) beside config, log and strips.

    Goes on from `out`/checkpoint.pt when there is one. Raises as `pretrain_restorer`.
    """
    check_origin(out, kind=PriorTask.kind)
    device = pick_device(config.device)
    train = load_faces(faces, config.side, show=show)
    held_out = load_faces(val, config.side, show=show, limit=64)
    prior, average = (_fresh_prior(config) for _ in range(2))
    task = PriorTask(
        prior,
        average,
        config.training,
        faces=face_source(train, config.batch, config.seed),
        held_out=held_out.images,
        run=out,
        device=device,
    )
    write_json(out / "config.json", to_json(config))
    run_loop(task, out, config.loop, steps=config.training.steps, show=show)
    with atomic_folder(out / "prior", overwrite=True) as beside:
        task.result.save_pretrained(beside)
    return out / "prior"


def degrading_source(faces: FaceSet, preset: str, batch: int, seed: int) -> Callable[[int], tuple[Images, Images]]:
    """Return step -> (degraded, clean): balanced over sources, flipped at random, fixed by (seed, step)."""
    clean_of = face_source(faces, batch, seed)
    camera = get_preset(preset)

    def pairs(step: int) -> tuple[Images, Images]:
        clean = clean_of(step)
        rng = np.random.default_rng((seed, step, 1))
        return np.stack([camera(image, rng) for image in clean]), clean

    return pairs


def face_source(faces: FaceSet, batch: int, seed: int) -> Callable[[int], Images]:
    """Return step -> uint8 (batch, S, S, 3): balanced over sources, flipped at random, fixed by (seed, step)."""
    weights = source_weights(faces.names)

    def draw(step: int) -> Images:
        rng = np.random.default_rng((seed, step))
        images = faces.images[rng.choice(len(faces), batch, p=weights)]
        flip = rng.random(batch) < 0.5
        images[flip] = images[flip, :, ::-1]
        return images

    return draw


def degraded_pairs(faces: FaceSet, preset: str, *, seed: int) -> HeldOut:
    """Degrade every face once, face i with seed `seed` + i: held-out pairs that stay the same."""
    lq = [degrade(image, preset, seed=seed + i) for i, image in enumerate(faces.images)]
    return HeldOut(lq=np.stack(lq), truth=faces.images)


def _features(config: PretrainRestorer, device: torch.device) -> PriorFeatures | None:
    return PriorFeatures(load_prior(config.prior).to(device)) if config.prior else None


def _fresh_prior(config: PretrainPrior) -> DiffusionPrior:
    torch.manual_seed(config.seed)
    if config.init:
        return load_prior(config.init)
    return build_prior(
        side=config.side,
        factor=config.factor,
        channels=config.channels,
        layers=config.layers,
        prediction_type=config.prediction_type,
    )


def _save_result(
    model: EdgeUNet, out: Path, config: PretrainRestorer, steps: int, *, held: dict[str, float]
) -> Path:
    path = out / WEIGHTS_NAME
    meta = {"steps": str(steps), "degradation": config.degradation, **{k: f"{v:.3f}" for k, v in held.items()}}
    arch = load_restorer(config.init).arch if config.init else config.arch
    save_restorer(model, path, arch=arch, side=config.side, meta=meta)
    return path
