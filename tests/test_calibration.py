"""Calibration frames: chosen the same way every time, and refused when they are no faces."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from export_helpers import SIDE, write_faces, write_images

from ufr_edge.calibration.compare import PSNR_CAP, compare_frames, pattern_frames, psnr
from ufr_edge.calibration.frames import load_calibration, load_faces, neighbour_correlation
from ufr_edge.errors import CalibrationError, InputFileError, ShapeError


def test_frames_come_resized_and_in_a_fixed_order(tmp_path: Path) -> None:
    folder = write_faces(tmp_path, 20, side=96)
    first, second = load_calibration(folder, SIDE), load_calibration(folder, SIDE)
    assert first.frames.shape == (16, SIDE, SIDE, 3)
    assert first.frames.dtype == np.uint8
    assert first.held_out.shape == (4, SIDE, SIDE, 3)
    assert len(first.paths) == 16
    assert first.set_id == second.set_id
    assert len(first.set_id) == 64


def test_held_out_frames_are_not_calibrated_on(tmp_path: Path) -> None:
    data = load_calibration(write_faces(tmp_path, 20), SIDE)
    gaps = [
        np.abs(data.frames.astype(int) - one.astype(int)).mean(axis=(1, 2, 3)).min() for one in data.held_out
    ]
    assert min(gaps) > 1


def test_the_set_id_follows_the_pixels(tmp_path: Path) -> None:
    folder = write_faces(tmp_path, 12)
    before = load_calibration(folder, SIDE).set_id
    (folder / "000.png").rename(folder / "0000.png")
    assert load_calibration(folder, SIDE).set_id == before
    write_images(folder, pattern_frames(1, SIDE, seed=99))
    assert load_calibration(folder, SIDE).set_id != before


def test_the_limit_spreads_over_the_whole_folder(tmp_path: Path) -> None:
    data = load_calibration(write_faces(tmp_path, 30), SIDE, limit=8)
    assert len(data.frames) == 8
    assert data.paths[0].name == "000.png"
    assert data.paths[-1].name == "028.png"  # 029 is held out


def test_near_duplicates_count_once(tmp_path: Path) -> None:
    frames = pattern_frames(10, SIDE)
    noise = np.random.default_rng(0).integers(-1, 2, frames.shape)
    again = np.clip(frames.astype(int) + noise, 0, 255).astype(np.uint8)
    data = load_calibration(write_images(tmp_path, np.concatenate([frames, again])), SIDE)
    assert len(data.frames) + len(data.held_out) == 10


def test_a_set_of_one_repeated_face_is_too_few(tmp_path: Path) -> None:
    write_images(tmp_path, np.repeat(pattern_frames(1, SIDE), 20, axis=0))
    with pytest.raises(CalibrationError, match="only 1 different"):
        load_calibration(tmp_path, SIDE)


def test_a_missing_folder_says_how_to_collect(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="does not exist.*ufr-edge collect"):
        load_calibration(tmp_path / "none", SIDE)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(CalibrationError, match="is not a folder"):
        load_calibration(tmp_path / "a.png", SIDE)


@pytest.mark.parametrize("count", [0, 7])
def test_too_few_images_are_refused(tmp_path: Path, count: int) -> None:
    write_faces(tmp_path, count)
    with pytest.raises(CalibrationError, match=f"holds {count} images.*at least 8.*ufr-edge collect"):
        load_calibration(tmp_path, SIDE)


def test_random_noise_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_images(tmp_path, rng.integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8))
    with pytest.raises(CalibrationError, match="8 of 8 calibration images are random noise"):
        load_calibration(tmp_path, SIDE)


def test_constant_images_are_refused(tmp_path: Path) -> None:
    levels = np.arange(0, 240, 20, dtype=np.uint8)
    write_images(tmp_path, np.broadcast_to(levels[:, None, None, None], (len(levels), SIDE, SIDE, 3)).copy())
    with pytest.raises(CalibrationError, match="12 of 12 calibration images are blank"):
        load_calibration(tmp_path, SIDE)


def test_one_bad_image_among_good_ones_is_named(tmp_path: Path) -> None:
    write_faces(tmp_path, 10)
    cv2.imwrite(str(tmp_path / "005.png"), np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)))
    with pytest.raises(CalibrationError, match=r"1 of 10 .* random noise.*005\.png"):
        load_calibration(tmp_path, SIDE)


def test_a_noisy_camera_is_still_a_camera(tmp_path: Path) -> None:
    frames = pattern_frames(10, SIDE).astype(float)
    noisy = np.clip(frames + np.random.default_rng(0).normal(0, 35, frames.shape), 0, 255).astype(np.uint8)
    assert len(load_calibration(write_images(tmp_path, noisy), SIDE).frames) == 8


def test_images_that_are_not_square_are_refused(tmp_path: Path) -> None:
    write_faces(tmp_path, 10)
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((SIDE, 2 * SIDE, 3), np.uint8))
    with pytest.raises(CalibrationError, match=r"wide\.png is 128x64; aligned faces are square"):
        load_calibration(tmp_path, SIDE)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_faces(tmp_path, 10)
    (tmp_path / "010.png").write_bytes(b"no image")
    with pytest.raises(InputFileError, match=r"010\.png"):
        load_calibration(tmp_path, SIDE)


def test_load_faces_needs_one(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="holds no images"):
        load_faces(tmp_path, SIDE, limit=4)
    assert load_faces(write_faces(tmp_path, 6), SIDE, limit=4).shape == (4, SIDE, SIDE, 3)


def test_neighbour_correlation_tells_pictures_from_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    assert abs(neighbour_correlation(noise)) < 0.1
    assert neighbour_correlation(pattern_frames(1, SIDE)[0]) > 0.8


def test_psnr_of_one_level_everywhere() -> None:
    a = np.full((2, 4, 4, 3), 100, np.uint8)
    assert psnr(a, a) == PSNR_CAP
    assert psnr(a, a + 1) == pytest.approx(48.1308, abs=1e-4)
    parity = compare_frames(a + 3, a)
    assert (parity.max_abs, parity.mean_abs, parity.images) == (3, 3, 2)
    with pytest.raises(ShapeError):
        compare_frames(a, a[:1])
