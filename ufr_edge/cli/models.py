"""`ufr-edge models`: the shipped weights, their cards, and where they lie."""

from __future__ import annotations

import json

import click

from ufr_edge.weights import find_weights, list_weights


@click.group()
def command() -> None:
    """List the shipped weights, show their cards and where they lie."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print name, kind, path, size and card as JSON.")
def list_models(as_json: bool) -> None:
    """List the shipped models."""
    models = list_weights()
    if as_json:
        rows = [
            {
                "name": model.name,
                "kind": model.kind,
                "path": str(model.path),
                "size": model.size,
                "card": model.card,
            }
            for model in models
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    if not models:
        click.echo("No model is shipped with this installation.")
    for model in models:
        about = model.card.get("summary", "")
        click.echo(f"{model.name:<20} {model.kind:<9} {model.size / 1e6:6.1f} MB  {about}".rstrip())


@command.command("info")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print card.json instead of card.md.")
def info(name: str, as_json: bool) -> None:
    """Show the card of a model: data, steps, figures, licences."""
    model = find_weights(name)
    text = model.path / "card.md"
    if as_json or not text.is_file():
        click.echo(json.dumps(model.card, indent=2))
    else:
        click.echo(text.read_text(encoding="utf-8").rstrip())


@command.command("path")
@click.argument("name")
def path(name: str) -> None:
    """Print the folder a model lies in."""
    click.echo(str(find_weights(name).path))
