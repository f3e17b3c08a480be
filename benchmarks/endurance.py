"""Run the live stream for long, and tell whether its memory grows and why it dropped what it dropped.

    python benchmarks/endurance.py runs/engines/edge-l-256.ufr -o runs/endurance

First `--minutes` (15) at 720p30 by the clock, then an hour's frames (`--frames` 108000) as fast as they go, through the
same stream: the synthetic camera with a time code in each frame, the live page with one who looks on, /metrics read
every 5 s, and a sink that reads the code. Each part is a process of its own; one that is given as 0 is left out, and taken
as an earlier call left it in the output folder. Writes endurance.json, section.md and endurance.png, which benchmarks/performance.py --take runs/endurance puts into docs/performance.md.

Time on the 2-core reference CPU: 15 minutes, and then about 40 for the hour (a quiet machine makes 40 to 50 frames/s).
`--minutes 1 --frames 3000` is a trial.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ufr_edge import __version__
from ufr_edge.cli.border import script_border
from ufr_edge.errors import InferenceError
from ufr_edge.files import atomic_file, read_json, write_json
from ufr_edge.optional import require
from ufr_edge.runtime.machine import machine_name, read_power_state
from ufr_edge.weights.cards import command_block, markdown_table

RUN = Path(__file__).with_name("endurance_run.py")
RESULT, SECTION, PICTURE = "endurance.json", "section.md", "endurance.png"
MOST_GROWTH_MIB = 20 / 1.048576
"""20 MB."""
WARM_SHARE, MOST_WARM_S = 0.2, 120.0
OLD_PERIODS = 2  # a frame older than so many periods has held up the one behind it
STALL_PERIODS = 1
SLOWEST = 3.0  # frames/s of the compressed hour, below which it is given up


@dataclass(frozen=True)
class Dropped:
    """Frames dropped between two samples. causes: what was seen to happen then; none: unexplained."""

    second: float
    count: int
    stages: str
    causes: tuple[str, ...]


def column(part: Mapping[str, Any], name: str) -> np.ndarray[Any, Any]:
    """One column of the samples."""
    rows = np.array(part["samples"], dtype=float).reshape(-1, len(part["columns"]))
    return rows[:, list(part["columns"]).index(name)]


def warm_from(seconds: np.ndarray[Any, Any]) -> float:
    """When the warm-up is over: a fifth of the time, two minutes at most."""
    return min(MOST_WARM_S, WARM_SHARE * float(seconds[-1])) if len(seconds) else 0.0


def growth(part: Mapping[str, Any], name: str = "rss_mib") -> tuple[float, float]:
    """(level, growth) of a column after the warm-up: median of the first third, and of the last less the first."""
    seconds, values = column(part, "seconds"), column(part, name)
    values = values[seconds >= warm_from(seconds)]
    values = values[:-1] if len(values) > 3 else values  # the last was taken after the stream's end
    third = len(values) // 3
    if third == 0:
        return (float(values[-1]) if len(values) else float("nan")), float("nan")
    first, last = float(np.median(values[:third])), float(np.median(values[-third:]))
    return first, last - first


def drops(part: Mapping[str, Any]) -> list[Dropped]:
    """When frames were dropped, and what happened then."""
    stages = [name for name in part["columns"] if name in part["stats"]["dropped"]]
    counts = {name: np.diff(column(part, name), prepend=0) for name in stages}
    period = 1000 / part["rate"]
    stall, step = column(part, "stall_ms"), column(part, "step")
    out = []
    for row, second in enumerate(column(part, "seconds")):
        by_stage = {name: int(counts[name][row]) for name in stages if counts[name][row]}
        if not by_stage:
            continue
        near = slice(max(0, row - 1), row + 2)  # a sample ends anywhere within a frame's way
        oldest, stalled = max(part["oldest_ms"][near]), float(stall[near].max())
        causes = []
        if stalled > STALL_PERIODS * period:
            causes.append(f"a thread that slept woke {stalled:.0f} ms late")
        if oldest > OLD_PERIODS * period:
            causes.append(f"a frame was {oldest:.0f} ms old")
        if step[near].max() > 0:
            causes.append("the ladder was down")
        told = ", ".join(f"{count} before {name}" for name, count in by_stage.items())
        out.append(Dropped(float(second), sum(by_stage.values()), told, tuple(causes)))
    return out


def unexplained(part: Mapping[str, Any]) -> int:
    """Frames that went missing without being counted, and those dropped while nothing was seen to happen."""
    counted: int = part["stats"]["dropped_total"] + part["stats"]["in_flight"] + part["unreadable"]
    return abs(len(part["missing"]) - counted) + sum(drop.count for drop in drops(part) if not drop.causes)


def row_of(label: str, part: Mapping[str, Any]) -> list[str]:
    """One part as a row of the table."""
    stats, (level, more) = part["stats"], growth(part)
    seconds = float(column(part, "seconds")[-1])
    changes = [
        f"{growth(part, name)[0]:.0f} {growth(part, name)[1]:+.0f}".replace("+nan", "")
        for name in ("descriptors", "threads")
    ]
    return [
        f"{label}, {part['part']}",
        f"{seconds / 60:.1f}",
        str(stats["frames_in"]),
        f"{stats['frames_out'] / seconds:.1f}",
        f"{level:.0f}",
        "" if np.isnan(more) else f"{more:+.1f}",
        *changes,
        str(stats["dropped_total"]),
        str(unexplained(part)),
    ]


def latency_line(part: Mapping[str, Any]) -> str:
    """The p95 of the minutes of a part."""
    p95 = [row[3] for row in part["minutes"] if row[1] >= part["rate"]]
    if not p95:
        return "- no whole minute"
    worst = int(np.argmax(p95))
    return (
        f"- glass to glass, p95 of each of {len(p95)} minutes: median {np.median(p95):.1f} ms, first {p95[0]:.1f}, "
        f"last {p95[-1]:.1f}, worst {p95[worst]:.1f} (minute {worst + 1}); oldest frame of all "
        f"{max(row[5] for row in part['minutes']):.0f} ms"
    )


def section(found: Mapping[str, Any], picture: str) -> str:
    """The Markdown of it."""
    parts, label = found["parts"], found["bundle"]
    head = [
        "",
        "min",
        "frames",
        "frames/s",
        "MiB",
        "growth",
        "descriptors",
        "threads",
        "dropped",
        "unexplained",
    ]
    size, rate = parts[0]["size"], parts[0]["rate"]
    lines = [
        "## Hours: memory and drops",
        "",
        *(f"> {doubt}\n" for doubt in found["doubts"]),
        f"{size} at {rate} frames/s, one face, the live page with one who looks on: by the clock, and then compressed, as",
        "fast as frames go through the same stream (nothing is dropped there: the camera waits). Resident memory of the",
        f"process after {WARM_SHARE:.0%} of the time ({MOST_WARM_S:.0f} s at most), median of the first third; growth is the",
        "median of the last third less it. Descriptors and threads alike. A drop counts as explained when within 5 s a",
        "sleeping thread woke a frame late, a frame came out two frames old or the ladder was down; a frame missing at the",
        "sink by its number and not counted as dropped is unexplained.",
        "",
        command_block(found["command"]),
        "",
        markdown_table(head, [row_of(label, part) for part in parts]),
        "",
    ]
    for part in parts:
        more = growth(part)[1]
        verdict = "kept" if more < MOST_GROWTH_MIB and unexplained(part) == 0 else "NOT kept"
        verdict = "too short to tell" if np.isnan(more) else verdict
        lines.append(f"- {part['part']}: growth under 20 MB and no unexplained drop: {verdict}")
        if part["part"] == "real":
            lines.append(latency_line(part))
    lines += ["", *_drop_table(parts)]
    lines += [f"![Memory and latency over time]({picture})", ""] if picture else []
    return "\n".join(lines)


def _drop_table(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = [(part["part"], drop) for part in parts for drop in drops(part)]
    if not shown:
        return []
    rows = [
        [name, f"{drop.second:.0f}", drop.stages, "; ".join(drop.causes) or "UNEXPLAINED"]
        for name, drop in shown[:12]
    ]
    rest = [f"... and {len(shown) - 12} more.", ""] if len(shown) > 12 else []
    return [markdown_table(["", "s", "dropped", "what was seen then"], rows), "", *rest]


def draw(parts: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Memory of each part over time, and below it latency by the minute (frames/s where there is no clock)."""
    figures = require("matplotlib.figure", extra="train")
    figure = figures.Figure(figsize=(4.2 * len(parts), 4.2), layout="constrained")
    axes = figure.subplots(2, len(parts), squeeze=False, sharex="col")
    for place, part in enumerate(parts):
        minutes = column(part, "seconds") / 60
        upper, lower = axes[:, place]
        memory = column(part, "rss_mib")
        upper.plot(minutes, memory, ".-", color="#4477aa", linewidth=1, markersize=2)
        upper.axvspan(0, warm_from(column(part, "seconds")) / 60, color="#dddddd")
        upper.set_ylim(0, 1.2 * float(memory.max()))
        upper.set_title(f"{part['part']}: {part['stats']['frames_out']} frames", fontsize=9)
        upper.set_ylabel("MiB resident", fontsize=8)
        by_minute = part["minutes"]
        where = [row[0] + 0.5 for row in by_minute]
        if part["part"] == "real":
            for index, style in ((2, "-"), (3, "--"), (4, ":")):
                name = {2: "p50", 3: "p95", 4: "p99"}[index]
                lower.plot(where, [row[index] for row in by_minute], f".{style}", color="#aa3377", label=name)
            lower.legend(fontsize=8)
            lower.set_ylabel("ms, glass to glass", fontsize=8)
        else:
            whole = by_minute[:-1] or by_minute
            lower.plot(where[: len(whole)], [row[1] / 60 for row in whole], ".-", color="#228833")
            lower.set_ylabel("frames/s", fontsize=8)
        lower.set_ylim(0)
        lower.set_xlabel("minutes", fontsize=8)
    with atomic_file(path) as beside:
        figure.savefig(beside, dpi=120, format="png")


