"""One dial from realism (0) to fidelity (1), and its curve.

| dial | start | hold until | samples meaned | w features | w adversarial |
|---|---|---|---|---|---|
| 0 | 150 (the paper's) | 90 | 1 | 0.4 | 0.04 |
| 0.5 (the defaults) | 100 | 40 | 1 | 0.1 | 0.01 |
| 1 | 80 | 30 | 4 | 0.02 | 0 |

Linear in between. A later start re-invents less; a mean of samples keeps what they agree on; the feature and the
adversarial term trade error for detail. L1 keeps its weight, so that the others move against it.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ufr_edge.adaptation.restorer_task import LossWeights
from ufr_edge.errors import ConfigError
from ufr_edge.files import atomic_file
from ufr_edge.priors.sampler import SamplerConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
_AT = (0.0, 0.5, 1.0)
_ANCHORS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "start": (150, 100, 80),
        "hold_until": (90, 40, 30),
        "samples": (1, 1, 4),
        "prior_features": (0.4, 0.1, 0.02),
        "adversarial": (0.04, 0.01, 0.0),
    }
)


@dataclass(frozen=True, kw_only=True)
class DialSettings:
    """What a position of the dial stands for; `start` and `hold_until` of `USUAL_STEPS`."""

    fidelity: float
    start: int
    hold_until: int
    samples: int
    prior_features: float
    adversarial: float

    def sampler(self, base: SamplerConfig) -> SamplerConfig:
        """Return `base` with the dial's start, end of holding and samples; a fast sampler keeps its calls per index.

        The dial counts indices of `USUAL_STEPS`; in a chain of other steps they stand for the same noise levels.
        """
        start = min(max(1, base.index_of(self.start)), base.steps - 1)
        fast = base.fast_steps
        if fast is not None:
            fast = min(start, max(2, round(fast * start / base.start)))
        return dataclasses.replace(
            base,
            start=start,
            hold_until=min(max(1, base.index_of(self.hold_until)), start),
            samples_per_image=self.samples,
            fast_steps=fast,
        )

    def losses(self, base: LossWeights) -> LossWeights:
        """Return `base` with the dial's weights; a term that is off in `base` stays off."""
        return dataclasses.replace(
            base,
            prior_features=self.prior_features if base.prior_features > 0 else 0.0,
            adversarial=self.adversarial if base.adversarial > 0 else 0.0,
        )


def dial(fidelity: float) -> DialSettings:
    """Return the settings of a position from 0 to 1. Raises ConfigError outside."""
    if not 0 <= fidelity <= 1:
        msg = f"The dial goes from 0 (realism) to 1 (fidelity); got {fidelity:g}."
        raise ConfigError(msg)
    at = {name: float(np.interp(fidelity, _AT, values)) for name, values in _ANCHORS.items()}
    return DialSettings(
        fidelity=fidelity,
        start=round(at["start"]),
        hold_until=round(at["hold_until"]),
        samples=round(at["samples"]),
        prior_features=round(at["prior_features"], 4),
        adversarial=round(at["adversarial"], 4),
    )


REAL = "prior_frechet_distance_to_real"
"""The Frechet distance to real faces on the prior's own features, at equal counts for all that is compared."""

_AXES: Mapping[str, str] = MappingProxyType(
    {
        "psnr_db": "PSNR to the truth, dB",
        "input_consistency_db": "agreement with the input at 1/8 of the size, dB",
        "prior_feature_distance": "prior-feature distance to the truth (lower: nearer)",
        REAL: "Frechet distance to real faces, prior features (lower: nearer)",
        "high_frequency_energy": "fine detail (high-frequency energy)",
    }
)


_BESIDE = ((6, 5, "left"), (-6, -12, "right"))
"""Where labels stand in turn, so that those of near points do not cover each other: points along and up, alignment."""


def curve_points(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str, list[tuple[float, float, float]]]:
    """Return (name of x, name of y, (x, y, fidelity) of each row): fidelity against realism, by what was measured.

    Fidelity is PSNR where the truth is known, else agreement with the input; realism the prior-feature distance where
    the truth is known, else the Frechet distance to real faces where there are some, else fine detail (high-frequency
    energy).
    """
    x, y = curve_axes(rows)
    return x, y, [(row[x], row[y], row["fidelity"]) for row in rows]


def curve_axes(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The names of x and y."""
    known = all("psnr_db" in row for row in rows)
    measured = ("prior_feature_distance", REAL) if known else (REAL,)
    x = next((name for name in measured if all(name in row for row in rows)), "high_frequency_energy")
    return x, "psnr_db" if known else "input_consistency_db"


def curve_png(
    rows: Sequence[Mapping[str, Any]],
    path: Path | None = None,
    *,
    marks: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> bytes:
    """Draw the dial's curve as PNG, each position labelled; written to `path` as well where given.

    `marks`: figures by label of what is drawn as a point beside the curve, such as the adapted restorer.
    """
    from matplotlib.figure import Figure

    x, y, points = curve_points(rows)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(1, 1, 1)
    axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", color="#1f5fa8")
    labelled = [(px, py, f"{fidelity:g}", _BESIDE[i % 2]) for i, (px, py, fidelity) in enumerate(points)]
    for label, found in marks.items():
        if x in found and y in found:
            axes.plot([found[x]], [found[y]], marker="s", linestyle="", color="#c0392b")
            labelled.append((found[x], found[y], label, (5, -12, "left")))
    for px, py, label, (along, up, side) in labelled:
        axes.annotate(label, (px, py), xytext=(along, up), textcoords="offset points", ha=side)
    axes.margins(0.18)
    axes.set_xlabel(_AXES[x])
    axes.set_ylabel(_AXES[y])
    axes.set_title("targets at fidelity 0 to 1")
    return _written(figure, path)


def _written(figure: Figure, path: Path | None) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    if path is not None:
        with atomic_file(path) as beside:
            beside.write_bytes(buffer.getvalue())
    return buffer.getvalue()
