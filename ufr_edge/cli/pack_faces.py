"""`ufr-edge pack-faces`: recorded faces as one file."""

from __future__ import annotations

from pathlib import Path

import click

from ufr_edge.cli.options import FOLDER


@click.command("pack-faces")
@click.argument("folder", type=FOLDER)
@click.option("-o", "--output", type=FOLDER, required=True, help="The archive, NAME.ufrf.")
@click.option("--overwrite", is_flag=True, help="Replace the archive if it is there.")
def command(folder: Path, output: Path, overwrite: bool) -> None:
    """Write the faces of FOLDER, with their index, as one file that only you can read.

    `ufr-edge readapt --faces NAME.ufrf` takes it on another machine. It shows people: delete it when it is not needed.
    """
    from ufr_edge.files import sha256_file
    from ufr_edge.runtime.faces_archive import pack_faces

    count = pack_faces(folder, output, overwrite=overwrite)
    click.echo(f"{output}: {count} faces, {output.stat().st_size / 1e6:.1f} MB, sha256 {sha256_file(output)}")
