"""Reading ONNX files that may be damaged, foreign, or hold what an engine cannot build; said before any build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from ufr_edge.errors import BuildError, InputFileError

_STANDARD = ("", "ai.onnx")
_NAMED = 3


def read_onnx(path: Path) -> Any:
    """Read an ONNX file: onnx.ModelProto. Raises InputFileError when it is missing, damaged or no ONNX."""
    try:
        proto = onnx.load(path)
    except FileNotFoundError as exc:
        msg = f"{path} does not exist."
        raise InputFileError(msg) from exc
    except (DecodeError, OSError, ValueError) as exc:
        msg = f"{path} is damaged or no ONNX file ({exc}). Copy or export it again."
        raise InputFileError(msg) from exc
    if not proto.graph.node or not proto.graph.input or not proto.graph.output:
        msg = f"{path} holds no network. Copy or export it again."
        raise InputFileError(msg)
    return proto


def check_operators(proto: Any) -> None:
    """Check that every operator is one of standard ONNX at the file's opset. proto: onnx.ModelProto.

    Raises BuildError naming the operators and the layers that use them.
    """
    version = max((o.version for o in proto.opset_import if o.domain in _STANDARD), default=0)
    bad = [
        f"{node.op_type} in layer {_layer(node)}" for node in _nodes(proto.graph) if not _known(node, version)
    ]
    if bad:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        msg = f"No engine can be built: opset {version} has no {', '.join(bad[:_NAMED])}{more}."
        raise BuildError(msg)


def check_weights(proto: Any) -> None:
    """Check that all weights are finite. Raises BuildError naming the first that is not."""
    for value in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(value)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            msg = f"The weight {value.name} holds NaN or infinity. Export from an earlier checkpoint."
            raise BuildError(msg)


def check_border(proto: Any) -> None:
    """Check an ONNX model of ours: standard operators, finite weights, valid, Cast first and last, batch the only
    dynamic axis.

    proto: onnx.ModelProto. Raises BuildError saying which of it does not hold.
    """
    check_operators(proto)
    check_weights(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        msg = f"The exported ONNX is not valid: {exc}"
        raise BuildError(msg) from exc
    graph = proto.graph
    ends = (_op_reading(graph, graph.input[0].name), _op_writing(graph, graph.output[0].name))
    if ends != ("Cast", "Cast"):
        msg = f"The exported ONNX must begin and end with Cast; it begins with {ends[0]} and ends with {ends[1]}."
        raise BuildError(msg)
    for value in (graph.input[0], graph.output[0]):
        dims = value.type.tensor_type.shape.dim
        fixed = [d.dim_value for d in dims]
        if (
            len(dims) != 4
            or fixed[0]
            or not all(fixed[1:])
            or value.type.tensor_type.elem_type != onnx.TensorProto.UINT8
        ):
            msg = f"The exported ONNX must be uint8 (batch, S, S, 3) at {value.name}; it has {fixed}."
            raise BuildError(msg)


def _op_reading(graph: Any, name: str) -> str:
    """The operator that reads a tensor, "several" when more than one does."""
    ops = [node.op_type for node in graph.node if name in node.input]
    return ops[0] if len(ops) == 1 else "several"


def _op_writing(graph: Any, name: str) -> str:
    return next((node.op_type for node in graph.node if name in node.output), "nothing")


def layer_names(proto: Any) -> dict[str, str]:
    """How the nodes are told to people, by node name: operator, and the layer whose weights they use if they do."""
    weights = {str(value.name) for value in proto.graph.initializer}
    names = {}
    for node in proto.graph.node:
        own = next((n for n in node.input if n in weights and n.endswith((".weight", ".bias"))), None)
        label = own.rpartition(".")[0].removeprefix("model.") if own is not None else _layer(node)
        names[str(node.name)] = f"{node.op_type} {label}"
    return names


def layers_with(proto: Any, operators: set[str]) -> list[str]:
    """`OP in layer NAME` for the nodes whose operator is among those given."""
    return [
        f"{node.op_type} in layer {_layer(node)}" for node in _nodes(proto.graph) if node.op_type in operators
    ]


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, also those inside If, Loop and Scan."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _known(node: Any, version: int) -> bool:
    return node.domain in _STANDARD and bool(onnx.defs.has(node.op_type, version, ""))


def _layer(node: Any) -> str:
    return str(node.name or (node.output[0] if node.output else "?"))
