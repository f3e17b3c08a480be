"""Colour cast, grid and ringing on pictures in which they are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import lab2rgb

from ufr_edge.errors import ShapeError
from ufr_edge.metrics.artefacts import TILE, colour_shift, flat_energy, flat_tiles, grid_energy

Image = NDArray[np.uint8]
SIDE = 256


def shaded(seed: int = 0, *, noise: float = 1.0) -> Image:
    """A picture with shading and a little noise, and a textured patch in the middle."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    picture = (100 + 60 * x + 30 * y)[..., None] * (1, 0.9, 0.8) + rng.normal(0, noise, (SIDE, SIDE, 3))
    picture[64:192, 64:192] += cv2.GaussianBlur(rng.normal(0, 60, (128, 128, 3)), (0, 0), 1.5)
    return levels(picture)


def levels(picture: NDArray[np.float64]) -> Image:
    return np.asarray(picture.round().clip(0, 255), dtype=np.uint8)


def stripes(period: int, amplitude: float, *, axis: int = 1) -> NDArray[np.float64]:
    """Half a period up, half a period down, as an addend (SIDE, SIDE, 1)."""
    wave = np.where(np.arange(SIDE) % period < period // 2, amplitude, -amplitude)
    flat = np.broadcast_to(wave[None] if axis == 1 else wave[:, None], (SIDE, SIDE))
    return np.asarray(flat[..., None])


def test_a_known_cast_is_its_length_in_lab() -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    tinted = levels(lab2rgb(np.full((32, 32, 3), (53.585, 6.0, -8.0))) * 255)
    assert colour_shift(tinted, grey) == pytest.approx((6, -8), abs=0.3)
    assert np.linalg.norm(colour_shift(tinted, grey)) == pytest.approx(10, abs=0.3)
    assert colour_shift(grey, tinted) == pytest.approx(-colour_shift(tinted, grey))


def test_brightness_and_blur_are_no_cast() -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    assert np.linalg.norm(colour_shift(grey // 2, grey)) < 0.01
    picture = shaded()
    assert (
        np.linalg.norm(colour_shift(levels(cv2.GaussianBlur(picture.astype(np.float64), (0, 0), 3)), picture))
        < 0.2
    )
    with pytest.raises(ShapeError, match="one shape"):
        colour_shift(grey, grey[:16])


def test_a_quarter_of_the_tiles_is_flat_and_not_the_texture() -> None:
    flat = flat_tiles(shaded())
    assert flat.shape == (SIDE // TILE, SIDE // TILE)
    assert flat.sum() == flat.size // 4
    assert not flat[4:12, 4:12].any()
    assert flat_tiles(np.zeros((64, 72, 3), np.uint8)).shape == (4, 4)
    with pytest.raises(ShapeError, match="tiles of 16 px, two each way"):
        flat_tiles(np.zeros((24, 64, 3), np.uint8))


@pytest.mark.parametrize("period", [2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_grid_of_two_levels_is_clearly_seen(period: int, axis: int) -> None:
    clean = shaded()
    flat = flat_tiles(clean)
    grid = grid_energy(levels(clean + stripes(period, 2, axis=axis)), flat)
    assert grid == pytest.approx(4, rel=0.1)
    assert abs(grid_energy(clean, flat)) < 0.01


def test_a_checkerboard_in_one_channel_is_seen() -> None:
    clean = shaded()
    board = stripes(4, 1, axis=0) * stripes(4, 1, axis=1) * (0, 0, 3)
    assert grid_energy(levels(clean + board), flat_tiles(clean)) == pytest.approx(9 / 3, rel=0.1)


def test_noise_texture_shading_and_other_periods_are_no_grid() -> None:
    clean = shaded(noise=0)
    flat = flat_tiles(clean)
    assert abs(grid_energy(clean, flat)) < 0.01
    waves = 2 * np.sin(np.arange(SIDE) * 2 * np.pi / 5.3)[None, :, None]
    assert abs(grid_energy(levels(clean + waves), flat)) < 0.1
    rng = np.random.default_rng(1)
    for sigma, width in ((15, 0.01), (40, 1.5)):  # fine and coarse noise, both strong
        drawn = [cv2.GaussianBlur(rng.normal(0, sigma, clean.shape), (0, 0), width) for _ in range(20)]
        left = [grid_energy(levels(clean + noise), flat) for noise in drawn]
        assert abs(np.median(left)) < 0.2, (sigma, left)
        seen = [grid_energy(levels(clean + noise + stripes(4, 2)), flat) for noise in drawn]
        assert np.median(seen) == pytest.approx(4, rel=0.15)


def test_the_grid_is_looked_for_in_flat_areas_alone() -> None:
    clean = shaded()
    flat = flat_tiles(clean)
    hidden = clean + stripes(4, 8)
    keep = np.kron(flat, np.ones((TILE, TILE)))[..., None] > 0
    inner = (
        cv2.erode(1 - keep[..., 0].astype(np.uint8), np.ones((33, 33)))[..., None] > 0
    )  # beyond the filter's reach
    assert grid_energy(levels(np.where(inner, hidden, clean)), flat) == pytest.approx(
        grid_energy(clean, flat)
    )


def test_noise_adds_its_variance_to_flat_areas() -> None:
    clean = shaded(noise=0)
    flat = flat_tiles(clean)
    noisy = levels(clean + np.random.default_rng(1).normal(0, 3, clean.shape))
    assert flat_energy(noisy, flat) - flat_energy(clean, flat) == pytest.approx(9, rel=0.1)


def test_ringing_is_told_from_blur() -> None:
    """A hard cut of the spectrum rings beside an edge; a Gaussian of the same width does not."""
    edge = np.zeros((SIDE, SIDE, 3))
    edge[:, 64:192] = 200
    truth = levels(edge * 0.8 + 40)
    spectrum = np.fft.fft2(truth.astype(np.float64), axes=(0, 1))
    passed = np.abs(np.fft.fftfreq(SIDE))[None, :, None] < 1 / 12
    rung = levels(np.fft.ifft2(spectrum * passed, axes=(0, 1)).real)
    blurred = levels(cv2.GaussianBlur(truth.astype(np.float64), (0, 0), 3))
    flat = np.zeros((SIDE // TILE, SIDE // TILE), np.bool_)
    flat[1:-1, [1, 2, 5, 6, 9, 10, 13, 14]] = True  # the tiles that do not touch an edge
    assert flat_energy(blurred, flat) < 0.05
    assert flat_energy(rung, flat) > 5
