"""The one-euro filter (Casiez, Roussel, Vogel 2012): still points are held, moving ones are not delayed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.frame import FloatArray


@dataclass(frozen=True, kw_only=True)
class OneEuroConfig:
    """min_cutoff: Hz, for a still point. beta: Hz more per unit of speed. speed_cutoff: Hz, for the speed."""

    min_cutoff: float = 1.0
    beta: float = 12.0
    speed_cutoff: float = 2.0

    def __post_init__(self) -> None:
        if self.min_cutoff <= 0 or self.speed_cutoff <= 0 or self.beta < 0:
            msg = "One-euro cut-offs must be above 0 Hz and beta at least 0."
            raise ConfigError(msg)


class OneEuro:
    """Smooths an array that changes with time. Each point (row) has its own speed."""

    def __init__(self, config: OneEuroConfig) -> None:
        self._config = config
        self._value: FloatArray | None = None
        self._speed: FloatArray | None = None
        self._time = 0.0

    def step(self, value: FloatArray, time_s: float, *, unit: float = 1.0) -> FloatArray:
        """Return the smoothed (N, 2) float32 `value` at `time_s` seconds; time must not run backwards.

        unit: length that counts as 1 when speed is taken (the face's size), so that a face filmed from
        nearer, or in more pixels, is smoothed alike. At the same time as before, the old value is returned.
        """
        if self._value is None or self._speed is None:
            self._value, self._speed, self._time = value.copy(), np.zeros_like(value), time_s
            return value.copy()
        dt = time_s - self._time
        if dt <= 0:
            return self._value.copy()
        config = self._config
        speed = (value - self._value) / (unit * dt)
        self._speed = self._speed + alpha(config.speed_cutoff, dt) * (speed - self._speed)
        fast = np.linalg.norm(self._speed, axis=1, keepdims=True)
        tau = 1 / (2 * math.pi * (config.min_cutoff + config.beta * fast))
        self._value = np.asarray(self._value + (value - self._value) / (1 + tau / dt), dtype=np.float32)
        self._time = time_s
        return self._value.copy()


def alpha(cutoff: float, dt: float) -> float:
    """Weight of the new value in a first-order low-pass of `cutoff` Hz after `dt` seconds (eq. 6)."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * dt))
