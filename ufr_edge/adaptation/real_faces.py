"""The unrelated clean faces of the adversarial term: held in memory, or read when drawn where they are too many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.faces import FaceSet, list_images, load_faces, read_training_face, skipped_lines
from ufr_edge.errors import InputFileError

Images = NDArray[np.uint8]
IN_MEMORY = 4 << 30
"""Bytes of decoded faces that are held; FFHQ at 512 px would take 55 GB."""


class FilesOnDemand:
    """Faces of files as an array is indexed: `faces[[3, 5]]` reads two, uint8 (2, S, S, 3).

    In place of an unfit file the next fit one is given, the same each time; `skipped` holds (name, reason) of those met.
    """

    def __init__(self, paths: Sequence[Path], side: int) -> None:
        self.paths, self.side = tuple(paths), side
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: Sequence[int] | NDArray[np.intp]) -> Images:
        """Read the faces at `index`. Raises InputFileError when no file at all is fit."""
        return np.stack([self._read(int(i)) for i in index])

    def _read(self, first: int) -> Images:
        for further in range(len(self)):
            path = self.paths[(first + further) % len(self)]
            try:
                return read_training_face(path, self.side)
            except InputFileError as exc:
                self.skipped[path.name] = str(exc)
        msg = f"{self.paths[first].parent} holds no clean face. First problem: {next(iter(self.skipped.values()))}"
        raise InputFileError(msg)


def load_real(folder: Path, side: int, *, in_memory: int = IN_MEMORY, show: bool = False) -> FaceSet:
    """Load clean 8-bit colour faces (see `read_training_face`); others are left out, and named in `skipped`.

    Of more than `in_memory` bytes only the names are kept, the pictures are read when drawn (see `FilesOnDemand`).
    Where all files are fit what is drawn is the same. Raises as `load_faces`.
    """
    paths = list_images(folder)
    if len(paths) * side * side * 3 <= in_memory:
        return load_faces(folder, side, read=read_training_face, show=show)
    return FaceSet(images=cast(Images, FilesOnDemand(paths, side)), names=tuple(path.name for path in paths))


def real_lines(folder: Path, faces: FaceSet) -> list[str]:
    """What was left out of the clean faces so far, in words; empty when nothing was."""
    images: object = faces.images
    left_out = tuple(images.skipped.items()) if isinstance(images, FilesOnDemand) else faces.skipped
    return skipped_lines(folder, left_out)
