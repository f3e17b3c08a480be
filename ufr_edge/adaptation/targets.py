"""Stage 1 of the paper: pseudo targets for low-quality faces (paper.md section 2), scored and weighed (see `qa`)."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ufr_edge.adaptation.choose import Choice, ChooseConfig, CleanLevels, choose_sampler
from ufr_edge.adaptation.faces import FaceSet, load_faces
from ufr_edge.adaptation.intake import check_apart
from ufr_edge.adaptation.pairing import same_stem
from ufr_edge.adaptation.qa import Examiner, QaConfig, counts, judge
from ufr_edge.adaptation.restorer_task import restore_batch
from ufr_edge.adaptation.target_index import (
    CONFIG,
    INDEX,
    append_entries,
    digest,
    image_seed,
    index_path,
    made_here,
    merge_indexes,
    read_index,
    remove_targets,
    target_name,
    target_weights,
)
from ufr_edge.adaptation.training import pick_device, to_tensor, to_uint8
from ufr_edge.adaptation.workers import Workers
from ufr_edge.config import to_json
from ufr_edge.errors import BackendUnavailableError, ConfigError, InputFileError, OutputError
from ufr_edge.files import read_json, sha256_file, write_json
from ufr_edge.priors.files import load_prior, prior_digest
from ufr_edge.priors.sampler import LIGHT_TOUCH, Denoiser, SamplerConfig, sample_targets
from ufr_edge.progress import progress_bar
from ufr_edge.restorers.loading import AnyModel, AnyRestorer, load_any_restorer
from ufr_edge.runtime.faces.detect import Detects, FaceDetector
from ufr_edge.runtime.images import is_image, write_image

__all__ = [
    "CONFIG",
    "INDEX",
    "Atelier",
    "TargetsConfig",
    "TargetsReport",
    "check_ours",
    "image_seed",
    "make_targets",
    "open_detector",
    "read_index",
    "sample_batch",
    "target_name",
    "target_weights",
]

Images = NDArray[np.uint8]
CHOICE = "choice.json"
_OF_SWEEP = "sweep.png"  # the one picture that `targets --sweep` leaves in the folder


@dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """Who restores, who samples, and how. `sampler` names the steps; every image gets its own seed from `seed`.

    `teacher`: a restorer, heavier as a rule, whose outputs the targets are made from instead; `restorer` learns them
    (distillation). `auto`: start, hold and N of `sampler` are chosen from the faces (see `choose`). `qa`: see there.
    """

    restorer: str = "edge-m-256"
    teacher: str | None = None
    prior: str = "prior-256"
    sampler: SamplerConfig = LIGHT_TOUCH
    auto: bool = False
    choose: ChooseConfig = field(default_factory=ChooseConfig)
    qa: QaConfig = field(default_factory=QaConfig)
    batch: int = 8
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class TargetsReport:
    """What `make_targets` did: how many targets lie in `folder`, how many were there before, which faces were skipped.

    `verdicts`: how many were kept, weighed down, rejected. `sampler`: the one used, `choice` why where it was chosen.
    `notes`: what could not be scored, and what mends it.
    """

    folder: Path
    total: int
    reused: int
    skipped: tuple[tuple[str, str], ...]
    verdicts: Mapping[str, int] = field(default_factory=dict)
    sampler: SamplerConfig = LIGHT_TOUCH
    choice: Choice | None = None
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report in words."""
        judged = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts.items())
        chosen = [] if self.choice is None else self.choice.lines()
        head = f"{self.total} targets in {self.folder} ({self.reused} were there before): {judged}"
        return [*chosen, *self.notes, head]


def sample_batch(
    prior: Denoiser, restored: Images, config: SamplerConfig, seeds: Sequence[int], device: torch.device
) -> Images:
    """Targets, uint8 (B, S, S, 3), for 8-bit restorer outputs of the same shape. The low-quality input plays no part."""
    return to_uint8(sample_targets(prior, to_tensor(restored, device), config, seeds))


class Atelier:
    """Where targets are made: the restorer (or its teacher), the prior and the device, loaded once."""

    def __init__(self, config: TargetsConfig, device: torch.device | None = None) -> None:
        self.config = config
        self.device = device or pick_device(config.device)
        self.restorer = load_any_restorer(config.restorer)
        self.side = self.restorer.side
        self.maker: AnyRestorer = load_any_restorer(config.teacher) if config.teacher else self.restorer
        self.model: AnyModel = self.maker.model.to(self.device)
        self.prior = load_prior(config.prior).to(self.device).eval()

    @property
    def made_by(self) -> dict[str, str]:
        """Digests of the networks that targets depend on."""
        return {"restorer_sha256": sha256_file(self.maker.path), "prior_sha256": prior_digest(self.config.prior)}

    def scale_line(self) -> str:
        """What to know where the prior was trained at another side than the faces have; "" where it was not."""
        if self.prior.side == self.side:
            return ""
        return (
            f"the prior {self.config.prior} was trained at {self.prior.side} px and the faces are {self.side} px: it runs, "
            "but textures may be of the wrong scale"
        )

    def restore(self, images: Images) -> Images:
        """What targets are made from: the restorer's or teacher's outputs, uint8 (N, S, S, 3), at the restorer's side."""
        own = self.maker.side
        if own == self.side:
            return restore_batch(self.model, images, self.device, batch=self.config.batch)
        restored = restore_batch(self.model, _resized(images, own), self.device, batch=self.config.batch)
        return _resized(restored, self.side)

    def sample(self, restored: Images, names: Sequence[str], sampler: SamplerConfig) -> Images:
        """Targets of outputs uint8 (N, S, S, 3), each with its own seed."""
        seeds, batch = [image_seed(self.config.seed, name) for name in names], self.config.batch
        parts = [
            sample_batch(self.prior, restored[i : i + batch], sampler, seeds[i : i + batch], self.device)
            for i in range(0, len(names), batch)
        ]
        return np.concatenate(parts)


