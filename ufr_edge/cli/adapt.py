"""`ufr-edge adapt`: targets, fine-tuning, evaluation and report in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ufr_edge.cli.finetune import finetune_config
from ufr_edge.cli.options import (
    FOLDER,
    common_options,
    licence_option,
    loss_options,
    override,
    preset_option,
    read_config,
    sampler_from,
    sampler_options,
    tell_licences,
    training_options,
)


@click.command("adapt")
@click.option("-i", "--input", "faces", required=True, type=FOLDER, help="Aligned low-quality faces of one camera.")
@click.option("-o", "--output", "out", required=True, type=FOLDER, help="Run folder.")
@click.option("--real", type=FOLDER, help="Unrelated clean faces, for the adversarial term.")
@click.option("--test", "test_faces", type=FOLDER, help="Faces of the camera to measure on, kept out of training.")
@click.option("--truth", type=FOLDER, help="Clean versions of --test, matched by name, if they are known.")
@click.option("--restorer", help="Name, run folder or checkpoint. [default: edge-m-256]")
@click.option("--prior", help="Shipped name, diffusers folder or hub id. [default: prior-256]")
@preset_option
@sampler_options
@loss_options
@training_options
@licence_option
@click.option("--overwrite", is_flag=True, help="Replace targets and training made with other settings.")
@common_options
def command(
    faces: Path,
    out: Path,
    real: Path | None,
    test_faces: Path | None,
    truth: Path | None,
    overwrite: bool,
    no_progress: bool,
    config_file: Path | None,
    accept_licence: bool,
    **given: Any,
) -> None:
    """Adapt a restorer to the low-quality faces of one camera, without ground truth.

    Writes targets/, weights.safetensors, figures.json and report.html; goes on where an earlier call stopped.
    """
    from ufr_edge.adaptation.adapt import AdaptConfig, adapt
    from ufr_edge.adaptation.presets import get_preset

    stated = bool(config_file or given["preset"])
    config = read_config(AdaptConfig, config_file, get_preset(given["preset"]))
    shared = {f"targets.{name}": given[name] for name in ("restorer", "prior", "device", "seed")}
    config = override(config, {"finetune": finetune_config(config.finetune, given, real, stated=stated), **shared})
    tell_licences([config.targets.restorer], accept=accept_licence)
    config = override(config, {"targets.sampler": sampler_from(given, config.targets.sampler)})
    report = adapt(
        faces,
        out,
        config,
        real=real,
        test_faces=test_faces,
        truth=truth,
        overwrite=overwrite,
        show=not no_progress,
    )
    for name, figures in report.figures.items():
        click.echo(f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    click.echo(f"weights: {report.weights}\nreport:  {report.report}")
