"""Cards of weights as text: what is counted or measured is filled in between markers, never typed by hand.

A card.md is prose with blocks `<!-- NAME:begin -->` ... `<!-- NAME:end -->` for "facts", "data" and "figures".
Pure functions from plain values to Markdown; `benchmarks/cards.py` feeds them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ufr_edge.errors import InputFileError, ModelFileError

REAL_SOURCES = frozenset({"canada", "congress", "congress2"})
"""Photographs of people; the faces of every other source are generated."""

Figures = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Preset -> column ("input" and the restorers) -> figure -> value, as `ufr-edge eval -o` writes it."""

METRICS = {
    "psnr_db": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "lpips": ("LPIPS", ".3f"),
    "fid": ("FID", ".1f"),
    "prior_feature_distance": ("feature distance", ".3f"),
    "prior_frechet_distance": ("feature Fréchet", ".2f"),
    "hf_energy_ratio": ("detail", ".3f"),
    "landmark_px512": ("landmarks px", ".2f"),
    "landmark_none": ("no face found", ".0f"),
    "own_is_nearest": ("own is nearest", ".0%"),
    "colour_cast": ("colour cast", ".2f"),
    "grid_levels": ("grid", ".2f"),
    "flat_energy_ratio": ("flat areas", ".2f"),
}
"""Figures of `ufr-edge eval` that tables show, those that were measured, in this order: heading and format."""

LATER = ("own_is_nearest", "colour_cast", "grid_levels", "flat_energy_ratio")
"""Figures that reports of older versions do not have: a card shows them where they are."""

_SAID = {
    "landmark_px512": "landmarks: mean distance from those in the truth, in px at 512 px",
    "hf_energy_ratio": "detail: energy above a quarter of a cycle per pixel, as a share of the clean faces'",
    "own_is_nearest": (
        "own is nearest: faces whose nearest of all truths is their own, on the prior's features of the inner face"
    ),
    "colour_cast": "colour cast: mean length of a face's mean (a*, b*) shift from the truth, in CIELAB units",
    "grid_levels": "grid: what repeats every 2, 4 or 8 px where the truth is flat, in 8-bit levels, median face",
    "flat_energy_ratio": "flat areas: all energy finer than 16 px there (noise, ringing), as a share of the clean faces'",
}
"""What the figures mean, where they were measured."""


OTHER_SIDES = (384, 512)
"""Sides at which weights of 256 px are to run as well."""

CLOSE_DB = 0.1
"""dB of PSNR within which a card tells that another restorer does as well."""


def fill_block(text: str, name: str, body: str) -> str:
    """Return `text` with what stands between the markers of block `name` replaced. Raises ModelFileError without them."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        msg = f"The card needs one line {begin} and after it one line {end}. Put them where the {name} go."
        raise ModelFileError(msg)
    inner = body.strip("\n")  # the indent of a command at the start stays
    head, rest = text.split(begin)
    return f"{head}{begin}\n\n{inner}\n\n{end}{rest.split(end)[1]}"


def without_markers(text: str) -> str:
    """Return a card without its markers, for reading in a terminal."""
    return re.sub(r"<!-- \w+:(begin|end) -->\n\n?", "", text)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column to the left, the others to the right."""
    align = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, align, *rows))


def command_block(command: str) -> str:
    """Return a command as an indented block."""
    return f"    {command}"


def eval_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """One preset of an `ufr-edge eval` report: a row per restorer, a column per figure, PSNR with its gain."""
    base = columns.get("input", {})
    columns = {"input": base, **columns}  # first, whatever the order in the file
    shown = [key for key in METRICS if any(values.get(key) is not None for values in columns.values())]
    head, rows = [""], []
    for key in shown:
        head += [METRICS[key][0], "gain dB"] if key == "psnr_db" else [METRICS[key][0]]
    for label, values in columns.items():
        row = [label]
        for key in shown:
            row.append(_cell(values.get(key), METRICS[key][1]))
            if key == "psnr_db":
                row.append("" if label == "input" else _cell(_less(values.get(key), base.get(key)), "+.2f"))
        rows.append(row)
    return markdown_table(head, rows)


