"""Adapting a bundle again from a camera's own faces: a new version with lineage, or the reasons why not.

Each stage leaves its result in the work folder, whole or not at all, and is left out when it is there; so the same call
goes on wherever an earlier one was killed. What is installed changes last, in one step.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.camera_pairs import CameraModel, degrade_all, estimate_camera
from ufr_edge.adaptation.earlier_cameras import CAMERAS, earlier_cameras, lineage_text
from ufr_edge.adaptation.faces import load_faces
from ufr_edge.adaptation.finetune import FinetuneConfig, finetune, load_pairs
from ufr_edge.adaptation.loop import LoopConfig
from ufr_edge.adaptation.readapt_faces import (
    fit_faces,
    note_faces,
    place_faces,
    refuse_few,
    split_people,
    take_faces,
)
from ufr_edge.adaptation.readapt_gate import Embeds, GateReport, Outputs, judge
from ufr_edge.adaptation.readapt_job import PRIVATE, STATE, Job, ReadaptConfig, Tell, open_job
from ufr_edge.adaptation.sources import degrading_source
from ufr_edge.adaptation.targets import TargetsConfig, make_targets
from ufr_edge.calibration.frames import CalibrationConfig
from ufr_edge.calibration.gate import GateConfig
from ufr_edge.errors import BackendUnavailableError, ConfigError
from ufr_edge.export.bundle_export import ExportOptions, export_bundle
from ufr_edge.export.requests import EngineRequest
from ufr_edge.export.tensorrt_export import module_name
from ufr_edge.files import atomic_folder, read_json, sha256_file, write_json
from ufr_edge.priors.sampler import LIGHT_TOUCH
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.runtime.bundle import Bundle, open_bundle_engine, read_bundle
from ufr_edge.runtime.faces.detect import Detects, FaceDetector
from ufr_edge.runtime.faces_archive import unpack_faces
from ufr_edge.runtime.live.onsite import leave_records
from ufr_edge.runtime.lock import file_lock
from ufr_edge.runtime.manifest import MANIFEST
from ufr_edge.runtime.pipeline import infer_all
from ufr_edge.runtime.versions import history, install_once

Images = NDArray[np.uint8]
GATE = "gate.json"
LINEAGE = "lineage.json"
_SKILL_FACES = 16
_WAIT_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class ReadaptReport:
    """bundle: the new one; in the work folder, or the version it became. installed: that version, None where there is no
    folder of versions. gate: the figures. notes: what was left out, in words."""

    bundle: Path
    installed: Path | None
    gate: GateReport
    notes: tuple[str, ...]


def readapt(
    bundle: Path,
    faces: Path,
    work: Path,
    config: ReadaptConfig | None = None,
    *,
    weights: str | Path | None = None,
    real: Path | None = None,
    camera: str = "",
    keep: int | None = None,
    detector: Detects | None = None,
    embed: Embeds | None = None,
    show: bool = True,
    tell: Tell = lambda _: None,
) -> ReadaptReport:
    """Adapt the bundle (or the current version of a folder of versions) to the aligned `faces` of its camera: a
    folder, or an archive NAME.ufrf.

    The new bundle is `work`/NAME.ufr, or a new version where `bundle` is a folder of versions. weights: to
    start from, None: those of the bundle. real: clean faces to replay, None: the shipped ones. keep: versions to keep.
    detector, embed: for landmarks (None: the built-in one) and identity. Goes on where an earlier call with the same
    arguments was stopped or killed. Once it is decided, records alone stay in `work` (`RECORDS`), and the new bundle
    where it was not installed.
    Raises InputFileError (too few faces, all of one person, no weights), ConfigError (`work` is of another run),
    GateFailedError with the reasons when the new bundle is not better: nothing is installed then; and as `make_targets`,
    `finetune`, `export_bundle`, `install_version`.
    """
    with file_lock(work / ".lock", timeout_s=_WAIT_S):  # a child that outlived its watcher may still be at it
        job = open_job(
            bundle,
            faces,
            work,
            config or ReadaptConfig(),
            weights=weights,
            real=real,
            camera=camera,
            show=show,
            tell=tell,
        )
        return _run(job, faces, keep, detector, embed)


def _run(
    job: Job, faces: Path, keep: int | None, detector: Detects | None, embed: Embeds | None
) -> ReadaptReport:
    report_path = job.work / GATE
    notes: tuple[str, ...] = ()
    if not report_path.is_file():
        split = _split(job, faces)
        start = _train(job, split)
        notes = _export(job, start, split)
        job.tell("comparing the new bundle with the old one")
        report = _judge(job, split, detector, embed)
        write_json(report_path, report.to_json())
    report = GateReport.from_json(read_json(report_path))
    if report.reasons:
        leave_records(job.work)
    report.raise_if_refused()
    if job.site is None:
        leave_records(job.work, also=[job.bundle.name])
        return ReadaptReport(bundle=job.bundle, installed=None, gate=report, notes=notes)
    installed = _install(job, job.site, keep)
    leave_records(job.work)
    return ReadaptReport(bundle=installed, installed=installed, gate=report, notes=notes)


def _split(job: Job, faces: Path) -> Path:
    """Copy the faces of the camera into `work`/split/train and /held-out; no person is in both."""
    target = job.work / "split"
    if target.is_dir():
        return target
    if faces.is_file():
        packed, faces = faces, job.work / "unpacked"
        if not faces.is_dir():
            unpack_faces(packed, faces)
    config, side = job.config, job.parent.manifest.restorer.side
    with atomic_folder(target) as folder:
        folder.chmod(PRIVATE)
        seen = folder / "seen"
        taken = take_faces(faces, seen, config.newest)
        fit, unfit = fit_faces(seen, side) if taken else ([], Counter())
        refuse_few(faces, len(fit), unfit, config.least_faces)
        train, held = split_people(
            seen,
            fit,
            share=config.held_out,
            most=config.most_held_out,
            least_people=config.least_people,
            seed=config.seed,
            called=faces,
        )
        for name, chosen in (("train", train), ("held-out", held)):
            place_faces(seen, folder / name, chosen)
        shutil.rmtree(seen)
        note_faces(job.work, folder)
    return target


def _train(job: Job, split: Path) -> Path:
    """Targets, then fine-tuning from the parent's weights; returns the run folder."""
    faces, targets, run = split / "train", job.work / "targets", job.work / "run"
    job.tell("drawing targets")
    make_targets(faces, targets, _targets_config(job), show=job.show)
    settings = _finetune_config(job)
    job.tell("fine-tuning")
    finetune(faces, targets, run, settings, real=job.real, cameras=_cameras(job), show=job.show)
    return run


