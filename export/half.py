"""An fp32 ONNX to an fp16 one, with fp32 islands: the border, the choice of codes, and what overflows in fp16.

The conversion itself is ONNX Runtime's. Needs no torch, so that a device builds fp16 engines from a bundle's ONNX.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ufr_edge.errors import BuildError
from ufr_edge.export.onnx_check import check_border, layer_names, read_onnx
from ufr_edge.files import atomic_file
from ufr_edge.optional import require

LIMIT = 65504 / 2
"""Values beyond it are taken to overflow in fp16 (which ends at 65504): other faces reach further than those seen."""

FRAMES = 8
_NAMED = 3
_CHOOSING = {"ArgMax", "ArgMin", "TopK"}
_PASSED = {
    "Add", "Div", "Exp", "Expand", "Mul", "Neg", "Pow", "ReduceSum", "Reshape", "Softmax", "Sqrt", "Squeeze", "Sub",
    "Transpose", "Unsqueeze",
}  # fmt: skip
_PRODUCTS = {"MatMul", "Gemm"}


@dataclass(frozen=True, kw_only=True)
class KeptLayers:
    """The layers of a graph that stay in fp32, by node name, and why; `names` says them to people.

    border: conversion from and to uint8. choices: what decides which code of a codebook is taken (a rounding there
    is another code, not a small error). overflow: node name -> largest absolute value in or out of it.
    """

    border: tuple[str, ...]
    choices: tuple[str, ...]
    overflow: Mapping[str, float]
    names: Mapping[str, str]

    @property
    def nodes(self) -> frozenset[str]:
        """All of them."""
        return frozenset((*self.border, *self.choices, *self.overflow))

    @property
    def overflow_words(self) -> tuple[str, ...]:
        """The network's layers that overflow: operator, layer and value, the farthest first."""
        ranked = sorted(self.overflow.items(), key=lambda item: -item[1])
        return tuple(f"{self.names[k]} (reaches {v:.3g})" for k, v in ranked if k not in self.border)

    @property
    def words(self) -> tuple[str, ...]:
        """All but the border: what overflows, then what chooses codes."""
        chosen = [name for name in self.choices if name not in self.overflow]
        return (*self.overflow_words, *(f"{self.names[name]} (chooses codes)" for name in chosen))


def find_kept(source: Path, frames: NDArray[np.uint8]) -> KeptLayers:
    """Find what of an fp32 ONNX of ours must stay in fp32 when the rest becomes fp16.

    frames: uint8 (N, S, S, 3); the range of every layer is measured on the first FRAMES, one at a time.
    Raises InputFileError when the file is damaged.
    """
    proto = _read(source)
    return KeptLayers(
        border=_border(proto),
        choices=_choices(proto),
        overflow=overflowing(proto, frames[:FRAMES]),
        names=layer_names(proto),
    )


def write_half(source: Path, target: Path, kept: KeptLayers) -> None:
    """Write the fp16 twin of an fp32 ONNX of ours. Raises BuildError when it is not what the engines need."""
    half = to_half(_read(source), keep=kept.nodes)
    check_border(half)
    with atomic_file(target) as beside:
        onnx.save(half, beside)


def refuse_overflow(kept: KeptLayers) -> None:
    """Refuse an OpenVINO fp16 engine of a network that overflows. Raises BuildError naming the layers."""
    if beyond := kept.overflow_words:
        more = f" and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else ""
        msg = (
            f"openvino-fp16 would overflow in {', '.join(beyond[:_NAMED])}{more}: OpenVINO keeps no layer of an fp16 "
            "engine in fp32. Ask for --precision bf16 or fp32; ONNX and TensorRT keep these layers in fp32."
        )
        raise BuildError(msg)


def _read(source: Path) -> Any:
    """The graph with a name for every node, the same each time it is read: layers are kept by name."""
    proto = read_onnx(source)
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return proto


def overflowing(proto: Any, frames: NDArray[np.uint8], *, limit: float = LIMIT) -> dict[str, float]:
    """Return the nodes of an fp32 graph that read or write values beyond `limit`: name -> largest absolute value.

    proto: onnx.ModelProto; frames: uint8 (N, S, S, 3). The range of every tensor is taken inside the graph, in ONNX
    Runtime, so that memory stays that of one run. NaN counts as beyond. Raises BuildError when it cannot run.
    """
    peaks = _peaks(proto, frames)
    found: dict[str, float] = {}
    for node in proto.graph.node:
        values = [peaks[name] for name in (*node.input, *node.output) if name in peaks]
        beyond = [value for value in values if not value <= limit]
        if beyond:
            found[str(node.name)] = max(beyond)
    return found


def to_half(proto: Any, *, keep: Collection[str]) -> Any:
    """Return an fp16 copy of an fp32 graph with the nodes named in `keep` left in fp32, casts around them.

    proto: onnx.ModelProto whose nodes all have names. Raises BuildError when types cannot be inferred.
    """
    converter = require("onnxruntime.transformers.float16", extra="export")
    try:
        half = converter.convert_float_to_float16(
            _typed(proto),
            keep_io_types=True,
            op_block_list=[],
            node_block_list=list(keep),
        )
    except (ValueError, AssertionError, onnx.shape_inference.InferenceError) as exc:
        msg = f"The ONNX cannot be turned into fp16: {exc}"
        raise BuildError(msg) from exc
    _bypass_casts(half.graph)
    _rename(half.graph)
    _sort(half.graph)
    del half.graph.value_info[:]
    return half


