"""What a rebuild takes from a bundle besides its ONNX: the stored faces, the layers left in float, the gate's record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.compare import pattern_frames
from ufr_edge.calibration.frames import CalibrationSet, load_faces
from ufr_edge.calibration.gate import GateSet, make_gate_set
from ufr_edge.calibration.stored_faces import read_stored, stored_names
from ufr_edge.errors import BuildError, BundleError
from ufr_edge.files import read_json, sha256_file, write_json
from ufr_edge.optional import require
from ufr_edge.runtime.bundle import Bundle
from ufr_edge.runtime.manifest import GATE

FACES = 8


def gate_faces(
    bundle: Bundle,
    run: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    *,
    faces: Path | None,
    calibration: CalibrationSet | None,
) -> GateSet:
    """What the drop is measured on: given faces, else those the bundle carries, else held-out ones, else a pattern.

    run: the bundle's fp32 ONNX, uint8 (N, S, S, 3) in and out. Raises CalibrationError, InputFileError, BundleError.
    """
    side = bundle.manifest.restorer.side
    if faces is not None:
        given = load_faces(faces, side, limit=FACES)
        return make_gate_set(run, given, origin=f"{len(given)} given faces")
    names = stored_names(bundle, "lq")[:FACES]
    if names:
        known = set(names) <= set(stored_names(bundle, "hq"))
        truth = read_stored(bundle, "hq", names) if known else None
        low = read_stored(bundle, "lq", names)
        return make_gate_set(run, low, truth=truth, origin=f"{len(low)} faces of the bundle")
    if calibration is not None and len(calibration.held_out):
        held = calibration.held_out[:FACES]
        return make_gate_set(run, held, origin=f"{len(held)} held-out calibration faces")
    return make_gate_set(run, pattern_frames(FACES // 2, side), origin="a test pattern")


def kept_layers(bundle: Bundle, engine: str) -> tuple[str, ...]:
    """Return the layers that the gate left in float, by their names in the network; none without a record."""
    if GATE not in bundle.manifest.files:
        return ()
    engines = _record(bundle.file(GATE)).get("engines", {})
    record = engines.get(engine, {}) if isinstance(engines, Mapping) else {}
    return tuple(str(label) for label in record.get("kept_layers", ()))


def kept_nodes(onnx_path: Path, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the node names of layers in the fp32 ONNX. Raises BuildError when it lacks one."""
    if not labels:
        return ()
    graph = require("onnx", extra="build").load(onnx_path, load_external_data=False).graph
    nodes = {_label(node): str(node.name) for node in graph.node if node.op_type == "Conv"}
    missing = [label for label in labels if label not in nodes]
    if missing:
        msg = f"The bundle keeps layer {missing[0]} in float, but {onnx_path.name} has no such layer. Export it again."
        raise BuildError(msg)
    return tuple(nodes[label] for label in labels)


def update_record(folder: Path, files: Mapping[str, str], records: Mapping[str, Any]) -> dict[str, str]:
    """Put what was found of the engines built again into the gate's record, where there is one; return `files`."""
    if GATE not in files:
        return dict(files)
    value = _record(folder / GATE)
    value["engines"] = {**value.get("engines", {}), **records}
    write_json(folder / GATE, value)
    return {**files, GATE: sha256_file(folder / GATE)}


def _label(node: Any) -> str:
    """As the gate names a layer: by its weight, where that has the network's name."""
    weight = str(node.input[1])
    known = weight.endswith(".weight")
    return weight.removeprefix("model.").removesuffix(".weight") if known else str(node.name)


def _record(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        msg = f"{path} is damaged: it holds no record of the gate. Export the bundle again."
        raise BundleError(msg)
    return value
