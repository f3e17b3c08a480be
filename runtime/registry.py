"""A registry of models: a folder of plain files, on any disk that several machines share.

    REGISTRY/registry.json      says that it is one
    REGISTRY/models/ID.json     one model; ID is the sha256 of its bundle's manifest.json
    REGISTRY/bundles/ID.ufrz    its bundle as one file, where that was asked for

There is no index and no lock: a record is written beside and put into place in one step, and what two writers say of one
model is the same. Never in it: pictures of people.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ufr_edge import __version__
from ufr_edge.errors import BundleError, ConfigError, InputFileError, OutputError, UfrEdgeError
from ufr_edge.files import disk_errors, read_json, sha256_file, write_json
from ufr_edge.runtime.bundle import Bundle, read_bundle
from ufr_edge.runtime.bundle_archive import SUFFIX, pack_bundle
from ufr_edge.runtime.fingerprint import Fingerprint
from ufr_edge.runtime.fingerprint_files import bundle_fingerprint
from ufr_edge.runtime.images import is_image
from ufr_edge.runtime.manifest import MANIFEST, Manifest
from ufr_edge.runtime.video.uri import mask

SCHEMA = 1
MARKER = "registry.json"
SHORT = 12
"""Digits of an id that are shown."""

_KIND = "ufr-edge-registry"
_MODELS, _BUNDLES = "models", "bundles"
_RECORD = re.compile(r"[0-9a-f]{64}\.json")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What an adaptation knows of its result, beyond the manifest.

    faces: how many it was given, `held_out` of them for the gate; 0: not known. faces_sha256: over them, whatever
    their names and order. settings, scores: plain JSON; scores: `{"figures": {"old": {...}, "new": {...}}, ...}`.
    """

    faces: int = 0
    held_out: int = 0
    faces_sha256: str = ""
    prior: str = ""
    prior_sha256: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The facts as plain JSON values."""
        own = {
            name: getattr(self, name)
            for name in ("faces", "held_out", "faces_sha256", "prior", "prior_sha256")
        }
        return own | {"settings": dict(self.settings), "scores": dict(self.scores), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunFacts:
        """Read what `to_json` wrote. Raises KeyError, TypeError, ValueError."""
        return cls(
            faces=int(value["faces"]),
            held_out=int(value["held_out"]),
            faces_sha256=str(value["faces_sha256"]),
            prior=str(value["prior"]),
            prior_sha256=str(value["prior_sha256"]),
            settings=dict(value["settings"]),
            scores=dict(value["scores"]),
            notes=tuple(str(note) for note in value["notes"]),
        )

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """The gate's figures of "old" and "new"; empty where there are none."""
        found = self.scores.get("figures", {})
        return {name: dict(found.get(name, {})) for name in ("old", "new")} if isinstance(found, dict) else {}


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """One model. id: sha256 of its bundle's manifest.json. added: UTC, ISO 8601, by `ufr_edge` of this version.

    run: None where it was added without its adaptation. fingerprint: of the camera, None where the bundle has none.
    archive: its bundle as one file, None where it was not kept.
    """

    id: str
    manifest: Manifest
    added: str
    ufr_edge: str
    run: RunFacts | None = None
    fingerprint: Fingerprint | None = None
    archive: Path | None = None

    @property
    def camera(self) -> str:
        """The camera's name, "" where there is none."""
        return self.manifest.lineage.get("camera", "")

    @property
    def parent(self) -> str:
        """The id of the model it was adapted from (or the sha256 of its weights), "" where there is none."""
        return self.manifest.lineage.get("parent", "")

    def to_json(self) -> dict[str, Any]:
        """The record as it is written."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "added": self.added,
            "ufr_edge": self.ufr_edge,
            "manifest": self.manifest.to_json(),
            "run": None if self.run is None else self.run.to_json(),
            "fingerprint": None if self.fingerprint is None else self.fingerprint.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Registry:
    """All records that could be read, oldest model first. damaged: what could not, in words."""

    folder: Path
    records: tuple[ModelRecord, ...]
    damaged: tuple[str, ...] = ()

    def find(self, prefix: str) -> ModelRecord:
        """The model whose id begins so. Raises ConfigError: no id, unknown, or of several."""
        text = prefix.lower()
        if not _PREFIX.fullmatch(text):
            msg = f"{prefix!r} is no id: give 4 or more of its digits (0-9, a-f). See: ufr-edge registry list"
            raise ConfigError(msg)
        found = [record for record in self.records if record.id.startswith(text)]
        if len(found) == 1:
            return found[0]
        several = ", ".join(record.id[:SHORT] for record in found)
        what = (
            f"{len(found)} models begin with {prefix}: {several}"
            if found
            else f"no model begins with {prefix}"
        )
        msg = f"{self.folder}: {what}. Give more digits, or see: ufr-edge registry list --registry {self.folder}"
        raise ConfigError(msg)

    def lineage(self, record: ModelRecord) -> tuple[ModelRecord, ...]:
        """The model, its parent, and so on up to the first that has none, or none here."""
        chain = [record]
        while (parent := self._parent(chain[-1])) is not None and parent not in chain:
            chain.append(parent)
        return tuple(chain)

    def _parent(self, record: ModelRecord) -> ModelRecord | None:
        if not record.parent:
            return None
        by_weights = (r for r in self.records if r.manifest.restorer.weights_sha256 == record.parent)
        return next((r for r in self.records if r.id == record.parent), next(by_weights, None))


@dataclass(frozen=True, kw_only=True)
class Added:
    """What `add_model` has left in the registry; fresh: it was not known before, or less was."""

    record: ModelRecord
    fresh: bool


def add_model(folder: Path, bundle: Path, *, run: RunFacts | None = None, keep_bundle: bool = False) -> Added:
    """Write the record of a bundle (folder, archive or folder of versions) into the registry, made where missing.

    What is known already stays as it is, unless `run` is new to it. keep_bundle: store the bundle as well.
    Raises InputFileError, BundleError (damaged), ConfigError (to keep: it carries pictures of faces), OutputError.
    """
    found = read_bundle(bundle)
    found.check()
    digest = sha256_file(found.path / MANIFEST)
    _make(folder)
    if keep_bundle:
        _keep(folder, found, digest)
    path = folder / _MODELS / f"{digest}.json"
    known = _known(folder, path)
    if known is not None and (run is None or known.run is not None):
        return Added(record=known, fresh=False)
    record = ModelRecord(
        id=digest,
        manifest=_without_secrets(found.manifest),
        added=datetime.now(timezone.utc).isoformat(timespec="seconds") if known is None else known.added,
        ufr_edge=__version__,
        run=run,
        fingerprint=bundle_fingerprint(found),
        archive=_archive(folder, digest),
    )
    return Added(record=record, fresh=_put(folder, path, record))


def read_registry(folder: Path, *, camera: str | None = None) -> Registry:
    """Read all records. camera: of this camera alone. Raises InputFileError when it is no registry."""
    _check_marker(folder)
    records, damaged = [], []
    for path in sorted((folder / _MODELS).glob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            record = _read(folder, path)
        except UfrEdgeError as exc:
            damaged.append(str(exc))
            continue
        if camera is None or record.camera == camera:
            records.append(record)
    order = sorted(records, key=lambda record: (record.manifest.created, record.id))
    return Registry(folder=folder, records=tuple(order), damaged=tuple(damaged))


def is_known(folder: Path, bundle: Path) -> bool:
    """Whether the registry has a bundle's record, with its adaptation. Raises InputFileError (no bundle)."""
    found = read_bundle(bundle)
    known = _known(folder, folder / _MODELS / f"{sha256_file(found.path / MANIFEST)}.json")
    return known is not None and known.run is not None


