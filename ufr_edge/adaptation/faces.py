"""Folders of aligned faces, held in memory as uint8 (N, S, S, 3) RGB."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import InputFileError
from ufr_edge.files import atomic_file
from ufr_edge.metrics.spectrum import high_frequency_energy
from ufr_edge.progress import progress_bar
from ufr_edge.runtime.images import IMAGE_SUFFIXES, is_image, read_image

MINIMUM_FACES = 8
SKIPPED = "skipped.csv"
MOST_DETAIL = 90.0
GREY_TOLERANCE = 2
"""A picture is grey when no pixel's channels differ by more levels than this (JPEG's rounding)."""
FaceReader = Callable[[Path, int], NDArray[np.uint8]]
"""(path, side) -> uint8 (side, side, 3) RGB; raises InputFileError for a file to leave out."""


class UnfitFaceError(InputFileError):
    """A face file to leave out; `kind` is one word or two for why, to count by."""

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class FaceSet:
    """Aligned faces: `images` uint8 (N, S, S, 3) RGB, `names` (file names), `skipped` (name, reason).

    `kinds`: of the skipped ones, in the same order: "broken", "tiny", "not square", "CMYK", "16-bit", "grey".
    `weights`: how often each is drawn, float64 (N,) summing to 1; None: balanced over sources (`source_weights`).
    """

    images: NDArray[np.uint8]
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    kinds: tuple[str, ...] = ()
    weights: NDArray[np.float64] | None = None

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

    Raises InputFileError when it is no image, one cut short, not square, or smaller than 64 px.
    """
    try:
        raw = read_image(path)  # unlike cv2.imread, which fills what a cut JPEG lacks with grey
    except InputFileError as exc:
        raise UnfitFaceError(str(exc), kind="broken") from exc
    height, width = raw.shape[:2]
    _check_size(path, width, height, 64)
    if height != side:
        method = cv2.INTER_AREA if height > side else cv2.INTER_CUBIC
        raw = cv2.resize(raw, (side, side), interpolation=method)
    return np.ascontiguousarray(raw, dtype=np.uint8)


