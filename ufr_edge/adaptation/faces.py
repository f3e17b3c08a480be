"""Folders of aligned faces, held in memory as uint8 (N, S, S, 3) RGB."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import InputFileError
from ufr_edge.progress import progress_bar
from ufr_edge.runtime.images import IMAGE_SUFFIXES, is_image

MINIMUM_FACES = 8


@dataclass(frozen=True, kw_only=True)
class FaceSet:
    """Aligned faces: `images` uint8 (N, S, S, 3) RGB, `names` (file names), `skipped` (name, reason)."""

    images: NDArray[np.uint8]
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.names)

    def subset(self, indices: NDArray[np.intp] | list[int]) -> FaceSet:
        """Return the faces at `indices`, in that order."""
        return FaceSet(images=self.images[indices], names=tuple(self.names[i] for i in indices))


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name. Raises InputFileError when there is none."""
    if not folder.is_dir():
        msg = f"{folder} is no folder. Give a folder of aligned face images."
        raise InputFileError(msg)
    paths = sorted(p for p in folder.iterdir() if is_image(p) and not p.name.startswith("."))
    if not paths:
        msg = f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}). Collect some: ufr-edge collect SOURCE -o {folder}"
        raise InputFileError(msg)
    return paths


def read_face(path: Path, side: int) -> NDArray[np.uint8]:
    """Read one face as uint8 (side, side, 3) RGB; 16-bit, grey and alpha images are converted.

    Raises InputFileError when it is no image, not square, or smaller than 64 px.
    """
    raw = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if raw is None:
        msg = f"{path} is no image that can be read."
        raise InputFileError(msg)
    height, width = raw.shape[:2]
    if min(height, width) < 64:
        msg = f"{path} is too small ({width}x{height}); a face needs at least 64x64 pixels."
        raise InputFileError(msg)
    if height != width:
        msg = f"{path} is not square ({width}x{height}); aligned faces are. Align it with: ufr-edge collect"
        raise InputFileError(msg)
    if height != side:
        method = cv2.INTER_AREA if height > side else cv2.INTER_CUBIC
        raw = cv2.resize(raw, (side, side), interpolation=method)
    return np.ascontiguousarray(raw, dtype=np.uint8)


def load_faces(
    folder: Path, side: int, *, limit: int | None = None, minimum: int = MINIMUM_FACES, show: bool = False
) -> FaceSet:
    """Load a folder of aligned faces, the first `limit` good ones. Unusable files are named in `skipped`.

    Raises InputFileError when fewer than `minimum` good faces remain.
    """
    paths = list_images(folder)
    images: list[NDArray[np.uint8]] = []
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    with progress_bar(f"reading {folder.name}", min(len(paths), limit or len(paths)), show=show) as advance:
        for path in paths:
            if len(images) == limit:
                break
            try:
                images.append(read_face(path, side))
                names.append(path.name)
            except InputFileError as exc:
                skipped.append((path.name, str(exc)))
            advance()
    if len(images) < minimum:
        first = f" First problem: {skipped[0][1]}" if skipped else ""
        msg = f"{folder} holds {len(images)} good faces of {len(paths)} files; at least {minimum} are needed.{first}"
        raise InputFileError(msg)
    return FaceSet(images=np.stack(images), names=tuple(names), skipped=tuple(skipped))


def source_of(name: str) -> str:
    """Source of a face: its file name up to the last underscore (`b_hmd_00804.jpg` -> `b_hmd`), "" without one."""
    return Path(name).stem.rpartition("_")[0]


def source_weights(names: tuple[str, ...]) -> NDArray[np.float64]:
    """Sampling probability of each face, so that large sources do not drown small ones.

    A source (`source_of`) of n faces gets a share proportional to sqrt(n). Returns float64 (N,) summing to 1.
    """
    sources = [source_of(name) for name in names]
    counts = {source: sources.count(source) for source in set(sources)}
    weights = np.array([counts[source] ** -0.5 for source in sources])
    return np.asarray(weights / weights.sum(), dtype=np.float64)
