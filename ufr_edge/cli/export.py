"""`ufr-edge export`: a restorer to a bundle of engines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import click

from ufr_edge.cli.numbers import Finite
from ufr_edge.cli.options import licence_option, tell_licences, tensorrt_options
from ufr_edge.cli.tables import parity_cells, print_table
from ufr_edge.errors import InputFileError
from ufr_edge.progress import progress_bar

if TYPE_CHECKING:
    from ufr_edge.export.bundle_export import ExportReport


PERCENTILE = 99.99
NAMED = 12


def _read_drop(_: click.Context, __: click.Parameter, value: str) -> float | None:
    """Read "0.3" as dB, "none" as None."""
    if value.lower() == "none":
        return None
    try:
        drop = float(value)
    except ValueError:
        drop = -1.0
    if not 0 <= drop < math.inf:
        msg = f"{value!r} is no drop in dB (0 or more), and not none."
        raise click.BadParameter(msg)
    return drop


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
    "--max-drop",
    callback=_read_drop,
    metavar="DB|none",
    default="0.3",
    show_default=True,
    help="What an engine may lose against the fp32 network on held-out faces, mean PSNR in dB; none: measure, refuse nothing.",
)
@click.option(
    "--gate-faces",
    type=click.Path(path_type=Path),
    help="Folder of aligned faces, or with lq/ and hq/ pairs, to measure that on.  "
    "[default: the references, else faces held out of --calibration]",
)
@click.option(
    "--gate-time",
    type=Finite(0),
    default=120.0,
    show_default=True,
    help="Seconds per engine for putting layers back to higher precision.",
)
@click.option(
    "--ranges",
    type=click.Choice(["minmax", "percentile"]),
    default="minmax",
    show_default=True,
    help="Range of the activations of an int8 engine: all of it, or without its outermost 0.01 %.",
)
@click.option(
    "--retreat",
    type=click.Choice(["measured", "nncf"]),
    default="measured",
    show_default=True,
    help="Who puts layers of an OpenVINO int8 engine back: we, the costliest by measurement, or NNCF's accuracy control.",
)
@click.option(
    "--qat",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Fine-tune the int8 engines' weights through the rounding first, on this folder's aligned faces.",
)
@click.option(
    "--qat-steps", type=click.IntRange(1), default=200, show_default=True, help="How long: steps of 4 crops."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice of frames.")
@click.option(
    "--no-stored-faces", is_flag=True, help="Put no reference faces (pictures of people) into the bundle."
)
@click.option(
    "--side", type=int, help="Face side in pixels, a multiple of 32.  [default: the restorer's own]"
)
@tensorrt_options
@licence_option
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
    max_drop: float | None,
    gate_faces: Path | None,
    gate_time: float,
    ranges: str,
    retreat: Literal["measured", "nncf"],
    qat: Path | None,
    qat_steps: int,
    seed: int,
    no_stored_faces: bool,
    side: int | None,
    workspace: int,
    max_batch: int,
    build_time: float,
    accept_licence: bool,
    overwrite: bool,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Turn a trained restorer into a bundle of device engines.

    RUN_OR_NAME is a shipped or known restorer, a run folder or a checkpoint (.safetensors, .pth). Every engine file is run once it is
    written and compared with torch; the figures go into the manifest. An int8 engine that loses more than
    --max-drop gets its worst layers back in higher precision; where that does not do, nothing is written (exit 3).
    """
    from ufr_edge.export.requests import plan_requests

    requests = plan_requests(formats, precisions)  # before torch is loaded: a wrong combination fails at once

    from ufr_edge.calibration.frames import CalibrationConfig
    from ufr_edge.calibration.gate import GateConfig
    from ufr_edge.export.bundle_export import ExportOptions, export_bundle
    from ufr_edge.export.qat import QatConfig
    from ufr_edge.export.tensorrt_export import BuildLimits
    from ufr_edge.restorers.loading import load_any_restorer

    if Path(source).suffix == ".onnx":
        _refuse_onnx(Path(source))
    tell_licences([source], accept=accept_licence)
    restorer = load_any_restorer(source)
    options = ExportOptions(
        gate=None if max_drop is None else GateConfig(max_drop_db=max_drop, time_s=gate_time),
        gate_faces=gate_faces,
        calibration=CalibrationConfig(seed=seed, percentile=PERCENTILE if ranges == "percentile" else None),
        store_faces=not no_stored_faces,
        retreat=retreat,
        qat=qat,
        qat_config=QatConfig(steps=qat_steps, seed=seed),
        tensorrt=BuildLimits(max_batch=max_batch, workspace_mib=workspace, timeout_s=build_time),
    )
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
            options=options,
            advance=advance,
        )
    if as_json:
        click.echo(json.dumps({"manifest": report.manifest.to_json(), "notes": report.notes}, indent=2))
        return
    _print_report(report)


def _refuse_onnx(path: Path) -> NoReturn:
    """Say what is wrong with an ONNX file given as the source; a sound one belongs to a bundle."""
    from ufr_edge.export.onnx_check import read_onnx
    from ufr_edge.export.onnx_export import check_border

    check_border(read_onnx(path))
    msg = f"{path} is an ONNX; export begins from weights. Engines are built from a bundle's ONNX by: ufr-edge bundle rebuild"
    raise InputFileError(msg)


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
    if report.tuning is not None:
        click.echo(report.tuning.describe())
    for name, built in report.gated.items():
        if built.measured.drop is not None:
            click.echo(f"{name}: {built.measured.drop.describe()}")
        if built.labels:
            more = (
                f" and {len(built.labels) - NAMED} more (see gate.json)" if len(built.labels) > NAMED else ""
            )
            click.echo(f"{name}: in higher precision, worst first: {', '.join(built.labels[:NAMED])}{more}")
    for note in report.notes:
        click.echo(f"note: {note}")
