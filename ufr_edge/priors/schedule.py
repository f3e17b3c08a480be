"""The paper's noise schedule, respaced, in float64 (paper.md section 3; symbols as there).

A is `abar`, b is `betas`, v is `posterior_variance`, m(i) is `timesteps[i]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import ConfigError

BASE_STEPS = 1000
BETA_START = 1e-4
BETA_END = 2e-2


@dataclass(frozen=True, eq=False)
class Schedule:
    """A chain of noise levels, index 0 the cleanest; every array has shape (T,).

    `timesteps` are the original integer timesteps m(i) that the network is given; all else is float64.
    `abar_prev[0]` is 1, the clean image. `posterior_log_variance_clipped` is log v with its value
    at index 0 (minus infinity) replaced by that at index 1.
    """

    timesteps: NDArray[np.int64]
    abar: NDArray[np.float64]
    abar_prev: NDArray[np.float64]
    betas: NDArray[np.float64]
    posterior_variance: NDArray[np.float64]
    posterior_log_variance_clipped: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of levels T."""
        return len(self.timesteps)


def base_betas(base: int = BASE_STEPS) -> NDArray[np.float64]:
    """Return the linear betas of the base schedule, 1e-4 to 2e-2, float64 (base,)."""
    return np.linspace(BETA_START, BETA_END, base, dtype=np.float64)


def base_abar(base: int = BASE_STEPS) -> NDArray[np.float64]:
    """Return abar_t = prod(1 - beta), float64 (base,)."""
    return np.asarray(np.cumprod(1.0 - base_betas(base)), dtype=np.float64)


def respaced_timesteps(steps: int, base: int = BASE_STEPS) -> tuple[int, ...]:
    """Return m(0..steps-1) = round(k (base - 1) / (steps - 1)). Raises ConfigError unless 2 <= steps <= base."""
    if not 2 <= steps <= base:
        msg = f"A respaced schedule has 2 to {base} steps; {steps} was asked for."
        raise ConfigError(msg)
    return tuple(round(k * (base - 1) / (steps - 1)) for k in range(steps))


def schedule_at(timesteps: Sequence[int], base: int = BASE_STEPS) -> Schedule:
    """Return the chain that visits just these base timesteps (ascending): b_i = 1 - A_i / A_{i-1}.

    Raises ConfigError when they do not ascend or leave [0, base).
    """
    m = np.asarray(timesteps, dtype=np.int64)
    if m.size == 0 or m[0] < 0 or m[-1] >= base or (np.diff(m) <= 0).any():
        msg = f"Timesteps must ascend within 0..{base - 1}; got {list(timesteps)}."
        raise ConfigError(msg)
    abar = base_abar(base)[m]
    abar_prev = np.concatenate([[1.0], abar[:-1]])
    betas = 1.0 - abar / abar_prev
    variance = betas * (1.0 - abar_prev) / (1.0 - abar)
    # v_0 is 0. A chain of one step adds no noise, so any finite value does there.
    clipped = np.concatenate([variance[1:2] if m.size > 1 else betas[:1], variance[1:]])
    return Schedule(m, abar, abar_prev, betas, variance, np.log(clipped))


def respaced_schedule(steps: int = 250, base: int = BASE_STEPS) -> Schedule:
    """Return the respaced schedule of the paper. Raises ConfigError unless 2 <= steps <= base."""
    return schedule_at(respaced_timesteps(steps, base), base)


def chain_indices(start: int, calls: int | None = None) -> tuple[int, ...]:
    """Return the ascending indices a chain from `start` calls the network at: 0..start-1, or `calls` of them.

    The first call is at start - 1 though the noise is that of `start` (paper.md section 3, off by one
    inherited from DifFace). Fewer calls are spread evenly, both ends kept (one call: start - 1 only).
    Raises ConfigError unless 1 <= calls <= start.
    """
    if calls is None:
        return tuple(range(start))
    if not 1 <= calls <= start:
        msg = f"A chain from index {start} takes 1 to {start} calls; {calls} were asked for."
        raise ConfigError(msg)
    if calls == 1:
        return (start - 1,)
    return tuple(round(k * (start - 1) / (calls - 1)) for k in range(calls))
