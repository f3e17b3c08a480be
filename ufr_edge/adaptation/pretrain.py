"""Pretraining over a folder of clean aligned faces: the restorer (paper.md 8.1) and the prior."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ufr_edge.adaptation.faces import (
    SKIPPED,
    FaceSet,
    evenly,
    list_images,
    load_faces,
    read_training_face,
    skipped_line,
    weighted_by_detail,
    write_skipped,
)
from ufr_edge.adaptation.loop import LoopConfig, check_origin, run_loop
from ufr_edge.adaptation.prior_task import PriorTask, PriorTraining
from ufr_edge.adaptation.restorer_task import LossWeights, PairSource, RestorerTask, RestorerTraining
from ufr_edge.adaptation.sources import check_mixture, degraded_pairs, drawn_ahead, face_source, mixed_source
from ufr_edge.adaptation.training import CHECKPOINT, resolve_precision
from ufr_edge.adaptation.workers import Workers
from ufr_edge.config import to_json
from ufr_edge.errors import ConfigError
from ufr_edge.files import atomic_folder, write_json
from ufr_edge.priors.features import load_features
from ufr_edge.priors.files import load_prior
from ufr_edge.priors.model import DiffusionPrior, build_prior
from ufr_edge.restorers.edge import EdgeUNet, build_restorer
from ufr_edge.restorers.files import WEIGHTS_NAME, load_restorer
from ufr_edge.restorers.loading import save_any_restorer
from ufr_edge.restorers.widen import widen_restorer

Images = NDArray[np.uint8]
Tell = Callable[[str], object]
"""Called with lines for the user: what was left out, and what trains."""


_FREE = ("steps", "lr", "lr_end", "warmup", "halve_at", "crop_steps", "precision", "accumulate")
"""Settings of a training that may change when it is gone on with."""

_HELD_OUT = 64

PRIOR_FOLDER = "prior"
"""In a run folder: the prior that was trained."""


@dataclass(frozen=True, kw_only=True)
class PretrainRestorer:
    """`ufr-edge pretrain restorer`: blind degradations drawn on the fly, held-out PSNR on `val`.

    `degradations`: preset -> share of the faces (shares are taken relative to their sum). A `crop_share` of the
    steps sees `crops_per_face` random crops of `crop` px out of each degraded face instead of the whole, with a
    mixture of its own where `crop_degradations` is not empty: more of local detail for the same cost.
    `detail`: faces are drawn in proportion to their fine detail to this power (`weighted_by_detail`).
    `batch` is that of all processes together. `init`: start from these weights, of the same `arch`;
    `widen_from`: start from those of a smaller one, made larger without changing what it computes.
    """

    arch: str = "edge-m"
    side: int = 256
    batch: int = 8
    detail: float = 0.0
    degradations: Mapping[str, float] = field(default_factory=lambda: {"classic": 1.0})
    crop_share: float = 0.0
    crop: int = 128
    crops_per_face: int = 2
    crop_degradations: Mapping[str, float] = field(default_factory=dict)
    init: str | None = None
    widen_from: str | None = None
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

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that cannot be trained with."""
        check_mixture(self.degradations)
        if self.crop_degradations:
            check_mixture(self.crop_degradations)
        if not 0 <= self.crop_share <= 1:
            msg = f"crop_share is a share from 0 to 1; got {self.crop_share}."
            raise ConfigError(msg)
        if self.crop_share and (self.crop % 32 or not 32 <= self.crop <= self.side or self.crops_per_face < 1):
            msg = (
                f"Crops of {self.crop} px, {self.crops_per_face} per face, do not fit faces of {self.side} px: "
                "crop is a multiple of 32 of at most the side, and crops_per_face at least 1."
            )
            raise ConfigError(msg)
        if self.init and self.widen_from:
            msg = "init and widen_from both say what to start from. Give one of them."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class PretrainPrior:
    """`ufr-edge pretrain prior`: a pixel-unshuffled UNet2DModel at `side` px. `detail`: as for a restorer.

    `storage`: of the prior that is written; the checkpoint is fp32.
    """

    side: int = 256
    factor: int = 4
    channels: tuple[int, ...] = (64, 96, 160, 224)
    layers: int = 1
    prediction_type: Literal["epsilon", "v_prediction", "wiener_residual"] = "wiener_residual"
    batch: int = 16
    detail: float = 0.0
    init: str | None = None
    storage: Literal["fp32", "fp16"] = "fp32"
    training: PriorTraining = field(default_factory=lambda: PriorTraining(steps=20_000))
    loop: LoopConfig = field(default_factory=LoopConfig)
    seed: int = 0
    device: str = "auto"


