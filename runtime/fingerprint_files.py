"""Where fingerprints are kept: beside a folder of faces in its index, and in a bundle."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from ufr_edge.files import read_json, write_json
from ufr_edge.runtime.bundle import Bundle
from ufr_edge.runtime.face_store import INDEX, FaceRow, read_rows
from ufr_edge.runtime.fingerprint import Fingerprint, combine, measure_face
from ufr_edge.runtime.frame import Frame

FINGERPRINT = "fingerprint.json"
_FROM_INDEX = ("blocks_frame",)  # what only the frame could tell


def faces_fingerprint(faces: Iterable[Frame], paths: Sequence[Path]) -> Fingerprint:
    """The fingerprint of aligned faces (each uint8 (S, S, 3), one S) that were read from `paths`.

    Where an `index.jsonl` lies beside a picture, it tells whose face it is and what was measured in the frame.
    Raises ConfigError when there are none, ShapeError.
    """
    rows = {folder: _rows(folder) for folder in {path.parent for path in paths}}
    measured, tracks, side = [], list[Hashable](), 0
    for face, path in zip(faces, paths, strict=True):
        row = rows[path.parent].get(path.name)
        measured.append(measure_face(face) | _of_frame(row))
        tracks.append(str(path) if row is None or row.track is None else (path.parent, row.track))
        side = int(face.shape[0])
    return combine(measured, tracks=tracks, side=side)


def write_fingerprint(folder: Path, found: Fingerprint) -> str:
    """Write it into a bundle's folder; returns the file's name."""
    write_json(folder / FINGERPRINT, found.to_json())
    return FINGERPRINT


def bundle_fingerprint(bundle: Bundle) -> Fingerprint | None:
    """The fingerprint of the camera a bundle was adapted to; None when it carries none.

    Raises BundleError when the file is missing or not the one of the manifest, InputFileError when it is damaged.
    """
    if FINGERPRINT not in bundle.manifest.files:
        return None
    bundle.verify([FINGERPRINT])
    path = bundle.file(FINGERPRINT)
    return Fingerprint.from_json(read_json(path), where=str(path))


def _rows(folder: Path) -> dict[str, FaceRow]:
    return {row.file: row for row in read_rows(folder)} if (folder / INDEX).is_file() else {}


def _of_frame(row: FaceRow | None) -> dict[str, float]:
    found = {} if row is None else row.rest.get("measures", {})
    if not isinstance(found, dict):
        return {}
    return {name: float(found[name]) for name in _FROM_INDEX if isinstance(found.get(name), (int, float))}
