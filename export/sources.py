"""The ONNX files of a bundle that engines are built from, each written once and only when needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from ufr_edge.calibration.frames import CalibrationSet
from ufr_edge.calibration.layers import QuantizedLayers, load_layers
from ufr_edge.calibration.ptq_onnx import QdqConfig, quantize_onnx
from ufr_edge.calibration.ptq_openvino import NncfConfig
from ufr_edge.errors import CalibrationError
from ufr_edge.export.half import KeptLayers, find_kept, write_half
from ufr_edge.export.onnx_export import check_border, export_onnx
from ufr_edge.export.requests import BASE, TUNED, source_name
from ufr_edge.files import atomic_file
from ufr_edge.restorers.loading import AnyModel


class OnnxSources:
    """Writes `model.onnx` (fp32) and its variants into a folder on demand.

    The variants stay in the bundle: a device without torch rebuilds its engine from them.
    """

    def __init__(
        self,
        model: AnyModel,
        folder: Path,
        *,
        side: int,
        faces: NDArray[np.uint8],
        calibration: CalibrationSet | None,
        tuned: AnyModel | None = None,
        tuning: str = "",
    ) -> None:
        """tuned: the network int8 engines are made from, None = `model`; tuning: how it came about, in words."""
        self.side = side
        self._tuned, self._tuning = tuned, tuning
        self._model, self._folder, self._faces = model, folder, faces
        self._calibration = calibration
        self._layers: dict[str, QuantizedLayers] = {}
        self._kept: KeptLayers | None = None

    def get(self, format: str, precision: str, *, kept: Sequence[str] = ()) -> str:
        """Return the file name of the ONNX for an engine, writing it first where it is missing.

        format: an engine format; OpenVINO starts from an fp32 graph whatever the precision.
        kept: layers (convolution node names) of an int8 graph to leave in float.
        Raises CalibrationError for int8 without calibration frames, BuildError when the export fails.
        """
        name = source_name(format, precision, mixed=bool(kept), tuned=self._tuned is not None)
        path = self._folder / name
        if path.exists() and (name in (BASE, TUNED) or not kept):
            return name
        if name in (BASE, TUNED):
            model = self._tuned if name == TUNED and self._tuned is not None else self._model
            export_onnx(model, path, side=self.side, faces=self._faces)
        elif precision == "fp16":
            write_half(self._folder / self.get("onnx", "fp32"), path, self.kept_in_fp32())
        else:
            proto = self.layers(format).with_float(kept) if kept else self.layers(format).quantized
            check_border(proto)
            with atomic_file(path) as beside:
                onnx.save(proto, beside)
        return name

    def kept_in_fp32(self) -> KeptLayers:
        """What stays in fp32 of fp16 engines, found on first use, on calibration frames where there are any.

        Raises BuildError when the export of the fp32 graph fails.
        """
        if self._kept is None:
            frames = self._faces if self._calibration is None else self._calibration.frames
            self._kept = find_kept(self._folder / self.get("onnx", "fp32"), frames)
        return self._kept

    def layers(self, format: str) -> QuantizedLayers:
        """The layers of the Q/DQ graph for an engine format, quantized on first use (OpenVINO: ONNX Runtime's).

        Raises CalibrationError without calibration frames, BuildError.
        """
        config = self.qdq_config(format)
        if config.runtime not in self._layers:
            base = self._folder / self.get("openvino", "int8")
            with TemporaryDirectory(prefix="ufr-edge-int8-") as folder:
                target = Path(folder) / "int8.onnx"
                quantize_onnx(base, target, self.calibration().frames, config=config)
                self._layers[config.runtime] = load_layers(base, target)
        return self._layers[config.runtime]

    def calibration(self) -> CalibrationSet:
        """The calibration set. Raises CalibrationError when there is none."""
        if self._calibration is None:
            msg = "An int8 engine needs calibration frames. Give --calibration FOLDER with aligned faces of the camera."
            raise CalibrationError(msg)
        return self._calibration

    def qdq_config(self, format: str) -> QdqConfig:
        """How the Q/DQ graph for an engine format is made. Raises CalibrationError without calibration frames."""
        return QdqConfig(
            runtime="tensorrt" if format.startswith("tensorrt") else "onnxruntime",
            percentile=self.calibration().config.percentile,
        )

    def nncf_config(self, kept: Sequence[str] = ()) -> NncfConfig:
        """How OpenVINO's int8 engine is made. Raises CalibrationError without calibration frames."""
        ignored = sorted(self.layers("openvino").openvino_names(kept)) if kept else ()
        return NncfConfig(ignored=tuple(ignored), percentile=self.calibration().config.percentile)

    def method(self, format: str, kept: Sequence[str] = (), *, by: str = "") -> str:
        """The quantization method in words, as the manifest records it. by: who chose the layers kept, "" = we."""
        by = f" by {by}" if by else ""
        plain = self.nncf_config().method if format == "openvino" else self.qdq_config(format).method
        plain = f"{self._tuning}; {plain}" if self._tuning else plain
        if not kept:
            return plain
        labels = ", ".join(self.layers(format).label(name) for name in kept)
        return f"{plain}; in higher precision{by}: {labels}"
