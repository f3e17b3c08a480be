"""`ufr-edge models`: shipped weights and known checkpoints of others: cards, licences, fetching, paths."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ufr_edge.restorers.registry import (
    KNOWN_MODELS,
    KnownModel,
    accepted_licences,
    check_known,
    fetch_known,
    require_licence,
)
from ufr_edge.weights import ShippedWeights, find_weights, list_weights
from ufr_edge.weights.cards import without_markers

if TYPE_CHECKING:
    from ufr_edge.restorers.files import Storage

_ACCEPT = "Accept a licence that forbids commercial use; it is asked for once."


@click.group()
def command() -> None:
    """List shipped weights and known checkpoints, show their cards, fetch them, say where they lie."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print name, kind, state, path, size and card as JSON.")
def list_models(as_json: bool) -> None:
    """List the shipped models, then the known ones that can be fetched."""
    shipped = list_weights()
    if as_json:
        rows = [_shipped_row(model) for model in shipped] + [_known_row(model) for model in KNOWN_MODELS.values()]
        click.echo(json.dumps(rows, indent=2))
        return
    if not shipped:
        click.echo("No model is shipped with this installation.")
    for model in shipped:
        _line(model.name, model.kind, model.size, "shipped", str(model.card.get("summary", "")))
    for known in KNOWN_MODELS.values():
        _line(known.name, known.kind, known.size, _state(known), known.summary)


@command.command("info")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def info(name: str, as_json: bool) -> None:
    """Show the card of a model: data, steps, figures, licences; of a known one its source and checks."""
    if name in KNOWN_MODELS:
        _show_known(KNOWN_MODELS[name], as_json=as_json)
        return
    model = find_weights(name)
    text = model.path / "card.md"
    if as_json or not text.is_file():
        click.echo(json.dumps(model.card, indent=2))
    else:
        click.echo(without_markers(text.read_text(encoding="utf-8")).rstrip())


@command.command("fetch")
@click.argument("name", type=click.Choice(list(KNOWN_MODELS)))
@click.option("--accept-licence", is_flag=True, help=_ACCEPT)
@click.option("--again", is_flag=True, help="Replace what is here; it stays until the new file is whole.")
@click.option("--offline", is_flag=True, help="Use no network; fail unless it is here already.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
def fetch(name: str, accept_licence: bool, again: bool, offline: bool, no_progress: bool) -> None:
    """Fetch a known checkpoint into the cache folder ($UFR_CACHE); goes on where it broke off, and checks it."""
    model = KNOWN_MODELS[name]
    click.echo(f"{name}: code {model.code_licence}; weights {model.weights_licence}", err=True)
    path = fetch_known(model, accept=accept_licence, again=again, offline=offline, show=not no_progress)
    for file in model.files:
        if file.sha256 is None:
            click.echo(f"{file.name}: no public SHA-256 is known; only its length and kind were checked.", err=True)
    click.echo(str(path))


@command.command("accept")
@click.argument("name", type=click.Choice([name for name, model in KNOWN_MODELS.items() if model.restricted]))
def accept(name: str) -> None:
    """Accept the restricted licence of a known model, for this cache folder."""
    require_licence(KNOWN_MODELS[name], accept=True)
    click.echo(f"{name}: accepted: {accepted_licences()[name]}")


@command.command("path")
@click.argument("name")
@click.option("--check", is_flag=True, help="Also compare a fetched model with its known sizes and hashes.")
def path(name: str, check: bool) -> None:
    """Print where a model lies (a known one: where it would lie once fetched)."""
    if name not in KNOWN_MODELS:
        click.echo(str(find_weights(name).path))
        return
    model = KNOWN_MODELS[name]
    if check and model.fetched:
        check_known(model)
    click.echo(str(model.path))
    if not model.fetched:
        click.echo(f"not fetched yet. Run: ufr-edge models fetch {name}", err=True)


@command.command("blend")
@click.argument("first")
@click.argument("second")
@click.option("--share", type=float, required=True, help="How much of the second: 0 is the first, 1 the second.")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option("--storage", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace the file.")
def blend(first: str, second: str, share: float, out: Path, storage: Storage, overwrite: bool) -> None:
    """Mix the weights of a restorer and of one that was trained on from it, faithful and sharp."""
    from ufr_edge.restorers.blend import blend_files

    click.echo(f"Wrote {blend_files(first, second, out, share=share, storage=storage, overwrite=overwrite)}.")


def _line(name: str, kind: str, size: int | None, state: str, about: str) -> None:
    room = f"{size / 1e6:6.1f} MB" if size is not None else "     ? MB"
    click.echo(f"{name:<20} {kind:<9} {room}  {state:<11} {about}".rstrip())


def _state(model: KnownModel) -> str:
    return "fetched" if model.fetched else "not fetched"


def _shipped_row(model: ShippedWeights) -> dict[str, Any]:
    shown = {"name": model.name, "kind": model.kind, "state": "shipped", "path": str(model.path)}
    return {**shown, "size": model.size, "card": model.card}


def _known_row(model: KnownModel) -> dict[str, Any]:
    shown = {"name": model.name, "kind": model.kind, "state": _state(model), "path": str(model.path)}
    return {**shown, "size": model.size, "card": dataclasses.asdict(model)}


def _show_known(model: KnownModel, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(model), indent=2))
        return
    click.echo(f"{model.name}: {model.summary}")
    taken = "accepted here" if model.name in accepted_licences() else "not accepted yet"
    rows = {
        "kind": f"{model.kind}, {model.arch}, {model.side} px",
        "state": f"{_state(model)}, {model.path}",
        "code": model.code_licence,
        "weights": model.weights_licence,
        "licence": f"restricted, {taken}" if model.restricted else "nothing to accept",
        "needs": f'pip install "ufr-edge[{model.extra}]"' if model.extra else "nothing more",
        "page": f"{model.page}  {model.paper}",
    }
    for label, value in rows.items():
        click.echo(f"  {label:<8} {value}")
    for file in model.files:
        size = f"{file.size:,} bytes" if file.size else "size not publicly known"
        click.echo(f"  file     {file.url}\n           {size}, sha256 {file.sha256 or 'not publicly known'}")
