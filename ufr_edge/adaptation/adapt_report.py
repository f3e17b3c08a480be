"""The report of an adaptation: figures, pictures, how the targets were chosen and judged, and how training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.choose import HEAD
from ufr_edge.adaptation.pictures import strip
from ufr_edge.adaptation.qa import worst
from ufr_edge.adaptation.report import Section, curve_uri, figures_table, picture_uri, write_report
from ufr_edge.adaptation.targets import CHOICE, TargetsReport, read_index
from ufr_edge.adaptation.training import read_log
from ufr_edge.files import read_json
from ufr_edge.restorers.checkpoints import read_header
from ufr_edge.restorers.files import WEIGHTS_NAME
from ufr_edge.runtime.images import write_image

Images = NDArray[np.uint8]
SHOWN = 12
_SCORES = ("drift", "drift_input", "colour", "landmark_px512", "noise", "noise_chroma", "clipped", "identity")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Columns of faces by label, uint8 (N, S, S, 3): training faces, those measured, and the worst targets (or none)."""

    training: Mapping[str, Images]
    measured: Mapping[str, Images]
    worst: Mapping[str, Images] = field(default_factory=dict)


def write_adapt_report(
    out: Path,
    figures: Mapping[str, Mapping[str, float]],
    pictures: Pictures,
    made: TargetsReport,
    curve: Section,
    *,
    logged: Sequence[str],
    count: int,
    known: bool,
    unseen: bool,
) -> None:
    """Write `out`/report.html and the strips. `curve`: the dial's. `count`: of the faces measured. `known`: against the
    truth; `unseen`: on other faces."""
    write_image(out / "strip-training.jpg", strip(pictures.training))
    write_image(out / "strip-held-out.jpg", strip(pictures.measured))
    head, rows = figures_table(figures)
    measured = "Faces kept out of training" if unseen else "Faces measured on (the training faces: no --test)"
    apart = "None of them has the pixels of a training face." if unseen else ""
    sections = [
        Section(title="Figures", text=_measured_on(count, known=known), head=head, rows=rows),
        Section(title=measured, text=apart, picture=picture_uri(strip(pictures.measured))),
        Section(
            title="Training faces and their pseudo targets", picture=picture_uri(strip(pictures.training))
        ),
        *target_sections(made, pictures.worst),
        curve,
        Section(title="Training", text=_trained(out), picture=curve_uri(read_log(out), logged)),
        licence_section(out / WEIGHTS_NAME),
    ]
    lead = "A restorer adapted to one camera, from its unlabelled faces alone."
    write_report(out / "report.html", title="Adaptation report", lead=lead, sections=sections)


def _trained(out: Path) -> str:
    """How many of the steps were done: fewer where the time was limited."""
    done, wanted = read_header(out / WEIGHTS_NAME)["steps"], read_json(out / "config.json")["training"]["steps"]
    early = "" if int(done) >= wanted else " It was stopped early (--minutes): the same command goes on."
    return f"{done} of {wanted} steps.{early}"


def licence_section(weights: Path) -> Section:
    """What adapted weights learned from, and under which licences, as their header says."""
    meta = read_header(weights)
    rows = [["restorer", "the weights this started from", meta.get("weights_licence", "as their source says")]]
    rows += [[kind, meta[kind], meta.get(f"{kind}_licence", "")] for kind in ("prior", "teacher") if kind in meta]
    text = "All of them hold for the adapted weights; bundles made of them say so too."
    return Section(title="Licences", text=text, head=["", "", "licence"], rows=rows)


def _measured_on(count: int, *, known: bool) -> str:
    """On what the figures are, and what they are (paper.md section 13, statement 20)."""
    if not known:
        return f"Measured on {count} faces of this camera, without ground truth: there is none."
    return (
        f"Measured on {count} faces of this camera, against the known truth. PSNR and SSIM are plain: RGB, no border cut "
        f"off, no mean/std matching. The Frechet distance is on the prior's own features (it is not FID), from these "
        f"{count} faces to their {count} clean versions: compare it at equal counts only."
    )


def target_sections(made: TargetsReport, shown: Mapping[str, Images]) -> list[Section]:
    """How the targets were made and judged, the worst with their scores; `shown`: pictures of the worst, or none."""
    entries = list(read_index(made.folder).values())
    head, rows = worst_table(entries)
    text = (
        ", ".join(f"{count} {verdict}" for verdict, count in made.verdicts.items())
        + ". A target counts less in training, or is rejected, where a score is beyond its limit; those of least weight "
        "come first here. Levels are 8-bit ones; points are in pixels at 512."
    )
    sections = [Section(title="Targets: the worst and their scores", text=text, head=head, rows=rows)]
    if shown:
        sections.append(Section(title="Targets that count less, or not at all", picture=picture_uri(strip(shown))))
    if made.choice is not None:
        saved = read_json(made.folder / CHOICE) if (made.folder / CHOICE).exists() else {"rungs": []}
        table = [_rung_row(rung) for rung in saved["rungs"]]
        sections.append(Section(title="How the sampler was chosen", text=made.choice.reason, head=HEAD, rows=table))
    return sections


def worst_table(entries: Sequence[Mapping[str, Any]], count: int = SHOWN) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows) of the targets of least weight."""
    chosen = worst(entries, count)
    names = [name for name in _SCORES if any(name in entry.get("scores", {}) for entry in chosen)]
    rows = [
        [
            str(entry["face"]),
            *(_cell(entry.get("scores", {}).get(name)) for name in names),
            f"{entry.get('weight', 1.0):.2f}",
            "; ".join(entry.get("reasons", ())),
        ]
        for entry in chosen
    ]
    return ["face", *names, "weight", "why"], rows


def _rung_row(rung: Mapping[str, Any]) -> list[str]:
    s = rung["sampler"]
    points = "" if rung["landmarks"] is None else f"{rung['landmarks']:.1f}"
    tail = "" if s["tail_filter_n"] is None else f", {s['tail_filter_n']} to the end"
    values = [f"{rung['drift']:.2f}", points, *(f"{rung[name]:.2f}" for name in ("noise", "noise_chroma", "detail"))]
    agrees = rung["colours_stay"] and rung["points_stay"]
    return [
        f"{s['start']} / {s['hold_until']}",
        f"{s['filter_n']}{tail}",
        *values,
        "yes" if agrees else "no",
        "yes" if rung["unclean"] == 0 else "no",
    ]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
