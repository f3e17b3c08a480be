"""Pairing two folders of pictures by file name."""

from __future__ import annotations

from pathlib import Path

from ufr_edge.errors import InputFileError
from ufr_edge.runtime.images import list_images

_SHOWN = 5  # of each side


def pair_by_name(first: Path, second: Path) -> list[tuple[Path, Path]]:
    """Return the pictures of two folders paired by stem, sorted.

    Raises InputFileError naming those that have no partner, on either side, and those that share a stem.
    """
    a, b = (_by_stem(folder) for folder in (first, second))
    lonely = [text for text in (_lonely(a, b, first), _lonely(b, a, second)) if text]
    if lonely:
        msg = f"{first} and {second} do not pair up by name. {' '.join(lonely)} Rename or remove them."
        raise InputFileError(msg)
    return [(a[stem], b[stem]) for stem in sorted(a)]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in found:
            msg = f"{folder} holds {found[path.stem].name} and {path.name}: pairs go by stem. Remove one."
            raise InputFileError(msg)
        found[path.stem] = path
    return found


def _lonely(these: dict[str, Path], those: dict[str, Path], folder: Path) -> str:
    names = [these[stem].name for stem in sorted(these.keys() - those.keys())]
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"Only in {folder}: {', '.join(names[:_SHOWN])}{more} ({len(names)} of {len(these)})."
