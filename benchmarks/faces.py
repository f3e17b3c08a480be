"""What each further face in the picture costs, beside what the engine itself takes for one.

    python benchmarks/faces.py runs/engines/edge-l-256-512.ufr runs/engines/edge-l-256.ufr -o runs/faces

The same synthetic 720p camera with one, two and four faces in view. In turn: the three pictures go through the pipeline
stage after stage, frame by frame in turn with one face through the engine alone, so that whatever else the machine does
meets all alike. Together: the stream's threads, as fast as frames go. Writes faces.json and section.md, for
benchmarks/performance.py --take runs/faces.

Time on the 2-core reference CPU: about a minute a bundle.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from endurance_run import FastCamera, Ledger
from live_latency import opened
from performance import RATE, Choice

from ufr_edge import __version__
from ufr_edge.cli.border import script_border
from ufr_edge.errors import InferenceError
from ufr_edge.files import atomic_file, write_json
from ufr_edge.runtime.bundle import open_bundle_engine
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.live.stream import StreamConfig
from ufr_edge.runtime.machine import machine_name, read_power_state
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig
from ufr_edge.runtime.run import RunConfig, open_detector
from ufr_edge.runtime.timing import StageClock
from ufr_edge.runtime.video.opening import builtin_picture
from ufr_edge.runtime.video.source import VideoInfo
from ufr_edge.runtime.video.synthetic import Motion, SyntheticScene
from ufr_edge.weights.cards import command_block, markdown_table

COUNTS = (1, 2, 4)
SIZE = (1280, 720)
WANTED = 1.3
WARM = 12
MOTION = Motion(zoom=(1.0, 1.04), pan=0.01, turn=2.0)
RESULT, SECTION = "faces.json", "section.md"


def crowd(count: int) -> Frame:
    """A picture of four quarters, `count` of them with a face, the others its colours alone: uint8 (720, 1280, 3)."""
    width, height = SIZE[0] // 2, SIZE[1] // 2
    face = cv2.resize(builtin_picture(), (round(height * 4 / 3), height), interpolation=cv2.INTER_CUBIC)
    side = (width - face.shape[1]) // 2
    face = cv2.copyMakeBorder(
        face, 0, 0, side, width - face.shape[1] - side, borderType=cv2.BORDER_REFLECT_101
    )
    empty = cv2.GaussianBlur(face, (0, 0), 40)
    cells = [face if cell < count else empty for cell in range(4)]
    return np.asarray(np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])]), np.uint8)


def in_turn(choice: Choice, frames: int) -> dict[str, Any]:
    """Milliseconds of each stage and of the whole by number of faces, and of the engine alone. Raises UfrEdgeError."""
    scenes = {n: SyntheticScene([crowd(n)], size=SIZE, frames=WARM + frames, motion=MOTION) for n in COUNTS}
    clocks = {n: StageClock() for n in COUNTS}
    with ExitStack() as stack:
        engine = stack.enter_context(open_bundle_engine(choice.bundle, engine=choice.engine))
        detector = stack.enter_context(open_detector(engine, RunConfig()))
        pipes = {n: FacePipeline(engine, detector, PipelineConfig(), clock=clocks[n]) for n in COUNTS}
        side = engine.info.side or 256
        one = np.asarray(cv2.resize(builtin_picture()[:, 48:336], (side, side)), np.uint8)[None]
        whole: dict[int, list[float]] = {n: [] for n in COUNTS}
        alone: list[float] = []
        for index in range(WARM + frames):
            for n, scene in scenes.items():
                image = scene.glance(index)
                took, done = _timed(partial(pipes[n].process, image, time_s=index / RATE))
                if index >= WARM:
                    whole[n].append(took)
                    if done.count != n:
                        msg = f"{done.count} faces of {n} were found in frame {index}."
                        raise InferenceError(msg)
            alone.append(_timed(partial(engine.infer, one))[0])
    stages = {n: {s.name: s.total_ms / s.count for s in clock.timings()} for n, clock in clocks.items()}
    return {
        "engine": engine.info.describe(),
        "side": side,
        "engine_ms": float(np.median(alone[WARM:])),
        "whole_ms": {n: float(np.mean(times)) for n, times in whole.items()},
        # Frame by frame, so that a detection, which three frames in a row share, falls out.
        "further_ms": {
            n: float(np.median((np.array(whole[n]) - np.array(whole[1])) / (n - 1))) for n in COUNTS[1:]
        },
        "stages_ms": stages,
    }


def _timed(work: Any) -> tuple[float, Any]:
    since = time.perf_counter()
    done = work()
    return (time.perf_counter() - since) * 1000, done


def together(choice: Choice, frames: int) -> dict[int, float]:
    """Milliseconds per frame by number of faces in the stream's threads, as fast as frames go. Raises UfrEdgeError."""
    info = VideoInfo(
        name="synthetic", width=SIZE[0], height=SIZE[1], rate=Fraction(RATE), time_base=Fraction(1, RATE)
    )
    out = {}
    for n in COUNTS:
        scene = SyntheticScene([crowd(n)], size=SIZE, frames=max(2, frames), motion=MOTION)
        ledger = Ledger(WARM + frames)

        def camera(stop: Any, _events: Any, scene: SyntheticScene = scene) -> FastCamera:
            return FastCamera(scene, info, frames=WARM + frames, stop=stop)

        with opened(choice.bundle, [ledger], camera, StreamConfig(), engine=choice.engine) as (stream, _):
            stream.run()
        out[n] = float(ledger.came_s[-1] - ledger.came_s[WARM - 1]) / frames * 1000
    return out


