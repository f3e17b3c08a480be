"""Drift: raised when the camera has changed for some time, cleared when it is the old one again, and only then."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.drift import DriftConfig, DriftMonitor
from ufr_edge.runtime.fingerprint import Fingerprint, Value

REFERENCE = Fingerprint(
    values={
        "noise_1": Value(mean=1.5, spread=0.1, looks=100),
        "blur": Value(mean=0.7, spread=0.15, looks=100),
        "mean": Value(mean=110.0, spread=20.0, looks=100),
    },
    faces=100,
    side=256,
)


def face(rng: np.random.Generator, *, noise: float = 1.5, light: float = 110.0) -> dict[str, float]:
    return {
        "noise_1": float(rng.normal(noise, 0.1)),
        "blur": float(rng.normal(0.7, 0.15)),
        "mean": float(rng.normal(light, 20.0)),
    }


def feed(
    monitor: DriftMonitor,
    seconds: range,
    *,
    noise: float = 1.5,
    light: Callable[[int], float] = lambda _: 110.0,
    stay: int = 5,
    seed: int = 0,
) -> list[tuple[int, str]]:
    """One vote a second, a new track every `stay` seconds; what changed, and when."""
    rng = np.random.default_rng((seed, seconds.start))
    changes: list[tuple[int, str]] = []
    for second in seconds:
        measures = face(rng, noise=noise, light=light(second))
        change = monitor.observe(measures, track=second // stay, time_s=float(second))
        if change is not None:
            changes.append((second, change))
    return changes


def test_an_hour_of_the_unchanged_camera_raises_nothing() -> None:
    for seed in range(3):
        monitor = DriftMonitor(REFERENCE)
        assert feed(monitor, range(3600), seed=seed) == []
        assert monitor.state.votes == 3600 and monitor.state.faces == 40


def test_another_camera_is_raised_within_a_minute_and_cleared_when_the_old_one_is_back() -> None:
    monitor = DriftMonitor(REFERENCE)
    assert feed(monitor, range(300)) == []
    (raised,) = feed(monitor, range(300, 600), noise=2.6)
    assert raised[1] == "raised" and raised[0] - 300 <= 60
    state = monitor.state
    assert state.raised and state.since == raised[0] and state.cause == "noise" and state.raises == 1
    assert "noise" in state.describe() and state.to_json()["parts"]["noise"] > 5
    (cleared,) = feed(monitor, range(600, 900))
    assert cleared[1] == "cleared" and not monitor.state.raised and monitor.state.since is None


def test_the_light_of_a_day_raises_nothing() -> None:
    monitor = DriftMonitor(REFERENCE)
    assert feed(monitor, range(7200), light=lambda s: 110 + 80 * float(np.sin(s / 1000))) == []
    assert dict(monitor.state.parts)["exposure"] > 1


def test_a_short_disturbance_raises_nothing() -> None:
    monitor = DriftMonitor(REFERENCE, DriftConfig(raise_s=30))
    feed(monitor, range(100))
    assert feed(monitor, range(100, 118), noise=2.6) + feed(monitor, range(118, 200)) == []


def test_between_the_limits_it_stays_as_it_is() -> None:
    config = DriftConfig(raise_at=6, clear_below=2, raise_s=0, clear_s=0)
    monitor = DriftMonitor(REFERENCE, config)
    middle = 1.5 + 4 * 0.125  # about four units of uncertainty
    assert feed(monitor, range(200), noise=middle) == []
    feed(monitor, range(200, 300), noise=2.6)
    assert monitor.state.raised
    assert feed(monitor, range(300, 500), noise=middle) == [] and monitor.state.raised


def test_one_who_stands_there_votes_once_a_second_and_counts_little() -> None:
    monitor = DriftMonitor(REFERENCE)
    odd = {"noise_1": 1.5, "blur": 1.15, "mean": 110.0}  # a smooth face: three spreads off
    for number in range(30 * 120):  # 30 frames a second for two minutes
        assert monitor.observe(odd, track=1, time_s=number / 30) is None
    assert monitor.state.votes == pytest.approx(120, abs=5)
    several = DriftMonitor(REFERENCE)
    changes = [several.observe(odd, track=n, time_s=float(n)) for n in range(120)]
    assert "raised" in changes  # what many people show is the camera


def test_too_few_faces_say_nothing() -> None:
    monitor = DriftMonitor(REFERENCE, DriftConfig(fewest=20))
    assert feed(monitor, range(19), noise=9.0) == []
    assert monitor.state.distance is None and "too few" in monitor.state.describe()
    assert DriftMonitor(REFERENCE).state.distance is None


def test_old_faces_leave_the_window_by_age() -> None:
    monitor = DriftMonitor(REFERENCE, DriftConfig(seconds=60))
    feed(monitor, range(40))
    monitor.observe(face(np.random.default_rng(1)), track=999, time_s=5000.0)
    assert monitor.state.faces == 1 and monitor.state.distance is None


def test_a_clock_that_jumps_back_begins_anew() -> None:
    monitor = DriftMonitor(REFERENCE)
    feed(monitor, range(1000, 1030))
    assert monitor.state.faces == 30
    assert monitor.due(5, 3.0)
    monitor.observe(face(np.random.default_rng(1)), track=5, time_s=3.0)
    assert monitor.state.faces == 1
    assert not monitor.due(5, 3.5) and monitor.due(5, 4.0)


def test_tracks_are_not_remembered_for_ever() -> None:
    monitor = DriftMonitor(REFERENCE)
    rng = np.random.default_rng(0)
    for number in itertools.islice(itertools.count(), 5000):
        monitor.observe(face(rng), track=number, time_s=number * 0.001)
    assert len(monitor._last) <= 4096


@pytest.mark.parametrize(
    "wrong",
    [
        {"raise_at": 2.0, "clear_below": 3.0},
        {"clear_below": 0.0},
        {"fewest": 1},
        {"fewest": 50, "faces": 40},
        {"seconds": 0.0},
        {"raise_s": -1.0},
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        DriftConfig(**wrong)  # type: ignore[arg-type]
