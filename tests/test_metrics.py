"""Metrics against values known by hand or by theory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ufr_edge.errors import ConfigError, InputFileError, ShapeError
from ufr_edge.metrics.frechet import frechet_distance
from ufr_edge.metrics.landmarks import find_landmarks, landmark_distance, landmark_shift
from ufr_edge.metrics.pairs import pair_by_name
from ufr_edge.metrics.quality import QualitySettings, psnr, ssim
from ufr_edge.metrics.spectrum import high_frequency_energy, noise_sigma
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.align import template
from ufr_edge.runtime.faces.detect import Face
from ufr_edge.runtime.images import write_image

Image = NDArray[np.uint8]


def grey(level: int, side: int = 32) -> Image:
    return np.full((side, side, 3), level, np.uint8)


def texture(seed: int = 0, side: int = 64) -> Image:
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.uniform(0, 255, (side, side, 3)), (0, 0), 2)
    return np.asarray(((smooth - 127.5) * 4 + 127.5).clip(20, 235), dtype=np.uint8)


def test_psnr_of_a_known_error() -> None:
    assert psnr(grey(100), grey(110)) == pytest.approx(20 * math.log10(255 / 10))
    one_channel = grey(100)
    one_channel[..., 2] += 10  # all channels count, so a third of the squared error
    assert psnr(one_channel, grey(100)) == pytest.approx(20 * math.log10(255 / 10) + 10 * math.log10(3))
    assert psnr(grey(100), grey(100)) == math.inf


def test_psnr_does_not_wrap_and_keeps_the_border() -> None:
    assert psnr(grey(0), grey(255)) == pytest.approx(0)
    marked = grey(0, 10)
    marked[0] = 255
    assert psnr(marked, grey(0, 10)) == pytest.approx(10)


def test_matching_hides_a_colour_cast_and_only_that() -> None:
    truth = texture()
    cast = np.asarray((truth.astype(np.float64) * (0.7, 0.8, 0.9) + (30, 10, 5)).round(), dtype=np.uint8)
    assert psnr(cast, truth) < 30
    matched = QualitySettings(match_mean_std=True)
    assert psnr(cast, truth, matched) > 45
    assert psnr(texture(1), truth, matched) < 20
    assert ssim(cast, truth, matched) > ssim(cast, truth)


def test_luma_is_that_of_bt601() -> None:
    y = QualitySettings(colour="y")
    # One level of grey is 219 / 255 levels of studio-range luma; red weighs 65.481 / 255.
    assert psnr(grey(100), grey(110), y) == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)))
    red = grey(100)
    red[..., 0] += 10
    assert psnr(red, grey(100), y) == pytest.approx(20 * math.log10(255 / (10 * 65.481 / 255)))
    swapped = texture()[..., ::-1]
    assert ssim(np.ascontiguousarray(swapped), texture(), y) != ssim(texture(), texture(), y)


def test_the_border_is_cut_before_measuring() -> None:
    framed = texture()
    framed[:4], framed[-4:], framed[:, :4], framed[:, -4:] = 0, 0, 0, 0
    assert psnr(framed, texture()) < 30
    assert psnr(framed, texture(), QualitySettings(border=4)) == math.inf
    assert ssim(framed, texture(), QualitySettings(border=4)) == pytest.approx(1)
    assert psnr(framed, texture(), QualitySettings(border=3)) < 60
    with pytest.raises(ShapeError, match="border"):
        ssim(grey(1), grey(1), QualitySettings(border=11))
    with pytest.raises(ConfigError, match="border"):
        QualitySettings(border=-1)


def test_ssim_of_constants_is_the_luminance_term() -> None:
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert ssim(grey(100), grey(120)) == pytest.approx(expected, abs=1e-6)
    assert ssim(texture(), texture()) == pytest.approx(1)
    assert ssim(texture(), texture(1)) < 0.3


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_quality_refuses_other_shapes_and_types(measure: Callable[[Image, Image], float]) -> None:
    with pytest.raises(ShapeError):
        measure(grey(1, 32), grey(1, 64))
    with pytest.raises(ShapeError):
        measure(grey(1).astype(np.float32), grey(1))


def test_frechet_of_known_gaussians() -> None:
    features = np.random.default_rng(0).normal(size=(500, 6))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 2.0) == pytest.approx(6 * 4.0)
    # same mean, covariance scaled by s^2: tr C (1 - s)^2
    spread = (features - features.mean(0)) * 3 + features.mean(0)
    trace = float(np.cov(features.T).trace())
    assert frechet_distance(features, spread) == pytest.approx(trace * 4)


def test_frechet_matches_the_matrix_square_root() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(80, 5)), rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + 1
    ca, cb = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(ca)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + ca.trace() + cb.trace() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(float(expected))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_frechet_takes_fewer_samples_than_dimensions_and_refuses_one() -> None:
    features = np.random.default_rng(2).normal(size=(4, 50))
    assert frechet_distance(features, features + 1) == pytest.approx(50)
    with pytest.raises(ShapeError):
        frechet_distance(features[:1], features)
    with pytest.raises(ShapeError):
        frechet_distance(features, features[:, :10])


@pytest.mark.parametrize("sigma", [1.0, 1.7, 2.0, 4.0, 12.0])
def test_noise_is_found_on_flat_and_on_smooth_ground(sigma: float) -> None:
    noise = np.random.default_rng(3).normal(0, sigma, (256, 256, 3))
    ramp = np.linspace(60, 190, 256)[None, :, None] + np.zeros((256, 1, 3))
    for ground in (np.full((256, 256, 3), 128.0), ramp):
        noisy = np.asarray((ground + noise).round().clip(0, 255), dtype=np.uint8)
        expected = math.hypot(sigma, math.sqrt(1 / 12))  # rounding to 8 bit is noise too
        assert noise_sigma(noisy) == pytest.approx(expected, rel=0.03)
    assert noise_sigma(np.asarray(ramp, dtype=np.uint8)) < 0.5
    assert noise_sigma(grey(90)) == 0


def wave(frequency: float, amplitude: float, side: int = 128) -> Image:
    row = 128 + amplitude * np.cos(2 * np.pi * frequency * np.arange(side))
    return np.asarray(np.repeat(np.tile(row, (side, 1))[..., None], 3, axis=2).round(), dtype=np.uint8)


def test_energy_is_the_variance_above_the_cutoff() -> None:
    assert high_frequency_energy(wave(0.375, 40)) == pytest.approx(40**2 / 2, rel=0.02)
    assert high_frequency_energy(wave(0.0625, 40)) < 1  # rounding only
    assert high_frequency_energy(wave(0.0625, 40), cutoff=0.03) == pytest.approx(40**2 / 2, rel=0.02)
    assert high_frequency_energy(grey(90)) == pytest.approx(0)


def test_energy_of_white_noise_is_its_share_of_the_spectrum() -> None:
    noise = np.random.default_rng(5).normal(0, 20, (256, 256, 3))
    noisy = np.asarray((128 + noise).round().clip(0, 255), dtype=np.uint8)
    for cutoff in (0.125, 0.25, 0.5):  # the share outside a disc of that radius in the unit square
        share = 1 - math.pi * cutoff**2
        assert high_frequency_energy(noisy, cutoff=cutoff) == pytest.approx(20**2 * share, rel=0.03)


def test_energy_falls_with_blur() -> None:
    sharp = np.random.default_rng(4).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    blurred = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 1.5), dtype=np.uint8)
    assert high_frequency_energy(blurred) < 0.05 * high_frequency_energy(sharp)


def test_landmark_distance_is_relative_to_the_eyes() -> None:
    truth = np.array([[10.0, 10], [30, 10], [20, 20], [12, 30], [28, 30]])
    assert landmark_distance(truth, truth) == 0
    assert landmark_distance(truth + (3, 4), truth) == pytest.approx(5 / 20)
    assert landmark_distance((truth + (3, 4)) * 7, truth * 7) == pytest.approx(5 / 20)
    with pytest.raises(ShapeError, match="five"):
        landmark_distance(truth[:4], truth)
    with pytest.raises(ShapeError, match="eyes"):
        landmark_distance(truth, np.zeros((5, 2)))


class FixedDetector:
    """Finds the points it is given, for each picture in turn."""

    info = EngineInfo.__new__(EngineInfo)

    def __init__(self, *answers: list[NDArray[np.float32]]) -> None:
        self.answers = list(answers)

    def detect(self, frame: Image) -> list[Face]:
        box = np.zeros(4, np.float32)
        return [Face(box=box, score=0.9, landmarks=points) for points in self.answers.pop(0)]


def test_landmarks_are_those_of_the_aligned_face() -> None:
    here = template(64)
    detector = FixedDetector([here + 20, here + 1], [], [here])
    found = find_landmarks(np.zeros((3, 64, 64, 3), np.uint8), detector)
    assert np.allclose(found[0], here + 1) and np.isnan(found[1]).all() and np.allclose(found[2], here)
    assert landmark_shift(found[0], found[2], side=64) == pytest.approx(math.sqrt(2) * 512 / 64, rel=1e-5)
    assert math.isnan(landmark_shift(found[1], found[2], side=64))


def folder(path: Path, *names: str) -> Path:
    for name in names:
        write_image(path / name, grey(1, 8))
    return path


def test_pairs_go_by_stem_not_by_order(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", "2.png", "1.jpg"), folder(tmp_path / "b", "1.png", "2.png")
    (b / "notes.json").write_text("{}")
    names = [(x.name, y.name) for x, y in pair_by_name(a, b)]
    assert names == [("1.jpg", "1.png"), ("2.png", "2.png")]


def test_pairs_name_what_differs(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", "1.png", "2.png"), folder(tmp_path / "b", "1.png", "3.jpg")
    with pytest.raises(InputFileError) as caught:
        pair_by_name(a, b)
    assert f"Only in {a}: 2.png (1 of 2)." in str(caught.value)
    assert f"Only in {b}: 3.jpg (1 of 2)." in str(caught.value)
    many = folder(tmp_path / "many", *(f"{i:02d}.png" for i in range(20)))
    with pytest.raises(InputFileError, match=r"00\.png, .*04\.png and 15 more \(20 of 20\)") as long:
        pair_by_name(a, many)
    assert "05.png" not in str(long.value)


def test_pairs_of_one_stem_are_refused(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", "1.png", "1.jpg"), folder(tmp_path / "b", "1.png")
    with pytest.raises(InputFileError, match=r"1\.jpg and 1\.png"):
        pair_by_name(a, b)
