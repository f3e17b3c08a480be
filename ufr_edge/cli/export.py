"""`ufr-edge export`: a restorer to a bundle of engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ufr_edge.cli.tables import parity_cells, print_table
from ufr_edge.progress import progress_bar

if TYPE_CHECKING:
    from ufr_edge.export.bundle_export import ExportReport


@click.command("export")
@click.argument("source", metavar="RUN_OR_NAME")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle, NAME.ufr.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["onnx", "openvino", "tensorrt", "tensorrt-rtx"]),
    default=("onnx",),
    show_default=True,
    help="Engine format; may be given several times.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default=("fp32",),
    show_default=True,
    help="Precision; may be given several times, and is built for every format.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Folder of the camera's aligned faces; int8 needs it.",
)
@click.option(
    "--faces", type=click.Path(path_type=Path), help="Folder of aligned faces to compare engines on."
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Folder with lq/ and hq/ pairs: also measure each engine against the truth.",
)
@click.option(
    "--side", type=int, help="Face side in pixels, a multiple of 32.  [default: the restorer's own]"
)
@click.option("--overwrite", is_flag=True, help="Replace the bundle if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and the notes as JSON.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def command(
    source: str,
    output: Path,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    calibration: Path | None,
    faces: Path | None,
    reference: Path | None,
    side: int | None,
    overwrite: bool,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Turn a trained restorer into a bundle of device engines.

    RUN_OR_NAME is a shipped restorer, a run folder or a .safetensors file. Every engine file is run once it is
    written and compared with torch; the figures go into the manifest.
    """
    from ufr_edge.export.requests import plan_requests

    requests = plan_requests(formats, precisions)  # before torch is loaded: a wrong combination fails at once

    from ufr_edge.export.bundle_export import export_bundle
    from ufr_edge.restorers.files import load_restorer

    restorer = load_restorer(source)
    with progress_bar("Exporting", len(requests), show=not (no_progress or as_json)) as advance:
        report = export_bundle(
            restorer,
            output,
            formats=requests,
            side=side,
            calibration=calibration,
            parity_faces=faces,
            reference=reference,
            overwrite=overwrite,
            advance=advance,
        )
    if as_json:
        click.echo(json.dumps({"manifest": report.manifest.to_json(), "notes": report.notes}, indent=2))
        return
    _print_report(report)


def _print_report(report: ExportReport) -> None:
    manifest = report.manifest
    rows = []
    for entry in manifest.engines:
        size = sum((report.path / name).stat().st_size for name in entry.files) / 1e6
        rows.append(
            [
                entry.name,
                f"{entry.backend} {entry.backend_version}",
                f"{size:.1f} MB",
                *parity_cells(entry.parity),
            ]
        )
    arch, side = manifest.restorer.arch, manifest.restorer.side
    origin = manifest.lineage.get("parity_faces", "")
    columns = ["engine", "backend", "files", "PSNR to torch", "max", "mean", "on"]
    print_table(f"{report.path}: {arch} at {side} px, compared with torch on: {origin}", columns, rows)
    for entry in manifest.engines:
        if "reference_drop_db" in entry.quality:
            figures = entry.quality
            click.echo(
                f"{entry.name}: {figures['reference_psnr_db']:.2f} dB against the references, "
                f"fp32 {figures['reference_fp32_psnr_db']:.2f} dB (drop {figures['reference_drop_db']:.2f} dB)"
            )
    for note in report.notes:
        click.echo(f"note: {note}")
