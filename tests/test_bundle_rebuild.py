"""Engines built again from the ONNX of the bundle: the new takes the old one's place, or nothing changes."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from export_helpers import SIDE as MODEL_SIDE
from export_helpers import tiny_model, write_images
from tiny_bundle import SIDE, entry, manifest, write_fixed_conv, write_tiny_onnx

from ufr_edge.calibration.compare import pattern_frames
from ufr_edge.calibration.frames import CalibrationConfig, load_calibration
from ufr_edge.cli import main
from ufr_edge.errors import (
    BackendUnavailableError,
    BuildError,
    BundleError,
    CalibrationError,
    ConfigError,
    EngineMisfitError,
    GateFailedError,
    InputFileError,
    OutputError,
)
from ufr_edge.export import rebuild
from ufr_edge.export.onnx_export import export_onnx
from ufr_edge.export.rebuild import rebuild_bundle
from ufr_edge.export.rebuild_evidence import kept_nodes
from ufr_edge.files import sha256_file
from ufr_edge.restorers.edge import EdgeUNet
from ufr_edge.runtime.bundle import open_bundle_engine, read_bundle, write_manifest
from ufr_edge.runtime.bundle_archive import pack_bundle
from ufr_edge.runtime.bundle_info import bundle_problems
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.manifest import CalibrationInfo, EngineEntry, ParityInfo
from ufr_edge.runtime.versions import install_version

GPU = {"gpu": "L4", "gpu_compute": "8.9"}
PARITY = ParityInfo(psnr_db=50.0, max_abs=3, mean_abs=0.1, images=4)


def write_bundle(folder: Path, *engines: EngineEntry, model: EdgeUNet | None = None) -> Path:
    """A bundle over the tiny ONNX, or over a model's, whose engine files hold nothing that runs."""
    folder.mkdir()
    side = SIDE if model is None else MODEL_SIDE
    if model is None:
        write_tiny_onnx(folder / "tiny.onnx")
    else:
        export_onnx(model, folder / "tiny.onnx", side=side, faces=pattern_frames(2, side))
    files = {"tiny.onnx": sha256_file(folder / "tiny.onnx")}
    for name in (name for engine in engines for name in engine.files if name != "tiny.onnx"):
        (folder / name).write_bytes(b"old")
        files[name] = sha256_file(folder / name)
    engines = tuple(replace(engine, onnx_sha256=files["tiny.onnx"]) for engine in engines)
    write_manifest(folder, manifest(*engines, files=files, side=side))
    return folder


def openvino(precision: str = "fp32", **changes: object) -> EngineEntry:
    fields: dict[str, object] = {"backend": "openvino", "format": "openvino", "precision": precision}
    fields["files"] = (f"ov-{precision}.xml", f"ov-{precision}.bin")
    return entry(f"ov-{precision}", **(fields | changes))


