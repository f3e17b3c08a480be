"""Choosing calibration frames: real aligned faces of the camera, or nothing.

Ranges measured on noise or on blank pictures give an engine that looks fine and is wrong, so those are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.choose import descriptors, farthest_points
from ufr_edge.calibration.face_check import count_faces
from ufr_edge.calibration.ranges import check_percentile
from ufr_edge.errors import CalibrationError, ConfigError
from ufr_edge.runtime.face_store import INDEX, read_rows
from ufr_edge.runtime.images import is_image, read_image

Frame = NDArray[np.uint8]
T = TypeVar("T")

MIN_IMAGES = 8
_FEW_PEOPLE = 2  # with one person alone, other frames of them must do
_MIN_STD = 3.0  # uint8 levels: below it an image is blank
_MIN_CORRELATION = 0.2  # white noise has 0; the noisiest real face lies far above (low frequencies dominate)
_MOST_BAD = 0.25  # share of blank images and noise above which the folder is refused
_SAME_LEVELS = 1.5  # mean difference of 16x16 thumbnails below which two frames show the same thing
_COLLECT = "Collect faces from the camera: ufr-edge collect SOURCE -o FOLDER"


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How calibration frames are chosen, and how ranges are made of them.

    limit: frames to calibrate on at most. hold_out: frames to keep back for measuring at most. seed: of the choice.
    percentile: clip activation ranges to it (such as 99.99), None = from smallest to largest.
    require_faces: refuse a folder in whose pictures no faces are found.
    """

    limit: int = 128
    hold_out: int = 16
    seed: int = 0
    percentile: float | None = None
    require_faces: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for a limit under 8, a negative hold_out or seed, a percentile outside (50, 100]."""
        if self.limit < MIN_IMAGES or self.hold_out < 0 or self.seed < 0:
            msg = f"Calibration takes a limit of at least {MIN_IMAGES} and no negative hold_out or seed; got {self}."
            raise ConfigError(msg)
        check_percentile(self.percentile)


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Calibration frames of one camera.

    frames: uint8 RGB (N, S, S, 3). paths: where they came from, in the same order.
    held_out: uint8 RGB (M, S, S, 3), M may be 0: frames of the same camera that calibration does not see;
    held_paths: where those came from. set_id: SHA-256 over the pixels of `frames`, 64 hex digits.
    found: images in the folder. duplicates: near-duplicates dropped of those looked at. bad: names of those left out
    because they show nothing or noise. config: how it was chosen.
    """

    frames: Frame
    set_id: str
    paths: tuple[Path, ...]
    held_out: Frame
    held_paths: tuple[Path, ...]
    found: int
    duplicates: int
    config: CalibrationConfig
    bad: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """The choice as a value for json.dumps: counts, seed, and the file names chosen."""
        return {
            "set_id": self.set_id,
            "found": self.found,
            "duplicates": self.duplicates,
            "left_out": list(self.bad),
            "seed": self.config.seed,
            "chosen": [path.name for path in self.paths],
            "held_out": [path.name for path in self.held_paths],
        }


def load_calibration(folder: Path, side: int, *, config: CalibrationConfig | None = None) -> CalibrationSet:
    """Choose aligned faces (square images) from `folder`, resized to side x side.

    Deterministic: blank images and random noise are left out, near-duplicates are dropped, every fifth frame (up to
    `hold_out`) is held out, by person where the folder's index.jsonl tells tracks apart, and of the rest
    `limit` are taken as unlike each other as can be (farthest-point sampling), in the order of their names.
    Raises CalibrationError when the folder is missing, holds fewer than 8 different images, no faces, an image that is
    not square, or more than a quarter that are blank or random noise; InputFileError when one is damaged;
    BackendUnavailableError when the face detector is missing.
    """
    chosen_by = config or CalibrationConfig()
    found = list_images(folder)
    if len(found) < MIN_IMAGES:
        msg = f"{folder} holds {len(found)} images; calibration needs at least {MIN_IMAGES}. {_COLLECT}"
        raise CalibrationError(msg)
    # Three times the limit leaves enough to choose from and bounds the time spent on a large folder.
    paths = _spread(found, 3 * chosen_by.limit + chosen_by.hold_out)
    images = [read_face(path, side) for path in paths]
    bad = _bad(paths, images)
    if bad:
        fit = [i for i, path in enumerate(paths) if path.name not in bad]
        paths, images = [paths[i] for i in fit], [images[i] for i in fit]
    kept = _distinct(images)
    if len(kept) < MIN_IMAGES:
        msg = f"{folder} holds only {len(kept)} different images; calibration needs at least {MIN_IMAGES}. {_COLLECT}"
        raise CalibrationError(msg)
    if chosen_by.require_faces:
        _refuse_faceless(folder, [images[i] for i in kept])
    held, chosen = _choose(images, kept, chosen_by, _people(folder, paths))
    frames = np.stack([images[i] for i in chosen])
    return CalibrationSet(
        frames=frames,
        set_id=set_id(frames),
        paths=tuple(paths[i] for i in chosen),
        held_out=np.stack([images[i] for i in held]) if held else frames[:0],
        held_paths=tuple(paths[i] for i in held),
        found=len(found),
        duplicates=len(images) - len(kept),
        config=chosen_by,
        bad=bad,
    )


