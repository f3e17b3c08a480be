"""ONNX to OpenVINO IR: fp32, fp16 weights, or INT8 through NNCF."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.accuracy_control import AccuracyControl, quantize_controlled
from ufr_edge.calibration.ptq_openvino import NncfConfig, quantize_openvino
from ufr_edge.errors import BuildError, CalibrationError
from ufr_edge.optional import require
from ufr_edge.runtime.signal_stack import kept_signal_stack


@kept_signal_stack()  # NNCF runs the network
def export_openvino(
    source: Path,
    target: Path,
    *,
    precision: str,
    frames: NDArray[np.uint8] | None = None,
    config: NncfConfig | None = None,
    control: AccuracyControl | None = None,
) -> tuple[Path, Path]:
    """Write an IR (`target` with suffix .xml, and the .bin beside it) from an ONNX file; return both paths.

    precision: "fp32"; "fp16" and "bf16" (weights stored as fp16; in what the device computes is decided when it
    is opened, from the manifest); "int8" (needs `frames`, uint8 (N, S, S, 3)). control: let NNCF put operations of an
    int8 model back to float until its drop fits.
    Raises CalibrationError without frames for int8, BuildError when OpenVINO fails.
    """
    if precision == "int8" and frames is None:
        msg = "An int8 engine needs calibration frames. Give --calibration FOLDER with aligned faces of the camera."
        raise CalibrationError(msg)
    ov = require("openvino", extra="openvino")
    _check_operators(source)
    model = _read(ov, source)
    if frames is not None and precision == "int8":
        if control is None:
            model = quantize_openvino(model, frames, config=config)
        else:
            model = quantize_controlled(model, frames, control, config=config)
    try:
        ov.save_model(model, target, compress_to_fp16=precision in ("fp16", "bf16"))
    except RuntimeError as exc:
        msg = f"OpenVINO could not write {target}: {exc}"
        raise BuildError(msg) from exc
    return target, target.with_suffix(".bin")


def _read(ov: Any, source: Path) -> Any:
    try:
        return ov.convert_model(source)
    except RuntimeError as exc:
        # OpenVINO names operators, not layers.
        named = _layers_refused(source, str(exc))
        reason = f"it has no {', '.join(named)}" if named else str(exc)
        msg = f"OpenVINO could not convert {source}: {reason}"
        raise BuildError(msg) from exc


def _check_operators(source: Path) -> None:
    """Look at the operators where the onnx package is: a device that builds its engines again does without."""
    if importlib.util.find_spec("onnx") is None:
        return
    from ufr_edge.export.onnx_check import check_operators, read_onnx

    check_operators(read_onnx(source))


def _layers_refused(source: Path, words: str) -> list[str]:
    _, found, after = words.partition("not support")
    if not found or importlib.util.find_spec("onnx") is None:
        return []
    from ufr_edge.export.onnx_check import layers_with, read_onnx

    return layers_with(read_onnx(source), set(re.findall(r"\w+", after)))
