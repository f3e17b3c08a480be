"""`ufr-edge readapt-all`: the same re-adaptation for many cameras."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ufr_edge.cli.options import FOLDER
from ufr_edge.cli.tables import print_table
from ufr_edge.errors import UfrEdgeError

if TYPE_CHECKING:
    from ufr_edge.adaptation.fleet import CameraTask, FleetPlace, FleetReport
    from ufr_edge.adaptation.readapt import Tell


@click.command("readapt-all")
@click.argument("jobs", type=FOLDER)
@click.option(
    "-o", "--output", type=FOLDER, required=True, help="Folder for the work and the result of each camera."
)
@click.option("--registry", type=FOLDER, help="Add what is made to this registry.")
@click.option("--keep-bundle", is_flag=True, help="Store the bundles in the registry too.")
@click.option(
    "--ray", metavar="ADDRESS", help="Run on a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local."
)
@click.option(
    "--ray-cpus", type=click.FloatRange(0), default=1.0, show_default=True, help="CPUs for a camera."
)
@click.option(
    "--ray-gpus", type=click.FloatRange(0), default=0.0, show_default=True, help="GPUs for a camera."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
def command(
    jobs: Path,
    output: Path,
    registry: Path | None,
    keep_bundle: bool,
    ray: str | None,
    ray_cpus: float,
    ray_gpus: float,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Adapt the bundles of all cameras in JOBS (a TOML file) again, each to its own faces.

    One camera after the other; under `accelerate launch` its processes share them, with --ray the nodes of a cluster.
    A camera that fails does not stop the others, and cameras that are done are left out: the same command goes on.
    Exit 1 when a camera failed, else 3 when one was refused.
    """
    from ufr_edge.adaptation.fleet import FleetPlace, load_jobs

    if keep_bundle and registry is None:
        msg = "--keep-bundle stores bundles in a registry: give --registry DIR."
        raise click.UsageError(msg)
    place = FleetPlace(out=output.absolute(), registry=registry, keep_bundle=keep_bundle)
    tasks = load_jobs(jobs)

    def tell(line: str) -> None:
        if not as_json:
            click.echo(line, err=True)

    if ray is None:
        _run_here(tasks, place, show=not (no_progress or as_json), tell=tell, as_json=as_json)
        return
    from ufr_edge.adaptation.fleet_ray import RayConfig, readapt_on_ray

    report = readapt_on_ray(tasks, place, RayConfig(address=ray, cpus=ray_cpus, gpus=ray_gpus), tell=tell)
    _print_report(report, as_json=as_json)
    report.raise_if_failed()


def _run_here(
    tasks: tuple[CameraTask, ...], place: FleetPlace, *, show: bool, tell: Tell, as_json: bool
) -> None:
    from ufr_edge.adaptation.fleet import readapt_all
    from ufr_edge.adaptation.workers import is_main_process

    report = readapt_all(tasks, place, show=show and is_main_process(), tell=tell)
    if is_main_process():
        _print_report(report, as_json=as_json)
        report.raise_if_failed()
        return
    try:
        report.raise_if_failed()
    except UfrEdgeError as exc:  # said once, by the main process
        click.get_current_context().exit(int(exc.exit_code))


def _print_report(report: FleetReport, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(item) for item in report.results], indent=2))
        return
    rows = [
        [
            item.camera,
            item.state if item.new else f"{item.state} before",
            item.model[:12] or "-",
            item.installed or item.bundle or "-",
        ]
        for item in report.results
    ]
    print_table(f"{len(rows)} cameras", ["camera", "", "model", "bundle"], rows)
    for item in report.results:
        if item.reason:
            click.echo(f"{item.camera}: {item.reason}")
