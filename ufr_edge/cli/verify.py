"""`ufr-edge verify`: is a bundle whole, and does each engine do what its ONNX does."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ufr_edge.cli.tables import parity_cells, print_table
from ufr_edge.errors import GateFailedError
from ufr_edge.progress import progress_bar


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--faces", type=click.Path(path_type=Path), help="Folder of aligned faces.  [default: a test pattern]"
)
@click.option(
    "--min-psnr", type=float, help="Exit with 3 when an engine lies below this PSNR (dB) to the fp32 ONNX."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def command(
    bundle: Path, faces: Path | None, min_psnr: float | None, as_json: bool, no_progress: bool
) -> None:
    """Check a bundle: every checksum, and each engine against the fp32 ONNX beside it.

    Engines that cannot run on this machine are listed with the reason.
    """
    from ufr_edge.calibration.verify import failing, verify_bundle

    with progress_bar("Verifying", None, show=not (no_progress or as_json)) as advance:
        report = verify_bundle(bundle, faces=faces, advance=advance)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        rows = [[r.name, *parity_cells(r.parity), r.runs or "-"] for r in report.engines]
        title = (
            f"{bundle}: {report.files} files, all checksums match; against {report.base} on {report.origin}"
        )
        print_table(title, ["engine", "PSNR to fp32 ONNX", "max", "mean", "on", "runs on"], rows)
        for check in report.engines:
            if check.reason:
                click.echo(f"note: {check.name} does not run here: {check.reason}")
    low = failing(report, min_psnr)
    if low:
        msg = f"{bundle} fails the gate of {min_psnr:g} dB: {', '.join(low)}. Export it again with other precisions."
        raise GateFailedError(msg)
