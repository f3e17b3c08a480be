"""`ufr-edge stream SOURCE http://...`: the token, and the settings file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from clips import picture
from tiny_bundle import write_tiny_bundle

from ufr_edge.cli import main
from ufr_edge.runtime.images import write_image

pytest.importorskip("aiohttp", reason="needs the extra `live`")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle and a picture for the test camera."""
    folder = tmp_path_factory.mktemp("stream")
    write_tiny_bundle(folder / "tiny.ufr")
    write_image(folder / "scene.png", picture(5, size=(320, 200)))
    return folder


def settings(folder: Path, name: str, **more: object) -> Path:
    plain: dict[str, object] = {
        "source": f"synthetic://?size=320x180&rate=50&picture={folder / 'scene.png'}",
        "sink": "http://127.0.0.1:0",
        "bundle": str(folder / "tiny.ufr"),
        "engine_name": "ort-fp32",
        "threads": 1,
        "frames": 3,
        "log_json": True,
        "no_ladder": True,
    }
    file = folder / name
    file.write_text(json.dumps({k: v for k, v in (plain | more).items() if v is not None}), encoding="utf-8")
    return file


def stream(*args: object, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(
        main, ["--log-level", "info", "stream", *(str(a) for a in args)], env=env or {"UFR_TOKEN": ""}
    )
    return result.exit_code, result.stdout, result.stderr


def test_a_settings_file_says_it_all_and_flags_win(folder: Path) -> None:
    code, output, errors = stream("--config", settings(folder, "all.json"))
    assert code == 0, errors
    assert "3 in, " in output and "token" not in errors
    assert any(json.loads(line)["event"] == "page" for line in errors.splitlines())
    code, output, errors = stream("--config", settings(folder, "all.json"), "--frames", 5, "--json")
    assert code == 0 and json.loads(output)["stats"]["frames_in"] == 5


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"fremes": 3}, "Did you mean 'frames'"),
        ({"frames": "many"}, "frames: 'many' is not a valid integer"),
        ({"frames": [3]}, "frames: expected one value"),
        ({"no_ladder": 1}, "no_ladder: expected true or false"),
        ({"frames": True}, "frames: expected no true or false"),
        ({"filling": "sometimes"}, "filling: 'sometimes' is not one of"),
    ],
)
def test_a_settings_file_with_a_mistake_is_named_with_the_setting(
    folder: Path, more: dict[str, object], words: str
) -> None:
    code, _, errors = stream("--config", settings(folder, "bad.json", **more))
    assert code == 1 and "bad.json" in errors and words in errors and errors.count("\n") == 1


def test_a_page_for_others_makes_a_token_and_tells_it_once(folder: Path) -> None:
    file = settings(folder, "all.json", sink="http://0.0.0.0:0")
    code, output, errors = stream("--config", file)
    assert code == 0, errors
    lines = [line for line in errors.splitlines() if "token" in line]
    assert len(lines) == 1
    found = re.fullmatch(r"token: (\S{32}) \(made for this run: http://0\.0\.0\.0:0/\?token=\1\)", lines[0])
    assert found and found[1] not in output
    code, _, again = stream("--config", file)
    assert code == 0 and found[1] not in again


def test_a_token_of_ones_own_is_told_nowhere(folder: Path) -> None:
    file, report = settings(folder, "all.json", sink="http://0.0.0.0:0"), folder / "report.json"
    token = "0123456789abcdef-own"
    code, output, errors = stream("--config", file, "--report", report, env={"UFR_TOKEN": token})
    assert code == 0, errors
    assert token not in output + errors + report.read_text(encoding="utf-8")
    code, _, errors = stream("--config", file, "--token", "short")
    assert code == 1 and "openssl rand -hex 16" in errors
