"""Raw sensor pipeline (paper.md 8.2): back to linear sensor values, a Bayer mosaic, sensor noise, forward again.

Differences from the paper, on purpose: no bank of calibrated sensors is shipped, so the colour matrix is the bank's
mean and the illuminant is drawn from the bank's Gaussian inside its range; demosaicing is linear (Malvar 2004)
where the paper runs a network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ufr_edge.degradations import ops
from ufr_edge.degradations.demosaic import Mosaic, demosaic_grbg, mosaic_grbg
from ufr_edge.degradations.ops import FloatImage, Frame
from ufr_edge.errors import ConfigError

BLACK, WHITE = 64.0, 1023.0  # 10-bit sensor values (DN)
GAMMA = 2.2
CCM = np.array([[1.641, -0.521, -0.121], [-0.266, 1.397, -0.132], [-0.017, -1.068, 2.085]])

_ILLUMINANT_MEAN = np.array([0.617, 0.475])  # R/G, B/G
_ILLUMINANT_COV = np.array([[0.0210, -0.0103], [-0.0103, 0.0076]])
_ILLUMINANT_LOW, _ILLUMINANT_HIGH = np.array([0.422, 0.300]), np.array([1.023, 0.651])

# var = b1 * DN + b2, DN including the black level; sites in the order G R B G of the GRBG mosaic
_ISOS = (1500.0, 3000.0)
_B1 = np.array([[5.34, 6.34, 6.38, 5.37], [11.07, 13.05, 12.79, 11.05]])
_B2 = np.array([[-248.0, -273.0, -289.0, -246.0], [-329.0, -428.0, -415.0, -309.0]])

_TO_LINEAR = (np.arange(256) / 255.0).astype(np.float32) ** np.float32(GAMMA)


@dataclass(frozen=True, kw_only=True)
class RawParams:
    """One draw: the light's colour as the sensor sees it, relative to green."""

    red: float
    blue: float


