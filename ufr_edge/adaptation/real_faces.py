"""The unrelated clean faces of the adversarial term: held in memory, or read when drawn where they are too many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.faces import FaceSet, list_images, load_faces, read_face

Images = NDArray[np.uint8]
IN_MEMORY = 4 << 30
"""Bytes of decoded faces that are held; FFHQ at 512 px would take 55 GB."""


class FilesOnDemand:
    """Faces of files as an array is indexed: `faces[[3, 5]]` reads two, uint8 (2, S, S, 3).

    Raises InputFileError, naming the file, for one that cannot be read.
    """

    def __init__(self, paths: Sequence[Path], side: int) -> None:
        self.paths, self.side = tuple(paths), side

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: Sequence[int] | NDArray[np.intp]) -> Images:
        """Read the faces at `index`."""
        return np.stack([read_face(self.paths[i], self.side) for i in index])


def load_real(folder: Path, side: int, *, in_memory: int = IN_MEMORY, show: bool = False) -> FaceSet:
    """Load clean faces; of more than `in_memory` bytes only the names, the pictures are read when drawn.

    What is drawn is the same. Raises as `load_faces`, and when drawing from files as `FilesOnDemand`.
    """
    paths = list_images(folder)
    if len(paths) * side * side * 3 <= in_memory:
        return load_faces(folder, side, show=show)
    return FaceSet(images=cast(Images, FilesOnDemand(paths, side)), names=tuple(path.name for path in paths))
