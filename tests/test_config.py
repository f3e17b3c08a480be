"""Configs go to JSON and come back equal; every mistake is named by its key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from ufr_edge.config import from_json, load_config, save_config, to_json
from ufr_edge.errors import ConfigError, InputFileError


class Kind(Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass(frozen=True)
class Optimiser:
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Train:
    faces: Path
    steps: int = 100
    kind: Kind = Kind.SMALL
    precision: Literal["fp32", "bf16"] = "fp32"
    resume: Path | None = None
    limit: int | str = "all"
    seeds: tuple[int, ...] = (0,)
    weights: Mapping[str, float] = field(default_factory=dict)
    optimiser: Optimiser = Optimiser()
    ema: bool = True


@dataclass(frozen=True)
class Second:
    version: int = 2
    name: str = "x"


FULL = Train(
    faces=Path("faces"),
    kind=Kind.LARGE,
    precision="bf16",
    resume=Path("run"),
    limit=7,
    seeds=(1, 2, 3),
    weights={"l1": 1.0},
    optimiser=Optimiser(learning_rate=3e-4, betas=(0.5, 0.9)),
)


@pytest.mark.parametrize("config", [FULL, Train(faces=Path("a/b"))])
def test_a_config_comes_back_equal_through_text(config: Train) -> None:
    assert from_json(Train, json.loads(json.dumps(to_json(config)))) == config


def test_the_dump_carries_the_version() -> None:
    assert to_json(Optimiser())["version"] == 1
    assert to_json(Second())["version"] == 2
    assert from_json(Second, to_json(Second(name="y"))) == Second(name="y")


def test_another_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="version 2 of Optimiser; this program reads version 1"):
        from_json(Optimiser, {"version": 2})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"setps": 3}, r"setps: there is no such setting\. Did you mean 'steps'\?"),
        ({"optimiser": {"lerning_rate": 1}}, r"optimiser\.lerning_rate: .* 'learning_rate'"),
        ({"optimiser": 3}, "optimiser: expected a table of settings, not 3"),
        ({"steps": 1.5}, r"steps: expected a whole number, not 1\.5"),
        ({"steps": True}, "steps: expected a whole number, not true"),
        ({"steps": None}, "steps: expected a whole number, not nothing"),
        ({"ema": 1}, "ema: expected true or false, not 1"),
        ({"kind": "huge"}, "kind: expected one of 'small', 'large', not 'huge'"),
        ({"precision": "fp8"}, "precision: expected one of 'fp32', 'bf16', not 'fp8'"),
        ({"seeds": [1, "2"]}, r'seeds\[1\]: expected a whole number, not "2"'),
        ({"seeds": "12"}, 'seeds: expected a list, not "12"'),
        ({"optimiser": {"betas": [0.9]}}, r"optimiser\.betas: expected 2 values, not 1"),
        ({"limit": 1.5}, r"limit: expected int or str, not 1\.5"),
        ({"resume": 1}, "resume: expected a path, not 1"),
        ({"weights": {"l1": "x"}}, r'weights\.l1: expected a number, not "x"'),
    ],
)
def test_each_mistake_is_named_by_its_key(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_json(Train, {"faces": "f", **data})


def test_a_missing_required_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="faces: this setting is required and missing"):
        from_json(Train, {})


def test_a_whole_number_is_taken_for_a_float_as_a_float() -> None:
    rate = from_json(Optimiser, {"learning_rate": 1}).learning_rate
    assert isinstance(rate, float)
    assert rate == 1.0


def test_toml_and_json_files_load_alike(tmp_path: Path) -> None:
    toml = tmp_path / "train.toml"
    toml.write_text('faces = "f"\nprecision = "bf16"\n[optimiser]\nlearning_rate = 0.5\n', encoding="utf-8")
    config = load_config(Train, toml)
    assert config == Train(faces=Path("f"), precision="bf16", optimiser=Optimiser(learning_rate=0.5))
    save_config(config, tmp_path / "train.json")
    assert load_config(Train, tmp_path / "train.json") == config


def test_errors_of_a_file_name_the_file(tmp_path: Path) -> None:
    broken = tmp_path / "a.toml"
    broken.write_text("faces = ", encoding="utf-8")
    with pytest.raises(InputFileError, match=r"a\.toml cannot be read as TOML"):
        load_config(Train, broken)
    with pytest.raises(InputFileError, match="does not exist"):
        load_config(Train, tmp_path / "none.toml")
    broken.write_text("stepz = 3", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.toml: stepz.*'steps'"):
        load_config(Train, broken)
    with pytest.raises(ConfigError, match=r"ends in \.toml or \.json"):
        load_config(Train, tmp_path / "a.yaml")


def test_a_value_that_json_has_not_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: object = frozenset()

    with pytest.raises(ConfigError, match=r"Odd\.value: a frozenset cannot be written"):
        to_json(Odd())
