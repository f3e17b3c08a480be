"""Recorded faces as one file, to be carried to another machine, and unpacked there without trusting it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from ufr_edge.errors import BundleError, ConfigError, InputFileError
from ufr_edge.files import check_free, disk_errors, sha256_file, write_json
from ufr_edge.runtime.bundle_archive import ArchiveLimits, pack_files, unpack_files
from ufr_edge.runtime.face_store import INDEX
from ufr_edge.runtime.images import is_image
from ufr_edge.runtime.lock import own_folder
from ufr_edge.runtime.manifest import MANIFEST, check_name

FACES_SUFFIX = ".ufrf"
LIMITS = ArchiveLimits(files=50_000, file_bytes=64 << 20, total_bytes=8 << 30)
_PLACE = ".ufr-edge-pack-"
_KIND = "ufr-edge-faces-1"


def pack_faces(folder: Path, out: Path, *, overwrite: bool = False) -> int:
    """Write the pictures of a folder, and its index, as the file `out` (NAME.ufrf); returns how many pictures.

    The file is for its owner only: it shows people. A recorder may be at work in the folder: what it removes before it
    is held is left out. What a killed call left beside `out` is removed.
    Raises ConfigError (name), InputFileError (no pictures), OutputError, BundleError (more than `LIMITS`).
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
    with own_folder(out.parent, _PLACE) as place:
        with disk_errors(out):
            paths = _held([folder / INDEX, *pictures], place)
        digests = {name: sha256_file(path) for name, path in paths.items()}
        manifest = place / MANIFEST
        write_json(manifest, {"kind": _KIND, "files": digests})
        # Begun in `place`, so that what a killed call wrote of the archive goes with it: it shows people.
        packed = pack_files(
            {MANIFEST: manifest, **paths}, digests, place / out.name, limits=LIMITS, mode=0o600
        )
        with disk_errors(out):
            packed.replace(out)
    return len([name for name in paths if name != INDEX])


def _held(paths: Iterable[Path], place: Path) -> dict[str, Path]:
    """Hold files in `place` that may be removed meanwhile, by a second link where the disk is the same; by name."""
    held = {}
    for path in paths:
        target = place / path.name
        with suppress(FileNotFoundError):
            # What may still be appended to has to stand still while it is packed.
            if path.name == INDEX or path.is_symlink() or not _link(path, target):
                shutil.copyfile(path, target)
            held[path.name] = target
    return held


def _link(path: Path, target: Path) -> bool:
    """A second link to a file; False where there are none, or the disk is another. Raises FileNotFoundError."""
    try:
        os.link(path, target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


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
