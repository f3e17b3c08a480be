"""Reading checkpoints of others: tensors only, whatever they are wrapped in, and saying what a wrong file is."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ufr_edge.downloads import no_model
from ufr_edge.errors import InputFileError, ModelFileError
from ufr_edge.restorers.registry import how_to_mend

StateDict: TypeAlias = dict[str, Tensor]

_WRAPPERS = ("params_ema", "params", "state_dict")
_PREFIXES = ("module.", "_orig_mod.")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")  # how torch names what a pickle would import
_PICKLE = b"\x80"


@dataclass(frozen=True)
class Signature:
    """An architecture and the keys that give it away; `arch` is what our loaders call it, None for others."""

    arch: str | None
    label: str
    keys: tuple[str, ...]


_QUANTIZER = "quantize.embedding.weight"
_BLOCK = "layers.0.residual_group.blocks.0."
# The first that fits counts, so the more special come first.
_SIGNATURES = (
    Signature(None, "HAT (super-resolution)", ("layers.0.residual_group.overlap_attn.norm1.weight",)),
    Signature("swinir", "SwinIR", (_BLOCK + "norm1.weight", _BLOCK + "attn.relative_position_bias_table")),
    Signature(None, "Swin2SR", (_BLOCK + "attn.cpb_mlp.0.weight",)),
    Signature("gfpgan", "GFPGAN (clean)", ("toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight")),
    Signature(None, "GFPGAN v1 (with CUDA extensions)", ("stylegan_decoder.style_conv1.activate.bias",)),
    Signature("codeformer", "CodeFormer", ("position_emb", "idx_pred_layer.1.weight", _QUANTIZER)),
    Signature("restoreformer", "RestoreFormer", (_QUANTIZER, "quant_conv.weight", "decoder.conv_out.weight")),
    Signature(None, "RestoreFormer as its trainer saves it", (f"vqvae.{_QUANTIZER}",)),
    Signature(None, "CodeFormer's first-stage VQGAN", (_QUANTIZER, "encoder.blocks.0.weight")),
    Signature(None, "a latent diffusion UNet", ("input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",)),
    Signature(
        "improved-diffusion",
        "an improved-diffusion UNet",
        ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight"),
    ),
    Signature(None, "a diffusers UNet", ("conv_in.weight", "time_embedding.linear_1.weight")),
    Signature("edge", "an edge restorer of ours", ("stem.weight", "encoder.0.0.conv1.weight", "head.weight")),
    Signature(None, "a U-Net discriminator (Real-ESRGAN)", ("conv0.weight", "conv9.weight")),
    Signature(None, "ESRGAN (RRDB)", ("body.0.rdb1.conv1.weight",)),
    Signature(None, "LPIPS", ("lin0.model.1.weight",)),
    Signature(None, "Fréchet statistics", ("mean", "cov")),
)


def read_state_dict(path: Path) -> StateDict:
    """Read the tensors of a .pth, .pt, .ckpt, .bin or .safetensors file, on the CPU, floats as float32.

    Takes `params_ema`, else `params`, else `state_dict`, else the top level; removes `module.` when every key
    has it. Nothing but tensors is ever unpickled. Raises InputFileError when there is no such file, ModelFileError
    when it is damaged or holds no tensors.
    """
    if not path.is_file():
        msg = f"{path} does not exist."
        raise InputFileError(msg)
    with _file_errors(path):
        raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in unwrap(raw, path).items()}


def unwrap(raw: object, path: Path) -> StateDict:
    """Find the tensors in what a checkpoint file holds (see `read_state_dict`)."""
    found = raw
    if isinstance(raw, Mapping):
        found = next((raw[key] for key in _WRAPPERS if isinstance(raw.get(key), Mapping)), raw)
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        top = ", ".join(map(str, list(raw)[:6])) if isinstance(raw, Mapping) else type(raw).__name__
        msg = f"{path} holds no network: no tensors at the top level or in {', '.join(_WRAPPERS)} (it holds: {top})."
        raise ModelFileError(msg)
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def read_header(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for other files. Raises ModelFileError when damaged."""
    if path.suffix != ".safetensors":
        return {}
    with _file_errors(path), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def guess_architecture(keys: Collection[str]) -> Signature | None:
    """Tell an architecture by its keys; None for one that is not known here."""
    return next((s for s in _SIGNATURES if all(key in keys for key in s.keys)), None)


def describe(state: Mapping[str, Tensor]) -> str:
    """Say in words what a state dict seems to be."""
    guess = guess_architecture(state.keys())
    if guess is not None:
        return guess.label
    first, tensor = next(iter(state.items()))
    return f"an unknown network of {len(state)} tensors ({first} of shape {tuple(tensor.shape)} first)"


def refuse(path: Path, state: Mapping[str, Tensor], expected: str) -> ModelFileError:
    """Return the error for a file that holds another network than the `expected` one."""
    msg = f"{path} holds {describe(state)}; expected {expected}."
    return ModelFileError(msg)


def first_misfit(exc: Exception) -> str:
    """The first telling line of torch's error about tensors that do not fit."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0] if lines else type(exc).__name__)[:300]


def _read_safetensors(path: Path) -> StateDict:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _read_pickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turn what torch, pickle and safetensors raise on a bad file into ModelFileError."""
    try:
        yield
    except pickle.UnpicklingError as exc:
        msg = f"{path} is not read: only tensors are, never other pickled objects ({why_unreadable(path, exc)}). {how_to_mend(path)}"
        raise ModelFileError(msg.rstrip()) from exc
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as exc:
        msg = f"{path} is damaged or no checkpoint ({why_unreadable(path, exc)}). {how_to_mend(path) or 'Fetch it again.'}"
        raise ModelFileError(msg) from exc


def why_unreadable(path: Path, exc: Exception) -> str:
    """Say in words of our own what torch's error about a file means: its advice is to unpickle whatever is inside."""
    if isinstance(exc, (SafetensorError, OSError)):
        return first_misfit(exc)
    with path.open("rb") as file:
        start = file.read(200)
    if (found := no_model(start)) is not None:
        return found
    if called := _GLOBAL.search(str(exc)):
        return f"it calls {called.group(1)}, which is code that would run on this machine; do not trust the file"
    whole = zipfile.is_zipfile(path)
    if start.startswith(b"PK"):
        return "its archive holds no tensors that can be read" if whole else "it was cut short: the end is missing"
    if start.startswith(_PICKLE) and isinstance(exc, (EOFError, RuntimeError)):
        return "it was cut short: the end is missing"
    return "its bytes are neither an archive of torch nor a pickle of tensors"
