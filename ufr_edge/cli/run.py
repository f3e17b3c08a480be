"""`ufr-edge run`: restore the faces of a picture, a folder or a video."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ufr_edge.cli.options import override
from ufr_edge.errors import UfrEdgeError
from ufr_edge.progress import Advance, progress_bar
from ufr_edge.runtime.bundle import open_bundle_engine
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.detect import DetectorConfig
from ufr_edge.runtime.faces.limits import FaceLimits
from ufr_edge.runtime.faces.stabilise import StabiliserConfig
from ufr_edge.runtime.faces.track import TrackConfig
from ufr_edge.runtime.machine import usable_cores
from ufr_edge.runtime.pipeline import PipelineConfig
from ufr_edge.runtime.report import RunReport
from ufr_edge.runtime.run import RunConfig, Watch, run_path
from ufr_edge.runtime.run_parts import kept_frames
from ufr_edge.runtime.video.encoder import CODECS, PRESETS, EncodeConfig


@click.command("run")
@click.option(
    "-i", "--input", "source", required=True, help="Picture, folder of pictures, video or synthetic://"
)
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Same kind.")
@click.option("--engine", "bundle", required=True, type=click.Path(path_type=Path), help="Bundle NAME.ufr")
@click.option("--engine-name", help="Engine of the bundle, by name. Default: the best for this device.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, GPU, ...")
@click.option(
    "-w", "--fidelity", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="1 keeps the input."
)
@click.option("--aligned", is_flag=True, help="The input is aligned faces: no detection, no paste.")
@click.option(
    "--detect-every",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Look for faces in each so manieth frame of a video; they are followed in between.",
)
@click.option(
    "--min-face", type=click.FloatRange(0), help="Smaller faces are left alone: pixels. [default: 16]"
)
@click.option(
    "--max-yaw",
    type=click.FloatRange(0, 90, min_open=True),
    help="Turned farther, too: degrees. [default: 65]",
)
@click.option("--max-faces", type=click.IntRange(1), help="Restore only the largest. [default: all]")
@click.option("--no-stabilise", is_flag=True, help="Video: leave each restored face as the engine gave it.")
@click.option(
    "--grain", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="1: the input's noise."
)
@click.option(
    "--detect-side",
    type=click.IntRange(128, 2048),
    default=416,
    show_default=True,
    help="More finds smaller faces.",
)
@click.option(
    "--codec", type=click.Choice(list(CODECS)), default="h264", show_default=True, help="Of a video."
)
@click.option(
    "--crf",
    type=click.IntRange(0, 51),
    default=18,
    show_default=True,
    help="Quality: lower is better, larger.",
)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="veryfast",
    show_default=True,
    help="Slower makes smaller files.",
)
@click.option(
    "--depth", type=click.Choice(["8", "10", "12"]), help="Bits per sample. [default: the source's]"
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that share a long video; for machines of many cores.",
)
@click.option("--partial", is_flag=True, help="Take what can be read of a damaged video.")
@click.option("--threads", type=click.IntRange(1), help="Threads of each engine and codec.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
def command(
    source: str,
    out: Path,
    bundle: Path,
    engine_name: str | None,
    device: str,
    fidelity: float,
    aligned: bool,
    detect_every: int,
    min_face: float | None,
    max_yaw: float | None,
    max_faces: int | None,
    no_stabilise: bool,
    grain: float,
    detect_side: int,
    codec: str,
    crf: int,
    preset: str,
    depth: str | None,
    workers: int,
    partial: bool,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Restore the faces in a picture, a folder of pictures or a video.

    A video keeps its frames' times, its sound, subtitles, colours and depth. What is finished of it is kept when
    the run is interrupted: the same command goes on from there.
    """
    if workers > 1 and threads is None:
        threads = max(1, usable_cores() // workers)
    config = RunConfig(
        pipeline=PipelineConfig(
            fidelity=fidelity,
            grain=grain,
            limits=override(FaceLimits(), {"min_side": min_face, "max_yaw": max_yaw, "max_faces": max_faces}),
            track=TrackConfig(detect_every=detect_every),
            stabilise=None if no_stabilise else StabiliserConfig(),
        ),
        detector=DetectorConfig(long_side=detect_side),
        encode=EncodeConfig(
            codec=codec, crf=crf, preset=preset, depth=int(depth) if depth else None, threads=threads
        ),
        aligned=aligned,
        overwrite=overwrite,
        threads=threads,
        workers=workers,
        partial=partial,
    )
    reopen = functools.partial(open_bundle_engine, bundle, engine=engine_name, device=device, threads=threads)
    with reopen() as engine:
        if not as_json:
            click.echo(f"engine:   {engine.info.describe()}")
        with (
            _kept(out / Path(source).name if out.is_dir() else out),
            _watch(show=not (no_progress or as_json)) as watch,
        ):
            report = run_path(source, out, engine, config, watch=watch, reopen=reopen)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print(report)


@contextmanager
def _watch(*, show: bool) -> Iterator[Watch]:
    """A bar that begins where an earlier run stopped, and knows the time left where the length is known."""
    with ExitStack() as stack:
        bar: Advance | None = None

        def watch(done: int, total: int | None) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(progress_bar("run", total, done=done, show=show))
            else:
                bar()

        yield watch


@contextmanager
def _kept(out: Path) -> Iterator[None]:
    """Say how much is finished when a video is interrupted."""
    try:
        yield
    except (KeyboardInterrupt, UfrEdgeError):
        if kept := kept_frames(out):
            click.echo(f"{kept} frames are finished and kept. The same command goes on from there.", err=True)
        raise


def _print(report: RunReport) -> None:
    console = Console()
    console.print(f"detector: {_describe(report.detector)}", highlight=False, soft_wrap=True)
    table = Table("stage", *("n", "p50 ms", "p95 ms", "p99 ms"))
    for row in report.stages:
        table.add_row(row.name, str(row.count), f"{row.p50_ms:.1f}", f"{row.p95_ms:.1f}", f"{row.p99_ms:.1f}")
    console.print(table)
    if report.frames_kept:
        console.print(f"{report.frames_kept} frames were finished by an earlier run", highlight=False)
    for note in report.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    line = (
        f"{report.frames_in} frames in, {report.frames_out} out, {report.faces} faces, "
        f"{report.frames_without_face} frames without a face; "
        f"{report.seconds:.1f} s, {report.frames_per_second:.1f} frames/s -> {report.out}"
    )
    console.print(line, highlight=False, soft_wrap=True)


def _describe(info: EngineInfo | None) -> str:
    return "none (aligned input)" if info is None else f"CenterFace on {info.describe()}"
