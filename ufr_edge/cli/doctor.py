"""`ufr-edge doctor`: what is installed, what works, and how to mend what does not."""

from __future__ import annotations

import dataclasses
import json

import click

from ufr_edge.errors import ExitCode


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Say what is installed, try every engine, and give one line of advice for each problem.

    Ends with exit code 1 when there is a problem. What is not installed is no problem.
    """
    from ufr_edge.doctor import examine

    report = examine()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        click.echo(f"ufr-edge {report.ufr_edge}, Python {report.python}, {report.system}")
        for key, value in report.device.items():
            click.echo(f"  {key:<16} {value}")
        click.echo("\npackages")
        for item in report.packages:
            hint = f'-  pip install "ufr-edge[{item.extra}]"' if item.extra else "missing"
            click.echo(f"  {item.name:<16} {item.version or hint}")
        click.echo("\ntried")
        for probe in report.probes:
            click.echo(f"  {probe.name:<16} {probe.status:<14} {probe.detail}")
        click.echo("\n" + ("\n".join(f"! {line}" for line in report.advice) or "No problem found."))
    if report.advice:
        ctx.exit(int(ExitCode.ERROR))
