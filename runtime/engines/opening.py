"""Opening a model file with the backend that was asked for, and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.engines.base import PRECISIONS, Engine, Session

BACKENDS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12"),
}
"""Backend name -> the distributions that bring it."""


def open_session(
    path: Path,
    *,
    backend: str = "onnxruntime",
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    cache_dir: Path | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> Session:
    """Open a network of any inputs and outputs.

    `input_shapes` declares inputs anew (None = any size), for networks exported with a fixed size.
    `cache_dir` keeps compiled kernels (OpenVINO, TensorRT for RTX; the others have none). Raises ConfigError for an unknown
    backend or precision or no threads, BackendUnavailableError, EngineMisfitError, InputFileError, ModelFileError.
    """
    _check_options(backend, precision, threads)
    if backend == "onnxruntime":
        from ufr_edge.runtime.engines.onnxruntime_engine import open_onnxruntime

        return open_onnxruntime(
            path, device=device, precision=precision, threads=threads, input_shapes=input_shapes
        )
    if backend == "openvino":
        from ufr_edge.runtime.engines.openvino_engine import open_openvino

        return open_openvino(
            path,
            device=device,
            precision=precision,
            threads=threads,
            cache_dir=cache_dir,
            input_shapes=input_shapes,
        )
    from ufr_edge.runtime.engines.tensorrt_engine import open_tensorrt

    if input_shapes is not None:
        msg = "A TensorRT engine has its input shapes built in; input_shapes cannot change them."
        raise ConfigError(msg)
    return open_tensorrt(path, backend=backend, device=device, precision=precision, cache_dir=cache_dir)


def open_engine_file(
    path: Path,
    *,
    backend: str = "onnxruntime",
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    cache_dir: Path | None = None,
) -> Engine:
    """Open a face engine file (uint8 NHWC in and out). Raises as open_session, and ModelFileError for others."""
    session = open_session(
        path, backend=backend, device=device, precision=precision, threads=threads, cache_dir=cache_dir
    )
    return Engine(session)


def installed_backends() -> dict[str, str]:
    """Return backend name -> version of those installed here, without importing them."""
    found: dict[str, str] = {}
    for backend, distributions in BACKENDS.items():
        for name in distributions:
            try:
                found.setdefault(backend, metadata.version(name))
            except metadata.PackageNotFoundError:
                continue
    return found


def _check_options(backend: str, precision: str | None, threads: int | None) -> None:
    if backend not in BACKENDS:
        msg = f"There is no backend {backend!r}; there are {', '.join(BACKENDS)}."
        raise ConfigError(msg)
    if precision is not None and precision not in PRECISIONS:
        msg = f"There is no precision {precision!r}; there are {', '.join(PRECISIONS)}."
        raise ConfigError(msg)
    if threads is not None and threads < 1:
        msg = f"threads must be 1 or more, not {threads}."
        raise ConfigError(msg)
