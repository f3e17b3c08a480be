"""Frames per second of `ufr-edge run` beside GFPGAN-, CodeFormer- and SwinIR-sized networks in PyTorch, on one clip.

    python benchmarks/comparison.py runs/engines/edge-l-256-512.ufr runs/engines/edge-l-256.ufr -o runs/comparison

Ours: the whole command on the clip, before the others and after them; the slower of both counts. Theirs: a loop that
decodes, detects, aligns, restores, pastes and encodes one frame after the other with the same code as ours, the network
in PyTorch, fp32, eager, batch 1, in inference mode. Their sizes are the published ones; the weights are random, which makes no
difference to speed (denormal numbers are flushed to zero, as random weights may make many). Both may use the same number
of threads. Writes comparison.json and section.md, for benchmarks/performance.py --take runs/comparison.

Time on the 2-core reference CPU: about three minutes with the defaults.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asked import write_found
from performance import Choice, make_clip, run_file
from published import PUBLISHED, random_network

from ufr_edge import __version__
from ufr_edge.cli.border import script_border
from ufr_edge.errors import InferenceError
from ufr_edge.restorers.spandrel_loader import SpandrelRestorer
from ufr_edge.runtime.bundle import open_bundle_engine
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.detect import Detects
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.machine import machine_name, read_power_state, usable_cores
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig
from ufr_edge.runtime.run import RunConfig, open_detector
from ufr_edge.runtime.timing import StageClock
from ufr_edge.runtime.video.reader import VideoReader
from ufr_edge.runtime.video.source import SourceFrame
from ufr_edge.runtime.video.writer import EncodeConfig, VideoWriter
from ufr_edge.weights.cards import command_block, markdown_table

SIDE = 512
WANTED = 30
NETWORKS = ("gfpgan", "codeformer", "swinir")
RESULT = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Timed:
    """frames: timed after `warm` others. stage_ms: median of each stage."""

    name: str
    parameters: int
    frames: int
    warm: int
    seconds: float
    stage_ms: Mapping[str, float]

    @property
    def frames_per_second(self) -> float:
        """Of the whole loop."""
        return self.frames / self.seconds


class EagerEngine:
    """A PyTorch network where a bundle's engine would stand."""

    def __init__(self, network: SpandrelRestorer, name: str, *, threads: int) -> None:
        self._network = network.eval()
        self.info = EngineInfo(
            backend="pytorch",
            backend_version=torch.__version__,
            device="CPU",
            precision="fp32",
            side=SIDE,
            path=Path(name),
            threads=threads,
        )

    def infer(self, batch: Frame) -> Frame:
        """Restore uint8 (B, S, S, 3) faces."""
        with torch.inference_mode():
            faces = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
            made = self._network(faces).clamp(0, 1).mul(255).round()
            return np.ascontiguousarray(made.to(torch.uint8).permute(0, 2, 3, 1).numpy())


