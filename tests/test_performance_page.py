"""The page of performance: its figures come from the reports, and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from clips import read_clip
from script_loading import load_script

from ufr_edge.runtime.machine import PowerState
from ufr_edge.runtime.motion_metrics import MotionFigures

QUIET = PowerState(governor=None, turbo=None, on_mains=None, load=0.1, cores=2)
BUSY = PowerState(governor=None, turbo=None, on_mains=None, load=9.0, cores=2)


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("performance")


def measured(script: Any) -> object:
    stage = {"name": "restore", "p50_ms": 7.25, "p95_ms": 9.0, "p99_ms": 11.0}
    report = {"frames_per_second": 41.23, "frames_out": 150, "stages": [stage]}
    stats = {"engine": "openvino int8", "seconds": 20.0, "frames_in": 600, "dropped_total": 3, "late": 2}
    live = script.Live(
        stats=stats,
        ages_ms=[float(n) for n in range(101)],
        unreadable=0,
        memory=[(float(n), 200.0 if n < 4 else 300.0 + n / 10) for n in range(21)],
        events=[{"kind": "start", "text": "x"}, {"kind": "ladder", "text": "full -> smaller"}],
    )
    figures = MotionFigures(flicker=4.0, jitter_px=0.2, psnr_db=30.0, restored=1.0, identities=1)
    steady = MotionFigures(flicker=1.0, jitter_px=0.2, psnr_db=31.0, restored=1.0, identities=1)
    motion = {"still": {"without": figures, "with": steady}}
    return script.Measured("edge-m", {"720p": report}, live, motion)


def test_page_holds_what_was_measured(script: Any) -> None:
    text = script.page([measured(script)], QUIET, "python benchmarks/performance.py x.ufr", "latency.png")
    for row in (
        "| edge-m | 720p | 41.2 | 150 |",
        "| edge-m 720p | restore | 7.2 | 9.0 | 11.0 |",
        "| edge-m | 20 | 50.0 | 95.0 | 99.0 | 600 | 3 | 2 | 300 | +1.6 |",
        "| edge-m | still | with | 1.00 | 75 % | 0.20 | 31.00 | 1 |",
        "- edge-m: ladder: full -> smaller",
        "![Latency of every frame](latency.png)",
    ):
        assert row in text, row
    assert "busy" not in text
    assert "The machine is busy" in script.page([measured(script)], BUSY, "x", "")


def test_memory_growth_leaves_the_warm_up_out(script: Any) -> None:
    assert script.memory_growth([]) == (0.0, 0.0)
    flat = [(float(n), 100.0 if n < 20 else 250.0) for n in range(101)]
    assert script.memory_growth(flat) == (250.0, 250.0)


def test_clip_and_histogram_are_made(script: Any, tmp_path: Path) -> None:
    script.make_clip(tmp_path / "a.mp4", (128, 96), 3)
    assert len(read_clip(tmp_path / "a.mp4")) == 3
    pytest.importorskip("matplotlib")
    script.draw_latency([measured(script)], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 2000


def test_choice_and_command_line(script: Any) -> None:
    assert script.Choice.parse("a/b.ufr:openvino-int8").label == "b openvino-int8"
    assert script.Choice.parse("a/b.ufr").engine is None
    assert script.parse(["--quick", "a.ufr"]).quick


def test_sections_of_other_benchmarks_are_taken_in(script: Any, tmp_path: Path) -> None:
    folders = [tmp_path / "endurance", tmp_path / "faces"]
    for folder in folders:
        folder.mkdir()
        (folder / "section.md").write_text(f"## Of {folder.name}\n\nx\n\n", encoding="utf-8")
    text = script.page([measured(script)], QUIET, "x", "", folders)
    assert text.index("## Steadiness") < text.index("## Of endurance") < text.index("## Of faces")
    assert text.endswith("## Of faces\n\nx\n") and "## Of" not in script.page(
        [measured(script)], QUIET, "x", ""
    )


def test_a_folder_that_holds_no_section_is_refused_before_anything_is_measured(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert script.main(["a.ufr", "--quick", "-o", str(output), "--take", str(tmp_path)]) == 1
    assert "holds no section.md" in capsys.readouterr().err and not output.exists()
