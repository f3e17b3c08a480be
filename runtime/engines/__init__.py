"""Inference engines behind one small interface."""

from ufr_edge.runtime.engines.base import Engine, EngineInfo, Session, TensorSpec
from ufr_edge.runtime.engines.opening import installed_backends, open_engine_file, open_session

__all__ = [
    "Engine",
    "EngineInfo",
    "Session",
    "TensorSpec",
    "installed_backends",
    "open_engine_file",
    "open_session",
]
