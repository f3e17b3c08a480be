"""The camera of each face: measures, the simulation's rounds, and pairs drawn from what was found."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from training_fakes import make_faces

from ufr_edge.adaptation.camera_features import Measure, from_most_lost
from ufr_edge.adaptation.camera_pairs import CameraModel, camera_source, degrade_all, flat_noise
from ufr_edge.adaptation.camera_spread import SETTINGS, SpreadConfig, estimate_spread
from ufr_edge.errors import ConfigError, ShapeError

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
    assert len(looks) == 1 + 2 * 256 // 64
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
