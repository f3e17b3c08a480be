"""Comparison strips: rows of faces under labelled columns."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

_BAR = 26


def strip(columns: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Lay faces out: one labelled column per entry, one row per face. Each value is uint8 (N, S, S, 3) RGB."""
    stacks = [np.concatenate(list(faces)) for faces in columns.values()]
    body = np.concatenate(stacks, axis=1)
    bar = np.full((_BAR, body.shape[1], 3), 32, np.uint8)
    side = next(iter(columns.values())).shape[2]
    for i, label in enumerate(columns):
        cv2.putText(bar, label, (i * side + 6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (240, 240, 240), 1, cv2.LINE_AA)
    return np.concatenate([bar, body])
