"""A tiny face engine (it darkens) and a bundle around it, built with the onnx package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import write_manifest
from ufr_edge.runtime.manifest import (
    CalibrationInfo,
    EngineEntry,
    Manifest,
    ParityInfo,
    RestorerInfo,
)

SIDE = 32
GAIN = 0.5


def write_tiny_onnx(path: Path, *, side: int = SIDE, dtype: int = TensorProto.UINT8) -> Path:
    """Write uint8 (B, S, S, 3) -> floor(GAIN * x) through the nodes that an exported restorer has at its border."""
    shape = ["batch", side, side, 3]
    nodes = [
        helper.make_node("Cast", ["faces"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "gain"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "low", "high"], ["clipped"]),
        helper.make_node("Floor", ["clipped"], ["whole"]),
        helper.make_node("Transpose", ["whole"], ["nhwc"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["nhwc"], ["restored"], to=dtype),
    ]
    values = {"gain": GAIN, "low": 0.0, "high": 255.0}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("faces", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("restored", dtype, shape)],
        [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def write_fixed_conv(path: Path) -> Path:
    """Write a float NCHW network whose sizes are fixed at (10, 3, 32, 32), as CenterFace's are."""
    shape = [10, 3, 32, 32]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 3, 1, 1], [0.5, 0.25, 0.125, 1.0, 2.0, 4.0])
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["hidden"], strides=[2, 2]),
            helper.make_node("Relu", ["hidden"], ["y"]),
        ],
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [10, 2, 16, 16])],
        [weight],
        value_info=[helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [10, 2, 16, 16])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def entry(name: str = "base", **changes: object) -> EngineEntry:
    """Return an engine entry for tiny.onnx on ONNX Runtime, with some fields changed."""
    fields: dict[str, object] = {
        "name": name,
        "backend": "onnxruntime",
        "backend_version": "1.20.0",
        "format": "onnx",
        "precision": "fp32",
        "device": "cpu",
        "files": ("tiny.onnx",),
        "onnx_sha256": "0" * 64,
    }
    return EngineEntry(**(fields | changes))  # type: ignore[arg-type]


def manifest(*engines: EngineEntry, files: dict[str, str] | None = None, side: int = SIDE) -> Manifest:
    """Return a manifest over the given engines; every file gets a made-up checksum unless `files` is given."""
    names = {"tiny.onnx", *(name for engine in engines for name in engine.files)}
    return Manifest(
        name="tiny",
        created="2025-01-01T00:00:00+00:00",
        restorer=RestorerInfo(
            arch="edge-s", side=side, weights_sha256="1" * 64, code_licence="Apache-2.0", weights_licence="x"
        ),
        onnx="tiny.onnx",
        engines=engines,
        files=dict.fromkeys(names, "a" * 64) if files is None else files,
        lineage={"parent": "edge-s-256"},
    )


def full_entry() -> EngineEntry:
    """Return an entry with every optional part filled."""
    return entry(
        "int8",
        precision="int8",
        calibration=CalibrationInfo(set_id="2" * 64, count=64, method="nncf"),
        parity=ParityInfo(psnr_db=41.5, max_abs=9.0, mean_abs=0.4, images=8),
        quality={"psnr_drop_db": 0.12, "faces": 8},
        device_fingerprint={"gpu_compute": "8.9,12.0"},
    )


def write_tiny_bundle(folder: Path, *, side: int = SIDE, name: str = "tiny") -> Path:
    """Write a bundle with two engines over one file, for ONNX Runtime and for OpenVINO."""
    folder.mkdir()
    path = write_tiny_onnx(folder / "tiny.onnx")
    digest = sha256_file(path)
    engines = (
        entry("ort-fp32", onnx_sha256=digest),
        entry("ov-fp32", backend="openvino", onnx_sha256=digest),
    )
    write_manifest(folder, replace(manifest(*engines, files={"tiny.onnx": digest}, side=side), name=name))
    return folder
