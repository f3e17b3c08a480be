"""docs/quality.md: its own command, what was measured by which, and adaptations side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from script_loading import load_script

LIGHT = {"start": 100, "hold_until": 40, "filter_n": 8, "tail_filter_n": None, "steps": 250}


def scores(psnr: float, distance: float) -> dict[str, float]:
    return {"psnr_db": psnr, "prior_feature_distance": distance, "prior_frechet_distance": 100 * distance}


def adaptation(
    folder: Path,
    camera: str,
    seeds: tuple[int, ...] = (0,),
    *,
    sampler: Mapping[str, Any] | None = None,
    **more: Any,
) -> Path:
    """A folder as benchmarks/adaptation.py leaves it."""
    module = load_script("adaptation")
    figures = {"adapted": scores(21, 0.4), "base": scores(20, 0.5), "oracle": scores(22, 0.3)}
    cells = [
        {
            "camera": camera,
            "seed": seed,
            "faces": 200,
            "calls_per_target": 20,
            "sampler": {**LIGHT, **(sampler or {})},
            "figures": figures,
            "classic": {"base": scores(23, 0.5), "adapted": scores(22.9, 0.5), "oracle": scores(22.8, 0.5)},
        }
        | more
        for seed in seeds
    ]
    result = {
        "restorer": "r",
        "prior": "p",
        "replay": 0.25,
        "camera_pairs": 0.0,
        "command": f"python {folder.name}",
    }
    folder.mkdir()
    whole = {**result, "cells": cells, "summary": module.summary(cells)}
    (folder / "adaptation.json").write_text(json.dumps(whole, sort_keys=True), encoding="utf-8")
    return folder


def test_folders_of_one_restorer_stand_under_one_heading(tmp_path: Path) -> None:
    tables = load_script("adapted_tables")
    folders = [adaptation(tmp_path / "one", "defocus", (0, 1)), adaptation(tmp_path / "two", "codec-motion")]
    text = "\n\n".join(tables.adaptation_sections(folders))
    assert text.count("## Adapting r ") == 1 and "Out of `one`, `two`." in text
    assert (
        "    python one\n    python two\n\n200 unlabelled faces" in text
    )  # what holds for both is said once
    assert text.count("| camera | seeds |") == text.count("| camera | seed |") == 1
    assert text.index("| defocus | 0, 1 | 50 ± 0 % |") < text.index("| codec-motion | 0 | 50 % |")
    assert text.index("| defocus | 0 | base |") < text.index(
        "| defocus | 0 | adapted |"
    )  # whatever JSON's order
    assert str(tmp_path) not in text


def test_a_camera_that_two_folders_have_is_named_with_its_folder(tmp_path: Path) -> None:
    tables = load_script("adapted_tables")
    folders = [adaptation(tmp_path / name, "defocus") for name in ("one", "two")]
    text = "\n\n".join(tables.adaptation_sections(folders))
    assert "| defocus (one) | 0 | 50 % |" in text and "| defocus (two) | 0 | 50 % |" in text


def test_a_comparison_tells_the_settings_that_differ_and_what_they_cost(tmp_path: Path) -> None:
    tables = load_script("adapted_tables")
    few = adaptation(tmp_path / "few", "defocus", seconds={"targets": 70, "finetuning": 300})
    start = {"start": 150, "hold_until": 100}
    other = adaptation(tmp_path / "other", "defocus", sampler=start, calls_per_target=150)
    spent = {"targets_and_training": 500, "all": 900}
    paper = adaptation(tmp_path / "paper", "defocus", sampler={"start": 150, "hold_until": 90}, seconds=spent)
    run = paper / "defocus-seed0"
    (run / "adapted").mkdir(parents=True)
    (run / "settings.json").write_text(
        json.dumps({"fidelity": 0.5, "teacher": "/models/heavy"}), encoding="utf-8"
    )
    log = [{"step": step, "time": 10.0 * step} for step in (1, 11, 21)]
    lines = "\n".join(json.dumps(entry) for entry in log)
    (run / "adapted" / "log.jsonl").write_text(lines + "\n", encoding="utf-8")
    commands, same, table = tables.comparison([few, other, paper])
    assert commands.split() == ["python", "few", "python", "other", "python", "paper"]
    assert same == "The same in all: restorer r, faces 200, replay 0.25, share of camera pairs 0."
    head, _, *rows = table.splitlines()
    settings = "| folder | camera | seed | sampler | calls a target | teacher | fidelity | targets, s | fine-tuning, s |"
    assert [name for name in settings.split(" | ") if name.strip("| ") not in head] == []
    assert head.index("fine-tuning, s") < head.index("feature distance")
    cells = [dict(zip(head.split(" | "), row.split(" | "), strict=True)) for row in rows]
    assert [cell["sampler"] for cell in cells] == ["light", "start 150, hold 100, N 8", "paper-codeformer"]
    assert [cell["calls a target"] for cell in cells] == ["20", "150", "20"]
    assert [cell["teacher"] for cell in cells] == ["", "", "heavy"]
    assert [cell["fidelity"] for cell in cells] == ["", "", "0.5"]
    assert [(cell["targets, s"], cell["fine-tuning, s"]) for cell in cells] == [
        ("70", "300"),
        ("", ""),
        ("300", "200"),
    ]
    assert cells[0]["feature distance"] == "0.5 → 0.4" and rows[0].endswith("| +1.00 | -0.10 |")
    assert "tuning, s" not in tables.comparison([few, other], timed=False)[-1]


def test_the_document_names_the_command_that_writes_it(tmp_path: Path) -> None:
    quality = load_script("quality")
    plain = quality.parse(["--faces", str(tmp_path), "--only", "classic", "--overwrite"])
    assert quality.own_command(plain) == "python benchmarks/quality.py --faces VAL -o runs/quality"
    words = ["--faces", str(tmp_path), "-o", str(tmp_path / "q"), "--count", "16", "--fast-steps", "20"]
    words += [
        "--restorer",
        str(tmp_path / "mine"),
        "--adaptation",
        "runs/a",
        "runs/b",
        "--targets",
        str(tmp_path / "c"),
    ]
    assert quality.own_command(quality.parse(words)) == (
        "python benchmarks/quality.py --faces VAL -o q --restorer mine --count 16 --fast-steps 20 "
        "--adaptation runs/a runs/b --targets c"
    )


def test_what_is_not_measured_again_keeps_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quality = load_script("quality")

    def measured(words: list[str], **_: Any) -> argparse.Namespace:
        out = Path(words[words.index("-o") + 1])
        out.mkdir(exist_ok=True)
        (out / "report.json").write_text("{}", encoding="utf-8")
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(quality.subprocess, "run", measured)
    args = quality.parse(["--faces", "val", "-o", str(tmp_path)])
    few, many = (quality.prior_job("p", "r", ("--count", count)) for count in ("16", "64"))
    assert quality.measure([few], args)["p"][0].endswith("--count 16")
    assert quality.measure([many], args)["p"][0].endswith("--count 16")
    assert "p: kept as it was measured before" in capsys.readouterr().out
    again = quality.parse(["--faces", "val", "-o", str(tmp_path), "--overwrite"])
    assert quality.measure([many], again)["p"][0].endswith("--count 64")
    (kept,) = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    assert kept["name"] == "p" and kept["commands"][0].endswith("--count 64")


def test_what_was_asked_of_adapting_and_of_flat_areas_is_told_too(tmp_path: Path) -> None:
    module = load_script("quality_asked")
    clean = {"psnr_db": 25.0, "colour_cast_common": 0.1, "grid_levels": 0.2, "flat_energy_ratio": 1.1}
    figures = {"classic": {"input": {"psnr_db": 24.0}, "a": clean, "b": {**clean, "grid_levels": 0.6}}}
    rows = module.asked({"classic": {"figures": figures}}, [adaptation(tmp_path / "one", "defocus", (0, 1))])
    told = {row[0].split(":")[0]: row[1:] for row in rows}
    assert told["a, on flat areas of the same"] == ["0.10, 0.20, 1.10", "holds"]
    assert told["b, on flat areas of the same"] == ["0.10, 0.60, 1.10", "missed"]
    soft = {"hf_energy_ratio": 0.02, "prior_feature_distance": 0.6, "prior_frechet_distance": 80.0}
    sharp = {"hf_energy_ratio": 0.05, "prior_feature_distance": 0.5, "prior_frechet_distance": 60.0}
    for columns, verdict in (
        ({"a-soft": soft, "edge-m-256": sharp}, "holds"),
        ({"a-soft": sharp, "edge-m-256": soft}, "missed"),
    ):
        (row, *_) = module.asked({"first-stage": {"figures": {"classic": {"input": soft, **columns}}}})
        assert row[0].startswith("edge-m-256, classic: sharper than a-soft") and row[2] == verdict
    assert told["r adapted to defocus (2 seeds)"] == [
        "50 ± 0 %; 50 ± 0 %; +1.00 ± 0 dB; -0.10 ± 0 dB",
        "holds",
    ]


def test_what_was_measured_is_kept_and_taken_again_unless_it_is_of_earlier_weights(tmp_path: Path) -> None:
    measured = load_script("measured")
    now = measured.digests(["eval", "edge-m-256", "prior-256"])
    assert sorted(now) == ["edge-m-256", "prior-256"] and measured.earlier(now) == []
    (note,) = measured.earlier({**now, "edge-m-256": "0" * 64})
    assert "earlier weights of edge-m-256." in note
    out, kept, other = (tmp_path / name for name in ("out", "kept", "other"))
    jobs = [
        {"name": "old", "result": "a/old.json", "weights": {"edge-m-256": "0" * 64}},
        {"name": "new", "result": "new.json", "weights": now},
    ]
    for job in jobs:
        path = out / str(job["result"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    (out / "index.json").write_text(json.dumps(jobs), encoding="utf-8")
    (out / "sheet.jpg").write_bytes(b"people")
    measured.keep(out, kept)
    assert {path.name for path in kept.rglob("*") if path.is_file()} == {"old.json", "new.json", "index.json"}
    measured.take(kept, other, again=lambda name: True)
    assert [job["name"] for job in measured.read_index(other)] == ["new"] and not (other / "a").exists()
    measured.take(kept, other, again=lambda name: name == "new")
    assert [job["name"] for job in measured.read_index(other)] == ["new", "old"]
    run = adaptation(tmp_path / "run", "defocus")
    measured.keep_run(run, kept, "adaptation.json")
    assert (kept / "run" / "adaptation.json").read_text() == (run / "adaptation.json").read_text()
    measured.keep_run(kept / "run", kept, "adaptation.json")  # it lies there


def test_tables_of_earlier_weights_say_so(tmp_path: Path) -> None:
    tables, quality = load_script("adapted_tables"), load_script("quality")
    run = adaptation(tmp_path / "one", "defocus")
    result = json.loads((run / "adaptation.json").read_text())
    (run / "adaptation.json").write_text(json.dumps({**result, "weights": {"edge-m-256": "0" * 64}}))
    said = "`one`: *Measured with earlier weights of edge-m-256.*"
    assert said in tables.adaptation_sections([run]) and said in tables.comparison([run])
    job = quality.Job("j", "J", (("eval",),), "j.json")
    report = {"settings": {}, "figures": {}, "faces": 1, "side": 64}
    (tmp_path / "j.json").write_text(json.dumps(report), encoding="utf-8")
    quality.section = lambda commands, result, docs: ["tables"]
    text = quality.render([job], tmp_path, "c", notes={"j": ["*Measured with earlier weights of x.*"]})
    assert "## J\n\n*Measured with earlier weights of x.*\n\ntables" in text
