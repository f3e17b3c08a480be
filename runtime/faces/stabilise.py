"""Steady faces: each restored face is mixed with the one before, where nothing moved."""

from __future__ import annotations

from dataclasses import dataclass

from ufr_edge.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StabiliserConfig:
    """memory_s: seconds in which the past fades to 1/e where nothing moves."""

    memory_s: float = 0.12

    def __post_init__(self) -> None:
        if self.memory_s <= 0:
            msg = f"The stabiliser's memory must be above 0 seconds, not {self.memory_s}."
            raise ConfigError(msg)
