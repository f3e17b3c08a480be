"""ONNX to a TensorRT engine: one builder for `tensorrt` and `tensorrt-rtx`, which share their API.

The network is strongly typed: fp16 and Q/DQ belong in the ONNX. The build runs in a child process, so that a
crash inside the builder ends in a BuildError with its log, and its memory is given back.
"""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from ufr_edge.errors import BuildError, ConfigError
from ufr_edge.export.tensorrt_build import PROGRESS, module_name
from ufr_edge.files import atomic_file, cache_folder, disk_errors
from ufr_edge.optional import require
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.jetson import build_memory_mib, largest_workspace_mib
from ufr_edge.runtime.machine import available_memory_mib

__all__ = ["BuildLimits", "Building", "TensorRtConfig", "export_tensorrt", "module_name", "timing_file"]

LOG_SUFFIX = ".build.log"
_LOG_LINES = 20
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)

Note = Callable[[str], None]


def _say_nothing(text: str) -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class BuildLimits:
    """What a build may take. max_batch: largest batch of an engine, tuned for one. workspace_mib: scratch memory."""

    max_batch: int = 8
    workspace_mib: int = 2048
    timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        """Raise ConfigError for a limit that is not positive, or a time that is not finite."""
        if self.max_batch < 1 or self.workspace_mib < 1 or not 0 < self.timeout_s < math.inf:
            msg = f"A TensorRT build takes a batch, a workspace and a time limit above 0; got {self}."
            raise ConfigError(msg)

    def at(self, side: int) -> TensorRtConfig:
        """The same for faces of `side` pixels."""
        return TensorRtConfig(
            side=side, max_batch=self.max_batch, workspace_mib=self.workspace_mib, timeout_s=self.timeout_s
        )


@dataclass(frozen=True, kw_only=True)
class TensorRtConfig(BuildLimits):
    """Builder limits. side: pixels."""

    side: int


@dataclass(frozen=True, kw_only=True)
class Building:
    """How TensorRT builds. limits: of a build. note: told how far it is. logs: the bundle's path, beside which the log
    of a failed build is kept; None = beside the engine file."""

    limits: BuildLimits = field(default_factory=BuildLimits)
    note: Note = _say_nothing
    logs: Path | None = None

    def log(self, engine: str) -> Path | None:
        """The log file of one engine's build."""
        if self.logs is None:
            return None
        return self.logs.with_name(f"{self.logs.stem}-{engine}{LOG_SUFFIX}")


def export_tensorrt(
    source: Path,
    target: Path,
    *,
    backend: str,
    config: TensorRtConfig,
    note: Note = _say_nothing,
    log: Path | None = None,
) -> None:
    """Build `source` (ONNX, types and Q/DQ inside) into the engine file `target`.

    backend: "tensorrt" or "tensorrt-rtx". The latter builds without a GPU, for any RTX GPU from Ampere on. note: told
    how far the build is, and a doubt about the memory. log: where the builder's messages stay when it fails, None =
    beside `target`. What TensorRT timed is kept under the cache folder and used by the next build on this GPU.
    Raises BackendUnavailableError when the package is missing, BuildError with the end of the build log otherwise,
    also before the build when not even a build without workspace fits the free memory.
    """
    require(module_name(backend), extra=backend)
    if doubt := check_memory(source, backend, config):
        note(doubt)
    kept = log or target.with_name(target.stem + LOG_SUFFIX)
    with atomic_file(target) as beside, disk_errors(kept), kept.open("w+", encoding="utf-8") as messages:
        order = {
            "backend": backend,
            "source": str(source),
            "target": str(beside),
            # TensorRT for RTX times nothing here: its kernels are made when the engine is first run.
            "timing": str(timing_file(backend)) if backend == "tensorrt" else None,
            "side": config.side,
            "max_batch": config.max_batch,
            "workspace_mib": config.workspace_mib,
        }
        code = _run_child(order, messages, timeout=config.timeout_s, note=note)
        if code != 0 or beside.stat().st_size == 0:
            _fail(source, backend, code, config, kept)
    kept.unlink(missing_ok=True)


def timing_file(backend: str) -> Path:
    """The file of timed kernels for a backend's version on this GPU: they are true of no other."""
    try:
        version = metadata.version(backend)
    except metadata.PackageNotFoundError:  # JetPack's has no metadata under this name
        version = str(getattr(require(module_name(backend), extra=backend), "__version__", "unknown"))
    here = device_fingerprint()
    words = (backend, version, here.get("gpu", "no-gpu"), here.get("gpu_compute", ""))
    name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(word for word in words if word))
    return cache_folder() / "timing" / f"{name}.cache"


def check_memory(source: Path, backend: str, config: BuildLimits) -> str:
    """A doubt about the free memory in words, "" without one. Raises BuildError when a build cannot fit.

    The workspace alone is no reason to refuse: it is a limit, and on a board's GPU of its own it is not in this memory.
    """
    size = source.stat().st_size if source.is_file() else 0
    free, need = available_memory_mib(), build_memory_mib(size, workspace_mib=config.workspace_mib)
    if free is None or free >= need:
        return ""
    fits = largest_workspace_mib(size, available_mib=free)
    if not fits:
        least = build_memory_mib(size, workspace_mib=0)
        msg = (
            f"{backend} was not started on {source.name}: its build takes about {least} MiB even without workspace, "
            f"and {free} MiB are free. Stop other programs (docs/jetson.md), or build on a machine with more memory."
        )
        raise BuildError(msg)
    return f"about {need} MiB may be needed, {free} are free: --workspace {fits} would fit"


def _run_child(order: dict[str, Any], messages: IO[str], *, timeout: float, note: Note) -> int:
    """Run the builder; its exit code. Raises BuildError when the time is over."""
    command = [sys.executable, "-m", "ufr_edge.export.tensorrt_build", json.dumps(order)]
    over = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True) as child:

        def stop() -> None:
            over.set()
            child.kill()

        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            for line in child.stdout or ():
                if words := progress_words(line):
                    note(words)
            code = child.wait()
        finally:
            timer.cancel()
            child.kill()  # does nothing to one that has ended; Ctrl-C must not leave it building
    if over.is_set():
        msg = (
            f"{order['backend']} was not done with {order['source']} after {timeout:g} s. Raise --build-time."
        )
        raise BuildError(msg)
    return code


def progress_words(line: str) -> str:
    """What to show for a line of the child's standard output, "" for one that is no progress."""
    word, _, rest = line.partition(" ")
    if word != PROGRESS:
        return ""
    phase, step, steps = json.loads(rest)
    return f"{phase}: {100 * step // max(steps, 1)} %"


def _fail(source: Path, backend: str, code: int, config: BuildLimits, log: Path) -> None:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    end = "\n".join(lines[-_LOG_LINES:])
    advice = "" if backend == "tensorrt-rtx" else " It builds only on the device the engine is for."
    if code in _KILLED:
        size = source.stat().st_size if source.is_file() else 0
        need, free = build_memory_mib(size, workspace_mib=config.workspace_mib), available_memory_mib()
        now = "" if free is None else f", {free} MiB are free now"
        why = f"killed, probably out of memory: about {need} MiB needed{now}; lower --workspace"
        msg = f"{backend} could not build {source}: {why}."
    else:
        # Of a child that ended by itself, the last line is its own word, not the builder's.
        reason = f": {lines[-1].rstrip('.')}" if code == 1 and lines and lines[-1][0] != "[" else ""
        msg = f"{backend} could not build {source} (exit code {code}){reason}.{advice}"
    msg += f" The log is {log} and ends:\n{end}"
    raise BuildError(msg)
