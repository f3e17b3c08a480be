"""benchmarks/swap.py and swap_memory.py: what they count, the trap, the versions, and the rows they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import StubEngine
from script_loading import load_script
from tiny_bundle import write_tiny_bundle

from ufr_edge.errors import InferenceError
from ufr_edge.runtime.live.stages import Engines
from ufr_edge.runtime.live.swap import Loaded
from ufr_edge.runtime.version_link import linked_number
from ufr_edge.runtime.versions import history

pytest.importorskip("aiohttp", reason="needs the extra `live`")
FACE = np.full((1, 8, 8, 3), 100, np.uint8)


def test_frames_are_counted_by_when_they_were_captured() -> None:
    swap_run = load_script("swap_run")
    captured = [0.0, 0.1, 0.2, 0.3, 0.4]
    came = [
        (0, 0.05),
        (1, 0.35),
        (3, 0.31),
        (3, 0.32),
        (4, 0.9),
    ]  # 2 never came, 3 came twice, 1 and 4 were late
    assert swap_run.count(captured, came, (0.1, 0.4), 100.0) == {
        "seconds": pytest.approx(0.3),
        "in": 3,
        "out": 2,
        "dropped": 1,
        "duplicated": 1,
        "late": 1,
    }


def test_the_trap_times_the_first_throw_and_the_first_answer_after_it() -> None:
    swap_run = load_script("swap_run")
    trap = swap_run.Trap()
    good, bad = (
        swap_run.trapped(
            Loaded(number=number, engines=Engines(full=StubEngine()), close=int), trap
        ).engines.full
        for number in (1, swap_run.BAD)
    )
    assert good.infer(FACE).shape == bad.infer(FACE).shape == FACE.shape
    assert (trap.thrown, trap.answered) == (None, None)  # not set: both are as any engine
    trap.set = True
    for _ in range(2):
        with pytest.raises(InferenceError):
            bad.infer(FACE)
    thrown = trap.thrown
    good.infer(FACE)
    answered = trap.answered
    assert thrown is not None and answered is not None and thrown <= answered
    good.infer(FACE)
    assert trap.answered == answered
    trap.reset()
    assert bad.infer(FACE).shape == FACE.shape


def test_three_versions_are_installed_and_the_first_runs(tmp_path: Path) -> None:
    swap_run = load_script("swap_run")
    door = swap_run.install(write_tiny_bundle(tmp_path / "tiny.ufr"), tmp_path)
    assert [version.number for version in history(door)] == [1, 2, 3] and linked_number(door) == 1


def found(**changes: Any) -> dict[str, Any]:
    span = {"seconds": 4.0, "in": 120, "out": 120, "dropped": 0, "duplicated": 0, "late": 0}
    size = {"rss_mib": 300.0, "descriptors": 7, "threads": 16}
    stats = {"width": 1280, "height": 720, "engine": "openvino", "deadline_ms": 100.0, "failed": 0}
    return {
        "doubts": [],
        "machine": "a box",
        "command": "python x",
        "stats": stats,
        "refused": 0,
        "spans": {
            "near": [span, {**span, "late": 2}],
            "near floor": [{**span, "out": 118, "dropped": 2}],
            "whole": [],
            "whole floor": [],
            "back": [span],
        },
        "back_ms": [10.0, 30.0],
        "sizes": [size, {**size, "rss_mib": 310.0}, {**size, "rss_mib": 311.0}],
    } | changes


def test_the_rows_tell_asked_and_measured() -> None:
    text = load_script("swap").section(found())
    for row in (
        "| frames dropped over 2 swaps (2 s before to 2 s after) | ≤ 0 frames | 0 frames | yes |",
        "| frames over the deadline, worst swap | ≤ 1 frames | 2 frames | **no** |",
        "| from the first throw to the old engine, longest of 2 | ≤ 2 s | 0.03 s | yes |",
        "| descriptors grown after the first swap | ≤ 0 open | 0 open | yes |",
        "| 2 s before a swap to 2 s after | 2 | 8 | 240 | 240 | 0 | 0 | 2 | 2 |",
        "| as long without one | 1 | 4 | 120 | 118 | 2 | 0 | 0 | 0 |",
        "p50 20.0 ms, p95 29.0 ms, longest 30.0 ms",
        "rss_mib 300 before and 311 after, descriptors 7 before and 7 after",
    ):
        assert row in text, row


def test_what_was_not_measured_is_told_so() -> None:
    none = found(back_ms=[], sizes=found()["sizes"][:1], spans={name: [] for name in found()["spans"]})
    text = load_script("swap").section(none)
    assert text.count("| not measured | - |") == 5 and "nan" not in text


def test_probation_must_outlast_the_throw(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script("swap").parse(["b.ufr", "--probation-seconds", "1"])
    assert "3 or more" in capsys.readouterr().err


def test_memory_is_judged_after_the_allocator_has_settled() -> None:
    """300 swaps: 20 MiB in the first hundred, then nothing, or one MiB every ten swaps."""
    memory = load_script("swap_memory")
    base = {"descriptors": 7, "threads": 16}
    settled = [{"rss_mib": 280.0 + min(number, 100) / 5, **base} for number in range(301)]
    growing = [{"rss_mib": 280.0 + number / 10, **base} for number in range(301)]
    text = memory.section(found(sizes=settled))
    assert "| memory grown over the last two thirds of 300 swaps | < 10 MB | 0 MB | yes |" in text
    assert "281.0" not in text and "before the first swap 280.0" in text
    assert "17.5 MB | **no** |" in memory.section(found(sizes=growing))
    leaking = [{**size, "descriptors": 7 + number} for number, size in enumerate(settled)]
    assert "| descriptors grown over 300 swaps | ≤ 0 open | 299 open | **no** |" in memory.section(
        found(sizes=leaking)
    )
