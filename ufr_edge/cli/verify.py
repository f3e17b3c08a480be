"""`ufr-edge verify`: is a bundle whole, and does each engine do what its ONNX does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ufr_edge.cli.numbers import Finite
from ufr_edge.cli.tables import parity_cells, print_table
from ufr_edge.errors import GateFailedError
from ufr_edge.progress import progress_bar

if TYPE_CHECKING:
    from ufr_edge.calibration.gate import GateConfig
    from ufr_edge.calibration.verify import EngineCheck, VerifyReport


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--faces",
    type=click.Path(path_type=Path),
    help="Folder of aligned faces.  [default: those stored in the bundle, else a test pattern]",
)
@click.option(
    "--max-drop",
    type=Finite(0),
    help="Exit with 3 when an engine loses more (mean PSNR in dB) against fp32.",
)
@click.option(
    "--max-worst",
    type=Finite(0),
    help="Exit with 3 when an engine loses more on its worst face.  [default with --max-drop: 1.0]",
)
@click.option(
    "--min-psnr", type=Finite(), help="Exit with 3 when an engine lies below this PSNR (dB) to the fp32 ONNX."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def command(
    bundle: Path,
    faces: Path | None,
    max_drop: float | None,
    max_worst: float | None,
    min_psnr: float | None,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Check a bundle: every checksum, and each engine against fp32 on the faces it carries.

    Engines that cannot run on this machine are listed with the reason. Whatever the limits, one that fails or fails a
    crash check (solid colours, NaN, a dead channel, clipped values) ends it with 3.
    """
    from ufr_edge.calibration.verify import failing, verify_bundle

    with progress_bar("Verifying", None, show=not (no_progress or as_json)) as advance:
        report = verify_bundle(bundle, faces=faces, advance=advance)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print(bundle, report)
    low = failing(report, min_psnr, limits=_limits(max_drop, max_worst))
    if low:
        msg = f"{bundle} fails: {', '.join(low)}. Export it again, with other precisions or more calibration faces."
        raise GateFailedError(msg)


def _limits(max_drop: float | None, max_worst: float | None) -> GateConfig | None:
    from ufr_edge.calibration.gate import GateConfig

    if max_drop is None and max_worst is None:
        return None
    default = GateConfig()
    return GateConfig(
        max_drop_db=1e6 if max_drop is None else max_drop,
        max_worst_db=default.max_worst_db if max_worst is None else max_worst,
    )


def _print(bundle: Path, report: VerifyReport) -> None:
    rows = [[c.name, *parity_cells(c.parity), *_drop_cells(c), c.runs or "-"] for c in report.engines]
    title = f"{bundle}: {report.files} files, all checksums match; against {report.base} on {report.origin}"
    columns = ["engine", "PSNR to fp32", "max", "mean", "on", "drop", "worst face", "crash checks", "runs on"]
    print_table(title, columns, rows)
    if report.base_psnr_db is not None:
        click.echo(f"{report.base} gives {report.base_psnr_db:.1f} dB to the results stored at export")
    if any(check.drop is not None and check.drop.implied for check in report.engines):
        click.echo("drops are implied by the distance to fp32: the truth of these faces is not known")
    for check in report.engines:
        if check.reason:
            click.echo(f"note: {check.name} does not run here: {check.reason}")
        for fault in (check.broken, *(check.drop.faults if check.drop else ())):
            if fault:
                click.echo(f"note: {check.name}: {fault}")


def _drop_cells(check: EngineCheck) -> list[str]:
    if check.drop is None:
        return ["-", "-", "fails" if check.broken else "-"]
    worst = f"{check.drop.worst_db:.3f} dB ({check.worst_image})"
    return [f"{check.drop.mean_db:.3f} dB", worst, "bad" if check.drop.faults else "pass"]
