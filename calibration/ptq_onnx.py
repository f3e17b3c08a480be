"""Post-training INT8 quantization of an ONNX restorer as a Q/DQ graph, for ONNX Runtime or for TensorRT.

What lies between the convolutions is quantized; the uint8 border (casts, scaling, clamp, rounding) and the
residual addition stay in float, or the image itself would pass through the quantizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.quiet import quiet
from ufr_edge.calibration.ranges import check_percentile, ranges_name
from ufr_edge.errors import BuildError
from ufr_edge.optional import require

_CHUNK = 8  # frames whose activations a histogram calibration holds in memory at once


@dataclass(frozen=True, kw_only=True)
class QdqConfig:
    """How to place and scale the Q/DQ nodes.

    runtime: "onnxruntime" = unsigned activations, quantized biases and additions (its integer kernels);
    "tensorrt" = symmetric signed activations at convolution inputs only, biases in float (TensorRT refuses others).
    percentile: clip activation ranges to it (such as 99.99); None = min-max.
    ignored: names of nodes to leave in float.
    """

    runtime: Literal["onnxruntime", "tensorrt"]
    percentile: float | None = None
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ConfigError for a percentile outside (50, 100]."""
        check_percentile(self.percentile)

    @property
    def method(self) -> str:
        """The method in words, as the manifest records it."""
        return f"onnxruntime Q/DQ for {self.runtime}, {ranges_name(self.percentile)}"


class FrameReader:
    """Feeds uint8 frames (N, S, S, 3) to onnxruntime's calibrators, one image at a time."""

    def __init__(self, name: str, frames: NDArray[np.uint8]) -> None:
        self._name, self._frames = name, frames
        self._next, self._end = 0, len(frames)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._frames)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with images [start_index, end_index): called by onnxruntime."""
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next feed, None at the end."""
        if self._next >= self._end:
            return None
        self._next += 1
        return {self._name: self._frames[self._next - 1 : self._next]}


def quantize_onnx(source: Path, target: Path, frames: NDArray[np.uint8], *, config: QdqConfig) -> None:
    """Write `source` (fp32 ONNX, uint8 NHWC in and out) as a Q/DQ graph to `target`, ranges from `frames`.

    frames: uint8 RGB (N, S, S, 3) of the graph's side, N >= 1. Weights become signed 8 bit per output channel.
    Raises BuildError when quantization fails, BackendUnavailableError when onnx is not installed.
    """
    onnx = require("onnx", extra="build")
    quantization = require("onnxruntime.quantization", extra="build")
    graph = onnx.load(source).graph
    excluded = [*nodes_outside_convolutions(graph), *config.ignored]
    percentile = config.percentile is not None
    method = quantization.CalibrationMethod
    kind = quantization.QuantType
    unsigned = config.runtime == "onnxruntime"
    # onnxruntime.quantization prints, and advises on the root logger
    with _translated(source), quiet():
        quantization.quantize_static(
            source,
            target,
            FrameReader(graph.input[0].name, frames),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu", "Add", "Resize"] if unsigned else ["Conv"],
            per_channel=True,
            activation_type=kind.QUInt8 if unsigned else kind.QInt8,
            weight_type=kind.QInt8,
            nodes_to_exclude=excluded,
            calibrate_method=method.Percentile if percentile else method.MinMax,
            extra_options=_extra_options(config, len(frames)),
        )


def nodes_outside_convolutions(graph: Any) -> list[str]:
    """Names of the nodes of an ONNX graph that do not lie between (or are not themselves) convolutions."""
    fed_by = {output for node in graph.node if node.op_type == "Conv" for output in node.output}
    for node in graph.node:  # topologically sorted, as the ONNX specification demands
        if fed_by.intersection(node.input):
            fed_by.update(node.output)
    feeding = {name for node in graph.node if node.op_type == "Conv" for name in node.input}
    for node in reversed(graph.node):
        if feeding.intersection(node.output):
            feeding.update(node.input)
    return [
        node.name
        for node in graph.node
        if node.op_type != "Conv"
        and not (fed_by.intersection(node.output) and feeding.intersection(node.output))
    ]


def _extra_options(config: QdqConfig, count: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if config.percentile is not None:
        options["CalibPercentile"] = config.percentile
        options["CalibStridedMinMax"] = _chunk(count)  # despite its name: images a pass, for any method
    if config.runtime == "tensorrt":
        options |= {
            "QuantizeBias": False,
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            # Q/DQ at convolution inputs only, so that Conv + Add + ReLU stay one TensorRT kernel.
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        }
    return options


def _chunk(count: int) -> int:
    """The largest share of `count` images that a pass may hold: onnxruntime takes equal passes only, and every image
    that the manifest counts is to be seen."""
    return next(size for size in range(min(_CHUNK, count), 0, -1) if count % size == 0)


@contextmanager
def _translated(source: Path) -> Iterator[None]:
    try:
        yield
    except Exception as exc:  # the border: onnxruntime.quantization documents no error types
        msg = f"Quantizing {source} failed: {type(exc).__name__}: {exc}"
        raise BuildError(msg) from exc
