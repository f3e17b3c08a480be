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
