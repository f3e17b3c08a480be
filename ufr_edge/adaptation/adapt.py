"""The whole adaptation: faces made ready, targets, fine-tuning, an evaluation and a report (paper.md section 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.adapt_report import Pictures, write_adapt_report
from ufr_edge.adaptation.dial import dial
from ufr_edge.adaptation.evaluate import measure
from ufr_edge.adaptation.faces import FaceSet, load_faces, skipped_lines
from ufr_edge.adaptation.finetune import FinetuneConfig, finetune
from ufr_edge.adaptation.forecast import forecast
from ufr_edge.adaptation.intake import check_apart, check_not_replaced, take_in
from ufr_edge.adaptation.pairing import UnseenReader, load_pairs
from ufr_edge.adaptation.qa import worst
from ufr_edge.adaptation.report import Section
from ufr_edge.adaptation.restorer_task import HeldOut, restore_batch
from ufr_edge.adaptation.sweep import (
    DRAWN,
    REAL_COUNT,
    CurveFaces,
    Drawing,
    curve_calls,
    curve_drawn,
    curve_wanted,
    draw_curve,
    not_drawn,
)
from ufr_edge.adaptation.targets import (
    TargetsConfig,
    TargetsReport,
    check_ours,
    make_targets,
    open_detector,
    read_index,
)
from ufr_edge.adaptation.terms import check_objective, check_trainable, lpips_on, task_kind
from ufr_edge.adaptation.training import pick_device, saved_step
from ufr_edge.adaptation.workers import Workers
from ufr_edge.config import save_config
from ufr_edge.errors import ConfigError
from ufr_edge.files import write_json
from ufr_edge.priors.features import PriorFeatures, find_features
from ufr_edge.restorers.loading import WEIGHTS_NAME, load_any_restorer
from ufr_edge.runtime.images import list_images

Images = NDArray[np.uint8]
Tell = Callable[[str], None]
LOGGED = ("l1", "prior_features", "lpips", "adversarial", "discriminator", "features", "codes", "psnr")
SETTINGS = "adapt.json"
MEASURED = 64
"""Training faces that figures are taken of where no others are given."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Settings of the two stages. The restorer and the prior of `targets` are used in both.

    `align`: pictures that are no aligned faces yet are aligned, or named and left out (see `intake`). `curve`: whether
    the dial's curve is drawn in the report; "auto": where it is small beside the targets (see `sweep`).
    """

    targets: TargetsConfig = field(default_factory=TargetsConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    align: bool = True
    shown: int = 6
    curve: Drawing = "auto"

    def aligned(self) -> AdaptConfig:
        """Return the config with fine-tuning starting from the restorer that made the targets."""
        targets = self.targets
        settings = dataclasses.replace(
            self.finetune, restorer=targets.restorer, prior=targets.prior, device=targets.device
        )
        return dataclasses.replace(self, finetune=settings)

    def at_fidelity(self, fidelity: float) -> AdaptConfig:
        """Return the config with the sampler and the loss weights of a position of the dial. Raises ConfigError."""
        if self.targets.auto:
            msg = "The dial sets the start that --sampler auto would choose: give one of the two."
            raise ConfigError(msg)
        settings = dial(fidelity)
        targets = dataclasses.replace(self.targets, sampler=settings.sampler(self.targets.sampler))
        training = self.finetune.training
        training = dataclasses.replace(training, losses=settings.losses(training.losses))
        return dataclasses.replace(
            self, targets=targets, finetune=dataclasses.replace(self.finetune, training=training)
        )


@dataclass(frozen=True, kw_only=True)
class AdaptReport:
    """Where the results lie, and the figures of "base" and "adapted" (by name; against the truth where given).

    `faces`: the folder of aligned faces that was learned from, the given one where all of it was fit.
    """

    weights: Path
    report: Path
    faces: Path
    figures: Mapping[str, Mapping[str, float]]
    targets: TargetsReport


def adapt(
    faces: Path,
    out: Path,
    config: AdaptConfig,
    *,
    real: Path | None = None,
    test_faces: Path | None = None,
    truth: Path | None = None,
    overwrite: bool = False,
    tell: Tell | None = None,
    show: bool = True,
) -> AdaptReport:
    """Adapt a restorer to the low-quality faces of one camera.

    Writes `out`/targets, `out`/weights.safetensors, `out`/report.html, `out`/figures.json, `out`/adapt.json (all settings, for
    `--config`), `out`/dial.json and its picture where the dial's curve is drawn, and `out`/faces where pictures had to be
    aligned or left out. `real`: unrelated clean faces for the adversarial term. `test_faces`: faces of the
    camera kept out of training, to measure on (default: the training faces); those whose pixels are a training face's
    are left out of the measure and told, and so are pictures that are no aligned squares: these are not aligned.
    `truth`: their clean versions, matched by stem, when they are known. `tell` is told what was found and, before
    anything long starts, how long it will take. Goes on where an earlier call with the same settings stopped; processes
    that `accelerate launch` started share the work. Before the first target is drawn raises ConfigError for `truth`
    alone, for results that would take the place of a given folder and as `check_trainable`, OutputError where
    `out`/faces or `out`/targets is not ours, InputFileError with fewer than 8 faces or none left to measure on.
    """
    if truth and not test_faces:
        msg = "--truth gives the clean versions of --test: give --test FOLDER too."
        raise ConfigError(msg)
    for given in (faces, real, test_faces, truth):
        _check_kept(given, out, align=config.align)
    check_ours(out / "targets")
    config, tell = config.aligned(), tell or _silent
    workers = Workers(config.targets.device)
    tell = tell if workers.main else _silent
    start = load_any_restorer(config.targets.restorer)
    check_objective(start.model, config.finetune)  # before the hours that targets take
    side = start.side
    check_trainable(config.finetune, real, side, workers)
    _to_measure_on(test_faces, truth, side, _silent)  # what is unfit altogether is found before faces are looked at
    with workers.main_first():
        folder = _ready(faces, out, config, side, tell, show=show and workers.main)
    held, test = _to_measure_on(test_faces, truth, side, tell, trained=folder)
    job = _Job(folder=folder, out=out, config=config, side=side, real=real, test=test, held=held)
    if tell is not _silent:
        _tell_forecast(job, tell, workers.count)
    made = make_targets(folder, out / "targets", config.targets, real=real, overwrite=overwrite, tell=tell, show=show)
    _tell_targets(made, tell)
    weights = finetune(
        folder,
        out / "targets",
        out,
        config.finetune,
        real=real,
        held_out=held,
        overwrite=overwrite,
        tell=tell,
        show=show,
    )
    figures = _measure_and_report(job, weights, made, show=show) if workers.main else {}
    workers.wait()
    return AdaptReport(weights=weights, report=out / "report.html", faces=folder, figures=figures, targets=made)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is adapted to: `folder` of aligned faces, and what there is beside it.

    `held`: faces to measure on with their truth, or `test`, those without; neither: the training faces.
    """

    folder: Path
    out: Path
    config: AdaptConfig
    side: int
    real: Path | None
    test: FaceSet | None
    held: HeldOut | None

    def shown(self, faces: int) -> int:
        """How many faces there are to draw the dial's curve on, of `faces` in the folder."""
        if self.held:
            return len(self.held.lq)
        return len(self.test) if self.test else min(faces, MEASURED)

    def measured(self) -> Images:
        """The low-quality faces that figures are taken of."""
        if self.held:
            return self.held.lq
        return (self.test or load_faces(self.folder, self.side, limit=MEASURED, minimum=1)).images

    def draws(self, faces: int) -> bool:
        """Whether the dial's curve is drawn where `faces` targets are made."""
        base = self.config.targets.sampler
        return curve_wanted(self.config.curve, base, faces=faces, shown=self.shown(faces))


