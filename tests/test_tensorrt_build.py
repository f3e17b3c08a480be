"""The TensorRT build: its child process, memory, time, progress, log and timing cache."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from export_helpers import tiny_model

from ufr_edge.calibration.compare import pattern_frames
from ufr_edge.cli import main
from ufr_edge.errors import BuildError, ConfigError
from ufr_edge.export import tensorrt_export
from ufr_edge.export.onnx_export import export_onnx
from ufr_edge.export.tensorrt_build import build_engine
from ufr_edge.export.tensorrt_export import (
    Building,
    BuildLimits,
    TensorRtConfig,
    check_memory,
    export_tensorrt,
    progress_words,
    timing_file,
)

SIDE = 64
REAL: Any = subprocess.Popen
CONFIG = TensorRtConfig(side=SIDE, workspace_mib=64)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small restorer."""
    path = tmp_path / "m.onnx"
    export_onnx(tiny_model(), path, side=SIDE, faces=pattern_frames(1, SIDE))
    return path


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a Python program in the builder's place."""

    def put(program: str) -> None:
        def start(command: list[str], **more: Any) -> Any:
            return REAL([sys.executable, "-c", program, *command[3:]], **more)

        monkeypatch.setattr(subprocess, "Popen", start)
        monkeypatch.setattr(tensorrt_export, "require", lambda *_, **__: None)
        monkeypatch.setattr(tensorrt_export, "available_memory_mib", lambda: 5000)

    return put


def order(tmp_path: Path, config: TensorRtConfig = CONFIG, **more: Any) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    export_tensorrt(tmp_path / "m.onnx", tmp_path / "m.engine", backend="tensorrt-rtx", config=config, **more)


def test_a_killed_build_is_told_as_out_of_memory(tmp_path: Path, child: Any) -> None:
    child(
        "import os, signal, sys; print('[WARNING] big layer', file=sys.stderr, flush=True); "
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    with pytest.raises(
        BuildError,
        match=r"(?s)killed, probably out of memory: about 964 MiB needed, 5000 MiB are free now; lower --workspace.*"
        r"big layer",
    ):
        order(tmp_path)
    assert "big layer" in (tmp_path / "m.build.log").read_text()
    assert not (tmp_path / "m.engine").exists()


def test_a_build_has_its_time(tmp_path: Path, child: Any) -> None:
    child("import time; time.sleep(60)")
    with pytest.raises(BuildError, match=r"after 0\.3 s\. Raise --build-time"):
        order(tmp_path, TensorRtConfig(side=SIDE, timeout_s=0.3))


def test_the_log_is_where_it_was_asked_for_and_gone_when_all_is_well(tmp_path: Path, child: Any) -> None:
    log = Building(logs=tmp_path / "door.ufr").log("tensorrt-fp16")
    assert log == tmp_path / "door-tensorrt-fp16.build.log"
    child("import sys; sys.exit('the builder gave up')")
    with pytest.raises(BuildError, match=r"exit code 1.*door-tensorrt-fp16\.build\.log"):
        order(tmp_path, log=log)
    assert "gave up" in log.read_text()
    child(
        "import json, sys; print('progress', json.dumps(['Tactics', 1, 4])); print('talk'); "
        "open(json.loads(sys.argv[1])['target'], 'w').write('engine')"
    )
    notes: list[str] = []
    order(tmp_path, log=log, note=notes.append)
    assert notes == ["Tactics: 25 %"]
    assert not log.exists() and (tmp_path / "m.engine").read_text() == "engine"


def test_progress_lines() -> None:
    assert progress_words('progress ["Timing", 1, 3]\n') == "Timing: 33 %"
    assert progress_words("anything else\n") == ""


def test_memory_is_looked_at_before_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(b"x")
    for free, words in (
        (None, ""),
        (5000, ""),
        (2000, "2948 MiB may be needed, 2000 are free: --workspace 1088"),
    ):
        monkeypatch.setattr(tensorrt_export, "available_memory_mib", lambda free=free: free)
        assert words in check_memory(source, "tensorrt", BuildLimits())
        assert bool(words) == bool(check_memory(source, "tensorrt", BuildLimits()))
    monkeypatch.setattr(tensorrt_export, "available_memory_mib", lambda: 500)
    with pytest.raises(BuildError, match=r"about 900 MiB even without workspace, and 500 MiB are free"):
        check_memory(source, "tensorrt", BuildLimits())


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"workspace_mib": 0}, {"timeout_s": 0.0}, {"timeout_s": float("inf")}])
def test_limits_are_above_zero(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        BuildLimits(**wrong)


def test_the_options_are_on_both_commands() -> None:
    for command in (["export"], ["bundle", "rebuild"]):
        text = CliRunner().invoke(main, [*command, "--help"]).output
        assert all(word in text for word in ("--workspace", "--batch", "--build-time"))


def test_what_was_timed_is_kept_for_this_gpu_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UFR_CACHE", str(tmp_path))
    monkeypatch.setattr(metadata, "version", lambda name: "10.9.1")
    monkeypatch.setattr(
        tensorrt_export, "device_fingerprint", lambda: {"gpu": "NVIDIA L4/x", "gpu_compute": "8.9"}
    )
    assert timing_file("tensorrt") == tmp_path / "timing" / "tensorrt-10.9.1-NVIDIA-L4-x-8.9.cache"


@pytest.mark.slow
@pytest.mark.parametrize("before", [None, b"rubbish"])
def test_the_timing_cache_is_read_and_written(source: Path, tmp_path: Path, before: bytes | None) -> None:
    trt = pytest.importorskip("tensorrt_rtx")  # its cache holds nothing, and has tensorrt's calls
    cache = tmp_path / "timing" / "x.cache"
    if before is not None:
        cache.parent.mkdir()
        cache.write_bytes(before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        build_engine(
            trt, source, tmp_path / "m.engine", side=SIDE, max_batch=2, workspace_mib=64, timing=cache
        )
    assert cache.read_bytes().startswith(b"ptrt")


@pytest.mark.slow
def test_a_real_build_tells_how_far_it_is(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    notes: list[str] = []
    export_tensorrt(source, tmp_path / "m.engine", backend="tensorrt-rtx", config=CONFIG, note=notes.append)
    assert any(note.endswith("100 %") for note in notes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.engine", "m.onnx"]