def make_targets(
    faces: Path,
    out: Path,
    config: TargetsConfig,
    *,
    real: Path | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] | None = None,
    show: bool = True,
) -> TargetsReport:
    """Write one PNG target per face of `faces` into `out`, with scores and provenance in `out`/index.jsonl.

    Processes that `accelerate launch` started share the faces out; each face has its own seed, so that its target
    depends neither on their number nor on the order. Goes on where an earlier call with the same config stopped;
    limits of `qa` alone may change: the targets are then judged anew, not drawn. `real`: clean faces that `auto` takes
    its levels from. A target whose face has changed since is drawn again. `tell` is told, before any is drawn, where
    prior and faces do not fit (in the main process).

    Raises ConfigError when `out` holds targets of another config (give `overwrite`) or is `faces` itself, InputFileError
    with fewer than 8 good faces or two of one stem, OutputError when `out` holds pictures of others, or the disk is, or
    would get, full.
    """
    check_apart(faces, out)
    workers = Workers(config.device)
    atelier = Atelier(config, workers.device)
    if tell and workers.main and (line := atelier.scale_line()):
        tell(line)
    found = load_faces(faces, atelier.side, show=show and workers.main)
    _check_stems(faces, found.names)
    with ExitStack() as stack:
        detector, notes = open_detector(stack)
        with workers.main_first():
            # The first process prepares the folder and chooses; the others find both done.
            done = _prepare(out, {**_settings(config), **atelier.made_by}, overwrite=overwrite and workers.main)
            choice = _choice(atelier, found, out, real, detector) if config.auto else None
        workers.wait()  # all have read the index before the first line is written: they share out the same faces
        sampler = choice.sampler if choice else config.sampler
        wanted = [i for i, name in enumerate(found.names) if done.get(name) != digest(found.images[i])]
        _check_space(out, len(wanted), atelier.side)
        maker = _Maker(atelier, sampler, Examiner(config.qa, detector), index_path(out, workers.index))
        groups = _groups(wanted, config.batch)[workers.index :: workers.count]
        with progress_bar("targets", len(wanted), show=show and workers.main) as advance:
            for group in groups:
                maker.make(found.subset(group))
                advance(len(group) * workers.count)
    workers.wait()
    if workers.main:
        merge_indexes(out)
        _judge_anew(out, config.qa)
    workers.wait()
    named = [entry for name, entry in read_index(out).items() if name in set(found.names)]
    return TargetsReport(
        folder=out,
        total=len(found),
        reused=len(found) - len(wanted),
        skipped=found.skipped,
        verdicts=counts(named),
        sampler=sampler,
        choice=choice,
        notes=notes,
    )


def open_detector(stack: ExitStack) -> tuple[Detects | None, tuple[str, ...]]:
    """The face detector, closed with `stack`; or None and a note on what is not measured without it."""
    try:
        return stack.enter_context(FaceDetector(threads=1)), ()
    except BackendUnavailableError as exc:
        return None, (f"landmarks are not looked at: {exc}",)


class _Maker:
    """Draws, scores and writes targets, a group at a time."""

    def __init__(self, atelier: Atelier, sampler: SamplerConfig, examiner: Examiner, index: Path) -> None:
        self.atelier, self.sampler, self.examiner, self.index = atelier, sampler, examiner, index
        self.made_by = atelier.made_by

    def make(self, faces: FaceSet) -> None:
        """Write the targets of these faces, then their lines in the index."""
        restored = self.atelier.restore(faces.images)
        targets = self.atelier.sample(restored, faces.names, self.sampler)
        scores = self.examiner.scores(targets, restored, faces.images)
        entries = []
        for name, face, target, found in zip(faces.names, faces.images, targets, scores, strict=True):
            write_image(self.index.parent / target_name(name), target)
            entries.append(self._entry(name, face, target, found))
        append_entries(self.index, entries)

    def _entry(self, name: str, face: Images, target: Images, scores: dict[str, float]) -> dict[str, Any]:
        s = self.sampler
        judgement = judge(scores, self.examiner.config)
        return {
            "face": name,
            "target": target_name(name),
            "seed": image_seed(self.atelier.config.seed, name),
            "face_sha256": digest(face),
            "target_sha256": digest(target),
            **self.made_by,
            "sampler": {
                "start": s.start,
                "hold_until": s.hold_until,
                "filter_n": s.filter_n,
                "tail_filter_n": s.tail_filter_n,
                "steps": s.steps,
                "calls": s.calls,
                "samples": s.samples_per_image,
            },
            "scores": scores,
            "weight": judgement.weight,
            "verdict": judgement.verdict,
            "reasons": list(judgement.reasons),
        }


