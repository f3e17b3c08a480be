"""`ufr-edge deploy`: a bundle's archive into a box's folder of versions."""

from __future__ import annotations

from pathlib import Path

import click

from ufr_edge.cli.options import FOLDER, sha256_option


@click.command("deploy")
@click.argument("archive", type=FOLDER)
@click.argument("folder", type=FOLDER)
@click.option(
    "--keep", type=click.IntRange(2), help="Keep so many versions, remove the oldest.  [default: all]"
)
@sha256_option
def command(archive: Path, folder: Path, keep: int | None, sha256: str | None) -> None:
    """Install ARCHIVE (NAME.ufrz) into FOLDER as a new version, once every checksum in it is right.

    A stream that runs on FOLDER tries it in shadow and takes it over by itself. Make the archive with
    `ufr-edge bundle pack`.
    """
    from ufr_edge.runtime.bundle_archive import check_archive
    from ufr_edge.runtime.versions import current_version, install_version

    if sha256 is not None:
        check_archive(archive, sha256)
    install_version(folder, archive, keep=keep)
    version = current_version(folder)
    click.echo(f"{folder}: version {version.number} ({version.name}) is current")
