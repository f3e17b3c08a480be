"""A time code drawn into the picture, which survives a codec: the truth about latency.

64 bits as black and white squares in two rows at the lower left: 32 bits of time in units of 0.1 ms
(`time.monotonic()`, wraps after 119 hours), 24 bits of frame number, 8 bits of checksum. The clock is that of
the machine, so that the code may be read by another process of it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.frame import Frame

_ROWS, _COLUMNS = 2, 32
_TICKS = 10_000  # of a second
_WRAP = 1 << 32
_BLACK, _WHITE = 24, 232  # inside the limited range, so that no codec clips them
_CONTRAST = 48  # between the darkest and the brightest square, else it is no code


@dataclass(frozen=True)
class TimeCode:
    """When (seconds of `time.monotonic()`, modulo 119 hours, to 0.1 ms) and which frame (modulo 2^24)."""

    seconds: float
    number: int

    def age(self, now: float) -> float:
        """Seconds from the code to `now` (`time.monotonic()`)."""
        ticks = (round(now * _TICKS) - round(self.seconds * _TICKS)) % _WRAP
        return (ticks - _WRAP if ticks > _WRAP // 2 else ticks) / _TICKS


def draw_code(frame: Frame, code: TimeCode) -> None:
    """Draw `code` into `frame` in place. Raises ConfigError when the frame is narrower than 256 pixels."""
    side = _square(frame)
    if side is None:
        msg = f"A time code needs a picture of 256x32 or more, not {frame.shape[1]}x{frame.shape[0]}."
        raise ConfigError(msg)
    grid = _bits(code).reshape(_ROWS, _COLUMNS)
    squares = np.kron(np.where(grid, _WHITE, _BLACK), np.ones((side, side))).astype(np.uint8)
    frame[-_ROWS * side :, : _COLUMNS * side] = squares[:, :, None]


def read_code(frame: Frame) -> TimeCode | None:
    """Read the code of an RGB frame; None when there is none, or it cannot be read for certain."""
    side = _square(frame)
    if side is None:
        return None
    area = frame[-_ROWS * side :, : _COLUMNS * side, 1].reshape(_ROWS, side, _COLUMNS, side)
    edge = side // 4  # the middle of a square: its rim is blurred by the codec
    levels = area[:, edge : side - edge, :, edge : side - edge].mean(axis=(1, 3)).ravel()
    if levels.max() - levels.min() < _CONTRAST:
        return None
    data = np.packbits(levels > (levels.max() + levels.min()) / 2).tobytes()
    if _check(data[:7]) != data[7]:
        return None
    return TimeCode(int.from_bytes(data[:4], "big") / _TICKS, int.from_bytes(data[4:7], "big"))


def _square(frame: Frame) -> int | None:
    height, width = frame.shape[:2]
    return next((side for side in (16, 8) if width >= _COLUMNS * side and height >= 2 * _ROWS * side), None)


def _bits(code: TimeCode) -> np.typing.NDArray[np.uint8]:
    ticks = round(code.seconds * _TICKS) % _WRAP
    data = ticks.to_bytes(4, "big") + (code.number % (1 << 24)).to_bytes(3, "big")
    return np.unpackbits(np.frombuffer(data + bytes([_check(data)]), np.uint8))


def _check(data: bytes) -> int:
    return zlib.crc32(data) & 0xFF
