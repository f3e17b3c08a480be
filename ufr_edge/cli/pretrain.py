"""`ufr-edge pretrain restorer|prior`: train from a folder of clean faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ufr_edge.cli.options import (
    FOLDER,
    common_options,
    override,
    read_config,
    stack,
    training_options,
    training_values,
)

io_options = stack(
    click.option("-i", "--input", "faces", required=True, type=FOLDER, help="Clean aligned faces."),
    click.option("--val", required=True, type=FOLDER, help="Held-out clean faces, other people."),
    click.option("-o", "--output", "out", required=True, type=FOLDER, help="Run folder."),
    click.option("--init", help="Start from these weights, of the same network."),
)


@click.group("pretrain")
def command() -> None:
    """Train a restorer or a diffusion prior on clean faces. Both resume from the run folder's checkpoint.

    On several GPUs: accelerate launch -m ufr_edge pretrain ... (the batch is that of all of them together).
    """


@command.command("restorer")
@io_options
@click.option("--arch", type=click.Choice(["edge-s", "edge-m", "edge-l"]), help="[default: edge-m]")
@click.option("--side", type=click.IntRange(64), help="Face side in pixels. [default: 256]")
@click.option("--degradation", help="This preset alone, for whole faces and crops. [default: classic]")
@click.option("--widen-from", help="Start from the weights of a smaller network, made larger.")
@click.option("--prior", help="Prior for the perceptual term.")
@click.option("--w-features", type=float, help="Weight of the prior-feature distance. [default: 0]")
@click.option("--w-adversarial", type=float, help="Weight of the adversarial term. [default: 0]")
@training_options
@common_options
def restorer(faces: Path, val: Path, out: Path, no_progress: bool, config_file: Path | None, **given: Any) -> None:
    """Train a restorer on faces that are degraded on the fly.

    Files that are broken, tiny, grey, CMYK or 16-bit are left out, and listed in the run's skipped.csv.
    """
    from ufr_edge.adaptation.pretrain import PretrainRestorer, pretrain_restorer

    own = {name: given[name] for name in ("arch", "side", "prior", "init", "widen_from")}
    if given["degradation"]:
        own |= {"degradations": {given["degradation"]: 1.0}, "crop_degradations": {given["degradation"]: 1.0}}
    own["training.losses.prior_features"] = given["w_features"]
    own["training.losses.adversarial"] = given["w_adversarial"]
    config = override(read_config(PretrainRestorer, config_file), {**own, **training_values(given)})
    path = pretrain_restorer(faces, out, config, val=val, show=not no_progress, tell=_tell)
    _result(f"weights: {path}")


@command.command("prior")
@io_options
@click.option("--side", type=click.IntRange(64), help="Face side in pixels. [default: 256]")
@training_options
@common_options
def prior(faces: Path, val: Path, out: Path, no_progress: bool, config_file: Path | None, **given: Any) -> None:
    """Train a diffusion prior over pixel-unshuffled faces."""
    from ufr_edge.adaptation.pretrain import PretrainPrior, pretrain_prior

    config = read_config(PretrainPrior, config_file)
    config = override(config, {"side": given["side"], "init": given["init"], **training_values(given)})
    _result(f"prior: {pretrain_prior(faces, out, config, val=val, show=not no_progress, tell=_tell)}")


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _result(line: str) -> None:
    from ufr_edge.adaptation.workers import is_main_process

    if is_main_process():
        click.echo(line)