def _check_kept(given: Path | None, out: Path, *, align: bool) -> None:
    """Raise ConfigError where pictures written into `out` would take the place of those given, or join them."""
    if given is None:
        return
    for folder in (out / DRAWN, *((out / "faces",) if align else ())):
        check_not_replaced(given, folder)
    for written in (out, out / "targets"):
        check_apart(given, written)


def _to_measure_on(
    test_faces: Path | None, truth: Path | None, side: int, tell: Tell, *, trained: Path | None = None
) -> tuple[HeldOut | None, FaceSet | None]:
    """The faces that are not among those of the folder `trained`, with their truth or without; the rest is told."""
    if test_faces is None:
        return None, None
    read = UnseenReader(load_faces(trained, side) if trained else None)
    if truth is not None:
        held = load_pairs(test_faces, truth, side, minimum=1, goal="truth", read=read)
        _tell_all([*held.lines, *read.lines()], tell)
        return held, None
    test, files = load_faces(test_faces, side, limit=MEASURED, minimum=1, read=read), len(list_images(test_faces))
    further = [f"the first {len(test)} faces of {test_faces} are measured"] if files > len(test) + len(test.skipped) else []
    _tell_all([*further, *skipped_lines(test_faces, test.skipped), *read.lines()], tell)
    return None, test


def _tell_all(lines: Sequence[str], tell: Tell) -> None:
    for place, line in enumerate(lines):
        tell(line if place else f"to measure on: {line}")


def _ready(faces: Path, out: Path, config: AdaptConfig, side: int, tell: Tell, *, show: bool) -> Path:
    """The folder of aligned faces to go on with."""
    if not config.align:
        return faces
    with ExitStack() as stack:
        detector, notes = open_detector(stack)
        taken = take_in(faces, out / "faces", side, detector=detector, show=show)
    for line in (*notes, *taken.lines()):
        tell(line)
    return taken.folder


