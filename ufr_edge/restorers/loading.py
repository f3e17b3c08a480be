"""Any restorer by name or file: our own, or a checkpoint of others; and saving it so that it is read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import save_file

from ufr_edge.errors import InputFileError, ModelFileError
from ufr_edge.files import atomic_file
from ufr_edge.restorers.checkpoints import guess_architecture, read_header, read_state_dict, refuse
from ufr_edge.restorers.edge import EDGE_FAMILY, EdgeUNet
from ufr_edge.restorers.files import WEIGHTS_NAME, LoadedRestorer, find_weights, load_restorer, save_restorer
from ufr_edge.restorers.registry import KNOWN_MODELS, find_known, recognise, require_licence
from ufr_edge.restorers.spandrel_loader import ARCHITECTURES, EXPECTED, SpandrelRestorer, build_from_state

AnyModel: TypeAlias = EdgeUNet | SpandrelRestorer
"""A restorer network that can be trained, copied (`copy.deepcopy`), exported and saved; see `protocol.Restorer`."""

_FORMAT = "ufr-edge-checkpoint-1"
_EXPECTED = f"{EXPECTED}, or an edge restorer of ours as adapt and pretrain write it ({WEIGHTS_NAME} with its header)"


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """A restorer of others, in eval mode, fp32 on the CPU; the fields of `LoadedRestorer`, and its licence."""

    model: SpandrelRestorer
    arch: str
    side: int
    meta: Mapping[str, str]
    path: Path
    licence: str


AnyRestorer: TypeAlias = LoadedRestorer | LoadedCheckpoint


def load_any_restorer(source: str | Path, *, accept_licence: bool = False) -> AnyRestorer:
    """Load a restorer, strictly, reading tensors only.

    `source`: a shipped name ("edge-m-256"), a known one ("swinir-face-gan", see `registry`), a run folder, or a file
    (.safetensors, .pth, .pt, .ckpt). Raises InputFileError when there is no such thing, ModelFileError when it is
    damaged or another network, ConfigError for a restricted licence that has not been accepted,
    BackendUnavailableError without the package that holds the architecture.
    """
    path = find_restorer(source)
    header = read_header(path)
    if header.get("arch") in EDGE_FAMILY:
        return load_restorer(path)
    state = read_state_dict(path)
    guess = guess_architecture(state.keys())
    if guess is None or guess.arch not in ARCHITECTURES:
        raise refuse(path, state, _EXPECTED)
    licences = _licences(guess.arch, source, header, accept=accept_licence)
    model = build_from_state(guess.arch, state, path)
    meta = {**header, **licences}
    return LoadedCheckpoint(
        model=model, arch=guess.arch, side=model.side, meta=meta, path=path, licence=licences["licence"]
    )


def restorer_licence(source: str | Path, *, accept: bool = False) -> str | None:
    """Return the licence of a checkpoint of others in words, None for our own restorers.

    With `accept`, a restricted one is accepted for this cache folder, as by `ufr-edge models accept`; without it,
    and as long as it is not, ConfigError is raised as by `load_any_restorer`, before a network is built.
    """
    path = find_restorer(source)
    header = read_header(path)
    if header.get("arch") in EDGE_FAMILY:
        return None
    state = read_state_dict(path)
    guess = guess_architecture(state.keys())
    if guess is None or guess.arch not in ARCHITECTURES:
        raise refuse(path, state, _EXPECTED)
    return _licences(guess.arch, source, header, accept=accept)["licence"]


def find_restorer(source: str | Path) -> Path:
    """Resolve a shipped name, a known name, a run folder or a file. Raises InputFileError."""
    path = Path(source)
    if path.is_file() or path.is_dir():
        return find_weights(path)
    known = find_known(str(source), kind="restorer")
    if known is not None:
        return known
    try:
        return find_weights(source)
    except InputFileError as exc:
        names = ", ".join(name for name, model in KNOWN_MODELS.items() if model.kind == "restorer")
        msg = f"{exc} Known, to be fetched by `ufr-edge models fetch NAME`: {names}."
        raise InputFileError(msg) from exc


def save_any_restorer(
    model: AnyModel, path: Path, *, arch: str, side: int, meta: Mapping[str, str] | None = None
) -> None:
    """Write weights that `load_any_restorer` reads, atomically: float32, under the keys of the original release.

    Raises ModelFileError for weights that are not finite.
    """
    if isinstance(model, EdgeUNet):
        save_restorer(model, path, arch=arch, side=side, meta=meta)
        return
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in model.file_state().items()}
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        msg = f"{path} is not written: {broken[0]} is not finite. Save an earlier checkpoint."
        raise ModelFileError(msg)
    with atomic_file(path) as beside:
        save_file(tensors, beside, metadata={**(meta or {}), "format": _FORMAT, "arch": arch, "side": str(side)})
        beside.chmod(0o644)  # safetensors replaces the file, and its mode with it


def _licences(arch: str, source: str | Path, header: Mapping[str, str], *, accept: bool) -> dict[str, str]:
    """The licences in words, having asked for what must be accepted: known models by name or file, CodeFormer always.

    Fine-tuned weights carry that of the weights they came from in their header.
    """
    known = KNOWN_MODELS.get(str(source)) or recognise(Path(source))
    if known is None and arch == "codeformer":
        known = KNOWN_MODELS["codeformer"]
    if known is not None:
        require_licence(known, accept=accept)
        code, weights = known.code_licence, known.weights_licence
    else:
        code = next(model.code_licence for model in KNOWN_MODELS.values() if model.arch == arch)
        weights = header.get("weights_licence", "as their source says")
    return {"code_licence": code, "weights_licence": weights, "licence": f"code {code}; weights {weights}"}


__all__ = [
    "WEIGHTS_NAME",
    "AnyModel",
    "AnyRestorer",
    "LoadedCheckpoint",
    "find_restorer",
    "load_any_restorer",
    "restorer_licence",
    "save_any_restorer",
]
