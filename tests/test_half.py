"""fp16 graphs with fp32 islands, on graphs small enough for ONNX's own reference, which rounds to fp16 for real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ufr_edge.calibration.compare import compare_frames, pattern_frames, run_batches
from ufr_edge.errors import BuildError
from ufr_edge.export.half import KeptLayers, find_kept, overflowing, refuse_overflow, to_half, write_half
from ufr_edge.export.onnx_check import check_border
from ufr_edge.runtime.engines import open_engine_file

SIDE = 16
FACES = pattern_frames(2, SIDE)
Node = tuple[str, Sequence[str], str]


def write_graph(path: Path, middle: Sequence[Node], weights: dict[str, NDArray[Any]]) -> Path:
    """A graph with the border of an exported restorer around `middle`, which reads "image" and writes "restored"."""
    shape = ["batch", SIDE, SIDE, 3]
    nodes = [
        helper.make_node("Cast", ["frames"], ["f"], to=TensorProto.FLOAT, name="in_cast"),
        helper.make_node("Transpose", ["f"], ["nchw"], perm=[0, 3, 1, 2], name="in_transpose"),
        helper.make_node("Mul", ["nchw", "small"], ["image"], name="in_scale"),
        *(helper.make_node(op, list(reads), [writes], name=f"n_{writes}") for op, reads, writes in middle),
        helper.make_node("Mul", ["restored", "large"], ["levels"], name="out_scale"),
        helper.make_node("Round", ["levels"], ["whole"], name="out_round"),
        helper.make_node("Clip", ["whole", "zero", "large"], ["clipped"], name="out_clip"),
        helper.make_node("Transpose", ["clipped"], ["nhwc"], perm=[0, 2, 3, 1], name="out_transpose"),
        helper.make_node("Cast", ["nhwc"], ["out"], to=TensorProto.UINT8, name="out_cast"),
    ]
    scalars = {"small": 1 / 255, "large": 255.0, "zero": 0.0}
    arrays = {**{k: np.array(v, np.float32) for k, v in scalars.items()}, **weights}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("out", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    check_border(proto)
    onnx.save(proto, path)
    return path


def loud(path: Path) -> Path:
    """Two convolutions of which the first makes values up to some 300,000 and the second undoes it."""
    eye = np.eye(3, dtype=np.float32)[:, :, None, None]
    middle = [
        ("Conv", ("image", "up.weight"), "loud"),
        ("Relu", ("loud",), "rectified"),
        ("Conv", ("rectified", "down.weight"), "quiet"),
        ("Relu", ("quiet",), "restored"),
    ]
    # 2 ** k: nothing is rounded but by the range.
    return write_graph(path, middle, {"up.weight": eye * 2**9 * 2**9, "down.weight": eye / 2**9 / 2**9})


def types(proto: Any) -> dict[str, int]:
    """The element type of every tensor between the nodes."""
    found = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.value_info
    return {value.name: value.type.tensor_type.elem_type for value in found}


def evaluate(proto: Any) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):
        return np.asarray(ReferenceEvaluator(proto).run(None, {"frames": FACES})[0])


def test_layers_that_overflow_stay_in_fp32(tmp_path: Path) -> None:
    source = loud(tmp_path / "a.onnx")
    kept = find_kept(source, FACES)
    assert kept.border == (
        "in_cast",
        "in_transpose",
        "in_scale",
        "out_cast",
        "out_transpose",
        "out_clip",
        "out_round",
        "out_scale",
    )
    assert set(kept.overflow) == {"n_loud", "n_rectified", "n_quiet"}
    assert "Conv up (reaches " in " ".join(kept.overflow_words)
    write_half(source, tmp_path / "half.onnx", kept)
    half = onnx.load(tmp_path / "half.onnx")
    check_border(half)
    kinds = types(half)
    assert (kinds["loud"], kinds["rectified"], kinds["restored"]) == (1, 1, TensorProto.FLOAT16)
    assert compare_frames(evaluate(half), evaluate(onnx.load(source))).max_abs <= 1
    with open_engine_file(tmp_path / "half.onnx") as engine:
        assert compare_frames(run_batches(engine, FACES), evaluate(onnx.load(source))).max_abs <= 1


def test_without_islands_the_same_graph_is_lost(tmp_path: Path) -> None:
    source = loud(tmp_path / "a.onnx")
    naive = to_half(onnx.load(source), keep=find_kept(source, FACES).border)
    assert compare_frames(evaluate(naive), evaluate(onnx.load(source))).max_abs > 50


def test_no_cast_to_fp16_lies_between_two_layers_kept(tmp_path: Path) -> None:
    source = loud(tmp_path / "a.onnx")
    half = to_half(onnx.load(source), keep=find_kept(source, FACES).nodes)
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    # in, into the network, out of the island (the way in is fp32 from the border), to the border, out
    assert len(casts) <= 6
    read = {name for node in half.graph.node for name in node.input} | {"out"}
    assert all(node.output[0] in read for node in half.graph.node)
    first, last = half.graph.node[0], half.graph.node[-1]
    assert (first.op_type, last.op_type) == ("Cast", "Cast")


def test_a_quiet_graph_is_fp16_throughout(tmp_path: Path) -> None:
    source = write_graph(tmp_path / "a.onnx", [("Relu", ("image",), "restored")], {})
    kept = find_kept(source, FACES)
    assert (kept.overflow, kept.choices, kept.words) == ({}, (), ())
    refuse_overflow(kept)
    half = to_half(onnx.load(source), keep=kept.nodes)
    assert types(half)["restored"] == TensorProto.FLOAT16


def test_what_chooses_codes_stays_in_fp32(tmp_path: Path) -> None:
    """Back to the matrix product that the choice is made from, and no farther."""
    middle = [
        ("Relu", ("image",), "before"),
        ("MatMul", ("before", "codes"), "scores"),
        ("Softmax", ("scores",), "chances"),
        ("ArgMax", ("chances",), "code"),
        ("CastLike", ("code", "zero"), "number"),
        ("Mul", ("number", "zero"), "nothing"),
        ("Add", ("image", "nothing"), "restored"),
    ]
    codes = np.eye(SIDE, dtype=np.float32)
    # ArgMax is over axis 0, the batch of one: its result (1, 3, S, S) adds nothing.
    source = write_graph(tmp_path / "a.onnx", middle, {"codes": codes})
    kept = find_kept(source, FACES[:1])
    assert set(kept.choices) == {"n_code", "n_chances", "n_scores"}
    assert kept.words[0] == "ArgMax n_code (chooses codes)"
    write_half(source, tmp_path / "half.onnx", kept)
    kinds = types(onnx.load(tmp_path / "half.onnx"))
    assert (kinds["scores"], kinds["chances"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert kinds["before"] == TensorProto.FLOAT16


def test_a_weight_beyond_fp16_counts(tmp_path: Path) -> None:
    weights = {"w": np.array(1e6, np.float32), "v": np.array(1e-6, np.float32)}
    middle = [("Mul", ("zero", "w"), "none"), ("Add", ("image", "none"), "restored")]
    assert overflowing(onnx.load(write_graph(tmp_path / "a.onnx", middle, weights)), FACES) == {"n_none": 1e6}


def test_nan_counts_as_overflow(tmp_path: Path) -> None:
    middle = [("Div", ("zero", "zero"), "nan"), ("Add", ("image", "nan"), "restored")]
    found = overflowing(onnx.load(write_graph(tmp_path / "a.onnx", middle, {})), FACES[:1])
    assert {"n_nan", "n_restored"} <= set(found)


def test_nodes_without_names_are_told_apart(tmp_path: Path) -> None:
    source = loud(tmp_path / "a.onnx")
    proto = onnx.load(source)
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, source)
    kept = find_kept(source, FACES)
    assert len(kept.overflow) == 3
    write_half(source, tmp_path / "half.onnx", kept)
    assert types(onnx.load(tmp_path / "half.onnx"))["loud"] == TensorProto.FLOAT


def test_openvino_fp16_is_refused_where_layers_overflow() -> None:
    layers = {f"n{i}": 1e5 * (i + 1) for i in range(5)}
    kept = KeptLayers(border=(), choices=(), overflow=layers, names={k: f"Conv {k}" for k in layers})
    with pytest.raises(
        BuildError, match=r"openvino-fp16 would overflow in Conv n4 \(reaches 5e\+05\).*and 2 more.*bf16"
    ):
        refuse_overflow(kept)
    refuse_overflow(replace(kept, overflow={}))
