"""Frames over swaps and roll-backs of the engine of a live 720p30 stream; rows for docs/onsite.md.

    python benchmarks/swap.py runs/engines/edge-m-256.ufr -o runs/swap

Two versions of the bundle take turns, each tried in shadow and on probation first, as in `ufr-edge stream`; after each
turn the same span without one is the floor. Then a version that throws once it runs, time after time; the folder of
versions is a copy that is removed. Writes swap.json and section.md: asked, measured, met.

Time with the defaults (20 swaps, 10 roll-backs, a camera at its own speed): about 13 minutes, on a machine that must be quiet;
a swap and its floor take half a minute, a roll-back 12 s. On a busy machine shadow takes longer, and a swap twice that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from asked import Asked, write_found
from endurance_run import process_sizes
from live_latency import live_camera
from swap_run import AROUND_S, COUNTS, Running, count, install, roll_back, running, swap, swap_parser

from ufr_edge import __version__
from ufr_edge.cli.border import script_border
from ufr_edge.runtime.live.shadow import SwapConfig
from ufr_edge.runtime.machine import machine_name, read_power_state
from ufr_edge.weights.cards import command_block, markdown_table

RESULT = "swap.json"
WARM_S = 5.0
WANTED_BACK_S = 2.0
SPANS = {
    "whole": f"a swap, from the new link to {AROUND_S:g} s after the old engine is closed",
    "whole floor": "as long without one",
    "near": f"{AROUND_S:g} s before a swap to {AROUND_S:g} s after",
    "near floor": "as long without one",
    "back": f"{AROUND_S:g} s before the first throw to {AROUND_S:g} s after",
}
SIZES = ("rss_mib", "descriptors", "threads")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All swaps, then all roll-backs, of one stream. Raises UfrEdgeError."""
    power = read_power_state()
    config = SwapConfig(shadow_s=args.shadow_seconds, probation_s=args.probation_seconds)
    camera = live_camera(args.size, args.rate)
    with TemporaryDirectory() as folder:
        door = install(args.bundle, Path(folder))
        with running(door, config, camera, engine=args.engine_name) as run:
            time.sleep(WARM_S)
            sizes = [process_sizes()]
            parts = []
            for work, times in ((swap, args.swaps), (roll_back, args.rollbacks)):
                for number in range(times):
                    parts.append(work(run.site))
                    sizes.append(process_sizes())
                    print(f"{work.__name__} {number + 1} of {times}: {told(parts[-1])}", flush=True)
        stats = run.stream.snapshot()
    return {
        "version": __version__,
        "machine": machine_name(),
        "power": power.describe(),
        "doubts": power.doubts(),
        "command": shown(args),
        "stats": stats.to_json(),
        "refused": sum("refused" in part for part in parts),
        "spans": spans(run, parts, stats.deadline_ms),
        "back_ms": [part["ms"] for part in parts if "ms" in part],
        "sizes": [dict(zip(SIZES, size, strict=True)) for size in sizes],
        "events": [event.to_json() for event in run.events.last()],
    }


def told(part: Mapping[str, Any]) -> str:
    """One swap or roll-back in words."""
    if "refused" in part:
        return "REFUSED"
    return f"back after {part['ms']:.0f} ms" if "ms" in part else "done"


def spans(
    run: Running, parts: Sequence[Mapping[str, Any]], deadline_ms: float | None
) -> dict[str, list[dict[str, float]]]:
    """What became of the frames, for each kind of span."""
    return {
        name: [
            count(run.captured, run.came, part[name], deadline_ms=deadline_ms or float("inf"))
            for part in parts
            if name in part
        ]
        for name in SPANS
    }