def _tell_forecast(job: _Job, tell: Tell, processes: int) -> None:
    found, config = load_faces(job.folder, job.side), job.config
    wanted = len(set(found.names) - set(read_index(job.out / "targets")))
    steps = max(0, config.finetune.training.steps - saved_step(job.out, kind=task_kind(config.finetune)))
    curve = job.draws(len(found)) and not curve_drawn(job.out)
    if wanted or steps or curve:
        tell(f"{len(found)} faces on {pick_device(config.targets.device)}; timing a few calls and steps ...")
        expected = forecast(
            job.folder,
            found.images,
            config.targets,
            config.finetune,
            wanted=wanted,
            steps=steps,
            real=job.real,
            processes=processes,
            curve_calls=curve_calls(config.targets.sampler, faces=job.shown(len(found))) if curve else 0,
        )
        tell(expected.line())


def _tell_targets(made: TargetsReport, tell: Tell) -> None:
    for line in made.lines():
        tell(line)


def _measure_and_report(
    job: _Job, weights: Path, made: TargetsReport, *, show: bool
) -> Mapping[str, Mapping[str, float]]:
    config, held = job.config, job.held
    save_config(config, job.out / SETTINGS)
    device = pick_device(config.targets.device)
    sources = {"base": config.targets.restorer, "adapted": str(weights)}
    models = {name: load_any_restorer(source).model.to(device) for name, source in sources.items()}
    lq = job.measured()
    restored = {name: restore_batch(model, lq, device) for name, model in models.items()}
    truth = held.truth if held else None
    features = find_features(config.finetune.features_prior or config.targets.prior, device)
    lpips = None if truth is None else lpips_on(config.finetune, device)
    figures = measure(restored, lq, truth, features, lpips=lpips)
    write_json(job.out / "figures.json", figures)
    training = _fit(load_faces(job.folder, job.side, minimum=1), job.out / "targets", config.shown)
    seen = {name: restore_batch(model, training.images, device) for name, model in models.items()}
    write_adapt_report(
        job.out,
        figures,
        _pictures(job, training, seen, {"input": lq, **restored, **({} if truth is None else {"truth": truth})}),
        made,
        _curve(job, made, CurveFaces(lq=lq, truth=truth), restored, features, show=show),
        logged=LOGGED,
        count=len(lq),
        known=truth is not None,
        unseen=held is not None or job.test is not None,
    )
    return figures


def _pictures(
    job: _Job, training: FaceSet, seen: Mapping[str, Images], measured: Mapping[str, Images]
) -> Pictures:
    count, targets = job.config.shown, load_targets(job.out / "targets", training, job.side)
    return Pictures(
        training={"input": training.images, "base": seen["base"], "target": targets, "adapted": seen["adapted"]},
        measured={name: stack[:count] for name, stack in measured.items()},
        worst=_worst(job.folder, job.out / "targets", count, job.side),
    )


def _curve(
    job: _Job,
    made: TargetsReport,
    faces: CurveFaces,
    restored: Mapping[str, Images],
    features: PriorFeatures | None,
    *,
    show: bool,
) -> Section:
    """The dial's curve with base and adapted restorer beside it, or why it was not drawn."""
    if not job.draws(made.total):
        return not_drawn(job.config.targets.sampler, shown=len(faces.lq))
    if job.real is not None and faces.truth is None:
        real = load_faces(job.real, job.side, limit=REAL_COUNT, minimum=1).images
        faces = dataclasses.replace(faces, real=real)
    targets = dataclasses.replace(job.config.targets, sampler=made.sampler)
    return draw_curve(job.out, targets, faces, restored, features, show=show).section(job.out / "dial.png")


def _fit(faces: FaceSet, targets: Path, count: int) -> FaceSet:
    """The first faces that have a target which was not rejected; the first of all when none was kept."""
    index = read_index(targets)
    fit = [i for i, name in enumerate(faces.names) if index.get(name, {}).get("weight", 0) > 0]
    return faces.subset((fit or list(range(len(faces))))[:count])


def _worst(folder: Path, targets: Path, count: int, side: int) -> dict[str, Images]:
    """The targets of least weight beside their inputs; nothing where all count fully."""
    found = load_faces(folder, side, minimum=1)
    entries = [entry for entry in read_index(targets).values() if entry["face"] in set(found.names)]
    names = [entry["face"] for entry in worst(entries, count) if entry.get("weight", 1.0) < 1]
    if not names:
        return {}
    faces = found.subset([found.names.index(name) for name in names])
    return {"input": faces.images, "target": load_targets(targets, faces, side)}


def load_targets(folder: Path, faces: FaceSet, side: int) -> Images:
    """Return the targets of `faces`, uint8 (N, S, S, 3), in their order."""
    found = load_faces(folder, side, minimum=1)
    by_stem = {Path(name).stem: i for i, name in enumerate(found.names)}
    return found.images[[by_stem[Path(name).stem] for name in faces.names]]


def _silent(_: str) -> None:
    return None


__all__ = ["LOGGED", "WEIGHTS_NAME", "AdaptConfig", "AdaptReport", "adapt", "load_targets"]
