"""The index of a folder of targets: one JSON line each, append-only; the last line of a face holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import InputFileError
from ufr_edge.files import disk_errors, read_json

INDEX = "index.jsonl"
CONFIG = "config.json"


def image_seed(seed: int, name: str) -> int:
    """Return the seed of one image: it depends on its name, not on the order or the number of processes."""
    found = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(found[:6], "big")


def target_name(name: str) -> str:
    """Return the file name of a face's target: the same stem, PNG."""
    return Path(name).stem + ".png"


def digest(image: NDArray[np.uint8]) -> str:
    """SHA-256 of a picture's pixels."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def index_path(folder: Path, worker: int) -> Path:
    """Where a process writes its lines: all but the first have files of their own until all are done."""
    return folder / (f"index.{worker}.jsonl" if worker else INDEX)


def append_entries(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Append lines. Raises OutputError on a full disk."""
    if not entries:
        return
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    with disk_errors(path), path.open("a+b") as file:
        if file.tell() and not _ends_in_newline(file):
            text = "\n" + text  # a torn line, of a run that was killed, stays alone
        file.write(text.encode())


def _ends_in_newline(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the provenance of each target by the name of its face; torn lines and missing targets are left out."""
    entries: dict[str, dict[str, Any]] = {}
    for path in [folder / INDEX, *sorted(folder.glob("index.*.jsonl"))]:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
                if (folder / entry["target"]).exists():
                    entries[entry["face"]] = entry
            except (ValueError, KeyError, TypeError):
                continue
    return entries


def merge_indexes(folder: Path) -> None:
    """Move the lines of the other processes into the one index."""
    for path in sorted(folder.glob("index.*.jsonl")):
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        append_entries(folder / INDEX, lines)
        path.unlink()


def made_here(folder: Path) -> bool:
    """Whether `folder` holds targets of ours, finished or not: its config.json is one of `make_targets`."""
    try:
        config = read_json(folder / CONFIG)
    except InputFileError:
        return False
    return isinstance(config, dict) and {"prior", "sampler"} <= set(config)


def remove_targets(folder: Path) -> None:
    """Remove the targets that the index lists, then the index; other pictures stay.

    In this order: where it is killed midway the index still lists what is left.
    """
    for entry in read_index(folder).values():
        if Path(entry["target"]).name == entry["target"]:  # nothing outside the folder, whatever the line says
            (folder / entry["target"]).unlink(missing_ok=True)
    for path in folder.glob("index*.jsonl"):
        path.unlink()


def target_weights(folder: Path) -> dict[str, float]:
    """Return the weight of each target by its stem, 0 for a rejected one; empty for a folder without an index."""
    return {Path(entry["target"]).stem: float(entry.get("weight", 1.0)) for entry in read_index(folder).values()}
