"""Options that several training commands share, and how they override a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
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
        click.option(
            "--config", "config_file", type=FOLDER, help="TOML or JSON with the same settings; flags win."
        ),
        click.option("--device", help="auto, cpu, cuda:0. [default: auto]"),
        click.option(
            "--seed", type=click.IntRange(0), help="Everything random follows from it. [default: 0]"
        ),
        click.option("--no-progress", is_flag=True, help="Draw no progress bar."),
    )(function)


def sha256_option(function: F) -> F:
    """`--sha256` of an archive that came from elsewhere."""
    return click.option(
        "--sha256",
        metavar="HEX",
        help="The archive's sha256, as bundle pack printed it and sent by another way; refuse any other.",
    )(function)


def tensorrt_options(function: F) -> F:
    """`--workspace`, `--batch` and `--build-time` of TensorRT builds."""
    return stack(
        click.option(
            "--workspace",
            type=click.IntRange(1),
            default=2048,
            show_default=True,
            metavar="MIB",
            help="Memory that a TensorRT build may use for scratch; ufr-edge doctor names the largest that fits.",
        ),
        click.option(
            "--batch",
            "max_batch",
            type=click.IntRange(1),
            default=8,
            show_default=True,
            metavar="N",
            help="Largest batch of a TensorRT engine; the others take any.",
        ),
        click.option(
            "--build-time",
            type=click.FloatRange(0, min_open=True),
            default=3600.0,
            show_default=True,
            metavar="SECONDS",
            help="Give up a TensorRT build after so long.",
        ),
    )(function)


def training_options(function: F) -> F:
    """`--steps`, `--batch`, `--accumulate`, `--lr`, `--lr-end`, `--minutes`, `--train-precision`."""
    return stack(
        click.option("--steps", type=click.IntRange(1), help="Optimiser steps in all."),
        click.option("--batch", type=click.IntRange(1), help="Faces per step."),
        click.option(
            "--accumulate",
            type=click.IntRange(1),
            help="Compute each batch in so many parts, to fit into memory. [default: 1]",
        ),
        click.option(
            "--lr",
            type=click.FloatRange(0, min_open=True),
            help="Learning rate at the start; cosine down to --lr-end.",
        ),
        click.option("--lr-end", type=click.FloatRange(0), help="Learning rate at the end."),
        click.option(
            "--minutes",
            type=click.FloatRange(0, min_open=True),
            help="Stop after so many minutes; the same command goes on later.",
        ),
        click.option(
            "--train-precision",
            type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
            help="Precision of training; fp16 for restorers only.",
        ),
    )(function)


def loss_options(function: F) -> F:
    """The terms of fine-tuning and what its pairs are made of, from `--w-l1` to `--real-detail`."""
    return stack(
        click.option("--w-l1", type=click.FloatRange(0), help="Weight of L1. [default: 1.0]"),
        click.option(
            "--perceptual",
            type=click.Choice(["lpips", "prior-features", "none"]),
            help="The only perceptual term, at the weight of the one in force. "
            "[default: prior-features; lpips with --preset paper-swinir]",
        ),
        click.option("--w-lpips", type=click.FloatRange(0), help="Weight of LPIPS. [default: 0]"),
        click.option(
            "--lpips-backbone", type=FOLDER, help="Its ImageNet weights, if not in torch hub's cache."
        ),
        click.option("--download", is_flag=True, default=None, help="Fetch them where they are missing."),
        click.option(
            "--w-features",
            type=click.FloatRange(0),
            help="Weight of the prior-feature distance. [default: 0.1]",
        ),
        click.option("--features-prior", help="Prior of those features. [default: --prior]"),
        click.option(
            "--w-adversarial",
            type=click.FloatRange(0),
            help="Weight of the adversarial term; above 0 it needs --real. [default: 0.01; 0 without --real]",
        ),
        click.option(
            "--replay",
            type=click.FloatRange(0, 1),
            help="Share of old (classic) pairs in each batch, from --real. [default: 0]",
        ),
        click.option(
            "--camera-pairs",
            type=click.FloatRange(0, 1),
            help="Share of each batch that is clean faces degraded by an estimate of the camera. [default: 0]",
        ),
        click.option(
            "--camera-pairs-of",
            type=click.Choice(["targets", "real"]),
            help="Faces degraded for camera pairs: the targets, or those of --real. [default: targets]",
        ),
        click.option(
            "--real-detail",
            type=click.FloatRange(0),
            help="Draw faces of --real in proportion to their fine detail to this power. [default: 0]",
        ),
    )(function)


def sampler_options(function: F) -> F:
    """The sampler's settings, by the names of `SamplerConfig`."""
    return stack(
        click.option("--start", type=int, help="Index of 250 whose noise level the chain starts from."),
        click.option(
            "--hold-until", type=int, help="Low frequencies are held while the index is at least this."
        ),
        click.option("-N", "--filter-n", type=int, help="The paper's N at 512 px; scaled to the side."),
        click.option("--fast-steps", type=int, help="This many calls of the prior in place of all of them."),
        click.option("--method", type=click.Choice(["ddpm", "ddim"]), help="Ancestral steps, or DDIM."),
        click.option(
            "--samples", "samples_per_image", type=int, help="A target is the mean of so many samples."
        ),
        click.option(
            "--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Precision of the prior."
        ),
    )(function)


def preset_option(function: F) -> F:
    """`--preset`: a published recipe, below the config file and the flags."""
    return click.option(
        "--preset",
        type=click.Choice(["paper-swinir", "paper-codeformer", "light"]),
        help="Start from a recipe: the published ones, with their restorer and prior; --config and flags win. "
        "[default: light]",
    )(function)


def licence_option(function: F) -> F:
    """`--accept-licence`, for commands that take a restorer or prior by name or file; see `tell_licences`."""
    return click.option(
        "--accept-licence",
        is_flag=True,
        help="Accept the licences of restorer and prior where they forbid commercial use, once.",
    )(function)


def tell_licences(sources: Iterable[str | Path], *, accept: bool, priors: Iterable[str | Path] = ()) -> None:
    """Print the licence of each restorer and prior that is not ours on standard error.

    See `restorer_licence` and `prior_licence` for what they raise.
    """
    from ufr_edge.restorers.loading import restorer_licence

    told = [(source, restorer_licence(source, accept=accept)) for source in dict.fromkeys(sources)]
    if drawn := dict.fromkeys(priors):
        from ufr_edge.priors.files import is_shipped, prior_licence

        told += [(source, prior_licence(source, accept=accept)) for source in drawn if not is_shipped(source)]
    for source, licence in told:
        if licence is not None:
            click.echo(f"{source}: {licence}", err=True)


def read_config(cls: type[T], config_file: Path | None, default: T | None = None) -> T:
    """Return the config of a file, whose missing settings are those of `default`, or `default` itself."""
    if config_file is not None:
        return load_config(cls, config_file, default)
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
        "training.accumulate": given["accumulate"],
        "loop.minutes": given["minutes"],
        "batch": given["batch"],
        "device": given["device"],
        "seed": given["seed"],
    }


def sampler_from(given: Mapping[str, Any], base: Any) -> Any:
    """Return `base` with the sampler options that were given."""
    names = ("start", "hold_until", "filter_n", "fast_steps", "method", "samples_per_image", "precision")
    return override(base, {name: given[name] for name in names})


def echo_skipped(skipped: tuple[tuple[str, str], ...]) -> None:
    """Name the files that were left out, on standard error."""
    if skipped:
        click.echo(f"left out {len(skipped)} files:", err=True)
    for name, reason in skipped[:10]:
        click.echo(f"  {name}: {reason}", err=True)
