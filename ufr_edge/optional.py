"""Importing optional packages with an error that names the command that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from ufr_edge.errors import BackendUnavailableError


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`. Raises BackendUnavailableError naming the pip command when it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        msg = f'{module} is not installed or does not load ({exc}). Run: pip install "ufr-edge[{extra}]"'
        raise BackendUnavailableError(msg) from exc