def run_part(args: argparse.Namespace, name: str, limit_s: float, *more: object) -> dict[str, Any]:
    """One part in a process of its own. Raises InferenceError."""
    bundle, _, engine = args.bundle.partition(":")
    out = args.output / f"{name}.json"
    words = [sys.executable, RUN, bundle, "-o", out, "--size", args.size, "--limit-s", limit_s, *more]
    words += ["--engine-name", engine] if engine else []
    words += ["--no-page"] if args.no_page else []
    print(f"{name}:", flush=True)
    try:
        code = subprocess.run([str(word) for word in words], check=False, timeout=limit_s).returncode
    except subprocess.TimeoutExpired as exc:
        msg = f"The {name} part was given up after {limit_s:.0f} s. Give fewer --frames."
        raise InferenceError(msg) from exc
    if code:
        msg = f"The {name} part ended with {code}."
        raise InferenceError(msg)
    return dict(read_json(out))


def before(args: argparse.Namespace, name: str) -> dict[str, Any] | None:
    """A part that an earlier call left in the output folder."""
    path = args.output / f"{name}.json"
    return dict(read_json(path)) if path.is_file() else None


def run(args: argparse.Namespace) -> None:
    """Do all of it. Raises UfrEdgeError."""
    power = read_power_state()
    args.output.mkdir(parents=True, exist_ok=True)
    seconds, frames = args.minutes * 60, args.frames
    real = (
        run_part(args, "real", seconds * 1.2 + 300, "--seconds", seconds) if seconds else before(args, "real")
    )
    rest = (frames / SLOWEST + 300, "--frames", frames)
    fast = run_part(args, "compressed", *rest) if frames else before(args, "compressed")
    parts = [part for part in (real, fast) if part]
    name = Path(args.bundle.partition(":")[0])
    minutes = args.minutes or (real and round(column(real, "seconds")[-1] / 60)) or 0
    frames = args.frames or (fast and fast["stats"]["frames_in"]) or 0
    command = f"python benchmarks/endurance.py {name.name} --minutes {minutes:g} --frames {frames}"
    found = {
        "version": __version__,
        "machine": machine_name(),
        "power": power.describe(),
        "doubts": power.doubts(),
        "bundle": name.stem,
        "command": command,
        "parts": parts,
    }
    write_json(args.output / RESULT, found)
    draw(parts, args.output / PICTURE)
    with atomic_file(args.output / SECTION) as beside:
        beside.write_text(section(found, PICTURE), encoding="utf-8")
    print(f"written: {args.output / SECTION}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", metavar="BUNDLE[:ENGINE]")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/endurance"))
    parser.add_argument("--minutes", type=float, default=15, help="by the clock; 0: as it was")
    parser.add_argument("--frames", type=int, default=108_000, help="of the compressed part; 0: as it was")
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--no-page", action="store_true", help="into nothing alone")
    args = parser.parse_args(arguments)
    if args.minutes <= 0 and args.frames <= 0:
        parser.error("--minutes and --frames are both 0: nothing is left to do")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; an error is one line and its exit code."""
    return script_border(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
