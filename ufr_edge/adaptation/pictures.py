"""Comparison strips and contact sheets: rows of faces under labelled columns."""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

_BAR = 26
_GAP = 12


def strip(columns: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Lay faces out: one labelled column per entry, one row per face. Each value is uint8 (N, S, S, 3) RGB."""
    stacks = [np.concatenate(list(faces)) for faces in columns.values()]
    body = np.concatenate(stacks, axis=1)
    bar = np.full((_BAR, body.shape[1], 3), 32, np.uint8)
    side = next(iter(columns.values())).shape[2]
    for i, label in enumerate(columns):
        cv2.putText(
            bar, label, (i * side + 6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (240, 240, 240), 1, cv2.LINE_AA
        )
    return np.concatenate([bar, body])


def sheet(columns: Mapping[str, NDArray[np.uint8]], *, across: int = 4, side: int = 256) -> NDArray[np.uint8]:
    """Lay many faces out as `across` strips side by side, faces shrunk to at most `side` px.

    Each value is uint8 (N, S, S, 3) RGB; the first faces stand in the first strip, from the top.
    """
    small = {label: _at_most(faces, side) for label, faces in columns.items()}
    count = len(next(iter(small.values())))
    rows = math.ceil(count / across)
    parts = [strip({k: v[i : i + rows] for k, v in small.items()}) for i in range(0, count, rows)]
    height, width = parts[0].shape[:2]
    canvas = np.full((height, len(parts) * (width + _GAP) - _GAP, 3), 32, np.uint8)
    for i, part in enumerate(parts):
        canvas[: part.shape[0], i * (width + _GAP) : i * (width + _GAP) + width] = part
    return canvas


def _at_most(faces: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    if faces.shape[1] <= side:
        return faces
    small = [cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA) for face in faces]
    return np.stack(small).astype(np.uint8)
