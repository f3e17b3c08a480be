"""Jetson boards: what the system's own tools say, which JetPack that is, and what does not fit together.

The parsers are pure functions of the tools' output; they were written and tested with recorded output, not on a board.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MODEL = Path("proc/device-tree/model")
RELEASE = Path("etc/nv_tegra_release")
PACKAGES = ("nvidia-jetpack", "nvidia-l4t-core", "libnvinfer[0-9]*", "cuda-cudart-[0-9]*")

CONTEXT_MIB = 900
"""CUDA context, TensorRT's libraries and the builder itself, before it has seen a network."""
WEIGHT_COPIES = 6
"""The ONNX, the parsed network, the kernels tried and the engine each hold the weights; with room to spare."""

Run = Callable[[Sequence[str]], str]


@dataclass(frozen=True, kw_only=True)
class JetPack:
    """One release: JetPack and the Jetson Linux (L4T), TensorRT, CUDA and Python it comes with."""

    version: str
    l4t: str
    tensorrt: str
    cuda: str
    python: str


def _release(version: str, l4t: str, tensorrt: str, cuda: str, python: str) -> JetPack:
    return JetPack(version=version, l4t=l4t, tensorrt=tensorrt, cuda=cuda, python=python)


JETPACKS = (
    _release("5.1.2", "35.4.1", "8.5.2", "11.4", "3.8"),
    _release("5.1.3", "35.5.0", "8.5.2", "11.4", "3.8"),
    _release("5.1.4", "35.6.0", "8.5.2", "11.4", "3.8"),
    _release("5.1.6", "35.6.4", "8.5.2", "11.4", "3.8"),
    _release("6.0", "36.3.0", "8.6.2", "12.2", "3.10"),
    _release("6.1", "36.4.0", "10.3.0", "12.6", "3.10"),
    _release("6.2", "36.4.3", "10.3.0", "12.6", "3.10"),
    _release("6.2.1", "36.4.4", "10.3.0", "12.6", "3.10"),
    _release("6.2.2", "36.5.0", "10.3.0", "12.6", "3.10"),
    _release("7.0", "38.2.0", "10.13.3", "13.0", "3.12"),
    _release("7.1", "38.4.0", "10.13.3", "13.0", "3.12"),
    _release("7.2", "39.2.0", "10.16.2", "13.2", "3.12"),
)
"""Oldest first. From NVIDIA's release notes and boards' own package lists; docs/jetson.md prints the same table."""


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """`jetson_clocks --show`: whether CPU and GPU are held at their highest, and the GPU's MHz now and at most."""

    locked: bool
    gpu_mhz: int | None
    gpu_max_mhz: int | None


@dataclass(frozen=True, kw_only=True)
class TegraStats:
    """One line of `tegrastats`. Memory in MiB, GPU load in percent, power in watts, temperatures in °C by sensor."""

    ram_used: int
    ram_total: int
    swap_used: int
    gpu_percent: int | None
    watts: float | None
    celsius: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Jetson:
    """This board. None where a tool is missing or wants root.

    tensorrt: the system's libnvinfer. power_mode: such as "MAXN" or "25W".
    """

    board: str
    l4t: str | None
    jetpack: str | None
    tensorrt: str | None
    power_mode: str | None
    clocks: Clocks | None
    stats: TegraStats | None

    def describe(self) -> str:
        """Return one line such as `JetPack 6.2 (L4T 36.4.3), TensorRT 10.3.0, mode 25W, clocks not locked`."""
        release = find_jetpack(self.l4t)
        name = self.jetpack or (release.version if release else "unknown")
        clocks = "unknown (needs root)"
        if self.clocks is not None:
            clocks = "locked" if self.clocks.locked else "not locked"
        return (
            f"JetPack {name} (L4T {self.l4t or 'unknown'}), TensorRT {self.tensorrt or 'not installed'}, "
            f"mode {self.power_mode or 'unknown'}, clocks {clocks}"
        )


def read_jetson(root: Path = Path("/"), *, run: Run | None = None) -> Jetson | None:
    """Describe the Jetson this runs on, or None on any other machine.

    `run` returns a command's standard output, "" when it fails; the default runs it for up to three seconds.
    """
    board = _read(root / MODEL).strip("\0\n ")
    release = _read(root / RELEASE)
    if "Jetson" not in board and parse_release(release) is None:
        return None
    ask = run or _run
    packages = parse_packages(ask(["dpkg-query", "--show", *PACKAGES]))
    return Jetson(
        board=board or "NVIDIA Jetson",
        l4t=parse_release(release) or _first(packages, "nvidia-l4t-core"),
        jetpack=_first(packages, "nvidia-jetpack"),
        tensorrt=_first(packages, "libnvinfer"),
        power_mode=parse_power_mode(ask(["nvpmodel", "-q"])),
        clocks=parse_clocks(ask(["jetson_clocks", "--show"])),
        stats=parse_tegrastats(ask(["timeout", "1", "tegrastats", "--interval", "200"])),
    )


def parse_release(text: str) -> str | None:
    """Return L4T such as "36.4.3" from /etc/nv_tegra_release (`# R36 (release), REVISION: 4.3, ...`)."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return None if found is None else f"{found[1]}.{found[2].rstrip('.')}"


def parse_packages(text: str) -> dict[str, str]:
    """Return package -> upstream version from `dpkg-query --show`; without builds, `10.3.0.30-1+cuda12.5` is 10.3.0.30."""
    pairs = [line.split("\t") for line in text.splitlines()]
    return {
        pair[0].split(":")[0]: re.split(r"[-+]", pair[1])[0] for pair in pairs if len(pair) == 2 and pair[1]
    }


def parse_power_mode(text: str) -> str | None:
    """Return the mode's name from `nvpmodel -q`, such as "MAXN" or "25W"."""
    found = re.search(r"NV Power Mode: *(\S+)", text)
    return None if found is None else found[1]


