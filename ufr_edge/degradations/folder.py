"""Degrading a folder of pictures: same names, one seed per picture, the settings written beside."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ufr_edge import __version__
from ufr_edge.degradations.ops import Frame
from ufr_edge.degradations.presets import degrade, get_preset
from ufr_edge.errors import ConfigError, InputFileError, OutputError
from ufr_edge.files import atomic_folder, check_replaceable, write_json
from ufr_edge.runtime.images import list_images, read_image, write_image

RECORD = "degrade.json"


@dataclass(frozen=True, kw_only=True)
class DegradeConfig:
    """`side`: pixels of the shorter side before degrading; None keeps each picture's own size."""

    preset: str
    seed: int = 0
    side: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a side below 1."""
        if self.side is not None and self.side < 1:
            msg = f"side must be at least 1, got {self.side}."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class DegradeReport:
    """Names written (in `out`), and (name, reason) of the pictures that could not be used."""

    out: Path
    written: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def degrade_folder(
    source: Path,
    out: Path,
    config: DegradeConfig,
    *,
    overwrite: bool = False,
    watch: Callable[[int], None] | None = None,
) -> DegradeReport:
    """Degrade a picture or a folder of pictures into the new folder `out`: NAME.png, and degrade.json.

    `watch(total)` is called after each picture. Raises ConfigError (unknown preset), InputFileError (nothing
    usable, two pictures of one name) and OutputError (`out` exists, or holds the source); nothing is then written.
    """
    get_preset(config.preset)
    paths = list_images(source) if source.is_dir() else [source]
    _check_names(paths)
    _check_out(source, out)
    with atomic_folder(out, overwrite=overwrite) as folder:
        written, skipped = _degrade_all(paths, folder, config, watch or (lambda _total: None))
        if not written:
            msg = f"No picture of {source} could be used; the first: {skipped[0][1]}"
            raise InputFileError(msg)
        write_json(folder / RECORD, _record(config, written, skipped))
    return DegradeReport(out=out, written=tuple(written), skipped=tuple(skipped))


def picture_seed(seed: int, name: str) -> int:
    """The seed of one picture: from `seed` and the file name without suffix, so that order does not matter."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{Path(name).stem}".encode()).digest()[:8], "big")


def resize_shorter(image: Frame, side: int) -> Frame:
    """Scale uint8 (H, W, 3) so that its shorter side is `side` pixels: area average down, cubic up."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    if scale == 1:
        return image
    size = (round(width * scale), round(height * scale))
    return np.asarray(
        cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC),
        dtype=np.uint8,
    )


def _degrade_all(
    paths: Sequence[Path], folder: Path, config: DegradeConfig, watch: Callable[[int], None]
) -> tuple[list[str], list[tuple[str, str]]]:
    written: list[str] = []
    skipped: list[tuple[str, str]] = []
    for path in paths:
        try:
            image = read_image(path)
        except InputFileError as exc:
            skipped.append((path.name, str(exc)))
        else:
            sized = image if config.side is None else resize_shorter(image, config.side)
            name = f"{path.stem}.png"
            write_image(
                folder / name, degrade(sized, config.preset, seed=picture_seed(config.seed, path.name))
            )
            written.append(name)
        watch(len(paths))
    return written, skipped


def _record(
    config: DegradeConfig, written: Iterable[str], skipped: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    return {
        **asdict(config),
        "version": 1,
        "program": f"ufr-edge {__version__}",
        "degradation": get_preset(config.preset).describe(),
        "seeds": {name: picture_seed(config.seed, name) for name in written},
        "skipped": dict(skipped),
    }


def _check_names(paths: Sequence[Path]) -> None:
    double = sorted(stem for stem, count in Counter(path.stem for path in paths).items() if count > 1)
    if double:
        more = f" (and {len(double) - 1} more such names)" if len(double) > 1 else ""
        msg = f"Several pictures would become {double[0]}.png{more}. Rename them."
        raise InputFileError(msg)


def _check_out(source: Path, out: Path) -> None:
    """Overwriting replaces the whole folder, so it must be one of ours and must not hold the source."""
    inside, target = source.resolve(), out.resolve()
    if target == inside or target in inside.parents:
        msg = f"{out} holds the input {source}. Choose another output."
        raise OutputError(msg)
    if out.is_file():
        msg = f"{out} is a file; the pictures go into a folder. Choose another output."
        raise OutputError(msg)
    check_replaceable(out, RECORD)
