"""`ufr-edge prior-report`: what a diffusion prior knows and makes of held-out faces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ufr_edge.cli.options import FOLDER, echo_skipped, licence_option, override, tell_licences


@click.command("prior-report")
@click.argument("prior")
@click.option("--faces", required=True, type=FOLDER, help="Held-out clean aligned faces.")
@click.option("-o", "--output", "out", required=True, type=FOLDER, help="Folder for index.html, report.json, sheets.")
@click.option("--count", type=click.IntRange(1), help="Faces looked at; as many others to compare with. [default: 64]")
@click.option("--seed", type=click.IntRange(0), help="Everything random follows from it. [default: 0]")
@click.option("--restorer", help="Also show what the sampler makes of this restorer's output.")
@click.option("--degrade", help="Preset that the restorer's input is made with, such as raw-iso3000-x4.")
@click.option("--fast-steps", type=click.IntRange(1), help="So many calls of the prior a face in place of 150.")
@click.option("--sample-steps", "sample_calls", type=click.IntRange(1, 249), help="Calls of a sample from noise. [default: 50]")
@click.option("--variances", is_flag=True, default=None, help="Compare the variances the sampler can have, too.")
@click.option("--batch", type=click.IntRange(1), help="Faces at once. [default: 8]")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Precision of the prior. [default: auto]")
@click.option("--device", help="auto, cpu, cuda:0. [default: auto]")
@licence_option
@click.option("--overwrite", is_flag=True, help="Measure every part again.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
def command(
    faces: Path, out: Path, accept_licence: bool, overwrite: bool, as_json: bool, no_progress: bool, **given: Any
) -> None:
    """Report on PRIOR: noise estimates, resampled faces and samples, with sheets to look at.

    Goes on where an earlier call with the same settings stopped.
    """
    from ufr_edge.adaptation.prior_report import PriorReportConfig, report_prior

    config = override(PriorReportConfig(), given)
    tell_licences(filter(None, [config.restorer]), accept=accept_licence, priors=[config.prior])
    report = report_prior(faces, out, config, overwrite=overwrite, show=not no_progress)
    echo_skipped(report.skipped)
    if as_json:
        click.echo(json.dumps(report.figures, indent=2))
    else:
        click.echo(f"report: {out / 'index.html'} ({report.reused} of {len(report.figures)} parts were there before)")
