"""`ufr-edge bundle`: look into bundles, check, rebuild, pack, install and roll them back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ufr_edge.cli.numbers import Finite
from ufr_edge.cli.options import sha256_option, tensorrt_options
from ufr_edge.cli.tables import parity_cells, print_table
from ufr_edge.errors import BundleError
from ufr_edge.progress import progress_bar

if TYPE_CHECKING:
    from ufr_edge.export.rebuild import RebuildReport
    from ufr_edge.runtime.bundle_info import BundleInfo
    from ufr_edge.runtime.versions import Version

PATH = click.Path(path_type=Path)
PEOPLE = "holds pictures of people (reference faces, see docs/privacy.md)"
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")


@click.group()
def command() -> None:
    """Look into bundles, check, rebuild, pack, install and roll them back.

    BUNDLE is a folder NAME.ufr, an archive NAME.ufrz, or a folder of installed versions.
    """


@command.command("info")
@click.argument("bundle", type=PATH)
@json_option
def info(bundle: Path, as_json: bool) -> None:
    """Show what a bundle holds, and which engine this machine would run and why."""
    from ufr_edge.runtime.bundle_info import describe_bundle

    found = describe_bundle(bundle)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_info(found)


@command.command("check")
@click.argument("bundle", type=PATH)
@json_option
def check(bundle: Path, as_json: bool) -> None:
    """Check every field of the manifest and the checksum of every file; exit with 1 when something is wrong."""
    from ufr_edge.runtime.bundle import read_bundle
    from ufr_edge.runtime.bundle_info import bundle_problems

    found = read_bundle(bundle)
    problems = bundle_problems(found)
    if as_json:
        files = len(found.manifest.files)
        click.echo(json.dumps({"path": str(found.path), "files": files, "problems": problems}, indent=2))
    if problems:
        raise BundleError("\n".join(problems))
    if not as_json:
        click.echo(f"{bundle}: {len(found.manifest.files)} files, all as the manifest says")


@command.command("schema")
def schema() -> None:
    """Print the JSON schema of manifest.json."""
    from ufr_edge.runtime.bundle_schema import manifest_schema

    click.echo(json.dumps(manifest_schema(), indent=2))


@command.command("rebuild")
@click.argument("bundle", type=PATH)
@click.option(
    "--engine", "engines", multiple=True, metavar="NAME", help="Build this engine; may be repeated."
)
@click.option(
    "--add",
    multiple=True,
    metavar="FORMAT-PRECISION",
    help="Add this engine, which the bundle lacks, such as tensorrt-rtx-fp16; may be repeated.",
)
@click.option(
    "--all-misfits", is_flag=True, help="Build every engine that does not fit this machine but could."
)
@click.option("-o", "--output", type=PATH, help="Write the new bundle there. [default: in place of the old]")
@click.option(
    "--calibration", type=PATH, help="Folder of the camera's aligned faces; OpenVINO int8 needs it."
)
@click.option(
    "--faces", type=PATH, help="Folder of aligned faces to measure on. [default: those in the bundle]"
)
@click.option(
    "--max-drop",
    type=Finite(0),
    default=0.3,
    show_default=True,
    help="Exit with 3 when an engine loses more dB against the fp32 ONNX; the bundle is then as it was.",
)
@tensorrt_options
@overwrite_option
@json_option
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def rebuild(
    bundle: Path,
    engines: tuple[str, ...],
    add: tuple[str, ...],
    all_misfits: bool,
    output: Path | None,
    calibration: Path | None,
    faces: Path | None,
    max_drop: float,
    workspace: int,
    max_batch: int,
    build_time: float,
    overwrite: bool,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Build engines again for this machine, or add some, from the ONNX in the bundle. The old bundle stays until all
    is done."""
    from ufr_edge.export.rebuild import rebuild_bundle
    from ufr_edge.export.tensorrt_export import BuildLimits

    if (engines and all_misfits) or not (engines or add or all_misfits):
        msg = "Give --engine NAME or --all-misfits, or --add FORMAT-PRECISION for an engine that the bundle lacks."
        raise click.UsageError(msg)
    with progress_bar("Building", None, show=not (no_progress or as_json)) as advance:
        report = rebuild_bundle(
            bundle,
            engines=None if all_misfits else engines,
            add=add,
            out=output,
            overwrite=overwrite,
            calibration=calibration,
            faces=faces,
            max_drop=max_drop,
            tensorrt=BuildLimits(max_batch=max_batch, workspace_mib=workspace, timeout_s=build_time),
            advance=advance,
        )
    if as_json:
        click.echo(json.dumps(asdict(report) | {"path": str(report.path)}, indent=2))
    else:
        _print_rebuilt(report)


@command.command("pack")
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The archive, NAME.ufrz.")
@overwrite_option
def pack(bundle: Path, output: Path, overwrite: bool) -> None:
    """Write a bundle as one file; the same bundle gives the same bytes."""
    from ufr_edge.files import sha256_file
    from ufr_edge.runtime.bundle import read_bundle
    from ufr_edge.runtime.bundle_archive import pack_bundle

    found = read_bundle(bundle)
    pack_bundle(found, output, overwrite=overwrite)
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB, sha256 {sha256_file(output)}")
    if found.manifest.shows_people:
        click.echo(f"note: it {PEOPLE}, and is readable for you only")


