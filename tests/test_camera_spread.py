"""The camera of each face: measures, the simulation's rounds, and pairs drawn from what was found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from training_fakes import make_faces

from ufr_edge.adaptation.camera_features import Measure, from_most_lost
from ufr_edge.adaptation.camera_pairs import (
    LOOKS,
    CameraEstimate,
    CameraModel,
    camera_source,
    degrade_all,
    estimate_camera,
    flat_noise,
)
from ufr_edge.adaptation.camera_spread import (
    SETTINGS,
    CameraSpread,
    SpreadConfig,
    estimate_spread,
    keep_camera,
    kept_camera,
)
from ufr_edge.errors import ConfigError, InputFileError, ShapeError

Image = NDArray[np.uint8]
SMALL = SpreadConfig(rounds=2, count=256, near=3, probe=6)


def large_faces(count: int, seed: int) -> Image:
    """make_faces at 128 px."""
    return np.stack([cv2.resize(face, (128, 128)) for face in make_faces(count, seed=seed)])


def unchanged(faces: Image) -> Image:
    """The simplest restorer."""
    return faces


def test_a_direction_is_told_from_the_one_most_lost() -> None:
    lost = np.random.default_rng(0).normal(size=(11, 8))
    lost[:, 3] -= 9
    same = from_most_lost(lost)
    assert same.shape == (11, 5)
    np.testing.assert_allclose(from_most_lost(np.roll(lost, 4, axis=1)), same)
    np.testing.assert_allclose(from_most_lost(lost[:, ::-1]), same)


def test_measures_need_two_faces_of_their_side() -> None:
    face = make_faces(1)[0]
    with pytest.raises(ShapeError, match="64 px"):
        Measure(32)
    with pytest.raises(ShapeError, match="two faces of 64 px"):
        Measure(64)(face, face[:32, :32])
    assert np.isfinite(Measure(64)(face, face)).all()


def test_sensor_and_codec_are_found_near_the_truth() -> None:
    clean = large_faces(40, 3)
    coarse = degrade_all(clean[:20], CameraModel(shrink=2.0, quality=12), seed=1)
    fine = degrade_all(clean[:20], CameraModel(noise=flat_noise(6.0)), seed=1)
    config = SpreadConfig(rounds=1, count=768, near=3, probe=20)
    found = [
        np.median([[m.shrink, m.quality or 100] for m in estimate_spread(lq, clean[20:], unchanged, config).models], axis=0)
        for lq in (coarse, fine)
    ]
    assert 1.4 < found[0][0] < 2.8 and found[0][1] < 35
    assert found[1][0] < found[0][0] and found[1][1] > 50


def test_a_spread_is_reproduced_told_and_drawn_from() -> None:
    clean = make_faces(10)
    lq = degrade_all(clean, CameraModel(noise=flat_noise(12.0)), seed=2)
    looks: list[object] = []
    found = estimate_spread(lq, clean, unchanged, SMALL, seed=4, advance=lambda *_: looks.append(1))
    assert found == estimate_spread(lq, clean, unchanged, SMALL, seed=4)
    assert found.faces == 6 and len(found.models) == 18
    assert len(looks) == SMALL.looks(len(lq)) == 1 + 2 * 256 // 64
    told = found.to_json()
    assert all(len(told[name]) == len(told["percentiles"]) for name in SETTINGS)
    draw = camera_source(clean, found.models, 4, seed=0)
    (bad, good), (again, _) = draw(3, slice(0, 4)), draw(3, slice(2, 4))
    assert bad.shape == good.shape == (4, 64, 64, 3) and (bad != good).any()
    np.testing.assert_array_equal(bad[2:], again)


def test_what_cannot_be_estimated_is_refused() -> None:
    faces = make_faces(3)
    with pytest.raises(ShapeError, match="one side"):
        estimate_spread(faces, large_faces(3, 0), unchanged, SMALL)
    with pytest.raises(ShapeError, match="some of both"):
        estimate_spread(faces[:0], faces, unchanged, SMALL)
    with pytest.raises(ConfigError, match="256"):
        SpreadConfig(count=10)


def test_a_fit_looks_as_often_as_its_bar_is_long() -> None:
    faces, looks = make_faces(2), list[object]()
    estimate_camera(degrade_all(faces, CameraModel(blur=1.0), seed=0), faces, advance=lambda *_: looks.append(1))
    assert len(looks) == LOOKS


def test_a_kept_estimate_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    clean, path = make_faces(6), tmp_path / "run" / "camera-models.json"
    odd = np.random.default_rng(0).uniform(1, 3, 8)
    model = CameraModel(blur=odd[0], shrink=odd[1], noise=tuple(odd[2:7]), chroma=odd[7], quality=31, motion=1 / 3)
    plain = dataclasses.replace(model, quality=None)
    one = CameraEstimate(model=model, distance=odd[0] / 7, before=odd[1] / 7, faces=6)
    for estimate in (one, CameraSpread(models=(model, plain), faces=6)):
        assert kept_camera(path, origin="a") is None
        keep_camera(path, estimate, origin="a")
        found = kept_camera(path, origin="a")
        assert found == estimate and found is not None
        before, after = (getattr(camera, "models", model) for camera in (estimate, found))
        for step in range(3):
            (one_lq, _), (two_lq, _) = (camera_source(clean, m, 4, seed=1)(step, slice(None)) for m in (before, after))
            np.testing.assert_array_equal(one_lq, two_lq)
        assert kept_camera(path, origin="b") is None  # another training's
        path.unlink()


@pytest.mark.parametrize("text", ["{", '{"origin": "a"}', '{"origin": "a", "estimate": {"models": 3, "faces": 1}}'])
def test_a_damaged_estimate_is_refused_with_the_mend(tmp_path: Path, text: str) -> None:
    path = tmp_path / "camera-models.json"
    path.write_text(text)
    with pytest.raises(InputFileError, match="Remove .*camera-models.json: the camera is then estimated again"):
        kept_camera(path, origin="a")
