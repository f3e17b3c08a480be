"""The command line: light to start, every command documented, every failure one line and an exit code."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from ufr_edge.cli import COMMANDS, main
from ufr_edge.cli.border import explain
from ufr_edge.errors import EngineMisfitError, GateFailedError, InputFileError, SourceLostError, UfrEdgeError

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "cv2", "numpy", "diffusers", "onnxruntime", "openvino", "av", "rich", "aiohttp"}


def run_cli(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ufr_edge", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def install(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], *, name: str = "run") -> None:
    """Put a command in the place of `ufr-edge NAME` that only calls `action`."""

    @click.command()
    def command() -> None:
        action()

    module = ModuleType(f"ufr_edge.cli.{name}")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def raiser(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name, info in COMMANDS.items():
        assert f"\n  {name}" in result.output
        assert info.help.split()[0] in result.output


@pytest.mark.parametrize("args", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    metadata.version("torch")  # it is installed here; else this test proves nothing
    code = (
        "import sys\nfrom ufr_edge.cli import main\n"
        f"try: main({args!r})\nexcept SystemExit as e: assert e.code == 0\n"
        "print('MODULES', *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(out.stdout.split("MODULES")[1].split())
    assert not loaded & HEAVY
    commands = {name for name in loaded if name.startswith("ufr_edge.cli.")}
    assert commands == {"ufr_edge.cli.border"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage: " in result.output


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented(name: str) -> None:
    assert f"ufr-edge {name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_command_file_is_forgotten() -> None:
    files = {path.stem for path in (ROOT / "ufr_edge" / "cli").glob("*.py")}
    with_command = {
        name
        for name in files
        if "\ndef command(" in (text := (ROOT / "ufr_edge/cli" / f"{name}.py").read_text(encoding="utf-8"))
        or "\ncommand = " in text
    }
    assert with_command <= {name.replace("-", "_") for name in COMMANDS}


def test_a_missing_command_does_not_break_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ufr_edge.cli.adapt", None)
    assert CliRunner().invoke(main, ["--help"]).exit_code == 0
    result = CliRunner().invoke(main, ["adapt"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_a_typing_error_names_the_closest_command() -> None:
    result = CliRunner().invoke(main, ["adpat"])
    assert result.exit_code == 2
    assert "Did you mean 'adapt'?" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputFileError("a.png is no image."), 1, "error: a.png is no image."),
        (GateFailedError("0.5 dB lost."), 3, "error: 0.5 dB lost."),
        (KeyboardInterrupt(), 4, "error: stopped by Ctrl-C."),
        (click.Abort(), 4, "error: stopped by Ctrl-C."),
        (EngineMisfitError("gpu differs."), 5, "error: gpu differs."),
        (SourceLostError("camera left."), 6, "error: camera left."),
        (OSError(errno.ENOSPC, "No space", "x.bin"), 1, "error: The disk is full while writing x.bin."),
        (RuntimeError("I/O error: No space left on device"), 1, "error: The disk is full."),
        (
            ModuleNotFoundError("no", name="torch"),
            1,
            'error: torch is not installed. Run: pip install "ufr-edge[all]"',
        ),
        (ImportError("libGL.so.1: cannot open"), 1, "error: OpenCV misses a system library"),
        (MemoryError("7 GiB"), 1, "error: Out of memory (7 GiB)."),
        (ZeroDivisionError("oh"), 1, "error: ZeroDivisionError: oh (unexpected: run again with --debug"),
        (AssertionError(), 1, "error: AssertionError (unexpected: run again with --debug"),
    ],
)
def test_every_failure_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    install(monkeypatch, raiser(error))
    result = CliRunner().invoke(main, ["run"])
    assert result.exit_code == code
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_debug_shows_the_traceback_and_keeps_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, raiser(GateFailedError("0.5 dB lost.")))
    result = CliRunner().invoke(main, ["--debug", "run"])
    assert result.exit_code == 3
    assert "Traceback (most recent call last)" in result.stderr
    assert "in raiser" in result.stderr or "raise error" in result.stderr
    assert result.stderr.endswith("error: 0.5 dB lost.\n")


def test_a_missing_package_names_the_extra_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, raiser(ModuleNotFoundError("no", name="torch")), name="adapt")
    result = CliRunner().invoke(main, ["adapt"])
    assert result.stderr == 'error: torch is not installed. Run: pip install "ufr-edge[train]"\n'


class OutOfMemoryError(RuntimeError):
    """As torch's, which the border knows by its name: it does not import torch."""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapt", "lower targets.batch (in a file for --config). In training: Raise --accumulate"),
        ("finetune", "Raise --accumulate"),
        ("targets", "Lower --batch"),
        ("eval", "smaller batches or pictures"),
    ],
)
def test_a_full_gpu_says_what_to_lower(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    error = OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 14.56 GiB")
    install(monkeypatch, raiser(error), name=name)
    result = CliRunner().invoke(main, [name])
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: The GPU is out of memory (Tried to allocate 20.00 MiB). ")
    assert words in result.stderr


def test_torchs_own_error_of_a_full_gpu_is_known() -> None:
    import torch

    assert explain(torch.OutOfMemoryError("CUDA out of memory.")).startswith("The GPU is out of memory. ")
    assert explain(RuntimeError("CUDA error: out of memory")).startswith("The GPU is out of memory. ")


@pytest.mark.parametrize("name", sorted(name for name, info in COMMANDS.items() if info.memory))
def test_what_to_lower_is_an_option_of_the_command(name: str) -> None:
    words = [name, "restorer"] if name == "pretrain" else [name]
    shown = CliRunner().invoke(main, [*words, "--help"]).output
    assert all(option in shown for option in re.findall("--[a-z]+", COMMANDS[name].memory or ""))


def test_usage_errors_are_left_to_click(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda: None)
    result = CliRunner().invoke(main, ["run", "--nonsense"])
    assert result.exit_code == 2
    assert "No such option" in result.stderr


def test_a_command_chooses_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda: click.get_current_context().exit(3))
    result = CliRunner().invoke(main, ["run"])
    assert (result.exit_code, result.stderr) == (3, "")