def tensorrt(backend: str = "tensorrt", **changes: object) -> EngineEntry:
    fields: dict[str, object] = {
        "backend": backend,
        "format": backend,
        "precision": "fp16",
        "backend_version": "9.9",
    }
    fields |= {"files": ("trt.engine", "tiny.onnx"), "device_fingerprint": {"gpu_compute": "8.7"}}
    return entry("trt", **(fields | changes))


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A machine with a GPU and TensorRT 10.9 whose builder writes a few bytes; returns what it was asked for."""
    calls: list[dict[str, Any]] = []

    def build(source: Path, target: Path, **asked: Any) -> None:
        assert source.is_file()
        target.write_bytes(b"new engine")
        calls.append(asked | {"source": source.name})

    monkeypatch.setattr(rebuild, "export_tensorrt", build)
    monkeypatch.setattr(rebuild, "device_fingerprint", lambda: device_fingerprint() | GPU)
    monkeypatch.setattr(
        rebuild, "installed_backends", lambda: {"onnxruntime": "1.2", "openvino": "2026", "tensorrt": "10.9"}
    )
    return calls


def refuse_to_open(*_: object, **__: object) -> None:
    msg = "no CUDA driver"
    raise BackendUnavailableError(msg)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_misfits_are_built_for_this_machine(
    tmp_path: Path, box: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(
        tmp_path / "a.ufr", entry("ort"), tensorrt(quality={"reference_drop_db": 0.1}, parity=PARITY)
    )
    monkeypatch.setattr(rebuild, "open_entry", refuse_to_open)
    report = rebuild_bundle(path)
    assert [item.name for item in report.engines] == ["trt"]
    assert report.engines[0].note == "trt was not measured: no CUDA driver"
    assert report.engines[0].before == PARITY
    assert report.left == ()
    assert box[0]["backend"] == "tensorrt"
    assert box[0]["source"] == "tiny.onnx"
    assert box[0]["config"].side == SIDE
    made = read_bundle(path)
    assert bundle_problems(made) == ()
    fresh = made.manifest.engine("trt")
    assert fresh.backend_version == "10.9"
    assert fresh.device_fingerprint == {"gpu_compute": "8.9"}
    assert (fresh.parity, fresh.quality) == (None, {})  # those of the old file are not the new one's
    assert (path / "trt.engine").read_bytes() == b"new engine"
    assert "rebuilt_from" in made.manifest.lineage
    assert [p.name for p in tmp_path.iterdir()] == ["a.ufr"]
    assert rebuild_bundle(path).engines == ()  # now it fits


def test_a_bundle_caught_between_two_names_is_put_back(tmp_path: Path, box: list[dict[str, Any]]) -> None:
    """Killed between taking the old bundle away and putting the new one in its place."""
    path = write_bundle(tmp_path / "a.ufr", entry("ort"))
    hidden = tmp_path / ".a.ufr.old.x" / "a.ufr"
    hidden.parent.mkdir()
    path.rename(hidden)
    assert rebuild_bundle(path).engines == ()
    assert bundle_problems(read_bundle(path)) == ()
    with pytest.raises(InputFileError, match="does not exist"):
        rebuild_bundle(tmp_path / "no" / "where.ufr")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ufr"]


def test_what_a_build_cannot_mend_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    path = write_bundle(
        tmp_path / "a.ufr",
        replace(tensorrt("tensorrt-rtx"), backend="unknown"),
        entry("ort", device_fingerprint={"os": "vms"}),
    )
    before = snapshot(path)
    report = rebuild_bundle(path)
    assert report.engines == ()
    assert {name for name, _ in report.left} == {"trt", "ort"}
    assert all(reason for _, reason in report.left)
    assert snapshot(path) == before


def test_an_openvino_engine_is_built_measured_and_runs(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = write_bundle(tmp_path / "a.ufr", openvino(device_fingerprint={"machine": "vax"}, parity=PARITY))
    with pytest.raises(EngineMisfitError):
        open_bundle_engine(path)
    (engine,) = rebuild_bundle(path, max_drop=0.01).engines
    assert engine.parity is not None
    assert engine.parity.max_abs == 0
    assert bundle_problems(read_bundle(path)) == ()
    assert read_bundle(path).manifest.engine("ov-fp32").parity == engine.parity
    with open_bundle_engine(path, threads=1) as opened:
        assert (opened.infer(np.full((1, SIDE, SIDE, 3), 8, np.uint8)) == 4).all()


def test_a_new_output_leaves_the_old_bundle_alone(tmp_path: Path, box: list[dict[str, Any]]) -> None:
    pytest.importorskip("openvino")
    path = write_bundle(tmp_path / "a.ufr", openvino())
    before = snapshot(path)
    assert rebuild_bundle(path, engines=["ov-fp32"], out=tmp_path / "b.ufr").path == tmp_path / "b.ufr"
    assert snapshot(path) == before
    assert bundle_problems(read_bundle(tmp_path / "b.ufr")) == ()
    with pytest.raises(OutputError, match="exists already"):
        rebuild_bundle(path, engines=["ov-fp32"], out=tmp_path / "b.ufr")


@pytest.mark.parametrize("error", [BuildError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_bundle(
    tmp_path: Path, box: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(source: Path, target: Path, **_: Any) -> None:
        target.write_bytes(b"half")
        raise error

    path = write_bundle(tmp_path / "a.ufr", tensorrt())
    before = snapshot(path)
    monkeypatch.setattr(rebuild, "export_tensorrt", fail)
    with pytest.raises(error):
        rebuild_bundle(path)
    assert snapshot(path) == before
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["a.ufr"]


class Darker(AbstractContextManager["Darker"]):
    """An engine that does something else than its ONNX."""

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def infer(self, faces: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return faces // 3


def test_a_worse_engine_fails_the_gate(
    tmp_path: Path, box: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(tmp_path / "a.ufr", tensorrt())
    before = snapshot(path)
    monkeypatch.setattr(rebuild, "open_entry", lambda *_: Darker())
    with pytest.raises(
        GateFailedError,
        match=r"built again, fails the gate on a test pattern: the mean drop is .* --max-drop",
    ):
        rebuild_bundle(path)
    assert snapshot(path) == before
    report = rebuild_bundle(path, max_drop=None)
    assert report.measured_on == "a test pattern"
    drop = report.engines[0].drop
    assert drop is not None
    assert drop.mean_db > 0.3
    assert read_bundle(path).manifest.engine("trt").quality["implied_drop_db"] == drop.mean_db


def test_the_faces_of_the_bundle_are_used_and_its_record_kept_true(
    tmp_path: Path, box: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(tmp_path / "a.ufr", tensorrt())
    faces = pattern_frames(2, SIDE)
    write_images(path / "reference" / "lq", faces)
    write_images(path / "reference" / "hq", faces // 2)
    record = {"engines": {"trt": {"kept_layers": ["head"], "drop": "old"}, "other": {"drop": "kept"}}}
    (path / "gate.json").write_text(json.dumps(record))
    made = read_bundle(path).manifest
    names = [str(p.relative_to(path)) for p in (path / "reference").rglob("*.png")] + ["gate.json"]
    write_manifest(path, replace(made, files={**made.files, **{n: sha256_file(path / n) for n in names}}))
    monkeypatch.setattr(rebuild, "open_entry", lambda *_: Darker())
    report = rebuild_bundle(path, max_drop=None)
    assert report.measured_on == "2 faces of the bundle"
    drop = report.engines[0].drop
    assert drop is not None
    assert not drop.implied
    assert bundle_problems(read_bundle(path)) == ()
    engines = json.loads((path / "gate.json").read_text())["engines"]
    assert engines["other"] == {"drop": "kept"}
    assert engines["trt"]["kept_layers"] == ["head"]
    assert engines["trt"]["drop"]["mean_db"] == drop.mean_db


def test_layers_left_in_float_are_found_again(tmp_path: Path) -> None:
    path = write_fixed_conv(tmp_path / "conv.onnx")
    (node,) = [n for n in onnx.load(path).graph.node if n.op_type == "Conv"]
    assert kept_nodes(path, ()) == ()
    assert kept_nodes(path, (node.name,)) == (node.name,)
    with pytest.raises(BuildError, match=r"keeps layer gone in float, but conv\.onnx has no such layer"):
        kept_nodes(path, ("gone",))


@pytest.mark.parametrize(
    ("engine", "name", "error", "words"),
    [
        (entry("ort"), "ort", ConfigError, "nothing to build"),
        (entry("ort"), "nope", BundleError, "no engine 'nope'"),
        (openvino("int8"), "ov-int8", CalibrationError, "--calibration FOLDER"),
        (tensorrt("tensorrt-rtx"), "trt", BackendUnavailableError, r"ufr-edge\[tensorrt-rtx\]"),
        (
            tensorrt(device_fingerprint={"board": "Orin"}),
            "trt",
            EngineMisfitError,
            "with board, which this one lacks",
        ),
    ],
)
def test_refusals_come_before_any_work(
    tmp_path: Path,
    box: list[dict[str, Any]],
    engine: EngineEntry,
    name: str,
    error: type[Exception],
    words: str,
) -> None:
    path = write_bundle(tmp_path / "a.ufr", engine)
    before = snapshot(path)
    with pytest.raises(error, match=words):
        rebuild_bundle(path, engines=[name])
    assert snapshot(path) == before
    assert box == []


def test_bundles_that_cannot_be_built_from(tmp_path: Path, box: list[dict[str, Any]]) -> None:
    path = write_bundle(tmp_path / "a.ufr", tensorrt())
    whole = read_bundle(path).manifest
    with pytest.raises(ConfigError, match="is an archive. Unpack it first"):
        rebuild_bundle(pack_bundle(read_bundle(path), tmp_path / "a.ufrz"))
    install_version(tmp_path / "door", path)
    with pytest.raises(ConfigError, match=r"never change. Give -o NEW\.ufr"):
        rebuild_bundle(tmp_path / "door")
    write_manifest(path, replace(whole, engines=(replace(whole.engines[0], onnx_sha256="7" * 64),)))
    with pytest.raises(BundleError, match="The ONNX that engine trt was built from is not in the bundle"):
        rebuild_bundle(path)
    (path / "tiny.onnx").write_bytes(b"broken")
    with pytest.raises(BundleError, match="is damaged"):
        rebuild_bundle(path)


def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = str(write_bundle(tmp_path / "a.ufr", openvino()))
    run = CliRunner()
    for wrong in ([], ["--all-misfits", "--engine", "ov-fp32"]):
        assert run.invoke(main, ["bundle", "rebuild", path, *wrong]).exit_code == 2
    nothing = run.invoke(main, ["bundle", "rebuild", path, "--all-misfits", "--no-progress"])
    assert nothing.exit_code == 0
    assert "nothing to build, it is as it was" in nothing.stdout
    done = run.invoke(main, ["bundle", "rebuild", path, "--engine", "ov-fp32", "--no-progress"])
    assert done.exit_code == 0, done.output
    assert "identical" in done.stdout
    value = json.loads(run.invoke(main, ["bundle", "rebuild", path, "--engine", "ov-fp32", "--json"]).stdout)
    assert value["engines"][0]["parity"]["max_abs"] == 0
    wrong_limit = ["--engine", "ov-fp32", "--max-drop", "-1"]
    assert run.invoke(main, ["bundle", "rebuild", path, *wrong_limit]).exit_code == 2


@pytest.mark.slow
def test_tensorrt_for_rtx_is_built_for_real(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = write_bundle(
        tmp_path / "a.ufr", tensorrt("tensorrt-rtx", precision="fp32", device_fingerprint={"os": "x"})
    )
    (engine,) = rebuild_bundle(path, engines=["trt"]).engines
    assert (path / "trt.engine").stat().st_size > 1000
    assert engine.parity is not None or "not measured" in engine.note
    made = read_bundle(path)
    assert bundle_problems(made) == ()
    assert made.manifest.engine("trt").device_fingerprint == {"os": device_fingerprint()["os"]}


def test_calibration_of_another_format_is_kept(
    tmp_path: Path, box: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = CalibrationInfo(set_id="2" * 64, count=64, method="Q/DQ")
    path = write_bundle(tmp_path / "a.ufr", tensorrt(precision="int8", calibration=known))
    monkeypatch.setattr(rebuild, "open_entry", refuse_to_open)
    rebuild_bundle(path)  # its ranges are in its ONNX: no faces needed
    assert read_bundle(path).manifest.engine("trt").calibration == known


@pytest.mark.slow
def test_openvino_int8_is_calibrated_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    faces = write_images(tmp_path / "faces", pattern_frames(12, MODEL_SIDE))
    unproven = CalibrationConfig(require_faces=False)  # smooth pictures stand in for faces
    monkeypatch.setattr(
        rebuild, "load_calibration", lambda path, side: load_calibration(path, side, config=unproven)
    )
    path = write_bundle(tmp_path / "a.ufr", openvino("int8"), model=tiny_model())
    (engine,) = rebuild_bundle(path, engines=["ov-int8"], calibration=faces).engines
    assert engine.parity is not None
    assert engine.drop is not None
    assert 0 < engine.drop.mean_db < 0.3
    info = read_bundle(path).manifest.engine("ov-int8").calibration
    assert info is not None
    assert info.set_id == load_calibration(faces, MODEL_SIDE, config=unproven).set_id
    assert bundle_problems(read_bundle(path)) == ()


def test_an_engine_that_is_not_what_was_asked_for_is_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    faces = write_images(tmp_path / "faces", pattern_frames(12, SIDE))
    unproven = CalibrationConfig(require_faces=False)
    monkeypatch.setattr(
        rebuild, "load_calibration", lambda path, side: load_calibration(path, side, config=unproven)
    )
    path = write_bundle(tmp_path / "a.ufr", openvino("int8"))  # it has no layer that could run in int8
    before = snapshot(path)
    with pytest.raises(BuildError, match="holds float, not int8.*as it was"):
        rebuild_bundle(path, engines=["ov-int8"], calibration=faces)
    assert snapshot(path) == before


@pytest.mark.parametrize("asked", [["--all-misfits"], ["--engine", "ov-fp32"]])
def test_a_device_needs_neither_torch_nor_onnx(tmp_path: Path, asked: list[str]) -> None:
    """As docs/jetson.md says: the base install and the engine's own package."""
    pytest.importorskip("openvino")
    path = write_bundle(tmp_path / "a.ufr", entry("ort", files=("tiny.onnx",)), openvino())
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'nncf', 'safetensors'): sys.modules[name] = None\n"
        "from ufr_edge.cli import main\n"
        "main(['bundle', 'rebuild', *sys.argv[1:], '--no-progress'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), *asked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert bundle_problems(read_bundle(path)) == ()
    assert (path / "ov-fp32.bin").read_bytes() == b"old" or "--engine" in asked
