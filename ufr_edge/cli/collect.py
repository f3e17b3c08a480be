"""`ufr-edge collect`: gather aligned face crops from a camera's material."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from ufr_edge.progress import progress_bar
from ufr_edge.runtime.collect import CollectConfig, collect
from ufr_edge.runtime.faces.detect import DetectorConfig, FaceDetector


@click.command("collect")
@click.argument("source")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--side", type=click.IntRange(32), default=256, show_default=True, help="Side of the crops.")
@click.option(
    "--every", type=click.IntRange(1), default=1, show_default=True, help="Look at every Nth frame."
)
@click.option("--limit", type=click.IntRange(1), help="Stop after so many faces.")
@click.option(
    "--min-score", type=click.FloatRange(0, 1), default=0.6, show_default=True, help="Surest faces only."
)
@click.option(
    "--detect-side",
    type=click.IntRange(128, 2048),
    default=416,
    show_default=True,
    help="More finds smaller faces.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of the detector.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
def command(
    source: str,
    out: Path,
    side: int,
    every: int,
    limit: int | None,
    min_score: float,
    detect_side: int,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Gather aligned face crops from SOURCE: a video, a picture, a folder of pictures or synthetic://"""
    config = CollectConfig(side=side, every=every, limit=limit, min_score=min_score)
    with (
        FaceDetector(DetectorConfig(long_side=detect_side), threads=threads) as detector,
        progress_bar("collect", None, show=not (no_progress or as_json)) as advance,
    ):
        report = collect(
            source, out, detector=detector, config=config, overwrite=overwrite, watch=lambda _d, _t: advance()
        )
    if as_json:
        click.echo(json.dumps(asdict(report), default=str, indent=2))
        return
    click.echo(
        f"{report.faces} faces from {report.frames} frames "
        f"({report.frames_without_face} without a good face) -> {report.out}"
    )