def face_fault(face: Frame) -> str | None:
    """What makes uint8 RGB (S, S, 3) no face to adapt or calibrate to: "blank", "random noise", or None."""
    if face.mean(axis=2).std() < _MIN_STD:
        return "blank"
    return "random noise" if neighbour_correlation(face) < _MIN_CORRELATION else None


def load_faces(folder: Path, side: int, *, limit: int) -> Frame:
    """Load up to `limit` aligned faces, evenly over the sorted names: uint8 RGB (N, S, S, 3), N >= 1.

    Raises CalibrationError when there is none or one is not square, InputFileError when one is damaged.
    """
    paths = list_images(folder)
    if not paths:
        msg = f"{folder} holds no images. {_COLLECT}"
        raise CalibrationError(msg)
    return np.stack([read_face(path, side) for path in _spread(paths, limit)])


def list_images(folder: Path) -> list[Path]:
    """Return the image files directly in `folder`, sorted. Raises CalibrationError when it is no folder."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        msg = f"The calibration folder {folder} {what}. {_COLLECT}"
        raise CalibrationError(msg)
    return sorted(p for p in folder.iterdir() if is_image(p) and not p.name.startswith("."))


def read_face(path: Path, side: int) -> Frame:
    """Read one aligned face: uint8 RGB (side, side, 3), area-averaged when shrinking.

    Raises InputFileError when it is damaged, CalibrationError when it is not square.
    """
    image = read_image(path)
    if image.shape[0] != image.shape[1]:
        msg = f"{path} is {image.shape[1]}x{image.shape[0]}; aligned faces are square. {_COLLECT}"
        raise CalibrationError(msg)
    if image.shape[0] != side:
        how = cv2.INTER_AREA if image.shape[0] > side else cv2.INTER_CUBIC
        image = cv2.resize(image, (side, side), interpolation=how)
    return np.asarray(image, np.uint8)


def set_id(frames: Frame) -> str:
    """Return the SHA-256 over shape and pixels, 64 hex digits."""
    digest = hashlib.sha256(repr(frames.shape).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


def neighbour_correlation(image: Frame) -> float:
    """Correlation of horizontally and vertically adjacent grey values, in [-1, 1]; about 0 for white noise."""
    grey = image.astype(np.float32).mean(axis=2)
    grey -= grey.mean()
    power = float(np.square(grey).mean())
    if power == 0:
        return 1.0
    across = float((grey[:, 1:] * grey[:, :-1]).mean())
    down = float((grey[1:] * grey[:-1]).mean())
    return (across + down) / (2 * power)


def _people(folder: Path, paths: Sequence[Path]) -> list[str] | None:
    """Whose face each picture is, where the folder's index tells tracks apart; a face without a track is its own."""
    if not (folder / INDEX).is_file():
        return None
    track = {row.file: row.track for row in read_rows(folder) if row.track is not None}
    return [track.get(path.name, path.name) for path in paths] if track else None


def _hold_out(kept: Sequence[int], config: CalibrationConfig, people: Sequence[str] | None) -> list[int]:
    """Every fifth frame; where people are known, every fifth person with all of their frames, but never the only one."""
    if not config.hold_out:
        return []
    if people is None or len({people[i] for i in kept}) < _FEW_PEOPLE:
        return list(kept[4::5][: config.hold_out])
    names = list(dict.fromkeys(people[i] for i in kept))
    # At least one person; of a few, the last.
    gone = set(names[4::5] or names[-1:])
    return [i for i in kept if people[i] in gone]


def _choose(
    images: Sequence[Frame], kept: Sequence[int], config: CalibrationConfig, people: Sequence[str] | None
) -> tuple[list[int], list[int]]:
    """Indices held out, and indices to calibrate on: never of one person, where that is known."""
    held = _hold_out(kept, config, people)
    rest = [index for index in kept if index not in set(held)]
    if len(rest) > config.limit:
        picked = farthest_points(descriptors([images[i] for i in rest]), config.limit, seed=config.seed)
        rest = sorted(rest[i] for i in picked)
    return _spread(held, config.hold_out), rest


def _refuse_faceless(folder: Path, images: Sequence[Frame]) -> None:
    found, looked = count_faces(images)
    if 4 * found < looked:
        msg = f"{folder} does not look like aligned faces: a face was found in {found} of {looked} pictures. {_COLLECT}"
        raise CalibrationError(msg)


def _bad(paths: Sequence[Path], images: Sequence[Frame]) -> tuple[str, ...]:
    """Names of the images that are no faces. Raises CalibrationError when they are more than a quarter."""
    faults = {path: fault for path, image in zip(paths, images, strict=True) if (fault := face_fault(image))}
    if len(faults) > _MOST_BAD * len(paths):
        what = " or ".join(sorted(set(faults.values())))
        first = next(iter(faults))
        msg = f"{len(faults)} of {len(paths)} calibration images are {what}, not faces (first: {first}). {_COLLECT}"
        raise CalibrationError(msg)
    return tuple(path.name for path in faults)


def _distinct(images: Sequence[Frame]) -> list[int]:
    """Indices of the images that are no near-duplicate of an earlier one."""
    small = [cv2.resize(i, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32) for i in images]
    kept: list[int] = []
    for index, thumb in enumerate(small):
        if (
            not kept
            or np.abs(np.stack([small[k] for k in kept]) - thumb).mean(axis=(1, 2, 3)).min() >= _SAME_LEVELS
        ):
            kept.append(index)
    return kept


def _spread(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` items, evenly spaced, first and last included."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, limit)]
