"""What differs between two models of a registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ufr_edge.runtime.bundle_info import EngineSummary
from ufr_edge.runtime.fingerprint import fingerprint_distance
from ufr_edge.runtime.manifest import EngineEntry
from ufr_edge.runtime.registry import ModelRecord

_MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One fact that is not the same; None where a model does not have it. name: dotted, as `settings.steps`."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True, kw_only=True)
class ModelDiff:
    """differences: by name, in the order of `facts`. distance: between the cameras' fingerprints, in units of their
    uncertainty; None where one has none, or they are of different sides.
    """

    differences: tuple[Difference, ...]
    distance: float | None

    def to_json(self) -> dict[str, Any]:
        """The differences as plain JSON values."""
        rows = {item.name: {"a": item.a, "b": item.b} for item in self.differences}
        return {"differences": rows, "fingerprint_distance": self.distance}


def compare_models(a: ModelRecord, b: ModelRecord) -> ModelDiff:
    """Compare all that is known of two models but their ids, names and times."""
    left, right = facts(a), facts(b)
    differences = [
        Difference(name=name, a=left.get(name), b=right.get(name))
        for name in [*left, *(name for name in right if name not in left)]
        if left.get(name, _MISSING) != right.get(name, _MISSING)
    ]
    prints = a.fingerprint, b.fingerprint
    known = prints[0] is not None and prints[1] is not None and prints[0].side == prints[1].side
    distance = fingerprint_distance(prints[1], prints[0]).value if known else None  # type: ignore[arg-type]
    return ModelDiff(differences=tuple(differences), distance=distance)


def facts(record: ModelRecord) -> dict[str, Any]:
    """All that is known of a model, by dotted names: restorer, lineage, prior, faces, settings, scores, engine,
    fingerprint.
    """
    manifest, run = record.manifest, record.run
    restorer = {"arch": manifest.restorer.arch, "side": manifest.restorer.side}
    tree: dict[str, Any] = {
        "restorer": restorer | {"weights_sha256": manifest.restorer.weights_sha256},
        "lineage": dict(manifest.lineage),
    }
    if run is not None:
        tree["prior"] = {"sha256": run.prior_sha256}
        tree["faces"] = {"count": run.faces, "held_out": run.held_out, "sha256": run.faces_sha256}
        tree["settings"] = dict(run.settings)
        tree["scores"] = run.figures.get("new", {})
    tree["engine"] = {entry.name: engine_facts(entry) for entry in manifest.engines}
    if record.fingerprint is not None:
        tree["fingerprint"] = {name: value.mean for name, value in record.fingerprint.values.items()}
    return _flat(tree)


def engine_facts(entry: EngineEntry) -> dict[str, Any]:
    """What is compared of an engine. drop_db: quality lost against fp32 at export, None where it was not measured."""
    return {
        "backend": f"{entry.backend} {entry.backend_version}",
        "precision": entry.precision,
        "device": entry.device,
        "drop_db": EngineSummary(entry=entry, size=0, turned_down="").drop_db,
        "psnr_db": None if entry.parity is None else entry.parity.psnr_db,
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
