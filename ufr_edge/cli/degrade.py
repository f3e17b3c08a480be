"""`ufr-edge degrade`: make clean pictures bad with a named, seeded preset."""

from __future__ import annotations

from pathlib import Path

import click

from ufr_edge.cli.options import FOLDER, echo_skipped
from ufr_edge.degradations.folder import RECORD, DegradeConfig, degrade_folder
from ufr_edge.degradations.presets import PRESET_NOTES
from ufr_edge.progress import progress_bar


def _list(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    width = max(map(len, PRESET_NOTES))
    for name, note in PRESET_NOTES.items():
        click.echo(f"{name:{width}}  {note}")
    context.exit()


@click.command("degrade")
@click.option("-i", "--input", "source", required=True, type=FOLDER, help="Picture or folder of pictures.")
@click.option("-o", "--output", "out", required=True, type=FOLDER, help="Folder to make.")
@click.option("--preset", default="classic", show_default=True, help="Name of a degradation (see --list).")
@click.option("--seed", type=int, default=0, show_default=True, help="Everything random follows from it.")
@click.option("--side", type=click.IntRange(1), help="First make the shorter side so many pixels.")
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the presets."
)
@click.option("--overwrite", is_flag=True, help="Replace a folder that this command made.")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
def command(
    source: Path, out: Path, preset: str, seed: int, side: int | None, overwrite: bool, no_progress: bool
) -> None:
    """Make clean pictures bad with a named, seeded preset: PNG files of the same names.

    A picture's draw follows from the seed and its name; the folder holds the settings in degrade.json.
    """
    config = DegradeConfig(preset=preset, seed=seed, side=side)
    with progress_bar("degrade", None, show=not no_progress) as advance:
        report = degrade_folder(
            source, out, config, overwrite=overwrite, watch=lambda total: advance(note=f"of {total}")
        )
    echo_skipped(report.skipped)
    click.echo(f"{len(report.written)} pictures ({preset}, seed {seed}) -> {out} (settings: {RECORD})")