def read_training_face(path: Path, side: int) -> NDArray[np.uint8]:
    """Read one face that a network may take for the truth: as `read_face`, but only clean 8-bit colour.

    Raises UnfitFaceError also for a truncated file ("broken"), one whose sides are below side / 2 ("tiny"), for
    "CMYK", "16-bit" and "grey": of a single channel, or R = G = B (within `GREY_TOLERANCE`) in every pixel.
    """
    mode, layout, (width, height) = _decoded(path)
    _check_size(path, width, height, max(64, side // 2))
    if mode in ("CMYK", "LAB"):
        msg = f"{path} is {mode}, whose colours depend on a print profile. Convert it to RGB."
        raise UnfitFaceError(msg, kind="CMYK")
    if mode.startswith(("I", "F")) or "16" in layout:
        msg = f"{path} has 16 bits a channel. Develop it to 8-bit sRGB."
        raise UnfitFaceError(msg, kind="16-bit")
    face = read_face(path, side)
    spread = int(np.ptp(face.astype(np.int16), axis=2).max())
    if mode in ("1", "L", "LA") or spread <= GREY_TOLERANCE:
        msg = f"{path} is grey (R = G = B in every pixel). Leave it out: a restorer would learn to drop colour."
        raise UnfitFaceError(msg, kind="grey")
    return face


def _decoded(path: Path) -> tuple[str, str, tuple[int, int]]:
    """Return the mode, the layout in the file and (width, height) of a picture that decodes to its end."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mode, size = picture.mode, picture.size
            layout = _layout(picture.tile[0][3] if picture.tile else "")
            picture.load()
    except Exception as exc:  # border: Pillow raises many kinds for a damaged file
        msg = f"{path} is no image that can be read to its end ({exc})."
        raise UnfitFaceError(msg, kind="broken") from exc
    return mode, layout, size


def _layout(arguments: object) -> str:
    """The raw mode among a decoder's arguments, such as "RGB;16B"."""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _check_size(path: Path, width: int, height: int, minimum: int) -> None:
    if min(height, width) < minimum:
        msg = f"{path} is too small ({width}x{height}); a face needs at least {minimum}x{minimum} pixels here."
        raise UnfitFaceError(msg, kind="tiny")
    if height != width:
        msg = f"{path} is not square ({width}x{height}); aligned faces are. Align it with: ufr-edge collect"
        raise UnfitFaceError(msg, kind="not square")


def load_faces(
    folder: Path,
    side: int,
    *,
    limit: int | None = None,
    minimum: int = MINIMUM_FACES,
    read: FaceReader = read_face,
    show: bool = False,
) -> FaceSet:
    """Load a folder of aligned faces, the first `limit` good ones. Unusable files are named in `skipped`.

    Raises InputFileError when fewer than `minimum` good faces remain.
    """
    paths = list_images(folder)
    most = min(len(paths), len(paths) if limit is None else limit)
    images = np.empty((most, side, side, 3), np.uint8)  # in place: a list beside its stack would be twice the memory
    names: list[str] = []
    skipped: list[tuple[str, str, str]] = []
    with progress_bar(f"reading {folder.name}", most, show=show) as advance:
        for path in paths:
            if len(names) == most:
                break
            try:
                images[len(names)] = read(path, side)
                names.append(path.name)
            except InputFileError as exc:
                skipped.append((path.name, str(exc), getattr(exc, "kind", "unfit")))
            advance()
    kinds = tuple(kind for _, _, kind in skipped)
    if len(names) < minimum:
        first = f" Left out: {_counted(kinds)}. First problem: {skipped[0][1]}" if skipped else ""
        msg = f"{folder} holds {len(names)} good faces of {len(paths)} files; at least {minimum} are needed.{first}"
        raise InputFileError(msg)
    left_out = tuple((name, reason) for name, reason, _ in skipped)
    return FaceSet(images=images[: len(names)], names=tuple(names), skipped=left_out, kinds=kinds)


def evenly(faces: FaceSet, most: int) -> FaceSet:
    """Return at most so many of the faces, evenly over the folder: the first ones may all be of one source."""
    if len(faces) <= most:
        return faces
    at = np.linspace(0, len(faces) - 1, most).round().astype(np.intp)
    return replace(faces.subset(at), skipped=faces.skipped, kinds=faces.kinds)


def skipped_line(folder: Path, faces: FaceSet) -> str:
    """Return "FOLDER: left out 3 of 40 files (2 grey, 1 broken)", or "" when none was left out."""
    if not faces.skipped:
        return ""
    total = len(faces) + len(faces.skipped)
    return f"{folder}: left out {len(faces.skipped)} of {total} files ({_counted(faces.kinds)})"


def skipped_lines(folder: Path, skipped: Sequence[tuple[str, str]], most: int = 5) -> list[str]:
    """Return a line on how many files were left out and one for each of the first, with its reason; [] for none."""
    if not skipped:
        return []
    shown = [f"  {name}: {reason}" for name, reason in skipped[:most]]
    more = [f"  and {len(skipped) - most} more"] if len(skipped) > most else []
    return [f"{folder}: left out {len(skipped)} files", *shown, *more]


def write_skipped(path: Path, folders: Mapping[Path, FaceSet]) -> None:
    """Write the files that were left out as CSV (folder, file, kind, reason), atomically; the head alone if none."""
    with atomic_file(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("folder", "file", "kind", "reason"))
        for folder, faces in folders.items():
            for (name, reason), kind in zip(faces.skipped, faces.kinds, strict=True):
                rows.writerow((folder, name, kind, reason))


def _counted(kinds: tuple[str, ...]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())


def source_of(name: str) -> str:
    """Return the source of a face: its file name up to the last underscore (`b_hmd_00804.jpg` -> `b_hmd`)."""
    return name.rsplit("_", 1)[0] if "_" in name else ""


def source_weights(names: tuple[str, ...]) -> NDArray[np.float64]:
    """Sampling probability of each face, so that large sources do not drown small ones.

    A source (`source_of`) of n faces gets a share proportional to sqrt(n). Returns float64 (N,) summing to 1.
    """
    sources = [source_of(name) for name in names]
    counts = {source: sources.count(source) for source in set(sources)}
    weights = np.array([counts[source] ** -0.5 for source in sources])
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def weighted_by_detail(faces: FaceSet, power: float) -> FaceSet:
    """Return the same faces, each drawn (detail)^power times as often as the balance of sources has it.

    Detail: `high_frequency_energy`, at most `MOST_DETAIL`, beyond which it is noise. A set that is softer than what is
    restored later teaches to expect soft faces; `power` 1 draws the sharp ones more. 0 changes nothing.
    """
    if power == 0:
        return faces
    each = (faces.images[[i]][0] for i in range(len(faces)))  # they may be read one by one
    detail = np.array([high_frequency_energy(face) for face in each]).clip(1e-3, MOST_DETAIL)
    weights = source_weights(faces.names) * detail**power
    return replace(faces, weights=np.asarray(weights / weights.sum(), np.float64))
