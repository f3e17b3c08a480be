"""`ufr-edge demo-onsite`: a camera changes in mid-stream, and the stream mends itself."""

from __future__ import annotations

from pathlib import Path

import click

from ufr_edge.cli.options import FOLDER


@click.command("demo-onsite")
@click.option(
    "-o",
    "--output",
    "out",
    type=FOLDER,
    default=Path("demo-onsite"),
    show_default=True,
    help="Output folder.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=150,
    show_default=True,
    help="Optimiser steps of the re-adaptation.",
)
@click.option("--no-oracle", is_flag=True, help="Leave out the oracle: the gap closed is then not known.")
@click.option(
    "--minutes",
    type=click.FloatRange(2),
    default=30.0,
    show_default=True,
    help="End the stream after so long in any case.",
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo left there.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
def command(
    out: Path, steps: int, no_oracle: bool, minutes: float, overwrite: bool, no_progress: bool
) -> None:
    """Play the loop on site: drift, re-adaptation, swap, on a synthetic camera that changes in mid-stream.

    Runs in real time and unattended, then measures the result against the truth and writes onsite.html. Needs no
    download, no camera and no GPU.
    """
    from ufr_edge.demo.onsite import OnsiteDemoConfig, run_onsite_demo

    config = OnsiteDemoConfig(steps=steps, oracle=not no_oracle, most_minutes=minutes)
    report = run_onsite_demo(out, config, overwrite=overwrite, show=not no_progress, tell=click.echo)
    for row in report.rows:
        state = "-" if row.met is None else "met" if row.met else "NOT MET"
        click.echo(f"{row.what}: {row.measured} (asked: {row.asked}) {state}")
    click.echo(f"done in {report.seconds / 60:.1f} minutes; open {report.page}")
