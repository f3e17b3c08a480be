"""Memory, descriptors and threads of a live stream whose engine is exchanged a thousand times; rows for docs/onsite.md.

    python benchmarks/swap_memory.py runs/engines/edge-m-256.ufr -o runs/swap-memory

Two versions of the bundle take turns as fast as they load, each tried on one face. An allocator keeps what it once held,
so that a process grows at first: the growth is that of the last two thirds, median of 50 swaps against median of 50.
Writes memory.json, memory.png and section.md.

Time with the defaults (1,000 swaps): about 8 minutes. The machine need not be quiet: no time is measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from asked import Asked, write_found
from endurance_run import process_sizes
from live_latency import live_camera
from swap_run import GOOD, install, running, swap_parser

from ufr_edge import __version__
from ufr_edge.cli.border import script_border
from ufr_edge.errors import InferenceError
from ufr_edge.optional import require
from ufr_edge.runtime.live.shadow import SwapConfig
from ufr_edge.runtime.machine import machine_name
from ufr_edge.weights.cards import command_block, markdown_table

RESULT, PICTURE = "memory.json", "memory.png"
QUICK = SwapConfig(shadow_s=0.0, shadow_faces=1, every=1, probation_s=0.05, poll_s=0.01, slower=1000.0)
SIZES = ("rss_mib", "descriptors", "threads")
WARM_S, NEAR = 5.0, 50
WANTED_GROWTH_MB = 10.0
MIB = 1 << 20


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All swaps of one stream, and what the process holds after each. Raises UfrEdgeError."""
    camera = live_camera(args.size, args.rate)
    with TemporaryDirectory() as folder:
        door = install(args.bundle, Path(folder))
        with running(door, QUICK, camera, engine=args.engine_name) as run:
            time.sleep(WARM_S)
            sizes = [process_sizes()]
            for number in range(args.swaps):
                _, taken = run.site.ask(sum(GOOD) - run.site.slot.loaded.number)
                if taken is None:
                    msg = f"Swap {number + 1} was refused in shadow: {run.events.last()[0].text}"
                    raise InferenceError(msg)
                run.site.rest()
                sizes.append(process_sizes())
                if (number + 1) % 100 == 0:
                    print(f"{number + 1} of {args.swaps} swaps: {sizes[-1][0]:.1f} MiB", flush=True)
        stats = run.stream.snapshot()
    return {
        "version": __version__,
        "machine": machine_name(),
        "command": shown(args),
        "stats": stats.to_json(),
        "sizes": [dict(zip(SIZES, size, strict=True)) for size in sizes],
    }


def thirds(sizes: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """Medians at the start, after each third, and so at the end; of up to NEAR swaps each."""
    values = [size[name] for size in sizes]
    near = max(1, min(NEAR, len(values) // 4))
    places = [round(part * (len(values) - near) / 3) for part in range(4)]
    return [median(values[place : place + near]) for place in places]


def asked(found: Mapping[str, Any]) -> list[Asked]:
    """What was asked of many swaps."""
    _, third, _, last = thirds(found["sizes"], "rss_mib")
    count = len(found["sizes"]) - 1
    grown = {name: found["sizes"][-1][name] - found["sizes"][1][name] for name in SIZES}
    return [
        Asked(
            f"memory grown over the last two thirds of {count} swaps",
            WANTED_GROWTH_MB,
            (last - third) * MIB / 1e6,
            "MB",
            strict=True,
        ),
        Asked(f"descriptors grown over {count} swaps", 0, grown["descriptors"], "open"),
        Asked(f"threads grown over {count} swaps", 0, grown["threads"], "threads"),
        Asked("frames let through untouched", 0, found["stats"]["failed"], "frames"),
    ]


def section(found: Mapping[str, Any]) -> str:
    """The Markdown of it."""
    stats, parts = found["stats"], thirds(found["sizes"], "rss_mib")
    each = ", ".join(f"{before:.1f} to {after:.1f}" for before, after in pairwise(parts))
    return (
        "\n\n".join(
            [
                "## Memory over many swaps",
                f"{stats['width']}x{stats['height']}, {stats['engine']}, on {found['machine']}.",
                command_block(found["command"]),
                markdown_table(["", "asked", "measured", "met"], [item.row() for item in asked(found)]),
                f"Resident memory over each third, MiB: {each}; before the first swap {found['sizes'][0]['rss_mib']:.1f}.",
                f"![Resident memory after each swap]({PICTURE})",
            ]
        )
        + "\n"
    )


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Resident memory over swaps, as a picture."""
    figure = require("matplotlib.figure", extra="train").Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.add_subplot()
    memory = [size["rss_mib"] for size in found["sizes"]]
    axes.plot(memory, linewidth=0.8)
    axes.set(xlabel="swaps", ylabel="resident memory, MiB", ylim=(0, 1.1 * max(memory)))
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=110)


def shown(args: argparse.Namespace) -> str:
    """The command, without this machine's folders."""
    words = f"python benchmarks/swap_memory.py {args.bundle.name} --swaps {args.swaps}"
    words += f" --size {args.size} --rate {args.rate}"
    return f"{words} --engine-name {args.engine_name}" if args.engine_name else words


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = swap_parser(__doc__, Path("runs/swap-memory"), swaps=1000, size="640x360", rate=15)
    args = parser.parse_args(arguments)
    if args.swaps < 4:
        parser.error("--swaps must be 4 or more: the growth is that of their last two thirds")
    return args


def run(args: argparse.Namespace) -> None:
    """Do all of it. Raises UfrEdgeError."""
    found = measure(args)
    write_found(args.output, RESULT, found, section(found))
    draw(found, args.output / PICTURE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; an error is one line and its exit code."""
    return script_border(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