def asked(found: Mapping[str, Any]) -> list[Asked]:
    """What was asked of swaps and roll-backs."""
    near, back = found["spans"]["near"], found["back_ms"]
    over = f"{len(near)} swaps ({AROUND_S:g} s before to {AROUND_S:g} s after)"
    summed = {name: sum(part[name] for part in near) if near else None for name in COUNTS}
    worst = max((part["late"] for part in near), default=None)
    longest = max(back) / 1000 if back else None
    return [
        Asked(f"frames dropped over {over}", 0, summed["dropped"], "frames"),
        Asked("frames shown twice over the same", 0, summed["duplicated"], "frames"),
        Asked("frames over the deadline, worst swap", 1, worst, "frames"),
        Asked(f"from the first throw to the old engine, longest of {len(back)}", WANTED_BACK_S, longest, "s"),
        Asked("refused, or back without having thrown", 0, found["refused"], "times"),
        Asked("descriptors grown after the first swap", 0, growth(found["sizes"], "descriptors"), "open"),
    ]


def growth(sizes: Sequence[Mapping[str, float]], name: str) -> float | None:
    """From after the first swap, which loads what is shared, to the end; None with too few."""
    return sizes[-1][name] - sizes[1][name] if len(sizes) > 2 else None


def section(found: Mapping[str, Any]) -> str:
    """The Markdown of it."""
    stats = found["stats"]
    parts = [
        "## Swaps and roll-backs of a live stream",
        *(f"> {doubt}" for doubt in found["doubts"]),
        f"{stats['width']}x{stats['height']}, {stats['engine']}, on {found['machine']}.",
        command_block(found["command"]),
        markdown_table(["", "asked", "measured", "met"], [item.row() for item in asked(found)]),
        f"A frame is late when it is older than {stats['deadline_ms'] or float('inf'):g} ms at the sink.",
        span_table(found["spans"]),
        remarks(found),
    ]
    return "\n\n".join(parts) + "\n"


def span_table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """What became of the frames, summed over the spans of a kind."""
    rows = []
    for name, words in SPANS.items():
        if parts := found[name]:
            seconds, *total = [f"{sum(part[key] for part in parts):.0f}" for key in ("seconds", *COUNTS)]
            worst = max(part["late"] for part in parts)
            rows.append([words, str(len(parts)), seconds, *total, f"{worst:g}"])
    return markdown_table(["frames captured within", "times", "s", *COUNTS, "late, worst"], rows)


def remarks(found: Mapping[str, Any]) -> str:
    """Roll-backs, failures and sizes in words."""
    first, last = found["sizes"][0], found["sizes"][-1]
    sizes = ", ".join(f"{name} {first[name]:.4g} before and {last[name]:.4g} after" for name in SIZES)
    said = f"Over the whole run {found['stats']['failed']} frames were let through untouched; {sizes}."
    if not found["back_ms"]:
        return said
    p50, p95, most = np.percentile(found["back_ms"], (50, 95, 100))
    back = f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, longest {most:.1f} ms"
    return f"From the first throw to the old engine's answer: {back}. {said}"


def shown(args: argparse.Namespace) -> str:
    """The command, without this machine's folders."""
    words = [
        "python benchmarks/swap.py",
        args.bundle.name,
        f"--swaps {args.swaps} --rollbacks {args.rollbacks}",
    ]
    words += [f"--shadow-seconds {args.shadow_seconds:g} --probation-seconds {args.probation_seconds:g}"]
    words += [f"--size {args.size} --rate {args.rate}"]
    return " ".join([*words, *([f"--engine-name {args.engine_name}"] if args.engine_name else [])])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = swap_parser(__doc__, Path("runs/swap"), swaps=20, size="1280x720", rate=30)
    parser.add_argument("--rollbacks", type=int, default=10)
    parser.add_argument("--shadow-seconds", type=float, default=5)
    parser.add_argument("--probation-seconds", type=float, default=5)
    args = parser.parse_args(arguments)
    if args.probation_seconds < 3:
        parser.error("--probation-seconds must be 3 or more: the engine that throws does so on probation")
    return args


def run(args: argparse.Namespace) -> None:
    """Do all of it. Raises UfrEdgeError."""
    found = measure(args)
    write_found(args.output, RESULT, found, section(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; an error is one line and its exit code."""
    return script_border(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
