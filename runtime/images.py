"""Reading and writing still pictures as RGB frames."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ufr_edge.errors import InputFileError, OutputError
from ufr_edge.files import atomic_file
from ufr_edge.runtime.frame import Frame

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_JPEG_QUALITY = 95


def is_image(path: Path) -> bool:
    """Whether the file name is that of a picture."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """Pictures of a folder by name. Raises InputFileError when there is no folder, or none in it."""
    if not folder.is_dir():
        msg = f"{folder} is no folder."
        raise InputFileError(msg)
    found = sorted(p for p in folder.iterdir() if p.is_file() and is_image(p) and not p.name.startswith("."))
    if not found:
        msg = f"{folder} holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))}). Choose another folder."
        raise InputFileError(msg)
    return found


def read_image(path: Path) -> Frame:
    """Read a picture, turned upright by its EXIF tag. Grey becomes RGB; transparency is dropped.

    Raises InputFileError when it is missing or no picture.
    """
    try:
        packed = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as exc:
        msg = f"{path} cannot be read: {exc.strerror}. Check the path."
        raise InputFileError(msg) from exc
    picture = _decode(packed)
    if picture is None:
        msg = f"{path} is no picture, or a damaged one. Replace it or leave it out."
        raise InputFileError(msg)
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def check_picture_name(path: Path) -> None:
    """Raise OutputError unless `path` ends as a picture does."""
    if not is_image(path):
        msg = f"{path} is no picture's name. End it with one of {', '.join(sorted(IMAGE_SUFFIXES))}."
        raise OutputError(msg)


def write_image(path: Path, frame: Frame, *, quality: int = _JPEG_QUALITY, mode: int = 0o644) -> None:
    """Write an RGB frame in the format of the suffix, atomically. `quality` is that of JPEG, `mode` of the file.

    Raises OutputError.
    """
    check_picture_name(path)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix.lower() in (".jpg", ".jpeg") else []
    done, packed = cv2.imencode(path.suffix.lower(), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    if not done:
        msg = f"The picture could not be packed as {path.suffix}. Choose .png."
        raise OutputError(msg)
    with atomic_file(path, mode=mode) as beside:
        beside.write_bytes(packed.tobytes())


def _decode(packed: np.typing.NDArray[np.uint8]) -> Frame | None:
    if packed.size == 0:
        return None
    try:
        picture = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    except cv2.error:  # sizes beyond OpenCV's limit
        return None
    return None if picture is None else np.asarray(picture, dtype=np.uint8)
