"""PSNR and SSIM against the truth; what was cropped, converted or matched first is a setting that is stated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import ConfigError, ShapeError

Image = NDArray[np.uint8]
Colour = Literal["rgb", "y"]
_WINDOW = 11  # pixels: the SSIM Gaussian of sigma 1.5, cut at 3.5 sigma
_LUMA = np.array([65.481, 128.553, 24.966]) / 255  # BT.601 studio range: white is 235, black 16


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """What is done to both images before PSNR and SSIM. Raises ConfigError when out of range.

    `border`: pixels cut off each side. `colour`: "rgb", or "y" (BT.601 luma, 16 to 235, not rounded).
    `match_mean_std`: each channel's mean and deviation matched to the truth twice, as the paper's own script
    does (paper.md section 9); such figures cannot be compared with plain ones.
    """

    border: int = 0
    colour: Colour = "rgb"
    match_mean_std: bool = False

    def __post_init__(self) -> None:
        if self.border < 0 or self.colour not in ("rgb", "y"):
            msg = f"The border must be 0 or more and the colour rgb or y; got {self.border} and {self.colour!r}."
            raise ConfigError(msg)

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON values, with what is fixed."""
        return {
            "colour": self.colour,
            "border_px": self.border,
            "match_mean_std": self.match_mean_std,
            "peak": 255,
            "ssim_window": f"Gaussian, sigma 1.5, {_WINDOW} px",
        }


PLAIN = QualitySettings()


def psnr(image: Image, truth: Image, settings: QualitySettings = PLAIN) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 RGB images (peak 255, over all channels).

    Infinite when they are equal. Raises ShapeError when their shapes differ.
    """
    a, b = _prepare(image, truth, settings)
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(image: Image, truth: Image, settings: QualitySettings = PLAIN) -> float:
    """Structural similarity (Wang et al. 2004) of two uint8 RGB images, mean over the channels.

    Gaussian window, sigma 1.5. Raises ShapeError when their shapes differ, or less than a window remains.
    """
    from skimage.metrics import structural_similarity

    a, b = _prepare(image, truth, settings)
    value = structural_similarity(
        a, b, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(value)


def _prepare(
    image: Image, truth: Image, settings: QualitySettings
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _check(image, truth, settings.border)
    if settings.match_mean_std:
        image = _match(_match(image, truth), truth)
    return _view(image, settings), _view(truth, settings)


def _view(image: Image, settings: QualitySettings) -> NDArray[np.float64]:
    cut = settings.border
    inner = image[cut : image.shape[0] - cut, cut : image.shape[1] - cut].astype(np.float64)
    return (inner @ _LUMA + 16)[..., None] if settings.colour == "y" else inner


def _match(image: Image, truth: Image) -> Image:
    source, goal = image.astype(np.float64), truth.astype(np.float64)
    scale = goal.std((0, 1)) / np.maximum(source.std((0, 1)), 1e-8)
    matched = (source - source.mean((0, 1))) * scale + goal.mean((0, 1))
    return np.asarray(matched.round().clip(0, 255), dtype=np.uint8)


def _check(image: Image, truth: Image, border: int) -> None:
    if image.shape != truth.shape or image.dtype != np.uint8 or truth.dtype != np.uint8:
        msg = f"Two uint8 images of one shape are needed; got {image.shape} {image.dtype} and {truth.shape} {truth.dtype}."
        raise ShapeError(msg)
    if border and min(truth.shape[:2]) - 2 * border < _WINDOW:
        msg = f"A border of {border} px leaves less than {_WINDOW} px of a picture of {truth.shape[1]}x{truth.shape[0]}."
        raise ShapeError(msg)