def pretrain_restorer(
    faces: Path, out: Path, config: PretrainRestorer, *, val: Path, show: bool = True, tell: Tell = str
) -> Path:
    """Train a restorer on `faces`; writes `out`/weights.safetensors, config, log, curves and strips; returns its path.

    Goes on from `out`/checkpoint.pt when there is one. Files that are no clean 8-bit colour faces are left out
    and listed in `out`/skipped.csv. Raises InputFileError with fewer than 8 good faces, TrainingError on a NaN
    loss, ConfigError or ModelFileError when `out` holds another training, before anything in it is changed.
    """
    origin = _origin(faces, config)
    workers = _start(out, RestorerTask.kind, config.device, origin)
    torch.manual_seed(config.seed)  # initial weights
    model = _first_restorer(config)
    features = load_features(config.prior, workers.device) if config.prior else None
    found = _found(faces, val, config, workers, show)
    task = RestorerTask(
        model,
        config.training,
        pairs=_pairs(found[faces], config, workers),
        batch=config.batch,
        real=face_source(found[faces], config.batch, config.seed + 1),
        features=features,
        held_out=degraded_pairs(found[val], tuple(config.degradations), seed=0),
        run=out,
        workers=workers,
    )
    start = partial(_announce, out, found, workers, config, tell)
    steps = run_loop(
        task, out, config.loop, steps=config.training.steps, origin=origin, on_start=start, show=show
    )
    if workers.main:
        meta = {"steps": str(steps), "degradations": _listed(config.degradations)}
        held = {name: f"{value:.3f}" for name, value in task.evaluate(steps).items()}
        save_any_restorer(task.result, out / WEIGHTS_NAME, arch=config.arch, side=config.side, meta={**meta, **held})
    return out / WEIGHTS_NAME


def pretrain_prior(
    faces: Path, out: Path, config: PretrainPrior, *, val: Path, show: bool = True, tell: Tell = str
) -> Path:
    """Train a prior on `faces`; writes `out`/prior (diffusers layout) beside config, log, curves and strips.

    Goes on from `out`/checkpoint.pt when there is one. Leaves files out and raises as `pretrain_restorer`.
    """
    origin = _origin(faces, config)
    workers = _start(out, PriorTask.kind, config.device, origin)
    prior, average = (_fresh_prior(config) for _ in range(2))
    found = _found(faces, val, config, workers, show)
    task = PriorTask(
        prior,
        average,
        config.training,
        faces=face_source(found[faces], config.batch, config.seed),
        batch=config.batch,
        held_out=found[val].images,
        run=out,
        workers=workers,
    )
    start = partial(_announce, out, found, workers, config, tell)
    run_loop(task, out, config.loop, steps=config.training.steps, origin=origin, on_start=start, show=show)
    if workers.main:
        with atomic_folder(out / PRIOR_FOLDER, overwrite=True) as beside:
            task.result.save_pretrained(beside, half=config.storage == "fp16")
    return out / PRIOR_FOLDER


