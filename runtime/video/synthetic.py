"""The built-in test camera: it pans, zooms and turns over photographs, and the truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.faces.warp import warp, warp_mask
from ufr_edge.runtime.frame import Affine, Frame, check_frame
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo

Sensor = Callable[[Frame, int], Frame]
"""What the camera does to a clean frame: (frame, frame index) to a frame of the same size."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How the camera moves over each picture.

    zoom: from, to, as multiples of the scale at which the whole picture just fits. pan: share of the
    frame's shorter side. turn: degrees each way.
    """

    zoom: tuple[float, float] = (1.0, 1.35)
    pan: float = 0.08
    turn: float = 8.0


class SyntheticScene:
    """A clip made of `pictures`, each shown for an equal share of `frames`. The same seed, the same clip."""

    def __init__(
        self,
        pictures: Sequence[Frame],
        *,
        size: tuple[int, int] = (640, 360),
        frames: int = 90,
        seed: int = 0,
        sensor: Sensor | None = None,
        motion: Motion | None = None,
    ) -> None:
        """size: (width, height) of the frames. Raises ConfigError, ShapeError."""
        if not pictures or frames < len(pictures) or min(size) < 16:
            msg = "A synthetic camera needs pictures, a frame for each, and a size of 16 pixels or more."
            raise ConfigError(msg)
        for picture in pictures:
            check_frame(picture, what="picture")
        self._pictures, self._size, self._frames, self._sensor = tuple(pictures), size, frames, sensor
        motion = motion or Motion()
        shots = len(self._pictures)
        self._paths = tuple(_Path(motion, np.random.default_rng([seed, shot])) for shot in range(shots))

    def __len__(self) -> int:
        return self._frames

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the frames."""
        return self._size

    def picture_index(self, index: int) -> int:
        """Which picture frame `index` shows."""
        self._check(index)
        return index * len(self._pictures) // self._frames

    def matrix(self, index: int) -> Affine:
        """2x3 float64: picture coordinates to frame coordinates, the truth for landmarks."""
        shot = self.picture_index(index)
        first = -(-shot * self._frames // len(self._pictures))
        last = -(-(shot + 1) * self._frames // len(self._pictures)) - 1
        share = (index - first) / max(1, last - first)
        height, width = self._pictures[shot].shape[:2]
        return self._paths[shot].matrix(share, (width, height), self._size)

    def clean(self, index: int) -> Frame:
        """Frame `index` as a perfect camera would see it: uint8 (H, W, 3)."""
        picture, matrix = self._pictures[self.picture_index(index)], self.matrix(index)
        seen = warp(picture, matrix, self._size)
        whole = np.ones(picture.shape[:2], dtype=np.float32)
        inside = cv2.GaussianBlur(warp_mask(whole, matrix, self._size), (0, 0), 3)[:, :, None]
        inside = np.clip(2 * inside - 1, 0, 1)  # no picture's edge is mixed with what lies beyond it
        mixed = seen * inside + _backdrop(picture, self._size) * (1 - inside)
        return np.asarray(np.rint(mixed), dtype=np.uint8)

    def frame(self, index: int) -> Frame:
        """Frame `index` as this camera's sensor gives it."""
        clean = self.clean(index)
        return clean if self._sensor is None else self._sensor(clean, index)

    def glance(self, index: int) -> Frame:
        """The same view, edges mirrored in place of a backdrop and without the sensor: cheap enough to be live."""
        picture, matrix = self._pictures[self.picture_index(index)], self.matrix(index)
        seen = cv2.warpAffine(
            picture, matrix, self._size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        return np.asarray(seen, dtype=np.uint8)

    def _check(self, index: int) -> None:
        if not 0 <= index < self._frames:
            msg = f"The clip has frames 0 to {self._frames - 1}, not {index}."
            raise IndexError(msg)


class SyntheticSource:
    """A scene as a video source of `rate` frames per second."""

    steady = True

    def __init__(self, scene: SyntheticScene, *, rate: Fraction = Fraction(30)) -> None:
        self._scene = scene
        width, height = scene.size
        self.info = VideoInfo(
            name="synthetic",
            width=width,
            height=height,
            rate=rate,
            time_base=1 / rate,
            frames=len(scene),
            end=len(scene) / rate,
        )

    def items(self, since: Fraction | None = None, *, seek: bool = True) -> Iterator[SourceFrame]:
        """Frames in order, from `since` seconds on."""
        first = 0 if since is None else max(0, math.ceil(since / self.info.time_base))
        for index in range(first, len(self._scene)):
            image = self._scene.frame(index)
            yield SourceFrame(index=index, pts=index, time_base=self.info.time_base, image=image)

    def notes(self) -> tuple[str, ...]:
        """Nothing to say."""
        return ()

    def close(self) -> None:
        """Nothing to release."""


class _Path:
    """Smooth motion within one shot: each quantity follows its own slow sine."""

    def __init__(self, motion: Motion, rng: np.random.Generator) -> None:
        self._motion = motion
        self._phase = rng.uniform(0, 2 * np.pi, size=4)
        self._speed = rng.uniform(0.5, 1.0, size=4)

    def matrix(self, share: float, picture: tuple[int, int], size: tuple[int, int]) -> Affine:
        right, down, turn, zoom = np.sin(self._phase + 2 * np.pi * self._speed * share)
        low, high = self._motion.zoom
        fit = min(size[0] / picture[0], size[1] / picture[1])
        scale = fit * (low + (high - low) * (zoom + 1) / 2)
        centre = ((picture[0] - 1) / 2, (picture[1] - 1) / 2)
        out = np.asarray(cv2.getRotationMatrix2D(centre, self._motion.turn * turn, scale), dtype=np.float64)
        reach = self._motion.pan * min(size)
        out[:, 2] += (
            (size[0] - 1) / 2 - centre[0] + reach * right,
            (size[1] - 1) / 2 - centre[1] + reach * down,
        )
        return out


def _backdrop(picture: Frame, size: tuple[int, int]) -> Frame:
    """The picture's colours without its detail, to fill what the camera sees beyond the picture."""
    tiny = cv2.resize(picture, (6, 4), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(tiny, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
