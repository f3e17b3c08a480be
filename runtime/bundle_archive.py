"""A bundle as one file NAME.ufrz: packed to the same bytes every time, unpacked without trusting it.

The file is a zip of stored entries. Nothing in it is believed: names, kinds, sizes and checksums are checked while
it is read, and the folder appears under its name only when all of it is right.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from ufr_edge.errors import BundleError, ConfigError, InputFileError, UfrEdgeError
from ufr_edge.files import atomic_file, atomic_folder, check_free, check_replaceable, sha256_file
from ufr_edge.runtime.manifest import MANIFEST, Manifest, check_name

if TYPE_CHECKING:
    from ufr_edge.runtime.bundle import Bundle

SUFFIX = ".ufrz"
_CHUNK = 1 << 20
_MANIFEST_BYTES = 4 << 20
_END = struct.Struct("<4s4H2LH")  # zip: end of central directory
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_DIRECTORY_BYTES = 512  # of the zip's directory, per file


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """The most an archive may hold: files, bytes in one and in all, and unpacked bytes per packed byte."""

    files: int = 512
    file_bytes: int = 4 << 30
    total_bytes: int = 16 << 30
    ratio: int = 100


def pack_bundle(
    bundle: Bundle, out: Path, *, overwrite: bool = False, limits: ArchiveLimits | None = None
) -> Path:
    """Write the bundle as the single file `out` (NAME.ufrz); the same bundle gives the same bytes.

    Only the files of the manifest go in, each checked while it is read. With reference faces in it, the archive is
    readable for its owner only. Raises ConfigError (name), OutputError, BundleError (a file is damaged, or more than
    `limits` would let out again).
    """
    if out.suffix != SUFFIX:
        msg = f"An archive's name ends in {SUFFIX}; got {out}. Give -o NAME{SUFFIX}"
        raise ConfigError(msg)
    check_free(out, overwrite=overwrite)
    allowed = limits or ArchiveLimits()
    paths = {MANIFEST: bundle.path / MANIFEST}
    paths |= {name: bundle.file(name) for name in sorted(bundle.manifest.files)}
    mode = 0o600 if bundle.manifest.shows_people else 0o644
    return pack_files(paths, bundle.manifest.files, out, limits=allowed, mode=mode)


def pack_files(
    paths: Mapping[str, Path],
    digests: Mapping[str, str],
    out: Path,
    *,
    limits: ArchiveLimits,
    mode: int = 0o644,
) -> Path:
    """Write files (name in the archive -> path), each checked while it is read against its sha256 in `digests`.

    mode: of the archive. Raises OutputError, BundleError as `pack_bundle`.
    """
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    _check_sizes(f"The archive {out}", sizes, limits)
    with atomic_file(out, mode=mode) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
        for name, path in paths.items():
            with path.open("rb") as source, archive.open(_header(name, sizes[name]), "w") as target:
                digest = _copy(source, target, limit=sizes[name], name=name)
            if digest != digests.get(name, digest):
                msg = f"{path} is damaged: its sha256 is not what the manifest says. Export the bundle again."
                raise BundleError(msg)
    return out


def check_archive(archive: Path, sha256: str) -> None:
    """Check that an archive is the very one whose sha256 was sent apart: its own checksums prove only that it is whole,
    for whoever changes a file can change them too. sha256: 64 hex digits, in either case.

    Raises ConfigError (no sha256, or no archive), InputFileError (not there), BundleError (another archive).
    """
    wanted = sha256.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        msg = f"{sha256!r} is no sha256: it has 64 hex digits. `ufr-edge bundle pack` prints it."
        raise ConfigError(msg)
    if archive.is_dir():
        msg = f"{archive} is a folder; a sha256 is of one file. Give the archive, NAME{SUFFIX}."
        raise ConfigError(msg)
    if not archive.is_file():
        msg = f"{archive} does not exist. Make an archive with: ufr-edge bundle pack BUNDLE -o NAME{SUFFIX}"
        raise InputFileError(msg)
    found = sha256_file(archive)
    if found != wanted:
        msg = (
            f"{archive} is not the archive that was sent: its sha256 is {found}, not {wanted}. Nothing of it was used. "
            "Fetch it again from whoever made it."
        )
        raise BundleError(msg)


def unpack_bundle(
    archive: Path, out: Path, *, overwrite: bool = False, limits: ArchiveLimits | None = None
) -> Path:
    """Unpack an archive into the folder `out`, whole and with every checksum right, or not at all.

    Refused: names that leave the folder or exist twice (on any file system), links, devices, folders, files that
    the manifest does not list, and more than `limits`, counted while reading. Raises InputFileError (no archive),
    BundleError (damaged or hostile), OutputError.
    """
    allowed = limits or ArchiveLimits()
    return unpack_files(archive, out, _bundle_files, overwrite=overwrite, limits=allowed)


def unpack_files(
    archive: Path,
    out: Path,
    listed: Callable[[bytes], Mapping[str, str]],
    *,
    overwrite: bool = False,
    limits: ArchiveLimits,
) -> Path:
    """As `unpack_bundle` for any archive with a manifest.json; listed: its bytes to the sha256 of every other file."""
    allowed = limits
    check_free(out, overwrite=overwrite)
    check_replaceable(out, MANIFEST)
    with _opened(archive, allowed) as zipped:
        entries = _checked_entries(zipped, archive, allowed)
        raw = _read_manifest(zipped, entries)
        files = listed(raw)
        _check_listed(entries, files)
        with atomic_folder(out, overwrite=overwrite) as folder:
            (folder / MANIFEST).write_bytes(raw)
            left = allowed.total_bytes - len(raw)
            for name, digest in files.items():
                most = _most_bytes(entries[name], left, allowed)
                left -= _extract(zipped, entries[name], folder / name, digest, most)
    return out


def _header(name: str, size: int) -> zipfile.ZipInfo:
    """Return an entry without time, owner or host system."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # Unix, wherever this runs
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = size
    return info


