"""What benchmarks/adaptation.py measured, as sections of docs/quality.md: folders side by side, from their JSON alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptation import RESULT, lead, tables
from cards import trained_seconds
from measured import earlier

from ufr_edge.adaptation.training import read_log
from ufr_edge.files import read_json
from ufr_edge.priors.sampler import PRESETS
from ufr_edge.weights.cards import command_block, markdown_table

MODELS = ("base", "adapted", "oracle")
TIMES = ("targets, s", "fine-tuning, s")
CHAIN = ("steps", "start", "hold_until", "filter_n", "tail_filter_n")
"""What makes a sampler another one; calls and precision stand for themselves."""


def shown_folder(folder: Path) -> str:
    """A folder as a document prints it: without this machine's folders."""
    return folder.name if folder.is_absolute() else str(folder)


def adaptation_sections(folders: Sequence[Path]) -> list[str]:
    """One section for each restorer: its folders and their commands, all cameras in one table, then each seed."""
    results = {folder: read_json(folder / RESULT) for folder in folders}
    parts: list[str] = []
    for restorer in dict.fromkeys(result["restorer"] for result in results.values()):
        own = {folder: result for folder, result in results.items() if result["restorer"] == restorer}
        named = ", ".join(f"`{shown_folder(folder)}`" for folder in own)
        parts += [
            f"## Adapting {restorer} to cameras training has not seen, without ground truth",
            f"Out of {named}.",
            *_earlier(own),
            *_commands(list(own.values())),
            *tables(_together(own)),
        ]
    return parts


def _earlier(results: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """A paragraph for each folder of other weights than those shipped now."""
    return [
        f"`{shown_folder(folder)}`: {said}"
        for folder, result in results.items()
        for said in earlier(result.get("weights", {}))
    ]


def _commands(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The commands, and below those that ran under the same settings what these were."""
    leads: dict[str, list[str]] = {}
    for result in results:
        leads.setdefault(lead(result), []).append(command_block(result["command"]))
    return [part for said, commands in leads.items() for part in ("\n".join(commands), said)]


def _together(results: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """One result with the rows of all; a camera that several folders have is named with its folder."""
    times = Counter(camera for result in results.values() for camera in _cameras(result))
    whole: dict[str, Any] = {**next(iter(results.values())), "cells": [], "summary": []}
    for folder, result in results.items():
        for part in ("summary", "cells"):
            for row in result[part]:
                name = row["camera"]
                name = name if times[name] == 1 else f"{name} ({shown_folder(folder)})"
                whole[part].append({**row, "camera": name})
    for cell in whole["cells"]:  # JSON sorts them by name
        cell["figures"] = {model: cell["figures"][model] for model in MODELS if model in cell["figures"]}
    return whole


def _cameras(result: Mapping[str, Any]) -> set[str]:
    return {row["camera"] for row in result["summary"]}


def comparison(folders: Sequence[Path], *, timed: bool = True) -> list[str]:
    """Runs under other settings, a row for each camera and seed: the settings that differ, what it cost, what it gave.

    timed: with the seconds each took, for runs on a machine that did nothing else.
    """
    results = [(folder, read_json(folder / RESULT)) for folder in folders]
    cells = [(folder, result, cell) for folder, result in results for cell in result["cells"]]
    told = [_told(folder, result, cell) for folder, result, cell in cells]
    names = list(dict.fromkeys(name for row in told for name in row))
    differ = [name for name in names if len({row.get(name, "") for row in told}) > 1]
    same = [f"{name} {told[0][name]}" for name in names if name not in differ]
    head = ["folder", "camera", "seed", *differ, *(TIMES if timed else ())]
    head += ["feature distance", "feature Fréchet", "PSNR, dB", "classic, dB"]
    rows = []
    for row, (folder, _, cell) in zip(told, cells, strict=True):
        named = [shown_folder(folder), cell["camera"], str(cell["seed"])]
        own = [row.get(name, "") for name in differ]
        seconds = _seconds(folder, cell) if timed else []
        rows.append([*named, *own, *seconds, *_changes(cell)])
    commands = "\n".join(command_block(result["command"]) for _, result in results)
    said = [f"The same in all: {', '.join(same)}."] if same else []
    return [*_earlier(dict(results)), commands, *said, markdown_table(head, rows)]


def _told(folder: Path, result: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, str]:
    """Every setting that is known of a cell, in words."""
    path = _cell_folder(folder, cell) / "settings.json"
    kept = read_json(path) if path.is_file() else {}
    known = {**kept, **result, **cell}
    fidelity = known.get("fidelity")
    words = {
        "restorer": Path(known["restorer"]).name,
        "teacher": known.get("teacher") and Path(known["teacher"]).name,
        "sampler": _sampler(cell["sampler"]) if "sampler" in cell else None,
        "calls a target": cell["calls_per_target"],
        "faces": cell["faces"],
        "steps": known.get("steps"),
        "replay": f"{known.get('replay', 0):g}",
        "share of camera pairs": f"{known.get('camera_pairs', 0):g}",
        "made of": known.get("camera_pairs_of") if known.get("camera_pairs") else None,
        **{f"w {name}": known.get(f"w_{name}") for name in ("features", "adversarial")},
        "fidelity": None if fidelity is None else f"{fidelity:g}",
    }
    return {name: str(word) for name, word in words.items() if word is not None}


def _sampler(found: Mapping[str, Any]) -> str:
    """A preset by name, else start, hold and N."""
    for name, preset in PRESETS.items():
        if all(found.get(key) == getattr(preset, key) for key in CHAIN):
            return name
    return f"start {found['start']}, hold {found['hold_until']}, N {found['filter_n']}"


def _seconds(folder: Path, cell: Mapping[str, Any]) -> list[str]:
    """Seconds on targets and on fine-tuning: as the cell says, else split by the log of the training beside it."""
    spent = cell.get("seconds", {})
    if "targets" in spent:
        return [f"{spent['targets']:.0f}", f"{spent.get('finetuning', 0):.0f}"]
    log = read_log(_cell_folder(folder, cell) / "adapted")
    tuning = trained_seconds(log)
    targets = spent.get("targets_and_training", 0) - tuning
    return [f"{targets:.0f}", f"{tuning:.0f}"] if 0 < tuning and 0 < targets else ["", ""]


def _changes(cell: Mapping[str, Any]) -> list[str]:
    base, adapted = cell["figures"]["base"], cell["figures"]["adapted"]
    columns = ("prior_feature_distance", "prior_frechet_distance")
    classic = cell["classic"]["adapted"]["psnr_db"] - cell["classic"]["base"]["psnr_db"]
    return [
        *(f"{base[name]:.4g} → {adapted[name]:.4g}" if name in base else "" for name in columns),
        f"{adapted['psnr_db'] - base['psnr_db']:+.2f}",
        f"{classic:+.2f}",
    ]


def _cell_folder(folder: Path, cell: Mapping[str, Any]) -> Path:
    return folder / f"{cell['camera']}-seed{cell['seed']}"