def test_a_message_of_several_lines_stays_below_its_first() -> None:
    assert explain(UfrEdgeError("it failed. Its log ends:\nx")) == "it failed. Its log ends:\nx"


def test_sigterm_unwinds_and_ends_with_four(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = []

    def action() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    install(monkeypatch, action)
    result = CliRunner().invoke(main, ["run"])
    assert result.exit_code == 4
    assert result.stderr.startswith("error: stopped by SIGTERM.")
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("name", "goes_on"), [("adapt", True), ("pretrain", True), ("run", False), ("stream", False)])
def test_ctrl_c_promises_no_more_than_the_command_keeps(
    monkeypatch: pytest.MonkeyPatch, name: str, goes_on: bool
) -> None:
    install(monkeypatch, raiser(KeyboardInterrupt()), name=name)
    result = CliRunner().invoke(main, [name])
    assert ("the same command goes on from there" in result.stderr) is goes_on
    assert ("No half-written file is left." in result.stderr) is not goes_on


def test_a_reader_that_leaves_is_no_traceback() -> None:
    code = (
        "import sys, types, click\n"
        "from ufr_edge.cli import main\n"
        "@click.command()\n"
        "def command():\n"
        "    for _ in range(100000): click.echo('x' * 100)\n"
        "m = types.ModuleType('ufr_edge.cli.run'); m.command = command\n"
        "sys.modules['ufr_edge.cli.run'] = m\n"
        "main(['run'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert errors == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("level", "shown"), [("warning", ["warning: two"]), ("info", ["info: one", "warning: two"])]
)
def test_the_log_goes_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, level: str, shown: list[str]
) -> None:
    def action() -> None:
        logging.getLogger("ufr_edge.some.module").info("one")
        logging.getLogger("ufr_edge.some.module").warning("two")

    install(monkeypatch, action)
    result = CliRunner().invoke(main, ["--log-level", level, "run"])
    assert result.stderr.splitlines() == shown


def test_python_dash_m_is_the_same_program() -> None:
    result = run_cli("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("ufr-edge, version ")


def test_models_lists_shows_and_finds() -> None:
    rows = json.loads(run_cli("models", "list", "--json").stdout)
    for row in (row for row in rows if row["state"] == "shipped"):
        assert Path(row["path"]).is_dir()
        assert row["kind"] in ("restorer", "prior")
        assert row["size"] > 0
        shown = CliRunner().invoke(main, ["models", "info", row["name"]])
        assert shown.exit_code == 0
        assert CliRunner().invoke(main, ["models", "path", row["name"]]).output.strip() == row["path"]
    unknown = CliRunner().invoke(main, ["models", "info", "no-such"])
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("error: There is no shipped model 'no-such'. Shipped: ")
