"""What every video source hands out: frames in order with their time, and packets to copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from ufr_edge.runtime.frame import Box, Frame


@dataclass(frozen=True, kw_only=True)
class ColourTags:
    """Colour description as FFmpeg numbers it (ITU-T H.273); 2 is "unspecified", range 0 too."""

    space: int = 2
    range: int = 0
    primaries: int = 2
    transfer: int = 2


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """A video as it will be handed out (upright).

    rate: frames per second on average, or None. time_base: seconds of one pts step. frames: as declared
    by the container, or None. aspect: width of a pixel over its height.
    """

    name: str
    width: int
    height: int
    rate: Fraction | None
    time_base: Fraction
    frames: int | None = None
    colour: ColourTags = field(default_factory=ColourTags)
    aspect: Fraction | None = None


@dataclass(frozen=True, kw_only=True)
class SourceFrame:
    """Frame number `index` at `pts` * `time_base` seconds.

    native: the decoder's own frame of the same picture, or None. touched: the boxes in which `image` has
    been changed since; all else can be encoded as the decoder gave it. captured: `time.monotonic()` when a
    live source had the picture, 0 for others.
    """

    index: int
    pts: int
    time_base: Fraction
    image: Frame
    native: Any = None
    touched: tuple[Box, ...] = ()
    captured: float = 0.0

    @property
    def seconds(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)


@dataclass(frozen=True, kw_only=True)
class CopiedPacket:
    """A packet of another stream (sound), to be copied as it is; `stream` is its index in the source."""

    stream: int
    packet: Any


SourceItem = SourceFrame | CopiedPacket


class VideoSource(Protocol):
    """A video: iterate `items()` once, then `close()`."""

    @property
    def info(self) -> VideoInfo:
        """What is known before the first frame."""

    @property
    def copied(self) -> dict[int, Any]:
        """Streams copied untouched: index in the source to PyAV stream."""

    def items(self) -> Iterator[SourceItem]:
        """Frames and copied packets in file order. Raises InputFileError when the source is damaged."""

    def close(self) -> None:
        """Release the source; twice is fine."""
