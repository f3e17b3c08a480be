"""`ufr-edge adapt`: targets, fine-tuning, evaluation and report in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from ufr_edge.cli.finetune import finetune_config, states
from ufr_edge.cli.options import (
    FOLDER,
    common_options,
    licence_option,
    loss_options,
    override,
    preset_option,
    read_config,
    sampler_options,
    tell_licences,
    training_options,
)
from ufr_edge.cli.targets import target_options, targets_from

if TYPE_CHECKING:
    from ufr_edge.adaptation.adapt import AdaptConfig

_DRAWING: Mapping[bool | None, str | None] = MappingProxyType({None: None, True: "always", False: "never"})


@click.command("adapt")
@click.option("-i", "--input", "faces", required=True, type=FOLDER, help="Low-quality faces of one camera; photographs are aligned.")
@click.option("-o", "--output", "out", required=True, type=FOLDER, help="Run folder.")
@click.option("--real", type=FOLDER, help="Unrelated clean faces, for the adversarial term.")
@click.option("--test", "test_faces", type=FOLDER, help="Aligned faces of the camera to measure on; those trained on are left out.")
@click.option("--truth", type=FOLDER, help="Clean versions of --test, matched by name, if they are known.")
@click.option("--restorer", help="Name, run folder or checkpoint. [default: edge-m-256]")
@click.option("--prior", help="Shipped name, diffusers folder or hub id. [default: prior-256]")
@preset_option
@target_options
@sampler_options
@loss_options
@training_options
@licence_option
@click.option("--no-align", is_flag=True, help="Take every picture as it is: aligned, none twice.")
@click.option("--curve/--no-curve", default=None, help="Draw the dial's curve on 12 faces. [default: where it is quick]")
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
    no_align: bool,
    curve: bool | None,
    **given: Any,
) -> None:
    """Adapt a restorer to the low-quality faces of one camera, without ground truth.

    Tells how long it will take, then writes targets/, weights.safetensors, figures.json and report.html; goes on where
    an earlier call stopped. `accelerate launch -m ufr_edge adapt ...` shares the work over processes.
    """
    from ufr_edge.adaptation.adapt import adapt
    from ufr_edge.adaptation.workers import is_main_process

    config = _config(config_file, given, real, accept_licence=accept_licence)
    report = adapt(
        faces,
        out,
        override(config, {"align": False if no_align else None, "curve": _DRAWING[curve]}),
        real=real,
        test_faces=test_faces,
        truth=truth,
        overwrite=overwrite,
        tell=click.echo,
        show=not no_progress,
    )
    if not is_main_process():
        return
    for name, figures in report.figures.items():
        click.echo(f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    if any("psnr_db" in figures for figures in report.figures.values()):
        click.echo("(PSNR and SSIM: plain RGB, no mean/std matching)")
    click.echo(f"weights: {report.weights}\nreport:  {report.report}")
    click.echo(f"next:    ufr-edge export {out} -o {out.name}.ufr --calibration {report.faces}")


def _config(
    config_file: Path | None, given: dict[str, Any], real: Path | None, *, accept_licence: bool
) -> AdaptConfig:
    """The settings: what suits the machine unless a preset or a file says otherwise, then the dial, then the flags."""
    from ufr_edge.adaptation.adapt import AdaptConfig
    from ufr_edge.adaptation.forecast import for_memory
    from ufr_edge.adaptation.presets import get_preset
    from ufr_edge.adaptation.workers import process_count

    stated = states(config_file, given["preset"], "finetune.training.losses.adversarial")
    config = read_config(AdaptConfig, config_file, get_preset(given["preset"]))
    shared = {f"targets.{name}": given[name] for name in ("restorer", "prior", "device", "seed")}
    if given["fidelity"] is not None:
        config = config.at_fidelity(given["fidelity"])
    config = override(config, {"finetune": finetune_config(config.finetune, given, real, stated=stated), **shared})
    config = _suited(config, config_file, given["preset"])
    config = override(config, {"targets": targets_from(given, config.targets)})
    restorers = filter(None, (config.targets.restorer, config.targets.teacher))
    priors = filter(None, (config.targets.prior, config.finetune.features_prior))
    tell_licences(restorers, accept=accept_licence, priors=priors)
    if given["accumulate"] is None:
        trained = dataclasses.replace(config.finetune, restorer=config.targets.restorer, device=config.targets.device)
        parts = for_memory(trained, processes=process_count()).training.accumulate
        config = override(config, {"finetune.training.accumulate": parts})
    return config


def _suited(config: AdaptConfig, config_file: Path | None, preset: str | None) -> AdaptConfig:
    """The settings with what suits the machine, where neither a preset nor the file says otherwise."""
    from ufr_edge.adaptation.forecast import for_machine

    machine = for_machine(config.targets)
    suits = {"targets.sampler.precision": machine.sampler.precision, "targets.batch": machine.batch}
    return override(config, {name: value for name, value in suits.items() if not states(config_file, preset, name)})