def _origin(faces: Path, config: PretrainRestorer | PretrainPrior) -> str:
    """Digest of what decides a training beside its length and rate, which may change midway: faces and settings."""
    settings = to_json(config)
    for name in ("loop", "device", "storage"):
        settings.pop(name, None)
    settings["training"] = {k: v for k, v in settings["training"].items() if k not in _FREE}
    files = [(path.name, path.stat().st_size) for path in list_images(faces)]
    return hashlib.sha256(json.dumps([settings, files], sort_keys=True).encode()).hexdigest()


def _start(out: Path, kind: str, device: str, origin: str) -> Workers:
    """Refuse a run folder that holds something else, before anything is read or written."""
    check_origin(out, kind=kind, origin=origin, mend="Choose another folder.")
    trained = any((out / name).exists() for name in (WEIGHTS_NAME, PRIOR_FOLDER))
    if trained and not (out / CHECKPOINT).exists():
        msg = f"{out} holds weights but no {CHECKPOINT} to go on from; they are not replaced. Choose another folder."
        raise ConfigError(msg)
    return Workers(device)


def _first_restorer(config: PretrainRestorer) -> EdgeUNet:
    """What training starts from: weights of the same network, a smaller one made larger, or chance."""
    if config.widen_from:
        return widen_restorer(load_restorer(config.widen_from).model, config.arch, seed=config.seed)
    if config.init is None:
        return build_restorer(config.arch)
    loaded = load_restorer(config.init)
    if loaded.arch != config.arch:
        msg = (
            f"{loaded.path} is {loaded.arch}, but {config.arch} is to be trained. Set arch to {loaded.arch}, "
            "or start from a smaller network with widen_from in place of init."
        )
        raise ConfigError(msg)
    return loaded.model


def _pairs(faces: FaceSet, config: PretrainRestorer, workers: Workers) -> PairSource:
    pairs = mixed_source(faces, config)
    if workers.device.type == "cpu":
        return pairs  # the network needs the cores itself
    return drawn_ahead(pairs, steps=4, threads=4)


def _found(
    faces: Path, val: Path, config: PretrainRestorer | PretrainPrior, workers: Workers, show: bool
) -> dict[Path, FaceSet]:
    """The faces to train on, with how often each is drawn, and those held out."""
    read = partial(load_faces, side=config.side, read=read_training_face, show=show and workers.main)
    found = {faces: read(faces), val: evenly(read(val), _HELD_OUT)}
    return {**found, faces: weighted_by_detail(found[faces], config.detail)}  # both may be one folder


def _announce(
    out: Path,
    found: Mapping[Path, FaceSet],
    workers: Workers,
    config: PretrainRestorer | PretrainPrior,
    tell: Tell,
) -> None:
    """Say what trains and what was left out; the list and the settings go to the run folder."""
    write_json(out / "config.json", to_json(config))
    write_skipped(out / SKIPPED, found)
    lines = [line for folder, faces in found.items() if (line := skipped_line(folder, faces))]
    for line in lines:
        tell(f"{line}; listed in {out / SKIPPED}")
    used = resolve_precision(workers.device, config.training.precision)
    tell(f"training on {workers.device} x {workers.count}, {used}; log, curves and strips in {out}")


def _listed(mixture: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in mixture.items())


def _fresh_prior(config: PretrainPrior) -> DiffusionPrior:
    torch.manual_seed(config.seed)
    fresh = build_prior(
        side=config.side,
        factor=config.factor,
        channels=config.channels,
        layers=config.layers,
        prediction_type=config.prediction_type,
    )
    if config.init is None:
        return fresh
    loaded = load_prior(config.init)
    shapes, wanted = ({k: v.shape for k, v in net.state_dict().items()} for net in (loaded, fresh))
    if (shapes, loaded.factor, loaded.prediction_type) != (wanted, config.factor, config.prediction_type):
        msg = (
            f"{config.init} is a prior of another shape than the settings say. Set factor, channels, layers and "
            "prediction_type to its own, or leave init out."
        )
        raise ConfigError(msg)
    return loaded
