"""`ufr-edge readapt`: a bundle adapted again to the faces of its camera."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ufr_edge.cli.options import FOLDER
from ufr_edge.cli.tables import print_table

if TYPE_CHECKING:
    from ufr_edge.adaptation.readapt import ReadaptReport


@click.command("readapt")
@click.option(
    "--bundle", required=True, type=FOLDER, help="Folder of installed versions, or a bundle NAME.ufr."
)
@click.option(
    "--faces",
    required=True,
    type=FOLDER,
    help="Aligned faces of the camera, as recorded by `stream --record`.",
)
@click.option(
    "--work", required=True, type=FOLDER, help="Folder for what is made on the way, and the new bundle."
)
@click.option("--weights", help="Run folder or file to start from.  [default: those of the bundle]")
@click.option(
    "--real", type=FOLDER, help="Clean faces to keep the old skill by.  [default: the shipped ones]"
)
@click.option(
    "--prior", default="prior-256", show_default=True, help="Shipped name, diffusers folder or hub id."
)
@click.option("--camera", default="", help="The camera's name, for the lineage.")
@click.option("--steps", type=click.IntRange(1), default=150, show_default=True, help="Optimiser steps.")
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    default=2e-4,
    show_default=True,
    help="Learning rate at the start.",
)
@click.option(
    "--replay",
    type=click.FloatRange(0, 1),
    default=0.25,
    show_default=True,
    help="Share of each batch that is old skill.",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Train no longer than this.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0),
    default=0.3,
    show_default=True,
    help="What an engine below fp32 may lose, dB.",
)
@click.option("--least-faces", type=click.IntRange(10), default=24, show_default=True, help="Refuse fewer.")
@click.option(
    "--newest", type=click.IntRange(10), help="Take so many of the faces recorded last.  [default: all]"
)
@click.option("--keep", type=click.IntRange(2), help="Keep so many installed versions.  [default: all]")
@click.option("--registry", type=FOLDER, help="Add the new bundle to this registry; see `ufr-edge registry`.")
@click.option("--keep-bundle", is_flag=True, help="Store the bundle in the registry too.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Everything random follows from it."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0 for training.")
@click.option("--threads", type=click.IntRange(1), help="Threads of training.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
def command(
    bundle: Path,
    faces: Path,
    work: Path,
    weights: str | None,
    real: Path | None,
    prior: str,
    camera: str,
    steps: int,
    lr: float,
    replay: float,
    minutes: float | None,
    max_drop: float,
    least_faces: int,
    newest: int | None,
    keep: int | None,
    registry: Path | None,
    keep_bundle: bool,
    seed: int,
    device: str,
    threads: int | None,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Adapt a bundle again to the faces of its camera, and install it where it is better.

    Goes on where an earlier call with the same settings was stopped. The new bundle is compared with the old one on
    faces kept out of training. It is installed when it leaves 5 % less noise or comes 5 % nearer to the look of clean
    faces, and nothing else gets worse beyond its limit (docs/onsite.md); otherwise nothing is (exit 3).
    """
    from ufr_edge.adaptation.readapt import ReadaptConfig, readapt

    if keep_bundle and registry is None:
        msg = "--keep-bundle stores the bundle in a registry: give --registry DIR."
        raise click.UsageError(msg)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    config = ReadaptConfig(
        prior=prior,
        steps=steps,
        lr=lr,
        replay=replay,
        minutes=minutes,
        max_drop_db=max_drop,
        newest=newest,
        least_faces=least_faces,
        seed=seed,
        device=device,
    )
    quiet = no_progress or as_json
    report = readapt(
        bundle,
        faces,
        work,
        config,
        weights=weights,
        real=real,
        camera=camera,
        keep=keep,
        show=not quiet,
        tell=lambda line: None if as_json else click.echo(line),
    )
    if registry is not None:
        from ufr_edge.adaptation.readapt_record import register_readapt

        register_readapt(registry, work, report, keep_bundle=keep_bundle)
    _print_report(report, as_json=as_json)


def _print_report(report: ReadaptReport, *, as_json: bool) -> None:
    if as_json:
        installed = None if report.installed is None else str(report.installed)
        value = {"bundle": str(report.bundle), "installed": installed, "notes": report.notes}
        click.echo(json.dumps(value | report.gate.to_json(), indent=2))
        return
    old, new = report.gate.figures["old"], report.gate.figures["new"]
    rows = [[name, f"{old[name]:.3f}", f"{new[name]:.3f}"] for name in new if name in old]
    print_table(f"on {report.gate.faces} faces kept out of training", ["figure", "old", "new"], rows)
    for note in report.notes:
        click.echo(f"note: {note}")
    where = report.bundle if report.installed is None else report.installed
    click.echo(f"{where}: {'made' if report.installed is None else 'installed, and current'}")
