"""`ufr-edge doctor`: what is installed, what works, and how to mend what does not."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from ufr_edge.errors import BackendUnavailableError

if TYPE_CHECKING:
    from ufr_edge.doctor import DoctorReport


@click.command()
@click.option(
    "--require",
    multiple=True,
    metavar="NAME",
    help="Exit with 1 unless this works; may be given several times (openvino, openvino-int8, tensorrt, train, ...).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(require: tuple[str, ...], as_json: bool) -> None:
    """Say what is installed, try every engine, and give one line of advice for each problem.

    Ends with 0, whatever it finds, unless something named with --require does not work.
    """
    from ufr_edge.doctor import examine

    report = examine(require)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        _print(report)
    if report.unmet:
        raise BackendUnavailableError("; ".join(report.unmet))


def _print(report: DoctorReport) -> None:
    click.echo(f"ufr-edge {report.ufr_edge}, Python {report.python}, {report.system}")
    for key, value in report.device.items():
        click.echo(f"  {key:<18} {value}")
    click.echo(f"  {'power':<18} {report.power}")
    for line in report.arithmetic:
        click.echo(f"  {'arithmetic':<18} {line}")
    click.echo(f"  {'memory':<18} {_memory(report)}")
    click.echo("\npackages")
    for item in report.packages:
        hint = f'-  pip install "ufr-edge[{item.extra}]"' if item.extra else "missing"
        click.echo(f"  {item.name:<18} {item.version or hint}")
    click.echo("\ntried")
    for probe in report.probes:
        click.echo(f"  {probe.name:<18} {probe.status:<14} {probe.detail}")
    click.echo("\n" + ("\n".join(f"! {line}" for line in report.advice) or "No problem found."))


def _memory(report: DoctorReport) -> str:
    free = report.memory.available_mib
    return (
        f"{'unknown' if free is None else f'{free} MiB'} free; "
        f"a TensorRT build of edge-l takes up to {report.memory.build_mib} MiB"
    )
