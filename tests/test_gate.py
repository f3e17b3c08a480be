"""The quality gate: what it measures, what it refuses, and which layers go back to higher precision."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from export_helpers import ANY_PICTURES, SIDE, hostile_model, tiny_model, tiny_restorer, write_faces
from numpy.typing import NDArray

from ufr_edge.calibration.compare import compare_frames, pattern_frames, run_batches
from ufr_edge.calibration.faults import face_faults, solid_faults, solid_frames
from ufr_edge.calibration.gate import (
    Drop,
    GateConfig,
    GateSet,
    implied_drop,
    make_gate_set,
    measure_drop,
    over_limits,
)
from ufr_edge.calibration.layers import QuantizedLayers, load_layers, tensor_owners
from ufr_edge.calibration.perceptual import gmsd
from ufr_edge.calibration.ptq_onnx import QdqConfig, quantize_onnx
from ufr_edge.calibration.ptq_openvino import NncfConfig
from ufr_edge.calibration.sensitivity import LayerCost, measure_layers, retreat_counts
from ufr_edge.cli import main
from ufr_edge.errors import BuildError, ConfigError, GateFailedError
from ufr_edge.export import gated_build
from ufr_edge.export.bundle_export import ExportOptions, ExportReport, export_bundle
from ufr_edge.export.engine_build import Measured, ParitySet
from ufr_edge.export.onnx_export import check_border, export_onnx, restore_frames
from ufr_edge.export.requests import EngineRequest
from ufr_edge.runtime.bundle import read_bundle
from ufr_edge.runtime.engines import open_engine_file

Frames = NDArray[np.uint8]
FACES = pattern_frames(4, SIDE, seed=5)
INT8 = EngineRequest(format="onnx", precision="int8")
FINE = Drop(mean_db=0.1, worst_db=0.2, worst_image=0, psnr_db=45.0, gmsd=0.001, implied=True, images=4)
HOSTILE = "decoder.0.0"


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> QuantizedLayers:
    return _layers(tmp_path_factory.mktemp("layers"), "onnxruntime")


def _layers(folder: Path, runtime: str, *, hostile: bool = False) -> QuantizedLayers:
    base, target = folder / "base.onnx", folder / "int8.onnx"
    model = hostile_model(HOSTILE) if hostile else tiny_model()
    export_onnx(model, base, side=SIDE, faces=FACES[:1])
    config = QdqConfig(runtime="onnxruntime" if runtime == "onnxruntime" else "tensorrt")
    quantize_onnx(base, target, pattern_frames(8, SIDE), config=config)
    return load_layers(base, target)


def _run(model: onnx.ModelProto, folder: Path) -> Frames:
    path = folder / "run.onnx"
    onnx.save(model, path)
    with open_engine_file(path, backend="onnxruntime", device="cpu") as engine:
        return run_batches(engine, FACES)


# What is measured


def test_gmsd_is_zero_for_the_same_and_grows_with_lost_edges() -> None:
    image = FACES[0]
    shifted = np.roll(image, 2, axis=1)
    assert gmsd(image, image) == 0
    assert gmsd(image, np.clip(image.astype(int) + 1, 0, 255).astype(np.uint8)) < 0.005
    assert gmsd(image, shifted) > 0.03


def test_a_drop_against_the_truth() -> None:
    rng = np.random.default_rng(0)

    def noisy(frames: Frames, level: float) -> Frames:
        return np.clip(frames + rng.normal(0, level, frames.shape), 0, 255).round().astype(np.uint8)

    gate = make_gate_set(lambda f: noisy(f, 4), FACES, truth=FACES, origin="test")
    drop = measure_drop(lambda f: noisy(f, 8), gate)
    assert drop.mean_db == pytest.approx(6.0, abs=0.3)  # twice the error is 6 dB
    assert drop.worst_db >= drop.mean_db
    assert not drop.implied
    quality = drop.quality()
    assert quality["reference_drop_db"] == drop.mean_db
    assert quality["reference_fp32_psnr_db"] - quality["reference_psnr_db"] == pytest.approx(
        drop.mean_db, abs=1e-3
    )


def test_without_a_truth_the_drop_is_implied_and_says_so() -> None:
    gate = make_gate_set(lambda f: f, FACES, origin="test")
    drop = measure_drop(lambda f: np.clip(f.astype(int) + 1, 0, 255).astype(np.uint8), gate)
    assert drop.implied
    assert drop.psnr_db == pytest.approx(48.13, abs=0.05)
    assert drop.mean_db == pytest.approx(implied_drop(48.13), abs=1e-3)
    assert "implied_drop_db" in drop.quality()
    assert not any("reference" in name for name in drop.quality())
    assert "implied" in drop.describe()


def test_the_implied_drop_is_what_an_independent_error_costs() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(0, 10 ** (-30 / 20), 400_000)
    other = rng.normal(0, 10 ** (-36 / 20), 400_000)
    measured = 10 * np.log10(np.square(own + other).mean() / np.square(own).mean())
    assert implied_drop(36.0) == pytest.approx(measured, abs=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: np.zeros_like(f), "dead"),
        (lambda f: f * np.array([1, 0, 1], np.uint8), "the green output channel is dead"),
        (lambda f: np.where(f > 150, 255, f).astype(np.uint8), "clipped to white"),
        (lambda f: _hole(f), "NaN or overflow"),
    ],
)
def test_faults_on_faces_are_named(change: Callable[[Frames], Frames], words: str) -> None:
    assert face_faults(FACES, FACES) == []
    assert any(words in fault for fault in face_faults(change(FACES), FACES))


def _hole(frames: Frames) -> Frames:
    broken = frames.copy()
    broken[1, :8, :8] = 255 - np.where(frames[1, :8, :8] > 127, 255, 0)
    return broken


def test_a_solid_colour_that_turns_is_named() -> None:
    solids = solid_frames(SIDE)
    assert solids.shape == (4, SIDE, SIDE, 3)
    assert solid_faults(solids, solids) == []
    got = solids.copy()
    got[1] = 220
    assert solid_faults(got, solids) == ["solid white comes out 35 levels off"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean_db": 0.4}, "the mean drop is 0.400 dB (limit 0.3 dB)"),
        ({"worst_db": 1.5}, "the worst face loses 1.500 dB (limit 1 dB)"),
        ({"gmsd": 0.2}, "the perceptual distance is 0.200 (limit 0.05)"),
        ({"faults": ("the red output channel is dead",)}, "the red output channel is dead"),
    ],
)
def test_each_limit_refuses(changes: dict[str, float], words: str) -> None:
    assert over_limits(FINE, GateConfig()) == ()
    assert over_limits(replace(FINE, **changes), GateConfig()) == (words,)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_limit_must_be_a_number(value: float) -> None:
    with pytest.raises(ConfigError, match="max_drop_db"):
        GateConfig(max_drop_db=value)


# Layers


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_a_graph_with_no_layer_kept_is_the_quantized_one_and_with_all_kept_fp32(
    tmp_path: Path, runtime: str
) -> None:
    found = _layers(tmp_path, runtime)
    assert np.array_equal(_run(found.with_float(()), tmp_path), _run(found.quantized, tmp_path))
    assert np.array_equal(_run(found.with_float(found.names), tmp_path), _run(found.base, tmp_path))
    part = found.with_float(found.names[:5])
    check_border(part)
    assert compare_frames(_run(part, tmp_path), _run(found.base, tmp_path)).psnr_db > 40


def test_a_kept_layer_has_no_quantizer_left(layers: QuantizedLayers) -> None:
    name = layers.names[3]
    graph = layers.with_float([name]).graph
    (node,) = [n for n in graph.node if n.name == name]
    floats = {i.name for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    assert node.input[1] in floats
    quantized = {n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    assert not quantized & {t for t, owner in tensor_owners(layers.base.graph).items() if owner == name}
    used = {name for n in graph.node for name in n.input}
    assert {i.name for i in graph.initializer} <= used  # nothing dead is carried along


def test_every_quantizer_belongs_to_exactly_one_layer(layers: QuantizedLayers) -> None:
    def pairs(model: onnx.ModelProto) -> int:
        return sum(n.op_type == "DequantizeLinear" for n in model.graph.node)

    assert sum(pairs(layers.with_only(name)) for name in layers.names) == pairs(layers.with_float(()))


def test_labels_are_the_network_s(layers: QuantizedLayers) -> None:
    assert layers.label(layers.names[0]) == "stem"
    assert layers.label(layers.names[-1]) == "head"
    assert layers.label(layers.names[1]) == "encoder.0.0.conv1"


def test_layers_of_another_network_are_refused(layers: QuantizedLayers, tmp_path: Path) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(layers.base)
    del other.graph.node[5:]
    with pytest.raises(BuildError, match="not one of the fp32 graph"):
        QuantizedLayers(other, layers.quantized)


def test_the_hostile_layer_is_found(tmp_path: Path) -> None:
    found = _layers(tmp_path, "onnxruntime", hostile=True)
    expected = restore_frames(hostile_model(HOSTILE), FACES)
    costs = measure_layers(found, FACES, expected, time_s=600)
    assert costs[0].label == f"{HOSTILE}.conv1"
    assert costs[0].mse > 20 * costs[1].mse
    assert len(costs) == len(found.names)


def test_measuring_layers_ends_with_its_time_and_begins_at_the_ends(layers: QuantizedLayers) -> None:
    ticks = iter(range(100))
    expected = restore_frames(tiny_model(), FACES)
    costs = measure_layers(layers, FACES, expected, time_s=3, clock=lambda: float(next(ticks)))
    assert {cost.label for cost in costs} == {"stem", "head", "encoder.0.0.conv1"}


def _costs(*errors: float) -> list[LayerCost]:
    return [LayerCost(name=str(i), label=str(i), mse=error) for i, error in enumerate(errors)]


def test_the_smallest_number_that_may_do_comes_first() -> None:
    costs = _costs(100, 50, 1, 1, 1, 1, 1, 1)
    assert list(retreat_counts(costs, drop_db=3.0, limit_db=0.3, most=8)) == [2, 4, 8]
    assert list(retreat_counts(costs, drop_db=1.1, limit_db=0.6, most=8)) == [1, 2, 4, 8]
    assert list(retreat_counts(costs, drop_db=3.0, limit_db=0.3, most=1)) == [1]
    assert list(retreat_counts(costs, drop_db=3.0, limit_db=0.3, most=0)) == []
    assert list(retreat_counts(costs, drop_db=0.1, limit_db=0.3, most=3)) == [1, 2, 3]  # over another limit


# The whole way


def _export(
    tmp_path: Path, *blocks: str, request: EngineRequest = INT8, gate: GateConfig | None
) -> ExportReport:
    faces = write_faces(tmp_path / "faces", 20)
    return export_bundle(
        tiny_restorer(tmp_path, hostile_model(*blocks)),
        tmp_path / "a.ufr",
        formats=[request],
        calibration=faces,
        options=ExportOptions(calibration=ANY_PICTURES, gate=gate),
    )


FORMATS = ["onnx", pytest.param("openvino", marks=pytest.mark.slow), "tensorrt-rtx"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_hostile_layer_goes_back_and_the_engine_passes(tmp_path: Path, format: str) -> None:
    packages = {"openvino": "nncf", "tensorrt-rtx": "tensorrt_rtx", "onnx": "onnxruntime"}
    pytest.importorskip(packages[format])
    request = EngineRequest(format=format, precision="int8")
    report = _export(tmp_path, HOSTILE, request=request, gate=GateConfig())
    built = report.gated[request.name]
    assert built.labels == (f"{HOSTILE}.conv1",)
    assert built.builds == 2
    entry = read_bundle(report.path).manifest.engine(request.name)
    assert entry.quality["implied_drop_db"] < 0.3
    assert entry.calibration is not None
    assert entry.calibration.method.endswith(f"in higher precision: {HOSTILE}.conv1")
    record = json.loads((report.path / "gate.json").read_text())["engines"][request.name]
    assert record["kept_layers"] == [f"{HOSTILE}.conv1"]
    assert record["layer_mse"][f"{HOSTILE}.conv1"] > 100
    assert "model-int8.onnx" not in report.manifest.files  # the graph that failed is not carried along
    read_bundle(report.path).check()


def test_without_a_gate_the_drop_is_measured_and_nothing_refused(tmp_path: Path) -> None:
    report = _export(tmp_path, HOSTILE, gate=None)
    assert report.manifest.engines[0].quality["implied_drop_db"] > 1
    assert report.gated["onnx-int8"].labels == ()


def test_what_cannot_be_met_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        GateFailedError, match=r"drop is .* dB \(limit 1e-07 dB\).*Worst layers.*head"
    ) as caught:
        _export(tmp_path, HOSTILE, gate=GateConfig(max_drop_db=1e-7))
    assert caught.value.exit_code == 3
    assert "of 22 layers in float" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faces", "weights.safetensors"]


def test_an_fp32_engine_is_held_to_the_gate_too(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    gate = GateSet(faces=frames, expected=frames, truth=frames[:0], solids=frames, origin="one face")
    dead = Drop(
        mean_db=0.0, worst_db=0.0, worst_image=0, psnr_db=99.0, gmsd=0.0, implied=True, images=1,
        faults=("the red output channel is dead",),
    )  # fmt: skip
    builds: list[str] = []

    def build(request: EngineRequest, *_: object, **__: object) -> tuple[str, ...]:
        builds.append(request.name)
        return ("x.engine",)

    monkeypatch.setattr(gated_build, "build_engine_files", build)
    monkeypatch.setattr(gated_build, "measure_engine", lambda *_: Measured(parity=None, drop=dead))
    run = gated_build.GateRun(
        folder=Path(),
        sources=cast("Any", None),
        parity=ParitySet(faces=frames, expected=frames, gate=gate),
        config=GateConfig(),
    )
    with pytest.raises(GateFailedError, match="tensorrt-fp32 fails the gate on one face: the red output channel"):
        gated_build.build_gated(EngineRequest(format="tensorrt", precision="fp32"), run)
    assert builds == ["tensorrt-fp32"]


def test_no_time_is_a_refusal_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(GateFailedError, match="The time of 0 s is over"):
        _export(tmp_path, HOSTILE, gate=GateConfig(time_s=0))


def test_the_command_exits_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = write_faces(tmp_path / "faces", 12)
    monkeypatch.setattr("ufr_edge.calibration.frames.count_faces", lambda images: (12, 12))
    restorer = tiny_restorer(tmp_path, hostile_model(HOSTILE))
    monkeypatch.setattr("ufr_edge.restorers.loading.load_any_restorer", lambda source: restorer)
    monkeypatch.setattr("ufr_edge.restorers.loading.restorer_licence", lambda source, accept: None)
    out = tmp_path / "a.ufr"
    order = ["export", "x", "-o", str(out), "--precision", "int8", "--calibration", str(faces)]
    failed = CliRunner().invoke(main, [*order, "--max-drop", "0.0000001"])
    assert failed.exit_code == 3, failed.output
    assert "onnx-int8 fails the gate on 2 held-out calibration faces" in failed.stderr
    assert not out.exists()
    passed = CliRunner().invoke(main, order)
    assert passed.exit_code == 0, passed.output
    assert f"in higher precision, worst first: {HOSTILE}.conv1" in passed.stdout
    assert CliRunner().invoke(main, [*order, "--max-drop", "much"]).exit_code == 2
    assert os.listdir(tmp_path / "a.ufr")  # noqa: PTH208


def test_percentile_ranges_reach_nncf(tmp_path: Path) -> None:
    config = NncfConfig(percentile=99.9)
    assert config.method == "NNCF post-training, mixed preset, percentile 99.9"
    with pytest.raises(ConfigError, match="percentile"):
        NncfConfig(percentile=10)
