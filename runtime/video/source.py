"""What every video source hands out: frames in order, with their time."""

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
    by the container, or None. aspect: width of a pixel over its height. pix_fmt: of the native frames, and what
    of it the encoder is to keep. start, end: seconds, as declared; end None when it is not.
    """

    name: str
    width: int
    height: int
    rate: Fraction | None
    time_base: Fraction
    frames: int | None = None
    colour: ColourTags = field(default_factory=ColourTags)
    aspect: Fraction | None = None
    pix_fmt: str = "yuv420p"
    start: Fraction = Fraction(0)
    end: Fraction | None = None

    @property
    def expected(self) -> int | None:
        """Frames in all: as declared, else by length and rate, else None."""
        if self.frames or self.end is None or not self.rate:
            return self.frames
        return max(1, round((self.end - self.start) * self.rate))


@dataclass(frozen=True, kw_only=True)
class SourceFrame:
    """Frame number `index` at `pts` * `time_base` seconds.

    native: the decoder's own frame of the same picture (upright), or None. touched: the boxes in which `image`
    has been changed since; all else can be encoded as the decoder gave it. before: `image` as it was before
    that change; with it, only the change itself is coded. captured: `time.monotonic()` when a live source had
    the picture, 0 for others. duration: `time_base` steps it is shown, as declared; 0 where nothing is.
    """

    index: int
    pts: int
    time_base: Fraction
    image: Frame
    native: Any = None
    touched: tuple[Box, ...] = ()
    before: Frame | None = None
    captured: float = 0.0
    duration: int = 0

    @property
    def seconds(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)


class VideoSource(Protocol):
    """A video: iterate `items()`, then `close()`."""

    @property
    def info(self) -> VideoInfo:
        """What is known before the first frame."""

    @property
    def steady(self) -> bool:
        """Whether no time stamp jumped back so far: else a later read cannot begin in the middle."""

    def items(self, since: Fraction | None = None, *, seek: bool = True) -> Iterator[SourceFrame]:
        """Frames in order, those before `since` seconds left out; seek: without reading them.

        Raises InputFileError when the source is damaged.
        """

    def notes(self) -> tuple[str, ...]:
        """What should be said about the source after it was read."""

    def close(self) -> None:
        """Release the source; twice is fine."""
