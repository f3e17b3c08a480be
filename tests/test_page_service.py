"""The files of deploy/ and docs/service.md say what the command and the page understand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest

from ufr_edge.cli.settings import read_settings
from ufr_edge.cli.stream import command
from ufr_edge.cli.watch import command as watch_command
from ufr_edge.errors import ExitCode
from ufr_edge.runtime.live.page_address import PageConfig
from ufr_edge.runtime.live.page_board import metrics_text
from ufr_edge.runtime.live.stats import Labels, StatsBoard

ROOT = Path(__file__).parents[1]
DOC = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
UNIT = (ROOT / "deploy" / "ufr-edge.service").read_text(encoding="utf-8")
WATCH_UNIT = (ROOT / "deploy" / "ufr-edge-watch.service").read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    data: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize("file", sorted((ROOT / "deploy").glob("*.toml")), ids=lambda path: path.name)
def test_the_settings_files_are_understood(file: Path) -> None:
    pytest.importorskip("tomllib", reason="needs Python 3.11")
    found = read_settings(click.Context(watch_command if file.stem == "watch" else command), file)
    assert found["sink"] == "http://127.0.0.1:8080" and found["log_json"] is True and found["bundle"]


@pytest.mark.parametrize("unit", [UNIT, WATCH_UNIT], ids=["stream", "watch"])
def test_the_units_know_the_exit_codes(unit: str) -> None:
    never = (ExitCode.USAGE, ExitCode.GATE_FAILED, ExitCode.ENGINE_MISFIT)
    assert values(unit, "RestartPreventExitStatus") == [" ".join(str(int(code)) for code in never)]
    assert f"SuccessExitStatus={int(ExitCode.STOPPED)}\n" in unit
    table = {int(n) for n in re.findall(r"^\| (\d) \|", DOC, re.MULTILINE)}
    assert table == {int(code) for code in ExitCode}


def test_the_loop_on_site_has_a_place_to_write_and_the_settings_name_it() -> None:
    pytest.importorskip("tomllib", reason="needs Python 3.11")
    found = read_settings(click.Context(watch_command), ROOT / "deploy" / "watch.toml")
    (state,) = values(WATCH_UNIT, "StateDirectory")
    for name in ("bundle", "record"):
        assert Path(found[name]).parent == Path("/var/lib", state)
    assert values(WATCH_UNIT, "StateDirectoryMode") == ["0700"] and values(WATCH_UNIT, "UMask") == ["0077"]
    (start,) = values(WATCH_UNIT, "ExecStart")
    assert start.endswith(" watch --config /etc/ufr-edge/watch.toml")
    # Both would want the camera.
    assert values(UNIT, "Conflicts") == ["ufr-edge-watch.service"]
    assert values(WATCH_UNIT, "Conflicts") == ["ufr-edge.service"]
    watch = compose()["services"]["watch"]
    assert "state:/var/lib/ufr-edge" in watch["volumes"] and "state" in compose()["volumes"]
    assert "train" in watch["build"]["dockerfile_inline"] and ",train," in DOC


def test_what_jetpack_6_cannot_hold_is_not_installed() -> None:
    pin = '"cuda-python>=12.6,<13"'
    assert pin in compose()["services"]["jetson"]["build"]["dockerfile_inline"]
    jetson = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    assert f"pip install . {pin}" in jetson and "pip install ufr-edge" not in jetson


def values(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)


def test_the_services_of_compose_are_checked_by_their_health_and_ask_for_a_token() -> None:
    services = compose()["services"]
    assert set(services) == {"desktop", "jetson", "watch"}
    for name, service in services.items():
        assert service["ports"] == ["127.0.0.1:8080:8080"] and "UFR_TOKEN" in service["environment"]
        compile(service["healthcheck"]["test"][-1], "healthcheck", "exec")
        assert service["command"][-1] == "http://0.0.0.0:8080"
        built = service["build"]["dockerfile_inline"]
        file = "watch.toml" if name == "watch" else "stream.toml"
        assert f'"--config", "/etc/ufr-edge/{file}"' in built


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
