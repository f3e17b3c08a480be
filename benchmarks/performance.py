"""Measure files, live streams, memory and steadiness on this machine, and write docs/performance.md.

    python benchmarks/performance.py runs/engines/edge-m-256.ufr runs/engines/edge-l-512.ufr [--quick] [--take runs/faces]

BUNDLE[:ENGINE] names what is measured; without ENGINE, the one `ufr-edge run` would choose. The clips and the camera
are made here, with one face. Without bundles, those that benchmarks/engines.py left in runs/engines are taken. --take puts
in what endurance.py, comparison.py and faces.py measured before: folders with a section.md and its pictures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from asked import performance_section

from ufr_edge import __version__
from ufr_edge.cli.border import script_border
from ufr_edge.errors import InferenceError, InputFileError
from ufr_edge.files import atomic_file, write_json
from ufr_edge.optional import require
from ufr_edge.runtime.bundle import open_bundle_engine
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.machine import PowerState, machine_name, read_power_state
from ufr_edge.runtime.motion_metrics import (
    Filmed,
    MotionFigures,
    SpeakingScene,
    find_landmarks,
    measure_motion,
)
from ufr_edge.runtime.pipeline import PipelineConfig
from ufr_edge.runtime.run import RunConfig, open_detector
from ufr_edge.runtime.video.opening import builtin_picture
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo
from ufr_edge.runtime.video.synthetic import Motion, SyntheticScene
from ufr_edge.runtime.video.writer import EncodeConfig, VideoWriter
from ufr_edge.weights.cards import command_block, markdown_table

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "performance.md"
LIVE = Path(__file__).with_name("live_latency.py")
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}
RATE = 30
WARM_SHARE = 0.2  # of a live run, before memory counts
LIMIT_S = 1800
SECTION = "section.md"
STILL = Motion(zoom=(1.0, 1.0), pan=0.0, turn=0.0)


@dataclass(frozen=True, kw_only=True)
class Length:
    """frames: of each clip. live_s: of each live run. motion: frames of each scene."""

    frames: int
    live_s: float
    motion: int


QUICK, FULL = Length(frames=150, live_s=20, motion=48), Length(frames=900, live_s=900, motion=150)


@dataclass(frozen=True)
class Choice:
    """A bundle and the engine of it, None for the best."""

    bundle: Path
    engine: str | None

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Read BUNDLE or BUNDLE:ENGINE."""
        path, _, engine = text.partition(":")
        return cls(Path(path), engine or None)

    @property
    def label(self) -> str:
        """For tables."""
        return self.bundle.stem + (f" {self.engine}" if self.engine else "")


@dataclass(frozen=True)
class Live:
    """What benchmarks/live_latency.py printed."""

    stats: Mapping[str, Any]
    ages_ms: Sequence[float]
    unreadable: int
    memory: Sequence[Sequence[float]]
    events: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Measured:
    """One choice: file reports by size, the live run, figures of motion by scene and setting."""

    label: str
    files: Mapping[str, Mapping[str, Any]]
    live: Live
    motion: Mapping[str, Mapping[str, MotionFigures]]


def noisy(frame: Frame, index: int) -> Frame:
    """A sensor's noise of 6 levels, another in each frame."""
    noise = np.random.default_rng(index).normal(0, 6, frame.shape)
    return np.asarray(np.clip(frame + noise, 0, 255), np.uint8)


def make_clip(path: Path, size: tuple[int, int], frames: int) -> None:
    """An H.264 clip of the synthetic camera at 30 frames/s."""
    scene = SyntheticScene([builtin_picture()], size=size, frames=frames)
    info = VideoInfo(
        name=path.name, width=size[0], height=size[1], rate=Fraction(RATE), time_base=Fraction(1, RATE)
    )
    writer = VideoWriter(path, info, size=size, config=EncodeConfig(crf=20))
    for index in range(frames):
        image = scene.glance(index)
        writer.write(SourceFrame(index=index, pts=index, time_base=info.time_base, image=image))
    writer.finish()


def run_file(choice: Choice, clip: Path, out: Path, *more: object) -> dict[str, Any]:
    """`ufr-edge run` on a clip, with more words; its JSON report."""
    command = [sys.executable, "-m", "ufr_edge", "run", "-i", clip, "-o", out, "--engine", choice.bundle]
    name = ["--engine-name", choice.engine] if choice.engine else []
    found: dict[str, Any] = _json_of([*command, *name, *more, "--overwrite", "--json"])
    return found


def run_live(choice: Choice, seconds: float) -> Live:
    """720p30 of the synthetic camera into nothing."""
    name = ["--engine-name", choice.engine] if choice.engine else []
    return Live(**_json_of([sys.executable, LIVE, choice.bundle, *name, "--seconds", seconds]))


