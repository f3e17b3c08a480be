"""`ufr-edge run`: restore the faces of a picture, a folder or a video."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ufr_edge.cli.rebuilding import rebuild_misfits, rebuild_option
from ufr_edge.cli.restoring import encode_config, encode_options, face_options, pipeline_config
from ufr_edge.errors import UfrEdgeError
from ufr_edge.progress import Advance, progress_bar
from ufr_edge.runtime.bundle import Wanted, open_bundle_engine
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.detect import DetectorConfig
from ufr_edge.runtime.machine import usable_cores
from ufr_edge.runtime.report import RunReport
from ufr_edge.runtime.run import RunConfig, Watch, run_path
from ufr_edge.runtime.run_parts import kept_frames
from ufr_edge.runtime.video.encoder import EncodeConfig


@click.command("run")
@click.option(
    "-i", "--input", "source", required=True, help="Picture, folder of pictures, video or synthetic://"
)
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Same kind.")
@click.option("--engine", "bundle", required=True, type=click.Path(path_type=Path), help="Bundle NAME.ufr")
@click.option("--engine-name", help="Engine of the bundle, by name. Default: the best for this device.")
@rebuild_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, GPU, ...")
@click.option("--aligned", is_flag=True, help="The input is aligned faces: no detection, no paste.")
@face_options("--max-faces")
@encode_options(EncodeConfig())
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
    rebuild: bool,
    device: str,
    aligned: bool,
    depth: str | None,
    workers: int,
    partial: bool,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
    no_progress: bool,
    **given: Any,
) -> None:
    """Restore the faces in a picture, a folder of pictures or a video.

    A video keeps its frames' times, its sound, subtitles, colours and depth. What is finished of it is kept when
    the run is interrupted: the same command goes on from there.
    """
    if workers > 1 and threads is None:
        threads = max(1, usable_cores() // workers)
    config = RunConfig(
        pipeline=pipeline_config(given),
        detector=DetectorConfig(long_side=given["detect_side"]),
        encode=encode_config(given | {"threads": threads}, EncodeConfig(depth=int(depth) if depth else None)),
        aligned=aligned,
        overwrite=overwrite,
        threads=threads,
        workers=workers,
        partial=partial,
    )
    if rebuild:
        rebuild_misfits(bundle, Wanted(name=engine_name, device=device))
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
