"""`--rebuild` of `run`, `stream` and `watch`: engines that do not fit are built before anything runs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clips import write_clip
from tiny_bundle import entry, manifest, write_tiny_bundle, write_tiny_onnx

from ufr_edge.cli import main
from ufr_edge.cli import rebuilding as module
from ufr_edge.cli.rebuilding import rebuild_misfits
from ufr_edge.errors import BuildError, GateFailedError
from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import Wanted, read_bundle, write_manifest
from ufr_edge.runtime.versions import current_version, install_version

ELSEWHERE = {"machine": "a board that is not here"}


def write_misfit(folder: Path, *others: str) -> Path:
    """A bundle whose OpenVINO engine was built for another machine; others: names of engines that fit."""
    folder.mkdir()
    names = ("tiny.onnx", "ov.xml", "ov.bin")
    write_tiny_onnx(folder / "tiny.onnx")
    for name in names[1:]:
        (folder / name).write_bytes(b"old")
    files = {name: sha256_file(folder / name) for name in names}
    misfit = entry("ov", backend="openvino", format="openvino", files=names[1:], device_fingerprint=ELSEWHERE)
    engines = [replace(e, onnx_sha256=files["tiny.onnx"]) for e in (misfit, *map(entry, others))]
    write_manifest(folder, manifest(*engines, files=files))
    return folder


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO")


class Builder:
    """In place of the child process: the misfit fits afterwards, or it fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.calls = error, list[list[str]]()

    def __call__(self, arguments: Sequence[str]) -> None:
        self.calls.append(list(arguments))
        if self.error is not None:
            raise self.error
        bundle = read_bundle(Path(arguments[2]))
        out = bundle.path
        if "-o" in arguments:
            out = Path(arguments[arguments.index("-o") + 1])
            shutil.copytree(bundle.path, out)
        fitting = tuple(replace(item, device_fingerprint={}) for item in bundle.manifest.engines)
        write_manifest(out, replace(bundle.manifest, engines=fitting))


def test_what_fits_is_left_alone(tmp_path: Path) -> None:
    run = Builder()
    assert not rebuild_misfits(write_tiny_bundle(tmp_path / "a.ufr"), Wanted(), run=run)
    assert run.calls == []


def test_a_misfit_is_built_in_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, path = Builder(), write_misfit(tmp_path / "a.ufr")
    assert rebuild_misfits(path, Wanted(), run=run)
    assert run.calls == [["bundle", "rebuild", str(path), "--all-misfits", "--no-progress"]]
    assert "building for this machine: ov " in capsys.readouterr().err
    assert not rebuild_misfits(path, Wanted(), run=run)  # it fits now


def test_of_installed_versions_a_new_one_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "door"
    first = install_version(folder, write_misfit(tmp_path / "a.ufr"))
    before = (first / "manifest.json").read_bytes()
    killed = folder / ".rebuild-killed"
    killed.mkdir()
    (killed / ".lock").touch()
    assert rebuild_misfits(folder, Wanted(), run=Builder())
    assert current_version(folder).number == 2 and (first / "manifest.json").read_bytes() == before
    assert not list(folder.glob(".rebuild-*"))


def test_the_message_names_the_folder_of_versions(tmp_path: Path) -> None:
    install_version(tmp_path / "door", write_misfit(tmp_path / "a.ufr"))
    done = CliRunner().invoke(main, ["stream", "in.mp4", "null://", "--bundle", str(tmp_path / "door")])
    assert done.exit_code == 5 and f"bundle rebuild {tmp_path / 'door'} --all-misfits" in done.output


def test_a_build_that_fails_ends_it_only_where_nothing_else_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Builder(BuildError("no compiler"))
    with pytest.raises(BuildError, match="no compiler"):
        rebuild_misfits(write_misfit(tmp_path / "a.ufr"), Wanted(), run=run)
    both = write_misfit(tmp_path / "b.ufr", "ort")
    assert rebuild_misfits(both, Wanted(), run=run)
    assert "not rebuilt, another engine runs: no compiler" in capsys.readouterr().err
    with pytest.raises(BuildError):
        rebuild_misfits(both, Wanted(name="ov"), run=run)


@pytest.mark.parametrize(("code", "error"), [(1, BuildError), (3, GateFailedError), (4, KeyboardInterrupt)])
def test_how_the_child_ended(monkeypatch: pytest.MonkeyPatch, code: int, error: type[BaseException]) -> None:
    def ended(command: Sequence[str], **_: Any) -> Any:
        assert command[1:3] == ["-m", "ufr_edge"]
        return subprocess.CompletedProcess(command, code, "", "warning: x\nerror: it broke\n")

    monkeypatch.setattr(subprocess, "run", ended)
    with pytest.raises(error, match=None if error is KeyboardInterrupt else "it broke"):
        module._child(["bundle"])


@pytest.mark.parametrize("command", ["run", "stream"])
def test_without_it_the_message_names_it_and_with_it_the_build_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    bundle, clip = write_misfit(tmp_path / "a.ufr"), write_clip(tmp_path / "in.mkv", 2)
    out = str(tmp_path / "out.mkv")
    places = ["-i", str(clip), "-o", out] if command == "run" else [str(clip), out]
    given = [command, *places, "--engine", str(bundle)]
    plain = CliRunner().invoke(main, given)
    assert plain.exit_code == 5
    assert f"give --rebuild, or run: ufr-edge bundle rebuild {bundle} --all-misfits" in plain.output
    monkeypatch.setattr(module, "_child", run := Builder(GateFailedError("too far from fp32")))
    built = CliRunner().invoke(main, [*given, "--rebuild"])
    assert built.exit_code == 3 and "too far from fp32" in built.output and len(run.calls) == 1


@pytest.mark.slow
def test_with_a_real_build(tmp_path: Path) -> None:
    bundle, clip = write_misfit(tmp_path / "a.ufr"), write_clip(tmp_path / "in.mkv", 3)
    given = ["stream", str(clip), "null://", "--bundle", str(bundle), "--rebuild", "--threads", "1"]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 0, done.output
    assert "3 in, 3 out" in done.stdout and "openvino" in done.stdout
