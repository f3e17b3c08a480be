"""What a bundle carries to prove its figures: reference faces, the calibration choice, the gate's record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ufr_edge.calibration.frames import CalibrationSet, list_images, read_face
from ufr_edge.calibration.gate import GateConfig, GateSet
from ufr_edge.export.gated_build import GatedEngine
from ufr_edge.files import write_json
from ufr_edge.runtime.fingerprint import LEAST_SIDE
from ufr_edge.runtime.fingerprint_files import faces_fingerprint, write_fingerprint
from ufr_edge.runtime.images import write_image
from ufr_edge.runtime.manifest import CALIBRATION, GATE, REFERENCE

REFERENCE_FACES = 8
CAMERA_FACES = 256


def write_reference(folder: Path, gate: GateSet, *, limit: int = REFERENCE_FACES) -> tuple[str, ...]:
    """Write up to `limit` gate faces into the bundle `folder`; return their file names in it.

    `reference/lq/NNN.png` are the inputs, `reference/fp32/NNN.png` what fp32 makes of them and, where the truth is
    known, `reference/hq/NNN.png` the truth.
    """
    names = []
    for part, frames in (("lq", gate.faces), ("fp32", gate.expected), ("hq", gate.truth)):
        for index, frame in enumerate(frames[:limit]):
            name = f"{REFERENCE}/{part}/{index:03d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_image(folder / name, frame)
            names.append(name)
    return tuple(names)


def write_calibration(folder: Path, data: CalibrationSet) -> str:
    """Write which frames were chosen, and by what seed; return the file's name."""
    write_json(folder / CALIBRATION, data.record())
    return CALIBRATION


def write_camera(folder: Path, data: CalibrationSet, *, limit: int = CAMERA_FACES) -> tuple[str, ...]:
    """Write the fingerprint of the camera the calibration faces came from; return the file's name, () where faces
    are too small for one.

    It is taken of all faces of their folder, up to `limit`: those chosen to calibrate on are unlike each other on
    purpose.
    """
    side = int(data.frames.shape[1])
    if side < LEAST_SIDE:
        return ()
    found = list_images(data.paths[0].parent)
    paths = found[:: -(-len(found) // limit)]
    return (write_fingerprint(folder, faces_fingerprint((read_face(p, side) for p in paths), paths)),)


def write_gate(
    folder: Path,
    gate: GateSet,
    config: GateConfig | None,
    engines: Mapping[str, GatedEngine],
    *,
    tuning: Mapping[str, Any] | None = None,
) -> str:
    """Write each engine's drop, the layers kept in higher precision and the seconds spent; return the file's name.

    tuning: what quantization-aware fine-tuning did, where it was asked for.
    """
    limits: dict[str, Any] | None = None
    if config is not None:
        limits = {"drop_db": config.max_drop_db, "worst_db": config.max_worst_db, "gmsd": config.max_gmsd}
    record = {
        "faces": gate.origin,
        "limits": limits,
        "engines": {name: engine.record() for name, engine in engines.items()},
        **({"tuning": dict(tuning)} if tuning is not None else {}),
    }
    write_json(folder / GATE, record)
    return GATE
