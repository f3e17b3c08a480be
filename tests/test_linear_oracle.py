"""The linear yardstick of docs/quality.md: it obeys what can be said without measuring."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from script_loading import load_script
from training_fakes import make_faces

from ufr_edge.degradations.classic import ClassicParams
from ufr_edge.runtime.frame import Frame

CLEAR = ClassicParams(sigma_x=0.1, sigma_y=0.1, angle=0.3, scale=0.8, noise=0.0, quality=100)


@pytest.fixture
def face() -> Frame:
    return np.asarray(make_faces(1)[0])


def test_the_spectrum_has_the_energy_of_the_face(face: Frame) -> None:
    module = load_script("linear_oracle")
    energy = (face.astype(np.float64) ** 2).sum()
    assert module.power(face).sum() == pytest.approx(energy)


def test_what_is_lost_grows_with_each_part_of_a_degradation(face: Frame) -> None:
    errors = load_script("linear_oracle").errors
    cut, left = errors(face, CLEAR)
    assert cut == 0 and left < 1e-6
    noisy = dataclasses.replace(CLEAR, noise=10.0)
    blurred = dataclasses.replace(noisy, sigma_x=8.0, sigma_y=8.0)
    small = dataclasses.replace(blurred, scale=16.0)
    found = [errors(face, params) for params in (noisy, blurred, small)]
    assert 0 < found[0][1] <= 100 + 1e-6  # no more than the noise itself
    assert found[0][1] < found[1][1] < found[2][1]
    assert found[0][0] == found[1][0] == 0 < found[2][0] < found[2][1]


def test_a_motionless_blur_passes_slow_waves_alone() -> None:
    module = load_script("linear_oracle")
    params = dataclasses.replace(CLEAR, sigma_x=8.0, sigma_y=2.0, angle=0.0)
    across, down = np.array([0.0, 0.2, 0.0]), np.array([0.0, 0.0, 0.2])
    still, along, beside = module.blur_response(params, across, down, 256)
    assert still == 1 and along < 0.01 < beside < 1


def test_the_table_is_written_from_the_record() -> None:
    module = load_script("linear_oracle")
    figures = {"classic-light": {"psnr_db": 26.0, "gain_sensor_db": 9.0, "gain_wiener_db": 2.0}}
    record = {"command": module.COMMAND, "faces": 3, "side": 64, "figures": figures}
    assert "| classic-light | 26.00 | +2.00 | +9.00 |" in module.section(record)[-1]