@contextmanager
def _opened(archive: Path, limits: ArchiveLimits) -> Iterator[zipfile.ZipFile]:
    """Open the archive; whatever zipfile raises at damaged bytes becomes a BundleError."""
    if not archive.is_file():
        what = "is no file" if archive.exists() else "does not exist"
        msg = f"{archive} {what}. Make an archive with: ufr-edge bundle pack BUNDLE -o NAME{SUFFIX}"
        raise InputFileError(msg)
    advice = "Copy it again, or pack it again with: ufr-edge bundle pack"
    try:
        with archive.open("rb") as file:
            _check_directory(file, archive, limits)
            with zipfile.ZipFile(file) as zipped:
                yield zipped
    except UfrEdgeError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        NotImplementedError,
        OverflowError,
        RecursionError,
        ValueError,
    ) as exc:
        msg = f"{archive} is damaged or no archive of a bundle ({exc}). {advice}"
        raise BundleError(msg) from exc
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a seek to a nonsense offset
            raise
        msg = f"{archive} is damaged ({exc}). {advice}"
        raise BundleError(msg) from exc


def _check_directory(file: IO[bytes], archive: Path, limits: ArchiveLimits) -> None:
    """Bound the zip's directory before zipfile reads it whole: it believes the sizes it finds there."""
    size = file.seek(0, os.SEEK_END)
    tail_size = min(size, _END.size + _LOCATOR.size + _END64.size)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    # Ours have no comment: two zero bytes at the very end.
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\x05\x06") or tail[-2:] != b"\0\0":
        msg = f"{archive} is cut off, or no archive of a bundle. Copy it again."
        raise BundleError(msg)
    end = _END.unpack(tail[-_END.size :])
    count, length = end[4], end[5]
    locator = tail[-_END.size - _LOCATOR.size : -_END.size]
    if locator.startswith(b"PK\x06\x07"):
        end64 = tail[: _END64.size]
        at = _LOCATOR.unpack(locator)[2]
        if not end64.startswith(b"PK\x06\x06") or at != size - tail_size:
            msg = f"{archive} has a directory this version does not read. Pack it again with: ufr-edge bundle pack"
            raise BundleError(msg)
        values = _END64.unpack(end64)
        count, length = values[7], values[8]
    if count > limits.files + 1 or length > (limits.files + 1) * _DIRECTORY_BYTES:
        msg = f"{archive} holds more than {limits.files} files. Do not use this archive."
        raise BundleError(msg)
    file.seek(0)


