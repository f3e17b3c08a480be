"""The dial's curve on a few faces: what each position costs in fidelity and gives in realism."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.dial import POSITIONS, curve_png, dial
from ufr_edge.adaptation.evaluate import measure
from ufr_edge.adaptation.faces import load_faces
from ufr_edge.adaptation.finetune import load_pairs
from ufr_edge.adaptation.pictures import strip
from ufr_edge.adaptation.report import Section, figures_table, picture_uri, write_report
from ufr_edge.adaptation.targets import Atelier, TargetsConfig
from ufr_edge.files import write_json
from ufr_edge.priors.features import load_features
from ufr_edge.progress import progress_bar

Images = NDArray[np.uint8]
_SHOWN = 4


def sweep_targets(
    faces: Path,
    out: Path,
    config: TargetsConfig,
    *,
    truth: Path | None = None,
    positions: Sequence[float] = POSITIONS,
    count: int = 12,
    show: bool = True,
) -> list[dict[str, float]]:
    """Make the targets of `count` faces at each position of the dial and measure them.

    Writes `out`/sweep.json, sweep.png and sweep.html; returns a row of figures for each position, those of the
    restorer's own output left to the report. Against `truth` (matched by stem) where it is known. Raises InputFileError.
    """
    atelier = Atelier(config)
    if truth is None:
        lq, known = load_faces(faces, atelier.side, minimum=1).images, None
    else:
        pairs = load_pairs(faces, truth, atelier.side, minimum=1)
        lq, known = pairs.lq, pairs.truth
    at = np.linspace(0, len(lq) - 1, min(count, len(lq))).round().astype(np.intp)
    lq, known = lq[at], None if known is None else known[at]
    restored = atelier.restore(lq)
    names = [f"sweep-{i}" for i in range(len(lq))]
    stacks: dict[str, Images] = {"restored": restored}
    with progress_bar("dial", len(positions), show=show) as advance:
        for position in positions:
            sampler = dial(position).sampler(config.sampler)
            stacks[f"{position:g}"] = atelier.sample(restored, names, sampler)
            advance()
    figures = measure(stacks, lq, known, load_features(config.prior, atelier.device))
    rows = [{"fidelity": position, **figures[f"{position:g}"]} for position in positions]
    write_json(out / "sweep.json", {"rows": rows, "restored": figures["restored"], "faces": len(lq)})
    columns = {"input": lq, **stacks, **({} if known is None else {"truth": known})}
    _write(out, rows, figures, {name: stack[:_SHOWN] for name, stack in columns.items()})
    return rows


def sweep_section(rows: Sequence[Mapping[str, float]], picture: Path | None = None) -> Section:
    """The dial's curve as a part of a report."""
    png = curve_png(rows, picture)
    text = "Targets at positions of the dial from realism (0) to fidelity (1): --fidelity takes one of them."
    return Section(title="The dial", text=text, picture="data:image/png;base64," + base64.b64encode(png).decode())


def _write(
    out: Path, rows: Sequence[Mapping[str, float]], figures: Mapping[str, Mapping[str, float]], shown: Mapping[str, Images]
) -> None:
    head, table = figures_table(figures)
    sections = [
        sweep_section(rows, out / "sweep.png"),
        Section(title="Figures", text="Of the targets, and of the restorer's output they are made from.", head=head, rows=table),
        Section(title="Faces", picture=picture_uri(strip(shown))),
    ]
    write_report(out / "sweep.html", title="From realism to fidelity", lead="One dial, on faces of this camera.", sections=sections)
