"""The benchmarks of endurance, comparison and further faces: their figures and verdicts follow from what was noted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from script_loading import load_script

from ufr_edge.runtime.live.sinks import LiveFrame
from ufr_edge.runtime.live.timecode import TimeCode, draw_code
from ufr_edge.runtime.video.source import SourceFrame

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
COLUMNS = ["seconds", "rss_mib", "descriptors", "threads", "step", "stall_ms", "track", "restore"]


@pytest.fixture(scope="module", autouse=True)
def siblings() -> Iterator[None]:
    """The scripts find each other, as where one of them is run."""
    sys.path.insert(0, BENCHMARKS)
    yield
    sys.path.remove(BENCHMARKS)


@pytest.fixture(scope="module")
def endurance() -> Any:
    return load_script("endurance")


def part(**changes: Any) -> dict[str, Any]:
    """A quiet run of five minutes: a sample each 5 s, its memory growing by 1 MiB a minute after the warm-up."""
    seconds = np.arange(5.0, 301.0, 5.0)
    rss = np.where(seconds < 60, 100.0, 200 + seconds / 60)
    rows = [[s, m, 12, 9, 0, 3.0, 0, 0] for s, m in zip(seconds, rss, strict=True)]
    made: dict[str, Any] = {
        "part": "real",
        "size": "1280x720",
        "rate": 30,
        "page": True,
        "columns": COLUMNS,
        "samples": rows,
        "oldest_ms": [40.0] * len(rows),
        "minutes": [[0, 1800, 20.0, 30.0, 40.0, 50.0], [1, 1800, 20.0, 35.0, 40.0, 61.0]],
        "missing": [],
        "unreadable": 0,
        "stats": {"dropped": {}, "dropped_total": 0, "in_flight": 0, "frames_in": 9000, "frames_out": 9000},
    }
    return made | changes


def dropping(row: int, *, oldest: float = 40.0, stall: float = 3.0, step: int = 0) -> dict[str, Any]:
    """The same, with two frames dropped before a sample."""
    made = part(missing=[900, 901])
    made["stats"] |= {"dropped": {"track": 2}, "dropped_total": 2, "frames_out": 8998}
    for index in range(row, len(made["samples"])):
        made["samples"][index][6] = 2
    made["samples"][row][4:6] = [step, stall]
    made["oldest_ms"][row] = oldest
    return made


def test_growth_is_that_after_the_warm_up_by_thirds(endurance: Any) -> None:
    level, more = endurance.growth(part())
    assert level == pytest.approx(201.7, abs=0.1) and more == pytest.approx(2.7, abs=0.1)
    assert endurance.growth(part(), "threads") == (9, 0)
    short = part(samples=part()["samples"][:1], oldest_ms=[0.0])
    assert np.isnan(endurance.growth(short)[1])
    text = endurance.section({"parts": [short], "bundle": "x", "command": "x", "doubts": []}, "")
    assert "too short to tell" in text and "nan" not in text


@pytest.mark.parametrize(
    ("seen", "cause"),
    [({"oldest": 90.0}, "90 ms old"), ({"stall": 80.0}, "woke 80 ms late"), ({"step": 2}, "ladder was down")],
)
def test_a_drop_is_explained_by_what_was_seen_then(endurance: Any, seen: dict[str, Any], cause: str) -> None:
    run = dropping(6, **seen)
    (drop,) = endurance.drops(run)
    assert (drop.second, drop.count, drop.stages) == (35.0, 2, "2 before track") and cause in drop.causes[0]
    assert endurance.unexplained(run) == 0


def test_drops_that_nothing_explains_or_that_nobody_counted_are_unexplained(endurance: Any) -> None:
    assert endurance.unexplained(part()) == 0
    assert endurance.unexplained(dropping(6)) == 2
    assert endurance.unexplained(part(missing=[7])) == 1
    far = dropping(6)
    far["oldest_ms"][20] = 500.0  # a minute later: no reason
    assert endurance.unexplained(far) == 2


def test_section_and_picture(endurance: Any, tmp_path: Path) -> None:
    steep = part(part="compressed")
    for row in steep["samples"]:
        row[1] = 100 + row[0] / 2
    found = {"parts": [dropping(6), steep], "bundle": "edge-m", "command": "python x", "doubts": ["Busy."]}
    text = endurance.section(found, "endurance.png")
    for line in (
        "> Busy.",
        "| edge-m, real | 5.0 | 9000 | 30.0 | 202 | +2.7 | 12 +0 | 9 +0 | 2 | 2 |",
        "- real: growth under 20 MB and no unexplained drop: NOT kept",
        "p95 of each of 2 minutes: median 32.5 ms, first 30.0, last 35.0, worst 35.0 (minute 2); oldest frame of all 61 ms",
        "| real | 35 | 2 before track | UNEXPLAINED |",
        "![Memory and latency over time](endurance.png)",
    ):
        assert line in text, line
    assert "- compressed: growth under 20 MB and no unexplained drop: NOT kept" in text
    kept = endurance.section(found | {"parts": [part()]}, "")
    assert "- real: growth under 20 MB and no unexplained drop: kept" in kept and "![" not in kept
    pytest.importorskip("matplotlib")
    endurance.draw(found["parts"], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 2000


def test_a_part_that_is_left_out_is_taken_as_it_was(
    endurance: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    ran: list[str] = []

    def run_part(_: object, name: str, *rest: object) -> dict[str, Any]:
        ran.append(name)
        return part(part=name)

    (tmp_path / "real.json").write_text(json.dumps(part()), encoding="utf-8")
    monkeypatch.setattr(endurance, "run_part", run_part)
    endurance.run(endurance.parse(["a.ufr", "-o", str(tmp_path), "--minutes", "0", "--frames", "600"]))
    text = (tmp_path / "section.md").read_text(encoding="utf-8")
    assert ran == ["compressed"] and "endurance.py a.ufr --minutes 5 --frames 600" in text
    assert "| a, real | 5.0 |" in text and "| a, compressed | 5.0 |" in text
    endurance.run(
        endurance.parse(["a.ufr", "-o", str(tmp_path / "new"), "--minutes", "0", "--frames", "600"])
    )
    assert "a, real" not in (tmp_path / "new" / "section.md").read_text(encoding="utf-8")


def test_the_ledger_knows_by_number_which_frames_came() -> None:
    run = load_script("endurance_run")
    ledger = run.Ledger(6)
    for number in (0, 1, 3, 9):
        image = np.zeros((64, 512, 3), np.uint8)
        draw_code(image, TimeCode(ledger._started, number))
        frame = SourceFrame(
            index=number,
            pts=number,
            time_base=run.fast_camera("512x64", 30, 1)(None, None).info.time_base,
            image=image,
        )
        ledger.write(LiveFrame(frame=frame, original=image))
    assert ledger.missing(5) == [2, 4] and ledger.unreadable == 1  # 9 is none of its frames
    assert [row[:2] for row in ledger.minutes()] == [[0, 3]]
    assert 0 <= ledger.oldest(0, 60) < 60_000 and ledger.oldest(60, 120) == 0


def test_the_fast_camera_numbers_its_frames_and_waits_for_nobody() -> None:
    run = load_script("endurance_run")
    frames = list(run.fast_camera("320x180", 30, 4)(_Never(), None).frames())
    assert [run.read_code(frame.image).number for frame in frames] == [0, 1, 2, 3]
    assert [round(frame.seconds * 30) for frame in frames] == [0, 1, 2, 3]


class _Never:
    """An event that nobody sets."""

    def is_set(self) -> bool:
        return False


def test_comparison_takes_the_slower_of_ours(tmp_path: Path) -> None:
    comparison = load_script("comparison")
    theirs = [
        {
            "name": "A",
            "parameters": 15_792_587,
            "frames": 6,
            "frames_per_second": 0.8,
            "stage_ms": {"restore": 1200.0},
        },
        {
            "name": "B",
            "parameters": 94_112_707,
            "frames": 6,
            "frames_per_second": 0.2,
            "stage_ms": {"restore": 4300.0},
        },
    ]
    found = {
        "doubts": [],
        "size": "1280x720",
        "threads": 2,
        "torch": "2",
        "command": "python x",
        "theirs": theirs,
        "ours": [
            {"name": "fast", "side": 256, "frames": 300, "frames_per_second": [44.0, 40.0]},
            {"name": "slow", "side": 512, "frames": 300, "frames_per_second": [20.0, 21.0]},
        ],
    }
    text = comparison.section(found)
    assert "| fast, `ufr-edge run` | 256 |  |  | 40.0 | 2 x 300 |  |  |" in text
    assert "| A, PyTorch | 512 | 15.8 M | 1200 | 0.800 | 6 | 50 x | 25 x |" in text
    assert "- fast: at least 30 times the frame rate of each: kept (least 50 x)" in text
    assert "- slow: at least 30 times the frame rate of each: NOT kept (least 25 x)" in text


def test_a_network_in_pytorch_stands_where_an_engine_would() -> None:
    torch = pytest.importorskip("torch")
    comparison = load_script("comparison")

    class Brighter(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, image: Any) -> Any:
            return image + 0.5

    engine = comparison.EagerEngine(Brighter(), "brighter", threads=1)
    batch = np.full((2, 8, 8, 3), 100, np.uint8)
    batch[1] = 200
    made = engine.infer(batch)
    assert made.shape == batch.shape and made.dtype == np.uint8
    assert int(made[0].max()) in (227, 228) and int(made[1].min()) == 255
    assert [comparison.PUBLISHED[name].label for name in comparison.NETWORKS] == [
        "GFPGAN v1.4",
        "CodeFormer",
        "SwinIR (the paper's)",
    ]


def test_a_further_face_is_told_in_times_of_the_engine() -> None:
    faces = load_script("faces")
    one = {
        "name": "edge",
        "engine_ms": 10.0,
        "whole_ms": {1: 30.0, 2: 44.0, 4: 70.0},
        "further_ms": {2: 14.0, 4: 12.5},
        "stages_ms": {1: {"restore": 11.0}, 2: {"restore": 22.0}, 4: {"restore": 41.0}},
        "stream_ms": {1: 20.0, 2: 34.0, 4: 65.0},
        "stream_further_ms": {2: 14.0, 4: 15.0},
    }
    text = faces.section({"bundles": [one], "doubts": [], "command": "python x"})
    assert "| edge | 4 |  | 70.0 | 12.5 | 1.25 | 65.0 | 15.0 | 1.50 |" in text
    assert "in turn 1.25 x (kept), in the stream's threads 1.50 x (NOT kept)" in text
    assert "| edge | restore | 11.0 | 10.00 |" in text
    assert faces.crowd(2).shape == (720, 1280, 3)
