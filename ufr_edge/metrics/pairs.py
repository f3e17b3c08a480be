"""Pairing two folders of pictures by file name."""

from __future__ import annotations

from pathlib import Path

from ufr_edge.errors import InputFileError
from ufr_edge.runtime.images import list_images


def pair_by_name(first: Path, second: Path) -> list[tuple[Path, Path]]:
    """Return the pictures of two folders paired by stem, sorted. Raises InputFileError naming those that differ."""
    a, b = ({path.stem: path for path in list_images(folder)} for folder in (first, second))
    lonely = [f"{stem} (only in {first})" for stem in sorted(a.keys() - b.keys())]
    lonely += [f"{stem} (only in {second})" for stem in sorted(b.keys() - a.keys())]
    if lonely:
        more = f" and {len(lonely) - 5} more" if len(lonely) > 5 else ""
        msg = f"{first} and {second} do not pair up by name: {', '.join(lonely[:5])}{more}."
        raise InputFileError(msg)
    return [(a[stem], b[stem]) for stem in sorted(a)]