def _typed(proto: Any) -> Any:
    """A copy with the type of every tensor but the weights, which the converter would take for fp16 already."""
    typed = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    weights = {value.name for value in typed.graph.initializer}
    infos = [copy.deepcopy(value) for value in typed.graph.value_info if value.name not in weights]
    del typed.graph.value_info[:]
    typed.graph.value_info.extend(infos)
    return typed


def _bypass_casts(graph: Any) -> None:
    """Let fp32 neighbours talk in fp32: the converter puts a cast to fp16 and back between them."""
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    half = {name: node.input[0] for name, node in casts.items() if _to(node) == onnx.TensorProto.FLOAT16}
    single = {name: node.input[0] for name, node in casts.items() if _to(node) == onnx.TensorProto.FLOAT}
    whole = {back: half[name] for back, name in single.items() if name in half}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in whole:
                node.input[index] = whole[name]
            elif node.op_type == "Shape" and name in half:
                node.input[index] = half[name]
    _prune_casts(graph)


def _prune_casts(graph: Any) -> None:
    while True:
        used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        kept = [node for node in graph.node if node.op_type != "Cast" or node.output[0] in used]
        if len(kept) == len(graph.node):
            return
        _put(graph, kept)


def _rename(graph: Any) -> None:
    """Give fp32 tensors their own names back where no fp16 twin is left: the converter calls them after the cast."""
    written = {name for node in graph.node for name in node.output}
    back = {}
    for name in written:
        own = name.removesuffix("_cast_to_fp16")
        if own not in written:
            back[name] = own
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = back.get(name, name)


def _to(node: Any) -> int:
    return next(int(item.i) for item in node.attribute if item.name == "to")


def _sort(graph: Any) -> None:
    """Put the nodes into an order in which each comes after those it reads from; the converter appends its casts."""
    writer = {name: index for index, node in enumerate(graph.node) for name in node.output}
    order: list[int] = []
    done: set[int] = set()
    for start in range(len(graph.node)):
        stack = [start]
        while stack:
            index = stack[-1]
            waiting = [
                writer[name]
                for name in graph.node[index].input
                if name in writer and writer[name] not in done
            ]
            if waiting:
                stack += waiting
                continue
            stack.pop()
            if index not in done:
                done.add(index)
                order.append(index)
    _put(graph, [graph.node[index] for index in order])


def _put(graph: Any, nodes: Sequence[Any]) -> None:
    copies = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _peaks(proto: Any, frames: NDArray[np.uint8]) -> dict[str, float]:
    """The largest absolute value of every float tensor, weights included."""
    peaks = {}
    for value in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(value)
        if array.dtype == np.float32 and array.size:
            peaks[str(value.name)] = float(np.abs(array).max())
    probed, names = _with_probes(proto)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        probed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    entry = session.get_inputs()[0].name
    for frame in frames:
        ends = np.abs(np.array(session.run(None, {entry: frame[None]}), dtype=np.float64)).reshape(-1, 2)
        for name, (low, high) in zip(names, ends, strict=True):
            peaks[name] = float(np.maximum(peaks.get(name, 0.0), np.maximum(low, high)))  # NaN stays
    return peaks


def _with_probes(proto: Any) -> tuple[Any, list[str]]:
    """A copy of the graph whose outputs are smallest and largest value of each float tensor in it, and their names."""
    probed = onnx.shape_inference.infer_shapes(proto)
    graph = probed.graph
    names = [
        str(value.name)
        for value in graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]
    del graph.output[:]
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            result = f"{name}/{kind}"
            graph.node.append(onnx.helper.make_node(kind, [name], [result], keepdims=0))
            graph.output.append(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, []))
    return probed, names


def _border(proto: Any) -> tuple[str, ...]:
    """The nodes between uint8 and the network: cast, transpose and scale in; scale, round, clip, transpose, cast out."""
    graph = proto.graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return tuple(dict.fromkeys((*_inwards(graph, readers), *_outwards(graph))))


def _inwards(graph: Any, readers: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    name = graph.input[0].name
    for op in ("Cast", "Transpose", "Mul"):
        node = next((item for item in readers.get(name, ()) if item.op_type == op), None)
        if node is None:
            return
        yield str(node.name)
        name = node.output[0]


def _outwards(graph: Any) -> Iterator[str]:
    writers = {name: node for node in graph.node for name in node.output}
    name = graph.output[0].name
    for op in ("Cast", "Transpose", "Clip", "Round", "Mul"):
        node = writers.get(name)
        if node is None or node.op_type != op:
            return
        yield str(node.name)
        name = node.input[0]


def _choices(proto: Any) -> tuple[str, ...]:
    """What decides an ArgMax, ArgMin or TopK: back to the first matrix product on each way, that one included."""
    writers = {name: node for node in proto.graph.node for name in node.output}
    found: dict[str, None] = {}
    stack = [node for node in proto.graph.node if node.op_type in _CHOOSING]
    while stack:
        node = stack.pop()
        if str(node.name) in found:
            continue
        found[str(node.name)] = None
        if node.op_type in _PRODUCTS:
            continue
        above = [writers[name] for name in node.input if name in writers]
        stack += [item for item in above if item.op_type in _PASSED | _PRODUCTS]
    return tuple(found)
