"""Stage 2 of the paper: fine-tune the restorer on (low-quality face, target) pairs (paper.md section 6)."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ufr_edge.adaptation.camera_pairs import (
    LOOKS,
    CameraEstimate,
    CameraModel,
    camera_source,
    estimate_camera,
)
from ufr_edge.adaptation.camera_spread import (
    CameraSpread,
    SpreadConfig,
    estimate_spread,
    keep_camera,
    kept_camera,
)
from ufr_edge.adaptation.earlier_cameras import replay_source
from ufr_edge.adaptation.faces import FaceSet, weighted_by_detail
from ufr_edge.adaptation.intake import check_apart
from ufr_edge.adaptation.lineage import lineage
from ufr_edge.adaptation.loop import LoopConfig, check_origin, run_loop
from ufr_edge.adaptation.pairing import Pairs, load_pairs
from ufr_edge.adaptation.real_faces import load_real, real_lines
from ufr_edge.adaptation.restorer_task import (
    HeldOut,
    LossWeights,
    PairSource,
    PairTask,
    RestorerTraining,
    restore_batch,
)
from ufr_edge.adaptation.terms import build_task, check_terms, needs_real, task_kind
from ufr_edge.adaptation.workers import Workers
from ufr_edge.config import to_json
from ufr_edge.errors import ConfigError
from ufr_edge.files import sha256_file, write_json
from ufr_edge.progress import progress_bar
from ufr_edge.restorers.loading import (
    WEIGHTS_NAME,
    AnyModel,
    AnyRestorer,
    load_any_restorer,
    save_any_restorer,
)

__all__ = [
    "FinetuneConfig",
    "Pairs",
    "finetune",
    "kept_source",
    "load_pairs",
    "mixed_pairs",
    "pair_source",
    "restoring",
    "trial_task",
]

Images = NDArray[np.uint8]
CAMERA_MODELS = "camera-models.json"
"""Beside `camera.json`, which is for people: the estimate as it is drawn from."""
_SIMULATED = 2048  # clean faces that an estimate of the camera draws from, where they are weighted


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """`restorer` is what training starts from; `prior` gives the features of the perceptual term.

    `flip`: mirror pairs at random (the paper does not). `replay`: share of each batch that is clean faces
    of `real`, degraded by the classic pipeline, so that the old skill is kept (not in the paper); what is learned
    from them (`replay_target`) is what the restorer made of them "before" (learning without forgetting, Li & Hoiem
    2017), or their "truth", which moves it towards sharper and costs PSNR there. `camera_pairs`: share that is
    clean faces degraded by an estimate of the camera (see `camera_pairs`; not in the paper), which are the targets, or
    the unrelated faces of `real` (`camera_pairs_of`). `real_detail`: faces of `real` are drawn in proportion to their
    fine detail to this power (see `weighted_by_detail`), for a folder that is softer than what is restored.
    `features_prior`: another prior for the features, where `prior` has none to give. `lpips_backbone`: the file LPIPS
    is computed with, if it is not in torch hub's cache; `download`: fetch it where it is missing.
    """

    restorer: str = "edge-m-256"
    prior: str = "prior-256"
    features_prior: str | None = None
    lpips_backbone: Path | None = None
    download: bool = False
    batch: int = 8
    flip: bool = True
    replay: float = 0.0
    replay_target: Literal["before", "truth"] = "before"
    camera_pairs: float = 0.0
    camera_pairs_of: Literal["targets", "real"] = "targets"
    real_detail: float = 0.0
    training: RestorerTraining = field(
        default_factory=lambda: RestorerTraining(
            steps=1_000,
            lr=6e-4,
            lr_end=3e-5,
            warmup=10,
            clip_norm=1.0,
            discriminator="prior-features",
            discriminator_lr=5e-4,
            discriminator_beta1=0.5,
            adversarial_crop=128,
            losses=LossWeights(prior_features=0.1, adversarial=0.01, grid=2.0),
        )
    )
    loop: LoopConfig = field(default_factory=LoopConfig)
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError for shares below 0 or of more than everything, and for a power below 0."""
        if min(self.replay, self.camera_pairs) < 0 or self.replay + self.camera_pairs > 1:
            msg = f"replay and camera_pairs are shares from 0 to 1, together too; got {self.replay} and {self.camera_pairs}."
            raise ConfigError(msg)
        if self.real_detail < 0:
            msg = f"real_detail is a power of 0 or more; got {self.real_detail}."
            raise ConfigError(msg)


