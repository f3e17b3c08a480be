"""The TensorRT builder itself, run as a child process by `export_tensorrt`: `python -m` it with the order as JSON.

Standard output carries progress, one line a step ("progress PHASE STEP STEPS"); standard error is the build log.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ufr_edge.errors import BuildError, OutputError
from ufr_edge.files import atomic_file
from ufr_edge.optional import require

PROGRESS = "progress"


def module_name(backend: str) -> str:
    """The import name of a TensorRT backend."""
    return backend.replace("-", "_")


def build_engine(
    trt: Any,
    source: Path,
    target: Path,
    *,
    side: int,
    max_batch: int,
    workspace_mib: int,
    timing: Path | None = None,
) -> None:
    """Build in this process. trt: the tensorrt or tensorrt_rtx module. timing: file of kernels timed before, read where
    it is there and written where the builder timed any; a damaged or foreign one is left out and written anew.

    Raises BuildError when the ONNX does not parse or no engine comes out.
    """
    logger = _logger(trt)
    builder = trt.Builder(logger)
    # TensorRT 11 knows no other kind of network and may drop the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)) or network.num_inputs != 1:
        errors = "; ".join(_parser_words(parser.get_error(i)) for i in range(parser.num_errors))
        msg = f"{trt.__name__} does not take {source.name}: {errors or 'it is no ONNX file of ours'}"
        raise BuildError(msg)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    config.progress_monitor = _monitor(trt)
    profile = builder.create_optimization_profile()
    one, most = (1, side, side, 3), (max_batch, side, side, 3)
    profile.set_shape(network.get_input(0).name, one, one, most)
    config.add_optimization_profile(profile)
    cache = None if timing is None else _load_timing(config, timing)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        msg = f"{trt.__name__} built no engine from {source}."
        raise BuildError(msg)
    target.write_bytes(memoryview(engine))
    if timing is not None and cache is not None:
        _save_timing(config, timing)


def _parser_words(error: Any) -> str:
    """What the parser refuses: operator and layer where it says them, and its own words."""
    # TensorRT 8 tells neither.
    operator, layer = (getattr(error, name, str)() for name in ("node_operator", "node_name"))
    words = str(error.desc())
    return f"{operator} in layer {layer or '?'} ({words})" if operator else words


def _load_timing(config: Any, path: Path) -> Any:
    """The timing cache set on `config`; None where the builder has none (TensorRT for RTX times at run time)."""
    try:
        known = path.read_bytes()
    except OSError:
        known = b""
    for content in (known, b""):
        cache = config.create_timing_cache(content)
        # False: another GPU or CUDA may use it, which is what the file's name is there to prevent.
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
        if content:
            sys.stderr.write(f"The timing cache {path} is of another version or damaged; it is made anew.\n")
    return None


def _save_timing(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    content = b"" if cache is None else bytes(memoryview(cache.serialize()))
    if not content:
        return
    try:
        with atomic_file(path) as beside:
            beside.write_bytes(content)
    except (OutputError, OSError) as exc:  # the engine is there; the next build takes as long as this one
        sys.stderr.write(f"The timing cache was not kept: {exc}\n")


def _logger(trt: Any) -> Any:
    """Everything from INFO on goes to the log, line by line, so that a killed build leaves what it said."""

    class Lines(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity != trt.ILogger.Severity.VERBOSE:
                sys.stderr.write(f"[{str(severity).rsplit('.', 1)[-1]}] {msg}\n")
                sys.stderr.flush()

    return Lines()


def _monitor(trt: Any) -> Any:
    class Steps(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells the steps of every phase; phases lie in each other, and the names say in which."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            _tell(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            _tell(phase_name, step + 1, self._steps.get(phase_name, step + 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Steps()


def _tell(phase: str, step: int, steps: int) -> None:
    sys.stdout.write(f"{PROGRESS} {json.dumps([phase, step, steps])}\n")
    sys.stdout.flush()


def run_order(order: dict[str, Any]) -> int:
    """Build what the parent asked for; return the exit code. Errors go to standard error, the build log."""
    backend = require(module_name(order["backend"]), extra=order["backend"])
    limits = {key: int(order[key]) for key in ("side", "max_batch", "workspace_mib")}
    timing = Path(order["timing"]) if order.get("timing") else None
    try:
        build_engine(backend, Path(order["source"]), Path(order["target"]), timing=timing, **limits)
    except BuildError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_order(json.loads(sys.argv[1])))
