"""NNCF's accuracy control for OpenVINO: what it is told, what it leaves in int8, and how it is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from export_helpers import ANY_PICTURES, SIDE, hostile_model, tiny_restorer, write_faces

from ufr_edge.calibration import accuracy_control
from ufr_edge.calibration.accuracy_control import METHOD, AccuracyControl
from ufr_edge.calibration.compare import pattern_frames
from ufr_edge.calibration.gate import NOMINAL_DB, GateConfig, face_drops, make_gate_set
from ufr_edge.cli import main
from ufr_edge.errors import GateFailedError
from ufr_edge.export.bundle_export import ExportOptions, ExportReport, export_bundle
from ufr_edge.export.requests import EngineRequest
from ufr_edge.runtime.bundle import read_bundle

FACES = pattern_frames(3, SIDE, seed=5)
OPENVINO = EngineRequest(format="openvino", precision="int8")
HOSTILE = "decoder.0.0"


def _control(**changes: Any) -> AccuracyControl:
    gate = make_gate_set(lambda f: f, FACES, origin="test")
    return AccuracyControl(**{"gate": gate, "max_drop_db": 0.1, "time_s": 10.0, "most": 5, **changes})


def _off_by(level: int) -> Callable[[Any], list[Any]]:
    return lambda faces: [np.clip(faces.astype(int) + level, 0, 255).astype(np.uint8)]


def _validate(control: AccuracyControl) -> Callable[[Any, Iterable[int]], tuple[float, list[float]]]:
    return accuracy_control._validation(control)


def test_the_metric_is_the_drop_that_the_gate_measures() -> None:
    control = _control()
    validate = _validate(control)
    mean, each = validate(_off_by(0), range(3))
    assert mean == pytest.approx(NOMINAL_DB)
    mean, each = validate(_off_by(3), [2, 0])
    drops = face_drops(_off_by(3)(FACES)[0], control.gate)
    assert each == pytest.approx([NOMINAL_DB - drops[2], NOMINAL_DB - drops[0]])
    assert mean == pytest.approx(NOMINAL_DB - (drops[0] + drops[2]) / 2)


def test_the_time_ends_the_search() -> None:
    ticks = iter([0.0, 5.0, 11.0])
    validate = _validate(_control(clock=lambda: next(ticks)))
    validate(_off_by(1), [0])
    with pytest.raises(accuracy_control._TimeOverError):
        validate(_off_by(1), [0])


def _export(folder: Path, gate: GateConfig) -> ExportReport:
    return export_bundle(
        tiny_restorer(folder, hostile_model(HOSTILE)),
        folder / "a.ufr",
        formats=[OPENVINO],
        calibration=write_faces(folder / "faces", 20),
        options=ExportOptions(calibration=ANY_PICTURES, gate=gate, retreat="nncf"),
    )


@pytest.mark.slow
def test_nncf_puts_the_hostile_layer_back(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    report = _export(tmp_path, GateConfig(time_s=600))
    built = report.gated[OPENVINO.name]
    assert f"{HOSTILE}.conv2" in built.labels or f"{HOSTILE}.conv1" in built.labels
    assert len(built.labels) < 8
    assert built.by == METHOD
    entry = read_bundle(report.path).manifest.engine(OPENVINO.name)
    assert entry.quality["implied_drop_db"] < 0.3
    assert entry.calibration is not None
    assert f"in higher precision by {METHOD}: " in entry.calibration.method


@pytest.mark.slow
def test_no_time_for_nncf_is_a_refusal_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    with pytest.raises(GateFailedError, match="did not reach a drop of 0.3 dB"):
        _export(tmp_path, GateConfig(time_s=0))
    assert not (tmp_path / "a.ufr").exists()


def test_it_is_for_openvino_int8_only(tmp_path: Path) -> None:
    order = [
        "export",
        "edge-m-256",
        "-o",
        str(tmp_path / "a.ufr"),
        "--precision",
        "int8",
        "--retreat",
        "nncf",
    ]
    result = CliRunner().invoke(main, [*order, "--calibration", str(tmp_path)])
    assert result.exit_code == 1
    assert "Give --format openvino --precision int8" in result.stderr
