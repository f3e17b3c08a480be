"""Which optimiser trains a restorer: AdamW, Adam, or Muon, which gets further in the few steps that a CPU affords."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adamw", "adam", "muon"]
_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Jordan et al. 2024: pushes singular values from (0, 1] to about 1 in a few rounds."""


def build_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], *, lr: float, beta2: float
) -> torch.optim.Optimizer:
    """Build an optimiser without weight decay; `beta2` is Adam's, for the parameters that Adam moves."""
    if name == "muon":
        return Muon(parameters, lr=lr, betas=(0.9, beta2))
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, betas=(0.9, beta2))
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, beta2), weight_decay=0.0)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal (Jordan et al. 2024), for convolutions; Adam for biases.

    A kernel (out, in, h, w) is taken as a matrix (out, in h w). The step is scaled to the size of AdamW's, 0.2
    sqrt(max(rows, columns)) (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4), so that its learning
    rates serve here too.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        rounds: int = 4,
    ) -> None:
        every = list(parameters)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in every if p.ndim == 4], "orthogonal": True},
            {"params": [p for p in every if p.ndim != 4], "orthogonal": False},
        ]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "rounds": rounds})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        loss = closure() if closure else None
        for group in self.param_groups:
            move = self._orthogonal_step if group["orthogonal"] else self._adam_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move(parameter, parameter.grad, group)
        return loss

    def _orthogonal_step(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        mean = state.setdefault("mean", torch.zeros_like(p))
        mean.lerp_(grad, 1 - group["momentum"])
        ahead = grad.lerp(mean, group["momentum"]).flatten(1)  # Nesterov's
        scale = 0.2 * max(ahead.shape) ** 0.5
        p.add_(orthogonal(ahead, group["rounds"]).view(p.shape), alpha=-group["lr"] * scale)

    def _adam_step(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        mean = state.setdefault("mean", torch.zeros_like(p))
        square = state.setdefault("square", torch.zeros_like(p))
        state["count"] = state.get("count", 0) + 1
        mean.lerp_(grad, 1 - beta1)
        square.lerp_(grad.square(), 1 - beta2)
        bias1, bias2 = (1 - beta ** state["count"] for beta in (beta1, beta2))
        p.addcdiv_(mean / bias1, (square / bias2).sqrt() + 1e-8, value=-group["lr"])


def orthogonal(matrix: Tensor, rounds: int) -> Tensor:
    """Return about U V^T of a float32 matrix U S V^T (Newton-Schulz in bfloat16: singular values of 0.7 to 1.2)."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix / (matrix.norm() + 1e-8)).bfloat16()
    x = x.T if tall else x
    a, b, c = _QUINTIC
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    turned: Tensor = x.T if tall else x
    return turned.to(matrix.dtype)