def in_order(report: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """The figures of an `ufr-edge eval` report by preset, in the order they were asked for: JSON keeps none."""
    asked = [*report["settings"].get("degrade", []), *report["figures"]]
    return {preset: report["figures"][preset] for preset in dict.fromkeys(asked)}


def restorer_table(figures: Figures, label: str) -> str:
    """One restorer over all presets of a report: what went in and what came out. Raises InputFileError without it."""
    rows = []
    sides = [columns.get(side, {}) for columns in figures.values() for side in ("input", label)]
    later = [key for key in LATER if any(side.get(key) is not None for side in sides)]
    missed = ["landmark_none"] if any(side.get("landmark_none") for side in sides) else []
    keys = ["ssim", "prior_feature_distance", "landmark_px512", *missed, "hf_energy_ratio", *later]
    for preset, columns in figures.items():
        if label not in columns:
            msg = f"The report has no figures of {label} on {preset} (it has {', '.join(columns)}). Measure it first."
            raise InputFileError(msg)
        before, after = columns["input"], columns[label]
        row = [preset, *(_cell(side.get("psnr_db"), ".2f") for side in (before, after))]
        row.append(_cell(_less(after.get("psnr_db"), before.get("psnr_db")), "+.2f"))
        for key in keys:
            row.append(" → ".join(_cell(side.get(key), METRICS[key][1]) or "–" for side in (before, after)))
        rows.append(row)
    head = ["degradation", "PSNR in", "PSNR out", "gain dB", *(METRICS[key][0] for key in keys)]
    return markdown_table(head, rows)


def source_table(by_source: Mapping[str, Mapping[str, Mapping[str, float]]], label: str) -> str:
    """One restorer by source of the held-out faces: how many, PSNR in and out, distances. One preset of `by_source`."""
    rows = []
    for source, columns in by_source.items():
        before, after = columns["input"], columns[label]
        row = [source or "-", f"{before['faces']:.0f}", *(_cell(side.get("psnr_db"), ".2f") for side in (before, after))]
        row += [_cell(after.get(key), METRICS[key][1]) for key in ("prior_feature_distance", "landmark_px512")]
        rows.append(row)
    return markdown_table(["source", "faces", "PSNR in", "PSNR out", "feature distance", "landmarks px"], rows)


def data_block(rows: Sequence[Mapping[str, str]], shares: Mapping[str, float]) -> str:
    """What the weights were trained on: faces by source and licence.

    `rows`: the training rows of a manifest ("source", "licence", "side"). `shares`: of the draws, by source.
    Raises InputFileError when there is none.
    """
    if not rows:
        msg = "The manifest lists no training faces. Give the manifest.csv of the training faces."
        raise InputFileError(msg)
    counts = Counter(row["source"] for row in rows)
    licences = {row["source"]: row["licence"] for row in rows}
    real = sum(n for source, n in counts.items() if source in REAL_SOURCES)
    drawn = sum(share for source, share in shares.items() if source in REAL_SOURCES)
    large = sum(row["side"] == "512" for row in rows)
    lead = (
        f"{len(rows):,} aligned faces ({large:,} at 512 px or more at source, the others at 256 px): {real:,} photographs "
        f"of people ({100 * real / len(rows):.0f} %, and {100 * drawn:.0f} % of what training drew) and "
        f"{len(rows) - real:,} generated faces. Sources are drawn by the square root of their size, mirrored at random; "
        "the last training drew sharp faces more often within and between them (`detail` in its config), which these shares "
        "leave out."
    )
    table = [
        [
            source,
            "photographs" if source in REAL_SOURCES else "generated",
            f"{n:,}",
            f"{100 * shares.get(source, 0):.0f} %",
            licences[source],
        ]
        for source, n in counts.most_common()
    ]
    return f"{lead}\n\n{markdown_table(['source', 'kind', 'faces', 'drawn', 'licence at source'], table)}"


def facts_block(card: Mapping[str, Any]) -> str:
    """Parameters, size, training and recipe out of card.json; what it does not say is called unknown."""
    known = {
        "parameters": _count(card.get("parameters")),
        "file": f"{card['bytes'] / 1e6:.1f} MB, {card.get('storage', 'fp32')}" if "bytes" in card else "unknown",
        "cost": f"{card['gmacs']:.1f} GMAC a face of {card['side']} px" if "gmacs" in card else "",
        "training": f"{_count(card.get('steps'))} steps, {_hours(card.get('hours'))}",
        "hardware": card.get("hardware", "unknown"),
    }
    lines = [f"- {name}: {value}" for name, value in known.items() if value]
    return "\n".join(lines) + f"\n\nThe recipe:\n\n{command_block(card.get('recipe', 'unknown'))}"


def restorer_block(reports: Sequence[tuple[str, Mapping[str, Any]]], label: str) -> str:
    """All figures of a restorer: each report's table under the command that made it. `reports`: (command, report)."""
    parts = []
    for command, report in reports:
        if any(label in columns for columns in report["figures"].values()):
            parts += [command_block(command), settings_line(report), restorer_table(in_order(report), label)]
            parts += [] if parts[3:] else _by_source(report, label)
    if not parts:
        msg = f"No report has figures of {label}. Measure it first: python benchmarks/quality.py --faces VAL -o runs/quality"
        raise InputFileError(msg)
    return "\n\n".join(parts)


def _by_source(report: Mapping[str, Any], label: str) -> list[str]:
    preset = next(iter(in_order(report)))
    sources = report.get("by_source", {}).get(preset, {})
    if not sources or not all(label in columns for columns in sources.values()):
        return []
    return [f"By source of the held-out faces, {preset}:", source_table(sources, label)]


def measured_limits(reports: Sequence[tuple[str, Mapping[str, Any]]], label: str) -> list[str]:
    """What the figures say against a restorer: other sides, the degradation it helps least with, its siblings.

    `reports`: (command, report) of `ufr-edge eval`; the first is the one that others are held against.
    """
    known = [report for _, report in reports if any(label in columns for columns in report["figures"].values())]
    if not known:
        return []
    own, preset = known[0]["settings"]["side"], next(iter(in_order(known[0])))
    gains = _gains(known[0]["figures"][preset])
    sides = {report["settings"]["side"]: _gains(report["figures"].get(preset, {})) for report in known}
    limits = [
        f"At {side} px the same weights gain {found[label]:+.2f} dB over the input on {preset}, at {own} px "
        f"{gains[label]:+.2f} dB{_worse_landmarks(known, side, preset, label)}."
        for side, found in sides.items()
        if side != own and label in found
    ]
    unseen = [f"{side}" for side in OTHER_SIDES if side not in sides and side != own]
    limits += [f"At {' and '.join(unseen)} px they run, but were not measured."] if unseen else []
    same = [report["figures"] for report in known if report["settings"]["side"] == own]
    every = {name: _gains(columns)[label] for figures in same for name, columns in figures.items()}
    least = min(every, key=lambda name: every[name])
    limits.append(f"Of all that was measured it helps least on {least} ({every[least]:+.2f} dB): adapt it to such a camera.")
    return limits + [
        f"{name} is within {CLOSE_DB:g} dB of it on {preset} ({gain:+.2f} dB, this one {gains[label]:+.2f} dB)."
        for name, gain in gains.items()
        if name != label and abs(gain - gains[label]) <= CLOSE_DB
    ]


def _worse_landmarks(reports: Sequence[Mapping[str, Any]], side: int, preset: str, label: str) -> str:
    """Words where eyes, nose and mouth lie further off after restoring than before, at one side."""
    columns = next(r["figures"][preset] for r in reports if r["settings"]["side"] == side and preset in r["figures"])
    before, after = (columns[name].get("landmark_px512") for name in ("input", label))
    if before is None or after is None or after <= before:
        return ""
    return f", and landmarks are further off than in the input ({before:.1f} → {after:.1f} px): faces break"


def _gains(columns: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """dB of PSNR over the input by restorer, of one preset."""
    return {name: values["psnr_db"] - columns["input"]["psnr_db"] for name, values in columns.items() if name != "input"}


def settings_line(report: Mapping[str, Any]) -> str:
    """One sentence on how a report of `ufr-edge eval` was measured."""
    settings = report["settings"]
    said = [f"{settings['faces']} held-out faces at {settings['side']} px"]
    said += [f"PSNR and SSIM: {_words(settings['psnr_ssim'])}"] if "psnr_ssim" in settings else []
    measured = {key for columns in report["figures"].values() for values in columns.values() for key in values}
    said += [text for key, text in _SAID.items() if key in measured]
    said += [f"grid of the clean faces: {settings['grid_truth_levels']:.2f}"] if "grid_truth_levels" in settings else []
    if "prior_feature_distance" in settings:
        said.append(f"feature distances (lower is better): {settings['prior_feature_distance']}")
    missing = sorted(report.get("not_measured", {}))
    said += [f"not measured, as their weights are not here: {', '.join(missing)}"] if missing else []
    return "; ".join(said) + "."


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(part)}" for key, part in value.items())
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _cell(value: float | None, form: str) -> str:
    return "" if value is None or not math.isfinite(value) else format(value, form)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "unknown"


def _hours(value: Any) -> str:
    return f"{value:.1f} hours" if isinstance(value, (int, float)) else "hours unknown"
