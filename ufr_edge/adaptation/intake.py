"""Faces as users have them, made ready to adapt to: duplicates dropped, photographs aligned, the rest named."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.faces import MINIMUM_FACES, list_images
from ufr_edge.errors import ConfigError, InputFileError
from ufr_edge.files import atomic_folder, check_replaceable, disk_errors, read_json, write_json
from ufr_edge.progress import progress_bar
from ufr_edge.runtime.faces.align import estimate_alignment, template, warp_face
from ufr_edge.runtime.faces.detect import Detects, Face
from ufr_edge.runtime.faces.warp import scale_of
from ufr_edge.runtime.images import read_image, write_image

Image = NDArray[np.uint8]
RECORD = "faces.json"
FEW = 50
"""Below this many faces a word of warning is due."""
_ALIGNED = 0.1  # mean distance of the points from their places, as a share of the side, of what counts as aligned
_ROLL = 15.0  # degrees, and
_SCALE = 1.3  # times larger or smaller: what an aligned face may be off by
_PLAIN = 3.0  # standard deviation in levels below which a picture shows nothing
_RULES = 2  # raised when other pictures are taken than before, so that folders are looked at again
_SURE = 0.6
_NOTHING = "it shows nothing, one plain colour"
_SMALLEST = 48.0  # side in the photograph's pixels of what an aligned face shows


@dataclass(frozen=True, kw_only=True)
class Intake:
    """`folder`: aligned faces to go on with, the given folder itself when all of it was fit.

    `aligned`: files that were cut out of photographs. `unseen`: aligned by their shape, but no face was found in them.
    `dropped`: (file, reason). `sides`: the smallest and the largest side of the pictures taken as they are, in pixels.
    """

    folder: Path
    count: int
    aligned: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    sides: tuple[int, int] = (0, 0)

    def lines(self) -> list[str]:
        """What was done, in words; empty when nothing was."""
        said = []
        if self.dropped:
            said.append(f"left out {len(self.dropped)}: " + _listed(f"{name} ({why})" for name, why in self.dropped))
        if self.aligned:
            said.append(f"aligned {len(self.aligned)} faces of photographs: {_listed(self.aligned)}")
        if self.unseen:
            said.append(f"no face is found in {len(self.unseen)}, taken as they are: {_listed(self.unseen)}")
        if self.sides[0] != self.sides[1]:
            said.append(
                f"sizes differ, from {self.sides[0]} to {self.sides[1]} px: each is resized, and learned from as it is then"
            )
        if self.count < FEW:
            said.append(
                f"{self.count} faces are few (200 or more are better): look at the report, and try --camera-pairs 0.5"
            )
        return said


def take_in(faces: Path, out: Path, side: int, *, detector: Detects | None, show: bool = False) -> Intake:
    """Make a folder of pictures ready; writes aligned faces of `side` px to `out` only where there is a need to.

    A square picture whose face lies where an aligned one does, upright and of its size, is taken as it is, also when no
    face is found in it (it may be too bad for the detector). Of any other picture each sure face is aligned. A second
    copy of a picture, a file that is no picture, one that shows nothing at all, and a photograph without a face are left
    out and named. Without a `detector` nothing is aligned.
    Raises InputFileError when fewer than 8 faces are left, before anything is looked at ConfigError where `out` would
    take the place of `faces`, and OutputError where it holds files that are not of an earlier call.
    """
    check_not_replaced(faces, out)
    check_replaceable(out, RECORD)
    paths = list_images(faces)
    made_from = _listing(paths, side)
    if (out / RECORD).exists() and read_json(out / RECORD).get("made_from") == made_from:
        return _read(out, read_json(out / RECORD), faces)
    found = _Sorted()
    with progress_bar("looking at faces", len(paths), show=show) as advance:
        for path in paths:
            found.add(path, side, detector)
            advance()
    count = len(found.whole) + sum(len(faces_) for _, faces_ in found.photos)
    if count < MINIMUM_FACES:
        _refuse(faces, count, len(paths), found.dropped)
    changed = bool(found.photos or found.dropped)
    record = {
        "made_from": made_from,
        "changed": changed,
        "count": count,
        "aligned": [name for path, faces_ in found.photos for name in _names(path, len(faces_))],
        "unseen": found.unseen,
        "sides": [min(found.sides, default=0), max(found.sides, default=0)],
        "dropped": [list(item) for item in found.dropped],
    }
    with atomic_folder(out, overwrite=True) as folder:
        _write(folder, found if changed else _Sorted(), side)
        write_json(folder / RECORD, record)
    return _read(out, record, faces)


def check_not_replaced(given: Path, out: Path) -> None:
    """Raise ConfigError where `given` is, or lies in, the folder `out` that is written as a whole."""
    if out.resolve() in (given.resolve(), *given.resolve().parents):
        msg = f"{given} would be lost: faces of ours are written to {out}, in place of what is there. Choose another output (-o)."
        raise ConfigError(msg)


def check_apart(given: Path, out: Path) -> None:
    """Raise ConfigError where `given` is the folder `out` that pictures are written to."""
    if given.resolve() == out.resolve():
        msg = f"{given} is read from, and pictures would be written to it, over its own. Choose another output (-o)."
        raise ConfigError(msg)


class _Sorted:
    """Pictures by what is to be done with them."""

    def __init__(self) -> None:
        self.whole: list[Path] = []
        self.sides: list[int] = []
        self.photos: list[tuple[Path, list[Face]]] = []
        self.unseen: list[str] = []
        self.dropped: list[tuple[str, str]] = []
        self._seen: dict[str, str] = {}

    def add(self, path: Path, side: int, detector: Detects | None) -> None:
        try:
            image = read_image(path)
        except InputFileError:
            self.dropped.append((path.name, "no picture that can be read"))
            return
        key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        first = self._seen.setdefault(key, path.name)
        if first != path.name:
            self.dropped.append((path.name, f"the same picture as {first}"))
        elif detector is None:
            self._by_shape(path, image)
        else:
            self._by_faces(path, image, side, detector.detect(image))

    def _by_shape(self, path: Path, image: Image) -> None:
        if _is_crop(image) and _is_plain(image):
            self.dropped.append((path.name, _NOTHING))
        elif _is_crop(image):
            self._keep(path, image)
        else:
            size = f"{image.shape[1]}x{image.shape[0]}"
            self.dropped.append((path.name, f"not square ({size}), and there is no face detector to align it with"))

    def _by_faces(self, path: Path, image: Image, side: int, found: list[Face]) -> None:
        if _is_crop(image) and (not found or any(_in_place(face, image.shape[0]) for face in found)):
            if not found and _is_plain(image):
                self.dropped.append((path.name, _NOTHING))
                return
            self._keep(path, image)
            if not found:
                self.unseen.append(path.name)
            return
        sure = [face for face in found if face.score >= _SURE and _pixels(face, side) >= _SMALLEST]
        if sure:
            self.photos.append((path, sure))
        else:
            why = "its faces are too small or unsure" if found else "no face is found in it"
            self.dropped.append((path.name, why))


    def _keep(self, path: Path, image: Image) -> None:
        self.whole.append(path)
        self.sides.append(image.shape[0])


def _is_plain(image: Image) -> bool:
    return float(image.mean(axis=2).std()) < _PLAIN


def _is_crop(image: Image) -> bool:
    height, width = image.shape[:2]
    return int(height) == int(width) and int(height) >= 64


def _in_place(face: Face, side: int) -> bool:
    apart = np.linalg.norm(face.landmarks - template(side), axis=1).mean()
    matrix = estimate_alignment(face.landmarks, side)
    roll, scale = math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])), scale_of(matrix)
    return float(apart) <= _ALIGNED * side and abs(roll) <= _ROLL and 1 / _SCALE <= scale <= _SCALE


def _pixels(face: Face, side: int) -> float:
    return side / scale_of(estimate_alignment(face.landmarks, side))


def _names(path: Path, count: int) -> list[str]:
    return [f"{path.stem}.png"] if count == 1 else [f"{path.stem}-{i + 1}.png" for i in range(count)]


def _write(folder: Path, found: _Sorted, side: int) -> None:
    taken = {path.stem for path in found.whole}
    for path in found.whole:
        with disk_errors(folder):
            shutil.copyfile(path, folder / path.name)
    for path, faces in found.photos:
        image = read_image(path)
        for name, face in zip(_names(path, len(faces)), faces, strict=True):
            if Path(name).stem in taken:
                msg = f"{path} and another picture would both give {name}. Rename one of them."
                raise InputFileError(msg)
            taken.add(Path(name).stem)
            write_image(folder / name, warp_face(image, estimate_alignment(face.landmarks, side), side))


def _read(out: Path, record: dict[str, Any], faces: Path) -> Intake:
    return Intake(
        folder=out if record["changed"] else faces,
        count=int(record["count"]),
        aligned=tuple(record["aligned"]),
        unseen=tuple(record["unseen"]),
        sides=(int(record["sides"][0]), int(record["sides"][1])),
        dropped=tuple((str(name), str(why)) for name, why in record["dropped"]),
    )


def _listing(paths: list[Path], side: int) -> str:
    """Digest of names, sizes and times: what the folder held when it was looked at."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr((_RULES, side, stats)).encode()).hexdigest()


def _refuse(faces: Path, count: int, files: int, dropped: list[tuple[str, str]]) -> None:
    why = " Left out: " + _listed(f"{name} ({reason})" for name, reason in dropped) + "." if dropped else ""
    msg = (
        f"{faces} gives {count} faces of {files} files; at least {MINIMUM_FACES} are needed to adapt, and 200 or more "
        f"are better.{why} Collect more: ufr-edge collect SOURCE -o {faces}"
    )
    raise InputFileError(msg)


def _listed(items: Iterator[str] | tuple[str, ...], most: int = 5) -> str:
    names = list(items)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
