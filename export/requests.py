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
    """Every format at every precision, in the order given, each once. Raises ConfigError as EngineRequest does."""
    pairs = dict.fromkeys((f, p) for f in formats for p in precisions)
    return tuple(EngineRequest(format=f, precision=p) for f, p in pairs)
