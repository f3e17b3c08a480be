"""docs/adapting.md: its figures are the code's, its options those of the command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ufr_edge.adaptation.choose import RUNGS, TAIL, ChooseConfig
from ufr_edge.adaptation.dial import dial
from ufr_edge.adaptation.qa import LEAST, QaConfig
from ufr_edge.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "adapting.md").read_text(encoding="utf-8")


def test_the_limits_of_the_scores_are_those_in_force() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*?\| ([\d.]+ \| [\d.]+) \|$", PAGE, flags=re.MULTILINE))
    assert rows == {name: f"{good:g} | {bad:g}" for name, (good, bad) in QaConfig().limits().items()}
    assert f"falls linearly to {LEAST:g};" in " ".join(PAGE.split())


@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_the_dial_is_the_codes(position: float) -> None:
    s = dial(position)
    values = (position, s.start, s.hold_until, s.samples, s.prior_features, s.adversarial)
    assert "| " + " | ".join(f"{value:g}" for value in values) + " |" in PAGE


def test_the_rule_of_auto_is_the_codes() -> None:
    found = re.findall(r"\((\d+), (\d+), (\d+)\)", PAGE)
    assert [tuple(map(int, rung)) for rung in found] == list(RUNGS)
    rule, text = ChooseConfig(), " ".join(PAGE.split())
    for words in (
        f"from {rule.probe} of your faces",
        f"at most {rule.max_drift:g} levels",
        f"at most {rule.max_landmarks:g} px",
        f"held to the end by {TAIL} N",
        f"at most {rule.slack:g} times",
        f"in at most {rule.calls} calls",
    ):
        assert words in text


def test_every_option_is_one_of_adapt_or_of_another_tool() -> None:
    shown = CliRunner().invoke(main, ["adapt", "--help"]).output
    others = {"--no-deps", "--accept-licence"}
    assert not {name for name in re.findall(r"--[a-z][a-z-]+", PAGE) if name not in shown} - others