def measure(choice: Choice, frames: int) -> dict[str, Any]:
    """One bundle."""
    found = in_turn(choice, frames)
    streamed = together(choice, frames)
    further = {n: (streamed[n] - streamed[1]) / (n - 1) for n in COUNTS[1:]}
    return {"name": choice.label, **found, "stream_ms": streamed, "stream_further_ms": further}


def section(found: Mapping[str, Any]) -> str:
    """The Markdown of it."""
    rows, stages, verdicts = [], [], []
    for one in found["bundles"]:
        engine = one["engine_ms"]
        for n in COUNTS:
            rows.append(
                [
                    one["name"],
                    str(n),
                    f"{engine:.1f}" if n == 1 else "",
                    f"{one['whole_ms'][n]:.1f}",
                    *_times(one["further_ms"].get(n), engine),
                    f"{one['stream_ms'][n]:.1f}",
                    *_times(one["stream_further_ms"].get(n), engine),
                ]
            )
        for name, base in one["stages_ms"][1].items():
            most = one["stages_ms"][COUNTS[-1]].get(name, 0.0)
            stages.append([one["name"], name, f"{base:.1f}", f"{(most - base) / (COUNTS[-1] - 1):.2f}"])
        times = {
            "in turn": one["further_ms"][COUNTS[-1]] / engine,
            "in the stream's threads": one["stream_further_ms"][COUNTS[-1]] / engine,
        }
        told = ", ".join(
            f"{how} {x:.2f} x ({'kept' if x <= WANTED else 'NOT kept'})" for how, x in times.items()
        )
        verdicts.append(
            f"- {one['name']}: each further face at most {WANTED:g} times the engine's own time: {told}"
        )
    head = ["bundle", "faces", "engine ms", "in turn ms", "each further", "x engine"]
    head += ["in threads ms", "each further", "x engine"]
    return "\n".join(
        [
            "## What a further face costs",
            "",
            *(f"> {doubt}\n" for doubt in found["doubts"]),
            "720p with one, two and four faces in view. In turn: all stages one after the other, which is what a face adds to",
            "the latency. In threads: time per frame of the stream as fast as it goes. Engine: one face through it alone.",
            "",
            command_block(found["command"]),
            "",
            markdown_table(head, rows),
            "",
            *verdicts,
            "",
            "Mean milliseconds of each stage in turn (detection runs every few frames), and what a face adds to it:",
            "",
            markdown_table(["bundle", "stage", "one face", "each further"], stages),
            "",
        ]
    )


def _times(further: float | None, engine: float) -> list[str]:
    return ["", ""] if further is None else [f"{further:.1f}", f"{further / engine:.2f}"]


def run(args: argparse.Namespace) -> None:
    """Do all of it. Raises UfrEdgeError."""
    power, choices = read_power_state(), [Choice.parse(text) for text in args.bundle]
    args.output.mkdir(parents=True, exist_ok=True)
    bundles = []
    for choice in choices:
        print(choice.label, flush=True)
        bundles.append(measure(choice, args.frames))
    found = {
        "version": __version__,
        "machine": machine_name(),
        "power": power.describe(),
        "doubts": power.doubts(),
        "command": f"python benchmarks/faces.py {' '.join(c.bundle.name for c in choices)} --frames {args.frames}",
        "bundles": bundles,
    }
    write_json(args.output / RESULT, found)
    with atomic_file(args.output / SECTION) as beside:
        beside.write_text(section(found), encoding="utf-8")
    print(f"written: {args.output / SECTION}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="+", metavar="BUNDLE[:ENGINE]")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/faces"))
    parser.add_argument("--frames", type=int, default=240, help="of each count of faces, each way")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; an error is one line and its exit code."""
    return script_border(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