def parse_clocks(text: str) -> Clocks | None:
    """Read `jetson_clocks --show`. None when it says nothing of clocks (it wants root)."""
    cpus = [
        (low, high)
        for low, high in re.findall(r"^cpu\d+:\s+Online=1 .*?MinFreq=(\d+) MaxFreq=(\d+)", text, re.MULTILINE)
    ]
    gpus = re.findall(r"^(?:GPU|gpu-\S+) MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", text, re.MULTILINE)
    if not cpus and not gpus:
        return None
    ranges = [*cpus, *((low, high) for low, high, _ in gpus)]
    return Clocks(
        locked=all(low == high for low, high in ranges),
        gpu_mhz=int(gpus[0][2]) // 1_000_000 if gpus else None,
        gpu_max_mhz=int(gpus[0][1]) // 1_000_000 if gpus else None,
    )


def parse_tegrastats(text: str) -> TegraStats | None:
    """Read the last line of `tegrastats`. None when there is none."""
    line = next((line for line in reversed(text.splitlines()) if "RAM " in line), "")
    ram = re.search(r"RAM (\d+)/(\d+)MB", line)
    if ram is None:
        return None
    swap = re.search(r"SWAP (\d+)/", line)
    gpu = re.search(r"GR3D_FREQ (\d+)%", line)
    power = re.search(r"\b(?:VDD_IN|VIN|POM_5V_IN) (\d+)", line)
    return TegraStats(
        ram_used=int(ram[1]),
        ram_total=int(ram[2]),
        swap_used=int(swap[1]) if swap else 0,
        gpu_percent=int(gpu[1]) if gpu else None,
        watts=int(power[1]) / 1000 if power else None,
        celsius={name.lower(): float(value) for name, value in re.findall(r"(\w+)@(-?[\d.]+)C\b", line)},
    )


def find_jetpack(l4t: str | None) -> JetPack | None:
    """Return the release of an L4T version, or the newest one before it in the same line (36.4.7: that of 36.4.4).

    None for a line the table does not know.
    """
    if l4t is None:
        return None
    wanted = _numbers(l4t)
    line = [item for item in JETPACKS if _numbers(item.l4t)[0] == wanted[0] and _numbers(item.l4t) <= wanted]
    return line[-1] if line else None


def jetson_problems(found: Jetson, *, tensorrt: str | None, rtx: str | None, python: str) -> tuple[str, ...]:
    """One line for each thing on this board that does not fit, with what mends it.

    tensorrt, rtx: versions of the Python packages `tensorrt` and `tensorrt-rtx`, None when not installed.
    """
    lines = []
    release = find_jetpack(found.l4t)
    system = found.tensorrt or (release.tensorrt if release else None)
    if system and _numbers(system)[0] < 10:
        lines.append(
            f"JetPack {found.jetpack or (release.version if release else '?')} brings TensorRT {system}; ufr-edge needs 10. "
            "Flash JetPack 6.1 or newer (on Xavier, which ends at JetPack 5, use ONNX Runtime)."
        )
    if found.tensorrt is None:
        lines.append("TensorRT is not installed on this board. Run: sudo apt-get install nvidia-jetpack")
    elif tensorrt is None:
        lines.append(
            f"Python does not see the system's TensorRT {found.tensorrt}. Make the venv with its packages: "
            "python3 -m venv --system-site-packages .venv (docs/jetson.md)"
        )
    elif _numbers(tensorrt)[:2] != _numbers(found.tensorrt)[:2]:
        lines.append(
            f"Python has tensorrt {tensorrt}, the board's is {found.tensorrt}: a wheel from PyPI hides it. "
            "Run: pip uninstall tensorrt tensorrt_cu12 tensorrt_cu13"
        )
    if rtx is not None:
        lines.append(
            f"tensorrt-rtx {rtx} is for RTX desktops. On Jetson use JetPack's TensorRT: pip uninstall tensorrt-rtx"
        )
    if release and _numbers(python)[:2] != _numbers(release.python):
        lines.append(
            f"This is Python {python}; JetPack {release.version} binds TensorRT to Python {release.python}. "
            f"Make the venv with: python{release.python} -m venv --system-site-packages .venv"
        )
    return tuple(lines)


def build_memory_mib(onnx_bytes: int, *, workspace_mib: int) -> int:
    """Estimate the memory a TensorRT build takes, in MiB: on Jetson out of the one memory CPU and GPU share.

    An upper estimate: context and libraries, several copies of the weights, and the whole workspace.
    """
    return CONTEXT_MIB + workspace_mib + WEIGHT_COPIES * onnx_bytes // (1 << 20)


def largest_workspace_mib(onnx_bytes: int, *, available_mib: int) -> int:
    """The largest workspace in MiB whose build fits into `available_mib`, a multiple of 64; 0 when none does."""
    left = available_mib - build_memory_mib(onnx_bytes, workspace_mib=0)
    return max(0, left // 64 * 64)


def _first(packages: Mapping[str, str], prefix: str) -> str | None:
    return next((version for name, version in packages.items() if name.startswith(prefix)), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)) or (0,)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _run(command: Sequence[str]) -> str:
    try:
        # tegrastats never ends by itself: `timeout` stops it, so that its exit code says nothing.
        return subprocess.run(command, capture_output=True, text=True, timeout=3, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
