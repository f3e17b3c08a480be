"""`ufr-edge eval`: figures of faces, restored or not, with and without the truth."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ufr_edge.cli.options import FOLDER


@click.command("eval")
@click.option("-i", "--input", "faces", required=True, type=FOLDER, help="Aligned faces to measure.")
@click.option("--truth", type=FOLDER, help="Clean faces of the same names.")
@click.option("--restorer", help="Restore them first with this restorer, and measure both.")
@click.option("--prior", help="Prior for the distances on its own features, such as prior-256.")
@click.option("--side", type=int, default=256, show_default=True, help="Face side without a restorer.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    faces: Path, truth: Path | None, restorer: str | None, prior: str | None, side: int, device: str, as_json: bool
) -> None:
    """Measure faces: PSNR and SSIM (RGB, no border crop, no mean/std matching) where the truth is known.

    Distances on the prior's features carry their own names: they are not LPIPS or FID.
    """
    from ufr_edge.adaptation.evaluate import evaluate_faces

    figures = evaluate_faces(faces, truth, restorer=restorer, prior=prior, side=side, device=device)
    click.echo(json.dumps(figures, indent=2) if as_json else _table(figures))


def _table(figures: dict[str, dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for values in figures.values() for name in values))
    lines = [f"{'':26}" + "".join(f"{column:>12}" for column in figures)]
    lines += [f"{name:26}" + "".join(f"{values[name]:12.4f}" for values in figures.values()) for name in names]
    return "\n".join(lines)