def run_motion(choice: Choice, frames: int) -> dict[str, dict[str, MotionFigures]]:
    """Flicker, jitter and PSNR of three scenes filmed with noise, without and with the stabiliser."""
    configs = {"without": PipelineConfig(stabilise=None), "with": PipelineConfig()}
    picture = builtin_picture()
    with ExitStack() as stack:
        engine = stack.enter_context(open_bundle_engine(choice.bundle, engine=choice.engine))
        detector = stack.enter_context(open_detector(engine, RunConfig()))
        points = find_landmarks(picture, detector)
        scenes: dict[str, Filmed] = {
            "still": SyntheticScene([picture], frames=frames, sensor=noisy, motion=STILL),
            "moving": SyntheticScene([picture], frames=frames, sensor=noisy),
            "speaking": SpeakingScene(picture, points, frames=frames, sensor=noisy),
        }
        return {
            name: measure_motion(scene, engine, detector, configs, landmarks=points)
            for name, scene in scenes.items()
        }


def _json_of(command: Sequence[Any]) -> Any:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        msg = f"{' '.join(map(str, command[1:]))} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
        raise InferenceError(msg)
    return json.loads(done.stdout)


def file_section(results: Sequence[Measured]) -> list[str]:
    """Frames per second file to file, and the time of each stage."""
    rows, stages = [], []
    for result in results:
        for size, report in result.files.items():
            rows.append([result.label, size, f"{report['frames_per_second']:.1f}", str(report["frames_out"])])
            for stage in report["stages"]:
                times = [f"{stage[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms")]
                stages.append([f"{result.label} {size}", stage["name"], *times])
    return [
        "## File to file",
        "",
        "H.264 in, H.264 out (veryfast, crf 18), 30 frames/s, one face in each frame:",
        "",
        command_block("ufr-edge run -i clip.mp4 -o restored.mp4 --engine BUNDLE"),
        "",
        markdown_table(["bundle", "size", "frames/s", "frames"], rows),
        "",
        "Reading, restoring and writing overlap in three threads: the stages' times hold waiting for a core.",
        "",
        markdown_table(["", "stage", "p50 ms", "p95 ms", "p99 ms"], stages),
        "",
    ]


def live_section(results: Sequence[Measured], picture: str) -> list[str]:
    """Latency, drops and memory of the live runs."""
    rows = []
    for result in results:
        live, stats = result.live, result.live.stats
        spread = (
            [f"{v:.1f}" for v in np.percentile(live.ages_ms, (50, 95, 99))] if live.ages_ms else ["-"] * 3
        )
        first, last = memory_growth(live.memory)
        counts = [str(stats["frames_in"]), str(stats["dropped_total"]), str(stats["late"])]
        rows.append(
            [
                result.label,
                f"{stats['seconds']:.0f}",
                *spread,
                *counts,
                f"{first:.0f}",
                f"{last - first:+.1f}",
            ]
        )
    head = ["bundle", "s", "p50 ms", "p95 ms", "p99 ms", "frames", "dropped", "late", "MiB", "growth"]
    moves = [
        f"- {result.label}: {event['kind']}: {event['text']}"
        for result in results
        for event in result.live.events
        if event.get("kind") not in ("start", "end")
    ]
    return [
        "## Live, 720p at 30 frames/s",
        "",
        "Glass to glass: from the time code that the camera draws into a frame to that code read at the sink. One",
        f"face. Memory is the process's own (resident), after the first {WARM_SHARE:.0%} of the time and at the end.",
        "",
        command_block('ufr-edge stream "synthetic://?size=1280x720" null:// --engine BUNDLE --latency'),
        "",
        markdown_table(head, rows),
        "",
        *([*moves[:8], ""] if moves else []),
        *([f"![Latency of every frame]({picture})", ""] if picture else []),
    ]


