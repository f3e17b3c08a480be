"""The table "What was asked, and what is" at the top of docs/quality.md, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adaptation import RESULT, WANTED_CLASSIC, WANTED_GAP, as_asked, spreads

from ufr_edge.adaptation.prior_pages import DETAIL_WITHIN, LOWEST_PSNR_CHANGE, kept
from ufr_edge.files import read_json
from ufr_edge.weights import list_weights

UNSEEN = "raw-iso3000-x4"
BUDGET_MB = 40
GAINS = MappingProxyType({"classic-light": 2.5, "classic-heavy": 1.5})
"""dB of PSNR that a restorer should gain over its degraded input."""
CAST, GRID, RINGING = 1.0, 0.5, 1.2
"""Ours, for "no colour cast, grid or ringing on flat areas": CIELAB units that all faces share (about the least that is
seen), levels of what repeats every few pixels, and fine energy in flat areas as a share of the clean faces'."""


def asked(results: Mapping[str, Mapping[str, Any]], adapted: Sequence[Path] = ()) -> list[list[str]]:
    """The numbers the weights, and adapting them, were to reach, beside those measured. adapted: as adaptation.py wrote."""
    size = sum(model.size for model in list_weights()) / 1e6
    return [
        *_restorers(results.get("classic", {}).get("figures", {})),
        *(
            row
            for result in results.values()
            if result.get("kind") == "prior-report"
            for row in _prior(result)
        ),
        [f"all shipped weights together at most {BUDGET_MB} MB", f"{size:.1f} MB", kept(size <= BUDGET_MB)],
        *(row for folder in adapted for row in _adapted(read_json(folder / RESULT))),
    ]


def _restorers(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[list[str]]:
    for preset, columns in figures.items():
        for name, values in columns.items():
            if name != "input":
                yield from _gain(name, preset, values, columns["input"])
                yield from _flat(name, preset, values)


def _gain(
    name: str, preset: str, values: Mapping[str, float], before: Mapping[str, float]
) -> Iterator[list[str]]:
    if preset in GAINS:
        gain = values["psnr_db"] - before["psnr_db"]
        said = f"{name}, {preset}: at least {GAINS[preset]:+.1f} dB over the input"
        yield [said, f"{gain:+.2f} dB", kept(gain >= GAINS[preset])]


def _flat(name: str, preset: str, values: Mapping[str, float]) -> Iterator[list[str]]:
    if "grid_levels" not in values:  # measured by an earlier release
        return
    cast, grid, energy = (values[key] for key in ("colour_cast_common", "grid_levels", "flat_energy_ratio"))
    good = cast <= CAST and grid <= GRID and energy <= RINGING
    said = f"{name}, {preset}: no colour cast (at most {CAST:g} CIELAB unit shared by all faces), no grid "
    said += f"(at most {GRID:g} levels) and no ringing (at most {RINGING:g} times the truth's fine energy) on flat areas"
    yield [said, f"{cast:.2f}, {grid:.2f}, {energy:.2f}", kept(good)]


def _prior(report: Mapping[str, Any]) -> Iterator[list[str]]:
    for sampler, values in report["figures"].get("targets", {}).items():
        name = f"{report['config']['prior']}, {sampler} sampler"
        change, detail = values["psnr_change_db"], values["detail_ratio"]
        said = f"{name}: targets of {UNSEEN} at most {-LOWEST_PSNR_CHANGE:g} dB below the restorer's output"
        yield [said, f"{change:+.2f} dB", kept(change >= LOWEST_PSNR_CHANGE)]
        said = f"{name}: their fine detail within {100 * DETAIL_WITHIN:.0f} % of the clean faces'"
        yield [said, f"{100 * (detail - 1):+.0f} %", kept(abs(detail - 1) <= DETAIL_WITHIN)]


def _adapted(result: Mapping[str, Any]) -> Iterator[list[str]]:
    for row in result["summary"]:
        features, frechet, psnr, classic = spreads(row)
        said = f"{result['restorer']} adapted to {row['camera']} ({len(row['seeds'])} seeds): at least {WANTED_GAP:.0%} of "
        said += f"the gap to true pairs (features; Fréchet), PSNR no lower, at most {-WANTED_CLASSIC:g} dB lost before it"
        yield [said, f"{features}; {frechet}; {psnr} dB; {classic} dB", kept(as_asked(row))]
