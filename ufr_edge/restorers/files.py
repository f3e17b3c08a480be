"""Restorer files: one safetensors file that says what network it is, at what side, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ufr_edge.errors import InputFileError, ModelFileError
from ufr_edge.files import atomic_file
from ufr_edge.restorers.edge import EDGE_FAMILY, EdgeUNet, build_restorer
from ufr_edge.weights import WEIGHTS_DIR

WEIGHTS_NAME = "weights.safetensors"
_FORMAT = "ufr-edge-restorer-1"


@dataclass(frozen=True, kw_only=True)
class LoadedRestorer:
    """A restorer in eval mode, fp32 on the CPU, with what its file says of it."""

    model: EdgeUNet
    arch: str
    side: int
    meta: Mapping[str, str]
    path: Path


def save_restorer(
    model: EdgeUNet, path: Path, *, arch: str, side: int, meta: Mapping[str, str] | None = None, half: bool = False
) -> None:
    """Write weights (fp16 when `half`) with arch, side in pixels and free string metadata, atomically."""
    dtype = torch.float16 if half else torch.float32
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    header = {**(meta or {}), "format": _FORMAT, "arch": arch, "side": str(side)}
    with atomic_file(path) as beside:
        save_file(tensors, beside, metadata=header)
        beside.chmod(0o644)  # safetensors replaces the file, and its mode with it


def find_weights(source: str | Path) -> Path:
    """Resolve a shipped name, a run folder or a file to the weights file. Raises InputFileError."""
    shipped = WEIGHTS_DIR / str(source) / WEIGHTS_NAME
    path = Path(source)
    if path.is_dir():
        path = path / WEIGHTS_NAME
    if path.is_file():
        return path
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.parent.name for p in WEIGHTS_DIR.glob(f"*/{WEIGHTS_NAME}"))) or "none"
    msg = f"{source} is no restorer file, run folder or shipped model (shipped: {names})."
    raise InputFileError(msg)


def load_restorer(source: str | Path) -> LoadedRestorer:
    """Load a restorer, strictly.

    `source`: a shipped name ("edge-m-256"), a run folder, or a .safetensors file.
    Raises InputFileError when there is no such file, ModelFileError when it is damaged or another network.
    """
    path = find_weights(source)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as exc:
        msg = f"{path} is damaged or no safetensors file ({exc}). Fetch or train it again."
        raise ModelFileError(msg) from exc
    arch = header.get("arch", "")
    if header.get("format") != _FORMAT or arch not in EDGE_FAMILY:
        msg = f"{path} is not a restorer of ours (format {header.get('format')!r}, arch {arch!r}); expected {_FORMAT}."
        raise ModelFileError(msg)
    model = build_restorer(arch)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as exc:
        msg = f"{path} says it is {arch} but its tensors do not fit: {str(exc).splitlines()[-1].strip()}"
        raise ModelFileError(msg) from exc
    return LoadedRestorer(model=model.eval(), arch=arch, side=int(header.get("side", 256)), meta=header, path=path)
