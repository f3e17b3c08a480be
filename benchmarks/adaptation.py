"""Adapt to cameras that training has not seen, without ground truth, and measure it against base and oracle.

    python benchmarks/adaptation.py --faces ADAPT --val VAL --real TRAIN --restorer edge-m-256 --seeds 0 -o runs/adaptation

ADAPT: clean faces that play a camera's unlabelled ones once degraded; their clean versions serve the oracle alone. VAL:
held-out clean faces, for the figures. TRAIN: unrelated clean faces, for the adversarial term and replay. For each camera
and seed: targets and fine-tuning on the degraded faces (adapted), the same fine-tuning on true pairs (oracle), and what
either loses on the classic degradations. Writes adaptation.json and adaptation.md (taken into docs/quality.md by
benchmarks/quality.py --adaptation); what is done already is not done again, and a run that was stopped goes on.

Time on the 2-core reference CPU with 200 faces and the defaults: about 7 minutes of targets (60 calls; with
--fast-steps 20 two and a half), 8 of fine-tuning and 8 of the oracle, 2 of measuring: 25 minutes a camera and seed, so
some 4 hours for three cameras and three seeds. --limit and --steps shorten it in proportion.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cards import trained_seconds
from measured import digests

from ufr_edge import __version__
from ufr_edge.adaptation.adapt import AdaptConfig, adapt
from ufr_edge.adaptation.evaluate import measure
from ufr_edge.adaptation.faces import load_faces
from ufr_edge.adaptation.finetune import FinetuneConfig, finetune, load_pairs
from ufr_edge.adaptation.forecast import for_machine
from ufr_edge.adaptation.restorer_task import restore_batch
from ufr_edge.adaptation.sweep import sweep_targets
from ufr_edge.adaptation.targets import TargetsConfig
from ufr_edge.adaptation.training import pick_device, read_log
from ufr_edge.cli.options import override
from ufr_edge.degradations.presets import degrade
from ufr_edge.files import atomic_file, read_json, write_json
from ufr_edge.priors.features import find_features
from ufr_edge.priors.sampler import PRESETS
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.runtime.images import write_image
from ufr_edge.weights.cards import markdown_table

CAMERAS = ("raw-iso3000-x4", "codec-motion", "defocus")
CLASSIC = "classic"
GAPS = ("prior_feature_distance", "prior_frechet_distance")
"""Figures, lower is better, of which the share of the base-to-oracle gap is told."""
WANTED_GAP, WANTED_CLASSIC = 0.40, -0.3
RESULT = "adaptation.json"


def run_cell(camera: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One camera and seed: figures of base, adapted and oracle, on the camera and on the classic degradations."""
    folder = args.out / f"{camera}-seed{seed}"
    result, with_ = folder / "figures.json", made_with(args)
    if folder.exists() and not args.overwrite and read_json(folder / "settings.json") != with_:
        sys.exit(f"{folder} was made with other settings. Give --overwrite, or another -o.")
    if result.exists() and not args.overwrite:
        return dict(read_json(result))
    if args.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / "settings.json", with_)
    print(f"{camera}, seed {seed}", flush=True)
    started, begun = time.time(), (folder / "adapted").exists()
    faces, clean = prepare(
        args.faces, folder / "camera", folder / "clean", camera, args, seed=1000 * seed + 1
    )
    config = settings(args, seed)
    made = adapt(faces, folder / "adapted", config, real=args.real, tell=print)
    adapted_s = time.time() - started
    models = {"base": args.restorer, "adapted": str(made.weights)}
    if not args.no_oracle:
        models["oracle"] = str(
            finetune(faces, clean, folder / "oracle", config.aligned().finetune, real=args.real)
        )
    figures = {name: figures_on(name, models, args, seed) for name in (camera, CLASSIC)}
    cell = {
        "camera": camera,
        "seed": seed,
        "faces": len(load_faces(faces, args.side, minimum=1)),
        "figures": figures[camera],
        "classic": figures[CLASSIC],
        "verdicts": dict(made.targets.verdicts),
        "sampler": dataclasses.asdict(made.targets.sampler),
        "calls_per_target": made.targets.sampler.calls,
        # One that was begun before took longer than this call did.
        "seconds": {} if begun else seconds(folder / "adapted", adapted_s, time.time() - started),
    }
    write_json(result, cell)
    return cell


