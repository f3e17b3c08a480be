"""The ONNX graph: its uint8 border, its Q/DQ variants, and the IR and TensorRT engines built from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from export_helpers import SIDE, tiny_model

from ufr_edge.calibration import ptq_onnx
from ufr_edge.calibration.compare import compare_frames, pattern_frames, run_batches
from ufr_edge.calibration.ptq_onnx import QdqConfig, nodes_outside_convolutions, quantize_onnx
from ufr_edge.calibration.ptq_openvino import NncfConfig
from ufr_edge.cli import main
from ufr_edge.errors import BuildError, CalibrationError, ConfigError, InputFileError, ShapeError
from ufr_edge.export.half import find_kept, write_half
from ufr_edge.export.onnx_check import check_operators, read_onnx
from ufr_edge.export.onnx_export import OPSET, check_border, export_onnx, restore_frames
from ufr_edge.export.openvino_export import export_openvino
from ufr_edge.export.requests import EngineRequest, plan_requests
from ufr_edge.export.tensorrt_export import TensorRtConfig, export_tensorrt
from ufr_edge.runtime.engines import open_engine_file

FACES = pattern_frames(3, SIDE)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    report = export_onnx(tiny_model(), path, side=SIDE, faces=FACES)
    assert report.parity.max_abs <= 1
    assert report.parity.psnr_db > 70
    return path


@pytest.fixture(scope="module")
def half(base: Path) -> Path:
    path = base.with_name("half.onnx")
    write_half(base, path, find_kept(base, FACES))
    with open_engine_file(path) as engine:
        assert compare_frames(run_batches(engine, FACES), restore_frames(tiny_model(), FACES)).psnr_db > 55
    return path


@pytest.fixture(scope="module")
def quantized(base: Path) -> dict[str, Path]:
    paths = {name: base.with_name(f"{name}.onnx") for name in ("onnxruntime", "tensorrt")}
    quantize_onnx(base, paths["onnxruntime"], FACES, config=QdqConfig(runtime="onnxruntime"))
    quantize_onnx(base, paths["tensorrt"], FACES, config=QdqConfig(runtime="tensorrt"))
    return paths


def _ops(graph: Any) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


def _reader(graph: Any, name: str) -> str:
    (op,) = [node.op_type for node in graph.node if name in node.input]
    return str(op)


def test_cast_comes_first_and_last(base: Path) -> None:
    nodes = onnx.load(base).graph.node
    assert [node.op_type for node in nodes[:2]] == ["Cast", "Transpose"]
    assert [node.op_type for node in nodes[-2:]] == ["Transpose", "Cast"]


def test_batch_is_the_only_dynamic_axis(base: Path) -> None:
    proto = onnx.load(base)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_param
        assert [d.dim_value for d in dims[1:]] == [SIDE, SIDE, 3]
    assert proto.opset_import[0].version == OPSET


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_every_batch_gives_what_torch_gives(base: Path, batch: int) -> None:
    with open_engine_file(base) as engine:
        found = compare_frames(engine.infer(FACES[:batch]), restore_frames(tiny_model(), FACES[:batch]))
    assert found.max_abs <= 1


def test_the_border_rounds_and_clamps() -> None:
    model = tiny_model()
    torch.nn.init.zeros_(model.head.weight)
    assert model.head.bias is not None
    torch.nn.init.zeros_(model.head.bias)
    assert np.array_equal(restore_frames(model, FACES), FACES)  # a zero residual gives back every level
    torch.nn.init.constant_(model.head.bias, 2.0)
    assert restore_frames(model, FACES).min() == 255
    torch.nn.init.constant_(model.head.bias, -2.0)
    assert restore_frames(model, FACES).max() == 0


def test_no_path_of_this_machine_is_in_the_file(base: Path) -> None:
    data = base.read_bytes()
    assert b"stack_trace" not in data
    assert b".py" not in data


def test_the_fp16_graph_keeps_an_fp32_border(half: Path) -> None:
    graph = onnx.load(half).graph
    weights = [i for i in graph.initializer if len(i.dims) == 4]
    assert weights
    assert all(i.data_type == onnx.TensorProto.FLOAT16 for i in weights)
    first = graph.node[0]
    assert first.op_type == "Cast"
    assert first.attribute[0].i == onnx.TensorProto.FLOAT


def test_a_side_the_network_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="multiples of 32"):
        export_onnx(tiny_model(), tmp_path / "a.onnx", side=100, faces=FACES)
    assert not list(tmp_path.iterdir())


def test_check_border_refuses_another_graph(base: Path) -> None:
    proto = onnx.load(base)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"
    with pytest.raises(BuildError, match="uint8"):
        check_border(proto)
    helper = onnx.helper
    plain = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "plain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    with pytest.raises(BuildError, match="begins with Relu"):
        check_border(helper.make_model(plain, opset_imports=[helper.make_opsetid("", OPSET)]))


def test_the_graph_is_folded(base: Path) -> None:
    """Nothing is left to fold: no constants computed at run time, no nodes that do nothing, no unused weights."""
    graph = onnx.load(base).graph
    assert not {"Constant", "ConstantOfShape", "Identity", "Dropout", "Shape", "Gather"} & set(_ops(graph))
    given = {i.name for i in graph.initializer}
    assert all(not node.input or set(node.input) - given for node in graph.node)
    used = {name for node in graph.node for name in node.input}
    assert given <= used


def test_a_damaged_or_foreign_file_is_refused_in_words(base: Path, tmp_path: Path) -> None:
    data = base.read_bytes()
    cases = {"cut.onnx": data[: len(data) // 2], "text.onnx": b"this is no ONNX", "empty.onnx": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputFileError, match=rf"{name} (is damaged or no ONNX|holds no network)"):
            read_onnx(tmp_path / name)
    with pytest.raises(InputFileError, match="does not exist"):
        read_onnx(tmp_path / "none.onnx")


def test_an_unknown_operator_is_named_with_its_layer(base: Path, tmp_path: Path) -> None:
    proto = onnx.load(base)
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    relu.op_type, relu.name = "Sparkle", "encoder_sparkle"
    with pytest.raises(BuildError, match="no Sparkle in layer encoder_sparkle"):
        check_border(proto)
    onnx.save(proto, tmp_path / "s.onnx")
    pytest.importorskip("openvino")
    with pytest.raises(BuildError, match="no Sparkle in layer encoder_sparkle"):
        export_openvino(tmp_path / "s.onnx", tmp_path / "s.xml", precision="fp32")
    relu.op_type, relu.domain = "Relu", "com.example"
    with pytest.raises(BuildError, match="no Relu in layer encoder_sparkle"):
        check_operators(proto)


def test_weights_that_are_not_finite_are_named(base: Path) -> None:
    proto = onnx.load(base)
    weight = next(i for i in proto.graph.initializer if len(i.dims) == 4)
    broken = onnx.numpy_helper.to_array(weight).copy()
    broken[0, 0, 0, 0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(broken, weight.name))
    with pytest.raises(BuildError, match=f"{weight.name} holds NaN"):
        check_border(proto)


def test_the_command_says_what_an_onnx_source_is(base: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no")
    for source, words in ((tmp_path / "bad.onnx", "no ONNX file"), (base, "ufr-edge bundle rebuild")):
        result = CliRunner().invoke(main, ["export", str(source), "-o", str(tmp_path / "a.ufr")])
        assert result.exit_code == 1
        assert words in result.stderr


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_quantizing_leaves_the_border_alone(quantized: dict[str, Path], runtime: str) -> None:
    graph = onnx.load(quantized[runtime]).graph
    check_border(onnx.load(quantized[runtime]))
    assert _reader(graph, graph.node[0].output[0]) == "Transpose"
    around = [n for n in graph.node if n.op_type in ("Round", "Clip", "DepthToSpace")]
    assert not any(_reader(graph, n.output[0]) == "QuantizeLinear" for n in around)
    # The image goes into the residual addition as it is, never through the quantizer.
    (last_add,) = [n for n in graph.node if n.op_type == "Add" and _reader(graph, n.output[0]) == "Mul"]
    writers = {n.output[0]: n.op_type for n in graph.node}
    assert "Mul" in {writers[name] for name in last_add.input}


def test_every_convolution_is_quantized_per_channel(quantized: dict[str, Path]) -> None:
    for path in quantized.values():
        graph = onnx.load(path).graph
        writers = {n.output[0]: n for n in graph.node}
        values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
        convolutions = [n for n in graph.node if n.op_type == "Conv"]
        assert convolutions
        for node in convolutions:
            assert writers[node.input[0]].op_type == "DequantizeLinear"
            weight = writers[node.input[1]]
            assert weight.op_type == "DequantizeLinear"
            assert values[weight.input[0]].dtype == np.int8
            assert values[weight.input[1]].shape == (values[weight.input[0]].shape[0],)


def test_the_tensorrt_graph_is_symmetric_with_biases_in_float(quantized: dict[str, Path]) -> None:
    graph = onnx.load(quantized["tensorrt"]).graph
    values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert values[node.input[2]].dtype == np.int8
            assert not values[node.input[2]].any()
        if node.op_type == "Conv" and len(node.input) == 3:
            assert values[node.input[2]].dtype == np.float32
    assert _ops(graph)["QuantizeLinear"] <= _ops(graph)["Conv"]  # at convolution inputs only


def test_the_onnxruntime_graph_has_unsigned_activations_and_integer_biases(
    quantized: dict[str, Path],
) -> None:
    graph = onnx.load(quantized["onnxruntime"]).graph
    values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    kinds = {values[n.input[2]].dtype for n in graph.node if n.op_type == "QuantizeLinear"}
    assert kinds == {np.dtype(np.uint8)}
    assert any(v.dtype == np.int32 and v.ndim == 1 and len(v) == 8 for v in values.values())


def test_int8_stays_close_to_torch(quantized: dict[str, Path]) -> None:
    with open_engine_file(quantized["onnxruntime"], precision="int8") as engine:
        found = compare_frames(run_batches(engine, FACES), restore_frames(tiny_model(), FACES))
    assert 35 < found.psnr_db < 99  # close, and not secretly fp32


def test_percentile_ranges_differ_from_min_max(
    base: Path, quantized: dict[str, Path], tmp_path: Path
) -> None:
    config = QdqConfig(runtime="onnxruntime", percentile=99.0)
    quantize_onnx(base, tmp_path / "p.onnx", pattern_frames(9, SIDE), config=config)
    check_border(onnx.load(tmp_path / "p.onnx"))
    assert (tmp_path / "p.onnx").read_bytes() != quantized["onnxruntime"].read_bytes()
    assert config.method == "onnxruntime Q/DQ for onnxruntime, percentile 99"
    with pytest.raises(ConfigError, match="percentile"):
        QdqConfig(runtime="onnxruntime", percentile=20)


def test_ignored_nodes_stay_in_float(base: Path, tmp_path: Path) -> None:
    graph = onnx.load(base).graph
    first = next(node.name for node in graph.node if node.op_type == "Conv")
    assert first not in nodes_outside_convolutions(graph)
    quantize_onnx(base, tmp_path / "i.onnx", FACES, config=QdqConfig(runtime="tensorrt", ignored=(first,)))
    kept = next(n for n in onnx.load(tmp_path / "i.onnx").graph.node if n.name == first)
    values = {i.name for i in onnx.load(tmp_path / "i.onnx").graph.initializer}
    assert kept.input[1] in values


def test_a_file_that_is_no_restorer_is_a_build_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="Quantizing"):
        quantize_onnx(base, tmp_path / "no" / "folder.onnx", FACES, config=QdqConfig(runtime="tensorrt"))


def test_quantizing_prints_nothing(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = QdqConfig(runtime="onnxruntime", percentile=99.9)
    quantize_onnx(base, tmp_path / "q.onnx", FACES, config=config)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_openvino_ir(base: Path, tmp_path: Path, precision: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    if precision == "int8":
        pytest.importorskip("nncf")
    xml, weights = export_openvino(base, tmp_path / "m.xml", precision=precision, frames=FACES)
    # fp16 weights run in fp32 here: not every CPU computes in fp16.
    with open_engine_file(
        xml, backend="openvino", precision="int8" if precision == "int8" else "fp32"
    ) as engine:
        found = compare_frames(run_batches(engine, FACES), restore_frames(tiny_model(), FACES))
    assert found.psnr_db > (35 if precision == "int8" else 55)
    assert weights.is_file()
    assert capfd.readouterr().out == ""


def test_openvino_int8_holds_the_brightest_frame(base: Path, tmp_path: Path) -> None:
    """Ranges averaged over the images would clip the one bright face among dark ones."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    frames = np.concatenate([pattern_frames(9, SIDE, seed=3) // 8, pattern_frames(1, SIDE, seed=4)])
    wanted = restore_frames(tiny_model(), frames[-1:])
    found = {}
    for mean in (False, True):
        config = NncfConfig(mean_ranges=mean)
        xml, _ = export_openvino(
            base, tmp_path / f"{mean}.xml", precision="int8", frames=frames, config=config
        )
        with open_engine_file(xml, backend="openvino") as engine:
            found[mean] = compare_frames(engine.infer(frames[-1:]), wanted).psnr_db
    assert found[False] > found[True] + 1