def memory_growth(samples: Sequence[Sequence[float]]) -> tuple[float, float]:
    """MiB after the warm-up and at the end: medians of the first and the last tenth after it."""
    if not samples:
        return 0.0, 0.0
    end = samples[-1][0]
    warm = [mib for second, mib in samples if second >= WARM_SHARE * end] or [samples[-1][1]]
    tenth = max(1, len(warm) // 10)
    return float(np.median(warm[:tenth])), float(np.median(warm[-tenth:]))


def motion_section(results: Sequence[Measured]) -> list[str]:
    """Flicker and jitter with and without the stabiliser."""
    rows = []
    for result in results:
        for scene, by_setting in result.motion.items():
            base = by_setting["without"].flicker
            for setting, found in by_setting.items():
                less = "" if setting == "without" else f"{100 * (1 - found.flicker / base):.0f} %"
                figures = [f"{found.flicker:.2f}", less, f"{found.jitter_px:.2f}", f"{found.psnr_db:.2f}"]
                rows.append([result.label, scene, setting, *figures, str(found.identities)])
    head = ["bundle", "scene", "stabiliser", "flicker", "less", "jitter px", "PSNR dB", "tracks"]
    return [
        "## Steadiness",
        "",
        "Flicker: mean second difference in time of the face's error, in 8-bit levels. Jitter: of the alignment, in pixels",
        "at 512. Sensor noise of 6 levels; `runtime/motion_metrics.py` says how both are taken.",
        "",
        markdown_table(head, rows),
        "",
    ]


def page(
    results: Sequence[Measured], power: PowerState, command: str, picture: str, taken: Sequence[Path] = ()
) -> str:
    """docs/performance.md; `taken`: folders whose section.md comes after its own sections."""
    grown = [after - before for before, after in (memory_growth(r.live.memory) for r in results)]
    lines = [
        "# Performance, measured",
        "",
        f"ufr-edge {__version__} on {machine_name()}; {power.describe()}. Written by",
        "",
        command_block(command),
        "",
        "and no figure is typed by hand. Engines by themselves, and what int8 costs: engines.md.",
        "",
        *(f"> {doubt}\n" for doubt in power.doubts()),
        *(f"- {result.label}: {result.live.stats['engine']}" for result in results),
        "",
        *performance_section(machine_name(), [asdict(r) for r in results], grown, taken),
        *file_section(results),
        *live_section(results, picture),
        *motion_section(results),
        *((folder / SECTION).read_text(encoding="utf-8").rstrip() + "\n" for folder in taken),
    ]
    return "\n".join(lines).rstrip() + "\n"


def draw_latency(results: Sequence[Measured], path: Path) -> None:
    """A histogram of every frame's latency, one row for each bundle."""
    figures = require("matplotlib.figure", extra="train")
    figure = figures.Figure(figsize=(7, 1.7 * len(results) + 0.6), layout="constrained")
    axes = figure.subplots(len(results), sharex=True, squeeze=False)[:, 0]
    for axis, result in zip(axes, results, strict=True):
        axis.hist(result.live.ages_ms, bins=60, color="#4477aa")
        if result.live.ages_ms:
            for share, style in ((50, "-"), (95, "--"), (99, ":")):
                value = np.percentile(result.live.ages_ms, share)
                axis.axvline(
                    value, color="#aa3377", linestyle=style, linewidth=1, label=f"p{share} {value:.0f} ms"
                )
            axis.legend(fontsize=8)
        axis.set_title(result.label, fontsize=9)
        axis.set_ylabel("frames", fontsize=8)
    axes[-1].set_xlabel("ms, glass to glass", fontsize=8)
    with atomic_file(path) as beside:
        figure.savefig(beside, dpi=120, format="png")


def measure(choice: Choice, clips: Mapping[str, Path], out: Path, length: Length) -> Measured:
    """All of one bundle."""
    files = {}
    for size, clip in clips.items():
        files[size] = run_file(choice, clip, out / "restored.mp4")
        print(f"  {size}: {files[size]['frames_per_second']:.1f} frames/s", flush=True)
    live = run_live(choice, length.live_s)
    print(f"  live: {live.stats['frames_out']} frames, {live.stats['dropped_total']} dropped", flush=True)
    motion = run_motion(choice, length.motion)
    return Measured(choice.label, files, live, motion)


def run(args: argparse.Namespace) -> None:
    """Do all of it. Raises UfrEdgeError."""
    power = read_power_state()  # before our own work loads the machine
    started = time.monotonic()
    length = QUICK if args.quick else FULL
    if args.seconds is not None:
        length = Length(frames=length.frames, live_s=args.seconds, motion=length.motion)
    choices = [Choice.parse(text) for text in args.bundle] or [
        Choice(path, None) for path in sorted((ROOT / "runs" / "engines").glob("*.ufr"))
    ]
    if not choices:
        msg = "No bundle was given and runs/engines holds none. Run: python benchmarks/engines.py"
        raise InputFileError(msg)
    for folder in args.take:
        if not (folder / SECTION).is_file():
            msg = f"{folder} holds no {SECTION}. Run the benchmark that writes it (endurance.py, comparison.py, faces.py) first."
            raise InputFileError(msg)
    args.output.mkdir(parents=True, exist_ok=True)
    clips = {name: args.output / f"{name}.mp4" for name in SIZES}
    for name, path in clips.items():
        make_clip(path, SIZES[name], length.frames)
    results = []
    for choice in choices:
        print(choice.label, flush=True)
        results.append(measure(choice, clips, args.output, length))
    write_json(args.output / "performance.json", [asdict(result) for result in results])
    picture = args.page.with_name("latency.png")
    draw_latency(results, picture)
    command = (
        f"python benchmarks/performance.py {' '.join(c.bundle.name for c in choices)}"
        + " --quick" * args.quick
        + (f" --take {' '.join(folder.name for folder in args.take)}" if args.take else "")
    )
    for path in (path for folder in args.take for path in sorted(folder.glob("*.png"))):
        with atomic_file(args.page.with_name(path.name)) as beside:
            beside.write_bytes(path.read_bytes())
    with atomic_file(args.page) as beside:
        beside.write_text(page(results, power, command, picture.name, args.take), encoding="utf-8")
    print(f"written: {args.page} after {time.monotonic() - started:.0f} s")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="*", metavar="BUNDLE[:ENGINE]")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "runs" / "performance")
    parser.add_argument("--page", type=Path, default=DOCS)
    parser.add_argument("--quick", action="store_true", help="less than four minutes instead of an hour")
    parser.add_argument("--seconds", type=float, help="of each live run")
    parser.add_argument("--take", type=Path, nargs="+", default=[], help="folders of measurements to put in")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; an error is one line and its exit code."""
    return script_border(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