def _targets_config(job: Job) -> TargetsConfig:
    config = job.config
    return TargetsConfig(
        restorer=str(job.weights),
        prior=config.prior,
        sampler=dataclasses.replace(LIGHT_TOUCH, fast_steps=config.calls),
        qa=config.qa,
        batch=config.batch,
        seed=config.seed,
        device=config.device,
    )


def _finetune_config(job: Job) -> FinetuneConfig:
    config = job.config
    settings = FinetuneConfig(
        restorer=str(job.weights),
        prior=config.prior,
        batch=config.batch,
        replay=config.replay,
        loop=LoopConfig(save_every=config.save_every, evaluate_every=config.steps, minutes=config.minutes),
        seed=config.seed,
        device=config.device,
    )
    lr_end = min(config.lr, settings.training.lr_end)
    training = dataclasses.replace(settings.training, steps=config.steps, lr=config.lr, lr_end=lr_end)
    return dataclasses.replace(settings, training=training)


def _export(job: Job, run: Path, split: Path) -> tuple[str, ...]:
    """The new bundle, with the engines of the old one that can be built here; returns what was left out."""
    requests, notes = _requests(job.parent)
    if job.bundle.is_dir():
        return notes
    job.tell(f"exporting {', '.join(request.name for request in requests)}")
    config = job.config
    options = ExportOptions(
        gate=GateConfig(max_drop_db=config.max_drop_db),
        gate_faces=split / "held-out",
        calibration=CalibrationConfig(seed=config.seed, require_faces=config.require_faces),
        store_faces=False,
    )
    lineage = {
        "parent": sha256_file(job.parent.path / MANIFEST),
        "run_id": job.run_id,
        "prior": config.prior,
        **({"camera": job.camera} if job.camera else {}),
        CAMERAS: lineage_text([*_cameras(job), _own_camera(job, split)]),
    }
    export_bundle(
        load_any_restorer(run),
        job.bundle,
        formats=requests,
        side=job.parent.manifest.restorer.side,
        calibration=split / "train",
        lineage=lineage,
        options=options,
    )
    return notes


