"""Adding an engine to a bundle that was exported without it: its ONNX from the bundle's fp32 one. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ufr_edge.calibration.frames import CalibrationSet
from ufr_edge.calibration.ptq_onnx import QdqConfig, quantize_onnx
from ufr_edge.calibration.ptq_openvino import NncfConfig
from ufr_edge.errors import BackendUnavailableError, CalibrationError, ConfigError, EngineMisfitError
from ufr_edge.export.half import find_kept, refuse_overflow, write_half
from ufr_edge.export.onnx_check import check_border
from ufr_edge.export.requests import BASE, FINGERPRINT, EngineRequest, backend_of, parse_request, source_name
from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import Bundle
from ufr_edge.runtime.manifest import CalibrationInfo, EngineEntry


@dataclass(frozen=True, kw_only=True)
class Addition:
    """An engine to add: what it is, and the ONNX it will be built from (`there`: the bundle has it)."""

    request: EngineRequest
    source: str
    there: bool

    @property
    def needs_calibration(self) -> bool:
        """Whether faces of the camera are needed: int8, unless the ONNX carries its ranges."""
        return self.request.precision == "int8" and (self.request.format == "openvino" or not self.there)


def plan_addition(
    bundle: Bundle, name: str, *, here: Mapping[str, str], backends: Mapping[str, str]
) -> Addition:
    """Check that the engine `name`, such as tensorrt-rtx-fp16, can be built here and added to a bundle.

    here: this machine's fingerprint; backends: name -> version. Raises ConfigError (no such engine, or the bundle has
    it), BackendUnavailableError, EngineMisfitError (no GPU).
    """
    request = parse_request(name)
    if any(entry.name == name for entry in bundle.manifest.engines):
        msg = f"The bundle has {name} already. Build it again with --engine {name}."
        raise ConfigError(msg)
    if request.format == "onnx":
        msg = f"{name} is an ONNX file, which fits every machine: nothing is gained by adding it here. Export it."
        raise ConfigError(msg)
    backend = backend_of(request.format)
    if backend not in backends:
        msg = f'{name} needs {backend}, which is not installed. Run: pip install "ufr-edge[{backend}]"'
        raise BackendUnavailableError(msg)
    gone = [key for key in FINGERPRINT.get(request.format, ()) if key not in here]
    if gone:
        msg = f"{name} is built for the GPU of the machine, and this one has none. Build it on the device."
        raise EngineMisfitError(msg)
    source = source_name(request.format, request.precision)
    if source == BASE:
        source = bundle.manifest.onnx
    return Addition(request=request, source=source, there=source in bundle.manifest.files)


def prepare_addition(
    addition: Addition,
    bundle: Bundle,
    folder: Path,
    *,
    frames: NDArray[np.uint8],
    calibration: CalibrationSet | None,
    here: Mapping[str, str],
) -> tuple[EngineEntry, tuple[str, ...]]:
    """Write the ONNX an engine is built from into `folder`, where it is missing; return the engine's entry, its files
    still to be built, and the layers that stay in fp32, in words.

    frames: uint8 (N, S, S, 3), on which the ranges of an fp16 engine are measured when there is no calibration.
    Raises BuildError, CalibrationError.
    """
    request = addition.request
    seen = frames if calibration is None else calibration.frames
    base, source = folder / bundle.manifest.onnx, folder / addition.source
    words: tuple[str, ...] = ()
    if request.precision == "fp16":
        kept = find_kept(base, seen)
        if request.format == "openvino":
            refuse_overflow(kept)
        else:
            words = kept.words
            if not source.exists():
                write_half(base, source, kept)
    elif request.precision == "int8" and not source.exists():
        quantize_onnx(base, source, _needed(calibration).frames, config=QdqConfig(runtime="tensorrt"))
        check_border(onnx.load(source))
    entry = EngineEntry(
        name=request.name,
        backend=backend_of(request.format),
        backend_version="",
        format=request.format,
        precision=request.precision,
        device="cuda" if request.format.startswith("tensorrt") else "any",
        device_fingerprint={key: here[key] for key in FINGERPRINT.get(request.format, ())},
        files=_files(request, addition.source),
        onnx_sha256=sha256_file(source),
        calibration=_info(addition, bundle, calibration) if request.precision == "int8" else None,
    )
    return entry, words


def _files(request: EngineRequest, source: str) -> tuple[str, ...]:
    if request.format == "openvino":
        return f"{request.name}.xml", f"{request.name}.bin"
    return f"{request.name}.engine", source


def _needed(calibration: CalibrationSet | None) -> CalibrationSet:
    if calibration is None:
        msg = "An int8 engine needs calibration frames. Give --calibration FOLDER with aligned faces of the camera."
        raise CalibrationError(msg)
    return calibration


def _info(addition: Addition, bundle: Bundle, calibration: CalibrationSet | None) -> CalibrationInfo | None:
    """What an int8 engine's ranges are from: another engine's record where its ONNX was there already."""
    if not addition.needs_calibration:
        digest = bundle.manifest.files[addition.source]
        twins = [e.calibration for e in bundle.manifest.engines if e.onnx_sha256 == digest]
        return next((info for info in twins if info is not None), None)
    data = _needed(calibration)
    openvino = addition.request.format == "openvino"
    method = NncfConfig().method if openvino else QdqConfig(runtime="tensorrt").method
    return CalibrationInfo(set_id=data.set_id, count=len(data.frames), method=method)
