"""Restorer files: one safetensors file that says what network it is, at what side, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ufr_edge.errors import InputFileError, ModelFileError
from ufr_edge.files import atomic_file
from ufr_edge.restorers.edge import EDGE_FAMILY, EdgeUNet, build_restorer
from ufr_edge.weights import WEIGHTS_DIR
from ufr_edge.weights import find_weights as find_card

WEIGHTS_NAME = "weights.safetensors"
Storage: TypeAlias = Literal["fp32", "fp16", "int8"]
"""How the weights lie in the file; a loaded restorer is float32 whatever it is."""

_FORMAT = "ufr-edge-restorer-1"
_SCALE = ".scale"


@dataclass(frozen=True, kw_only=True)
class LoadedRestorer:
    """A restorer in eval mode, fp32 on the CPU, with what its file says of it."""

    model: EdgeUNet
    arch: str
    side: int
    meta: Mapping[str, str]
    path: Path


def save_restorer(
    model: EdgeUNet,
    path: Path,
    *,
    arch: str,
    side: int,
    meta: Mapping[str, str] | None = None,
    storage: Storage = "fp32",
) -> None:
    """Write weights with arch, side in pixels and free string metadata, atomically.

    `storage` int8: each convolution's weight as symmetric int8 with one float32 scale per output channel
    (`NAME.scale`), biases fp16: a quarter of fp32. This is about file size alone; what an engine quantizes is its
    own business. Raises ModelFileError for weights that are not finite.
    """
    tensors = {k: v.detach().to("cpu", torch.float32) for k, v in model.state_dict().items()}
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        msg = f"{path} is not written: {broken[0]} is not finite. Save an earlier checkpoint."
        raise ModelFileError(msg)
    header = {**(meta or {}), "format": _FORMAT, "arch": arch, "side": str(side), "storage": storage}
    with atomic_file(path) as beside:
        save_file(_pack(tensors, storage), beside, metadata=header)
        beside.chmod(0o644)  # safetensors replaces the file, and its mode with it


def _pack(tensors: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """Return what is written for float32 tensors (O, I, kH, kW) and (O,)."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if storage == "int8" and tensor.ndim == 4:
            peak = tensor.abs().amax((1, 2, 3), keepdim=True)
            scale = torch.where(peak > 0, peak / 127, 1.0)
            packed[name] = (tensor / scale).round().clamp(-127, 127).to(torch.int8).contiguous()
            packed[name + _SCALE] = scale.flatten().contiguous()
        else:
            packed[name] = tensor.to(torch.float32 if storage == "fp32" else torch.float16).contiguous()
    return packed


def _unpack(packed: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Undo `_pack`: float32 tensors. Raises ModelFileError when an int8 tensor lacks its scales."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        if tensor.dtype == torch.int8:
            scale = packed.get(name + _SCALE)
            if scale is None or scale.shape != tensor.shape[:1]:
                msg = f"{path}: {name} is int8 without one scale per channel. Fetch or train it again."
                raise ModelFileError(msg)
            tensors[name] = tensor.float() * scale.float().reshape(-1, *(1,) * (tensor.ndim - 1))
        elif not name.endswith(_SCALE):
            tensors[name] = tensor.float()
    return tensors


def shipped_files() -> list[Path]:
    """The weights files of the shipped restorers."""
    return sorted(WEIGHTS_DIR.glob(f"*/{WEIGHTS_NAME}"))


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
    """Load a restorer, strictly, as float32 whatever its storage.

    `source`: a shipped name ("edge-m-256"), a run folder, or a .safetensors file. `meta` is the file's header, with
    the licences of the card of a shipped one.
    Raises InputFileError when there is no such file, ModelFileError when it is damaged or another network.
    """
    path = find_weights(source)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as exc:
        msg = f"{path} is damaged or no safetensors file ({exc}). Fetch or train it again."
        raise ModelFileError(msg) from exc
    arch = header.get("arch", "")
    if header.get("format") != _FORMAT or arch not in EDGE_FAMILY:
        msg = f"{path} is not a restorer of ours (format {header.get('format')!r}, arch {arch!r}); expected {_FORMAT}."
        raise ModelFileError(msg)
    model = build_restorer(arch)
    try:
        model.load_state_dict(_unpack(tensors, path), strict=True)
    except RuntimeError as exc:
        msg = f"{path} says it is {arch} but its tensors do not fit: {str(exc).splitlines()[-1].strip()}"
        raise ModelFileError(msg) from exc
    meta = {**card_licences(path), **header}
    return LoadedRestorer(model=model.eval(), arch=arch, side=int(header.get("side", 256)), meta=meta, path=path)


def card_licences(path: Path) -> dict[str, str]:
    """The licences that the card of a shipped restorer states; none for other files. Raises ModelFileError."""
    if path.parent.parent != WEIGHTS_DIR or not (path.parent / "card.json").is_file():
        return {}
    card = find_card(path.parent.name).card
    return {key: str(card[key]) for key in ("code_licence", "weights_licence") if key in card}
