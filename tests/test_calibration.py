"""Calibration frames: chosen the same way every time, and refused when they are no faces."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from export_helpers import ANY_PICTURES, SIDE, write_faces, write_images

from ufr_edge.calibration.choose import farthest_points
from ufr_edge.calibration.compare import PSNR_CAP, compare_frames, pattern_frames, psnr
from ufr_edge.calibration.frames import (
    CalibrationConfig,
    CalibrationSet,
    load_calibration,
    load_faces,
    neighbour_correlation,
)
from ufr_edge.errors import CalibrationError, ConfigError, InputFileError, ShapeError


def files_of(package: str) -> Path:
    return Path(str(resources.files(package)))


def _load(folder: Path) -> CalibrationSet:
    return load_calibration(folder, SIDE, config=ANY_PICTURES)


def test_frames_come_resized_and_in_a_fixed_order(tmp_path: Path) -> None:
    folder = write_faces(tmp_path, 20, side=96)
    first, second = _load(folder), _load(folder)
    assert first.frames.shape == (16, SIDE, SIDE, 3)
    assert first.frames.dtype == np.uint8
    assert first.held_out.shape == (4, SIDE, SIDE, 3)
    assert len(first.paths) == 16
    assert first.set_id == second.set_id
    assert len(first.set_id) == 64


def test_held_out_frames_are_not_calibrated_on(tmp_path: Path) -> None:
    data = _load(write_faces(tmp_path, 20))
    gaps = [
        np.abs(data.frames.astype(int) - one.astype(int)).mean(axis=(1, 2, 3)).min() for one in data.held_out
    ]
    assert min(gaps) > 1


def test_the_set_id_follows_the_pixels(tmp_path: Path) -> None:
    folder = write_faces(tmp_path, 12)
    before = _load(folder).set_id
    (folder / "000.png").rename(folder / "0000.png")
    assert _load(folder).set_id == before
    write_images(folder, pattern_frames(1, SIDE, seed=99))
    assert _load(folder).set_id != before


def test_the_limit_takes_frames_that_differ(tmp_path: Path) -> None:
    """One bright and one blurred frame among many alike: both are chosen, by whatever seed."""
    usual = pattern_frames(1, SIDE)[0].astype(float)
    rng = np.random.default_rng(1)
    frames = np.stack([np.clip(usual + rng.normal(0, 8, usual.shape), 0, 255) for _ in range(40)])
    frames[7] = np.clip(usual * 0.4 + 150, 0, 255)
    frames[23] = cv2.GaussianBlur(usual, (0, 0), 5)
    write_images(tmp_path, frames.astype(np.uint8))
    for seed in (0, 1):
        data = load_calibration(tmp_path, SIDE, config=replace(ANY_PICTURES, limit=8, seed=seed))
        assert len(data.frames) == 8
        assert {"007.png", "023.png"} <= {path.name for path in data.paths}
        assert list(data.paths) == sorted(data.paths)


def test_the_choice_follows_from_the_seed(tmp_path: Path) -> None:
    write_faces(tmp_path, 40)
    chosen = [
        load_calibration(tmp_path, SIDE, config=replace(ANY_PICTURES, limit=8, seed=seed)).record()
        for seed in (3, 3, 4)
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0]["chosen"] != chosen[2]["chosen"]
    assert chosen[0]["found"] == 40
    assert not set(chosen[0]["chosen"]) & set(chosen[0]["held_out"])


def test_farthest_points_cover_every_cluster() -> None:
    clusters = np.repeat(np.eye(5, dtype=np.float32) * 10, [50, 1, 1, 1, 1], axis=0)
    for seed in range(4):
        taken = farthest_points(clusters, 5, seed=seed)
        assert len({clusters[i].argmax() for i in taken}) == 5
    assert sorted(farthest_points(clusters, 99)) == list(range(54))


def test_pictures_without_faces_are_refused(tmp_path: Path) -> None:
    write_faces(tmp_path, 12, side=128)
    with pytest.raises(CalibrationError, match="a face was found in 0 of 12 pictures.*ufr-edge collect"):
        load_calibration(tmp_path, SIDE)


def test_real_faces_are_taken(tmp_path: Path) -> None:
    files = sorted((files_of("ufr_edge.demo") / "faces").rglob("*.jpg"))[:12]
    for path in files:
        shutil.copy(path, tmp_path / path.name)
    data = load_calibration(tmp_path, SIDE)
    assert len(data.frames) + len(data.held_out) == len(files)


@pytest.mark.parametrize("settings", [{"limit": 4}, {"seed": -1}, {"percentile": 30.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="alibration"):
        CalibrationConfig(**settings)


def test_near_duplicates_count_once(tmp_path: Path) -> None:
    frames = pattern_frames(10, SIDE)
    noise = np.random.default_rng(0).integers(-1, 2, frames.shape)
    again = np.clip(frames.astype(int) + noise, 0, 255).astype(np.uint8)
    data = _load(write_images(tmp_path, np.concatenate([frames, again])))
    assert len(data.frames) + len(data.held_out) == 10


def test_a_set_of_one_repeated_face_is_too_few(tmp_path: Path) -> None:
    write_images(tmp_path, np.repeat(pattern_frames(1, SIDE), 20, axis=0))
    with pytest.raises(CalibrationError, match="only 1 different"):
        _load(tmp_path)


def test_a_missing_folder_says_how_to_collect(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="does not exist.*ufr-edge collect"):
        _load(tmp_path / "none")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(CalibrationError, match="is not a folder"):
        _load(tmp_path / "a.png")


@pytest.mark.parametrize("count", [0, 7])
def test_too_few_images_are_refused(tmp_path: Path, count: int) -> None:
    write_faces(tmp_path, count)
    with pytest.raises(CalibrationError, match=f"holds {count} images.*at least 8.*ufr-edge collect"):
        _load(tmp_path)


def test_random_noise_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_images(tmp_path, rng.integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8))
    with pytest.raises(CalibrationError, match="8 of 8 calibration images are random noise"):
        _load(tmp_path)


def test_constant_images_are_refused(tmp_path: Path) -> None:
    levels = np.arange(0, 240, 20, dtype=np.uint8)
    write_images(tmp_path, np.broadcast_to(levels[:, None, None, None], (len(levels), SIDE, SIDE, 3)).copy())
    with pytest.raises(CalibrationError, match="12 of 12 calibration images are blank"):
        _load(tmp_path)


def _spoil(folder: Path, count: int) -> None:
    """Turn the first `count` pictures into noise and black ones."""
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3))
        cv2.imwrite(str(folder / f"{number:03d}.png"), noise if number % 2 == 0 else 0 * noise)


def test_a_bad_image_among_good_ones_is_left_out_and_recorded(tmp_path: Path) -> None:
    write_faces(tmp_path, 12)
    _spoil(tmp_path, 3)
    data = _load(tmp_path)
    assert data.bad == ("000.png", "001.png", "002.png")
    assert data.record()["left_out"] == list(data.bad)
    assert len(data.frames) + len(data.held_out) == 9
    assert not {path.name for path in (*data.paths, *data.held_paths)} & set(data.bad)


def test_more_than_a_quarter_of_bad_images_is_refused(tmp_path: Path) -> None:
    write_faces(tmp_path, 12)
    _spoil(tmp_path, 4)
    with pytest.raises(CalibrationError, match=r"4 of 12 .* blank or random noise.*000\.png"):
        _load(tmp_path)


def test_a_noisy_camera_is_still_a_camera(tmp_path: Path) -> None:
    frames = pattern_frames(10, SIDE).astype(float)
    noisy = np.clip(frames + np.random.default_rng(0).normal(0, 35, frames.shape), 0, 255).astype(np.uint8)
    assert len(_load(write_images(tmp_path, noisy)).frames) == 8


def test_images_that_are_not_square_are_refused(tmp_path: Path) -> None:
    write_faces(tmp_path, 10)
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((SIDE, 2 * SIDE, 3), np.uint8))
    with pytest.raises(CalibrationError, match=r"wide\.png is 128x64; aligned faces are square"):
        _load(tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_faces(tmp_path, 10)
    (tmp_path / "010.png").write_bytes(b"no image")
    with pytest.raises(InputFileError, match=r"010\.png"):
        _load(tmp_path)


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


def test_nobody_is_both_calibrated_and_measured_on(tmp_path: Path) -> None:
    folder = write_faces(tmp_path, 24)
    for path in folder.glob("*.png"):
        path.rename(folder / f"{int(path.stem):06d}.png")

    def index(people: int) -> None:
        rows = [
            {"seq": i, "file": f"{i:06d}.png", "time": float(i), "track": f"t{i % people}", "size": 1, "look": [0, 0, 0, 0]}
            for i in range(24)
        ]  # fmt: skip
        (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    for people in (6, 3):
        index(people)
        data = _load(folder)
        seen, held = ({int(path.stem) % people for path in paths} for paths in (data.paths, data.held_paths))
        assert held and seen and not held & seen
        assert len(data.paths) + len(data.held_paths) == 24
    few = load_calibration(folder, SIDE, config=replace(ANY_PICTURES, hold_out=2))
    assert len(few.held_out) == 2 and not {int(p.stem) % 3 for p in few.held_paths} & {
        int(p.stem) % 3 for p in few.paths
    }
    none = load_calibration(folder, SIDE, config=replace(ANY_PICTURES, hold_out=0))
    assert len(none.frames) == 24 and not len(none.held_out)
    index(1)  # one person alone: other frames of them
    assert len(_load(folder).held_paths) == 4
