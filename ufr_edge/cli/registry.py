"""`ufr-edge registry`: every adapted model, with its lineage, in a folder that machines share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ufr_edge.cli.options import FOLDER
from ufr_edge.cli.tables import print_table

if TYPE_CHECKING:
    from ufr_edge.runtime.registry import ModelRecord, Registry, RunFacts

registry_option = click.option(
    "--registry",
    "folder",
    required=True,
    type=FOLDER,
    envvar="UFR_REGISTRY",
    show_envvar=True,
    help="Folder of the registry.",
)
_CHAIN = ["id", "camera", "name", "created", "parent", "faces", "prior"]
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Keep the lineage of every adapted model in a folder of plain files, on any disk that machines share.

    An ID is the sha256 of a bundle's manifest; its first digits do, where no other begins so.
    """


@command.command("add")
@click.argument("bundle", type=FOLDER)
@registry_option
@click.option("--keep-bundle", is_flag=True, help="Store the bundle too, as one file.")
@json_option
def add(bundle: Path, folder: Path, keep_bundle: bool, as_json: bool) -> None:
    """Add BUNDLE (a folder, an archive, or a folder of versions). `readapt --registry` does so by itself, and knows more."""
    from ufr_edge.runtime.registry import SHORT, add_model

    added = add_model(folder, bundle, keep_bundle=keep_bundle)
    if as_json:
        click.echo(json.dumps({"id": added.record.id, "fresh": added.fresh}, indent=2))
    else:
        click.echo(f"{added.record.id[:SHORT]} {'added' if added.fresh else 'is there already'}: {bundle}")


@command.command("list")
@registry_option
@click.option("--camera", help="Of this camera alone.")
@json_option
def show_list(folder: Path, camera: str | None, as_json: bool) -> None:
    """List the models, the oldest first."""
    from ufr_edge.runtime.registry import read_registry

    found = read_registry(folder, camera=camera)
    _tell_damaged(found)
    if as_json:
        click.echo(json.dumps([_plain(record) for record in found.records], indent=2))
        return
    rows = [_row(record) for record in found.records]
    print_table(f"{folder}: {len(rows)} models", [*_CHAIN, "engines"], rows)


@command.command("show")
@click.argument("model", metavar="ID")
@registry_option
@json_option
def show(model: str, folder: Path, as_json: bool) -> None:
    """Show a model: where it comes from, down to the first, what it was made of, and how good it was found."""
    from ufr_edge.runtime.registry import read_registry

    found = read_registry(folder)
    _tell_damaged(found)
    record = found.find(model)
    if as_json:
        lineage = [item.id for item in found.lineage(record)]
        click.echo(json.dumps(_plain(record) | {"lineage": lineage}, indent=2))
    else:
        _print_model(found, record)


@command.command("diff")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@registry_option
@json_option
def diff(a: str, b: str, folder: Path, as_json: bool) -> None:
    """Show what differs between the models A and B: weights, lineage, settings, scores, engines, cameras."""
    from ufr_edge.runtime.registry import SHORT, read_registry
    from ufr_edge.runtime.registry_diff import compare_models

    found = read_registry(folder)
    _tell_damaged(found)
    first, second = found.find(a), found.find(b)
    result = compare_models(first, second)
    if as_json:
        click.echo(json.dumps({"a": first.id, "b": second.id} | result.to_json(), indent=2))
        return
    names = [record.id[:SHORT] for record in (first, second)]
    rows = [[item.name, _cell(item.a), _cell(item.b), _change(item.a, item.b)] for item in result.differences]
    print_table(f"{len(rows)} differences", ["", *names, "change"], rows)
    if result.distance is not None:
        click.echo(
            f"the cameras' fingerprints are {result.distance:.1f} apart, in units of their uncertainty"
        )


def _tell_damaged(found: Registry) -> None:
    for line in found.damaged:
        click.echo(f"left out: {line}", err=True)


def _plain(record: ModelRecord) -> dict[str, Any]:
    return record.to_json() | {"archive": None if record.archive is None else str(record.archive)}


def _row(record: ModelRecord) -> list[str]:
    from ufr_edge.runtime.registry import SHORT

    manifest, run = record.manifest, record.run
    faces = str(run.faces) if run is not None and run.faces else "-"
    engines = ", ".join(entry.name for entry in manifest.engines)
    prior = manifest.lineage.get("prior", "-")
    parent = record.parent[:SHORT] or "-"
    return [
        record.id[:SHORT],
        record.camera or "-",
        manifest.name,
        manifest.created,
        parent,
        faces,
        prior,
        engines,
    ]


def _print_model(found: Registry, record: ModelRecord) -> None:
    manifest, run = record.manifest, record.run
    click.echo(f"{record.id}: {manifest.name}, {manifest.restorer.arch} at {manifest.restorer.side} px")
    click.echo(f"created {manifest.created}, added {record.added} by ufr-edge {record.ufr_edge}")
    click.echo(
        f"weights {manifest.restorer.weights_sha256[:12]}…, licence {manifest.restorer.weights_licence}"
    )
    for key, value in sorted(manifest.lineage.items()):
        click.echo(f"{key}: {value}")
    if run is not None:
        _print_run(run)
    if record.fingerprint is not None:
        click.echo(f"camera fingerprint of {record.fingerprint.faces} faces")
    click.echo(f"bundle: {record.archive or 'not kept here'}")
    chain = found.lineage(record)
    print_table("lineage, newest first", _CHAIN, [_row(item)[:7] for item in chain])
    if chain[-1].parent:
        click.echo(f"its parent {chain[-1].parent} is not in this registry")
    _print_engines(record)
    figures = {} if run is None else run.figures
    old, new = figures.get("old", {}), figures.get("new", {})
    if new:
        rows = [[name, _cell(old.get(name)), _cell(new[name])] for name in new]
        print_table("scores against the parent", ["figure", "old", "new"], rows)


def _print_run(run: RunFacts) -> None:
    if run.faces:
        digest = run.faces_sha256[:12]
        click.echo(f"faces: {run.faces}, {run.held_out} of them for the gate, sha256 {digest}…")
    if run.prior_sha256:
        click.echo(f"prior {run.prior}, sha256 {run.prior_sha256[:12]}…")
    if run.settings:
        plain = {key: value for key, value in run.settings.items() if not isinstance(value, dict)}
        click.echo("settings: " + ", ".join(f"{key} {_cell(value)}" for key, value in plain.items()))
    for note in run.notes:
        click.echo(f"note: {note}")


def _print_engines(record: ModelRecord) -> None:
    from ufr_edge.runtime.registry_diff import engine_facts

    rows = [
        [entry.name, *(_cell(value) for value in engine_facts(entry).values())]
        for entry in record.manifest.engines
    ]
    print_table("", ["engine", "backend", "precision", "device", "drop dB", "PSNR to fp32"], rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _change(a: Any, b: Any) -> str:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (a, b))
    return f"{b - a:+.3g}" if numbers else ""
