"""The dial's curve on a few faces: what each position costs in fidelity and gives in realism."""

from __future__ import annotations

import base64
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.dial import POSITIONS, REAL, curve_axes, curve_png, dial
from ufr_edge.adaptation.evaluate import measure, pooled_stack
from ufr_edge.adaptation.faces import load_faces
from ufr_edge.adaptation.intake import check_apart, check_not_replaced
from ufr_edge.adaptation.pairing import load_pairs
from ufr_edge.adaptation.pictures import strip
from ufr_edge.adaptation.report import Section, figures_table, picture_uri, write_report
from ufr_edge.adaptation.target_index import digest
from ufr_edge.adaptation.targets import Atelier, TargetsConfig
from ufr_edge.config import to_json
from ufr_edge.files import atomic_folder, check_replaceable, read_json, write_json
from ufr_edge.metrics.frechet import frechet_distance
from ufr_edge.priors.features import PriorFeatures, find_features
from ufr_edge.priors.sampler import USUAL_STEPS, SamplerConfig
from ufr_edge.progress import progress_bar
from ufr_edge.runtime.images import read_image, write_image

Images = NDArray[np.uint8]
Drawing = Literal["auto", "always", "never"]

COUNT = 12
"""Faces that the curve is drawn on."""
SHARE = 0.2
"""The most of the prior's calls for all targets that the curve may take where nobody asked for it."""
REAL_COUNT = 64
"""Real faces that targets are compared with where the truth is not known."""
DRAWN = "dial"
"""The folder of the targets at each position, to go on from."""
RECORD = "dial.json"
_SHOWN = 4
_FIFTH = 5
_SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class CurveFaces:
    """Low-quality faces uint8 (N, S, S, 3), their clean versions where known, and unrelated real ones where given."""

    lq: Images
    truth: Images | None = None
    real: Images | None = None

    def some(self, count: int) -> tuple[CurveFaces, NDArray[np.intp]]:
        """At most `count` of the faces, evenly over all, and which they are."""
        at = np.linspace(0, len(self.lq) - 1, min(count, len(self.lq))).round().astype(np.intp)
        truth = None if self.truth is None else self.truth[at]
        return dataclasses.replace(self, lq=self.lq[at], truth=truth), at


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A row of figures for each position, and those of what is marked beside them, such as the adapted restorer."""

    rows: Sequence[Mapping[str, float]]
    marks: Mapping[str, Mapping[str, float]]
    faces: int
    real: int

    def section(self, picture: Path | None = None) -> Section:
        """The curve as a part of a report; its picture is written to `picture` too."""
        x, y = curve_axes(self.rows)
        head = ["fidelity", f"start (of {USUAL_STEPS})", "samples", y, x]
        rows = [
            [f"{row['fidelity']:g}", f"{s.start}", f"{s.samples}", f"{row[y]:.2f}", f"{row[x]:.4g}"]
            for row, s in ((row, dial(row["fidelity"])) for row in self.rows)
        ]
        rows += [[name, "", "", f"{found[y]:.2f}", f"{found[x]:.4g}"] for name, found in self.marks.items()]
        png = curve_png(self.rows, picture, marks=self.marks)
        uri = "data:image/png;base64," + base64.b64encode(png).decode()
        return Section(title="The dial", text=self._text(x), head=head, rows=rows, picture=uri)

    def _text(self, x: str) -> str:
        against = f" Distances are to {self.real} real faces; on so few, small differences mean nothing." if x == REAL else ""
        return (
            "Targets at positions of the dial from realism (0) to fidelity (1): --fidelity takes one of them, and the "
            f"weights of the losses with it. Measured on {self.faces} faces, PSNR and SSIM without mean/std matching; "
            f"compare figures of this table with each other only.{against}"
        )


def quick(base: SamplerConfig) -> SamplerConfig:
    """The sampler in at most a fifth of the chain's calls."""
    return dataclasses.replace(base, fast_steps=min(base.fast_steps or base.start, max(1, base.start // _FIFTH)))


def curve_calls(base: SamplerConfig, *, faces: int, positions: Sequence[float] = POSITIONS) -> int:
    """Calls of the prior that the curve takes on at most `COUNT` of `faces` faces."""
    return min(COUNT, faces) * sum(dial(position).sampler(quick(base)).calls for position in positions)


def curve_wanted(drawing: Drawing, base: SamplerConfig, *, faces: int, shown: int) -> bool:
    """Whether the curve is drawn on `shown` faces: asked for, or small beside the targets of `faces` faces."""
    small = curve_calls(base, faces=shown) <= SHARE * base.calls * faces
    return drawing == "always" or (drawing == "auto" and small)


def curve_drawn(out: Path) -> bool:
    """Whether an earlier call drew the curve of the run `out`."""
    return (out / RECORD).is_file()


def not_drawn(base: SamplerConfig, *, shown: int) -> Section:
    """What a report says in place of the curve."""
    calls = curve_calls(base, faces=shown)
    text = f"Its curve was not drawn: it takes {calls} calls of the prior on {min(COUNT, shown)} faces. --curve draws it."
    return Section(title="The dial", text=text)


def sweep_targets(
    faces: Path,
    out: Path,
    config: TargetsConfig,
    *,
    truth: Path | None = None,
    positions: Sequence[float] = POSITIONS,
    count: int = COUNT,
    show: bool = True,
) -> list[dict[str, float]]:
    """Make the targets of `count` faces at each position of the dial and measure them.

    Writes `out`/sweep.json, sweep.png and sweep.html, and goes on from the positions in `out`/dial; returns a row of
    figures for each position, those of the restorer's own output left to the report. Against `truth` (matched by stem)
    where it is known. Raises InputFileError, and ConfigError where `out` is one of the given folders or would
    replace one, OutputError where `out`/dial is not ours.
    """
    for given in filter(None, (faces, truth)):
        check_apart(given, out)
        check_not_replaced(given, out / DRAWN)
    atelier = Atelier(config)
    some, _ = _load(faces, truth, atelier.side).some(count)
    restored = atelier.restore(some.lq)
    drawn = draw_positions(out / DRAWN, atelier, some.lq, restored, config.sampler, positions, show=show)
    stacks = {"restored": restored, **drawn}
    figures = measure(stacks, some.lq, some.truth, find_features(config.prior, atelier.device))
    rows = [{"fidelity": position, **figures[f"{position:g}"]} for position in positions]
    write_json(out / "sweep.json", {"rows": rows, "restored": figures["restored"], "faces": len(some.lq)})
    columns = {"input": some.lq, **stacks, **({} if some.truth is None else {"truth": some.truth})}
    curve = Curve(rows=rows, marks={"restored": figures["restored"]}, faces=len(some.lq), real=0)
    _write(out, curve, figures, {name: stack[:_SHOWN] for name, stack in columns.items()})
    return rows


def _load(faces: Path, truth: Path | None, side: int) -> CurveFaces:
    if truth is None:
        return CurveFaces(lq=load_faces(faces, side, minimum=1).images)
    pairs = load_pairs(faces, truth, side, minimum=1, goal="truth")
    return CurveFaces(lq=pairs.lq, truth=pairs.truth)


def draw_curve(
    out: Path,
    config: TargetsConfig,
    faces: CurveFaces,
    marks: Mapping[str, Images],
    features: PriorFeatures | None,
    *,
    positions: Sequence[float] = POSITIONS,
    show: bool = True,
) -> Curve:
    """Draw the curve of an adaptation on at most `COUNT` of its faces, by at most a fifth of the chain's calls.

    `marks`: restored versions of all `faces`, by name. Writes `out`/dial.json, and goes on from the positions in `out`/dial.
    """
    some, at = faces.some(COUNT)
    atelier = Atelier(config)
    restored = atelier.restore(some.lq)
    drawn = draw_positions(out / DRAWN, atelier, some.lq, restored, quick(config.sampler), positions, show=show)
    stacks = {**{name: stack[at] for name, stack in marks.items()}, **drawn}
    figures = measure(stacks, some.lq, some.truth, features)
    for name, distance in _to_real(stacks, some, features).items():
        figures[name][REAL] = distance
    curve = Curve(
        rows=[{"fidelity": position, **figures[f"{position:g}"]} for position in positions],
        marks={name: figures[name] for name in marks},
        faces=len(some.lq),
        real=0 if some.real is None else len(some.real),
    )
    write_json(out / RECORD, to_json(curve))
    return curve


def _to_real(
    stacks: Mapping[str, Images], faces: CurveFaces, features: PriorFeatures | None
) -> dict[str, float]:
    """The distance of each stack to the real faces; nothing where the truth is known, or there is nothing to compare."""
    if features is None or faces.truth is not None or faces.real is None or min(len(faces.lq), len(faces.real)) < 2:
        return {}
    pooled = pooled_stack(faces.real, features)
    return {name: frechet_distance(pooled_stack(stack, features), pooled) for name, stack in stacks.items()}


def draw_positions(
    folder: Path,
    atelier: Atelier,
    lq: Images,
    restored: Images,
    sampler: SamplerConfig,
    positions: Sequence[float],
    *,
    show: bool = True,
) -> dict[str, Images]:
    """The targets of `lq`, uint8 (N, S, S, 3), drawn from its `restored` version at each position, by its name ("0.25").

    Kept in `folder`, one folder for a position, whole or not at all; those of other settings are drawn again.
    """
    _keep_or_clear(folder, atelier, lq, sampler)
    names = [f"sweep-{i}" for i in range(len(restored))]
    drawn: dict[str, Images] = {}
    with progress_bar("dial", len(positions), show=show) as advance:
        for position in positions:
            own = folder / f"{position:g}"
            if not own.is_dir():
                targets = atelier.sample(restored, names, dial(position).sampler(sampler))
                with atomic_folder(own) as beside:
                    for i, target in enumerate(targets):
                        write_image(beside / f"{i:03d}.png", target)
            drawn[own.name] = np.stack([read_image(own / f"{i:03d}.png") for i in range(len(restored))])
            advance()
    return drawn


def _keep_or_clear(folder: Path, atelier: Atelier, lq: Images, sampler: SamplerConfig) -> None:
    """Remove the positions in `folder` unless they were drawn by the same settings from the same faces."""
    settings: dict[str, Any] = {
        "faces": [digest(face) for face in lq],
        "sampler": to_json(sampler),
        "seed": atelier.config.seed,
        **atelier.made_by,
    }
    path = folder / _SETTINGS
    check_replaceable(folder, _SETTINGS)
    if path.is_file() and read_json(path) == settings:
        return
    if path.is_file():
        shutil.rmtree(folder)
    write_json(path, settings)


def _write(
    out: Path, curve: Curve, figures: Mapping[str, Mapping[str, float]], shown: Mapping[str, Images]
) -> None:
    head, table = figures_table(figures)
    sections = [
        curve.section(out / "sweep.png"),
        Section(title="Figures", text="Of the targets, and of the restorer's output they are made from.", head=head, rows=table),
        Section(title="Faces", picture=picture_uri(strip(shown))),
    ]
    write_report(out / "sweep.html", title="From realism to fidelity", lead="One dial, on faces of this camera.", sections=sections)


__all__ = [
    "COUNT",
    "Curve",
    "CurveFaces",
    "Drawing",
    "curve_calls",
    "curve_drawn",
    "curve_wanted",
    "draw_curve",
    "not_drawn",
    "sweep_targets",
]