@command.command("unpack")
@click.argument("archive", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The bundle folder, NAME.ufr.")
@sha256_option
@overwrite_option
def unpack(archive: Path, output: Path, sha256: str | None, overwrite: bool) -> None:
    """Unpack an archive, whole and with every checksum right, or not at all."""
    from ufr_edge.runtime.bundle_archive import check_archive, unpack_bundle

    if sha256 is not None:
        check_archive(archive, sha256)
    unpack_bundle(archive, output, overwrite=overwrite)
    click.echo(f"{output}: unpacked, every checksum matches")


@command.command("install")
@click.argument("folder", type=PATH)
@click.argument("bundle", type=PATH)
@click.option(
    "--keep", type=click.IntRange(2), help="Keep so many versions, remove the oldest. [default: all]"
)
@sha256_option
def install(folder: Path, bundle: Path, keep: int | None, sha256: str | None) -> None:
    """Install BUNDLE into FOLDER as a new version and make it the current one, in one step."""
    from ufr_edge.runtime.bundle_archive import check_archive
    from ufr_edge.runtime.versions import current_version, install_version

    if sha256 is not None:
        check_archive(bundle, sha256)
    install_version(folder, bundle, keep=keep)
    click.echo(f"{folder}: version {current_version(folder).number} is current")


@command.command("history")
@click.argument("folder", type=PATH)
@json_option
def show_history(folder: Path, as_json: bool) -> None:
    """List the versions installed in FOLDER."""
    from ufr_edge.runtime.versions import current_version, history

    current_version(folder)  # says so when nothing is installed there
    versions = history(folder)
    if as_json:
        click.echo(json.dumps([asdict(item) | {"path": str(item.path)} for item in versions], indent=2))
    else:
        print_table(str(folder), ["version", "bundle", "installed", "after", ""], [_row(v) for v in versions])


@command.command("rollback")
@click.argument("folder", type=PATH)
@click.option(
    "--to", type=click.IntRange(1), metavar="NUMBER", help="Go to this version. [default: the one before]"
)
@click.option(
    "--reason", default="rolled back", show_default=True, help="Noted with the version that is left."
)
def roll_back(folder: Path, to: int | None, reason: str) -> None:
    """Make the version before the current one of FOLDER current again."""
    from ufr_edge.runtime.versions import rollback

    version = rollback(folder, to=to, reason=reason)
    click.echo(f"{folder}: version {version.number} is current")


def _print_info(found: BundleInfo) -> None:
    manifest, restorer = found.manifest, found.manifest.restorer
    click.echo(
        f"{manifest.name}: {restorer.arch} at {restorer.side} px, {found.size / 1e6:.1f} MB, {found.path}"
    )
    click.echo(f"created {manifest.created}, manifest schema {manifest.schema}")
    click.echo(f"weights {restorer.weights_sha256[:12]}…, licence {restorer.weights_licence}")
    click.echo(f"code licence {restorer.code_licence}")
    if manifest.shows_people:
        click.echo(f"note: it {PEOPLE}")
    for key, value in sorted(manifest.lineage.items()):
        click.echo(f"{key}: {value}")
    rows = []
    for item in found.engines:
        drop = "-" if item.drop_db is None else f"{item.drop_db:.2f} dB"
        backend = f"{item.entry.backend} {item.entry.backend_version}"
        psnr = parity_cells(item.entry.parity)[0]
        rows.append([item.entry.name, backend, item.entry.precision, f"{item.size / 1e6:.1f} MB", psnr, drop])
    print_table("", ["engine", "backend", "precision", "files", "PSNR to fp32", "drop"], rows)
    click.echo(f"this machine runs: {found.chosen or 'none of them'}")
    for item in found.engines:
        if item.turned_down:
            click.echo(f"  not {item.entry.name}: {item.turned_down}")


def _print_rebuilt(report: RebuildReport) -> None:
    for name, reason in report.left:
        click.echo(f"note: {name} is not mended by a build here: {reason}")
    if not report.engines:
        click.echo(f"{report.path}: nothing to build, it is as it was")
        return
    rows = []
    for item in report.engines:
        drop = "-" if item.drop is None else f"{item.drop.mean_db:.3f} dB"
        rows.append([item.name, parity_cells(item.before)[0], *parity_cells(item.parity), drop])
    columns = ["engine", "before", "PSNR to fp32 ONNX", "max", "mean", "on", "drop"]
    print_table(f"{report.path}: built again, measured on {report.measured_on}", columns, rows)
    for item in report.engines:
        if item.note:
            click.echo(f"note: {item.note}")


def _row(version: Version) -> list[str]:
    left = f"left: {version.rejected}" if version.rejected else ""
    after = "-" if version.previous is None else str(version.previous)
    state = "current" if version.current else left
    return [str(version.number), version.name, version.installed, after, state]