def finetune(
    faces: Path,
    targets: Path,
    out: Path,
    config: FinetuneConfig,
    *,
    real: Path | None = None,
    held_out: HeldOut | None = None,
    cameras: Sequence[CameraModel] = (),
    overwrite: bool = False,
    tell: Callable[[str], None] | None = None,
    show: bool = True,
) -> Path:
    """Fine-tune on pairs matched by stem and write `out`/weights.safetensors; returns its path.

    `real`: a folder of unrelated clean faces, for the adversarial term, replay and camera pairs of "real". `cameras`: earlier ones, by which
    replayed faces are degraded too. `tell` is told how many pairs there
    are and what was left out (in the main process). Goes on from
    `out`/checkpoint.pt. Raises as `load_pairs`, TrainingError on a NaN loss,
    ConfigError when the checkpoint has other weights, pairs or losses behind it (`overwrite` starts afresh), or `out` is read from,
    and as `check_terms` and `build_task`.
    """
    for given in (faces, targets):
        check_apart(given, out)
    check_terms(config, real)
    start = load_any_restorer(config.restorer)
    pairs = load_pairs(faces, targets, start.side, show=show)
    origin = _origin(start.path, pairs, config, cameras)
    workers = Workers(config.device)
    with workers.main_first():
        check_origin(out, kind=task_kind(config), origin=origin, overwrite=overwrite)
    clean = _real_faces(real, start.side, config, show=show and workers.main)
    camera = _camera(start.model, pairs, clean, config, workers, out / CAMERA_MODELS, origin=origin, show=show)
    if tell and workers.main:
        for line in (*pairs.lines, *(real_lines(real, clean) if real and clean else ())):
            tell(line)
    source = _batches(start.model, pairs, clean, camera, config, cameras, workers.device)
    task = build_task(start.model, source, clean, config, held_out=held_out, run=out, workers=workers)
    steps = run_loop(
        task,
        out,
        config.loop,
        steps=config.training.steps,
        origin=origin,
        on_start=lambda: _write_settings(out, config, camera),
        show=show,
    )
    path = out / WEIGHTS_NAME
    meta = {"steps": str(steps), "pairs": str(len(pairs.lq))} | _origin_meta(start)
    meta |= lineage(config, targets, start.path)
    if workers.main:
        save_any_restorer(task.result, path, arch=start.arch, side=start.side, meta=meta)
    if tell and workers.main and steps < config.training.steps:
        tell(f"stopped after {steps} of {config.training.steps} steps (--minutes): the same command goes on")
    workers.wait()
    return path


def trial_task(faces: Path, config: FinetuneConfig, *, real: Path | None = None) -> PairTask:
    """The task that `finetune` would train, on faces that are their own targets: to time its steps. Writes nothing.

    Camera pairs are left out. Raises as `finetune`.
    """
    check_terms(config, real)
    start, workers = load_any_restorer(config.restorer), Workers(config.device)
    pairs = load_pairs(faces, faces, start.side)
    clean = _real_faces(real, start.side, config, show=False)
    source = _batches(start.model, pairs, clean, None, config, (), workers.device)
    return build_task(start.model, source, clean, config, held_out=None, run=faces, workers=workers)


