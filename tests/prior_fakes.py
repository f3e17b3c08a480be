"""Stand-ins for a diffusion prior whose calls can be looked at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ufr_edge.priors.schedule import base_abar

ABAR = torch.from_numpy(base_abar())


class RecordingPrior:
    """A prior that keeps (x_t, t) of every call and answers with `answer(x_t, t)`."""

    def __init__(self, answer: Callable[[Tensor, int], Tensor]) -> None:
        self.answer = answer
        self.states: list[Tensor] = []
        self.timesteps: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert t.shape == x_t.shape[:1]
        assert len(set(t.tolist())) == 1
        self.states.append(x_t.clone())
        self.timesteps.append(int(t[0]))
        return self.answer(x_t, int(t[0]))


def zero_noise(x_t: Tensor, t: int) -> Tensor:
    """Predict no noise at all."""
    return torch.zeros_like(x_t)


def wild(x_t: Tensor, t: int) -> Tensor:
    """A learned-range prior far off the mark: big noise estimates, s well outside [-1, 1]."""
    s = torch.linspace(-1.5, 1.5, x_t.numel(), dtype=x_t.dtype).reshape(x_t.shape)
    return torch.cat([3 * torch.sin(50 * x_t) + x_t, s], 1)


def oracle(x_ref: Tensor) -> Callable[[Tensor, int], Tensor]:
    """The noise estimate that implies x_0 = x_ref, whatever the state."""

    def answer(x_t: Tensor, t: int) -> Tensor:
        abar = ABAR[t].to(x_t.dtype)
        return (x_t - abar.sqrt() * x_ref) / (1 - abar).sqrt()

    return answer


def faces(count: int, side: int = 32, *, seed: int = 0) -> Tensor:
    """Smooth random images in [0, 1], float32 (count, 3, side, side)."""
    coarse = torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
