"""What machine this is, as far as an engine cares. Reads the system, loads no framework."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")
FEATURES = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "avx512_bf16": "bf16",
    "amx_bf16": "amx",
    "amx_int8": "amx",
    "amx_fp16": "fp16",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "bf16": "bf16",
}
"""Flag of /proc/cpuinfo -> our name for it."""


def device_fingerprint() -> dict[str, str]:
    """Describe this machine: os, machine, cpu, cpu_flags, and where known board, gpu, gpu_compute, gpu_driver.

    `cpu_flags` is a sorted comma-separated list out of the names in FEATURES; `gpu_compute` is such as "8.9".
    Takes milliseconds without an NVIDIA driver, up to a second with one.
    """
    model, flags = parse_cpuinfo(_read(CPUINFO))
    found = {
        "os": platform.system().lower(),
        "machine": platform.machine().lower(),
        "cpu": model or platform.processor() or "unknown",
        "cpu_flags": ",".join(sorted(flags)),
    }
    if board := _read(BOARD).strip("\0\n "):
        found["board"] = board
    return found | (_gpu_from_smi() or _gpu_from_cuda())


def cpu_features() -> frozenset[str]:
    """Return which of avx2, avx512, vnni, bf16, amx, fp16, dotprod, i8mm this CPU has (Linux; else empty)."""
    return parse_cpuinfo(_read(CPUINFO))[1]


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Return the CPU's model name ("" when not given) and its features from the text of /proc/cpuinfo."""
    model = ""
    flags: set[str] = set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            model = model or value.strip()
        elif key.strip() in ("flags", "Features"):
            flags.update(FEATURES[flag] for flag in value.split() if flag in FEATURES)
    return model, frozenset(flags)


def parse_smi(text: str) -> dict[str, str]:
    """Return gpu, gpu_compute and gpu_driver from `nvidia-smi --query-gpu=name,compute_cap,driver_version`."""
    parts = [part.strip() for part in (text.splitlines() or [""])[0].split(",")]
    if len(parts) != 3 or not all(parts) or any(part.startswith("[") for part in parts):
        return {}
    return dict(zip(("gpu", "gpu_compute", "gpu_driver"), parts, strict=True))


def _gpu_from_smi() -> dict[str, str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_smi(result.stdout)


def _gpu_from_cuda() -> dict[str, str]:
    """Ask CUDA itself: Jetson boards have no nvidia-smi that answers."""
    try:
        from cuda.bindings import runtime as cuda
    except ImportError:
        return {}
    status, properties = cuda.cudaGetDeviceProperties(0)
    if int(status) != 0:
        return {}
    return {
        "gpu": properties.name.decode().strip("\0 "),
        "gpu_compute": f"{properties.major}.{properties.minor}",
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
