"""Cameras put together from small steps.

Lengths are pixels of a 512 px face (the shorter side of the picture as it is when the step runs). A sensor spends the
same pixels on a face of any side, so that noise and JPEG blocks keep their size on it (see classic.py).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ufr_edge.degradations import ops
from ufr_edge.degradations.base import Degradation
from ufr_edge.degradations.classic import REFERENCE_SIDE, Range
from ufr_edge.degradations.ops import FloatImage, Frame
from ufr_edge.errors import ConfigError


class Step(Protocol):
    """One seeded step on float32 (H, W, 3) RGB in [0, 1]; the size may change."""

    def __call__(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        """Draw parameters from `rng` and run."""
        ...

    def describe(self) -> dict[str, Any]:
        """Settings as JSON values."""
        ...


class _Ranged:
    """A frozen dataclass of one range, checked against `limits`."""

    limits: ClassVar[Range]

    def __post_init__(self) -> None:
        """Raise ConfigError when the range is empty or outside `limits`."""
        for name, (low, high) in asdict(self).items():  # type: ignore[call-overload]
            if not self.limits[0] <= low <= high <= self.limits[1]:
                msg = f"{name} of {type(self).__name__} must be a range inside {self.limits[0]} .. {self.limits[1]}, "
                msg += f"got {low} .. {high}."
                raise ConfigError(msg)

    def describe(self) -> dict[str, Any]:
        """Settings as JSON values."""
        return {"step": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class MotionBlur(_Ranged):
    """Straight motion of `length` pixels in any direction."""

    length: Range
    limits: ClassVar[Range] = (0.0, 200.0)

    def __call__(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        """Draw a length and an angle, blur."""
        length, angle = rng.uniform(*self.length), rng.uniform(0, math.pi)
        return ops.motion_blur(image, float(length) * _shrink(image), float(angle))


@dataclass(frozen=True)
class Defocus(_Ranged):
    """A disc of `radius` pixels."""

    radius: Range
    limits: ClassVar[Range] = (0.0, 100.0)

    def __call__(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        """Draw a radius, blur."""
        return ops.defocus(image, float(rng.uniform(*self.radius)) * _shrink(image))


@dataclass(frozen=True)
class Shrink(_Ranged):
    """A sensor of 512 / `factor` pixels on the shorter side, area-averaged; never more than the picture has."""

    factor: Range
    limits: ClassVar[Range] = (1.0, 64.0)

    def __call__(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        """Draw a factor, average."""
        factor = max(1.0, float(rng.uniform(*self.factor)) * _shrink(image))
        height, width = (max(1, round(n / factor)) for n in image.shape[:2])
        return ops.resize(image, height, width, area=True)


@dataclass(frozen=True)
class Noise(_Ranged):
    """White colour noise of `sigma` 8-bit levels."""

    sigma: Range
    limits: ClassVar[Range] = (0.0, 255.0)

    def __call__(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        """Draw a level, add noise."""
        return ops.gaussian_noise(image, float(rng.uniform(*self.sigma)) / 255, rng)


@dataclass(frozen=True)
class Jpeg(_Ranged):
    """JPEG of integer `quality`: blocks and colour bleeding."""

    quality: tuple[int, int]
    limits: ClassVar[Range] = (1, 100)

    def __call__(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        """Draw a quality, code."""
        return ops.jpeg(image, int(rng.integers(*self.quality, endpoint=True)))


@dataclass(frozen=True)
class Through:
    """A whole 8-bit camera as one step, such as a RawSensor before a codec."""

    camera: Degradation

    def __call__(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        """Run the camera on the picture rounded to 8 bit."""
        return ops.to_float(self.camera(ops.to_uint8(image), rng))

    def describe(self) -> dict[str, Any]:
        """The camera's settings."""
        return {"step": "Through", "camera": self.camera.describe()}


@dataclass(frozen=True)
class Compose:
    """Steps in order, then bilinear back to the size of the input and rounding to 8 bit."""

    steps: tuple[Step, ...]

    def __call__(self, image: Frame, rng: np.random.Generator) -> Frame:
        """Degrade uint8 (H, W, 3) RGB, same size out. Raises ShapeError on anything else."""
        height, width = ops.check_frame(image).shape[:2]
        result = ops.to_float(image)
        for step in self.steps:
            result = step(result, rng)
        return ops.to_uint8(ops.resize(result, height, width))

    def describe(self) -> dict[str, Any]:
        """Every step's settings, in order."""
        return {"kind": "compose", "steps": [step.describe() for step in self.steps]}


def _shrink(image: FloatImage) -> float:
    return float(min(image.shape[:2])) / REFERENCE_SIDE
