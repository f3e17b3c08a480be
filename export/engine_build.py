"""Building one engine of a bundle and measuring the file that was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.accuracy_control import AccuracyControl
from ufr_edge.calibration.compare import compare_frames, run_batches
from ufr_edge.calibration.gate import Drop, GateSet, measure_drop
from ufr_edge.errors import BackendUnavailableError, EngineMisfitError
from ufr_edge.export.half import refuse_overflow
from ufr_edge.export.openvino_export import export_openvino
from ufr_edge.export.requests import FINGERPRINT, EngineRequest, backend_of
from ufr_edge.export.sources import OnnxSources
from ufr_edge.export.tensorrt_export import Building, export_tensorrt
from ufr_edge.files import sha256_file
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.engines import Engine, installed_backends, open_engine_file
from ufr_edge.runtime.manifest import CalibrationInfo, EngineEntry, ParityInfo


@dataclass(frozen=True, kw_only=True)
class ParitySet:
    """What engines are held against.

    faces, expected: uint8 (N, S, S, 3), inputs and what torch makes of them. gate: what the drop is measured on.
    """

    faces: NDArray[np.uint8]
    expected: NDArray[np.uint8]
    gate: GateSet


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An engine file's parity (None when it cannot run here) and its drop (None when nothing could stand in for it).

    note: why it could not run, for a person. measured_on: what the drop was measured on, in words.
    """

    parity: ParityInfo | None
    drop: Drop | None
    note: str = ""
    measured_on: str = ""
    quality: dict[str, float] = field(default_factory=dict)


def build_engine_files(
    request: EngineRequest,
    folder: Path,
    *,
    sources: OnnxSources,
    building: Building | None = None,
    kept: Sequence[str] = (),
    control: AccuracyControl | None = None,
) -> tuple[str, ...]:
    """Write one engine's files into `folder`; return their names, the one to open first.

    kept: layers (convolution node names) of an int8 engine to leave in higher precision. control: let NNCF choose
    them instead, OpenVINO only. building: TensorRT only.
    Raises BuildError, CalibrationError, BackendUnavailableError.
    """
    source = sources.get(request.format, request.precision, kept=kept)
    if request.format == "onnx":
        return (source,)
    if request.format == "openvino":
        if request.precision == "fp16":
            refuse_overflow(sources.kept_in_fp32())
        int8 = request.precision == "int8"
        paths = export_openvino(
            folder / source,
            folder / f"{request.name}.xml",
            precision=request.precision,
            frames=sources.calibration().frames if int8 else None,
            config=sources.nncf_config(kept) if int8 else None,
            control=control,
        )
        return tuple(path.name for path in paths)
    target = folder / f"{request.name}.engine"
    how = building or Building()
    export_tensorrt(
        folder / source,
        target,
        backend=request.format,
        config=how.limits.at(sources.side),
        note=how.note,
        log=how.log(request.name),
    )
    return target.name, source


def measure_engine(folder: Path, files: Sequence[str], request: EngineRequest, parity: ParitySet) -> Measured:
    """Run a written engine on the parity and the gate faces. An engine that cannot run here is not an error.

    A TensorRT engine that cannot run is judged by the ONNX it was built from, in ONNX Runtime: same weights, same
    Q/DQ nodes, other kernels. An OpenVINO one in a float type that this CPU lacks is judged by its rounded weights.
    """
    try:
        engine = open_engine_file(
            folder / files[0], backend=backend_of(request.format), precision=request.precision
        )
    except (BackendUnavailableError, EngineMisfitError) as exc:
        note = f"{request.name} was not measured: {exc}"
        stand_in, on = _stand_in(folder, files, request)
        if stand_in is None:
            return Measured(parity=None, drop=None, note=note)
        with stand_in:
            drop = _drop(stand_in, parity.gate)
        return Measured(parity=None, drop=drop, note=note, measured_on=on, quality=drop.quality())
    with engine:
        found = compare_frames(run_batches(engine, parity.faces), parity.expected)
        drop = _drop(engine, parity.gate)
    return Measured(parity=found, drop=drop, measured_on=files[0], quality=drop.quality())


def _stand_in(folder: Path, files: Sequence[str], request: EngineRequest) -> tuple[Engine | None, str]:
    """What is judged in the place of an engine that cannot run here, and what that is in words."""
    if files[-1].endswith(".onnx"):
        engine = open_engine_file(folder / files[-1], backend="onnxruntime", device="cpu")
        return engine, f"{files[-1]} in ONNX Runtime, in its place"
    if request.format == "openvino" and request.precision in ("fp16", "bf16"):
        engine = open_engine_file(folder / files[0], backend="openvino", precision="fp32")
        return engine, f"{files[0]}, its weights computed in fp32"
    return None, ""


def _drop(engine: Engine, gate: GateSet) -> Drop:
    return measure_drop(lambda frames: run_batches(engine, frames), gate)


def make_entry(
    request: EngineRequest,
    folder: Path,
    files: tuple[str, ...],
    *,
    sources: OnnxSources,
    measured: Measured,
    kept: Sequence[str] = (),
    by: str = "",
) -> EngineEntry:
    """The manifest entry of a built engine. kept: the layers in higher precision; by: who chose them, "" = we."""
    backend = backend_of(request.format)
    here = device_fingerprint()
    return EngineEntry(
        name=request.name,
        backend=backend,
        backend_version=installed_backends()[backend],
        format=request.format,
        precision=request.precision,
        device="cuda" if request.format.startswith("tensorrt") else "any",
        device_fingerprint={key: here[key] for key in FINGERPRINT.get(request.format, ()) if key in here},
        files=files,
        onnx_sha256=sha256_file(folder / _built_from(request, files, sources)),
        calibration=_calibration_info(request, sources, kept, by) if request.precision == "int8" else None,
        parity=measured.parity,
        quality=measured.quality,
    )


def _built_from(request: EngineRequest, files: Sequence[str], sources: OnnxSources) -> str:
    return sources.get("openvino", request.precision) if request.format == "openvino" else files[-1]


def _calibration_info(
    request: EngineRequest, sources: OnnxSources, kept: Sequence[str], by: str
) -> CalibrationInfo:
    data = sources.calibration()
    method = sources.method(request.format, kept, by=by)
    return CalibrationInfo(set_id=data.set_id, count=len(data.frames), method=method)
