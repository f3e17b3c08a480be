"""`ufr-edge targets`: pseudo targets for low-quality faces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ufr_edge.cli.options import (
    FOLDER,
    common_options,
    echo_skipped,
    licence_option,
    override,
    preset_option,
    read_config,
    sampler_from,
    sampler_options,
    stack,
    tell_licences,
)

if TYPE_CHECKING:
    from ufr_edge.adaptation.targets import TargetsConfig

F = TypeVar("F", bound=Callable[..., Any])
_NAMED = ("preset", "start", "hold_until", "filter_n")


def target_options(function: F) -> F:
    """`--sampler`, `--fidelity`, `--teacher`, `--no-qa`, `--embedder`: what targets need beyond the sampler's settings."""
    return stack(
        click.option(
            "--sampler",
            "sampler_mode",
            type=click.Choice(["given", "auto"]),
            default="given",
            show_default=True,
            help="auto: start, hold and N are chosen from the faces, and the choice is explained.",
        ),
        click.option(
            "--fidelity",
            type=click.FloatRange(0, 1),
            help="One dial: 0 realism (the paper's start), 1 fidelity (light, several samples). [default: 0.5]",
        ),
        click.option("--teacher", help="A heavier restorer that targets are made from; --restorer learns them."),
        click.option("--no-qa", is_flag=True, help="Score the targets, but let each count fully."),
        click.option("--embedder", type=FOLDER, help="ONNX of a face recognition network, to score identity by."),
    )(function)


def targets_from(given: dict[str, Any], config: TargetsConfig) -> TargetsConfig:
    """Return the config with the options of `target_options` and `sampler_options`. Raises UsageError for a contradiction."""
    auto, fidelity = given["sampler_mode"] == "auto", given["fidelity"]
    named = [name for name in _NAMED if given[name] is not None]
    if (auto or fidelity is not None) and named:
        what = "--sampler auto" if auto else "--fidelity"
        msg = f"{what} sets what --{named[0].replace('_', '-')} gives by hand. Leave one of them out."
        raise click.UsageError(msg)
    if auto and fidelity is not None:
        msg = "--fidelity sets the start that --sampler auto would choose. Leave one of them out."
        raise click.UsageError(msg)
    config = override(config, {"sampler": sampler_from(given, config.sampler), "teacher": given["teacher"]})
    qa = override(config.qa, {"embedder": given["embedder"], "judge": False if given["no_qa"] else None})
    return dataclasses.replace(config, qa=qa, auto=auto or config.auto)


@click.command("targets")
@click.option("-i", "--input", "faces", required=True, type=FOLDER, help="Aligned low-quality faces of one camera.")
@click.option("-o", "--output", "out", required=True, type=FOLDER, help="Where the targets go (PNG, index.jsonl).")
@click.option("--restorer", help="Name, run folder or checkpoint. [default: edge-m-256]")
@click.option("--prior", help="Shipped name, diffusers folder or hub id. [default: prior-256]")
@target_options
@click.option("--real", type=FOLDER, help="Clean faces, whose noise and detail --sampler auto aims at.")
@click.option("--sweep", is_flag=True, help="Draw the dial's curve on a few faces instead (sweep.json, sweep.html).")
@click.option("--truth", type=FOLDER, help="With --sweep: the clean versions of the faces, if they are known.")
@preset_option
@sampler_options
@licence_option
@click.option("--batch", type=click.IntRange(1), help="Faces sampled at once. [default: 8]")
@click.option("--overwrite", is_flag=True, help="Replace targets made with other settings.")
@common_options
def command(
    faces: Path,
    out: Path,
    real: Path | None,
    sweep: bool,
    truth: Path | None,
    overwrite: bool,
    no_progress: bool,
    config_file: Path | None,
    accept_licence: bool,
    **given: Any,
) -> None:
    """Restore each face, noise it, denoise it with the diffusion prior, holding its low frequencies.

    Each target is scored, and kept, weighed down or rejected (index.jsonl). Goes on where an earlier call with the same
    settings stopped; `accelerate launch -m ufr_edge targets ...` shares the faces out. Every square picture counts as
    one aligned face: `adapt` looks for duplicates, turned faces and second ones first, this command does not.
    """
    from ufr_edge.adaptation.dial import dial
    from ufr_edge.adaptation.presets import get_preset
    from ufr_edge.adaptation.targets import TargetsConfig, make_targets
    from ufr_edge.adaptation.workers import is_main_process

    config = read_config(TargetsConfig, config_file, get_preset(given["preset"]).targets)
    config = override(config, {name: given[name] for name in ("restorer", "prior", "batch", "device", "seed")})
    _check_sweep(given, sweep=sweep, truth=truth, real=real)
    if given["fidelity"] is not None:  # before the flags: those that say more than the dial does stay in force
        config = dataclasses.replace(config, sampler=dial(given["fidelity"]).sampler(config.sampler))
    config = targets_from(given, config)
    restorers = filter(None, (config.restorer, config.teacher))
    tell_licences(restorers, accept=accept_licence, priors=[config.prior])
    if sweep:
        _sweep(faces, out, config, truth, show=not no_progress)
        return
    report = make_targets(
        faces, out, config, real=real, overwrite=overwrite, tell=click.echo, show=not no_progress
    )
    if is_main_process():
        echo_skipped(report.skipped)
        for line in report.lines():
            click.echo(line)


def _check_sweep(given: dict[str, Any], *, sweep: bool, truth: Path | None, real: Path | None) -> None:
    """Raise UsageError for an option that would have no effect."""
    if truth is not None and not sweep:
        msg = "--truth is for --sweep: targets are made without it."
        raise click.UsageError(msg)
    without = {
        "--sampler auto": given["sampler_mode"] == "auto",
        "--fidelity": given["fidelity"] is not None,
        "--real": real is not None,
        "--hold-until": given["hold_until"] is not None,
        "--samples": given["samples_per_image"] is not None,
        "--no-qa": given["no_qa"],
        "--embedder": given["embedder"] is not None,
    }
    idle = [name for name, there in without.items() if there]
    if sweep and idle:
        msg = f"--sweep goes through the dial by itself, so that {idle[0]} has no effect. Leave one of them out."
        raise click.UsageError(msg)


def _sweep(faces: Path, out: Path, config: TargetsConfig, truth: Path | None, *, show: bool) -> None:
    from ufr_edge.adaptation.sweep import sweep_targets

    rows = sweep_targets(faces, out, config, truth=truth, show=show)
    for row in rows:
        click.echo("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    click.echo(f"report: {out / 'sweep.html'}")
