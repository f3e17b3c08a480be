"""`ufr-edge degrade`: make clean pictures bad with a named, seeded preset."""

from __future__ import annotations

import click

from ufr_edge.degradations.presets import PRESET_NOTES


def _list(context: click.Context) -> None:
    width = max(map(len, PRESET_NOTES))
    for name, note in PRESET_NOTES.items():
        click.echo(f"{name:{width}}  {note}")
    context.exit()
