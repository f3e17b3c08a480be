"""Pairs of pictures for the live page: restored and original of one frame, encoded only while someone looks."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import cv2
import numpy as np

from ufr_edge.errors import OutputError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.live.ladder import Step
from ufr_edge.runtime.live.sinks import LiveFrame
from ufr_edge.runtime.live.stats import TrackView

_PNG_LEVEL = 3  # higher levels take seconds of a small CPU for a few per cent


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What the page keeps of a frame: not the decoder's own copy. number: counts up from 1."""

    number: int
    index: int
    seconds: float
    restored: Frame
    original: Frame
    tracks: tuple[TrackView, ...]
    step: Step


def shot_of(item: LiveFrame, number: int) -> Shot:
    """Take from a frame what the page shows."""
    frame = item.frame
    return Shot(
        number=number,
        index=frame.index,
        seconds=frame.seconds,
        restored=frame.image,
        original=item.original,
        tracks=item.tracks,
        step=item.step,
    )


def encode_pair(shot: Shot, *, long_side: int, quality: int) -> bytes:
    """One message: length of the head (uint32, little-endian), the head as JSON, JPEG restored, JPEG original.

    The head holds index, seconds, step, size of the frame [width, height], tracks [[id, x0, y0, x1, y1], ...] in
    pixels of the frame, and `lengths` of the two JPEG parts; the second is 0 when both pictures are the same.
    """
    height, width = shot.restored.shape[:2]
    first = _jpeg(shot.restored, long_side, quality)
    same = shot.original is shot.restored
    second = b"" if same else _jpeg(shot.original, long_side, quality)
    head = {
        "index": shot.index,
        "seconds": round(shot.seconds, 3),
        "step": shot.step.value,
        "size": [width, height],
        "tracks": [[t.id, *t.box] for t in shot.tracks],
        "lengths": [len(first), len(second)],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return struct.pack("<I", len(text)) + text + first + second


def read_pair(message: bytes) -> tuple[dict[str, object], bytes, bytes]:
    """Take a message of `encode_pair` apart: head and the two JPEG parts."""
    (length,) = struct.unpack_from("<I", message)
    head = json.loads(message[4 : 4 + length])
    middle = 4 + length + head["lengths"][0]
    return head, message[4 + length : middle], message[middle:]


def encode_snapshot(shot: Shot, suffix: str, *, quality: int = 95) -> bytes:
    """Original and restored beside each other at full size, as ".png" or ".jpg". Raises OutputError."""
    both = np.hstack([_like(shot.original, shot.restored), shot.restored])
    png = [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL]
    return _encode(both, suffix, png if suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, quality])


def _jpeg(frame: Frame, long_side: int, quality: int) -> bytes:
    height, width = frame.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return _encode(frame, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encode(frame: Frame, suffix: str, options: list[int]) -> bytes:
    try:
        done, packed = cv2.imencode(suffix, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    except cv2.error as exc:
        done, why = False, f": {exc.err}"
    else:
        why = ""
    if not done:
        msg = f"A picture of {frame.shape[1]}x{frame.shape[0]} cannot be packed as {suffix}{why}."
        raise OutputError(msg)
    return bytes(packed.tobytes())


def _like(frame: Frame, other: Frame) -> Frame:
    if frame.shape == other.shape:
        return frame
    return np.asarray(cv2.resize(frame, (other.shape[1], other.shape[0])), dtype=np.uint8)
