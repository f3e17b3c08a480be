"""Installed versions of a bundle, for a box on site: install, look back, go back.

    NAME/versions/0001.ufr   a bundle, never changed again
    NAME/versions/0001.json  when it came, and which version was current before it
    NAME/current             a link to the current version

The link is the only truth about what is current and is changed in one step, last; so whenever the process is
killed, the old or the new version is current, whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ufr_edge.errors import BundleError, InputFileError, OutputError
from ufr_edge.files import atomic_folder, read_json, sha256_file, write_json
from ufr_edge.runtime.bundle import copy_files, read_bundle
from ufr_edge.runtime.bundle_archive import SUFFIX, unpack_bundle
from ufr_edge.runtime.lock import file_lock
from ufr_edge.runtime.manifest import MANIFEST
from ufr_edge.runtime.version_link import (
    VERSIONS,
    link_version,
    linked_number,
    sync,
    sync_tree,
    version_path,
)

LOCK = ".lock"
_COPY = re.compile(r"\d{4,9}\.ufr")
_UNFINISHED = re.compile(r"\.\d{4,9}\.")


@dataclass(frozen=True, kw_only=True)
class Version:
    """One installed version. `previous`: the number that was current before it, None for the first.

    `installed` is UTC, ISO 8601. `rejected` is the reason a rollback gave for leaving it, "" while it stands.
    """

    number: int
    path: Path
    name: str
    installed: str
    previous: int | None
    manifest_sha256: str
    rejected: str = ""
    current: bool = False


def install_version(folder: Path, bundle: Path, *, keep: int | None = None, timeout_s: float = 600.0) -> Path:
    """Copy a bundle (folder, archive, or another folder of versions) in as a new version and make it current.

    Every file is checked after the copy. Installing what is current already changes nothing. keep: remove the
    oldest versions down to so many, never the current one or the one before it. Another process that installs here
    waits, `timeout_s` seconds at most. Returns the version's folder.
    Raises InputFileError, BundleError (damaged: nothing is installed), OutputError.
    """
    if (folder / MANIFEST).is_file():
        msg = f"{folder} is a bundle itself. Name a folder of its own for the installed versions."
        raise OutputError(msg)
    if not bundle.exists():
        read_bundle(bundle)  # says what is wrong before the folder is made
    with _locked(folder, timeout_s):
        before = _current_number(folder)
        known = {version.number: version for version in history(folder)}
        fresh = version_path(folder, max(known, default=0) + 1)
        _copy_in(bundle, fresh)
        digest = sha256_file(fresh / MANIFEST)
        same = [v for v in (known.get(before or 0), _cut_short(known)) if v and v.manifest_sha256 == digest]
        for version in filter(_is_whole, same):
            shutil.rmtree(fresh)
            if not version.current:
                link_version(folder, version.number)
            return version.path
        _record(folder, fresh, previous=before, digest=digest)
        link_version(folder, int(fresh.stem))
        if keep is not None:
            _prune(folder, keep)
    return fresh


def install_once(folder: Path, bundle: Path, *, keep: int | None = None) -> Path:
    """`install_version` for a call that may come again after a kill: where this very bundle was installed before, it
    is left at that, current or not, for it may have been refused since. Raises as `install_version`.
    """
    digest = sha256_file(read_bundle(bundle).path / MANIFEST)
    versions = {version.number: version for version in history(folder)}
    cut = _cut_short(versions)
    for version in versions.values():
        if version.manifest_sha256 == digest and version != cut:
            return version.path
    return install_version(folder, bundle, keep=keep)


def current_version(folder: Path) -> Version:
    """Return the version that is current. Raises InputFileError when nothing is installed there, BundleError (link)."""
    number = linked_number(folder)
    for version in history(folder):
        if version.number == number:
            return version
    msg = f"No bundle is installed in {folder}. Install one with: ufr-edge bundle install {folder} BUNDLE"
    raise InputFileError(msg)


def history(folder: Path) -> tuple[Version, ...]:
    """Return all installed versions, oldest first; empty when there are none. Raises BundleError (a record)."""
    current = _current_number(folder)
    found = []
    for record in sorted((folder / VERSIONS).glob("[0-9]*.json")):
        version = _read_record(folder, record, current)
        if version.path.is_dir():
            found.append(version)
    return tuple(sorted(found, key=lambda version: version.number))


def rollback(
    folder: Path, *, to: int | None = None, reason: str = "rolled back", timeout_s: float = 600.0
) -> Version:
    """Make the version before the current one current again, or version `to`, once its files are verified.

    The version left is marked with `reason`, so that nobody goes back to it by chance.
    Raises InputFileError when there is none to go to, BundleError when that one is damaged, OutputError.
    """
    if to is None or not folder.is_dir():
        current_version(folder)  # raises when nothing is installed there
    with _locked(folder, timeout_s):
        known = {version.number: version for version in history(folder)}
        left = known.get(_current_number(folder) or 0)
        target = known.get((to if to is not None else left.previous if left else None) or 0)
        if target is None:
            wanted = "one before the current" if to is None else f"number {to}"
            msg = f"{folder} has no version to go back to ({wanted}); it has: {', '.join(map(str, known)) or 'none'}."
            raise InputFileError(msg)
        read_bundle(target.path).check()
        link_version(folder, target.number)
        if left is not None and left != target:
            _mark(folder, left, reason)
        if target.rejected:
            _mark(folder, target, "")
    return current_version(folder)


def refuse_version(
    folder: Path, number: int, *, instead: int, reason: str, timeout_s: float = 30.0
) -> None:
    """Mark version `number` with the reason it is no good; where it is current, `instead` becomes current again.

    Where another version became current meanwhile, it stays. Unlike `rollback` the version gone back to is not read
    again: it runs. Raises InputFileError when one of the two is not installed, OutputError.
    """
    with _locked(folder, timeout_s):
        known = {version.number: version for version in history(folder)}
        missing = {number, instead} - known.keys()
        if missing:
            msg = f"{folder} has no version {min(missing)}; it has: {', '.join(map(str, known)) or 'none'}."
            raise InputFileError(msg)
        if _current_number(folder) in (number, None):
            link_version(folder, instead)
        _mark(folder, known[number], reason)


def _cut_short(versions: Mapping[int, Version]) -> Version | None:
    """The newest version, where a kill came between its record and the link: nobody left it, it never was current."""
    newest = versions.get(max(versions, default=0))
    if newest is None or newest.current or newest.rejected or newest.previous is None:
        return None
    before = versions.get(newest.previous)
    return newest if before is not None and before.current else None


def _current_number(folder: Path) -> int | None:
    """Return what is current, None also when the link is damaged: installing and rolling back mend it."""
    try:
        return linked_number(folder)
    except BundleError:
        return None


@contextmanager
def _locked(folder: Path, timeout_s: float) -> Iterator[None]:
    """Hold the folder's lock, and clear away what a killed process left."""
    if folder.is_file():
        msg = f"{folder} is a file; installed versions need a folder. Choose another."
        raise OutputError(msg)
    with file_lock(folder / LOCK, timeout_s=timeout_s):
        place = folder / VERSIONS
        place.mkdir(exist_ok=True)
        current = version_path(folder, _current_number(folder) or 0)
        for path in place.iterdir():
            # Ours alone while the lock is held: unfinished copies, and copies that never got their record.
            nameless = _COPY.fullmatch(path.name) and not path.with_suffix(".json").is_file()
            if _UNFINISHED.match(path.name) or (nameless and path != current):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def _copy_in(bundle: Path, target: Path) -> None:
    if bundle.suffix == SUFFIX and bundle.is_file():
        unpack_bundle(bundle, target)
    else:
        source = read_bundle(bundle)
        with atomic_folder(target) as beside:
            copy_files(source, beside, source.manifest.files)
            shutil.copyfile(source.path / MANIFEST, beside / MANIFEST)
            read_bundle(beside).check()
    sync_tree(target)


