"""ONNX Runtime, the backend of the base install."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ufr_edge.errors import BackendUnavailableError, EngineMisfitError, InferenceError, ModelFileError
from ufr_edge.files import read_json
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
from ufr_edge.runtime.engines.onnx_wire import onnx_precision, with_input_shapes

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DTYPES = {"float": "float32", "double": "float64"}


class OnnxRuntimeSession:
    """A Session over onnxruntime. The file decides the precision. `profile`: the folder its layer times go to."""

    def __init__(
        self, session: Any, info: EngineInfo, profile: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        self._session: Any = session
        self._profile = profile
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self.info = info

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises ShapeError, InferenceError."""
        if self._session is None:
            raise closed_error(self.info)
        check_feeds(self.inputs, feeds)
        with translate_errors(InferenceError, f"ONNX Runtime failed on {self.info.path}"):
            results = self._session.run(None, dict(feeds))
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}

    def layer_times(self) -> tuple[LayerTime, ...]:
        """The layers executed, the median over all runs so far; once, and needs open_onnxruntime(profile=True).

        Raises InferenceError.
        """
        if self._session is None or self._profile is None:
            msg = (
                f"{self.info.path} was not opened with profile=True, or is closed: there are no layer times."
            )
            raise InferenceError(msg)
        with translate_errors(InferenceError, f"ONNX Runtime gives no times for {self.info.path}"):
            events = read_json(Path(self._session.end_profiling()))
            return _layer_times([event for event in events if event.get("cat") == "Node"])

    def close(self) -> None:
        """Free the network."""
        self._session = None
        if self._profile is not None:
            self._profile.cleanup()


def open_onnxruntime(
    path: Path,
    *,
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    profile: bool = False,
) -> OnnxRuntimeSession:
    """Open an ONNX file. `device` is "auto" (the CPU), "cpu" or "cuda". `profile` has it measure its layers.

    Raises BackendUnavailableError when the device is not there, EngineMisfitError when the file is not
    of the asked precision, InputFileError or ModelFileError for a missing or damaged file.
    """
    ort = _import_onnxruntime()
    check_model_file(path)
    found = onnx_precision(path)
    if precision not in (None, found):
        msg = f"{path} holds {found}, not {precision}. Make it with: ufr-edge export --precision {precision}"
        raise EngineMisfitError(msg)
    provider = _provider(ort, device)
    source = str(path) if input_shapes is None else with_input_shapes(path, input_shapes)
    with translate_errors(ModelFileError, f"ONNX Runtime cannot load {path}"):
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True) if profile else None
        options = _options(ort, threads, folder)
        session = ort.InferenceSession(source, options, providers=[provider])
    # ONNX Runtime drops a provider that does not start and goes on with the CPU.
    if session.get_providers()[0] != provider:
        msg = f"ONNX Runtime could not start {provider}. Check the CUDA installation, or give --device cpu."
        raise BackendUnavailableError(msg)
    info = EngineInfo(
        backend="onnxruntime",
        backend_version=str(ort.__version__),
        device="cuda" if provider == PROVIDERS["cuda"] else "cpu",
        precision=found,
        side=None,
        path=path,
        float_precision="fp32" if found == "int8" else found,
        threads=threads,
    )
    return OnnxRuntimeSession(session, info, folder)


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        msg = f"onnxruntime is not installed or does not load ({exc}). Run: pip install onnxruntime"
        raise BackendUnavailableError(msg) from exc
    return onnxruntime


def _provider(ort: Any, device: str) -> str:
    name = "cpu" if device == "auto" else device.lower()
    provider = PROVIDERS.get(name)
    if provider is None or provider not in ort.get_available_providers():
        here = [key for key, value in PROVIDERS.items() if value in ort.get_available_providers()]
        msg = f"ONNX Runtime has no device {device!r} here; it has: {', '.join(here)}."
        raise BackendUnavailableError(msg)
    return provider


def _options(ort: Any, threads: int | None, profile: tempfile.TemporaryDirectory[str] | None) -> Any:
    options = ort.SessionOptions()
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(profile.name) / "profile")
    options.log_severity_level = 4  # errors arrive as exceptions; the log would print them a second time
    # Between frames there is nothing to wait for: spinning threads took three times the processor that the work does.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return options


def _layer_times(events: Sequence[Mapping[str, Any]]) -> tuple[LayerTime, ...]:
    """From the `Node` events of ONNX Runtime's profile; the precision is the type of the first input."""
    runs: dict[str, list[float]] = {}
    layers: dict[str, tuple[str, str]] = {}
    for event in events:
        args = event["args"]
        inputs = args.get("input_type_shape") or [{"?": []}]
        name = str(event["name"]).removesuffix("_kernel_time")
        layers[name] = (str(args["op_name"]), next(iter(inputs[0]), "?"))
        runs.setdefault(name, []).append(float(event["dur"]) / 1e3)
    return tuple(LayerTime(name, *layers[name], median(times)) for name, times in runs.items())


def _spec(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in node.shape or ())
    return TensorSpec(node.name, shape, DTYPES.get(kind, kind))
