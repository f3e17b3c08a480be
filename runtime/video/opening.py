"""Opening a source that is read from end to end: a file, or the synthetic camera.

`synthetic://?frames=90&size=640x360&seed=0&rate=30&picture=FILE`
"""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.optional import require
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import read_image
from ufr_edge.runtime.video.reader import VideoReader
from ufr_edge.runtime.video.source import VideoSource
from ufr_edge.runtime.video.synthetic import SyntheticScene, SyntheticSource
from ufr_edge.runtime.video.uri import Uri, parse_uri

SYNTHETIC = "synthetic://"
SYNTHETIC_OPTIONS = frozenset({"frames", "size", "seed", "rate", "picture"})


def open_source(uri: str | Path, *, threads: int | None = None, partial: bool = False) -> VideoSource:
    """Open a video file or the synthetic camera. Raises InputFileError, ConfigError.

    The synthetic camera moves over `picture`, else scikit-image's `astronaut`, without sensor noise.
    partial: a damaged file ends where it ends.
    """
    if isinstance(uri, Path):
        return VideoReader(uri, threads=threads, partial=partial)
    parsed = parse_uri(uri)
    if parsed.kind == "synthetic":
        scene, rate = synthetic_scene(parsed)
        return SyntheticSource(scene, rate=rate)
    if parsed.kind not in ("path", "glob"):
        msg = (
            f"{parsed.masked}: sources of the kind {parsed.scheme}:// are not supported here. Give a file or "
            f"{SYNTHETIC}, or use ufr-edge stream"
        )
        raise ConfigError(msg)
    return VideoReader(parsed.path, threads=threads, partial=partial)


def builtin_picture() -> Frame:
    """Head and shoulders of the photograph that comes with scikit-image: uint8 (288, 384, 3)."""
    data = require("skimage.data", extra="train")
    return np.ascontiguousarray(data.astronaut()[:288, 48:432], dtype=np.uint8)


def synthetic_scene(
    uri: Uri, *, frames: int = 90, known: Collection[str] = SYNTHETIC_OPTIONS
) -> tuple[SyntheticScene, Fraction]:
    """The scene and the rate that a `synthetic://` address asks for. Raises ConfigError, InputFileError."""
    uri.only(known)
    try:
        count, seed = int(uri.options.get("frames", frames)), int(uri.options.get("seed", "0"))
    except ValueError as exc:
        msg = f"{uri.masked}: cannot be understood. Write {SYNTHETIC}?frames=90&size=640x360&seed=0&rate=30"
        raise ConfigError(msg) from exc
    if seed < 0:
        msg = f"{uri.masked}: the seed must be 0 or more."
        raise ConfigError(msg)
    size, rate = uri.size() or (640, 360), uri.rate() or Fraction(30)
    given = uri.options.get("picture")
    picture = builtin_picture() if given is None else read_image(Path(given))
    return SyntheticScene([picture], size=size, frames=count, seed=seed), rate