def test_openvino_int8_with_percentile_ranges(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    config = NncfConfig(percentile=99.9)
    xml, _ = export_openvino(base, tmp_path / "m.xml", precision="int8", frames=FACES, config=config)
    with open_engine_file(xml, backend="openvino", precision="int8") as engine:
        found = compare_frames(run_batches(engine, FACES), restore_frames(tiny_model(), FACES))
    assert 30 < found.psnr_db < 99


def test_openvino_int8_needs_frames(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="--calibration"):
        export_openvino(base, tmp_path / "m.xml", precision="int8")


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_tensorrt_rtx_builds_without_a_gpu(
    base: Path, half: Path, quantized: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = {"fp32": base, "fp16": half, "int8": quantized["tensorrt"]}[kind]
    target = tmp_path / "m.engine"
    export_tensorrt(
        source, target, backend="tensorrt-rtx", config=TensorRtConfig(side=SIDE, workspace_mib=256)
    )
    assert target.stat().st_size > 1000


def test_a_failed_tensorrt_build_keeps_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = tmp_path / "broken.onnx"
    source.write_bytes(b"this is no ONNX file")
    with pytest.raises(
        BuildError,
        match=r"(?s)tensorrt-rtx could not build .*broken\.onnx.*does not take.*The log is .*and ends:.*does not take",
    ):
        export_tensorrt(
            source, tmp_path / "m.engine", backend="tensorrt-rtx", config=TensorRtConfig(side=SIDE)
        )
    log = tmp_path / "m.build.log"
    assert sorted(tmp_path.iterdir()) == [source, log]
    assert "does not take" in log.read_text()


def test_an_operator_that_tensorrt_lacks_is_named_with_its_layer(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    make, floats, bytes_ = onnx.helper.make_node, onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    nodes = [
        make("Cast", ["f"], ["x"], to=floats, name="in"),
        make("Det", ["x"], ["y"], name="body/odd"),
        make("Cast", ["y"], ["o"], to=bytes_, name="out"),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, bytes_, ["b", SIDE, SIDE, 3]) for name in ("f", "o")]
    graph = onnx.helper.make_graph(nodes, "odd", ends[:1], ends[1:])
    source = tmp_path / "odd.onnx"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9)
    source.write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match=r"does not take odd\.onnx: Det in layer body/odd"):
        export_tensorrt(
            source, tmp_path / "m.engine", backend="tensorrt-rtx", config=TensorRtConfig(side=SIDE)
        )
    assert not (tmp_path / "m.engine").exists()