def _is_whole(version: Version) -> bool:
    try:
        read_bundle(version.path).check()
    except (InputFileError, BundleError):
        return False
    return True


def _record(folder: Path, path: Path, *, previous: int | None, digest: str) -> None:
    value = {
        "number": int(path.stem),
        "name": read_bundle(path).manifest.name,
        "installed": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "previous": previous,
        "manifest_sha256": digest,
        "rejected": "",
    }
    _write_record(folder, value)


def _mark(folder: Path, version: Version, reason: str) -> None:
    path = _record_path(folder, version.number)
    _write_record(folder, {**read_json(path), "rejected": reason})


def _write_record(folder: Path, value: dict[str, Any]) -> None:
    path = _record_path(folder, value["number"])
    write_json(path, value)
    sync(path)
    sync(path.parent)


def _record_path(folder: Path, number: int) -> Path:
    return version_path(folder, number).with_suffix(".json")


def _read_record(folder: Path, path: Path, current: int | None) -> Version:
    try:
        value = read_json(path)
        number = int(path.stem)
        return Version(
            number=number,
            path=version_path(folder, number),
            name=str(value["name"]),
            installed=str(value["installed"]),
            previous=None if value["previous"] is None else int(value["previous"]),
            manifest_sha256=str(value["manifest_sha256"]),
            rejected=str(value["rejected"]),
            current=number == current,
        )
    except (InputFileError, KeyError, TypeError, ValueError) as exc:
        msg = f"{path} is damaged ({exc}). Remove it and the version beside it."
        raise BundleError(msg) from exc


def _prune(folder: Path, keep: int) -> None:
    """Remove the oldest versions down to `keep`; never the current one or the one before it."""
    versions = history(folder)
    current = next(version for version in versions if version.current)
    kept = {current.number, current.previous}
    surplus = len(versions) - max(keep, 1)
    for version in [item for item in versions if item.number not in kept][: max(surplus, 0)]:
        # Its record goes first: a copy without one is cleared away by whoever comes next.
        _record_path(folder, version.number).unlink()
        shutil.rmtree(version.path)
