"""Adapting a bundle again from a camera's own faces: a new version with lineage, or the reasons why not.

Each stage leaves its result in the work folder, whole or not at all, and is left out when it is there; so the same call
goes on wherever an earlier one was killed. What is installed changes last, in one step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.camera_pairs import CameraModel, degrade_all, estimate_camera
from ufr_edge.adaptation.earlier_cameras import CAMERAS, earlier_cameras, lineage_text
from ufr_edge.adaptation.faces import load_faces
from ufr_edge.adaptation.finetune import FinetuneConfig, finetune, load_pairs
from ufr_edge.adaptation.loop import LoopConfig
from ufr_edge.adaptation.qa import QaConfig
from ufr_edge.adaptation.readapt_faces import (
    fit_faces,
    note_faces,
    place_faces,
    refuse_few,
    split_people,
    take_faces,
)
from ufr_edge.adaptation.readapt_gate import Embeds, GateReport, Outputs, ReadaptLimits, judge
from ufr_edge.adaptation.sources import degrading_source
from ufr_edge.adaptation.targets import TargetsConfig, make_targets
from ufr_edge.calibration.frames import CalibrationConfig
from ufr_edge.calibration.gate import GateConfig
from ufr_edge.config import to_json
from ufr_edge.demo.scene import FACES as SHIPPED_FACES
from ufr_edge.errors import BackendUnavailableError, ConfigError
from ufr_edge.export.bundle_export import ExportOptions, export_bundle
from ufr_edge.export.requests import EngineRequest
from ufr_edge.export.stored_weights import bundle_weights
from ufr_edge.export.tensorrt_export import module_name
from ufr_edge.files import atomic_folder, disk_errors, read_json, sha256_file, write_json
from ufr_edge.priors.sampler import LIGHT_TOUCH
from ufr_edge.restorers.loading import find_restorer, load_any_restorer
from ufr_edge.runtime.bundle import Bundle, open_bundle_engine, read_bundle
from ufr_edge.runtime.faces.detect import Detects, FaceDetector
from ufr_edge.runtime.faces_archive import unpack_faces
from ufr_edge.runtime.live.onsite import leave_records
from ufr_edge.runtime.lock import file_lock
from ufr_edge.runtime.manifest import MANIFEST
from ufr_edge.runtime.pipeline import infer_all
from ufr_edge.runtime.versions import history, install_once

Images = NDArray[np.uint8]
Tell = Callable[[str], None]
STATE = "readapt.json"
GATE = "gate.json"
LINEAGE = "lineage.json"
_PRIVATE = 0o700
_SKILL_FACES = 16
_WAIT_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class ReadaptConfig:
    """Settings for few faces and a small machine.

    replay: share of each batch that is clean faces degraded as in the first training, or as by the last 3 cameras of the
    bundle's lineage, so that old skill is kept. calls: of the prior per target (`fast_steps`), of 100 in the full chain; the
    figures of docs/quality.md were made with as many.
    held_out: share of the people (tracks) kept out of training, for the gate; at most `most_held_out` faces.
    least_faces, least_people: below which nothing is done. minutes: of training in one sitting. max_drop_db: of int8
    engines. newest: take so many of the last faces by name, None: all. require_faces: refuse pictures in which no face
    is found.
    """

    prior: str = "prior-256"
    steps: int = 150
    lr: float = 2e-4
    batch: int = 8
    replay: float = 0.25
    calls: int = 20
    minutes: float | None = None
    save_every: int = 10
    held_out: float = 0.2
    most_held_out: int = 32
    newest: int | None = None
    least_faces: int = 24
    least_people: int = 2
    max_drop_db: float = 0.3
    limits: ReadaptLimits = field(default_factory=ReadaptLimits)
    qa: QaConfig = field(default_factory=QaConfig)
    require_faces: bool = True
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be."""
        if not 0 < self.held_out < 1 or self.most_held_out < 1 or self.least_people < 2:
            msg = "Re-adaptation holds out a share above 0 and below 1, of 2 people or more."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class ReadaptReport:
    """bundle: the new one; in the work folder, or the version it became. installed: that version, None where there is no
    folder of versions. gate: the figures. notes: what was left out, in words."""

    bundle: Path
    installed: Path | None
    gate: GateReport
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One re-adaptation. site: the folder of versions to install into, None for a single bundle."""

    parent: Bundle
    weights: Path
    real: Path
    work: Path
    site: Path | None
    config: ReadaptConfig
    camera: str
    run_id: str
    show: bool
    tell: Tell

    @property
    def bundle(self) -> Path:
        """Where the new bundle is written."""
        return self.work / f"{self.parent.manifest.name}.ufr"


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
        job = _open_job(bundle, faces, work, config or ReadaptConfig(), weights, real, camera, show, tell)
        return _run(job, faces, keep, detector, embed)


def _run(
    job: _Job, faces: Path, keep: int | None, detector: Detects | None, embed: Embeds | None
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


def _open_job(
    bundle: Path,
    faces: Path,
    work: Path,
    config: ReadaptConfig,
    weights: str | Path | None,
    real: Path | None,
    camera: str,
    show: bool,
    tell: Tell,
) -> _Job:
    """Read the state of an earlier call, or begin one: which parent it started from is decided once."""
    parent = read_bundle(bundle)
    site = None if parent.path == bundle or bundle.is_file() else bundle
    asked: dict[str, Any] = {"faces": str(faces.absolute()), "camera": camera, "config": to_json(config)}
    asked = {**asked, "weights": None if weights is None else sha256_file(find_restorer(weights))}
    state = _read_state(work, asked)
    if state is None:
        parent.check()
        now = datetime.now(timezone.utc)
        digest = hashlib.sha256(f"{parent.path} {faces} {now}".encode()).hexdigest()[:8]
        state = {
            "asked": asked,
            "parent": str(parent.path),
            "parent_sha256": sha256_file(parent.path / MANIFEST),
            "run_id": f"{now:%Y%m%dT%H%M%S}-{digest}",
        }
        with disk_errors(work):
            work.mkdir(parents=True, exist_ok=True)
            work.chmod(_PRIVATE)
        write_json(work / STATE, state)
    elif Path(state["parent"]) != parent.path:
        parent = read_bundle(Path(state["parent"]))
    if sha256_file(parent.path / MANIFEST) != state["parent_sha256"]:
        msg = f"{parent.path} is not the bundle that {work} was begun from. Choose another work folder."
        raise ConfigError(msg)
    return _Job(
        parent=parent,
        weights=bundle_weights(parent) if weights is None else find_restorer(weights),
        real=SHIPPED_FACES / "clean" if real is None else real,
        work=work,
        site=site,
        config=config,
        camera=camera or parent.manifest.lineage.get("camera", ""),
        run_id=str(state["run_id"]),
        show=show,
        tell=tell,
    )


def _read_state(work: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    if not (work / STATE).is_file():
        if work.is_dir() and any(path for path in work.iterdir() if not path.name.startswith(".")):
            msg = f"{work} holds files but no {STATE}. Choose another work folder."
            raise ConfigError(msg)
        return None
    state: dict[str, Any] = read_json(work / STATE)
    if state.get("asked") != asked:
        msg = (
            f"{work} holds a re-adaptation to other faces or with other settings. Choose another work folder."
        )
        raise ConfigError(msg)
    return state


def _split(job: _Job, faces: Path) -> Path:
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
        folder.chmod(_PRIVATE)
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


def _train(job: _Job, split: Path) -> Path:
    """Targets, then fine-tuning from the parent's weights; returns the run folder."""
    config, run = job.config, job.work / "run"
    start = str(job.weights)
    job.tell("drawing targets")
    sampler = dataclasses.replace(LIGHT_TOUCH, fast_steps=config.calls)
    targets = TargetsConfig(
        restorer=start,
        prior=config.prior,
        sampler=sampler,
        qa=config.qa,
        batch=config.batch,
        seed=config.seed,
        device=config.device,
    )
    make_targets(split / "train", job.work / "targets", targets, show=job.show)
    settings = FinetuneConfig(restorer=start, prior=config.prior, batch=config.batch, replay=config.replay)
    training = dataclasses.replace(
        settings.training, steps=config.steps, lr=config.lr, lr_end=min(config.lr, settings.training.lr_end)
    )
    loop = LoopConfig(save_every=config.save_every, evaluate_every=config.steps, minutes=config.minutes)
    settings = dataclasses.replace(
        settings, training=training, loop=loop, seed=config.seed, device=config.device
    )
    job.tell("fine-tuning")
    cameras = _cameras(job)
    targets_of = job.work / "targets"
    finetune(split / "train", targets_of, run, settings, real=job.real, cameras=cameras, show=job.show)
    return run


def _export(job: _Job, run: Path, split: Path) -> tuple[str, ...]:
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


def _cameras(job: _Job) -> tuple[CameraModel, ...]:
    return earlier_cameras(job.parent, job.real, job.work, seed=job.config.seed)


def _own_camera(job: _Job, split: Path) -> CameraModel:
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


def _judge(job: _Job, split: Path, detector: Detects | None, embed: Embeds | None) -> GateReport:
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


def _install(job: _Job, site: Path, keep: int | None) -> Path:
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
