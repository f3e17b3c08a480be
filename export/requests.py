"""What can be asked for: pairs of engine format and precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ufr_edge.errors import ConfigError

SUPPORTED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "onnx": ("fp32", "fp16", "int8"),
        "openvino": ("fp32", "fp16", "bf16", "int8"),
        "tensorrt": ("fp32", "fp16", "int8"),
        "tensorrt-rtx": ("fp32", "fp16", "int8"),
    }
)
FINGERPRINT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"tensorrt": ("os", "machine", "gpu", "gpu_compute"), "tensorrt-rtx": ("os", "machine")}
)
"""What must be equal on the machine that runs an engine, by format; nothing for files that fit everywhere."""
BASE, TUNED = "model.onnx", "model-tuned.onnx"
"""The fp32 graphs of a bundle: the restorer's, and that of weights fine-tuned for int8."""
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One engine to build. Raises ConfigError for a combination that does not exist."""

    format: str
    precision: str

    def __post_init__(self) -> None:
        """Check against SUPPORTED."""
        if self.format not in SUPPORTED:
            msg = f"There is no engine format {self.format!r}. Known: {', '.join(SUPPORTED)}."
            raise ConfigError(msg)
        if self.precision not in SUPPORTED[self.format]:
            known = ", ".join(SUPPORTED[self.format])
            msg = f"{self.format} has no {self.precision} engine. It has: {known}."
            raise ConfigError(msg)

    @property
    def name(self) -> str:
        """The engine's name in a bundle, such as `openvino-int8`."""
        return f"{self.format}-{self.precision}"


def backend_of(format: str) -> str:
    """The runtime backend of an engine format."""
    return "onnxruntime" if format == "onnx" else format


def plan_requests(formats: Sequence[str], precisions: Sequence[str]) -> tuple[EngineRequest, ...]:
    """Every format at every precision, in the order given, each once. Raises ConfigError as EngineRequest does, and
    says how to come to the engines of which one format alone has the precision."""
    pairs = dict.fromkeys((f, p) for f in formats for p in precisions)
    for format, precision in pairs:
        able = [f for f in formats if precision in SUPPORTED.get(f, ())]
        if able and precision not in SUPPORTED.get(format, (precision,)):
            msg = (
                f"{format} has no {precision} engine. It has: {', '.join(SUPPORTED[format])}. Export without {precision}, "
                f"and then: ufr-edge bundle rebuild NAME.ufr --add {able[0]}-{precision}"
            )
            raise ConfigError(msg)
    return tuple(EngineRequest(format=f, precision=p) for f, p in pairs)


def parse_request(name: str) -> EngineRequest:
    """Read the name of an engine, such as `tensorrt-rtx-fp16`. Raises ConfigError as EngineRequest does."""
    format, _, precision = name.rpartition("-")
    if not format:
        msg = f"{name!r} is no name of an engine. Give FORMAT-PRECISION, such as tensorrt-fp16 or openvino-int8."
        raise ConfigError(msg)
    return EngineRequest(format=format, precision=precision)


def source_name(format: str, precision: str, *, mixed: bool = False, tuned: bool = False) -> str:
    """The file name of the ONNX that an engine is built from. mixed: int8 with layers in float, one per format.
    tuned: int8 engines have weights of their own."""
    if format == "openvino" or precision == "fp32":
        return TUNED if tuned and precision == "int8" else BASE
    if precision == "fp16":
        return "model-fp16.onnx"
    if mixed:
        return f"model-int8-{format}-mixed.onnx"
    return "model-int8.onnx" if format == "onnx" else "model-int8-tensorrt.onnx"