def seconds(run: Path, adapted: float, whole: float) -> dict[str, int]:
    """What a cell took: targets and fine-tuning apart, told by the log of the training in `run`, and all of it."""
    tuning = trained_seconds(read_log(run))
    return {"targets": round(adapted - tuning), "finetuning": round(tuning), "all": round(whole)}


def made_with(args: argparse.Namespace) -> dict[str, Any]:
    """What a cell depends on beside camera and seed."""
    names = (
        "restorer",
        "prior",
        "limit",
        "steps",
        "sampler",
        "fast_steps",
        "fidelity",
        "replay",
        "replay_target",
        "camera_pairs",
        "side",
    )
    unset = dict.fromkeys(("teacher", "w_features", "w_adversarial"))
    newer = {"camera_pairs_of": "targets", "real_detail": 0.0, **unset}  # what older cells do not name
    of = {name: getattr(args, name) for name, usual in newer.items() if getattr(args, name) != usual}
    return {**{name: getattr(args, name) for name in names}, **of, "real": args.real is not None}


def settings(args: argparse.Namespace, seed: int) -> AdaptConfig:
    """What `ufr-edge adapt` would take on this machine, with the options given here."""
    sampler = PRESETS.get(args.sampler, TargetsConfig().sampler)
    if args.fast_steps:
        sampler = dataclasses.replace(sampler, fast_steps=min(args.fast_steps, sampler.start))
    targets = for_machine(
        TargetsConfig(
            restorer=args.restorer,
            prior=args.prior,
            sampler=sampler,
            teacher=args.teacher,
            auto=args.sampler == "auto",
            seed=seed,
            device=args.device,
        )
    )
    tuning = FinetuneConfig(
        replay=args.replay,
        replay_target=args.replay_target,
        camera_pairs=args.camera_pairs,
        camera_pairs_of=args.camera_pairs_of,
        real_detail=args.real_detail,
        seed=seed,
    )
    training = tuning.training
    losses = training.losses if args.real else dataclasses.replace(training.losses, adversarial=0.0)
    training = dataclasses.replace(training, losses=losses, steps=args.steps or training.steps)
    config = AdaptConfig(
        targets=targets, finetune=dataclasses.replace(tuning, training=training), align=False, curve="never"
    )
    config = config if args.fidelity is None else config.at_fidelity(args.fidelity)
    weights = {"prior_features": args.w_features, "adversarial": args.w_adversarial}
    return override(config, {f"finetune.training.losses.{name}": value for name, value in weights.items()})


def prepare(
    source: Path, bad: Path, good: Path, camera: str, args: argparse.Namespace, *, seed: int
) -> tuple[Path, Path]:
    """Write clean faces and the same degraded by a camera under equal names, unless they lie there; return (bad, good)."""
    found = load_faces(source, args.side, limit=args.limit)
    names = [Path(name).stem + ".png" for name in found.names]
    for i, (name, face) in enumerate(zip(names, found.images, strict=True)):
        if not (bad / name).exists():
            write_image(good / name, face)
            write_image(bad / name, degrade(face, camera, seed=seed + i))
    return bad, good


def figures_on(
    camera: str, models: Mapping[str, str], args: argparse.Namespace, seed: int
) -> dict[str, dict[str, float]]:
    """Figures of each model on the held-out faces, degraded by `camera`."""
    bad, good = prepare(
        args.val,
        args.out / f"val-{camera}-seed{seed}" / "bad",
        args.out / f"val-{camera}-seed{seed}" / "clean",
        camera,
        argparse.Namespace(side=args.side, limit=None),
        seed=500_000 + 1000 * seed,
    )
    device = pick_device(args.device)
    pairs = load_pairs(bad, good, args.side, minimum=1)
    restored = {
        name: restore_batch(load_any_restorer(source).model.to(device), pairs.lq, device)
        for name, source in models.items()
    }
    return measure(restored, pairs.lq, pairs.truth, find_features(args.prior, device))


