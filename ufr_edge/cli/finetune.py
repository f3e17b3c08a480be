"""`ufr-edge finetune`: train the restorer on pairs of bad faces and targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ufr_edge.cli.options import (
    FOLDER,
    common_options,
    loss_options,
    override,
    read_config,
    training_options,
    training_values,
)


@click.command("finetune")
@click.option("-i", "--input", "faces", required=True, type=FOLDER, help="Aligned low-quality faces.")
@click.option("-t", "--targets", required=True, type=FOLDER, help="Their targets, matched by name.")
@click.option("-o", "--output", "out", required=True, type=FOLDER, help="Run folder: weights, config, log.")
@click.option("--real", type=FOLDER, help="Unrelated clean faces, for the adversarial term.")
@click.option("--restorer", help="What training starts from. [default: edge-m-256]")
@click.option("--prior", help="Prior whose features the perceptual term uses. [default: prior-256]")
@loss_options
@training_options
@click.option("--overwrite", is_flag=True, help="Start afresh where the folder holds training on other things.")
@common_options
def command(
    faces: Path,
    targets: Path,
    out: Path,
    real: Path | None,
    overwrite: bool,
    no_progress: bool,
    config_file: Path | None,
    **given: Any,
) -> None:
    """Fine-tune on (face, target) pairs; goes on from the run's checkpoint when there is one."""
    from ufr_edge.adaptation.finetune import FinetuneConfig, finetune

    config = override(read_config(FinetuneConfig, config_file), finetune_values(given, real))
    path = finetune(faces, targets, out, config, real=real, overwrite=overwrite, show=not no_progress)
    click.echo(f"weights: {path}")


def finetune_values(given: dict[str, Any], real: Path | None) -> dict[str, Any]:
    """Map this command's options to fields of `FinetuneConfig`."""
    adversarial = given["w_adversarial"]
    return {
        **training_values(given),
        "restorer": given.get("restorer"),
        "prior": given.get("prior"),
        "replay": given["replay"],
        "training.losses.l1": given["w_l1"],
        "training.losses.prior_features": given["w_features"],
        "training.losses.adversarial": 0.0 if adversarial is None and real is None else adversarial,
    }
