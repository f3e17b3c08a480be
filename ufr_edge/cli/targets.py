"""`ufr-edge targets`: pseudo targets for low-quality faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ufr_edge.cli.options import (
    FOLDER,
    common_options,
    echo_skipped,
    override,
    read_config,
    sampler_from,
    sampler_options,
)


@click.command("targets")
@click.option("-i", "--input", "faces", required=True, type=FOLDER, help="Aligned low-quality faces of one camera.")
@click.option("-o", "--output", "out", required=True, type=FOLDER, help="Where the targets go (PNG, index.jsonl).")
@click.option("--restorer", help="Shipped name, run folder or .safetensors. [default: edge-m-256]")
@click.option("--prior", help="Shipped name, diffusers folder or hub id. [default: prior-256]")
@sampler_options
@click.option("--batch", type=click.IntRange(1), help="Faces sampled at once. [default: 8]")
@click.option("--overwrite", is_flag=True, help="Replace targets made with other settings.")
@common_options
def command(faces: Path, out: Path, overwrite: bool, no_progress: bool, config_file: Path | None, **given: Any) -> None:
    """Restore each face, noise it, denoise it with the diffusion prior, holding its low frequencies.

    Goes on where an earlier call with the same settings stopped.
    """
    from ufr_edge.adaptation.targets import TargetsConfig, make_targets

    config = read_config(TargetsConfig, config_file)
    config = override(config, {name: given[name] for name in ("restorer", "prior", "batch", "device", "seed")})
    config = override(config, {"sampler": sampler_from(given, config.sampler)})
    report = make_targets(faces, out, config, overwrite=overwrite, show=not no_progress)
    echo_skipped(report.skipped)
    click.echo(f"{report.total} targets in {report.folder} ({report.reused} were there before)")
