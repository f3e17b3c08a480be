"""The tables of what was asked: their figures come from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from script_loading import load_script

RUNS = Path(__file__).parents[1] / "runs"


@pytest.fixture(scope="module")
def asked() -> Any:
    return load_script("asked")


def record(side: int, times: dict[str, float], *, adapted: bool = False) -> dict[str, Any]:
    int8 = {
        "precision": "int8",
        "quality": {"reference_drop_db": 0.25 if adapted else 0.1, "reference_worst_drop_db": 1.5},
    }
    return {
        "manifest": {"restorer": {"arch": "edge-l", "side": side}, "engines": [int8]},
        "reports": [{"name": name, "batch": 1, "p50_ms": ms} for name, ms in times.items()],
        "export_s": 30.0,
        "adapted": adapted,
    }


def test_engines(asked: Any) -> None:
    times = {"onnx-fp32": 95.0, "openvino-int8": 10.0, "openvino-bf16": 21.0}
    table = asked.engines_asked([record(512, times), record(512, {}, adapted=True)])
    lines = asked.asked_section("AMD (avx2,vnni)", table)
    text = "\n".join(lines)
    for row in (
        "| edge-l 512, OpenVINO int8 | ≤ 10 ms | 10 ms | yes |",
        "| the same, against ONNX Runtime fp32 | ≥ 9 x | 9.5 x | yes |",
        "| edge-l 512, OpenVINO bf16 | ≤ 20 ms | 21 ms | **no** |",
        "| edge-m 256, OpenVINO int8 | ≤ 4 ms | not measured | - |",
        "| int8's mean drop, shipped restorers | ≤ 0.2 dB | 0.1 dB | yes |",
        "| int8's mean drop, an adapted restorer | ≤ 0.2 dB | 0.25 dB | **no** |",
        "| longest export | < 120 s | 30 s | yes |",
    ):
        assert row in text, row
    assert "has no AMX" in text
    assert "has AMX" in "\n".join(asked.asked_section("Xeon (amx_int8)", table))


def test_performance(asked: Any) -> None:
    figures = {"flicker": 4.0, "psnr_db": 30.0}
    item = {
        "files": {"720p": {"frames_per_second": 30.0, "engine": {"side": 512}}},
        "live": {"ages_ms": [float(n) for n in range(100)], "stats": {"dropped_total": 1}},
        "motion": {"still": {"without": figures, "with": {"flicker": 1.0, "psnr_db": 29.8}}},
    }
    text = "\n".join(
        asked.asked_section(
            "x", asked.performance_asked([item], [25.0], [{"engine_ms": 10.0, "further_ms": {"2": 12.0}}])
        )
    )
    for row in (
        "| 720p file at 512 | ≥ 30 frames/s | 30 frames/s | yes |",
        "| 1080p file at 512 | ≥ 15 frames/s | not measured | - |",
        "| live 720p30, frames dropped | ≤ 0 frames | 1 frames | **no** |",
        "| a further face, against the engine's own time | ≤ 1.3 x | 1.2 x | yes |",
        "| memory growth of a live run | < 20 MB | 26.2 MB | **no** |",
        "| less flicker with the stabiliser, still face | ≥ 50 % | 75 % | yes |",
        "| the same, worst scene (moving, speaking; not asked) | ≥ 50 % | 75 % | yes |",
        "| PSNR lost by it, worst scene | ≤ 0.3 dB | 0.2 dB | yes |",
    ):
        assert row in text, row


@pytest.mark.parametrize(
    ("name", "which"), [("engines", "engines_asked"), ("performance", "performance_asked")]
)
def test_of_what_was_measured_here(asked: Any, name: str, which: str) -> None:
    path = RUNS / name / f"{name}.json"
    if not path.is_file():
        pytest.skip("no benchmark was run here")
    known = json.loads(path.read_text(encoding="utf-8"))
    found = asked.engines_asked(known) if which == "engines_asked" else asked.performance_asked(known, [])
    assert sum(item.measured is not None for item in found) >= 5