def time_theirs(
    name: str, clip: Path, out: Path, detector: Detects, *, frames: int, warm: int, threads: int
) -> Timed:
    """Drive a published network frame by frame. Raises UfrEdgeError."""
    label = PUBLISHED[name].label
    network = random_network(name)
    clock = StageClock()
    engine = EagerEngine(network, label, threads=threads)
    pipeline = FacePipeline(engine, detector, PipelineConfig(stabilise=None), clock=clock)
    started = ended = 0.0
    with closing(VideoReader(clip, threads=threads)) as video:
        writer = VideoWriter(
            out, video.info, size=(video.info.width, video.info.height), config=EncodeConfig(threads=threads)
        )
        pictures = (item for item in video.items() if isinstance(item, SourceFrame))
        for number, frame in enumerate(pictures):
            if number == warm:
                started = time.perf_counter()
            done = pipeline.restore(frame.image)
            if done.count != 1:
                msg = f"{label}: {done.count} faces were found in frame {number}, not 1."
                raise InferenceError(msg)
            native = None if done.touched is None else frame.native
            writer.write(replace(frame, image=done.image, native=native, touched=done.touched or ()))
            ended = time.perf_counter()
            if number + 1 == warm + frames:
                break
        writer.finish()
    return Timed(
        name=label,
        parameters=sum(p.numel() for p in network.parameters()),
        frames=frames,
        warm=warm,
        seconds=ended - started,
        stage_ms={stage.name: stage.p50_ms for stage in clock.timings()},
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All of it, in one run. Raises UfrEdgeError."""
    power, choices = read_power_state(), [Choice.parse(text) for text in args.bundle]
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.output.mkdir(parents=True, exist_ok=True)
    width, height = (int(side) for side in args.size.split("x"))
    clip, out = args.output / "clip.mp4", args.output / "restored.mp4"
    make_clip(clip, (width, height), args.frames)

    def ours() -> list[dict[str, Any]]:
        reports = [run_file(choice, clip, out, "--threads", args.threads) for choice in choices]
        for choice, report in zip(choices, reports, strict=True):
            print(f"{choice.label}: {report['frames_per_second']:.1f} frames/s", flush=True)
        return reports

    before = ours()
    timed = []
    run = RunConfig(threads=args.threads)
    with (
        open_bundle_engine(choices[0].bundle, engine=choices[0].engine) as engine,
        open_detector(engine, run) as detector,
    ):
        for name in NETWORKS:
            found = time_theirs(
                name,
                clip,
                out,
                detector,
                frames=args.their_frames,
                warm=args.warm,
                threads=args.threads,
            )
            print(f"{found.name}: {found.frames_per_second:.3f} frames/s", flush=True)
            timed.append(found)
    after = ours()
    return {
        "version": __version__,
        "machine": machine_name(),
        "power": power.describe(),
        "doubts": power.doubts(),
        "torch": torch.__version__,
        "threads": args.threads,
        "size": args.size,
        "command": f"python benchmarks/comparison.py {' '.join(c.bundle.name for c in choices)}"
        f" --frames {args.frames} --their-frames {args.their_frames}",
        "ours": [
            {
                "name": choice.label,
                "side": choice_side(choice),
                "frames": args.frames,
                "frames_per_second": [one["frames_per_second"], two["frames_per_second"]],
            }
            for choice, one, two in zip(choices, before, after, strict=True)
        ],
        "theirs": [asdict(one) | {"frames_per_second": one.frames_per_second} for one in timed],
    }


def choice_side(choice: Choice) -> int | None:
    """The side of the faces it takes."""
    with open_bundle_engine(choice.bundle, engine=choice.engine) as engine:
        return engine.info.side


def section(found: Mapping[str, Any]) -> str:
    """The Markdown of it."""
    ours = {one["name"]: min(one["frames_per_second"]) for one in found["ours"]}
    head = ["", "face px", "parameters", "network ms", "frames/s", "frames timed"]
    head += [f"{name} is faster" for name in ours]
    rows = [
        [
            f"{one['name']}, `ufr-edge run`",
            str(one["side"]),
            "",
            "",
            f"{min(one['frames_per_second']):.1f}",
            f"2 x {one['frames']}",
            *[""] * len(ours),
        ]
        for one in found["ours"]
    ]
    for one in found["theirs"]:
        ratios = [f"{rate / one['frames_per_second']:.0f} x" for rate in ours.values()]
        rows.append(
            [
                f"{one['name']}, PyTorch",
                str(SIDE),
                f"{one['parameters'] / 1e6:.1f} M",
                f"{one['stage_ms']['restore']:.0f}",
                f"{one['frames_per_second']:.3f}",
                str(one["frames"]),
                *ratios,
            ]
        )
    least = {
        name: min(rate / one["frames_per_second"] for one in found["theirs"]) for name, rate in ours.items()
    }
    return "\n".join(
        [
            "## Beside the networks of the field",
            "",
            *(f"> {doubt}\n" for doubt in found["doubts"]),
            f"One {found['size']} clip with one face, one run, {found['threads']} threads each. Ours: the whole command, before the",
            "others and after them; the slower counts. Theirs: the same decoding, detection, alignment, paste and encoding,",
            f"one frame after the other, around the network in PyTorch {found['torch']} (fp32, eager, batch 1). The published sizes;",
            "random weights, which changes nothing about speed and says nothing about quality.",
            "",
            command_block(found["command"]),
            "",
            markdown_table(head, rows),
            "",
            *(
                f"- {name}: at least {WANTED} times the frame rate of each: {'kept' if times >= WANTED else 'NOT kept'} (least {times:.0f} x)"
                for name, times in least.items()
            ),
            "",
        ]
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="+", metavar="BUNDLE[:ENGINE]")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--frames", type=int, default=300, help="of the clip, which ours restores whole")
    parser.add_argument("--their-frames", type=int, default=6, help="timed of each of theirs")
    parser.add_argument("--warm", type=int, default=2, help="frames before those")
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args(arguments)
    if args.warm + args.their_frames > args.frames or args.their_frames < 1:
        parser.error("--their-frames and --warm must be frames of the clip")
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