def _known(folder: Path, path: Path) -> ModelRecord | None:
    """The record at `path`; None where there is none, or a damaged one, which is then replaced."""
    try:
        return _read(folder, path)
    except (InputFileError, BundleError):
        return None


def _read(folder: Path, path: Path) -> ModelRecord:
    advice = f"Remove it, and add the bundle again: ufr-edge registry add BUNDLE --registry {folder}"
    if not _RECORD.fullmatch(path.name):
        msg = f"{path} is no record of a model. Remove it."
        raise InputFileError(msg)
    value = read_json(path)
    try:
        if int(value["schema"]) <= SCHEMA:
            return _record(value, path.stem, where=str(path), archive=_archive(folder, path.stem))
        msg = f"{path} was written by ufr-edge {value['ufr_edge']}. Run: pip install --upgrade ufr-edge"
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        msg = f"{path} is damaged ({type(exc).__name__}: {exc}). {advice}"
        raise BundleError(msg) from exc
    raise BundleError(msg)


def _record(value: Mapping[str, Any], digest: str, *, where: str, archive: Path | None) -> ModelRecord:
    if value["id"] != digest:
        msg = f"it is that of {value['id']}"
        raise ValueError(msg)
    camera, run = value["fingerprint"], value["run"]
    return ModelRecord(
        id=digest,
        manifest=Manifest.from_json(value["manifest"]),
        added=str(value["added"]),
        ufr_edge=str(value["ufr_edge"]),
        run=None if run is None else RunFacts.from_json(run),
        fingerprint=None if camera is None else Fingerprint.from_json(camera, where=where),
        archive=archive,
    )