def gap_closed(figures: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    """Share of the way from base to oracle that adapting went; None where the oracle is no better, or was not trained."""
    if "oracle" not in figures:
        return None
    base, adapted, oracle = (figures[model][name] for model in ("base", "adapted", "oracle"))
    return None if oracle >= base else (base - adapted) / (base - oracle)


def summary(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a camera: figures over the seeds."""
    rows = []
    for camera in dict.fromkeys(cell["camera"] for cell in cells):
        own = [cell for cell in cells if cell["camera"] == camera]
        row: dict[str, Any] = {"camera": camera, "seeds": [cell["seed"] for cell in own]}
        for name in GAPS:
            if name in own[0]["figures"]["base"]:
                row[f"gap_{name}"] = [gap_closed(cell["figures"], name) for cell in own]
        row["psnr_change_db"] = [change(cell["figures"], "psnr_db") for cell in own]
        row["classic_change_db"] = [change(cell["classic"], "psnr_db") for cell in own]
        rows.append(row)
    return rows


def change(figures: Mapping[str, Mapping[str, float]], name: str) -> float:
    """Adapted less base."""
    return figures["adapted"][name] - figures["base"][name]


def spread(values: Sequence[float | None], *, form: str, scale: float = 1.0, unit: str = "") -> str:
    """Mean over the seeds, and the standard deviation where there are several."""
    known = [value * scale for value in values if value is not None]
    if not known:
        return "no gap"
    mean = format(statistics.mean(known), form)
    return f"{mean}{unit}" if len(known) < 2 else f"{mean} ± {statistics.stdev(known):.2g}{unit}"


def as_asked(row: Mapping[str, Any]) -> bool:
    """Whether every seed of a camera's row reached what was asked."""
    gaps = [row.get(f"gap_{name}", []) for name in GAPS]
    good = all(value is not None and value >= WANTED_GAP for gap in gaps for value in gap)
    return good and min(row["psnr_change_db"]) >= 0 and min(row["classic_change_db"]) >= WANTED_CLASSIC


def spreads(row: Mapping[str, Any]) -> list[str]:
    """A camera's gaps closed, PSNR and PSNR on the first training's degradations, over the seeds."""
    gaps = [spread(row.get(f"gap_{name}", []), form=".0f", scale=100, unit=" %") for name in GAPS]
    return [*gaps, *(spread(row[name], form="+.2f") for name in ("psnr_change_db", "classic_change_db"))]


def lead(result: Mapping[str, Any]) -> str:
    """What was run, and what was asked."""
    first = result["cells"][0]
    return (
        f"{first['faces']} unlabelled faces, {first['calls_per_target']} calls of the prior a target. Base is "
        f"{result['restorer']}, replay {result['replay']:g}; the oracle is the same fine-tuning on true pairs. "
        f"Asked: at least {WANTED_GAP:.0%} of each gap, PSNR no lower, at most {-WANTED_CLASSIC:g} dB lost on "
        f"{CLASSIC}. Features and Fréchet distance are on {result['prior']}'s own features: they are not LPIPS or FID."
    )


def tables(result: Mapping[str, Any]) -> list[str]:
    """A row for each camera, then one for each seed and model."""
    head = ["camera", "seeds", "gap closed, features", "gap closed, Fréchet", "PSNR, dB", "classic, dB"]
    rows = [
        [row["camera"], ", ".join(map(str, row["seeds"])), *spreads(row), "yes" if as_asked(row) else "no"]
        for row in result["summary"]
    ]
    each = []
    for cell in result["cells"]:
        for model, figures in cell["figures"].items():
            kept = [f"{figures[name]:.4g}" if name in figures else "" for name in ("psnr_db", *GAPS)]
            classic = f"{cell['classic'][model]['psnr_db']:.2f}"
            each.append([cell["camera"], str(cell["seed"]), model, *kept, classic])
    return [
        markdown_table([*head, "as asked"], rows),
        markdown_table(["camera", "seed", "", "PSNR, dB", *GAPS, "PSNR on classic, dB"], each),
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The rows for docs/quality.md, from the JSON alone."""
    return "\n\n".join([f"    {result['command']}", lead(result), *tables(result)])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--faces", type=Path, required=True, help="clean faces that play the camera's (ADAPT)"
    )
    parser.add_argument("--val", type=Path, required=True, help="held-out clean faces (VAL)")
    parser.add_argument(
        "--real", type=Path, help="unrelated clean faces (TRAIN); without: no adversarial term"
    )
    parser.add_argument("-o", "--output", dest="out", type=Path, default=Path("runs/adaptation"))
    parser.add_argument("--restorer", default="edge-m-256")
    parser.add_argument("--teacher", help="a heavier restorer that targets are made from")
    parser.add_argument("--prior", default="prior-256")
    parser.add_argument("--cameras", nargs="+", default=list(CAMERAS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit", type=int, default=200, help="unlabelled faces [200]")
    parser.add_argument("--steps", type=int, help="steps of fine-tuning [those of ufr-edge finetune]")
    parser.add_argument("--sampler", choices=["given", "auto", *PRESETS], default="given")
    parser.add_argument("--fast-steps", type=int, help="calls of the prior per target in place of all")
    parser.add_argument("--fidelity", type=float, help="the dial, 0 to 1")
    parser.add_argument(
        "--replay", type=float, default=0.25, help="share of classic pairs of --real [0.25 with --real]"
    )
    parser.add_argument(
        "--replay-target", choices=["before", "truth"], default="before", help="what is learned of them"
    )
    parser.add_argument(
        "--camera-pairs", type=float, default=0.0, help="share of pairs of the estimated camera [0]"
    )
    parser.add_argument(
        "--camera-pairs-of", choices=["targets", "real"], default="targets", help="what is degraded for them"
    )
    parser.add_argument(
        "--real-detail", type=float, default=0.0, help="draw sharp faces of --real more often: a power [0]"
    )
    for name, usual in (("features", 0.1), ("adversarial", 0.01)):
        parser.add_argument(f"--w-{name}", type=float, help=f"weight of the term [the dial's, {usual:g} without it]")
    parser.add_argument("--no-oracle", action="store_true", help="leave the training on true pairs out")
    parser.add_argument(
        "--sweep", action="store_true", help="also draw the dial's curve on each camera (12 faces)"
    )
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    args.replay = args.replay if args.real else 0.0
    return args


def shown_command(argv: Sequence[str], args: argparse.Namespace) -> str:
    """The command without this machine's folders."""
    folders = {args.faces: "ADAPT", args.val: "VAL", args.real: "TRAIN"}
    named = {str(path): name for path, name in folders.items() if path}
    words = [named.get(word, Path(word).name if Path(word).is_absolute() else word) for word in argv]
    return shlex.join(["python", "benchmarks/adaptation.py", *words])


def main(argv: Sequence[str] | None = None) -> None:
    """Run every cell, write the tables after each."""
    args = parse(argv)
    command = shown_command(list(argv if argv is not None else sys.argv[1:]), args)
    cells: list[dict[str, Any]] = []
    weights = digests((args.restorer, args.prior))
    for camera in args.cameras:
        for seed in args.seeds:
            cells.append(run_cell(camera, seed, args))
            result = {
                "kind": "adaptation",
                "program": f"ufr-edge {__version__}",
                "command": command,
                "restorer": args.restorer,
                "prior": args.prior,
                "weights": weights,
                "replay": args.replay,
                "camera_pairs": args.camera_pairs,
                "camera_pairs_of": args.camera_pairs_of,
                "real_detail": args.real_detail,
                "fidelity": args.fidelity,
                "teacher": args.teacher,
                "w_features": args.w_features,
                "w_adversarial": args.w_adversarial,
                "cells": cells,
                "summary": summary(cells),
            }
            write_json(args.out / RESULT, result)
            with atomic_file(args.out / "adaptation.md") as beside:
                beside.write_text(markdown(result) + "\n", encoding="utf-8")
        if args.sweep:
            bad, good = (args.out / f"val-{camera}-seed{args.seeds[0]}" / name for name in ("bad", "clean"))
            sweep_targets(bad, args.out / f"{camera}-dial", settings(args, args.seeds[0]).targets, truth=good)
    print(args.out / "adaptation.md")


if __name__ == "__main__":
    main()
