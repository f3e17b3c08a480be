"""The edge family in fp16, as a bundle: what it loses, and layers that overflow; and a real build that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from export_helpers import SIDE, tiny_model, tiny_restorer, write_run

from ufr_edge.calibration.compare import compare_frames, pattern_frames, run_batches
from ufr_edge.errors import BuildError, EngineMisfitError
from ufr_edge.export import engine_build
from ufr_edge.export.bundle_export import ExportOptions, export_bundle
from ufr_edge.export.onnx_export import restore_frames
from ufr_edge.export.requests import EngineRequest
from ufr_edge.restorers.edge import EdgeUNet, ResidualBlock
from ufr_edge.runtime.bundle import open_bundle_engine, read_bundle
from ufr_edge.runtime.engines import Engine, open_engine_file

HALF = EngineRequest(format="onnx", precision="fp16")
FACES = pattern_frames(3, SIDE, seed=5)
OPTIONS = ExportOptions(store_faces=False, store_weights=False)
LOUD = "decoder.0.0"


def loud_model() -> EdgeUNet:
    """The tiny model, computing the same, with values of some hundred thousand between two of its convolutions."""
    model = tiny_model()
    block = model.get_submodule(LOUD)
    assert isinstance(block, ResidualBlock) and block.conv1.bias is not None
    with torch.no_grad():
        block.conv1.weight.mul_(2.0**21)
        block.conv1.bias.mul_(2.0**21)
        block.conv2.weight.div_(2.0**21)
    return model


def kinds_of_weights(path: Path) -> dict[str, int]:
    return {i.name: i.data_type for i in onnx.load(path).graph.initializer if len(i.dims) == 4}


def test_an_edge_restorer_in_fp16_loses_next_to_nothing(tmp_path: Path) -> None:
    restorer = tiny_restorer(tmp_path)
    report = export_bundle(restorer, tmp_path / "a.ufr", formats=[HALF], options=OPTIONS)
    (entry,) = report.manifest.engines
    assert (entry.name, entry.precision, entry.files) == ("onnx-fp16", "fp16", ("model-fp16.onnx",))
    assert entry.parity is not None and entry.parity.max_abs <= 2
    assert entry.quality["implied_drop_db"] < 0.05
    assert report.gated["onnx-fp16"].labels == ()
    assert set(kinds_of_weights(report.path / "model-fp16.onnx").values()) == {onnx.TensorProto.FLOAT16}
    whole, half = ((report.path / name).stat().st_size for name in ("model.onnx", "model-fp16.onnx"))
    assert half < whole
    with open_bundle_engine(report.path, precision="fp16") as engine:
        assert compare_frames(run_batches(engine, FACES), restore_frames(restorer.model, FACES)).max_abs <= 2


def test_layers_of_an_edge_restorer_that_overflow_stay_in_fp32(tmp_path: Path) -> None:
    restorer = tiny_restorer(tmp_path, loud_model())
    report = export_bundle(restorer, tmp_path / "a.ufr", formats=[HALF], options=OPTIONS)
    (entry,) = report.manifest.engines
    assert entry.parity is not None and entry.parity.max_abs <= 2
    kinds = kinds_of_weights(report.path / "model-fp16.onnx")
    kept = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT}
    assert kept == {f"model.{LOUD}.conv1.weight", f"model.{LOUD}.conv2.weight"}
    record = json.loads((report.path / "gate.json").read_text())
    told = " ".join(record["engines"]["onnx-fp16"]["kept_layers"])
    assert f"Conv {LOUD}.conv1 (reaches " in told and f"Conv {LOUD}.conv2 (reaches " in told


def test_openvino_fp16_of_it_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    restorer = tiny_restorer(tmp_path, loud_model())
    wanted = [EngineRequest(format="openvino", precision="fp16")]
    with pytest.raises(BuildError, match=rf"would overflow in Conv {LOUD}.*--precision bf16 or fp32"):
        export_bundle(restorer, tmp_path / "a.ufr", formats=wanted, options=OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_openvino_fp16_is_judged_where_no_cpu_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    really = open_engine_file

    def no_fp16(path: Path, **asked: Any) -> Engine:
        if asked.get("precision") == "fp16":
            msg = "this CPU runs no fp16"
            raise EngineMisfitError(msg)
        return really(path, **asked)

    monkeypatch.setattr(engine_build, "open_engine_file", no_fp16)
    wanted = [EngineRequest(format="openvino", precision="fp16")]
    report = export_bundle(tiny_restorer(tmp_path), tmp_path / "a.ufr", formats=wanted, options=OPTIONS)
    (entry,) = report.manifest.engines
    assert report.notes == ("openvino-fp16 was not measured: this CPU runs no fp16",)
    assert entry.parity is None and 0 <= entry.quality["implied_drop_db"] < 0.05
    record = json.loads((report.path / "gate.json").read_text())["engines"]["openvino-fp16"]
    assert record["measured_on"] == "openvino-fp16.xml, its weights computed in fp32"


@pytest.mark.slow
@pytest.mark.parametrize("loud", [False, True])
def test_tensorrt_takes_it(tmp_path: Path, loud: bool) -> None:
    pytest.importorskip("tensorrt_rtx")
    restorer = tiny_restorer(tmp_path, loud_model() if loud else None)
    wanted = [EngineRequest(format="tensorrt-rtx", precision="fp16")]
    report = export_bundle(restorer, tmp_path / "a.ufr", formats=wanted, options=OPTIONS)
    (entry,) = report.manifest.engines
    assert (report.path / entry.files[0]).stat().st_size > 1000
    assert entry.quality["implied_drop_db"] < 0.05


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGSTOP")
def test_a_second_export_waits_and_goes_on_when_the_first_is_killed(tmp_path: Path) -> None:
    """The first is a real process, stopped and then killed in the middle of its build."""
    run, out = write_run(tmp_path / "run"), tmp_path / "a.ufr"
    order = [sys.executable, "-m", "ufr_edge", "export", str(run), "-o", str(out), "--no-progress"]
    first = subprocess.Popen(order, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (halves := [path for path in tmp_path.glob(".a.ufr.*") if path.is_dir()]):
            assert first.poll() is None
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGSTOP)
        assert not out.exists()
        told: list[str] = []

        def advance(n: int = 1, note: str = "") -> None:
            told.append(note)
            if note.startswith("waiting for"):
                first.kill()
                first.wait()

        export_bundle(tiny_restorer(tmp_path), out, formats=[HALF], options=OPTIONS, advance=advance)
    finally:
        first.kill()
        first.wait()
    assert told[0].startswith(f"waiting for process {first.pid} on ")
    assert not any(path.exists() for path in halves)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ufr", "run", "weights.safetensors"]
    read_bundle(out).check()