def _groups(wanted: Sequence[int], batch: int) -> list[list[int]]:
    """Faces drawn together: by their place among all, so that it does not depend on the number of processes."""
    groups: dict[int, list[int]] = {}
    for i in wanted:
        groups.setdefault(i // batch, []).append(i)
    return list(groups.values())


def _resized(images: Images, side: int) -> Images:
    how = cv2.INTER_AREA if images.shape[1] > side else cv2.INTER_CUBIC
    return np.stack([np.asarray(cv2.resize(face, (side, side), interpolation=how), np.uint8) for face in images])


def _check_stems(folder: Path, names: Sequence[str]) -> None:
    if (both := same_stem(names)) is not None:
        msg = f"{folder} holds {both[0]} and {both[1]}, whose targets would have one name. Rename one of them."
        raise InputFileError(msg)


def _settings(config: TargetsConfig) -> dict[str, Any]:
    """What targets depend on: not the limits they are judged by, nor where and how many at once they are drawn."""
    limits = {name: getattr(QaConfig, name) for name in (*config.qa.limits(), "judge")}
    plain = to_json(dataclasses.replace(config, qa=dataclasses.replace(config.qa, **limits)))
    return {name: value for name, value in plain.items() if name not in ("device", "batch")}


def check_ours(out: Path) -> None:
    """Raise OutputError where `out` holds pictures or settings of others, which no `overwrite` is meant for."""
    if made_here(out) or not out.is_dir():
        return
    if (out / CONFIG).exists():
        msg = f"{out / CONFIG} is not of targets, so the folder is left alone. Choose another output."
        raise OutputError(msg)
    pictures = sorted(p.name for p in out.iterdir() if is_image(p) and not p.name.startswith(".") and p.name != _OF_SWEEP)
    if pictures and not read_index(out):
        msg = (
            f"{out} holds pictures ({pictures[0]}) but no {CONFIG} of targets: they were not made by this command and are "
            "left alone. Choose another output."
        )
        raise OutputError(msg)


def _prepare(out: Path, config: dict[str, Any], *, overwrite: bool) -> dict[str, str]:
    """Write the settings; returns the digest of each face that has its target. Those of other settings are removed."""
    check_ours(out)
    path = out / CONFIG
    if path.exists() and read_json(path) != json.loads(json.dumps(config)):
        if not overwrite:
            msg = f"{out} holds targets made with other settings. Give --overwrite, or choose another folder."
            raise ConfigError(msg)
        remove_targets(out)
        (out / CHOICE).unlink(missing_ok=True)
    write_json(path, config)
    return {name: entry["face_sha256"] for name, entry in read_index(out).items()}


def _check_space(out: Path, count: int, side: int) -> None:
    need, free = count * side * side * 3, shutil.disk_usage(out).free
    if need > free:
        msg = f"{count} targets need about {need / 1e6:.0f} MB in {out}, which has {free / 1e6:.0f} MB free. Make room."
        raise OutputError(msg)


def _choice(atelier: Atelier, faces: FaceSet, out: Path, real: Path | None, detector: Detects | None) -> Choice:
    """The sampler chosen before for this folder, or chosen now and written to choice.json."""
    path = out / CHOICE
    if path.exists():
        saved = read_json(path)
        return Choice(sampler=SamplerConfig(**saved["sampler"]), reason=f"{saved['reason']} (chosen before)")
    config = atelier.config
    at = np.linspace(0, len(faces) - 1, min(config.choose.probe, len(faces))).round().astype(np.intp)
    probe = faces.subset(np.unique(at))
    restored = atelier.restore(probe.images)
    levels = CleanLevels.of(load_faces(real, atelier.side, limit=64, minimum=1).images) if real else None
    choice = choose_sampler(
        restored,
        lambda sampler: atelier.sample(restored, probe.names, sampler),
        config.sampler,
        config.choose,
        levels=levels,
        detector=detector,
    )
    write_json(path, {**choice.to_json(), "probe": list(probe.names)})
    return choice


def _judge_anew(out: Path, config: QaConfig) -> None:
    """Append a line for each target whose verdict another set of limits changes."""
    changed = []
    for entry in read_index(out).values():
        new = judge(entry.get("scores", {}), config)
        if (new.weight, new.verdict) != (entry.get("weight", 1.0), entry.get("verdict", "kept")):
            entry = {**entry, "weight": new.weight, "verdict": new.verdict, "reasons": list(new.reasons)}
            changed.append(entry)
    append_entries(out / INDEX, changed)
