"""Which kernels an engine really runs: the executed graph's layer types, and the share of time spent in INT8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from ufr_edge.errors import InferenceError
from ufr_edge.runtime.engines.base import LayerTime
from ufr_edge.runtime.engines.onnxruntime_engine import OnnxRuntimeSession, open_onnxruntime
from ufr_edge.runtime.engines.openvino_engine import OpenVinoSession, open_openvino

EIGHT_BIT = ("u8", "i8", "uint8", "int8")
FLOATS = {"float": "fp32", "f32": "fp32", "float16": "fp16", "f16": "fp16", "bfloat16": "bf16"}
MOVES = (
    "Cast",
    "Concat",
    "Convert",
    "DequantizeLinear",
    "Pad",
    "QuantizeLinear",
    "Reorder",
    "ReorderInput",
    "ReorderOutput",
    "Reshape",
    "Transpose",
)
"""Layers that move or convert bytes: 8 bits in one of these are no INT8 arithmetic."""

CONVOLUTIONS = (
    "Conv",
    "QLinearConv",
    "ConvInteger",
    "Convolution",
    "GroupConvolution",
    "FusedConv",
    "NhwcFusedConv",
)


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """All layers of one kind and precision: how many, and the ms of one run spent in them."""

    kind: str
    precision: str
    layers: int
    ms: float


@dataclass(frozen=True, kw_only=True)
class KernelProfile:
    """What ran. `int8_share` of the time lies in 8-bit arithmetic, 0 to 1; `kernels` are sorted, slowest first."""

    int8_share: float
    convolutions: int
    int8_convolutions: int
    kernels: tuple[KernelTime, ...]

    def describe(self) -> str:
        """Return one line such as `INT8 83 % of the time, 45 of 46 convolutions; most in Convolution int8 (83 %)`."""
        total = sum(kernel.ms for kernel in self.kernels)
        top = self.kernels[0]
        return (
            f"INT8 {self.int8_share:.0%} of the time, {self.int8_convolutions} of {self.convolutions} convolutions; "
            f"most in {top.kind} {top.precision} ({top.ms / total:.0%})"
        )


def profile_kernels(
    path: Path,
    *,
    backend: str,
    side: int,
    batch: int = 1,
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    runs: int = 7,
) -> KernelProfile | None:
    """Open an engine file once more with its backend's profiler on, run it, and say what its layers were (medians).

    None for TensorRT, whose engines are built without the layer names that would tell. Raises as open_session, and
    InferenceError when the backend names no layer.
    """
    if backend not in ("onnxruntime", "openvino"):
        return None
    opening = open_openvino if backend == "openvino" else open_onnxruntime
    session = opening(path, device=device, precision=precision, threads=threads, profile=True)
    try:
        return summarise(_measure(session, side=side, batch=batch, runs=runs))
    finally:
        session.close()


def summarise(layers: Sequence[LayerTime]) -> KernelProfile:
    """Add up the layers of one run. Raises InferenceError when there are none."""
    groups: dict[tuple[str, str], list[float]] = {}
    for layer in layers:
        groups.setdefault((layer.kind, _precision(layer)), []).append(layer.ms)
    if not groups:
        msg = "The engine names none of the layers it ran, so that it cannot be said what they were."
        raise InferenceError(msg)
    kernels = [
        KernelTime(kind=kind, precision=precision, layers=len(times), ms=sum(times))
        for (kind, precision), times in groups.items()
    ]
    total = sum(kernel.ms for kernel in kernels) or 1.0
    convolutions = [layer for layer in layers if layer.kind in CONVOLUTIONS]
    return KernelProfile(
        int8_share=sum(kernel.ms for kernel in kernels if _is_int8(kernel)) / total,
        convolutions=len(convolutions),
        int8_convolutions=sum(_precision(layer) == "int8" for layer in convolutions),
        kernels=tuple(sorted(kernels, key=lambda kernel: -kernel.ms)),
    )


def _measure(
    session: OnnxRuntimeSession | OpenVinoSession, *, side: int, batch: int, runs: int
) -> tuple[LayerTime, ...]:
    faces = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    feeds = {session.inputs[0].name: faces}
    if isinstance(session, OnnxRuntimeSession):  # gives the median over all runs, once
        for _ in range(runs):
            session.run(feeds)
        return session.layer_times()
    measured = []
    for _ in range(runs):
        session.run(feeds)
        measured.append({layer.name: layer for layer in session.layer_times()})
    return tuple(
        replace(layer, ms=median(run[name].ms for run in measured if name in run))
        for name, layer in measured[-1].items()
    )


def _precision(layer: LayerTime) -> str:
    return "int8" if layer.precision in EIGHT_BIT else FLOATS.get(layer.precision, layer.precision)


def _is_int8(kernel: KernelTime) -> bool:
    return kernel.precision == "int8" and kernel.kind not in MOVES
