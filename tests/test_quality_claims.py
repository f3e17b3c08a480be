"""docs/quality.md: the rows on calls of the prior, on the dial, and on what adapting promises beside quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from script_loading import load_script
from test_quality_tables import adaptation, scores


def cheaper(folders: list[Path]) -> list[list[str]]:
    rows = load_script("quality_asked").asked({}, costs=folders)
    return [row for row in rows if "calls a target" in row[0]]


def cell(psnr: float, distance: float) -> dict[str, Any]:
    return {"base": scores(20, 0.5), "adapted": scores(psnr, distance)}


def test_fewer_calls_are_compared_with_the_most(tmp_path: Path) -> None:
    most = adaptation(tmp_path / "most", "defocus", calls_per_target=150, figures=cell(21.0, 0.40))
    half = adaptation(tmp_path / "half", "defocus", calls_per_target=75, figures=cell(22.0, 0.20))
    third = adaptation(tmp_path / "third", "defocus", calls_per_target=50, figures=cell(21.0, 0.42))
    good = adaptation(tmp_path / "good", "defocus", calls_per_target=20, figures=cell(21.5, 0.39))
    (row,) = cheaper([good, most, half, third])
    assert row[0].startswith("a third of the paper's 150 calls a target at most")
    assert row[1:] == ["20 calls: 0.39; 39; 21.50 dB, against 0.4; 40; 21.00 dB", "holds"]
    (row,) = cheaper([most, half, third])
    assert row[1].startswith("50 calls: 0.42") and row[2] == "missed"
    assert cheaper([most, half]) == [] and cheaper([]) == []  # nothing to compare


def with_share(folder: Path, share: float, figures: dict[str, Any], faces: int = 32) -> Path:
    adaptation(folder, "defocus", figures=figures, faces=faces)
    result = json.loads((folder / "adaptation.json").read_text())
    (folder / "adaptation.json").write_text(json.dumps({**result, "camera_pairs": share}))
    return folder


@pytest.mark.parametrize(
    ("psnr", "distance", "verdict"), [(21.5, 0.3, "yes"), (20.5, 0.5, "no"), (20.5, 0.3, "in part")]
)
def test_whether_extra_pairs_help(tmp_path: Path, psnr: float, distance: float, verdict: str) -> None:
    asked = load_script("quality_asked").asked
    none = with_share(tmp_path / "none", 0.0, cell(21.0, 0.4))
    some = with_share(tmp_path / "some", 0.25, cell(psnr, distance))
    alone = with_share(tmp_path / "alone", 0.25, cell(21.0, 0.4), faces=64)
    (row,) = [row for row in asked({}, pairs=[some, none, alone]) if "extra pairs" in row[0]]
    assert "at 32 faces" in row[0] and row[2] == verdict
    assert row[1].endswith("without 0.4; 40; 21.00 dB")


def test_the_dial(tmp_path: Path) -> None:
    quality = load_script("quality")
    rows = [{"fidelity": at, "hf_energy_ratio": 1.0, **scores(20 + at, 0.5 - at / 10)} for at in (0.0, 0.5, 1.0)]
    result = {"rows": rows, "restored": scores(19.0, 0.6), "faces": 12}
    text = "\n\n".join(quality.section(["ufr-edge a", "ufr-edge b"], result, tmp_path))
    assert text.startswith("    ufr-edge a\n    ufr-edge b\n\n12 held-out faces")
    assert "| 0.5 | 100 | 40 | 1 | 20.50 | 0.450 | 45.0 | 1.00 |" in text
    assert "| the restorer's output |  |  |  | 19.00 | 0.600 | 60.0 |" in text
    assert (tmp_path / "dial.png").read_bytes()[:4] == b"\x89PNG" and "](dial.png)" in text
    asked = load_script("quality_asked").asked
    told = asked({"dial": result})[-1]
    assert told[1:] == ["20.00, 20.50, 21.00 dB", "holds"] and "(0, 0.5, 1)" in told[0]
    assert asked({"dial": {**result, "rows": rows[::-1]}})[-1][2] == "missed"


RECORD: dict[str, Any] = {
    "command": "python benchmarks/loop_claims.py",
    "faces": 12,
    "targets": {"count": 12, "same_in_two_processes": 12, "same_after_kill": 12, "there_when_killed": 4},
    "training": {
        "steps": 12,
        "tensors": 50,
        "same_after_kill": 50,
        "two_processes_apart": 0.001,
        "parts_apart": 0.002,
        "gradient_apart": 3e-7,
    },
    "statements": {"command": "pytest -k statement", "numbers": [*range(1, 16), 19, 20], "passed": 60, "skipped": 2},
}


def verdicts(**changed: Any) -> list[str]:
    rows = load_script("quality_asked").asked({}, loop={**RECORD, **changed})
    return [row[2] for row in rows[-6:]]


def test_what_the_loop_promises() -> None:
    module = load_script("loop_claims")
    assert verdicts() == ["holds"] * 6
    assert verdicts(targets={**RECORD["targets"], "same_in_two_processes": 11})[0] == "missed"
    assert verdicts(targets={**RECORD["targets"], "same_after_kill": 11})[1] == "missed"
    assert verdicts(training={**RECORD["training"], "gradient_apart": 2e-5})[2] == "missed"
    assert verdicts(training={**RECORD["training"], "same_after_kill": 49})[3] == "missed"
    assert verdicts(training={**RECORD["training"], "parts_apart": 0.1})[4] == "missed"
    assert verdicts(statements={**RECORD["statements"], "failed": 1})[5] == "missed"
    assert verdicts(statements={**RECORD["statements"], "numbers": [1, 2]})[5] == "missed"
    text = "\n\n".join(module.section(RECORD))
    assert "    python benchmarks/loop_claims.py" in text and "| 3.0e-07 | holds |" in text


def test_a_killed_command_is_killed_and_one_that_ends_before_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_script("loop_claims")
    monkeypatch.setattr(module, "_started", lambda words, processes: words)
    module.killed(["sleep", "60"], lambda: True)
    with pytest.raises(SystemExit, match="ended before it was killed: true"):
        module.killed(["true"], lambda: False)


def test_differences_are_shares_of_the_way_from_the_shipped_weights() -> None:
    module = load_script("loop_claims")
    begun = module.load_any_restorer("edge-m-256").model.state_dict()
    one = {name: value + 1 for name, value in begun.items()}
    other = {name: value + 1.5 for name, value in begun.items()}
    assert module.apart(one, other) == pytest.approx(0.5, rel=1e-3)
    assert module.apart(one, one) == 0.0


def ways(auto: float, paper: float) -> dict[str, Any]:
    module = load_script("target_ways")
    used = {"start": 90, "hold": 30, "n": 16, "held": 0}
    distances = {name: paper for name in ("restored", *module.WAYS)} | {"auto": auto}
    figures = {name: {**scores(22.0, distance), "hf_energy_ratio": 0.8} for name, distance in distances.items()}
    samplers = {name: {**used, "held": 32 if name == "auto" else 0} for name in module.WAYS}
    cameras = {"defocus": {"figures": figures, "samplers": samplers}}
    return {"command": "python ways", "weights": {}, "faces": 20, "calls": 20, "cameras": cameras}


def test_ways_to_the_targets() -> None:
    module, asked = load_script("target_ways"), load_script("quality_asked").asked
    text = "\n\n".join(module.section(ways(0.3, 0.4)))
    assert "    python ways" in text and "**defocus**" in text
    assert "| auto | `--sampler auto` | 90 | 30 | 16, then 32 | 22.00 | 0.300 | 30.0 | 0.80 |" in text
    (row,) = asked({}, ways=ways(0.3, 0.4))[-1:]
    assert row[0].startswith("defocus: start, hold and N chosen") and row[1:] == ["90, 30, 16: 0.300 against 0.400", "holds"]
    assert asked({}, ways=ways(0.5, 0.4))[-1][2] == "missed"
