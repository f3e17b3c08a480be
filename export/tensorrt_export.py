"""ONNX to a TensorRT engine: one builder for `tensorrt` and `tensorrt-rtx`, which share their API.

The network is strongly typed: fp16 and Q/DQ belong in the ONNX. The build runs in a child process, so that a
crash inside the builder ends in a BuildError with its log, and its memory is given back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ufr_edge.errors import BuildError
from ufr_edge.files import atomic_file
from ufr_edge.optional import require

_LOG_LINES = 20


@dataclass(frozen=True, kw_only=True)
class TensorRtConfig:
    """Builder limits. side: pixels. max_batch: largest batch the engine takes; it is tuned for a batch of one."""

    side: int
    max_batch: int = 8
    workspace_mib: int = 2048
    timeout_s: float = 3600.0


def export_tensorrt(source: Path, target: Path, *, backend: str, config: TensorRtConfig) -> None:
    """Build `source` (ONNX, types and Q/DQ inside) into the engine file `target`.

    backend: "tensorrt" or "tensorrt-rtx". The latter builds without a GPU, for any RTX GPU from Ampere on.
    Raises BackendUnavailableError when the package is missing, BuildError with the end of the build log otherwise.
    """
    require(module_name(backend), extra=backend)
    with atomic_file(target) as beside:
        order = {
            "backend": backend,
            "source": str(source),
            "target": str(beside),
            "side": config.side,
            "max_batch": config.max_batch,
            "workspace_mib": config.workspace_mib,
        }
        child = _run_child(order, timeout=config.timeout_s)
        if child.returncode != 0 or beside.stat().st_size == 0:
            _fail(source, backend, child)


def module_name(backend: str) -> str:
    """The import name of a TensorRT backend."""
    return backend.replace("-", "_")


def build_engine(
    trt: Any, source: Path, target: Path, *, side: int, max_batch: int, workspace_mib: int
) -> None:
    """Build in this process, logging to standard error. trt: the tensorrt or tensorrt_rtx module.

    Raises BuildError when the ONNX does not parse or no engine comes out.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # TensorRT 11 knows no other kind of network and may drop the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)) or network.num_inputs != 1:
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        msg = f"{trt.__name__} does not take {source}: {errors or 'it is no ONNX file of ours'}"
        raise BuildError(msg)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    profile = builder.create_optimization_profile()
    one, most = (1, side, side, 3), (max_batch, side, side, 3)
    profile.set_shape(network.get_input(0).name, one, one, most)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        msg = f"{trt.__name__} built no engine from {source}."
        raise BuildError(msg)
    target.write_bytes(memoryview(engine))


def _run_child(order: dict[str, Any], *, timeout: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ufr_edge.export.tensorrt_export", json.dumps(order)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as exc:
        msg = f"{order['backend']} was not done with {order['source']} after {timeout:g} s."
        raise BuildError(msg) from exc


def _fail(source: Path, backend: str, child: subprocess.CompletedProcess[str]) -> None:
    log = "\n".join(child.stderr.strip().splitlines()[-_LOG_LINES:])
    advice = "" if backend == "tensorrt-rtx" else " It builds only on the device the engine is for."
    msg = f"{backend} could not build {source} (exit code {child.returncode}).{advice} Its log ends:\n{log}"
    raise BuildError(msg)


def _child(order: dict[str, Any]) -> int:
    backend = require(module_name(order["backend"]), extra=order["backend"])
    limits = {key: int(order[key]) for key in ("side", "max_batch", "workspace_mib")}
    try:
        build_engine(backend, Path(order["source"]), Path(order["target"]), **limits)
    except BuildError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_child(json.loads(sys.argv[1])))