def _real_faces(real: Path | None, side: int, config: FinetuneConfig, *, show: bool) -> FaceSet | None:
    """The unrelated clean faces, where the training needs them."""
    if real is None or not needs_real(config):
        return None
    return weighted_by_detail(load_real(real, side, show=show), config.real_detail)


def _origin_meta(start: AnyRestorer) -> dict[str, str]:
    """What the weights keep of those that training started from."""
    kept = {name: start.meta[name] for name in ("weights_licence",) if name in start.meta}
    return {"parent_sha256": sha256_file(start.path), **kept}


def _write_settings(out: Path, config: FinetuneConfig, camera: CameraEstimate | CameraSpread | None) -> None:
    write_json(out / "config.json", to_json(config))
    if camera is not None:
        write_json(out / "camera.json", camera.to_json())


def pair_source(pairs: Pairs, config: FinetuneConfig) -> PairSource:
    """Return (step, rows) -> (low-quality, target), without repeats inside a batch, fixed by (seed, step)."""
    share = None if pairs.weights is None else pairs.weights / pairs.weights.sum()

    def draw(step: int, rows: slice) -> tuple[Images, Images]:
        rng = np.random.default_rng((config.seed, step))
        index = rng.choice(len(pairs.lq), config.batch, replace=len(pairs.lq) < config.batch, p=share)[rows]
        lq, goal = pairs.lq[index], pairs.truth[index]
        flip = (rng.random(config.batch) < 0.5)[rows] & config.flip
        lq[flip], goal[flip] = lq[flip, :, ::-1], goal[flip, :, ::-1]
        return lq, goal

    return draw


def _camera(
    model: AnyModel,
    pairs: Pairs,
    clean: FaceSet | None,
    config: FinetuneConfig,
    workers: Workers,
    kept: Path,
    *,
    origin: str,
    show: bool,
) -> CameraEstimate | CameraSpread | None:
    """The camera as far as pairs of it are wanted: estimated once, by the main process, and read from `kept` by all.

    So does a resumed training, whose pairs are the same then.
    """
    if config.camera_pairs == 0:
        return None
    if clean is not None and config.camera_pairs_of == "real":
        origin = hashlib.sha256(f"{origin} {clean.names}".encode()).hexdigest()
    with workers.main_first():
        if kept_camera(kept, origin=origin) is None:
            found = _estimated(model, pairs, clean, config, workers.device, show=show and workers.main)
            keep_camera(kept, found, origin=origin)
        return kept_camera(kept, origin=origin)


def _estimated(
    model: AnyModel,
    pairs: Pairs,
    clean: FaceSet | None,
    config: FinetuneConfig,
    device: torch.device,
    *,
    show: bool,
) -> CameraEstimate | CameraSpread:
    """One camera for a few targets, one for each face with real faces beside."""
    seed, title = config.seed, "estimating the camera"
    if clean is None or config.camera_pairs_of == "targets":
        with progress_bar(title, LOOKS, show=show) as advance:
            return estimate_camera(pairs.lq, pairs.truth, seed=seed, advance=advance)
    before, total = restoring(model, device), SpreadConfig().looks(len(pairs.lq))
    with progress_bar(title, total, show=show) as advance:
        return estimate_spread(pairs.lq, _as_drawn(clean, seed), before, seed=seed, advance=advance)


def _as_drawn(clean: FaceSet, seed: int) -> Images:
    """Faces about as often as they are drawn."""
    if clean.weights is None:
        return clean.images
    count = min(len(clean), _SIMULATED)
    return clean.images[np.random.default_rng(seed).choice(len(clean), count, p=clean.weights)]


def _batches(
    model: AnyModel,
    pairs: Pairs,
    clean: FaceSet | None,
    camera: CameraEstimate | CameraSpread | None,
    config: FinetuneConfig,
    cameras: Sequence[CameraModel],
    device: torch.device,
) -> PairSource:
    """The pairs of each step, with those that keep what `model` could before it is trained."""
    keeping = config.replay > 0 and config.replay_target == "before"
    before = restoring(model, device) if keeping else None
    extras = _extras(clean, pairs, camera, config, before, cameras)
    return mixed_pairs(pair_source(pairs, config), extras, config.batch)


