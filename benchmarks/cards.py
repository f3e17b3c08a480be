"""Fill the cards of the shipped weights: what is counted from the weights, what is measured from `quality.py`.

    python benchmarks/cards.py edge-m-256 --quality runs/quality --manifest FACES/manifest.csv --steps 40000 --hours 6

Steps, hours, hardware, recipe and summary are kept in card.json: give them once, when the weights are new (or --run RUN
to read steps and hours from its log). A model without a card gets one.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ufr_edge.adaptation.faces import source_weights
from ufr_edge.adaptation.prior_pages import prior_limits, prior_markdown
from ufr_edge.adaptation.training import read_log
from ufr_edge.cli.border import script_border
from ufr_edge.errors import InputFileError
from ufr_edge.files import atomic_file, read_json, write_json
from ufr_edge.priors.files import load_prior
from ufr_edge.restorers.edge import count_macs
from ufr_edge.restorers.files import load_restorer
from ufr_edge.weights import WEIGHTS_DIR
from ufr_edge.weights.card_texts import LICENCE, LIMITS, PRIOR_CARD, RESTORER_CARD
from ufr_edge.weights.cards import data_block, facts_block, fill_block, measured_limits, restorer_block

PAPER = "Kuai et al., Towards Unsupervised Blind Face Restoration using Diffusion Prior, WACV 2025"
PAUSE = 600.0
"""Seconds without a log line after which training counts as stopped."""


def counted(name: str, folder: Path) -> dict[str, Any]:
    """What the weights themselves say."""
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    base = {
        "name": name,
        "code_licence": "Apache-2.0",
        "weights_licence": LICENCE,
        "paper": PAPER,
    }
    if (folder / "unet").is_dir():
        prior = load_prior(folder)
        parameters = sum(p.numel() for p in prior.parameters())
        return {
            **base,
            "kind": "prior",
            "side": prior.side,
            "parameters": parameters,
            "bytes": size,
            "storage": "fp16" if size < 3 * parameters else "fp32",
        }
    loaded = load_restorer(folder)
    parameters = sum(p.numel() for p in loaded.model.parameters())
    guess = "fp16" if size < 3 * parameters else "fp32"  # files from before the header said it
    return {
        **base,
        "kind": "restorer",
        "arch": loaded.arch,
        "side": loaded.side,
        "parameters": parameters,
        "gmacs": count_macs(loaded.model, loaded.side) / 1e9,
        "bytes": size,
        "storage": loaded.meta.get("storage", guess),
    }


def trained_seconds(log: Sequence[Mapping[str, Any]]) -> float:
    """Seconds a training ran by its log, without pauses."""
    times = [entry["time"] for entry in log if "time" in entry]
    return float(sum(b - a for a, b in itertools.pairwise(times) if 0 <= b - a < PAUSE))


def trained(args: argparse.Namespace) -> dict[str, Any]:
    """What was said on the command line about the training, or read from its log."""
    said = {key: getattr(args, key) for key in ("steps", "hours", "hardware", "recipe", "summary")}
    if args.run and (log := read_log(args.run)):
        hours = said["hours"] or trained_seconds(log) / 3600
        said = {**said, "steps": said["steps"] or log[-1]["step"], "hours": hours}
    return {key: value for key, value in said.items() if value is not None}


def read_reports(quality: Path) -> list[tuple[str, Any]]:
    """(command, report) of all that quality.py measured."""
    jobs = read_json(quality / "index.json")
    return [(job["commands"][-1], read_json(quality / job["result"])) for job in jobs]


def limits_of(card: Mapping[str, Any], quality: Path | None) -> list[str]:
    """What is said of every model, and what the figures say against this one."""
    if quality is None:
        return list(card.get("limits", LIMITS))
    reports, name = read_reports(quality), card["name"]
    evaluations = [(command, report) for command, report in reports if "settings" in report]
    own = [r for _, r in reports if r.get("kind") == "prior-report" and r["config"]["prior"] == name]
    return [
        *LIMITS,
        *measured_limits(evaluations, name),
        *(limit for report in own for limit in prior_limits(report)),
    ]


def measured(card: Mapping[str, Any], quality: Path) -> tuple[str, Any]:
    """The figures block and the figures for card.json, out of the folder that quality.py wrote."""
    reports, name = read_reports(quality), card["name"]
    if card["kind"] == "prior":
        for command, report in reports:
            if report.get("kind") == "prior-report" and report["config"]["prior"] == name:
                return prior_markdown({**report, "command": command}), report["figures"]
        msg = f"{quality} holds no report on {name}. Run benchmarks/quality.py first."
        raise InputFileError(msg)
    evaluations = [(command, report) for command, report in reports if "settings" in report]
    figures = {
        preset: {"input": columns["input"], "restored": columns[name]}
        for _, report in reversed(evaluations)
        for preset, columns in report["figures"].items()
        if name in columns
    }
    return restorer_block(evaluations, name), figures


def data_text(manifest: Path) -> str:
    """The data block from a manifest of faces."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    shares: dict[str, float] = {}
    for row, weight in zip(rows, source_weights(tuple(row["file"] for row in rows)), strict=True):
        shares[row["source"]] = shares.get(row["source"], 0.0) + float(weight)
    return data_block(rows, shares)


def new_card(card: Mapping[str, Any]) -> str:
    """The prose of a card that is not there yet."""
    template = PRIOR_CARD if card["kind"] == "prior" else RESTORER_CARD
    summary = card.get("summary", "")
    return template.format(name=card["name"], side=card["side"], summary=summary, licence=LICENCE)


def fill(name: str, args: argparse.Namespace) -> None:
    """Write card.json and card.md of one model."""
    path = args.weights / name
    old = read_json(path / "card.json") if (path / "card.json").is_file() else {}
    card = {**old, **counted(name, path), **trained(args)}
    card["limits"] = limits_of(card, args.quality)
    text = path / "card.md"
    markdown = text.read_text(encoding="utf-8") if text.is_file() and not args.fresh else new_card(card)
    markdown = fill_block(markdown, "facts", facts_block(card))
    markdown = fill_block(markdown, "limits", "\n".join(f"- {limit}" for limit in card["limits"]))
    if args.quality:
        figures, card["figures"] = measured(card, args.quality)
        markdown = fill_block(markdown, "figures", figures)
    if args.manifest:
        data = data_text(args.manifest)
        markdown = fill_block(markdown, "data", data)
        card["data"] = data.split("\n")[0]
    write_json(path / "card.json", card)
    with atomic_file(text) as beside:
        beside.write_text(markdown, encoding="utf-8")
    print(text)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="folders below ufr_edge/weights")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_DIR, help="folder of the weights' folders")
    parser.add_argument("--quality", type=Path, help="folder that quality.py wrote")
    parser.add_argument("--manifest", type=Path, help="manifest.csv: split, file, side, source, licence")
    parser.add_argument("--run", type=Path, help="run folder of the training, for steps and hours")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--hardware")
    parser.add_argument("--recipe", help="the command that trains it")
    parser.add_argument("--summary", help="one line for `ufr-edge models list`")
    parser.add_argument("--fresh", action="store_true", help="write the prose anew too")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Fill the cards named. Raises UfrEdgeError."""
    for name in args.names:
        fill(name, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; an error is one line and its exit code."""
    return script_border(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