def test_percentile_ranges_see_every_frame(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Counting(ptq_onnx.FrameReader):
        def get_next(self) -> dict[str, Any] | None:
            feed = super().get_next()
            if feed is not None:
                seen.append(int(next(iter(feed.values())).sum()))
            return feed

    monkeypatch.setattr(ptq_onnx, "FrameReader", Counting)
    frames = pattern_frames(9, SIDE)[:9]
    config = QdqConfig(runtime="onnxruntime", percentile=99.99)
    quantize_onnx(base, tmp_path / "q.onnx", frames, config=config)
    assert sorted(set(seen)) == sorted({int(frame.sum()) for frame in frames})


def test_combinations() -> None:
    plan = plan_requests(["onnx", "openvino", "onnx"], ["fp32", "int8"])
    assert [r.name for r in plan] == ["onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-int8"]
    with pytest.raises(ConfigError, match=r"onnx has no bf16.*It has: fp32, fp16, int8.*--add openvino-bf16"):
        plan_requests(["openvino", "onnx"], ["fp32", "bf16"])
    with pytest.raises(ConfigError, match=r"onnx has no bf16 engine. It has: fp32, fp16, int8\.$"):
        plan_requests(["onnx"], ["bf16"])
    with pytest.raises(ConfigError, match="no engine format"):
        EngineRequest(format="coreml", precision="fp32")
