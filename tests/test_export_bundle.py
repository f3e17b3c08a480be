"""Bundles: what export writes, what it refuses, and what verify says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from export_helpers import ANY_PICTURES, SIDE, tiny_restorer, write_faces, write_run

from ufr_edge.calibration.compare import pattern_frames, run_batches
from ufr_edge.calibration.frames import load_calibration, load_faces
from ufr_edge.calibration.verify import failing, verify_bundle
from ufr_edge.cli import main
from ufr_edge.errors import (
    BuildError,
    BundleError,
    CalibrationError,
    ConfigError,
    InputFileError,
    OutputError,
)
from ufr_edge.export import gated_build
from ufr_edge.export.bundle_export import ExportOptions, ExportReport, export_bundle
from ufr_edge.export.engine_build import build_engine_files
from ufr_edge.export.requests import EngineRequest
from ufr_edge.runtime.bundle import open_bundle_engine, read_bundle

FP32 = EngineRequest(format="onnx", precision="fp32")
INT8 = EngineRequest(format="onnx", precision="int8")
OPTIONS = ExportOptions(calibration=ANY_PICTURES)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"), 12)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> ExportReport:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "pairs").mkdir()
    (folder / "pairs" / "lq").symlink_to(faces)
    (folder / "pairs" / "hq").symlink_to(faces)
    return export_bundle(
        tiny_restorer(folder),
        folder / "door.ufr",
        formats=[FP32, INT8],
        calibration=faces,
        reference=folder / "pairs",
        lineage={"run_id": "r1"},
        options=OPTIONS,
    )


def test_the_bundle_is_whole_and_says_where_it_comes_from(report: ExportReport, faces: Path) -> None:
    bundle = read_bundle(report.path)
    bundle.check()
    assert bundle.manifest == report.manifest
    files = {p.relative_to(report.path).as_posix() for p in report.path.rglob("*") if p.is_file()}
    assert files == {"manifest.json", *report.manifest.files}
    assert report.manifest.name == "door"
    assert report.manifest.lineage == {
        "camera": "door",
        "run_id": "r1",
        "parity_faces": "held-out calibration faces",
    }
    info = report.manifest.engine("onnx-int8").calibration
    assert info is not None
    assert info.set_id == load_calibration(faces, SIDE, config=ANY_PICTURES).set_id
    assert info.count == 10
    assert report.manifest.engine("onnx-fp32").calibration is None


def test_every_engine_was_run_and_compared_with_torch(report: ExportReport) -> None:
    exact, quantized = (report.manifest.engine(name).parity for name in ("onnx-fp32", "onnx-int8"))
    assert exact is not None
    assert quantized is not None
    assert exact.max_abs <= 1
    assert exact.psnr_db > quantized.psnr_db > 35
    assert exact.images == quantized.images == 2
    assert not report.notes


def test_references_give_the_drop(report: ExportReport) -> None:
    quality = report.manifest.engine("onnx-int8").quality
    drop = quality["reference_fp32_psnr_db"] - quality["reference_psnr_db"]
    assert quality["reference_drop_db"] == pytest.approx(drop, abs=1e-3)
    assert abs(report.manifest.engine("onnx-fp32").quality["reference_drop_db"]) < 0.01


def test_the_evidence_is_in_the_bundle(report: ExportReport, faces: Path) -> None:
    chosen = json.loads((report.path / "calibration.json").read_text())
    data = load_calibration(faces, SIDE, config=ANY_PICTURES)
    assert chosen["chosen"] == [path.name for path in data.paths]
    assert chosen["set_id"] == data.set_id
    gate = json.loads((report.path / "gate.json").read_text())
    assert gate["limits"]["drop_db"] == 0.3
    assert gate["engines"]["onnx-int8"]["kept_layers"] == []
    quality = report.manifest.engine("onnx-int8").quality
    assert gate["engines"]["onnx-int8"]["drop"]["mean_db"] == quality["reference_drop_db"]
    # What verify reads: inputs, and what fp32 makes of them.
    inputs, wanted = (load_faces(report.path / "reference" / part, SIDE, limit=99) for part in ("lq", "fp32"))
    assert np.array_equal(inputs, load_faces(faces, SIDE, limit=99)[:8])
    with open_bundle_engine(report.path, engine="onnx-fp32") as engine:
        assert np.abs(run_batches(engine, inputs).astype(int) - wanted).max() <= 1


def test_faces_need_not_be_stored(tmp_path: Path, faces: Path) -> None:
    options = ExportOptions(store_faces=False)
    report = export_bundle(
        tiny_restorer(tmp_path), tmp_path / "a.ufr", formats=[FP32], parity_faces=faces, options=options
    )
    assert set(report.manifest.files) == {"model.onnx", "gate.json", "weights.safetensors"}
    assert not list(report.path.rglob("*.png"))


def test_a_side_beyond_the_training_is_told(tmp_path: Path, faces: Path) -> None:
    restorer = tiny_restorer(tmp_path)
    side = restorer.side + 32
    report = export_bundle(restorer, tmp_path / "a.ufr", formats=[FP32], side=side, parity_faces=faces)
    assert report.manifest.restorer.side == side
    (note,) = report.notes
    assert f"trained on faces of {restorer.side} px: at {side} px heavily damaged ones" in note


def test_the_runtime_opens_it(report: ExportReport) -> None:
    with open_bundle_engine(report.path, precision="int8") as engine:
        out = engine.infer(pattern_frames(2, SIDE))
    assert out.shape == (2, SIDE, SIDE, 3)
    assert out.dtype == np.uint8


@pytest.mark.slow
def test_openvino_and_tensorrt_engines(tmp_path: Path, faces: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("tensorrt_rtx")
    requests = [
        EngineRequest(format="openvino", precision="fp32"),
        EngineRequest(format="tensorrt-rtx", precision="fp16"),
    ]
    done: list[str] = []
    report = export_bundle(
        tiny_restorer(tmp_path),
        tmp_path / "a.ufr",
        formats=requests,
        side=96,
        parity_faces=faces,
        advance=lambda n=1, note="": done.extend([note] * n),
    )
    assert done == ["openvino-fp32", "tensorrt-rtx-fp16"]
    openvino, rtx = report.manifest.engines
    assert openvino.parity is not None
    assert openvino.files == ("openvino-fp32.xml", "openvino-fp32.bin")
    assert openvino.onnx_sha256 == report.manifest.files["model.onnx"]
    assert report.manifest.restorer.side == 96
    # Its ONNX travels with it, so that a device without torch can build it again.
    assert rtx.files == ("tensorrt-rtx-fp16.engine", "model-fp16.onnx")
    assert rtx.onnx_sha256 == report.manifest.files["model-fp16.onnx"]
    assert set(rtx.device_fingerprint) == {"os", "machine"}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"formats": [INT8]}, CalibrationError, "--calibration"),
        ({"formats": []}, ConfigError, "--format"),
        ({"side": 100}, ConfigError, "multiple of 32"),
        ({"calibration": Path("nowhere")}, CalibrationError, "does not exist"),
        ({"parity_faces": Path("nowhere")}, CalibrationError, "does not exist"),
        ({"reference": Path("nowhere")}, InputFileError, "nowhere"),
    ],
)
def test_refusals_leave_nothing(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], words: str
) -> None:
    restorer = tiny_restorer(tmp_path)
    arguments: dict[str, object] = {"formats": [FP32], **changes}
    with pytest.raises(error, match=words):
        export_bundle(restorer, tmp_path / "a.ufr", **arguments)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_bundle_name_ends_in_ufr(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"-o NAME\.ufr"):
        export_bundle(tiny_restorer(tmp_path), tmp_path / "a", formats=[FP32])


def test_references_must_be_pairs(tmp_path: Path) -> None:
    write_faces(tmp_path / "pairs" / "lq", 2)
    write_faces(tmp_path / "pairs" / "hq", 1)
    with pytest.raises(InputFileError, match=r"001\.png has no partner"):
        export_bundle(
            tiny_restorer(tmp_path), tmp_path / "a.ufr", formats=[FP32], reference=tmp_path / "pairs"
        )


def test_a_failure_midway_leaves_the_old_bundle(
    tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer = tiny_restorer(tmp_path)
    old = tmp_path / "a.ufr"
    old.mkdir()
    (old / "precious").write_text("kept")
    (old / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match="--overwrite"):
        export_bundle(restorer, old, formats=[FP32])

    def fail_on_int8(request: EngineRequest, *args: object, **kwargs: object) -> tuple[str, ...]:
        if request == INT8:
            msg = "no"
            raise BuildError(msg)
        return build_engine_files(request, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(gated_build, "build_engine_files", fail_on_int8)
    with pytest.raises(BuildError):
        export_bundle(restorer, old, formats=[FP32, INT8], calibration=faces, overwrite=True, options=OPTIONS)
    assert (old / "precious").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ufr", "weights.safetensors"]


def test_verify_runs_what_it_can(report: ExportReport, faces: Path) -> None:
    found = verify_bundle(report.path, faces=faces)
    assert [check.name for check in found.engines] == ["onnx-fp32", "onnx-int8"]
    first, second = (check.parity for check in found.engines)
    assert first is not None
    assert first.max_abs == 0
    assert second is not None
    assert failing(found, None) == ()
    assert failing(found, second.psnr_db - 1) == ()
    assert failing(found, second.psnr_db + 1) == (f"onnx-int8 ({second.psnr_db:.1f} dB)",)


def test_verify_command_exit_codes(report: ExportReport) -> None:
    run = CliRunner()
    passed = run.invoke(main, ["verify", str(report.path), "--min-psnr", "30", "--json"])
    assert passed.exit_code == 0
    assert [e["name"] for e in json.loads(passed.stdout)["engines"]] == ["onnx-fp32", "onnx-int8"]
    failed = run.invoke(main, ["verify", str(report.path), "--min-psnr", "90"])
    assert failed.exit_code == 3
    assert "onnx-int8" in failed.stderr
    assert "identical" in failed.stdout


def test_verify_sees_one_changed_byte(tmp_path: Path) -> None:
    export_bundle(tiny_restorer(tmp_path), tmp_path / "a.ufr", formats=[FP32])
    target = tmp_path / "a.ufr" / "model.onnx"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx is damaged"):
        verify_bundle(tmp_path / "a.ufr")


def test_export_command(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    result = CliRunner().invoke(main, ["export", str(run), "-o", str(tmp_path / "a.ufr"), "--side", "32"])
    assert result.exit_code == 0, result.output
    assert "onnx-fp32" in result.stdout
    assert "edge-s at 32 px" in result.stdout
    assert read_bundle(tmp_path / "a.ufr").manifest.engines[0].name == "onnx-fp32"


def test_export_command_refuses_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "a.ufr"
    result = CliRunner().invoke(main, ["export", "no-such-restorer", "-o", str(out), "--precision", "bf16"])
    assert result.exit_code == 1
    assert "onnx has no bf16 engine" in result.stderr
    assert not out.exists()
