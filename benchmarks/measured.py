"""What was measured stays in the repository: docs/measured/ holds the JSON files that docs/quality.md is written from.

A run folder goes with its machine, and measuring everything takes hours. What is kept also names the weights it was
measured with, so that a table of earlier ones says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ufr_edge.files import read_json, sha256_file, write_json
from ufr_edge.priors.files import prior_digest
from ufr_edge.restorers.loading import find_restorer
from ufr_edge.weights import list_weights

KEPT = Path("docs/measured")
INDEX = "index.json"


def digests(names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the shipped weights among `names`, as they are now."""
    kinds = {model.name: model.kind for model in list_weights()}
    return {
        name: prior_digest(name) if kinds[name] == "prior" else sha256_file(find_restorer(name))
        for name in sorted(set(names) & kinds.keys())
    }


def earlier(weights: Mapping[str, str]) -> list[str]:
    """A paragraph where what was measured had other weights than those shipped now; weights: as `digests` gave them."""
    now = digests(weights)
    changed = [name for name, digest in weights.items() if now.get(name) != digest]
    return [f"*Measured with earlier weights of {', '.join(changed)}.*"] if changed else []


def keep(out: Path, kept: Path) -> None:
    """Copy what quality.py's index in `out` names, without its pictures, to `kept`."""
    for result in (INDEX, *(job["result"] for job in read_index(out))):
        _copy(out / result, kept / result)


def keep_run(folder: Path, kept: Path, result: str) -> None:
    """Copy the JSON file `result` of a run folder to a folder of the same name in `kept`."""
    if folder.resolve().parent != kept.resolve():
        _copy(folder / result, kept / folder.name / result)


def take(kept: Path, out: Path, *, again: Callable[[str], bool]) -> None:
    """Copy what `kept` has and `out` lacks; of the jobs that may be measured `again`, those of today's weights alone."""
    own = read_index(out)
    for job in read_index(kept):
        old = again(job["name"]) and earlier(job.get("weights", {}))
        if not old and job["name"] not in {one["name"] for one in own}:
            _copy(kept / job["result"], out / job["result"])
            own.append(job)
    if own:
        write_json(out / INDEX, own)


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The jobs of a folder that quality.py or `keep` wrote; none where there is no index."""
    path = folder / INDEX
    return list(read_json(path)) if path.is_file() else []


def _copy(source: Path, goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, goal)
