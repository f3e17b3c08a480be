"""TensorRT and TensorRT for RTX: the same API under two import names; CUDA memory through cuda-python."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ufr_edge.errors import BackendUnavailableError, EngineMisfitError, InferenceError, ShapeError
from ufr_edge.optional import require
from ufr_edge.runtime.engines.base import (
    Array,
    EngineInfo,
    TensorSpec,
    check_feeds,
    check_model_file,
    closed_error,
    shape_text,
    translate_errors,
)
from ufr_edge.runtime.engines.tensorrt_kernels import KernelCache, kernel_file

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
DTYPES = {
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "HALF": "float16",
    "FLOAT": "float32",
    "BOOL": "bool",
}
_LOG = logging.getLogger(__name__)


class CudaBuffers:
    """Device memory by tensor name and one stream; grows when a larger array comes, frees all on close."""

    def __init__(self, cuda: Any, index: int) -> None:
        self._cuda = cuda
        self._index = index
        self._memory: dict[str, tuple[int, int]] = {}
        self.stream: Any = None
        self.select()
        self.stream = self.call("cudaStreamCreate")

    def call(self, name: str, *args: Any) -> Any:
        """Call a CUDA runtime function; return its result. Raises InferenceError with CUDA's own words."""
        status, *results = getattr(self._cuda, name)(*args)
        if int(status) != 0:
            _, text = self._cuda.cudaGetErrorString(status)
            words = text.decode() if isinstance(text, bytes) else text
            msg = f"CUDA {name} failed: {words} ({int(status)})."
            raise InferenceError(msg)
        return results[0] if results else None

    def select(self) -> None:
        """Make this the thread's device: CUDA keeps it per thread."""
        self.call("cudaSetDevice", self._index)

    def reserve(self, name: str, size: int) -> int:
        """Return the address of at least `size` bytes for the tensor `name`."""
        address, held = self._memory.get(name, (0, 0))
        if held < size:
            if held:
                del self._memory[name]
                self.call("cudaFree", address)
            address = int(self.call("cudaMalloc", size))
            self._memory[name] = (address, size)
        return address

    def upload(self, name: str, array: Array) -> int:
        """Queue a copy of a contiguous array to the device; return its address there."""
        address = self.reserve(name, array.nbytes)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)
        return address

    def download(self, name: str, array: Array) -> None:
        """Queue a copy from the device into a contiguous array; complete only after `wait`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        address = self._memory[name][0]
        self.call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def wait(self) -> None:
        """Wait for all that was queued."""
        self.call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Free the memory and the stream. Calling it again does nothing."""
        memory, self._memory = self._memory, {}
        for address, _ in memory.values():
            self.call("cudaFree", address)
        stream, self.stream = self.stream, None
        if stream is not None:
            self.call("cudaStreamDestroy", stream)


