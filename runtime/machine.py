"""The machine at this moment: power and clock state, memory of it and of this process. Reads files, loads nothing."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ufr_edge.runtime.device import device_fingerprint, parse_cpuinfo
from ufr_edge.runtime.jetson import Jetson, read_jetson

CPU = Path("sys/devices/system/cpu")
SUPPLIES = Path("sys/class/power_supply")
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PowerState:
    """What decides how fast the machine runs now; None where it cannot be read (virtual machines show little).

    load: processes that want a core, mean of the last minute. jetson: the board's own line, None elsewhere.
    """

    governor: str | None
    turbo: bool | None
    on_mains: bool | None
    load: float | None
    cores: int
    jetson: str | None = None

    def describe(self) -> str:
        """Return one line such as `governor performance, turbo on, on mains, load 0.2 on 4 cores`."""
        parts = [
            f"governor {self.governor or 'unknown'}",
            f"turbo {_word(self.turbo, 'on', 'off')}",
            _word(self.on_mains, "on mains", "on battery", unknown="power supply unknown"),
            f"load {'unknown' if self.load is None else f'{self.load:.1f}'} on {self.cores} cores",
        ]
        return ", ".join([*parts, *([self.jetson] if self.jetson else [])])

    def doubts(self) -> tuple[str, ...]:
        """Why times measured now may not be this machine's best, one line each."""
        lines = []
        if self.load is not None and self.load > 0.5 * self.cores:
            lines.append(
                f"The machine is busy (load {self.load:.1f} on {self.cores} cores): times are worse than on a quiet one."
            )
        if self.governor in ("powersave", "ondemand", "schedutil", "conservative") and self.jetson is None:
            lines.append(
                f"The CPU governor is {self.governor}. For steady times: sudo cpupower frequency-set -g performance"
            )
        if self.on_mains is False:
            lines.append("The machine runs on battery, which most slow down.")
        if self.jetson is not None and "clocks not locked" in self.jetson:
            lines.append(
                "The clocks are not locked. For steady times: sudo nvpmodel -m 0 && sudo jetson_clocks"
            )
        return tuple(lines)


@dataclass(frozen=True)
class ProcessMemory:
    """Resident memory of this process in MiB, now and at its peak; 0 where the system does not tell."""

    rss_mib: float
    peak_mib: float


def read_power_state(root: Path = Path("/"), *, jetson: Jetson | None = None) -> PowerState:
    """Read the power state below `root`. `jetson` is read_jetson() where that is known already."""
    board = jetson or read_jetson(root)
    return PowerState(
        governor=_text(root / CPU / "cpu0/cpufreq/scaling_governor"),
        turbo=_turbo(root / CPU),
        on_mains=_on_mains(root / SUPPLIES),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        cores=usable_cores(),
        jetson=None if board is None else board.describe(),
    )


def machine_name() -> str:
    """Return such as `AMD EPYC, 2 cores (avx2,avx512,bf16,vnni)`, and the GPU where there is one."""
    found = device_fingerprint()
    flags = f" ({found['cpu_flags']})" if found["cpu_flags"] else ""
    gpu = f", {found['gpu']}" if "gpu" in found else ""
    return f"{found['cpu']}, {usable_cores()} cores{flags}{gpu}"


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory_mib(root: Path = Path("/")) -> int | None:
    """Memory in MiB that a new process can have without swapping; None where it cannot be read (not Linux)."""
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return None


def cpu_arithmetic(root: Path = Path("/")) -> tuple[str, ...]:
    """What this CPU's instructions mean for int8 and bf16, one line each; empty where /proc/cpuinfo does not tell."""
    text = _text(root / "proc/cpuinfo") or ""
    flags = {
        word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()
    }
    if not flags:
        return ()
    return _int8_line(flags), _bf16_line(flags, parse_cpuinfo(text)[1])


def process_memory() -> ProcessMemory:
    """Resident memory of this process, by whatever the system offers."""
    status = _text(Path("/proc/self/status"))
    if status is not None:
        sizes = {
            key: rest.split()[0]
            for key, _, rest in (line.partition(":") for line in status.splitlines())
            if rest.split()
        }
        return ProcessMemory(int(sizes.get("VmRSS", 0)) / 1024, int(sizes.get("VmHWM", 0)) / 1024)
    if sys.platform == "win32":
        return _windows_memory()
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (_MIB if sys.platform == "darwin" else 1024)
    return ProcessMemory(0.0, peak)


def reset_peak_memory() -> bool:
    """Start the peak of process_memory anew from here. False where the system has no such thing (not Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _windows_memory() -> ProcessMemory:
    import ctypes

    names = ("fault", "peak", "now", "a", "b", "c", "d", "e", "f")

    class Counters(ctypes.Structure):
        """PROCESS_MEMORY_COUNTERS of psapi.h."""

        _fields_ = (
            ("cb", ctypes.c_ulong),
            ("faults", ctypes.c_ulong),
            *((name, ctypes.c_size_t) for name in names[1:]),
        )

    counters = Counters()
    counters.cb = ctypes.sizeof(counters)
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 - the name exists on Windows only
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    if not kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb):
        return ProcessMemory(0.0, 0.0)
    return ProcessMemory(counters.now / _MIB, counters.peak / _MIB)


def _int8_line(flags: set[str]) -> str:
    if "amx_int8" in flags:
        return "AMX-INT8: int8 engines run many times faster than fp32; use them."
    if flags & {"avx512_vnni", "avx_vnni"}:
        which = " and ".join(
            name for flag, name in (("avx512_vnni", "AVX512-VNNI"), ("avx_vnni", "AVX-VNNI")) if flag in flags
        )
        return f"{which}, no AMX: int8 engines run about 2 to 4 times as fast as fp32."
    if flags & {"asimddp", "i8mm"}:
        return f"{'I8MM' if 'i8mm' in flags else 'dot product'}: int8 engines run faster than fp32."
    return "no VNNI and no AMX: int8 saves memory here but may be no faster than fp32; measure with ufr-edge bench."


def _bf16_line(flags: set[str], features: frozenset[str]) -> str:
    if "amx_bf16" in flags:
        return "AMX-BF16: bf16 engines run several times faster than fp32 and lose almost nothing."
    if "bf16" in features:
        return "bf16 without AMX: bf16 engines run up to twice as fast as fp32."
    return "no bf16: OpenVINO refuses bf16 engines here; use int8 or fp32."


def _turbo(cpu: Path) -> bool | None:
    blocked = _text(cpu / "intel_pstate/no_turbo")
    if blocked is not None:
        return blocked == "0"
    boost = _text(cpu / "cpufreq/boost")
    return None if boost is None else boost == "1"


def _on_mains(supplies: Path) -> bool | None:
    folders = sorted(supplies.iterdir()) if supplies.is_dir() else []
    states = [_text(folder / "online") for folder in folders if _text(folder / "type") == "Mains"]
    return "1" in states if states else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _word(value: bool | None, yes: str, no: str, *, unknown: str = "unknown") -> str:
    return unknown if value is None else yes if value else no
