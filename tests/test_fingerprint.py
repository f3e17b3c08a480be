"""A camera's fingerprint: that it measures what it says, and tells cameras apart but not people."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_bundle import write_tiny_bundle

from ufr_edge.degradations import degrade
from ufr_edge.errors import BundleError, ConfigError, InputFileError, ShapeError
from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import read_bundle, write_manifest
from ufr_edge.runtime.fingerprint import (
    DEGRADATIONS,
    GROUPS,
    NAMES,
    Fingerprint,
    Value,
    combine,
    fingerprint,
    fingerprint_distance,
    looks_of,
    measure_face,
)
from ufr_edge.runtime.fingerprint_files import (
    FINGERPRINT,
    bundle_fingerprint,
    faces_fingerprint,
    write_fingerprint,
)
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import read_image, write_image

FACES = Path(__file__).parents[1] / "ufr_edge" / "demo" / "faces"
SIDE = 128


def people(count: int, *, start: int = 0) -> list[Frame]:
    paths = sorted((FACES / "camera").glob("*.jpg"))[start : start + count]
    return [
        np.asarray(cv2.resize(read_image(p), (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
        for p in paths
    ]


def flat(level: float, sigma: float, *, seed: int = 0, side: int = 256) -> Frame:
    noise = np.random.default_rng(seed).normal(0, sigma, (side, side, 1))
    return np.clip(np.round(np.full((side, side, 3), level) + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [2.0, 5.0, 12.0])
def test_noise_of_a_flat_face_is_read_in_levels(sigma: float) -> None:
    measures = measure_face(flat(130, sigma))
    assert math.exp(measures["noise_2"]) - 0.3 == pytest.approx(sigma, rel=0.12)
    assert abs(measures["correlation"]) < 0.12


def test_noise_is_told_by_brightness_and_only_where_there_is_some() -> None:
    halves = flat(60, 3.0)
    halves[:, 128:] = flat(180, 9.0)[:, 128:]
    measures = measure_face(halves)
    assert math.exp(measures["noise_0"]) - 0.3 == pytest.approx(3.0, rel=0.15)
    assert math.exp(measures["noise_3"]) - 0.3 == pytest.approx(9.0, rel=0.15)
    assert "noise_2" not in measures and "noise_4" not in measures


def test_noise_that_was_enlarged_is_correlated() -> None:
    small = flat(130, 8.0, side=64)
    large = np.asarray(cv2.resize(small, (256, 256), interpolation=cv2.INTER_LINEAR), np.uint8)
    assert measure_face(large)["correlation"] > 0.7


def test_blur_follows_the_gaussian_that_was_applied() -> None:
    steps = np.zeros((256, 256), np.uint8)
    steps[:, 64:128] = 200
    steps[:, 192:] = 200
    found = []
    for sigma in (1.0, 2.0, 4.0):
        soft = cv2.GaussianBlur(steps, (0, 0), sigma)
        found.append(math.exp(measure_face(np.dstack([soft] * 3))["blur"]))
    assert found == sorted(found)
    assert found[1] == pytest.approx(2.0, rel=0.15) and found[2] == pytest.approx(4.0, rel=0.15)


def test_blocks_are_seen_also_after_the_face_was_enlarged_and_in_the_frame_itself() -> None:
    face = people(1)[0]
    coded = cv2.imdecode(cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, 8])[1], cv2.IMREAD_COLOR)
    assert coded is not None
    coded = np.asarray(coded, np.uint8)
    plain = measure_face(face, native=face)
    found = measure_face(coded, native=coded)
    assert found["blocks"] > plain["blocks"] + 0.3
    assert found["blocks_frame"] > plain["blocks_frame"] + 0.3
    larger = [np.asarray(cv2.resize(f, (192, 192)), np.uint8) for f in (face, coded)]
    assert measure_face(larger[1])["blocks"] > measure_face(larger[0])["blocks"] + 0.2


def test_light_is_told() -> None:
    face = np.full((64, 64, 3), (150, 100, 50), np.uint8)
    measures = measure_face(face)
    assert measures["mean"] == pytest.approx(109, abs=2)
    assert measures["red"] == pytest.approx(math.log(151 / 101)) and measures["blue"] < -0.6


@pytest.mark.parametrize("level", [0, 255])
def test_a_black_or_burnt_face_says_nothing_of_noise_and_breaks_nothing(level: int) -> None:
    measures = measure_face(np.full((64, 64, 3), level, np.uint8))
    assert not [name for name in measures if name.startswith("noise")]
    assert all(math.isfinite(value) for value in measures.values())


@pytest.mark.parametrize("shape", [(64, 80, 3), (32, 32, 3), (64, 64)])
def test_refuses_what_is_no_aligned_face(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        measure_face(np.zeros(shape, np.uint8))


def test_names_and_groups_agree() -> None:
    assert set(DEGRADATIONS) < set(GROUPS)
    assert set(measure_face(people(1)[0], native=people(1)[0])) <= set(NAMES)


def shots(preset: str, faces: list[Frame]) -> Fingerprint:
    return fingerprint([degrade(face, preset, seed=n) for n, face in enumerate(faces)])


def test_tells_cameras_apart_but_not_people() -> None:
    some, others = people(16), people(16, start=16)
    ours = shots("raw-iso3000-x4", some)
    same = fingerprint_distance(shots("raw-iso3000-x4", others), ours)
    assert same.value < 3.5
    for preset, cause in (("classic-light", "noise"), ("codec-motion", None)):
        other = fingerprint_distance(shots(preset, others), ours)
        assert other.value > 5.0, preset
        assert cause is None or other.cause == cause


def test_less_light_is_exposure_and_no_degradation() -> None:
    some = people(16)
    dimmed = [np.asarray(cv2.convertScaleAbs(f, alpha=0.7), np.uint8) for f in some]
    ours, dark = shots("raw-iso1500-x4", some), shots("raw-iso1500-x4", dimmed)
    distance = fingerprint_distance(dark, ours)
    assert distance.value < 3.5 < distance.parts["exposure"] + 1
    assert distance.value == max(distance.parts[g] for g in DEGRADATIONS if g in distance.parts)


def test_faces_of_one_track_count_as_few_looks() -> None:
    assert looks_of(1) == 1 and looks_of(1000) == pytest.approx(4, rel=0.01)
    measured = [{"blur": value} for value in (1.0, 1.1, 0.9, 3.0)]
    alone = combine(measured, side=64).values["blur"]
    shared = combine(measured, tracks=["a", "a", "a", "b"], side=64).values["blur"]
    assert alone.looks == 4 and alone.mean == pytest.approx(1.5)
    assert shared.looks == pytest.approx(looks_of(3) + 1)
    assert shared.mean > alone.mean and shared.error > 0


def test_uncertainty_shrinks_with_faces_and_a_difference_that_matters_not_stays_small() -> None:
    def of(mean: float, looks: float) -> Fingerprint:
        return Fingerprint(values={"blur": Value(mean=mean, spread=0.2, looks=looks)}, faces=9, side=64)

    few, many = (fingerprint_distance(of(1.3, n), of(1.0, 100)).value for n in (2, 1000))
    assert few < many
    assert fingerprint_distance(of(1.05, 1e9), of(1.0, 1e9)).value < 1


def test_only_what_both_measured_is_compared() -> None:
    one = Fingerprint(values={"blur": Value(mean=1, spread=0.1, looks=9)}, faces=9, side=64)
    other = Fingerprint(values={"noise_1": Value(mean=1, spread=0.1, looks=9)}, faces=9, side=64)
    distance = fingerprint_distance(one, other)
    assert distance.value == 0 and distance.parts == {} and distance.cause is None
    with pytest.raises(ConfigError, match="64 px and 128 px"):
        fingerprint_distance(one, Fingerprint(values={}, faces=1, side=128))
    with pytest.raises(ConfigError):
        combine([], side=64)


def test_json_and_back() -> None:
    found = fingerprint(people(3))
    again = Fingerprint.from_json(json.loads(json.dumps(found.to_json())))
    assert again.side == SIDE and again.faces == 3 and set(again.values) == set(found.values)
    assert fingerprint_distance(again, found).value < 0.01
    newer = found.to_json()
    newer["values"]["sparkle"] = {"mean": 1, "spread": 1, "looks": 1}
    assert "sparkle" not in Fingerprint.from_json(newer).values


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"values": 3},
        {"side": None},
        {"values": {"blur": {"mean": float("nan"), "spread": 1, "looks": 1}}},
    ],
)
def test_damaged_json_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputFileError):
        Fingerprint.from_json(fingerprint(people(1)).to_json() | change)


def test_folder_index_tells_tracks_and_what_the_frame_showed(tmp_path: Path) -> None:
    faces = people(2)
    lines = []
    for n, face in enumerate(faces):
        write_image(tmp_path / f"{n:08d}.png", face)
        lines.append(
            {"seq": n, "file": f"{n:08d}.png", "track": "0.1", "measures": {"blocks_frame": 0.5 + n}}
        )
    (tmp_path / "index.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = faces_fingerprint(faces, [tmp_path / f"{n:08d}.png" for n in range(2)])
    assert found.values["blocks_frame"].mean == pytest.approx(1.0)
    assert found.values["blur"].looks == pytest.approx(looks_of(2))


def test_a_bundle_carries_it(tmp_path: Path) -> None:
    found = fingerprint(people(3))
    path = write_tiny_bundle(tmp_path / "tiny.ufr")
    plain = read_bundle(path)
    assert bundle_fingerprint(plain) is None
    name = write_fingerprint(path, found)
    files = {**plain.manifest.files, name: sha256_file(path / name)}
    write_manifest(path, replace(plain.manifest, files=files))
    bundle = read_bundle(path)
    read = bundle_fingerprint(bundle)
    assert read is not None and fingerprint_distance(read, found).value < 0.01
    (path / FINGERPRINT).write_text("{}")
    with pytest.raises(BundleError, match="damaged"):
        bundle_fingerprint(bundle)