class TensorRtSession:
    """A Session over one TensorRT execution context."""

    def __init__(
        self,
        trt: Any,
        runtime: Any,
        engine: Any,
        buffers: CudaBuffers,
        info: EngineInfo,
        *,
        kernels: KernelCache | None = None,
    ) -> None:
        self._runtime: Any = runtime  # the engine lives no longer than its runtime
        self._engine: Any = engine
        self._kernels = kernels
        self._context: Any = engine.create_execution_context() if kernels is None else kernels.context(engine)
        if self._context is None:
            msg = f"{info.backend} could not make an execution context for {info.path}: out of GPU memory?"
            raise InferenceError(msg)
        self._buffers = buffers
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        given = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = tuple(_spec(engine, name) for name in given)
        self.outputs = tuple(_spec(engine, name) for name in names if name not in given)
        self.info = info

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises ShapeError (also for a batch the engine was not built for), InferenceError."""
        if self._context is None:
            raise closed_error(self.info)
        check_feeds(self.inputs, feeds)
        with translate_errors(InferenceError, f"{self.info.backend} failed on {self.info.path}"):
            self._buffers.select()
            held = self._send(feeds)
            results = self._receive()
            if not self._context.execute_async_v3(int(self._buffers.stream)):
                msg = f"{self.info.backend} failed on {self.info.path}. Run again with --log-level debug."
                raise InferenceError(msg)
            for name, array in results.items():
                self._buffers.download(name, array)
            self._buffers.wait()  # `held` must live until here: the copies read it
            del held
        return results

    def close(self) -> None:
        """Keep the kernels made meanwhile; free the context, the engine and the GPU memory."""
        if self._context is None:
            return
        self._buffers.select()
        if self._kernels is not None:
            self._kernels.save()
        self._kernels = None
        self._context = None
        self._engine = None
        self._runtime = None
        self._buffers.close()

    def _send(self, feeds: Mapping[str, Array]) -> list[Array]:
        held = []
        for spec in self.inputs:
            array = np.ascontiguousarray(feeds[spec.name])
            if not self._context.set_input_shape(spec.name, array.shape):
                least, _, most = self._engine.get_tensor_profile_shape(spec.name, 0)
                msg = (
                    f"The engine was built for {shape_text(tuple(least))} to {shape_text(tuple(most))}, "
                    f"not {shape_text(array.shape)}. Use a smaller batch, or export it again."
                )
                raise ShapeError(msg)
            self._context.set_tensor_address(spec.name, self._buffers.upload(spec.name, array))
            held.append(array)
        return held

    def _receive(self) -> dict[str, Array]:
        results: dict[str, Array] = {}
        for spec in self.outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            array = np.empty(shape, spec.dtype)
            self._context.set_tensor_address(spec.name, self._buffers.reserve(spec.name, array.nbytes))
            results[spec.name] = array
        return results


def open_tensorrt(
    path: Path,
    *,
    backend: str,
    device: str = "auto",
    precision: str | None = None,
    cache_dir: Path | None = None,
) -> TensorRtSession:
    """Open a serialized engine of `backend` "tensorrt" or "tensorrt-rtx" on "auto" (the first GPU) or "cuda:N".

    `precision` is what the engine was built in; TensorRT does not tell, so it is taken from the caller. `cache_dir`:
    where TensorRT for RTX keeps the kernels it makes here, None = `kernels` in the cache folder.
    Raises BackendUnavailableError (no package, no GPU), EngineMisfitError (another TensorRT or GPU),
    InputFileError, ModelFileError.
    """
    check_model_file(path)
    trt = require(MODULES[backend], extra=backend)
    cuda = require("cuda.bindings.runtime", extra=backend)
    index = _device_index(cuda, backend, device)
    buffers = CudaBuffers(cuda, index)
    try:
        runtime, engine = _deserialize(trt, path, backend)
        name = cuda.cudaGetDeviceProperties(index)[1].name.decode().strip("\0 ")
        info = EngineInfo(
            backend=backend,
            backend_version=str(trt.__version__),
            device=f"cuda:{index} ({name})",
            precision=precision or "unknown",
            side=None,
            path=path,
            float_precision=precision or "unknown",
        )
        kernels = _kernels(engine, path, info, name, cache_dir)
        return TensorRtSession(trt, runtime, engine, buffers, info, kernels=kernels)
    except BaseException:
        buffers.close()
        raise


def _kernels(engine: Any, path: Path, info: EngineInfo, gpu: str, folder: Path | None) -> KernelCache | None:
    if info.backend != "tensorrt-rtx" or not hasattr(engine, "create_runtime_config"):
        return None
    return KernelCache(engine, kernel_file(path, version=info.backend_version, gpu=gpu, folder=folder))


def _device_index(cuda: Any, backend: str, device: str) -> int:
    kind, _, number = ("cuda" if device == "auto" else device.lower()).partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        msg = f"{backend} runs on cuda or cuda:N, not on {device!r}."
        raise BackendUnavailableError(msg)
    status, count = cuda.cudaGetDeviceCount()
    if int(status) != 0 or not count:
        reason = getattr(status, "name", str(status))
        msg = f"{backend} needs an NVIDIA GPU with its driver, and there is none here ({reason}). Use another engine."
        raise BackendUnavailableError(msg)
    index = int(number or 0)
    if index >= count:
        msg = f"There is no {device!r} here; this machine has {count} GPUs, counted from 0."
        raise BackendUnavailableError(msg)
    return index


def _deserialize(trt: Any, path: Path, backend: str) -> tuple[Any, Any]:
    complaints: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Sends TensorRT's log to ours, and keeps its errors for the message."""

        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            _LOG.debug("%s", message)
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                complaints.append(message)

    with translate_errors(EngineMisfitError, f"{backend} cannot load {path}"):
        runtime = trt.Runtime(Logger())
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        reason = (
            complaints[0].split("(", 1)[-1].split(" In ")[0].strip(" .")[:200] if complaints else "unknown"
        )
        msg = (
            f"{backend} {trt.__version__} refuses {path}: {reason}. "
            "It was built by another version or for another GPU. Build it here: give --rebuild, or run: "
            "ufr-edge bundle rebuild BUNDLE --all-misfits"
        )
        raise EngineMisfitError(msg)
    return runtime, engine


def _spec(engine: Any, name: str) -> TensorSpec:
    kind = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
    shape = tuple(None if size < 0 else size for size in engine.get_tensor_shape(name))
    return TensorSpec(name, shape, DTYPES.get(kind, kind.lower()))
