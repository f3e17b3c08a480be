"""Reading and editing the few fields of an ONNX file that a device needs, without the onnx package.

An ONNX file is a protocol-buffer message; the field numbers below are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ufr_edge.errors import ConfigError, ModelFileError

MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE_INFO = 1, 5, 11, 12, 13
NODE_OP_TYPE, TENSOR_DATA_TYPE, TENSOR_NAME, VALUE_NAME, VALUE_TYPE = 4, 2, 8, 1, 2
TYPE_TENSOR, TENSOR_SHAPE, SHAPE_DIM, DIM_VALUE, DIM_PARAM = 1, 2, 1, 1, 2
FLOAT16, BFLOAT16 = 10, 16
QUANTIZED_OPS = {b"QuantizeLinear", b"DequantizeLinear", b"QLinearConv", b"ConvInteger"}

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field of a message: number, wire type, its bytes with the tag, and its value."""

    number: int
    wire: int
    raw: memoryview
    value: memoryview


def onnx_precision(path: Path) -> str:
    """Return "int8", "fp16", "bf16" or "fp32": the precision an ONNX file's weights are written in.

    Raises ModelFileError when the file is no ONNX.
    """
    quantized = False
    types: set[int] = set()
    graphs = list(_messages(path, memoryview(path.read_bytes()), MODEL_GRAPH))
    if not graphs:
        raise _damaged(path)
    for graph in graphs:
        for field in _fields(path, graph):
            if field.number == GRAPH_NODE:
                ops = _messages(path, field.value, NODE_OP_TYPE)
                quantized = quantized or any(bytes(op) in QUANTIZED_OPS for op in ops)
            elif field.number == GRAPH_INITIALIZER:
                types.update(
                    _varint(path, kind, 0)[0] for kind in _messages(path, field.value, TENSOR_DATA_TYPE)
                )
    if quantized:
        return "int8"
    return "bf16" if BFLOAT16 in types else "fp16" if FLOAT16 in types else "fp32"


def with_input_shapes(path: Path, shapes: Mapping[str, Sequence[int | None]]) -> bytes:
    """Return the ONNX file with the inputs in `shapes` declared anew (None = any size).

    The outputs' sizes become free and the inner tensors' shapes are dropped: the runtime infers them.
    Weights that old exporters list as inputs too are listed no more: engines fold only what is constant.
    Raises ConfigError for a name that is no input, ModelFileError when the file is no ONNX.
    """
    missing = set(shapes)
    outputs = 0

    def edit_input(value: memoryview, weights: set[bytes]) -> bytes | None:
        name = _joined(path, value, VALUE_NAME)
        if name in weights:
            return None
        text = name.decode(errors="replace")
        if text not in shapes:
            return bytes(value)
        missing.discard(text)
        shape = _encode_shape(shapes[text])
        return _edit_shape(path, value, lambda _: shape)

    def edit_output(value: memoryview) -> bytes:
        nonlocal outputs
        outputs += 1
        return _edit_shape(path, value, lambda shape: _free_shape(path, shape, f"out{outputs}"))

    def edit_graph(graph: memoryview) -> bytes:
        weights = {_joined(path, tensor, TENSOR_NAME) for tensor in _messages(path, graph, GRAPH_INITIALIZER)}
        edits: dict[int, Edit] = {GRAPH_OUTPUT: edit_output, GRAPH_VALUE_INFO: lambda _: None}
        return _edit(path, graph, edits | {GRAPH_INPUT: lambda value: edit_input(value, weights)})

    edited = _edit(path, memoryview(path.read_bytes()), {MODEL_GRAPH: edit_graph})
    if missing:
        msg = f"{path} has no input named {sorted(missing)}."
        raise ConfigError(msg)
    return edited


Edit = Callable[[memoryview], bytes | None]


def _edit(path: Path, message: memoryview, edits: Mapping[int, Edit]) -> bytes:
    """Rewrite the named fields of a message; an edit that returns None drops the field."""
    parts: list[bytes | memoryview] = []
    for field in _fields(path, message):
        if field.number not in edits:
            parts.append(field.raw)
        elif (edited := edits[field.number](field.value)) is not None:
            parts.append(_encode_bytes(field.number, edited))
    return b"".join(parts)


def _edit_shape(path: Path, value: memoryview, edit: Edit) -> bytes:
    """Rewrite the shape inside a ValueInfoProto, where it declares one."""

    def edit_type(kind: memoryview) -> bytes:
        return _edit(path, kind, {TYPE_TENSOR: lambda tensor: _edit(path, tensor, {TENSOR_SHAPE: edit})})

    return _edit(path, value, {VALUE_TYPE: edit_type})


def _free_shape(path: Path, shape: memoryview, prefix: str) -> bytes:
    rank = sum(1 for _ in _messages(path, shape, SHAPE_DIM))
    return _encode_shape([None] * rank, prefix)


def _encode_shape(shape: Sequence[int | None], prefix: str = "in") -> bytes:
    dims = b""
    for axis, size in enumerate(shape):
        if size is None:
            dim = _encode_bytes(DIM_PARAM, f"{prefix}_{axis}".encode())
        else:
            dim = _encode_varint(DIM_VALUE << 3 | VARINT) + _encode_varint(size)
        dims += _encode_bytes(SHAPE_DIM, dim)
    return dims


def _encode_bytes(number: int, value: bytes) -> bytes:
    return _encode_varint(number << 3 | BYTES) + _encode_varint(len(value)) + value


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _joined(path: Path, message: memoryview, number: int) -> bytes:
    return b"".join(bytes(part) for part in _messages(path, message, number))


def _messages(path: Path, message: memoryview, number: int) -> Iterator[memoryview]:
    return (field.value for field in _fields(path, message) if field.number == number)


def _fields(path: Path, message: memoryview) -> Iterator[Field]:
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(path, message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            begin, (_, at) = at, _varint(path, message, at)
        elif wire == BYTES:
            size, begin = _varint(path, message, at)
            at = begin + size
        elif wire in (FIXED64, FIXED32):
            begin, at = at, at + (8 if wire == FIXED64 else 4)
        else:
            raise _damaged(path)
        if at > len(message) or number == 0:
            raise _damaged(path)
        yield Field(number, wire, message[start:at], message[begin:at])


def _varint(path: Path, message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _damaged(path)


def _damaged(path: Path) -> ModelFileError:
    return ModelFileError(f"{path} is no ONNX file or is damaged. Copy or export the file again.")
