"""Faults of an engine that a mean PSNR does not show: solid colours, NaN, a dead channel, clipped white."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

SOLIDS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {"black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128), "red": (200, 40, 40)}
)
SOLID_LEVELS = 10.0
"""Mean distance in uint8 levels at which a solid colour has gone wrong. Calibration has seen no such picture."""

_BROKEN_LEVELS, _BROKEN_SHARE = 96, 0.002
_DEAD_RATIO, _ALIVE_STD = 0.1, 3.0
_CLIPPED_SHARE = 0.01


def solid_frames(side: int) -> Frames:
    """One frame of each colour of SOLIDS, uint8 (4, side, side, 3)."""
    colours = np.array(list(SOLIDS.values()), np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colours[:, None, None, :], (len(colours), side, side, 3)))


def solid_faults(got: Frames, want: Frames) -> list[str]:
    """What went wrong on the frames of `solid_frames`, in words: an engine's against fp32's, uint8 (4, S, S, 3)."""
    gaps = np.abs(got.astype(np.int16) - want.astype(np.int16)).mean(axis=(1, 2, 3))
    return [
        f"solid {name} comes out {gap:.0f} levels off"
        for name, gap in zip(SOLIDS, gaps, strict=True)
        if gap > SOLID_LEVELS
    ]


def face_faults(got: Frames, want: Frames) -> list[str]:
    """What went wrong on faces, in words: an engine's frames against fp32's, uint8 (N, S, S, 3).

    A NaN cannot be seen in uint8 as such; it shows as pixels far from fp32's.
    """
    faults = []
    gap = np.abs(got.astype(np.int16) - want.astype(np.int16)).max(axis=3)
    broken = float((gap > _BROKEN_LEVELS).mean(axis=(1, 2)).max())
    if broken > _BROKEN_SHARE:
        faults.append(f"{broken:.1%} of a face's pixels are far off, as NaN or overflow leaves them")
    spread, wanted = got.std(axis=(0, 1, 2)), want.std(axis=(0, 1, 2))
    dead = [
        name
        for name, s, w in zip(("red", "green", "blue"), spread, wanted, strict=True)
        if w > _ALIVE_STD and s < _DEAD_RATIO * w
    ]
    if dead:
        faults.append(f"the {' and '.join(dead)} output channel is dead")
    for name, level in (("white", 255), ("black", 0)):
        more = float((got == level).mean() - (want == level).mean())
        if more > _CLIPPED_SHARE:
            faults.append(f"{more:.1%} of the values are clipped to {name} that fp32 keeps")
    return faults
