"""The shipped weights are found by their cards; damaged ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ufr_edge.errors import InputFileError, ModelFileError
from ufr_edge.weights import WEIGHTS_DIR, find_weights, list_weights

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