def _cameras(job: Job) -> tuple[CameraModel, ...]:
    return earlier_cameras(job.parent, job.real, job.work, seed=job.config.seed)


def _own_camera(job: Job, split: Path) -> CameraModel:
    """The camera as its faces show it, for those who come after."""
    side = job.parent.manifest.restorer.side
    pairs = load_pairs(split / "train", job.work / "targets", side, minimum=1)
    return estimate_camera(pairs.lq, pairs.truth, seed=job.config.seed).model


def _requests(parent: Bundle) -> tuple[tuple[EngineRequest, ...], tuple[str, ...]]:
    """The engines of the parent that can be built here, and a note for each that cannot."""
    requests, notes = [], []
    for entry in parent.manifest.engines:
        package = module_name(entry.format) if entry.format.startswith("tensorrt") else entry.format
        if importlib.util.find_spec(package) is None:
            notes.append(f"{entry.name} is left out: {package} is not installed here")
        else:
            requests.append(EngineRequest(format=entry.format, precision=entry.precision))
    if not requests:
        msg = f"None of the engines of {parent.path} can be built here: {'; '.join(notes) or 'it has none'}."
        raise BackendUnavailableError(msg)
    return tuple(dict.fromkeys(requests)), tuple(notes)


def _judge(job: Job, split: Path, detector: Detects | None, embed: Embeds | None) -> GateReport:
    side = job.parent.manifest.restorer.side
    lq = load_faces(split / "held-out", side, minimum=1, show=False).images
    clean = load_faces(job.real, side, minimum=1, show=False)
    count = min(_SKILL_FACES, len(clean))
    bad, truth = degrading_source(clean, {"classic": 1.0}, count, job.config.seed + 29)(0, slice(None))
    still = clean.images[:count]
    seed = job.config.seed + 31
    seen = [degrade_all(still, model, seed=seed + number) for number, model in enumerate(_cameras(job))]
    outputs = []
    for path in (job.parent.path, job.bundle):
        with open_bundle_engine(path, threads=1) as engine:
            outputs.append(
                Outputs(
                    camera=infer_all(engine, lq, batch=8),
                    skill=infer_all(engine, bad, batch=8),
                    earlier=tuple(infer_all(engine, images, batch=8) for images in seen),
                )
            )
    with ExitStack() as stack:
        detects = detector or stack.enter_context(FaceDetector(threads=1))
        return judge(
            *outputs,
            lq=lq,
            truth=truth,
            clean=still,
            limits=job.config.limits,
            detector=detects,
            embed=embed,
        )


def _install(job: Job, site: Path, keep: int | None) -> Path:
    """Make it the current version, unless an earlier call did: it may have been left again since."""
    record = job.work / LINEAGE
    if not record.is_file():
        job.tell(f"installing into {site}")
        installed = install_once(site, job.bundle, keep=keep)
        manifest = job.bundle / MANIFEST
        lineage = dict(read_bundle(job.bundle).manifest.lineage)
        write_json(record, {"installed": installed.name, "sha256": sha256_file(manifest), "lineage": lineage})
    digest = read_json(record)["sha256"]
    for version in history(site):
        if version.manifest_sha256 == digest:
            return version.path
    msg = f"What {job.work} made is no longer among the versions of {site}. Choose another work folder."
    raise ConfigError(msg)


__all__ = ["GATE", "LINEAGE", "STATE", "ReadaptConfig", "ReadaptReport", "Tell", "readapt"]
