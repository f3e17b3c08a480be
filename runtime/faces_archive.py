"""Recorded faces as one file, to be carried to another machine, and unpacked there without trusting it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from ufr_edge.errors import BundleError, ConfigError, InputFileError
from ufr_edge.files import check_free, sha256_file, write_json
from ufr_edge.runtime.bundle_archive import ArchiveLimits, pack_files, unpack_files
from ufr_edge.runtime.face_store import INDEX
from ufr_edge.runtime.images import is_image
from ufr_edge.runtime.manifest import MANIFEST, check_name

FACES_SUFFIX = ".ufrf"
LIMITS = ArchiveLimits(files=50_000, file_bytes=64 << 20, total_bytes=8 << 30)
_KIND = "ufr-edge-faces-1"


def pack_faces(folder: Path, out: Path, *, overwrite: bool = False) -> int:
    """Write the pictures of a folder, and its index, as the file `out` (NAME.ufrf); returns how many pictures.

    The file is for its owner only: it shows people. Raises ConfigError (name), InputFileError (no pictures),
    OutputError, BundleError (more than `LIMITS`).
    """
    if out.suffix != FACES_SUFFIX:
        msg = f"An archive of faces has a name in {FACES_SUFFIX}; got {out}. Give -o NAME{FACES_SUFFIX}"
        raise ConfigError(msg)
    check_free(out, overwrite=overwrite)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    pictures = [path for path in found if is_image(path) and not path.name.startswith(".")]
    if not pictures:
        msg = (
            f"{folder} holds no faces. Record some: ufr-edge stream SOURCE SINK --bundle B --record {folder}"
        )
        raise InputFileError(msg)
    index = folder / INDEX
    paths = {path.name: path for path in [*pictures, *([index] if index.is_file() else [])]}
    with TemporaryDirectory(prefix="ufr-edge-pack-") as place:
        # The recorder may be appending to its index: what is packed is a copy that stands still.
        if INDEX in paths:
            paths[INDEX] = Path(place) / INDEX
            paths[INDEX].write_bytes(index.read_bytes())
        digests = {name: sha256_file(path) for name, path in paths.items()}
        manifest = Path(place) / MANIFEST
        write_json(manifest, {"kind": _KIND, "files": digests})
        pack_files({MANIFEST: manifest, **paths}, digests, out, limits=LIMITS, mode=0o600)
    return len(pictures)


def unpack_faces(archive: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Unpack an archive of faces into the folder `out`, whole and with every checksum right, or not at all.

    Raises InputFileError (no archive), BundleError (damaged, hostile, or no faces), OutputError.
    """
    folder = unpack_files(archive, out, _listed, overwrite=overwrite, limits=LIMITS)
    folder.chmod(0o700)
    return folder


def _listed(raw: bytes) -> Mapping[str, str]:
    value = json.loads(raw)
    files = value.get("files") if isinstance(value, dict) and value.get("kind") == _KIND else None
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        msg = "The archive holds no faces. Make one with: ufr-edge pack-faces FOLDER -o NAME.ufrf"
        raise BundleError(msg)
    for name in files:
        plain = Path(check_name(name))
        if len(plain.parts) > 1 or not (name == INDEX or is_image(plain)) or name.startswith("."):
            msg = f"The archive of faces holds {name!r}, which is neither a picture nor the index. Do not use it."
            raise BundleError(msg)
    return files
