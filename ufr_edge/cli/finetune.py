"""`ufr-edge finetune`: train the restorer on pairs of bad faces and targets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ufr_edge.cli.options import (
    FOLDER,
    common_options,
    licence_option,
    loss_options,
    override,
    preset_option,
    read_config,
    tell_licences,
    training_options,
    training_values,
)
from ufr_edge.config import stated_settings

if TYPE_CHECKING:
    from ufr_edge.adaptation.finetune import FinetuneConfig


@click.command("finetune")
@click.option("-i", "--input", "faces", required=True, type=FOLDER, help="Aligned low-quality faces.")
@click.option("-t", "--targets", required=True, type=FOLDER, help="Their targets, matched by name.")
@click.option("-o", "--output", "out", required=True, type=FOLDER, help="Run folder: weights, config, log.")
@click.option("--real", type=FOLDER, help="Unrelated clean faces, for the adversarial term.")
@click.option("--restorer", help="What training starts from: a name, run folder or checkpoint. [default: edge-m-256]")
@click.option("--prior", help="Prior whose features the perceptual term uses. [default: prior-256]")
@preset_option
@loss_options
@training_options
@licence_option
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
    accept_licence: bool,
    **given: Any,
) -> None:
    """Fine-tune on (face, target) pairs; goes on from the run's checkpoint when there is one.

    On several GPUs: accelerate launch -m ufr_edge finetune ... (the batch is that of all of them together).
    """
    from ufr_edge.adaptation.finetune import FinetuneConfig, finetune
    from ufr_edge.adaptation.forecast import for_memory
    from ufr_edge.adaptation.lineage import features_source
    from ufr_edge.adaptation.presets import get_preset
    from ufr_edge.adaptation.workers import is_main_process, process_count

    config = read_config(FinetuneConfig, config_file, get_preset(given["preset"]).finetune)
    config = finetune_config(config, given, real, stated=states(config_file, given["preset"], "training.losses.adversarial"))
    tell_licences([config.restorer], accept=accept_licence, priors=filter(None, [features_source(config)]))
    if given["accumulate"] is None:
        config = for_memory(config, processes=process_count())
    path = finetune(
        faces, targets, out, config, real=real, overwrite=overwrite, tell=click.echo, show=not no_progress
    )
    if is_main_process():
        click.echo(f"weights: {path}")


def states(config_file: Path | None, preset: str | None, setting: str) -> bool:
    """Whether somebody wrote `setting` down: any preset, or this file; "light" is what the built-in defaults are called."""
    if preset not in (None, "light"):
        return True
    return config_file is not None and setting in stated_settings(config_file)


def finetune_config(
    config: FinetuneConfig, given: dict[str, Any], real: Path | None, *, stated: bool
) -> FinetuneConfig:
    """Return the config with this command's options.

    The adversarial weight of the built-in defaults (`stated` false) is set to 0 where there are no real faces, which
    is said; one that a preset, a file or an option set is not touched, and is an error then.
    """
    from ufr_edge.adaptation.terms import check_terms, choose_perceptual

    if given["perceptual"]:
        losses = choose_perceptual(config.training.losses, given["perceptual"])
        config = override(config, {"training.losses": losses})
    if real is None and not stated and given["w_adversarial"] is None and config.training.losses.adversarial > 0:
        click.echo("no --real: trained without the adversarial term", err=True)
        config = override(config, {"training.losses.adversarial": 0.0})
    config = override(config, _finetune_values(given))
    check_terms(config, real)
    return config


def _finetune_values(given: dict[str, Any]) -> dict[str, Any]:
    """Map the options to fields of `FinetuneConfig`."""
    return {
        **training_values(given),
        "restorer": given["restorer"],
        "prior": given["prior"],
        "features_prior": given["features_prior"],
        "lpips_backbone": given["lpips_backbone"],
        "download": given["download"],
        "replay": given["replay"],
        "camera_pairs": given["camera_pairs"],
        "camera_pairs_of": given["camera_pairs_of"],
        "real_detail": given["real_detail"],
        "training.losses.l1": given["w_l1"],
        "training.losses.prior_features": given["w_features"],
        "training.losses.lpips": given["w_lpips"],
        "training.losses.adversarial": given["w_adversarial"],
    }
