"""Options that several training commands share, and how they override a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from ufr_edge.config import load_config

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
FOLDER = click.Path(path_type=Path)


def stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Join option decorators into one, in the order of the help page."""

    def apply(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


def common_options(function: F) -> F:
    """`--config`, `--device`, `--seed`, `--no-progress`."""
    return stack(
        click.option("--config", "config_file", type=FOLDER, help="TOML or JSON with the same settings; flags win."),
        click.option("--device", help="auto, cpu, cuda:0. [default: auto]"),
        click.option("--seed", type=click.IntRange(0), help="Everything random follows from it. [default: 0]"),
        click.option("--no-progress", is_flag=True, help="Draw no progress bar."),
    )(function)


def training_options(function: F) -> F:
    """`--steps`, `--batch`, `--lr`, `--lr-end`, `--minutes`, `--train-precision`."""
    return stack(
        click.option("--steps", type=click.IntRange(1), help="Optimiser steps in all."),
        click.option("--batch", type=click.IntRange(1), help="Faces per step."),
        click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate at the start; cosine down to --lr-end."),
        click.option("--lr-end", type=click.FloatRange(0), help="Learning rate at the end."),
        click.option(
            "--minutes",
            type=click.FloatRange(0, min_open=True),
            help="Stop after so many minutes; the same command goes on later.",
        ),
        click.option("--train-precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Precision of training."),
    )(function)


def loss_options(function: F) -> F:
    """`--w-l1`, `--w-features`, `--w-adversarial`, `--replay`: the terms of fine-tuning."""
    return stack(
        click.option("--w-l1", type=click.FloatRange(0), help="Weight of L1. [default: 1.0]"),
        click.option(
            "--w-features",
            type=click.FloatRange(0),
            help="Weight of the prior-feature distance. [default: 0.1]",
        ),
        click.option(
            "--w-adversarial",
            type=click.FloatRange(0),
            help="Weight of the adversarial term. [default: 0.01; 0 without --real]",
        ),
        click.option(
            "--replay",
            type=click.FloatRange(0, 1),
            help="Share of old (classic) pairs in each batch, from --real. [default: 0]",
        ),
    )(function)


def sampler_options(function: F) -> F:
    """The sampler's settings, by the names of `SamplerConfig`."""
    return stack(
        click.option(
            "--preset",
            type=click.Choice(["paper-swinir", "paper-codeformer", "light"]),
            help="Start from a named sampler setting. [default: light]",
        ),
        click.option("--start", type=int, help="Index of 250 whose noise level the chain starts from."),
        click.option("--hold-until", type=int, help="Low frequencies are held while the index is at least this."),
        click.option("-N", "--filter-n", type=int, help="The paper's N at 512 px; scaled to the side."),
        click.option("--fast-steps", type=int, help="This many calls of the prior in place of all of them."),
        click.option("--method", type=click.Choice(["ddpm", "ddim"]), help="Ancestral steps, or DDIM."),
        click.option("--samples", "samples_per_image", type=int, help="A target is the mean of so many samples."),
        click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="Precision of the prior."),
    )(function)


def read_config(cls: type[T], config_file: Path | None, default: T | None = None) -> T:
    """Return the config of a file, or the default one."""
    if config_file is not None:
        return load_config(cls, config_file)
    return default if default is not None else cls()


def override(config: T, values: Mapping[str, Any]) -> T:
    """Replace the fields of a frozen dataclass that were given (not None). Nested: "training.lr".

    All at once: settings that hold each other in range (start, hold_until) may change together.
    """
    fields: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if value is not None and rest:
            nested.setdefault(head, {})[rest] = value
        elif value is not None:
            fields[head] = value
    for head, inner in nested.items():
        fields[head] = override(fields.get(head, getattr(config, head)), inner)
    return dataclasses.replace(config, **fields) if fields else config  # type: ignore[type-var]


def training_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Map the names of `training_options` and the common ones to fields of a training config."""
    return {
        "training.steps": given["steps"],
        "training.lr": given["lr"],
        "training.lr_end": given["lr_end"],
        "training.precision": given["train_precision"],
        "loop.minutes": given["minutes"],
        "batch": given["batch"],
        "device": given["device"],
        "seed": given["seed"],
    }


def sampler_from(given: Mapping[str, Any], base: Any) -> Any:
    """Return `base`, or the named preset, with the sampler options that were given."""
    from ufr_edge.priors.sampler import PRESETS

    sampler = PRESETS[given["preset"]] if given["preset"] else base
    names = ("start", "hold_until", "filter_n", "fast_steps", "method", "samples_per_image", "precision")
    return override(sampler, {name: given[name] for name in names})


def echo_skipped(skipped: tuple[tuple[str, str], ...]) -> None:
    """Name the files that were left out, on standard error."""
    if skipped:
        click.echo(f"left out {len(skipped)} files:", err=True)
    for name, reason in skipped[:10]:
        click.echo(f"  {name}: {reason}", err=True)