def _put(folder: Path, path: Path, record: ModelRecord) -> bool:
    """Put a record into place, whole; returns whether it is there now.

    One without `run` never takes another's place: somebody who knows more may have come first by a hair.
    """
    if record.run is None:
        if _put_first(path, record):
            return True
        if _known(folder, path) is not None:
            return False
    write_json(path, record.to_json())
    return True


def _put_first(path: Path, record: ModelRecord) -> bool:
    """Put a record where there is none; False where there is one, sound or not."""
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.json")
    write_json(beside, record.to_json())
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    except OSError:  # no hard links on this disk
        with disk_errors(path):
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return True


def _make(folder: Path) -> None:
    """Make the folder a registry, unless it is one. Raises OutputError when it is something else."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if names or (folder / MARKER).is_file():
        if not (folder / MARKER).is_file():
            msg = f"{folder} holds files but no {MARKER}: it is no registry. Choose another folder."
            raise OutputError(msg)
        _check_marker(folder)
        return
    write_json(folder / MARKER, {"kind": _KIND, "schema": SCHEMA})


def _check_marker(folder: Path) -> None:
    if not (folder / MARKER).is_file():
        what = f"is no registry (it has no {MARKER})" if folder.exists() else "does not exist"
        msg = f"{folder} {what}. Begin one with: ufr-edge registry add BUNDLE --registry {folder}"
        raise InputFileError(msg)
    value = read_json(folder / MARKER)
    schema = value.get("schema") if isinstance(value, dict) and value.get("kind") == _KIND else None
    if not isinstance(schema, int) or schema < 1:
        msg = f"{folder / MARKER} is not that of a registry of models. Choose another folder."
        raise InputFileError(msg)
    if schema > SCHEMA:
        msg = f"{folder} is a registry of a newer ufr-edge. Run: pip install --upgrade ufr-edge"
        raise InputFileError(msg)


def _keep(folder: Path, bundle: Bundle, digest: str) -> None:
    """Store the bundle. The same bundle gives the same bytes, so it matters not who writes last."""
    pictures = [name for name in bundle.manifest.files if is_image(Path(name))]
    if pictures:
        msg = (
            f"{bundle.path} carries pictures of faces ({pictures[0]}), which a registry never stores. Add it without "
            "--keep-bundle, or export it with --no-stored-faces."
        )
        raise ConfigError(msg)
    if _archive(folder, digest) is None:
        pack_bundle(bundle, folder / _BUNDLES / f"{digest}{SUFFIX}", overwrite=True)


def _archive(folder: Path, digest: str) -> Path | None:
    path = folder / _BUNDLES / f"{digest}{SUFFIX}"
    return path if path.is_file() else None


def _without_secrets(manifest: Manifest) -> Manifest:
    """A camera may have been named by its address, password and all."""
    return replace(manifest, lineage={key: mask(text) for key, text in manifest.lineage.items()})
