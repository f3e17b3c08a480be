"""The ONNX files of a bundle that engines are built from, each written once and only when needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ufr_edge.calibration.frames import CalibrationSet
from ufr_edge.calibration.ptq_onnx import QdqConfig, quantize_onnx
from ufr_edge.errors import CalibrationError
from ufr_edge.export.onnx_export import check_border, export_onnx
from ufr_edge.restorers.edge import EdgeUNet

BASE = "model.onnx"


class OnnxSources:
    """Writes `model.onnx` (fp32) and its variants into a folder on demand.

    The variants stay in the bundle: a device without torch rebuilds its engine from them.
    """

    def __init__(
        self,
        model: EdgeUNet,
        folder: Path,
        *,
        side: int,
        faces: NDArray[np.uint8],
        calibration: CalibrationSet | None,
    ) -> None:
        self.side = side
        self._model, self._folder, self._faces = model, folder, faces
        self._calibration = calibration

    def get(self, format: str, precision: str) -> str:
        """Return the file name of the ONNX for an engine, writing it first where it is missing.

        format: an engine format; OpenVINO starts from the fp32 base whatever the precision.
        Raises CalibrationError for int8 without calibration frames, BuildError when the export fails.
        """
        name = source_name(format, precision)
        path = self._folder / name
        if path.exists():
            return name
        if name == BASE or precision == "fp16":
            export_onnx(self._model, path, side=self.side, faces=self._faces, half=precision == "fp16")
        else:
            base = self._folder / self.get("onnx", "fp32")
            quantize_onnx(base, path, self.calibration().frames, config=self.qdq_config(format))
            check_border(onnx.load(path))
        return name

    def calibration(self) -> CalibrationSet:
        """The calibration set. Raises CalibrationError when there is none."""
        if self._calibration is None:
            msg = "An int8 engine needs calibration frames. Give --calibration FOLDER with aligned faces of the camera."
            raise CalibrationError(msg)
        return self._calibration

    def qdq_config(self, format: str) -> QdqConfig:
        """How the Q/DQ graph for an engine format is made."""
        return QdqConfig(runtime="onnxruntime" if format == "onnx" else "tensorrt")


def source_name(format: str, precision: str) -> str:
    """The file name of the ONNX that an engine is built from."""
    if format == "openvino" or precision == "fp32":
        return BASE
    if precision == "fp16":
        return "model-fp16.onnx"
    return "model-int8.onnx" if format == "onnx" else "model-int8-tensorrt.onnx"
