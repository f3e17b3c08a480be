"""Engines added to a bundle that was exported without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_half import SIDE, loud

from ufr_edge.cli import main
from ufr_edge.errors import (
    BackendUnavailableError,
    BuildError,
    CalibrationError,
    ConfigError,
    EngineMisfitError,
)
from ufr_edge.export import rebuild
from ufr_edge.export.rebuild import rebuild_bundle
from ufr_edge.export.requests import EngineRequest, parse_request
from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import read_bundle, write_manifest
from ufr_edge.runtime.manifest import Manifest, RestorerInfo

HERE = {"os": "linux", "machine": "x86_64"}
GPU = {"gpu": "L4", "gpu_compute": "8.9"}
BACKENDS = {"onnxruntime": "1.2", "openvino": "2026.4.1", "tensorrt": "10.9", "tensorrt-rtx": "1.7"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of the ONNX alone, whose first layers overflow in fp16."""
    folder = tmp_path / "a.ufr"
    folder.mkdir()
    loud(folder / "model.onnx")
    files = {"model.onnx": sha256_file(folder / "model.onnx")}
    info = RestorerInfo(
        arch="x", side=SIDE, weights_sha256="1" * 64, code_licence="MIT", weights_licence="MIT"
    )
    write_manifest(
        folder, Manifest(name="a", created="now", restorer=info, onnx="model.onnx", engines=(), files=files)
    )
    return folder


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with a GPU; TensorRT's builder writes a few bytes. Returns the ONNX files it was given."""
    calls: list[str] = []

    def build(source: Path, target: Path, **_: Any) -> None:
        assert source.is_file()
        target.write_bytes(b"engine")
        calls.append(source.name)

    def refuse(*_: object) -> None:
        msg = "no CUDA driver"
        raise BackendUnavailableError(msg)

    monkeypatch.setattr(rebuild, "export_tensorrt", build)
    monkeypatch.setattr(rebuild, "open_entry", refuse)
    monkeypatch.setattr(rebuild, "device_fingerprint", lambda: HERE | GPU)
    monkeypatch.setattr(rebuild, "installed_backends", lambda: BACKENDS)
    return calls


def test_tensorrt_engines_are_added(bundle: Path, built: list[str]) -> None:
    report = rebuild_bundle(bundle, engines=(), add=["tensorrt-rtx-fp16", "tensorrt-fp32"])
    assert [item.name for item in report.engines] == ["tensorrt-rtx-fp16", "tensorrt-fp32"]
    assert "no CUDA driver" in report.engines[0].note
    assert built == ["model-fp16.onnx", "model.onnx"]
    whole = read_bundle(bundle)
    whole.check()
    half, single = whole.manifest.engines
    assert (half.backend, half.backend_version, half.precision, half.device) == (
        "tensorrt-rtx",
        "1.7",
        "fp16",
        "cuda",
    )
    assert half.files == ("tensorrt-rtx-fp16.engine", "model-fp16.onnx")
    assert half.onnx_sha256 == sha256_file(bundle / "model-fp16.onnx")
    assert half.device_fingerprint == HERE
    assert single.device_fingerprint == HERE | GPU
    assert set(whole.manifest.files) == {
        "model.onnx",
        "model-fp16.onnx",
        "tensorrt-rtx-fp16.engine",
        "tensorrt-fp32.engine",
    }
    again = rebuild_bundle(bundle, engines=["tensorrt-rtx-fp16"])
    assert [item.name for item in again.engines] == ["tensorrt-rtx-fp16"]


def test_what_cannot_be_added_is_refused_in_words(
    bundle: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in bundle.iterdir())
    with pytest.raises(ConfigError, match="no engine format 'tensor'"):
        rebuild_bundle(bundle, engines=(), add=["tensor-fp16"])
    with pytest.raises(ConfigError, match="tensorrt has no bf16"):
        rebuild_bundle(bundle, engines=(), add=["tensorrt-bf16"])
    with pytest.raises(ConfigError, match="fits every machine"):
        rebuild_bundle(bundle, engines=(), add=["onnx-fp16"])
    with pytest.raises(CalibrationError, match="--calibration FOLDER"):
        rebuild_bundle(bundle, engines=(), add=["tensorrt-int8"])
    with pytest.raises(BuildError, match=r"openvino-fp16 would overflow in Conv up"):
        rebuild_bundle(bundle, engines=(), add=["openvino-fp16"])
    monkeypatch.setattr(rebuild, "device_fingerprint", lambda: HERE)
    with pytest.raises(EngineMisfitError, match="this one has none"):
        rebuild_bundle(bundle, engines=(), add=["tensorrt-fp16"])
    monkeypatch.setattr(rebuild, "installed_backends", lambda: {"onnxruntime": "1.2"})
    with pytest.raises(BackendUnavailableError, match=r'pip install "ufr-edge\[tensorrt-rtx\]"'):
        rebuild_bundle(bundle, engines=(), add=["tensorrt-rtx-fp16"])
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_one_that_is_there_is_built_again_not_added(bundle: Path, built: list[str]) -> None:
    rebuild_bundle(bundle, engines=(), add=["tensorrt-rtx-fp16"])
    with pytest.raises(ConfigError, match="Build it again with --engine tensorrt-rtx-fp16"):
        rebuild_bundle(bundle, engines=(), add=["tensorrt-rtx-fp16"])


def test_the_command_adds_an_openvino_engine_and_measures_it(bundle: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    result = CliRunner().invoke(main, ["bundle", "rebuild", str(bundle), "--add", "openvino-fp32", "--json"])
    assert result.exit_code == 0, result.output
    (engine,) = json.loads(result.stdout)["engines"]
    assert (engine["name"], engine["before"]) == ("openvino-fp32", None)
    assert engine["parity"]["max_abs"] <= 1
    assert read_bundle(bundle).manifest.engine("openvino-fp32").files == (
        "openvino-fp32.xml",
        "openvino-fp32.bin",
    )


def test_the_command_wants_something_to_do(bundle: Path) -> None:
    for asked in ([], ["--engine", "a", "--all-misfits"]):
        result = CliRunner().invoke(main, ["bundle", "rebuild", str(bundle), *asked])
        assert result.exit_code == 2
        assert "--add FORMAT-PRECISION" in result.output


def test_names_of_engines_are_read() -> None:
    assert parse_request("tensorrt-rtx-int8") == EngineRequest(format="tensorrt-rtx", precision="int8")
    with pytest.raises(ConfigError, match="'openvino' is no name of an engine. Give FORMAT-PRECISION"):
        parse_request("openvino")


@pytest.mark.slow
def test_a_real_engine_is_added(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    rebuild_bundle(bundle, engines=(), add=["tensorrt-rtx-fp16"])
    whole = read_bundle(bundle)
    whole.check()
    assert whole.file("tensorrt-rtx-fp16.engine").stat().st_size > 1000
