"""Which version of an installed bundle is the current one: a link that is changed in one step."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ufr_edge.errors import BundleError, OutputError
from ufr_edge.files import atomic_file

VERSIONS = "versions"
CURRENT = "current"
_TARGET = re.compile(rf"{VERSIONS}/(\d{{4,9}})\.ufr")


def version_path(folder: Path, number: int) -> Path:
    """Return where version `number` lies: `folder/versions/NNNN.ufr`."""
    return folder / VERSIONS / f"{number:04d}.ufr"


def linked_number(folder: Path) -> int | None:
    """Return the number that `folder/current` points to, None when there is no such link.

    Raises BundleError when it points anywhere but to a version of this folder.
    """
    link = folder / CURRENT
    try:
        if link.is_symlink():
            target = link.readlink().as_posix()
        elif link.is_file():
            with link.open(encoding="utf-8", errors="replace") as file:
                target = file.read(200).strip()
        else:
            return None
    except OSError as exc:
        msg = f"{link} cannot be read: {exc.strerror}."
        raise BundleError(msg) from exc
    match = _TARGET.fullmatch(target)
    if match is None:
        msg = f"{link} points to {target!r}, not to a version. Run: ufr-edge bundle rollback {folder} --to NUMBER"
        raise BundleError(msg)
    return int(match[1])


def linked_version(folder: Path) -> Path | None:
    """Return the folder of the current version, None when `folder` holds no installed bundle."""
    number = linked_number(folder)
    return None if number is None else version_path(folder, number)


def link_version(folder: Path, number: int) -> None:
    """Make version `number` the current one, in one step: a reader sees the old or the new.

    A symbolic link where the file system has them, else a file of one line. Raises OutputError.
    """
    link = folder / CURRENT
    target = f"{VERSIONS}/{number:04d}.ufr"
    if link.is_dir() and not link.is_symlink():
        msg = f"{link} is a folder, not the link this command makes. Choose another folder."
        raise OutputError(msg)
    beside = folder / f".{CURRENT}.link"
    beside.unlink(missing_ok=True)
    try:
        beside.symlink_to(target, target_is_directory=True)
        beside.replace(link)
    except OSError:
        # FAT cards and Windows without the right to make links: a one-line file does the same.
        beside.unlink(missing_ok=True)
        with atomic_file(link) as pointer:
            pointer.write_text(target + "\n", encoding="utf-8")
            sync(pointer)
    sync(folder)


def sync(path: Path) -> None:
    """Write a file, or a folder's list of names, through to the disk; a power cut then keeps it."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` everything in a folder, the folder last."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)
