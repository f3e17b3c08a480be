"""`ufr-edge faces`: what a folder of collected faces holds, and how it is emptied."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from ufr_edge.cli.options import FOLDER
from ufr_edge.cli.tables import print_table
from ufr_edge.errors import ConfigError
from ufr_edge.runtime.bundle import read_bundle
from ufr_edge.runtime.face_store import DAY_S, FaceRow, purge, read_rows
from ufr_edge.runtime.fingerprint import DEGRADATIONS, GROUPS, Fingerprint, fingerprint_distance
from ufr_edge.runtime.fingerprint_files import bundle_fingerprint, faces_fingerprint
from ufr_edge.runtime.images import read_image

_AGES = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": DAY_S, "w": 7 * DAY_S}


@click.group("faces")
def command() -> None:
    """Look into a folder of collected faces, and remove them."""


@command.command("info")
@click.argument("folder", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info(folder: Path, as_json: bool) -> None:
    """Say how many faces FOLDER holds, of how many tracks, from when, of which camera."""
    summary = _summary(read_rows(folder))
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    for name, value in summary.items():
        click.echo(f"{name:<9} {value}")


@command.command("purge")
@click.argument("folder", type=FOLDER)
@click.option(
    "--older-than",
    metavar="AGE",
    help="Only faces older than this: 30d, 12h, 2w. [default: all, and the folder]",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge_command(folder: Path, older_than: str | None, yes: bool) -> None:
    """Remove the faces of FOLDER, or those older than an age. What other files lie there stay."""
    age = None if older_than is None else parse_age(older_than)
    which = "all" if older_than is None else f"those older than {older_than}"
    count = len(read_rows(folder))
    if not yes:
        click.confirm(f"{folder} holds {count} faces. Remove {which}?", abort=True)
    gone, left = purge(folder, older_than_s=age)
    click.echo(f"{gone} faces removed, {left} left")


@command.command("fingerprint")
@click.argument("folder", type=FOLDER)
@click.option("--bundle", type=FOLDER, help="Compare with the camera this bundle was adapted to.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def fingerprint_command(folder: Path, bundle: Path | None, as_json: bool) -> None:
    """Measure the camera that made the faces of FOLDER: noise, blur, blocks, light."""
    paths = [folder / row.file for row in read_rows(folder)]
    if not paths:
        msg = f"{folder} holds no faces."
        raise ConfigError(msg)
    found = faces_fingerprint((read_image(path) for path in paths), paths)
    reference = None if bundle is None else _reference(bundle)
    if as_json:
        plain: dict[str, Any] = found.to_json()
        if reference is not None:
            distance = fingerprint_distance(found, reference)
            plain["distance"] = {"value": distance.value, "parts": dict(distance.parts)}
        click.echo(json.dumps(plain, indent=2))
        return
    _print_fingerprint(folder, found, reference)


def parse_age(text: str) -> float:
    """Seconds of "30d", "12h", "90min", "2w", "45s". Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)", text.strip())
    if match is None:
        msg = f"{text!r} is no age. Give a number with s, min, h, d or w, such as 30d."
        raise ConfigError(msg)
    return float(match[1]) * _AGES[match[2]]


def _reference(bundle: Path) -> Fingerprint:
    found = bundle_fingerprint(read_bundle(bundle))
    if found is None:
        msg = f"{bundle} carries no fingerprint. Export it again with --calibration FACES of its camera."
        raise ConfigError(msg)
    return found


def _print_fingerprint(folder: Path, found: Fingerprint, reference: Fingerprint | None) -> None:
    columns = ["what", "here", "error", "spread"] + ([] if reference is None else ["bundle", "distance"])
    distance = None if reference is None else fingerprint_distance(found, reference)
    rows = []
    for group, names in GROUPS.items():
        for name in (n for n in names if n in found.values):
            value = found.values[name]
            row = [name, f"{value.mean:.2f}", f"{value.error:.2f}", f"{value.spread:.2f}"]
            if reference is not None and distance is not None:
                its = reference.values.get(name)
                row += ["-" if its is None else f"{its.mean:.2f}", f"{distance.parts.get(group, 0.0):.1f}"]
            rows.append(row)
    print_table(f"{folder}: {found.faces} faces of {found.side} px", columns, rows)
    if distance is not None:
        click.echo(f"distance {distance.value:.1f} ({distance.cause}); counted: {', '.join(DEGRADATIONS)}")


def _summary(rows: list[FaceRow]) -> dict[str, Any]:
    times = sorted(row.time for row in rows)
    cameras = Counter(str(row.rest.get("camera") or row.rest.get("source") or "unknown") for row in rows)
    return {
        "faces": len(rows),
        "tracks": len({row.track for row in rows if row.track is not None}),
        "from": _date(times[0]) if times else None,
        "to": _date(times[-1]) if times else None,
        "megabytes": round(sum(row.size for row in rows) / 1e6, 2),
        "cameras": ", ".join(f"{name} ({count})" for name, count in cameras.most_common(5)),
    }


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat(timespec="seconds")