def _extras(
    clean: FaceSet | None,
    pairs: HeldOut,
    camera: CameraEstimate | CameraSpread | None,
    config: FinetuneConfig,
    before: Callable[[Images], Images] | None,
    cameras: Sequence[CameraModel],
) -> list[tuple[int, PairSource]]:
    """How many pairs of each batch come from elsewhere, and from where."""
    made = round(config.camera_pairs * config.batch) if camera else 0
    old = min(round(config.replay * config.batch), config.batch - made)
    extras: list[tuple[int, PairSource]] = []
    if camera is not None and made:
        if isinstance(camera, CameraSpread) and clean is not None:
            extras.append(
                (made, camera_source(clean.images, camera.models, made, config.seed + 17, clean.weights))
            )
        elif isinstance(camera, CameraEstimate):
            extras.append((made, camera_source(pairs.truth, camera.model, made, config.seed + 17)))
    if clean is not None and old:
        replayed = replay_source(clean, cameras, old, config.seed + 13)
        extras.append((old, kept_source(replayed, before) if before else replayed))
    return extras


def kept_source(draw: PairSource, before: Callable[[Images], Images]) -> PairSource:
    """The faces of `draw`, with what `before` makes of them in place of their truth."""

    def pairs(step: int, rows: slice) -> tuple[Images, Images]:
        lq, _ = draw(step, rows)
        return lq, before(lq)

    return pairs


def restoring(model: AnyModel, device: torch.device) -> Callable[[Images], Images]:
    """What `model` as it is now makes of faces, uint8 (N, S, S, 3) both ways, however it is trained later."""
    frozen = copy.deepcopy(model).eval().requires_grad_(False).to(device)
    return lambda images: restore_batch(frozen, images, device)


def mixed_pairs(draw: PairSource, extras: Sequence[tuple[int, PairSource]], batch: int) -> PairSource:
    """Return (step, rows) -> pairs of `draw`, and of each extra source so many at the end of the `batch`.

    A source is asked for those of its rows that lie in `rows` (without a stride), and not at all where none does.
    """
    if not extras:
        return draw
    shares = ((batch - sum(count for count, _ in extras), draw), *extras)

    def together(step: int, rows: slice) -> tuple[Images, Images]:
        start, stop, _ = rows.indices(batch)
        parts, before = [], 0
        for count, source in shares:
            first, last = max(start - before, 0), min(stop - before, count)
            if first < last:
                parts.append(source(step, slice(first, last)))
            before += count
        lq, goal = (np.concatenate(side) for side in zip(*parts, strict=True))
        return lq, goal

    return together


def _origin(
    start: Path, pairs: Pairs, config: FinetuneConfig, cameras: Sequence[CameraModel] = ()
) -> str:
    """Digest of what decides the result beside the length and the rate of training, which may change midway."""
    training = config.training
    settings = (
        config.features_prior or config.prior,
        config.flip,
        config.replay,
        config.seed,
        training.losses,
        *((config.real_detail,) if config.real_detail else ()),
    )
    digest = hashlib.sha256(f"{sha256_file(start)} {settings}".encode())
    if training.objective == "codes":
        digest.update(repr(training.code_losses).encode())
    if config.replay:
        digest.update(config.replay_target.encode())
        digest.update(repr(tuple(cameras)).encode() if cameras else b"")
    if pairs.weights is not None or config.camera_pairs:
        digest.update(f"{config.camera_pairs} {pairs.weights}".encode())
        digest.update(b"real" if config.camera_pairs_of == "real" else b"")
    for images in (pairs.lq, pairs.truth):
        digest.update(images.tobytes())
    return digest.hexdigest()
