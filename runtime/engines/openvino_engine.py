"""OpenVINO: Intel and ARM CPUs, Intel GPUs and NPUs. Reads its own IR and ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ufr_edge.errors import (
    BackendUnavailableError,
    ConfigError,
    EngineMisfitError,
    InferenceError,
    ModelFileError,
)
from ufr_edge.optional import require
from ufr_edge.runtime.engines.base import (
    Array,
    EngineInfo,
    LayerTime,
    TensorSpec,
    check_feeds,
    check_model_file,
    closed_error,
    translate_errors,
)
from ufr_edge.runtime.engines.onnx_wire import onnx_precision
from ufr_edge.runtime.signal_stack import kept_signal_stack

HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
NAMES = {hint: name for name, hint in HINTS.items()}


class OpenVinoSession:
    """A Session over one OpenVINO inference request."""

    def __init__(self, compiled: Any, info: EngineInfo) -> None:
        self._request: Any = compiled.create_infer_request()
        self.inputs = tuple(_spec(port, f"input_{index}") for index, port in enumerate(compiled.inputs))
        self.outputs = tuple(_spec(port, f"output_{index}") for index, port in enumerate(compiled.outputs))
        self.info = info

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises ShapeError, InferenceError."""
        if self._request is None:
            raise closed_error(self.info)
        check_feeds(self.inputs, feeds)
        arrays = {index: np.ascontiguousarray(feeds[spec.name]) for index, spec in enumerate(self.inputs)}
        with translate_errors(InferenceError, f"OpenVINO failed on {self.info.path}"):
            results = self._request.infer(arrays, share_inputs=True, share_outputs=False)
            return {spec.name: results[index] for index, spec in enumerate(self.outputs)}

    def layer_times(self) -> tuple[LayerTime, ...]:
        """The layers executed in the last run; needs open_openvino(profile=True). Raises InferenceError."""
        if self._request is None:
            raise closed_error(self.info)
        with translate_errors(InferenceError, f"OpenVINO gives no times for {self.info.path}"):
            graph = self._request.get_compiled_model().get_runtime_model().get_ordered_ops()
            precisions = {op.get_friendly_name(): _runtime_precision(op) for op in graph}
            return tuple(
                LayerTime(
                    layer.node_name,
                    layer.node_type,
                    precisions.get(layer.node_name) or layer.exec_type.rpartition("_")[2].lower(),
                    layer.real_time.total_seconds() * 1e3,
                )
                for layer in self._request.get_profiling_info()
                if layer.status.name == "EXECUTED"
            )

    def close(self) -> None:
        """Free the network."""
        self._request = None


@kept_signal_stack()
def open_openvino(
    path: Path,
    *,
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    cache_dir: Path | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    profile: bool = False,
) -> OpenVinoSession:
    """Open an OpenVINO .xml or an ONNX file. `device` is "auto" (the CPU) or an OpenVINO device name.

    `precision` None keeps the file's own: int8 for a quantized file, else fp32. What a quantized file
    leaves in float runs in the device's preferred float type, given in `info.float_precision`. `profile` has the
    session measure its layers, which costs some time.
    Raises BackendUnavailableError (device missing), EngineMisfitError (the precision cannot run here or is
    not in the file), InputFileError, ModelFileError.
    """
    ov = require("openvino", extra="openvino")
    check_model_file(path)
    core = ov.Core()
    name = _device(core, device)
    model = _read_model(ov, core, path, input_shapes)
    kind = _precision(model, path, precision)
    with translate_errors(ModelFileError, f"OpenVINO cannot compile {path} for {name}"):
        compiled = core.compile_model(model, name, _properties(kind, threads, cache_dir, profile=profile))
        hint = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        full_name = f"{name} ({str(core.get_property(name, 'FULL_DEVICE_NAME')).strip()})"
    running = NAMES.get(hint, hint)
    if kind not in ("int8", running):  # OpenVINO takes any hint and runs what the device has
        msg = f"{full_name} runs {running}, not {kind}. Give --precision {running}."
        raise EngineMisfitError(msg)
    info = EngineInfo(
        backend="openvino",
        backend_version=str(ov.__version__).split("-")[0],
        device=full_name,
        precision=kind,
        side=None,
        path=path,
        float_precision=running,
        threads=threads,
    )
    return OpenVinoSession(compiled, info)


def _read_model(
    ov: Any, core: Any, path: Path, input_shapes: Mapping[str, Sequence[int | None]] | None
) -> Any:
    _check_format(path)
    with translate_errors(ModelFileError, f"OpenVINO cannot load {path}"):
        model = core.read_model(path)
    if input_shapes is None:
        return model
    with translate_errors(ConfigError, f"OpenVINO cannot give {path} the input shapes {dict(input_shapes)}"):
        free = {
            name: ov.PartialShape([-1 if size is None else size for size in shape])
            for name, shape in input_shapes.items()
        }
        model.reshape(free)
    return model


def _device(core: Any, device: str) -> str:
    name = "CPU" if device == "auto" else device.upper()
    found = list(core.available_devices)
    if name not in found:
        msg = f"OpenVINO has no device {device!r} here; it has: {', '.join(found)}."
        raise BackendUnavailableError(msg)
    return name


def _check_format(path: Path) -> None:
    """Raise ModelFileError for what is neither ONNX nor IR: OpenVINO would try, and print, every format it knows."""
    if path.suffix == ".onnx":
        onnx_precision(path)
        return
    whole = False
    if path.suffix == ".xml":
        text = path.read_bytes()
        whole = b"<net" in text[:512] and text.rstrip().endswith(b"</net>")
    if not whole:
        msg = f"{path} is neither an ONNX file nor a whole OpenVINO .xml. Copy or export the file again."
        raise ModelFileError(msg)


def _precision(model: Any, path: Path, asked: str | None) -> str:
    quantized = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
    found = "int8" if quantized else "float"
    if quantized and asked in (None, "int8"):
        return "int8"
    if not quantized and (asked is None or asked in HINTS):
        return asked or "fp32"
    msg = f"{path} holds {found}, not {asked}. Make it with: ufr-edge export --precision {asked}"
    raise EngineMisfitError(msg)


def _properties(
    precision: str, threads: int | None, cache_dir: Path | None, *, profile: bool
) -> dict[str, Any]:
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if profile:
        properties["PERF_COUNT"] = True
    if precision in HINTS:
        # Left alone, OpenVINO would pick bf16 by itself on machines that have it.
        properties["INFERENCE_PRECISION_HINT"] = HINTS[precision]
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    if cache_dir is not None:
        properties["CACHE_DIR"] = str(cache_dir)
    return properties


def _runtime_precision(op: Any) -> str:
    info = op.get_rt_info()
    return str(info["runtimePrecision"].astype(str)) if "runtimePrecision" in info else ""


def _spec(port: Any, fallback: str) -> TensorSpec:
    names = sorted(port.get_names())
    own = port.get_node().get_friendly_name().split("/sink_port")[0]  # the others are aliases from inside
    name = own if own in names else names[0] if names else fallback
    shape = tuple(dim.get_length() if dim.is_static else None for dim in port.get_partial_shape())
    return TensorSpec(name, shape, np.dtype(port.get_element_type().to_dtype()).name)
