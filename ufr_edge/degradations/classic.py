"""The classic blind-face pipeline (paper.md 8.1): blur, down, noise, JPEG, up.

All ranges are given for a 512 px face. At side S (the shorter side of the image) the same *face frequencies*
are touched:

* blur sigma and the 41 px window scale by S / 512;
* the low-resolution face keeps its pixel count, floor(512 / s), because noise and JPEG act there and their
  size on the face must not change. It never exceeds S / 0.8, the paper's own largest enlargement; at S = 256
  that bound meets the 2.6 % of draws with s < 1.6.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ufr_edge.degradations import ops
from ufr_edge.degradations.ops import Frame
from ufr_edge.errors import ConfigError

REFERENCE_SIDE = 512
_WINDOW_RADIUS = 20  # the paper's 41 x 41 kernel, at 512
_SMALLEST_SCALE = 0.8

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ClassicParams:
    """One draw. `sigma_*` (pixels) and `scale` are for a 512 px face; `noise` is in 8-bit levels; `angle` in radians."""

    sigma_x: float
    sigma_y: float
    angle: float
    scale: float
    noise: float
    quality: int


@dataclass(frozen=True, kw_only=True)
class Classic:
    """Ranges of the classic pipeline, uniform. The defaults are the paper's (and DifFace's)."""

    sigma: Range = (0.1, 15.0)
    scale: Range = (0.8, 32.0)
    noise: Range = (0.0, 20.0)
    quality: tuple[int, int] = (30, 100)
    isotropic_share: float = 0.5

    def __post_init__(self) -> None:
        """Raise ConfigError when a range is empty or outside what the pipeline can do."""
        limits = {
            "sigma": (1e-3, 100.0),
            "scale": (_SMALLEST_SCALE, 64.0),
            "noise": (0.0, 255.0),
            "quality": (1, 100),
        }
        for name, (low, high) in limits.items():
            first, last = getattr(self, name)
            if not low <= first <= last <= high:
                msg = f"{name} must be a range inside {low} .. {high}, got {first} .. {last}."
                raise ConfigError(msg)
        if not 0 <= self.isotropic_share <= 1:
            msg = f"isotropic_share must lie in 0 .. 1, got {self.isotropic_share}."
            raise ConfigError(msg)

    def sample(self, rng: np.random.Generator) -> ClassicParams:
        """Draw parameters. Always consumes the same number of draws."""
        isotropic = rng.random() < self.isotropic_share
        sigma_x, sigma_y = rng.uniform(*self.sigma, size=2).tolist()
        angle = rng.uniform(-math.pi, math.pi)
        return ClassicParams(
            sigma_x=sigma_x,
            sigma_y=sigma_x if isotropic else sigma_y,
            angle=0.0 if isotropic else float(angle),
            scale=float(rng.uniform(*self.scale)),
            noise=float(rng.uniform(*self.noise)),
            quality=int(rng.integers(self.quality[0], self.quality[1], endpoint=True)),
        )

    def apply(self, image: Frame, params: ClassicParams, rng: np.random.Generator) -> Frame:
        """Degrade uint8 (H, W, 3) with drawn parameters; `rng` gives the noise only. Same size out."""
        height, width = ops.check_frame(image).shape[:2]
        shrink = min(height, width) / REFERENCE_SIDE
        radius = max(1, round(_WINDOW_RADIUS * shrink))
        x = ops.to_float(image)
        x = ops.gaussian_blur(
            x, params.sigma_x * shrink, params.sigma_y * shrink, params.angle, radius=radius
        )
        x = ops.resize(x, *low_resolution(height, width, params.scale))
        x = ops.gaussian_noise(x, params.noise / 255, rng)
        x = ops.jpeg(x, params.quality)
        return ops.to_uint8(ops.resize(x, height, width))

    def __call__(self, image: Frame, rng: np.random.Generator) -> Frame:
        """`sample`, then `apply`."""
        return self.apply(image, self.sample(rng), rng)

    def describe(self) -> dict[str, Any]:
        """The ranges, as JSON values."""
        return {"kind": "classic", "reference_side": REFERENCE_SIDE, **asdict(self)}


def low_resolution(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width of the low-resolution picture: shorter side floor(512 / scale), at most floor(S / 0.8)."""
    shorter = min(height, width)
    target = min(math.floor(REFERENCE_SIDE / scale), math.floor(shorter / _SMALLEST_SCALE))
    return max(1, round(height * target / shorter)), max(1, round(width * target / shorter))


def grey_pair(
    degraded: Frame, clean: Frame, rng: np.random.Generator, *, probability: float = 0.01
) -> tuple[Frame, Frame]:
    """Turn both pictures grey with the given probability (paper.md 8.1). It touches the truth too, so no preset does it."""
    if rng.random() >= probability:
        return degraded, clean
    return _grey(degraded), _grey(clean)


def _grey(image: Frame) -> Frame:
    weights = np.array([0.299, 0.587, 0.114])
    return np.repeat(np.rint(image @ weights).astype(np.uint8)[..., None], 3, axis=2)
