"""Building one engine of a bundle and measuring the file that was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.compare import compare_frames, mean_psnr, run_batches
from ufr_edge.calibration.ptq_openvino import NncfConfig
from ufr_edge.errors import BackendUnavailableError, EngineMisfitError
from ufr_edge.export.openvino_export import export_openvino
from ufr_edge.export.requests import EngineRequest
from ufr_edge.export.sources import OnnxSources
from ufr_edge.export.tensorrt_export import TensorRtConfig, export_tensorrt
from ufr_edge.files import sha256_file
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.engines import installed_backends, open_engine_file
from ufr_edge.runtime.manifest import CalibrationInfo, EngineEntry, ParityInfo

_FINGERPRINT = {"tensorrt": ("os", "machine", "gpu", "gpu_compute"), "tensorrt-rtx": ("os", "machine")}


@dataclass(frozen=True, kw_only=True)
class ParitySet:
    """What engines are held against. All uint8 (N, S, S, 3).

    faces, expected: inputs and what torch makes of them. reference_in, reference_expected, truth: inputs with a
    known clean face, what torch makes of them, and the clean faces; N may be 0.
    """

    faces: NDArray[np.uint8]
    expected: NDArray[np.uint8]
    reference_in: NDArray[np.uint8]
    reference_expected: NDArray[np.uint8]
    truth: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An engine file's parity (None when it cannot run here, `note` saying why) and its quality figures."""

    parity: ParityInfo | None
    quality: dict[str, float]
    note: str = ""


def backend_of(format: str) -> str:
    """The runtime backend of an engine format."""
    return "onnxruntime" if format == "onnx" else format


def build_engine_files(
    request: EngineRequest,
    folder: Path,
    *,
    sources: OnnxSources,
    config: TensorRtConfig | None = None,
) -> tuple[str, ...]:
    """Write one engine's files into `folder`; return their names, the one to open first.

    Raises BuildError, CalibrationError, BackendUnavailableError.
    """
    source = sources.get(request.format, request.precision)
    if request.format == "onnx":
        return (source,)
    if request.format == "openvino":
        frames = sources.calibration().frames if request.precision == "int8" else None
        paths = export_openvino(
            folder / source, folder / f"{request.name}.xml", precision=request.precision, frames=frames
        )
        return tuple(path.name for path in paths)
    target = folder / f"{request.name}.engine"
    export_tensorrt(
        folder / source, target, backend=request.format, config=config or TensorRtConfig(side=sources.side)
    )
    return target.name, source


def measure_engine(path: Path, request: EngineRequest, parity: ParitySet) -> Measured:
    """Run a written engine file on the parity faces. An engine that cannot run here is not an error.

    Quality figures, when there are references: mean PSNR in dB against the clean faces of the engine and of
    torch in fp32, and their difference.
    """
    try:
        engine = open_engine_file(path, backend=backend_of(request.format), precision=request.precision)
    except (BackendUnavailableError, EngineMisfitError) as exc:
        return Measured(parity=None, quality={}, note=f"{request.name} was not measured: {exc}")
    with engine:
        found = compare_frames(run_batches(engine, parity.faces), parity.expected)
        if not len(parity.truth):
            return Measured(parity=found, quality={})
        own = mean_psnr(run_batches(engine, parity.reference_in), parity.truth)
    base = mean_psnr(parity.reference_expected, parity.truth)
    quality = {"reference_psnr_db": own, "reference_fp32_psnr_db": base, "reference_drop_db": base - own}
    return Measured(parity=found, quality={key: round(value, 4) for key, value in quality.items()})


def make_entry(
    request: EngineRequest, folder: Path, files: tuple[str, ...], *, sources: OnnxSources, measured: Measured
) -> EngineEntry:
    """The manifest entry of a built engine."""
    backend = backend_of(request.format)
    here = device_fingerprint()
    return EngineEntry(
        name=request.name,
        backend=backend,
        backend_version=installed_backends()[backend],
        format=request.format,
        precision=request.precision,
        device="cuda" if request.format.startswith("tensorrt") else "any",
        device_fingerprint={key: here[key] for key in _FINGERPRINT.get(request.format, ()) if key in here},
        files=files,
        onnx_sha256=sha256_file(folder / sources.get(request.format, request.precision)),
        calibration=_calibration_info(request, sources) if request.precision == "int8" else None,
        parity=measured.parity,
        quality=measured.quality,
    )


def _calibration_info(request: EngineRequest, sources: OnnxSources) -> CalibrationInfo:
    data = sources.calibration()
    method = (
        NncfConfig().method if request.format == "openvino" else sources.qdq_config(request.format).method
    )
    return CalibrationInfo(set_id=data.set_id, count=len(data.frames), method=method)
