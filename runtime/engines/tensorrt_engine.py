"""TensorRT and TensorRT for RTX: the same API under two import names."""

from __future__ import annotations

from pathlib import Path

from ufr_edge.errors import BackendUnavailableError
from ufr_edge.runtime.engines.base import Session


def open_tensorrt(path: Path, *, backend: str, device: str = "auto", precision: str | None = None) -> Session:
    """Deserialize a TensorRT engine file."""
    msg = f"{backend} cannot run {path} on {device}."
    raise BackendUnavailableError(msg)
