"""The dial's curve as a part of docs/quality.md: what each position costs in fidelity and gives in realism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ufr_edge.adaptation.dial import curve_axes, curve_png, dial
from ufr_edge.adaptation.prior_pages import kept
from ufr_edge.weights.cards import command_block, markdown_table

PICTURE = "dial.png"
CALLS = 20
FIGURES = {
    "PSNR dB": ("psnr_db", ".2f"),
    "feature distance": ("prior_feature_distance", ".3f"),
    "Fréchet": ("prior_frechet_distance", ".1f"),
    "detail": ("hf_energy_ratio", ".2f"),
}
"""Columns that tables of targets share: the figure and its form."""


def commands(preset: str, restorer: str) -> tuple[tuple[str, ...], ...]:
    """Words after `ufr-edge` that measure it; folders as VAL, OUT."""
    degrade = ("degrade", "-i", "VAL", "-o", "OUT/dial-faces", "--preset", preset, "--seed", "0", "--side", "256")
    sweep = ("targets", "--sweep", "-i", "OUT/dial-faces", "--truth", "VAL", "-o", "OUT/dial", "--restorer", restorer)
    return degrade, (*sweep, "--prior", "prior-256", "--fast-steps", str(CALLS))


def section(shown: Sequence[str], result: Mapping[str, Any], docs: Path) -> list[str]:
    """Commands, table and picture, which is written into the folder `docs`. result: as `targets --sweep` wrote it."""
    rows, restored = result["rows"], {"restored": result["restored"]}
    curve_png(rows, docs / PICTURE, marks=restored)
    settings = [dial(row["fidelity"]) for row in rows]
    table = [
        [f"{s.fidelity:g}", f"{s.start}", f"{s.hold_until}", f"{s.samples}", *figure_cells(row)]
        for s, row in zip(settings, rows, strict=True)
    ]
    table.append(["the restorer's output", "", "", "", *figure_cells(result["restored"])])
    said = (
        f"{result['faces']} held-out faces, targets alone: what training on them gives moves the same way, and the dial moves "
        "the weights of its losses too. Compare figures of this table with each other only."
    )
    return [
        "\n".join(command_block(line) for line in shown),
        said,
        markdown_table(["dial", "start", "hold until", "samples", *FIGURES], table),
        f"![PSNR of targets against their prior-feature distance, at positions of the dial]({PICTURE})",
    ]


def figure_cells(values: Mapping[str, float]) -> list[str]:
    """`FIGURES` as cells of a table, empty for those that were not taken."""
    return [format(values[name], form) if name in values else "" for name, form in FIGURES.values()]


def asked(result: Mapping[str, Any]) -> list[list[str]]:
    """That it is one dial: PSNR along it."""
    rows = result["rows"]
    y = curve_axes(rows)[1]
    values = [row[y] for row in rows]
    places = ", ".join(f"{row['fidelity']:g}" for row in rows)
    said = f"one dial, realism to fidelity: PSNR of targets rises along it ({places})"
    rising = all(a < b for a, b in pairwise(values))
    return [[said, ", ".join(f"{value:.2f}" for value in values) + " dB", kept(rising)]]
