"""The whole adaptation: targets, fine-tuning, an evaluation and a report (paper.md section 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.evaluate import measure
from ufr_edge.adaptation.faces import FaceSet, load_faces
from ufr_edge.adaptation.finetune import FinetuneConfig, finetune, load_pairs
from ufr_edge.adaptation.pictures import strip
from ufr_edge.adaptation.report import Section, curve_uri, figures_table, picture_uri, write_report
from ufr_edge.adaptation.restorer_task import restore_batch
from ufr_edge.adaptation.targets import TargetsConfig, make_targets
from ufr_edge.adaptation.training import pick_device, read_log
from ufr_edge.errors import ConfigError
from ufr_edge.files import write_json
from ufr_edge.priors.features import load_features
from ufr_edge.restorers.files import WEIGHTS_NAME
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.runtime.images import write_image

Images = NDArray[np.uint8]
LOGGED = ("l1", "prior_features", "adversarial", "discriminator", "psnr")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Settings of the two stages. The restorer and the prior of `targets` are used in both."""

    targets: TargetsConfig = field(default_factory=TargetsConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    shown: int = 6

    def aligned(self) -> AdaptConfig:
        """Return the config with fine-tuning starting from the restorer that made the targets."""
        targets = self.targets
        settings = dataclasses.replace(
            self.finetune, restorer=targets.restorer, prior=targets.prior, device=targets.device
        )
        return dataclasses.replace(self, finetune=settings)


@dataclass(frozen=True, kw_only=True)
class AdaptReport:
    """Where the results lie, and the figures of "base" and "adapted" (by name; against the truth where given)."""

    weights: Path
    report: Path
    figures: Mapping[str, Mapping[str, float]]


def adapt(
    faces: Path,
    out: Path,
    config: AdaptConfig,
    *,
    real: Path | None = None,
    test_faces: Path | None = None,
    truth: Path | None = None,
    overwrite: bool = False,
    show: bool = True,
) -> AdaptReport:
    """Adapt a restorer to the low-quality faces of one camera.

    Writes `out`/targets, `out`/weights.safetensors, `out`/report.html, `out`/figures.json. `real`: unrelated
    clean faces for the adversarial term. `test_faces`: faces of the camera kept out of training, to measure
    on (default: the training faces); `truth`: their clean versions, matched by stem, when they are known.
    Goes on where an earlier call with the same settings stopped. Raises ConfigError for `truth` alone.
    """
    if truth and not test_faces:
        msg = "--truth gives the clean versions of --test: give --test FOLDER too."
        raise ConfigError(msg)
    config = config.aligned()
    side = load_any_restorer(config.targets.restorer).side
    held = load_pairs(test_faces, truth, side, minimum=1) if test_faces and truth else None
    make_targets(faces, out / "targets", config.targets, overwrite=overwrite, show=show)
    weights = finetune(
        faces, out / "targets", out, config.finetune, real=real, held_out=held, overwrite=overwrite, show=show
    )
    device = pick_device(config.targets.device)
    base, adapted = (load_any_restorer(source).model.to(device) for source in (config.targets.restorer, weights))
    lq = held.lq if held else load_faces(test_faces or faces, side, limit=64, minimum=1).images
    restored = {"base": restore_batch(base, lq, device), "adapted": restore_batch(adapted, lq, device)}
    features = load_features(config.targets.prior, device)
    figures = measure(restored, lq, held.truth if held else None, features)
    write_json(out / "figures.json", figures)
    training = load_faces(faces, side, limit=config.shown, minimum=1)
    seen = {
        "input": training.images,
        "base": restore_batch(base, training.images, device),
        "target": load_targets(out / "targets", training, side),
        "adapted": restore_batch(adapted, training.images, device),
    }
    kept = {"input": lq[: config.shown], **{k: v[: config.shown] for k, v in restored.items()}}
    if held:
        kept["truth"] = held.truth[: config.shown]
    write_image(out / "strip-training.jpg", strip(seen))
    write_image(out / "strip-held-out.jpg", strip(kept))
    _write_report(out, figures, seen, kept, known=held is not None, unseen=test_faces is not None)
    return AdaptReport(weights=out / WEIGHTS_NAME, report=out / "report.html", figures=figures)


def load_targets(folder: Path, faces: FaceSet, side: int) -> Images:
    """Return the targets of `faces`, uint8 (N, S, S, 3), in their order."""
    found = load_faces(folder, side, minimum=1)
    by_stem = {Path(name).stem: i for i, name in enumerate(found.names)}
    return found.images[[by_stem[Path(name).stem] for name in faces.names]]


def _write_report(
    out: Path,
    figures: Mapping[str, Mapping[str, float]],
    seen: Mapping[str, Images],
    kept: Mapping[str, Images],
    *,
    known: bool,
    unseen: bool,
) -> None:
    head, rows = figures_table(figures)
    measured = "Faces kept out of training" if unseen else "Faces measured on (the training faces: no --test)"
    how = "against the known truth" if known else "without ground truth: there is none"
    sections = [
        Section(title="Figures", text=f"Measured on faces of this camera, {how}.", head=head, rows=rows),
        Section(title=measured, picture=picture_uri(strip(kept))),
        Section(title="Training faces and their pseudo targets", picture=picture_uri(strip(seen))),
        Section(title="Training", picture=curve_uri(read_log(out), LOGGED)),
    ]
    lead = "A restorer adapted to one camera, from its unlabelled faces alone."
    write_report(out / "report.html", title="Adaptation report", lead=lead, sections=sections)
