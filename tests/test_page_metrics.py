"""What /metrics tells of drift and of the version that runs, where a stream has them."""

from __future__ import annotations

import pytest
from live_fakes import drift_watch

from ufr_edge.runtime.live.stats import Labels, LiveStats, StatsBoard

pytest.importorskip("aiohttp", reason="needs the extra `live`")
from ufr_edge.runtime.live.page_board import metrics_text


def samples(stats: LiveStats) -> dict[str, float]:
    """Every sample by its name and labels."""
    text = metrics_text(stats, memory=1, viewers=0, healthy=True)
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def watched(*, distance: float | None, raised: bool) -> LiveStats:
    """Numbers of a stream that watches for drift."""
    board = StatsBoard(Labels())
    board.watch_faces(lambda: drift_watch(distance=distance, raised=raised))
    return board.snapshot()


@pytest.mark.parametrize("raised", [False, True])
def test_drift_has_its_distance_its_limit_and_whether_it_is_raised(raised: bool) -> None:
    found = samples(watched(distance=6.5 if raised else 1.5, raised=raised))
    assert found["ufr_drift"] == (6.5 if raised else 1.5)
    assert found["ufr_drift_limit"] == 5 and found["ufr_drifted"] == raised


def test_an_alarm_on_drift_is_there_before_enough_faces_were_seen() -> None:
    found = samples(watched(distance=None, raised=False))
    assert found["ufr_drifted"] == 0 and "ufr_drift" not in found


def test_the_version_that_runs_is_a_number_and_a_label() -> None:
    found = samples(StatsBoard(Labels(engine="edge", bundle_version=3)).snapshot())
    assert found["ufr_bundle_version"] == 3
    (info,) = [name for name in found if name.startswith("ufr_engine_info")]
    assert 'bundle_version="3"' in info and found[info] == 1


def test_a_stream_without_them_tells_nothing_of_them() -> None:
    found = samples(StatsBoard(Labels(engine="edge")).snapshot())
    assert not [name for name in found if "drift" in name or "bundle" in name]
