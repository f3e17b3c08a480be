"""The shipped weights are found by their cards; damaged ones are named. Cards are filled from counts and reports."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from script_loading import load_script

from ufr_edge.errors import InputFileError, ModelFileError
from ufr_edge.weights import WEIGHTS_DIR, find_weights, list_weights
from ufr_edge.weights.cards import (
    data_block,
    eval_table,
    facts_block,
    fill_block,
    in_order,
    measured_limits,
    restorer_block,
    restorer_table,
    without_markers,
)

ROOT = Path(__file__).parents[1]

BUDGET = 40_000_000
"""Bytes of all shipped weights together."""


def make(folder: Path, name: str, *, parts: tuple[str, ...], card: str = "{}") -> Path:
    model = folder / name
    model.mkdir()
    (model / "card.json").write_text(card, encoding="utf-8")
    for part in parts:
        (model / part).write_bytes(b"123") if "." in part else (model / part).mkdir()
    return model


def test_models_are_listed_by_name_with_kind_and_size(tmp_path: Path) -> None:
    make(tmp_path, "prior-b", parts=("unet", "scheduler"))
    make(tmp_path, "edge-a", parts=("weights.safetensors",), card='{"side": 256}')
    (tmp_path / "not-a-model").mkdir()
    found = list_weights(tmp_path)
    assert [(model.name, model.kind) for model in found] == [("edge-a", "restorer"), ("prior-b", "prior")]
    assert found[0].card == {"side": 256}
    assert found[0].size == 3 + len('{"side": 256}')
    assert find_weights("edge-a", tmp_path) == found[0]


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    make(tmp_path, "edge-a", parts=("weights.safetensors",))
    with pytest.raises(InputFileError, match="no shipped model 'x'. Shipped: edge-a"):
        find_weights("x", tmp_path)


@pytest.mark.parametrize(("parts", "card"), [((), "{}"), (("unet",), "{}"), (("weights.safetensors",), "[]")])
def test_a_damaged_model_is_named(tmp_path: Path, parts: tuple[str, ...], card: str) -> None:
    make(tmp_path, "bad", parts=parts, card=card)
    with pytest.raises(ModelFileError, match=r"bad.*Reinstall"):
        list_weights(tmp_path)


def test_what_is_shipped_is_whole_and_within_the_budget() -> None:
    models = list_weights()
    assert sum(model.size for model in models) <= BUDGET
    folders = {path.name for path in WEIGHTS_DIR.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {model.name for model in models} == folders
    for model in models:
        assert (model.path / "card.md").is_file()
        assert json.loads((model.path / "card.json").read_text(encoding="utf-8"))


def report(*labels: str, preset: str = "classic") -> dict[str, Any]:
    """What `ufr-edge eval -o` writes, cut down; restorers gain 1, 2, ... dB."""
    values = {"psnr_db": 20.0, "prior_feature_distance": 0.5, "ssim": None}
    columns = {"input": values} | {name: {**values, "psnr_db": 21.0 + i} for i, name in enumerate(labels)}
    source = {name: {"faces": 3, **column} for name, column in columns.items()}
    return {
        "settings": {"faces": 3, "side": 256, "psnr_ssim": {"colour": "rgb", "matched": False}},
        "figures": {preset: columns},
        "by_source": {preset: {"b_faker": source}},
        "not_measured": {"lpips": "its weights are not here"},
    }


def prior_report(prior: str) -> dict[str, Any]:
    """What `ufr-edge prior-report` writes, cut down."""
    target = {"psnr_db": 23.0, "restored_psnr_db": 24.0, "psnr_change_db": -1.0}
    return {
        "kind": "prior-report",
        "command": f"ufr-edge prior-report {prior}",
        "config": {"prior": prior, "restorer": "edge-a", "degrade": "raw-iso3000-x4"},
        "faces": 4,
        "figures": {
            "epsilon": {"20": {"linear": 0.2, "prior": 0.1}},
            "identity": {
                "own_is_nearest": 0.75,
                "own_distance": 0.1,
                "nearest_other_distance": 0.4,
                "faces": 4,
                "faces_detected": 3,
                "landmarks_px": 2.5,
                "landmarks_px_p95": 4.0,
            },
            "targets": {"light": {**target, "detail_ratio": 0.9, "restored_detail_ratio": 1.7}},
            "frechet": {"count": 4, "samples": 3.0, "resampled": 2.0, "floor": 1.0},
        },
    }


def test_a_block_is_filled_again_and_again_and_nothing_else_changes() -> None:
    text = "before\n\n<!-- data:begin -->\n<!-- data:end -->\n\nafter\n"
    once = fill_block(text, "data", "| one |")
    assert "| one |" in once
    twice = fill_block(once, "data", "two")
    assert twice == "before\n\n<!-- data:begin -->\n\ntwo\n\n<!-- data:end -->\n\nafter\n"
    assert without_markers(twice) == "before\n\ntwo\n\nafter\n"


@pytest.mark.parametrize("text", ["", "<!-- data:end --> <!-- data:begin -->", 2 * "<!-- data:begin --><!-- data:end -->"])
def test_a_card_without_its_markers_is_named(text: str) -> None:
    with pytest.raises(ModelFileError, match="needs one line <!-- data:begin -->"):
        fill_block(text, "data", "x")


def test_tables_show_what_was_measured_and_the_gain() -> None:
    table = eval_table(report("edge-a", "edge-b")["figures"]["classic"]).splitlines()
    assert table[0] == "|  | PSNR dB | gain dB | feature distance |"  # no SSIM: it is null
    assert table[3:] == ["| edge-a | 21.00 | +1.00 | 0.500 |", "| edge-b | 22.00 | +2.00 | 0.500 |"]
    backwards = dict(reversed(report("edge-a", "edge-b")["figures"]["classic"].items()))
    assert eval_table(backwards).splitlines()[2].startswith("| input |")
    row = restorer_table(report("edge-a")["figures"], "edge-a").splitlines()[2]
    assert row.startswith("| classic | 20.00 | 21.00 | +1.00 |")
    with pytest.raises(InputFileError, match="no figures of edge-c on classic"):
        restorer_table(report("edge-a")["figures"], "edge-c")


def test_every_table_of_a_card_stands_under_its_command() -> None:
    reports = [("ufr-edge eval ONE", report("edge-a")), ("ufr-edge eval TWO", report("edge-b"))]
    block = restorer_block(reports, "edge-a")
    assert "    ufr-edge eval ONE\n\n3 held-out faces at 256 px; PSNR and SSIM: colour rgb, matched off" in block
    assert "not measured, as their weights are not here: lpips" in block
    assert "| b_faker | 3 | 20.00 | 21.00 |" in block
    filled = fill_block("<!-- figures:begin --><!-- figures:end -->", "figures", block)
    assert "\n    ufr-edge eval ONE\n" in filled  # still a code block
    assert "TWO" not in block  # it did not measure this one
    with pytest.raises(InputFileError, match="No report has figures of edge-c"):
        restorer_block(reports, "edge-c")


def test_the_figures_against_a_restorer_are_its_limits() -> None:
    plain, weak = report("edge-a", "edge-b"), report("edge-a", preset="raw")
    weak["figures"]["raw"]["edge-a"]["psnr_db"] = 20.25
    larger = report("edge-a")
    larger["settings"]["side"] = 384
    larger["figures"]["classic"]["edge-a"]["psnr_db"] = 20.5
    reports = [("ONE", plain), ("TWO", weak), ("THREE", larger)]
    limits = measured_limits(reports, "edge-a")
    assert limits == [
        "At 384 px the same weights gain +0.50 dB over the input on classic, at 256 px +1.00 dB.",
        "At 512 px they run, but were not measured.",
        "Of all that was measured it helps least on raw (+0.25 dB): adapt it to such a camera.",
    ]
    plain["figures"]["classic"]["edge-b"]["psnr_db"] = 20.95
    assert measured_limits(reports, "edge-a")[-1] == (
        "edge-b is within 0.1 dB of it on classic (+0.95 dB, this one +1.00 dB)."
    )
    assert "At 384 and 512 px they run" in measured_limits([("ONE", plain)], "edge-b")[0]
    assert measured_limits(reports, "edge-z") == []


def test_presets_stand_in_the_order_they_were_asked_for() -> None:
    both = {**report("a", preset="classic-heavy")["figures"], **report("a", preset="classic-light")["figures"]}
    settings = {"degrade": ["classic-light", "classic-heavy"]}
    assert list(in_order({"settings": settings, "figures": both})) == ["classic-light", "classic-heavy"]


def test_data_are_counted_by_source_and_licence() -> None:
    rows = [{"source": "congress", "licence": "public domain", "side": "256"}]
    rows += 3 * [{"source": "t2i", "licence": "MIT", "side": "512"}]
    block = data_block(rows, {"congress": 0.4, "t2i": 0.6})
    assert block.startswith("4 aligned faces (3 at 512 px or more at source")
    assert "1 photographs of people (25 %, and 40 % of what training drew) and 3 generated" in block
    assert "| t2i | generated | 3 | 60 % | MIT |" in block
    with pytest.raises(InputFileError, match="no training faces"):
        data_block([], {})


def test_facts_that_are_not_known_are_called_so() -> None:
    assert "- training: unknown steps, hours unknown" in facts_block({})
    known = facts_block({"parameters": 1234567, "steps": 5000, "hours": 2.25, "bytes": 5e6, "storage": "int8"})
    assert "1,234,567" in known
    assert "5,000 steps, 2.2 hours" in known
    assert "5.0 MB, int8" in known


def test_the_quality_document_is_made_of_the_reports_alone(tmp_path: Path) -> None:
    quality = load_script("quality")
    jobs = [quality.evaluation("classic", "Classic", ["edge-a"], ["classic-light"]), quality.prior_job("p", "edge-a", ())]
    (tmp_path / "p").mkdir()
    (tmp_path / "classic.json").write_text(json.dumps(report("edge-a", preset="classic-light")), encoding="utf-8")
    (tmp_path / "p" / "report.json").write_text(json.dumps(prior_report("p")), encoding="utf-8")
    text = quality.render(jobs, tmp_path, "python quality.py")
    command = "    ufr-edge eval --truth VAL --degrade classic-light --seed 0 --restorer edge-a --prior prior-256"
    assert f"{command} -o {tmp_path.name}/classic.json" in text
    assert str(tmp_path) not in text
    assert "| edge-a, classic-light: at least +2.5 dB over the input | +1.00 dB | missed |" in text
    assert "| p, light sampler: their fine detail within 20 % of the clean faces' | -10 % | holds |" in text
    assert text.index("ufr-edge prior-report p") < text.index("| 20 | 0.20000 | 0.10000 | 50 % |")


def test_a_job_that_fails_ends_the_measuring_and_one_that_is_done_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quality = load_script("quality")
    args = quality.parse(["--faces", str(tmp_path / "val"), "-o", str(tmp_path)])
    called: list[list[str]] = []

    def fail(words: list[str], **_: Any) -> argparse.Namespace:
        called.append(words)
        return argparse.Namespace(returncode=1)

    monkeypatch.setattr(quality.subprocess, "run", fail)
    job = quality.evaluation("classic", "Classic", ["edge-a"], ["classic"])
    with pytest.raises(SystemExit, match="ended with code 1"):
        quality.run(job, args)
    assert str(tmp_path / "val") in called[0]
    assert not {"VAL", "OUT/classic.json"} & set(called[0])
    (tmp_path / "classic.json").write_text("{}", encoding="utf-8")
    quality.run(job, args)
    assert len(called) == 1


def test_a_card_is_made_and_filled_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = load_script("cards")
    model, out = tmp_path / "edge-a", tmp_path / "quality"
    model.mkdir()
    out.mkdir()
    monkeypatch.setattr(
        cards, "counted", lambda name, _: {"name": name, "kind": "restorer", "side": 256, "bytes": 3_000_000}
    )
    (out / "one.json").write_text(json.dumps(report("edge-a")), encoding="utf-8")
    jobs = [{"name": "one", "title": "One", "commands": ["ufr-edge eval ONE"], "result": "one.json"}]
    (out / "index.json").write_text(json.dumps(jobs), encoding="utf-8")
    manifest = tmp_path / "manifest.csv"
    lines = ["split,file,side,source,licence", "train,a_hmd_1.jpg,256,hmd,none", "val,a_t2i_1.jpg,256,t2i,MIT"]
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    args = ["edge-a", "--weights", str(tmp_path), "--quality", str(out), "--manifest", str(manifest), "--steps", "900", "--hours", "1.5"]
    cards.main([*args, "--recipe", "ufr-edge pretrain restorer"])
    text = (model / "card.md").read_text(encoding="utf-8")
    for part in ("900 steps, 1.5 hours", "| classic | 20.00 | 21.00 |", "| hmd | generated | 1 |", "ufr-edge eval ONE"):
        assert part in text
    card = json.loads((model / "card.json").read_text(encoding="utf-8"))
    assert card["figures"]["classic"]["restored"]["psnr_db"] == 21.0
    assert "- Of all that was measured it helps least on classic (+1.00 dB)" in text
    assert card["limits"][-1].startswith("Of all that was measured")
    (model / "card.md").write_text(text.replace("## Limits", "## Limits, by hand"), encoding="utf-8")
    cards.main(args[:5])  # steps and prose stay
    again = (model / "card.md").read_text(encoding="utf-8")
    assert again == text.replace("## Limits", "## Limits, by hand")


def test_the_shipped_cards_have_every_block() -> None:
    for model in list_weights():
        text = (model.path / "card.md").read_text(encoding="utf-8")
        for block in ("facts", "data", "figures", "limits"):
            fill_block(text, block, "x")
