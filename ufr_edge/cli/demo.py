"""`ufr-edge demo`: the whole path on the built-in camera."""

from __future__ import annotations

from pathlib import Path

import click

from ufr_edge.cli.options import FOLDER


@click.command("demo")
@click.option("-o", "--output", "out", type=FOLDER, default=Path("demo"), show_default=True, help="Output folder.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo left there.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
def command(out: Path, overwrite: bool, no_progress: bool) -> None:
    """Collect faces from a synthetic camera, adapt to it, export engines, restore its clip, report.

    Needs no download, no camera and no GPU.
    """
    from ufr_edge.demo.run import run_demo

    report = run_demo(out, overwrite=overwrite, show=not no_progress, tell=click.echo)
    for engine in report.engines:
        click.echo(f"{engine.name:16} {engine.p50_ms:7.1f} ms p50 {engine.faces_per_s:7.0f} faces/s")
    click.echo(f"clip: {report.clip.frames_per_second:.0f} frames/s file to file ({report.clip.engine})")
    click.echo(f"done in {report.seconds:.0f} s")
    click.echo(f"open {report.out / 'report.html'}")
    click.echo(report.closing_line())
