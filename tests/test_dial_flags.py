"""The dial beside other flags and other chains, and what a config file is taken to say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ufr_edge.adaptation import adapt as adapting
from ufr_edge.adaptation import targets as drawing
from ufr_edge.adaptation.adapt import AdaptConfig
from ufr_edge.adaptation.dial import dial
from ufr_edge.adaptation.targets import TargetsConfig
from ufr_edge.cli import main
from ufr_edge.config import stated_settings
from ufr_edge.errors import ConfigError


class Told(ConfigError):
    """Stands for the work: ends the command with the settings it was given."""

    def __init__(self, config: Any) -> None:
        super().__init__("told")
        self.config = config


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a command of ours up to its work; returns the config it came to."""
    found: list[Any] = []

    def work(faces: Path, out: Path, config: Any, **_: Any) -> None:
        found.append(config)
        raise Told(config)

    monkeypatch.setattr(drawing, "make_targets", work)
    monkeypatch.setattr(adapting, "adapt", work)

    def run(command: str, *words: str) -> Any:
        result = CliRunner().invoke(main, [command, "-i", str(tmp_path), "-o", str(tmp_path / "o"), *words])
        assert found, result.output
        return found.pop()

    return run


@pytest.mark.parametrize("flags", [("--samples", "4"), ("--fast-steps", "20"), ("--method", "ddim")])
def test_flags_win_over_the_dial_in_targets_as_in_adapt(told: Any, flags: tuple[str, str]) -> None:
    by_targets: TargetsConfig = told("targets", "--fidelity", "0", *flags)
    by_adapt: AdaptConfig = told("adapt", "--fidelity", "0", *flags)
    shown = [dataclasses.replace(s, precision="fp32") for s in (by_targets.sampler, by_adapt.targets.sampler)]
    assert shown[0] == shown[1] and shown[0].start == 150
    given = {"--samples": shown[0].samples_per_image, "--fast-steps": shown[0].fast_steps, "--method": shown[0].method}
    assert str(given[flags[0]]) == flags[1]


def test_in_a_chain_of_other_steps_the_dial_starts_at_the_same_noise() -> None:
    base = TargetsConfig().sampler
    for steps in (250, 500, 1000):
        sampler = dial(0.0).sampler(dataclasses.replace(base, steps=steps))
        assert sampler.start / steps == pytest.approx(0.6) and sampler.hold_until / steps == pytest.approx(0.36)
    assert dial(1.0).sampler(dataclasses.replace(base, steps=20, start=10, hold_until=5)).hold_until >= 1


def test_a_file_states_what_it_names_and_no_more(tmp_path: Path, told: Any) -> None:
    plain = tmp_path / "plain.toml"
    plain.write_text('curve = "never"\n', encoding="utf-8")
    assert stated_settings(plain) == {"curve"}
    config: AdaptConfig = told("adapt", "--config", str(plain))  # no --real: the built-in adversarial term goes
    assert config.curve == "never" and config.finetune.training.losses.adversarial == 0
    assert config.targets.sampler.precision == told("adapt").targets.sampler.precision  # what suits the machine
    named = tmp_path / "named.toml"
    named.write_text('[targets]\nbatch = 3\n[targets.sampler]\nprecision = "fp32"\n', encoding="utf-8")
    assert stated_settings(named) == {"targets.batch", "targets.sampler.precision"}
    config = told("adapt", "--config", str(named))
    assert (config.targets.batch, config.targets.sampler.precision) == (3, "fp32")


def test_a_weight_that_a_file_names_is_not_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"finetune": {"training": {"losses": {"adversarial": 0.02}}}}', encoding="utf-8")
    words = ["adapt", "-i", str(tmp_path), "-o", str(tmp_path / "o"), "--config", str(path)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code != 0 and "0.02" in result.output and "--real" in result.output
