"""The files of deploy/ and docs/service.md say what the command and the page understand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest

from ufr_edge.cli.settings import read_settings
from ufr_edge.cli.stream import command
from ufr_edge.errors import ExitCode
from ufr_edge.runtime.live.page_address import PageConfig
from ufr_edge.runtime.live.page_board import metrics_text
from ufr_edge.runtime.live.stats import Labels, StatsBoard

ROOT = Path(__file__).parents[1]
DOC = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
UNIT = (ROOT / "deploy" / "ufr-edge.service").read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    data: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize("file", sorted((ROOT / "deploy").glob("*.toml")), ids=lambda path: path.name)
def test_the_settings_files_are_understood(file: Path) -> None:
    pytest.importorskip("tomllib", reason="needs Python 3.11")
    found = read_settings(click.Context(command), file)
    assert found["sink"] == "http://127.0.0.1:8080" and found["log_json"] is True and found["bundle"]


def test_the_unit_knows_the_exit_codes() -> None:
    assert re.findall(r"^RestartPreventExitStatus=(.*)$", UNIT, re.MULTILINE) == [
        f"{int(ExitCode.USAGE)} {int(ExitCode.ENGINE_MISFIT)}"
    ]
    assert f"SuccessExitStatus={int(ExitCode.STOPPED)}\n" in UNIT
    table = {int(n) for n in re.findall(r"^\| (\d) \|", DOC, re.MULTILINE)}
    assert table == {int(code) for code in ExitCode}


def test_both_services_of_compose_are_checked_by_their_health_and_ask_for_a_token() -> None:
    services = compose()["services"]
    assert set(services) == {"desktop", "jetson"}
    for service in services.values():
        assert service["ports"] == ["127.0.0.1:8080:8080"] and "UFR_TOKEN" in service["environment"]
        compile(service["healthcheck"]["test"][-1], "healthcheck", "exec")
        assert service["command"][-1] == "http://0.0.0.0:8080"
        built = service["build"]["dockerfile_inline"]
        assert '"--config", "/etc/ufr-edge/stream.toml"' in built


def test_what_the_page_cannot_be_seen_to_do_is_not_documented() -> None:
    config = PageConfig()
    for words in (f"does not answer for {config.send_s:g} s", f"At most {config.most_viewers} pages",
                  f"shown at {config.long_side} pixels", f"none came for {config.stall_s:g} s",
                  f"within {config.close_s:g} s"):  # fmt: skip
        assert words in DOC
    stats = StatsBoard(Labels()).snapshot()
    known = set(
        re.findall(r"^# TYPE (ufr_\w+)", metrics_text(stats, memory=1, viewers=0, healthy=True), re.MULTILINE)
    )
    named = set(re.findall(r"\bufr_[a-z_]+", DOC)) - {"ufr_edge", "ufr_", "ufr_drifted"}
    assert named and named <= known
