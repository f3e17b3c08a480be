"""The cameras: paper.md 8.1 and 8.2 (statements 16 and 17), and what holds for every preset."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ufr_edge.degradations import PRESETS, Classic, Compose, RawParams, RawSensor, degrade, grey_pair, ops
from ufr_edge.degradations.classic import ClassicParams, low_resolution
from ufr_edge.degradations.compose import Defocus, Jpeg, MotionBlur, Noise, Shrink, Through
from ufr_edge.degradations.demosaic import demosaic_grbg, mosaic_grbg
from ufr_edge.degradations.presets import PRESET_NOTES
from ufr_edge.degradations.raw import BLACK, WHITE, develop, draw_illuminant, noise_figures, truncate
from ufr_edge.errors import ConfigError, ShapeError

Image = NDArray[np.uint8]
LIGHT = RawParams(red=0.617, blue=0.475)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(height: int = 96, width: int = 96) -> Image:
    """Smooth shapes in mild colours, a sharp square in the middle."""
    base = cv2.resize(rng(5).uniform(60, 200, (6, 6, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    base = base.mean(2, keepdims=True) * 0.6 + base * 0.4
    base[height // 3 : height // 2, width // 3 : width // 2] = (200, 190, 180)
    return np.asarray(base.clip(0, 255), dtype=np.uint8)


def psnr(a: Image, b: Image) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


# --- every preset


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("size", [(96, 96), (90, 121), (5, 7)])
def test_presets_keep_size_and_follow_the_seed(name: str, size: tuple[int, int]) -> None:
    image = picture(*size)
    before = image.copy()
    bad = degrade(image, name, seed=3)
    assert bad.shape == image.shape and bad.dtype == np.uint8
    assert np.array_equal(image, before), "the input was written to"
    assert np.array_equal(bad, degrade(image, name, seed=3))
    assert not np.array_equal(bad, degrade(image, name, seed=4))
    assert not np.array_equal(bad, image)


def test_presets_cannot_be_changed_and_describe_themselves() -> None:
    with pytest.raises(TypeError):
        PRESETS["mine"] = Classic()  # type: ignore[index]
    for preset in PRESETS.values():
        assert json.loads(json.dumps(preset.describe()))["kind"] in {"classic", "raw", "compose"}


def test_every_preset_has_a_note() -> None:
    assert set(PRESET_NOTES) == set(PRESETS)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_leaves_the_picture_recognisable(name: str) -> None:
    image = picture(256, 256)
    for seed in range(3):
        bad = degrade(image, name, seed=seed)
        small, small_bad = (
            cv2.resize(x, (16, 16), interpolation=cv2.INTER_AREA).ravel() for x in (image, bad)
        )
        assert np.corrcoef(small, small_bad)[0, 1] > 0.8


def test_heavy_is_worse_than_light() -> None:
    image = picture(128, 128)
    light, heavy = (
        np.mean([psnr(degrade(image, f"classic-{kind}", seed=i), image) for i in range(20)])
        for kind in ("light", "heavy")
    )
    assert light > heavy + 2


def test_unknown_preset_and_wrong_arrays_are_refused() -> None:
    with pytest.raises(ConfigError, match="classic-light"):
        degrade(picture(), "clasic", seed=0)
    for wrong in (picture().astype(np.float32), picture()[..., 0], np.zeros((0, 4, 3), np.uint8)):
        for name in PRESETS:
            with pytest.raises(ShapeError):
                degrade(wrong, name, seed=0)  # type: ignore[arg-type]


def test_no_torch_is_loaded() -> None:
    code = "import sys, ufr_edge.degradations.presets as p; print('torch' in sys.modules, len(p.PRESETS))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", str(len(PRESETS))]


# --- classic (statement 16)


def test_statement_16_classic_draws_stay_in_the_papers_ranges_and_fill_them() -> None:
    """Statement 16: sigma 0.1-15, scale 0.8-32, noise 0-20 levels, JPEG quality 30-100; half of them isotropic."""
    generator = rng()
    draws = [Classic().sample(generator) for _ in range(4000)]
    for name, low, high in (
        ("sigma_x", 0.1, 15),
        ("sigma_y", 0.1, 15),
        ("angle", -math.pi, math.pi),
        ("scale", 0.8, 32),
        ("noise", 0, 20),
        ("quality", 30, 100),
    ):
        values = np.array([getattr(draw, name) for draw in draws])
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        if name not in ("angle", "sigma_y"):  # the isotropic half has angle 0
            assert values.mean() == pytest.approx((low + high) / 2, rel=0.05)
    isotropic = np.mean([draw.sigma_x == draw.sigma_y for draw in draws])
    assert isotropic == pytest.approx(0.5, abs=0.03)


ANISOTROPIC = ClassicParams(sigma_x=3.0, sigma_y=9.0, angle=0.5, scale=7.3, noise=15.0, quality=40)


def test_statement_16_classic_is_blur_down_noise_jpeg_up_and_no_other_order() -> None:
    """Statement 16: the order, told apart from the 119 others; the result holds 8-bit values."""
    side = 128
    image = picture(side, side)
    small = math.floor(512 / 7.3)
    calls: dict[str, Callable[[ops.FloatImage, np.random.Generator], ops.FloatImage]] = {
        "blur": lambda x, _g: ops.gaussian_blur(x, 3.0 / 4, 9.0 / 4, 0.5, radius=5),
        "down": lambda x, _g: ops.resize(x, small, small),
        "noise": lambda x, g: ops.gaussian_noise(x, 15 / 255, g),
        "jpeg": lambda x, _g: ops.jpeg(x, 40),
        "up": lambda x, _g: ops.resize(x, side, side),
    }
    result = Classic().apply(image, ANISOTROPIC, rng(1))
    assert result.dtype == np.uint8
    for order in permutations(calls):
        x, generator = ops.to_float(image), rng(1)
        for name in order:
            x = calls[name](x, generator)
        if x.shape == image.shape:
            same = np.array_equal(ops.to_uint8(x), result)
            assert same == (order == ("blur", "down", "noise", "jpeg", "up"))


@pytest.mark.parametrize(
    ("side", "scale", "expected"), [(512, 0.8, 640), (512, 32, 16), (256, 32, 16), (256, 4, 128)]
)
def test_the_low_resolution_face_has_the_papers_pixels_at_any_side(
    side: int, scale: float, expected: int
) -> None:
    assert low_resolution(side, side, scale) == (expected, expected)


def test_the_enlargement_is_bounded_at_small_sides() -> None:
    assert low_resolution(256, 256, 0.8) == (320, 320)
    assert low_resolution(256, 512, 8.0) == (64, 128)
    assert low_resolution(3, 3, 32.0) == (3, 3)


def test_blur_touches_the_same_face_frequencies_at_256_as_at_512() -> None:
    params = ClassicParams(sigma_x=6, sigma_y=6, angle=0, scale=1.25, noise=0, quality=100)
    large = picture(512, 512)
    small = np.asarray(cv2.resize(large, (256, 256), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    at_512 = Classic().apply(large, params, rng())
    shrunk = np.asarray(cv2.resize(at_512, (256, 256), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    assert psnr(Classic().apply(small, params, rng()), shrunk) > 40
    assert psnr(Classic().apply(small, params, rng()), shrunk) > psnr(small, shrunk) + 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"sigma": (0.0, 1.0)},
        {"scale": (0.5, 2.0)},
        {"noise": (5.0, 1.0)},
        {"quality": (0, 9)},
        {"isotropic_share": 2.0},
    ],
)
def test_classic_refuses_ranges_it_cannot_do(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Classic(**wrong)  # type: ignore[arg-type]


def test_grey_touches_both_pictures_or_none() -> None:
    lq, gt = picture(), picture()[::-1]
    turned = [grey_pair(lq, gt, rng(seed), probability=0.25) for seed in range(200)]
    both = [np.ptp(a, axis=2).max() == 0 and np.ptp(b, axis=2).max() == 0 for a, b in turned]
    none = [a is lq and b is gt for a, b in turned]
    assert all(x != y for x, y in zip(both, none, strict=True))
    assert np.mean(both) == pytest.approx(0.25, abs=0.1)


def test_kernels_sum_to_one_and_have_the_asked_for_width() -> None:
    kernel = ops.gaussian_kernel(2.0, 4.0, 0.0, radius=40)
    assert kernel.sum() == pytest.approx(1)
    x = np.arange(kernel.shape[1]) - kernel.shape[1] // 2
    assert math.sqrt(float((kernel.sum(0) * x**2).sum())) == pytest.approx(2.0, rel=0.01)
    turned = ops.gaussian_kernel(2.0, 4.0, math.pi / 2, radius=40)
    np.testing.assert_allclose(turned, kernel.T, atol=1e-12)
    assert ops.gaussian_kernel(15, 15, 0, radius=20).shape == (41, 41)
    assert ops.disc_kernel(5.0).sum() == pytest.approx(1)
    assert ops.motion_kernel(9.0, 0.3).sum() == pytest.approx(1)


def test_a_rotated_gaussian_points_along_its_angle() -> None:
    kernel = ops.gaussian_kernel(6.0, 1.0, math.pi / 4, radius=20)
    y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]] - kernel.shape[0] // 2
    covariance = float((kernel * x * y).sum())  # (36 - 1) / 2 without cropping
    assert covariance == pytest.approx(17.5, rel=0.05)


def test_to_uint8_rounds_and_clips() -> None:
    levels = np.array([[[-0.1, 99.6 / 255, 1.2]]], np.float32)
    assert ops.to_uint8(levels).tolist() == [[[0, 100, 255]]]


def test_motion_blur_leaves_the_other_direction_sharp() -> None:
    stripes = np.zeros((32, 32, 3), np.float32)
    stripes[:, ::4] = 1
    along = ops.motion_blur(stripes, 9.0, math.pi / 2)
    across = ops.motion_blur(stripes, 9.0, 0.0)
    assert along[8:-8].std() > 0.9 * stripes.std() > 5 * across[8:-8, 8:-8].std()


@pytest.mark.parametrize("seed", range(8))
def test_low_rank_filtering_equals_the_full_kernel(seed: int) -> None:
    generator = rng(seed)
    kernel = ops.gaussian_kernel(
        generator.uniform(0.05, 7.5), generator.uniform(0.05, 7.5), generator.uniform(-3, 3), radius=10
    )
    image = generator.random((64, 64, 3), dtype=np.float32)
    full = cv2.filter2D(image, -1, kernel.astype(np.float32))
    assert np.abs(ops.filter_image(image, kernel) - full).max() < 0.5 / 255


def test_noise_has_the_asked_for_level_and_jpeg_gives_8_bit_values() -> None:
    flat = np.full((128, 128, 3), 0.5, np.float32)
    assert ops.gaussian_noise(flat, 0.05, rng()).std() == pytest.approx(0.05, rel=0.02)
    coded = ops.jpeg(ops.to_float(picture()), 80) * 255
    assert np.abs(coded - np.rint(coded)).max() < 1e-4
    red = np.zeros((16, 16, 3), np.float32)
    red[..., 0] = 1
    assert ops.jpeg(red, 95)[8, 8].argmax() == 0  # not swapped with blue
    with pytest.raises(ConfigError):
        ops.jpeg(flat, 0)


# --- raw (statement 17)


def test_statement_17_raw_round_trip_without_noise_at_scale_1() -> None:
    """Statement 17: steps 1-7 with ideal demosaicing return the input up to about 0.5 %."""
    image = picture(64, 80)
    sensor = RawSensor(iso=None, scale=1, reference_side=None, demosaic="ideal")
    for seed in range(5):
        back = sensor.apply(image, sensor.sample(rng(seed)), rng())
        error = np.abs(back.astype(int) - image).max()
        assert error <= 1 + 0.005 * 255  # 0.5 % and one level cut off


@pytest.mark.parametrize(("iso", "low", "high"), [(1500, 0.053, 0.060), (3000, 0.078, 0.086)])
def test_statement_17_raw_noise_at_mid_signal(iso: float, low: float, high: float) -> None:
    """Statement 17: sd 0.054-0.059 of the range at ISO 1500, 0.079-0.085 at ISO 3000."""
    mosaic = np.full((400, 400), BLACK + 0.5 * (WHITE - BLACK), np.float32)
    noisy = RawSensor(iso=iso).add_noise(mosaic, rng())
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert low < noisy[row::2, column::2].std() / (WHITE - BLACK) < high
    assert noisy.mean() == pytest.approx(float(mosaic.mean()), rel=0.002)


@pytest.mark.parametrize(
    ("iso", "expected"), [(1500, (0.011, 0.027, 0.056, 0.079)), (3000, (0.021, 0.041, 0.082, 0.115))]
)
def test_raw_noise_grows_with_the_signal_as_calibrated(iso: float, expected: tuple[float, ...]) -> None:
    b1, b2 = noise_figures(iso)
    for signal, sd in zip((0, 0.1, 0.5, 1.0), expected, strict=True):
        value = BLACK + signal * (WHITE - BLACK)
        assert float(np.sqrt(np.maximum(0, b1 * value + b2)).mean()) / (WHITE - BLACK) == pytest.approx(
            sd, abs=0.002
        )


def test_raw_noise_between_the_isos_and_outside() -> None:
    b1, b2 = noise_figures(2250)
    assert b1[0] == pytest.approx((5.34 + 11.07) / 2) and b2[3] == pytest.approx((-246 - 309) / 2)
    for wrong in ({"iso": 1000.0}, {"scale": 0.5}, {"demosaic": "nearest"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            RawSensor(**wrong)


def test_illuminants_stay_in_the_bank_and_centre_on_its_mean() -> None:
    generator = rng()
    draws = np.array([(d.red, d.blue) for d in (draw_illuminant(generator) for _ in range(2000))])
    assert draws.min(0)[0] >= 0.422 and draws.max(0)[0] <= 1.023
    assert draws.min(0)[1] >= 0.300 and draws.max(0)[1] <= 0.651
    np.testing.assert_allclose(np.median(draws, 0), (0.635, 0.47), atol=0.04)
    assert np.corrcoef(draws.T)[0, 1] < -0.4


def test_a_fixed_camera_keeps_its_light_and_changes_its_noise() -> None:
    camera = RawSensor(iso=1500).fixed(7)
    assert camera.sample(rng(1)) == camera.sample(rng(2)) == RawSensor(iso=1500).fixed(7).sample(rng())
    assert camera.sample(rng()) != RawSensor().fixed(8).sample(rng())
    assert not np.array_equal(camera(picture(), rng(1)), camera(picture(), rng(2)))


def test_the_sensor_spends_the_same_pixels_on_a_face_of_any_side() -> None:
    for side in (512, 256):
        assert RawSensor(scale=4).expose(picture(side, side), LIGHT).shape == (128, 128, 3)
    assert RawSensor(scale=4).effective_scale(64) == 1
    frames = RawSensor(scale=4, reference_side=None)
    assert frames.expose(picture(480, 640), LIGHT).shape == (120, 160, 3)
    assert frames.expose(picture(50, 75), LIGHT).shape == (12, 18, 3)
    assert frames(picture(50, 75), rng()).shape == (50, 75, 3)


def test_raw_noise_comes_out_correlated_between_neighbours() -> None:
    flat = np.full((256, 256, 3), 120, np.uint8)
    noise = RawSensor(iso=3000).fixed(0)(flat, rng()).astype(np.float64)
    noise -= noise.mean((0, 1))
    neighbours = float((noise[:, 1:] * noise[:, :-1]).mean() / (noise**2).mean())
    assert noise.std() > 10 and neighbours > 0.5


def test_blown_highlights_come_out_white() -> None:
    """The clip between white balance and colour matrix: without it they turn magenta."""
    blown = develop(np.ones((2, 2, 3), np.float32), LIGHT)
    assert blown.min() > 0.99


def test_the_result_is_cut_not_rounded() -> None:
    levels = np.array([[[0.0, 99.9 / 255, 1.2]]], np.float32)
    assert truncate(levels).tolist() == [[[0, 99, 255]]]


def test_mosaic_is_grbg() -> None:
    planes = np.zeros((4, 4, 3), np.float32) + np.array([1, 2, 3], np.float32)
    assert mosaic_grbg(planes).tolist() == [[2, 1, 2, 1], [3, 2, 3, 2]] * 2


def test_demosaic_is_exact_on_constant_colours_and_grey_ramps() -> None:
    colour = np.zeros((8, 10, 3), np.float32) + np.array([0.3, 0.5, 0.2], np.float32)
    np.testing.assert_allclose(demosaic_grbg(mosaic_grbg(colour)), colour, atol=1e-6)
    y, x = np.mgrid[0:16, 0:16].astype(np.float32)
    ramp = np.repeat((0.02 * x + 0.03 * y)[..., None], 3, axis=2)
    np.testing.assert_allclose(demosaic_grbg(mosaic_grbg(ramp))[2:-2, 2:-2], ramp[2:-2, 2:-2], atol=1e-6)


def test_demosaic_keeps_what_was_measured_and_beats_bilinear_on_edges() -> None:
    luma = cv2.GaussianBlur(rng().random((64, 64), dtype=np.float32), (0, 0), 1.0)
    image = luma[..., None] * np.array([0.9, 1.0, 0.8], np.float32)
    mosaic = mosaic_grbg(image)
    result = demosaic_grbg(mosaic)
    np.testing.assert_array_equal(mosaic_grbg(result), mosaic)
    eight_bit = (mosaic * 255).round().astype(np.uint8)
    # OpenCV names the pattern by its second row and column: GRBG is its BayerGB
    bilinear = cv2.cvtColor(eight_bit, cv2.COLOR_BayerGB2RGB).astype(np.float32) / 255
    ours, theirs = (np.abs(x - image)[4:-4, 4:-4].mean() for x in (result, bilinear))
    assert ours < 0.8 * theirs


def test_compose_runs_its_steps_in_order() -> None:
    image, steps = picture(), (Shrink((8, 8)), Noise((10, 10)))
    x, generator = ops.to_float(image), rng(2)
    for step in steps:
        x = step(x, generator)
    assert x.shape[0] == round(96 / (8 * 96 / 512))
    expected = ops.to_uint8(ops.resize(x, 96, 96))
    assert np.array_equal(Compose(steps)(image, rng(2)), expected)
    assert not np.array_equal(Compose(steps[::-1])(image, rng(2)), expected)
    assert np.array_equal(Compose(())(image, rng()), image)


@pytest.mark.parametrize("side", [512, 256, 128])
def test_shrink_leaves_the_same_sensor_at_every_side(side: int) -> None:
    image = ops.to_float(picture(side, side))
    assert Shrink((8, 8))(image, rng()).shape == (64, 64, 3)
    assert Shrink((1, 1))(image, rng()).shape == image.shape


def test_a_camera_can_be_a_step() -> None:
    sensor = RawSensor(iso=1500).fixed(1)
    chain = Compose((Through(sensor), Jpeg((30, 30))))
    first = sensor(picture(), rng(3))
    assert np.array_equal(chain(picture(), rng(3)), ops.to_uint8(ops.jpeg(ops.to_float(first), 30)))
    assert chain.describe()["steps"][0]["camera"]["iso"] == 1500


@pytest.mark.parametrize(
    "make",
    [lambda: Jpeg((0, 50)), lambda: Shrink((2, 1)), lambda: Defocus((-1, 2)), lambda: MotionBlur((5, 1))],
)
def test_steps_refuse_ranges_they_cannot_do(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
