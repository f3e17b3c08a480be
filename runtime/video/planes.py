"""A decoded picture as it is coded: planes of luma and chroma, turned, padded and patched without loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

Plane = npt.NDArray[Any]
"""uint8, or uint16 where a sample has more than 8 bits."""

EXACT = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
"""Conversion without swscale's shortcuts, which darken by one level in each round trip."""


@dataclass(frozen=True)
class Layout:
    """What a pixel format holds: chroma "420", "422" or "444", bits per sample, and what of it is peculiar.

    rgb, alpha: as it says. plain: three planes of little-endian YUV, which need no conversion.
    """

    chroma: str
    bits: int
    rgb: bool
    alpha: bool
    plain: bool

    @property
    def name(self) -> str:
        """FFmpeg's name of the plain format of this layout."""
        return f"yuv{self.chroma}p" + ("" if self.bits == 8 else f"{self.bits}le")


def layout_of(name: str) -> Layout:
    """Understand FFmpeg's name of a pixel format."""
    found = av.VideoFormat(name, 64, 64)
    columns, rows = found.chroma_width(64), found.chroma_height(64)
    count, rgb = len(found.components), bool(found.is_rgb or found.has_palette or found.is_bayer)
    chroma = {(32, 32): "420", (32, 64): "422"}.get((columns, rows), "444")
    if rgb or count < 3:
        chroma = "420"
    bits = max((part.bits for part in found.components), default=8) if not found.has_palette else 8
    out = Layout(chroma, bits, rgb, count in (2, 4), plain=False)
    return Layout(chroma, bits, rgb, out.alpha, plain=name.replace("yuvj", "yuv") == out.name)


def planes(frame: Any) -> list[Plane]:
    """The planes of a plain frame, as they lie in memory: uint8 or uint16 (height, width); no copies."""
    kind: type[np.uint8 | np.uint16] = np.uint8 if layout_of(frame.format.name).bits == 8 else np.uint16
    out: list[Plane] = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, dtype=kind).reshape(plane.height, -1)
        out.append(rows[:, : plane.width])
    return out


def built(arrays: Sequence[Plane], size: tuple[int, int], *, like: Any) -> Any:
    """A frame of the format and colours of `like`, of `size` = (width, height), holding `arrays`."""
    out: Any = av.VideoFrame(*size, like.format.name)
    for target, plane in zip(planes(out), arrays, strict=True):
        target[:] = plane
    for name in ("colorspace", "color_range", "color_primaries", "color_trc", "pts", "time_base"):
        if (value := getattr(like, name)) is not None:
            setattr(out, name, value)
    return out


def turned(frame: Any, rotation: int) -> Any:
    """A plain frame turned by `rotation` degrees counter-clockwise, the nearest multiple of 90."""
    turns = round(rotation / 90) % 4
    if not turns:
        return frame
    size = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
    return built([np.rot90(plane, turns) for plane in planes(frame)], size, like=frame)


def padded(frame: Any, size: tuple[int, int]) -> Any:
    """A plain frame grown to `size` = (width, height) by repeating its last row and column."""
    if (frame.width, frame.height) == size:
        return frame
    room: Any = av.VideoFrame(*size, frame.format.name)
    grown = []
    for plane, target in zip(planes(frame), room.planes, strict=True):
        more = ((0, target.height - plane.shape[0]), (0, target.width - plane.shape[1]))
        grown.append(np.pad(plane, more, mode="edge"))
    return built(grown, size, like=frame)


def converted(frame: Any, name: str) -> Any:
    """The frame in another pixel format, of the same colours; itself when it has that one."""
    if frame.format.name.replace("yuvj", "yuv") == name:
        return frame
    colour_range = 2 if frame.format.name.startswith("yuvj") else int(frame.color_range)
    out = frame.reformat(
        format=name,
        src_color_range=colour_range or None,
        dst_color_range=colour_range or None,
        interpolation=EXACT,
        threads=1,
    )
    out.pts, out.time_base = frame.pts, frame.time_base
    return out
