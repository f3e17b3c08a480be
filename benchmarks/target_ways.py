"""Ways to the targets of a camera side by side: the paper's chain, the light one, chosen from the faces, by a teacher.

    python benchmarks/target_ways.py --faces VAL -o runs/ways

Held-out faces, made bad by cameras that training has not seen; the targets of `ufr-edge targets` by each way, measured
against the truth, which only a benchmark knows. Writes ways.json to docs/measured/, of which benchmarks/quality.py
makes a section. About 15 minutes on one CPU core; goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dial_curve import FIGURES, figure_cells
from measured import KEPT, digests, earlier

from ufr_edge.adaptation.evaluate import measure
from ufr_edge.adaptation.faces import load_faces
from ufr_edge.adaptation.forecast import for_machine
from ufr_edge.adaptation.pairing import load_pairs
from ufr_edge.adaptation.prior_pages import kept
from ufr_edge.adaptation.qa import QaConfig
from ufr_edge.adaptation.restorer_task import restore_batch
from ufr_edge.adaptation.targets import TargetsConfig, make_targets
from ufr_edge.adaptation.training import pick_device
from ufr_edge.cli.border import script_border
from ufr_edge.degradations.presets import degrade
from ufr_edge.files import write_json
from ufr_edge.priors.features import find_features
from ufr_edge.priors.sampler import LIGHT_TOUCH, PAPER_CODEFORMER, PAPER_SWINIR
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.runtime.images import write_image
from ufr_edge.weights.cards import command_block, markdown_table

RESULT = "ways.json"
COMMAND = "python benchmarks/target_ways.py --faces VAL -o runs/ways"
CAMERAS = ("raw-iso3000-x4", "raw-iso1500-x4", "codec-motion")
COUNT, CALLS = 20, 20
RESTORER, TEACHER, PRIOR = "edge-m-256", "edge-l-256", "prior-256"
WAYS: Mapping[str, tuple[str, TargetsConfig]] = MappingProxyType(
    {
        "paper-swinir": ("--start 150 --hold-until 90 -N 16", TargetsConfig(sampler=PAPER_SWINIR)),
        "paper-codeformer": ("--start 150 --hold-until 90 -N 8", TargetsConfig(sampler=PAPER_CODEFORMER)),
        "light": ("", TargetsConfig(sampler=LIGHT_TOUCH)),
        "auto": ("--sampler auto", TargetsConfig(sampler=LIGHT_TOUCH, auto=True)),
        "teacher": (f"--teacher {TEACHER}", TargetsConfig(sampler=LIGHT_TOUCH, teacher=TEACHER)),
    }
)
"""By name: the options of `ufr-edge targets`, and what they stand for."""


def camera_figures(camera: str, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of the restorer's output and of the targets by each way, and the sampler that each used."""
    bad, good = prepare(camera, args)
    device = pick_device("auto")
    pairs = load_pairs(bad, good, 256, goal="truth")
    restored = restore_batch(load_any_restorer(RESTORER).model.to(device), pairs.lq, device)
    stacks, used = {"restored": restored}, {}
    for name, (_, way) in WAYS.items():
        fast = dataclasses.replace(way.sampler, fast_steps=CALLS)
        every = QaConfig(judge=False)  # rejected ones are measured too
        config = for_machine(dataclasses.replace(way, sampler=fast, restorer=RESTORER, prior=PRIOR, qa=every))
        made = make_targets(bad, args.output / camera / name, config, tell=print)
        stacks[name] = load_pairs(good, made.folder, 256).truth
        used[name] = {"start": made.sampler.start, "hold": made.sampler.hold_until, "n": made.sampler.filter_n}
        used[name]["held"] = made.sampler.tail_filter_n or 0
    features = find_features(PRIOR, device)
    return {"figures": measure(stacks, pairs.lq, pairs.truth, features), "samplers": used}


def prepare(camera: str, args: argparse.Namespace) -> tuple[Path, Path]:
    """Clean faces evenly over the folder, and the same through a camera, under equal names."""
    bad, good = args.output / camera / "bad", args.output / camera / "good"
    every = load_faces(args.faces, 256)
    for i in range(COUNT):
        face = every.images[i * len(every) // COUNT]
        write_image(good / f"{i:02d}.png", face)
        write_image(bad / f"{i:02d}.png", degrade(face, camera, seed=i))
    return bad, good


def section(record: Mapping[str, Any]) -> list[str]:
    """The part of docs/quality.md."""
    said = (
        f"Targets of {record['faces']} held-out faces against their truth, {record['calls']} calls of the prior each, by "
        f"`ufr-edge targets -i FACES -o TARGETS --no-qa --fast-steps {record['calls']}` and the options named. Restorer {RESTORER}, "
        f"teacher {TEACHER}. What adapting makes of them: above. auto knows no truth: it looks at 12 of the faces and at "
        "levels of clean ones."
    )
    parts = ["## Other ways to the targets", *earlier(record["weights"]), command_block(record["command"]), said]
    for camera, found in record["cameras"].items():
        parts += [f"**{camera}**", _table(found)]
    return parts


def _table(found: Mapping[str, Any]) -> str:
    head = ["", "options", "start", "hold until", "N", *FIGURES]
    figures = found["figures"]
    rows = [["the restorer's output", "", "", "", "", *figure_cells(figures["restored"])]]
    for name, (options, _) in WAYS.items():
        used = found["samplers"][name]
        n = f"{used['n']}, then {used['held']}" if used["held"] else f"{used['n']}"
        rows.append([name, f"`{options}`" if options else "", f"{used['start']}", f"{used['hold']}", n])
        rows[-1] += figure_cells(figures[name])
    return markdown_table(head, rows)


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Start and N chosen for each camera from its faces, against the paper's values set by hand."""
    found = []
    name = "prior_feature_distance"
    for camera, one in record["cameras"].items():
        used, figures = one["samplers"]["auto"], one["figures"]
        theirs = min(figures[way][name] for way in ("paper-swinir", "paper-codeformer"))
        said = f"{camera}: start, hold and N chosen from the faces (`--sampler auto`): targets no farther from the truth than "
        is_ = f"{used['start']}, {used['hold']}, {used['n']}: {figures['auto'][name]:.3f} against {theirs:.3f}"
        good = figures["auto"][name] <= theirs
        found.append([said + "those of the paper's values (features)", is_, kept(good)])
    return found


def run(args: argparse.Namespace) -> None:
    """Measure and write."""
    record = {
        "command": COMMAND,
        "weights": digests((RESTORER, TEACHER, PRIOR)),
        "faces": COUNT,
        "calls": CALLS,
        "cameras": {camera: camera_figures(camera, args) for camera in CAMERAS},
    }
    write_json(args.kept / RESULT, record)
    print("\n\n".join(section(record)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run; an error is one line and its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True, help="held-out clean faces (VAL)")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/ways"))
    parser.add_argument("--kept", type=Path, default=KEPT, help="where the JSON is kept [docs/measured]")
    args = parser.parse_args(argv)
    return script_border(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
