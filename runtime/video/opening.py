"""Source URIs: a path, or `synthetic://?frames=90&size=640x360&seed=0&rate=30`."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.optional import require
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.video.reader import VideoReader
from ufr_edge.runtime.video.source import VideoSource
from ufr_edge.runtime.video.synthetic import SyntheticScene, SyntheticSource

SYNTHETIC = "synthetic://"
_KNOWN = {"frames", "size", "seed", "rate"}


def open_source(uri: str | Path, *, threads: int | None = None) -> VideoSource:
    """Open a video file or the synthetic camera. Raises InputFileError, ConfigError.

    The synthetic camera moves over scikit-image's `astronaut`, without sensor noise.
    """
    if isinstance(uri, str) and uri.startswith(SYNTHETIC):
        return _synthetic(uri)
    if isinstance(uri, str) and "://" in uri and not uri.startswith("file://"):
        scheme = uri.split("://", 1)[0]
        msg = f"Sources of the kind {scheme}:// are not supported here. Give a file, or {SYNTHETIC}"
        raise ConfigError(msg)
    return VideoReader(Path(str(uri).removeprefix("file://")), threads=threads)


def builtin_picture() -> Frame:
    """Head and shoulders of the photograph that comes with scikit-image: uint8 (288, 384, 3)."""
    data = require("skimage.data", extra="train")
    return np.ascontiguousarray(data.astronaut()[:288, 48:432], dtype=np.uint8)


def _synthetic(uri: str) -> SyntheticSource:
    given = parse_qs(urlsplit(uri).query, keep_blank_values=True)
    if unknown := set(given) - _KNOWN:
        msg = f"{uri}: unknown setting {sorted(unknown)}. Known are {sorted(_KNOWN)}."
        raise ConfigError(msg)
    text = {name: values[-1] for name, values in given.items()}
    try:
        frames, seed = int(text.get("frames", "90")), int(text.get("seed", "0"))
        width, height = (int(n) for n in text.get("size", "640x360").split("x"))
        rate = Fraction(text.get("rate", "30"))
    except (ValueError, ZeroDivisionError) as exc:
        msg = f"{uri}: cannot be understood. Write {SYNTHETIC}?frames=90&size=640x360&seed=0&rate=30"
        raise ConfigError(msg) from exc
    if seed < 0 or rate <= 0:
        msg = f"{uri}: the seed must be 0 or more, the rate above 0."
        raise ConfigError(msg)
    scene = SyntheticScene([builtin_picture()], size=(width, height), frames=frames, seed=seed)
    return SyntheticSource(scene, rate=rate)