def _checked_entries(
    zipped: zipfile.ZipFile, archive: Path, limits: ArchiveLimits
) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by name once names, kinds and stated sizes are acceptable."""
    entries: dict[str, zipfile.ZipInfo] = {}
    folded: set[str] = set()
    for info in zipped.infolist():
        name = info.orig_filename
        _check_kind(info)
        if name != MANIFEST:
            check_name(name)
        # Two names that one file system holds for the same would overwrite each other there.
        same = unicodedata.normalize("NFC", name).casefold()
        if same in folded:
            msg = f"{archive} holds {name!r} twice. Do not use this archive."
            raise BundleError(msg)
        folded.add(same)
        entries[name] = info
    parents = {str(parent) for name in folded for parent in PurePosixPath(name).parents}
    if parents & folded:
        msg = f"{archive} holds {min(parents & folded)!r} as a file and as a folder. Do not use this archive."
        raise BundleError(msg)
    _check_sizes(f"The archive {archive}", {name: info.file_size for name, info in entries.items()}, limits)
    if sum(info.compress_size for info in entries.values()) > archive.stat().st_size:
        msg = f"{archive} is cut off, or its files lie over each other. Copy it again."
        raise BundleError(msg)
    return entries


def _check_kind(info: zipfile.ZipInfo) -> None:
    """Refuse all but plain, readable files."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or info.is_dir():
        what = "a link" if kind == stat.S_IFLNK else "no plain file"
    elif info.flag_bits & 1:
        what = "encrypted"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        what = "packed in a way this version does not read"
    else:
        return
    msg = f"The archive's entry {info.orig_filename!r} is {what}. Do not use this archive."
    raise BundleError(msg)


def _check_sizes(what: str, sizes: Mapping[str, int], limits: ArchiveLimits) -> None:
    if len(sizes) > limits.files + 1:
        msg = f"{what} holds {len(sizes)} files, more than {limits.files}."
        raise BundleError(msg)
    for name, size in sizes.items():
        if size > limits.file_bytes:
            msg = f"{what} holds {name!r} with {size} bytes, more than {limits.file_bytes}."
            raise BundleError(msg)
    if sum(sizes.values()) > limits.total_bytes:
        msg = f"{what} holds {sum(sizes.values())} bytes in all, more than {limits.total_bytes}."
        raise BundleError(msg)


def _read_manifest(zipped: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> bytes:
    if MANIFEST not in entries:
        msg = (
            f"{zipped.filename} holds no {MANIFEST}, so it is no bundle. Pack one with: ufr-edge bundle pack"
        )
        raise BundleError(msg)
    with zipped.open(entries[MANIFEST]) as file:
        raw = file.read(_MANIFEST_BYTES + 1)
    if len(raw) > _MANIFEST_BYTES:
        msg = f"The {MANIFEST} of {zipped.filename} is larger than {_MANIFEST_BYTES} bytes. Do not use this archive."
        raise BundleError(msg)
    return raw


def _bundle_files(raw: bytes) -> Mapping[str, str]:
    return Manifest.from_json(json.loads(raw)).files


def _check_listed(entries: Mapping[str, zipfile.ZipInfo], files: Mapping[str, str]) -> None:
    found, listed = set(entries) - {MANIFEST}, set(files)
    if found != listed:
        word = "does not list" if found - listed else "lists"
        tail = "" if found - listed else ", which is not in the archive"
        name = min(found ^ listed)
        msg = f"The manifest {word} {name!r}{tail}. Do not use this archive; pack the bundle again."
        raise BundleError(msg)


def _most_bytes(info: zipfile.ZipInfo, left: int, limits: ArchiveLimits) -> int:
    """Return how much one entry may unpack to. A small file may shrink to nothing; a large one that does is a bomb."""
    return min(left, limits.file_bytes, max(_CHUNK, info.compress_size * limits.ratio))


def _extract(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, digest: str, limit: int) -> int:
    """Write one file and return its size; what it holds is counted here, whatever its header says."""
    name = info.orig_filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(info) as source, target.open("xb") as out:
        found = _copy(source, out, limit=limit, name=name)
    if found != digest:
        msg = (
            f"The archive's {name} is damaged: its sha256 is {found[:12]}…, the manifest says {digest[:12]}…. "
            "Copy the archive again."
        )
        raise BundleError(msg)
    return target.stat().st_size


def _copy(source: IO[bytes], target: IO[bytes], *, limit: int, name: str) -> str:
    """Copy at most `limit` bytes and return their SHA-256."""
    digest, count = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        count += len(chunk)
        if count > limit:
            msg = f"{name!r} is larger than the {limit} bytes it may have. Do not use this archive."
            raise BundleError(msg)
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()
