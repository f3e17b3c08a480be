"""The terms of a fine-tuning's loss: whether each has what it needs, and the task that trains on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from ufr_edge.adaptation.code_task import CodeTask, check_codes
from ufr_edge.adaptation.faces import MINIMUM_FACES, FaceSet, list_images, load_faces, read_training_face
from ufr_edge.adaptation.restorer_task import HeldOut, LossWeights, PairSource, PairTask, RestorerTask
from ufr_edge.adaptation.sources import face_source
from ufr_edge.adaptation.workers import Workers
from ufr_edge.errors import BackendUnavailableError, ConfigError
from ufr_edge.metrics.backbones import find_backbone, find_head
from ufr_edge.metrics.lpips_net import NETS, Lpips, load_lpips
from ufr_edge.priors.features import PriorFeatures, load_features
from ufr_edge.restorers.loading import AnyModel

if TYPE_CHECKING:
    from ufr_edge.adaptation.finetune import FinetuneConfig

Perceptual = Literal["lpips", "prior-features", "none"]
PAPER_PERCEPTUAL = 0.4
_READ = 200  # files of clean faces up to which some are read beforehand, not only counted


def choose_perceptual(losses: LossWeights, term: Perceptual) -> LossWeights:
    """Return the weights with `term` as the only perceptual one, at the weight of the one in force.

    Where none was in force it is the paper's 0.4. "none": without a perceptual term.
    """
    weight = losses.lpips or losses.prior_features or PAPER_PERCEPTUAL
    return dataclasses.replace(
        losses,
        lpips=weight if term == "lpips" else 0.0,
        prior_features=weight if term == "prior-features" else 0.0,
    )


def needs_real(config: FinetuneConfig) -> bool:
    """Whether clean faces are used: by the adversarial term, replayed, or for camera pairs."""
    return config.training.losses.adversarial > 0 or config.replay > 0 or _pairs_of_real(config)


def _pairs_of_real(config: FinetuneConfig) -> bool:
    return config.camera_pairs > 0 and config.camera_pairs_of == "real"


def check_terms(config: FinetuneConfig, real: Path | None) -> None:
    """Check that every term has what it needs, before hours are spent on targets.

    Raises ConfigError when the adversarial term or replay lacks its clean faces, BackendUnavailableError when LPIPS
    cannot be computed here (nothing takes its place unless asked for by name), and as `find_backbone` for a wrong file.
    """
    losses = config.training.losses
    if losses.adversarial > 0 and real is None:
        msg = (
            f"The adversarial term (weight {losses.adversarial:g}) needs real faces: give --real FOLDER with unrelated "
            "clean faces, or set its weight to 0 (--w-adversarial 0)."
        )
        raise ConfigError(msg)
    if config.replay > 0 and real is None:
        msg = "Replay needs clean faces: give --real FOLDER, or set it to 0."
        raise ConfigError(msg)
    if _pairs_of_real(config) and real is None:
        msg = "Camera pairs of real faces need them: give --real FOLDER, or take the targets (--camera-pairs-of targets)."
        raise ConfigError(msg)
    if losses.lpips > 0 and not config.download:
        with _mending_lpips():
            find_head(NETS[losses.lpips_net].head)
            find_backbone(NETS[losses.lpips_net].backbone, path=config.lpips_backbone)


def check_trainable(config: FinetuneConfig, real: Path | None, side: int, workers: Workers) -> None:
    """Check, before hours are spent on targets, what a training on them would only find afterwards.

    Raises ConfigError for a batch that these processes cannot share out and a prior that lacks the features wanted of
    it, InputFileError for clean faces that are missing or too few, and as `check_terms` and `load_prior`.
    """
    check_terms(config, real)
    workers.parts(config.batch, config.training.accumulate)
    if _wants_features(config):
        load_features(config.features_prior or config.prior, torch.device("cpu"))
    if real is not None and len(list_images(real)) <= _READ and needs_real(config):
        load_faces(real, side, limit=MINIMUM_FACES, read=read_training_face)


def check_objective(model: AnyModel, config: FinetuneConfig) -> None:
    """Raise ConfigError when the objective is not one of this network (see `CodeTask`)."""
    if config.training.objective == "codes":
        check_codes(model, config.training)


def task_kind(config: FinetuneConfig) -> str:
    """What `build_task` builds, as its checkpoints call it."""
    return CodeTask.kind if config.training.objective == "codes" else RestorerTask.kind


def build_task(
    model: AnyModel,
    pairs: PairSource,
    clean: FaceSet | None,
    config: FinetuneConfig,
    *,
    held_out: HeldOut | None,
    run: Path,
    workers: Workers,
) -> PairTask:
    """Build the task that `config` asks for. `clean`: the real faces of the adversarial term.

    Raises ConfigError when the objective does not fit the network, and as `check_terms`.
    """
    if config.training.objective == "codes":
        return CodeTask(
            model, config.training, pairs=pairs, batch=config.batch, held_out=held_out, run=run, workers=workers
        )
    features, lpips = _features(config, workers), _lpips(config, workers)
    torch.manual_seed(config.seed)  # the discriminator's initialisation
    return RestorerTask(
        model,
        config.training,
        pairs=pairs,
        batch=config.batch,
        real=face_source(clean, config.batch, config.seed + 7, flip=config.flip) if clean else None,
        features=features,
        lpips=lpips,
        held_out=held_out,
        run=run,
        workers=workers,
    )


def _wants_features(config: FinetuneConfig) -> bool:
    training = config.training
    adversary = training.losses.adversarial > 0 and training.discriminator == "prior-features"
    return training.objective == "images" and (training.losses.prior_features > 0 or adversary)


def _features(config: FinetuneConfig, workers: Workers) -> PriorFeatures | None:
    return load_features(config.features_prior or config.prior, workers.device) if _wants_features(config) else None


def _lpips(config: FinetuneConfig, workers: Workers) -> Lpips | None:
    with workers.main_first():
        return lpips_on(config, workers.device)


def lpips_on(config: FinetuneConfig, device: torch.device) -> Lpips | None:
    """The network of the LPIPS term; None where the term is off. Raises as `check_terms`."""
    losses = config.training.losses
    if losses.lpips <= 0:
        return None
    with _mending_lpips():
        return load_lpips(losses.lpips_net, path=config.lpips_backbone, download=config.download).to(device)


@contextmanager
def _mending_lpips() -> Iterator[None]:
    """Name the other perceptual term where LPIPS cannot be had."""
    try:
        yield
    except BackendUnavailableError as exc:
        msg = f"{exc} Or choose the distance on the prior's own features, which is not LPIPS: --perceptual prior-features."
        raise BackendUnavailableError(msg) from exc