@dataclass(frozen=True, kw_only=True)
class RawSensor:
    """A sensor with `scale` x `scale` fewer pixels than the picture (paper: 4, from 512 to 128).

    `scale` is for a face of `reference_side` pixels: at side S (the shorter side) it becomes
    S * scale / reference_side, at least 1, so that the sensor spends the same pixels on an aligned face of any side
    and noise keeps its size on the face. None: relative to the picture itself, as for whole video frames.
    `iso` in 1500..3000 (noise figures are interpolated linearly between the two calibrated ones); None is noise-free.
    `illuminant` fixes the light; None draws one for each picture. `ideal` demosaicing skips the mosaic.
    """

    iso: float | None = 3000.0
    scale: float = 4.0
    reference_side: int | None = 512
    illuminant: RawParams | None = None
    demosaic: Literal["linear", "ideal"] = "linear"

    def __post_init__(self) -> None:
        """Raise ConfigError for a setting without figures."""
        if self.iso is not None and not _ISOS[0] <= self.iso <= _ISOS[1]:
            msg = f"iso must lie in {_ISOS[0]:.0f} .. {_ISOS[1]:.0f} (or None for no noise), got {self.iso}."
            raise ConfigError(msg)
        if not 1 <= self.scale <= 32:
            msg = f"scale must lie in 1 .. 32, got {self.scale}."
            raise ConfigError(msg)
        if self.reference_side is not None and self.reference_side < 1:
            msg = f"reference_side must be at least 1 (or None), got {self.reference_side}."
            raise ConfigError(msg)
        if self.demosaic not in ("linear", "ideal"):
            msg = f"demosaic must be 'linear' or 'ideal', got {self.demosaic!r}."
            raise ConfigError(msg)

    def sample(self, rng: np.random.Generator) -> RawParams:
        """Return the fixed illuminant, or draw one."""
        return self.illuminant if self.illuminant is not None else draw_illuminant(rng)

    def fixed(self, camera_seed: int) -> RawSensor:
        """Return one camera in one light: the same illuminant for every frame, new noise in each."""
        return replace(self, illuminant=draw_illuminant(np.random.default_rng(camera_seed)))

    def effective_scale(self, side: int) -> float:
        """How many times fewer pixels than a picture of shorter side `side` the sensor has along each axis."""
        if self.reference_side is None:
            return self.scale
        return max(1.0, self.scale * side / self.reference_side)

    def apply(self, image: Frame, params: RawParams, rng: np.random.Generator) -> Frame:
        """Steps 1-8. uint8 (H, W, 3) RGB of any size, same size out; `rng` gives the noise only."""
        height, width = ops.check_frame(image).shape[:2]
        sensor = self.expose(image, params)
        ideal = self.demosaic == "ideal"
        raw = BLACK + (sensor if ideal else mosaic_grbg(sensor)) * np.float32(WHITE - BLACK)
        raw = self.add_noise(raw, rng)
        linear = np.clip((raw - np.float32(BLACK)) / np.float32(WHITE - BLACK), 0, 1)
        planes = linear if ideal else np.clip(demosaic_grbg(linear), 0, 1)
        return truncate(ops.resize(develop(planes, params), height, width))

    def expose(self, image: Frame, params: RawParams) -> FloatImage:
        """Steps 1-3: sensor colours in [0, 1] at the sensor's size, H and W even.

        The colour matrix is linear, so it follows the area average instead of preceding it: same values, less work.
        """
        scale = self.effective_scale(min(image.shape[:2]))
        height, width = (2 * max(2, round(n / (2 * scale))) for n in image.shape[:2])
        linear = ops.resize(cast(FloatImage, cv2.LUT(image, _TO_LINEAR)), height, width, area=True)
        normalised = CCM / CCM.sum(axis=1, keepdims=True)
        to_sensor = np.diag([params.red, 1.0, params.blue]) @ np.linalg.inv(normalised)
        return np.clip(_matrix(linear, to_sensor), 0, 1)

    def add_noise(self, raw: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Step 5: heteroscedastic Gaussian noise on sensor values (DN), mosaic (H, W) or planes (H, W, 3)."""
        if self.iso is None:
            return raw
        b1, b2 = noise_figures(self.iso)
        noisy = raw.copy()
        for site, view in _sites(noisy):
            gain, offset = float(b1[site].mean()), float(b2[site].mean())
            sd = np.sqrt(np.maximum(np.float32(gain) * view + np.float32(offset), 0))
            view += sd * rng.standard_normal(view.shape, dtype=np.float32)
        return np.clip(noisy, 0, np.float32(WHITE), out=noisy)

    def __call__(self, image: Frame, rng: np.random.Generator) -> Frame:
        """`sample`, then `apply`."""
        return self.apply(image, self.sample(rng), rng)

    def describe(self) -> dict[str, Any]:
        """The settings, as JSON values."""
        return {"kind": "raw", "pattern": "GRBG", "ccm": "bank mean", **asdict(self)}


def draw_illuminant(rng: np.random.Generator) -> RawParams:
    """Draw (R/G, B/G) from the bank's Gaussian; draws outside the bank's range are thrown away."""
    while True:
        red, blue = rng.multivariate_normal(_ILLUMINANT_MEAN, _ILLUMINANT_COV, method="cholesky")
        if np.all((_ILLUMINANT_LOW <= (red, blue)) & ((red, blue) <= _ILLUMINANT_HIGH)):
            return RawParams(red=float(red), blue=float(blue))


def noise_figures(iso: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """b1 and b2 of the four sites G R B G at `iso`, linear between ISO 1500 and 3000."""
    share = (iso - _ISOS[0]) / (_ISOS[1] - _ISOS[0])
    return _B1[0] + share * (_B1[1] - _B1[0]), _B2[0] + share * (_B2[1] - _B2[0])


def develop(planes: FloatImage, params: RawParams) -> FloatImage:
    """Step 7: white balance, clip, colour matrix, clip, gamma."""
    balanced = planes * np.array([1 / params.red, 1, 1 / params.blue], np.float32)
    colour = np.clip(_matrix(np.minimum(balanced, 1), CCM), 0, 1)
    return cast(FloatImage, cv2.pow(colour, 1 / GAMMA))


def truncate(image: FloatImage) -> Frame:
    """Float [0, 1] to uint8 by cutting, not rounding (step 8)."""
    return cast(Frame, (np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8))


def _matrix(image: FloatImage, matrix: NDArray[np.float64]) -> FloatImage:
    return cast(FloatImage, cv2.transform(image, matrix.astype(np.float32)))


def _sites(raw: Mosaic) -> list[tuple[list[int], Mosaic]]:
    """Views of one colour each, with their places in the order G R B G (both greens for a full green plane)."""
    if raw.ndim == 3:
        return [([1], raw[:, :, 0]), ([0, 3], raw[:, :, 1]), ([2], raw[:, :, 2])]
    return [([0], raw[0::2, 0::2]), ([1], raw[0::2, 1::2]), ([2], raw[1::2, 0::2]), ([3], raw[1::2, 1::2])]
