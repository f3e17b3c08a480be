"""Training a diffusion prior on clean faces (epsilon or v target, the levels the method visits weighted most)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ufr_edge.adaptation.optimizers import OptimizerName, build_optimizer
from ufr_edge.adaptation.pictures import strip
from ufr_edge.adaptation.restorer_task import ImageSource
from ufr_edge.adaptation.training import (
    Ema,
    autocast,
    check_finite,
    cosine,
    descend,
    place,
    strip_path,
    to_tensor,
    to_uint8,
)
from ufr_edge.adaptation.workers import Workers
from ufr_edge.errors import ConfigError
from ufr_edge.priors.model import DiffusionPrior, base_abar
from ufr_edge.runtime.images import write_image

EVALUATED_TIMESTEPS = (20, 60, 120, 240, 400, 600)


@dataclass(frozen=True, kw_only=True)
class PriorTraining:
    """AdamW, Adam or Muon, cosine from `lr` to `lr_end`, EMA.

    Timesteps: uniform below `visited` (what the method visits), of which a `low_share` is drawn below `low`
    instead (what a light touch visits), and a `beyond` share between `visited` and `highest`.
    `accumulate`: a step's batch is computed in so many parts. The first `crop_steps` see random crops of `crop` px
    instead of whole faces, at timesteps below `crop_visited`: texture is learned there at a fraction of the cost.
    """

    steps: int
    lr: float = 4e-4
    lr_end: float = 5e-5
    warmup: int = 200
    optimizer: OptimizerName = "adamw"
    ema: float = 0.999
    accumulate: int = 1
    precision: str = "auto"
    clip_norm: float = 1.0
    visited: int = 620
    highest: int = 700
    beyond: float = 0.05
    low_share: float = 0.35
    low: int = 260
    crop_steps: int = 0
    crop: int = 128
    crop_visited: int = 420
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError when the timesteps are out of order."""
        below = (self.low, self.visited, self.crop_visited)
        if min(below) < 1 or max(below) >= self.highest or self.highest > 1000:
            msg = "low, visited and crop_visited must lie from 1 to below highest, and highest at most at 1000."
            raise ConfigError(msg)


class _TrainingError(nn.Module):
    """The prior's training error as a forward pass, which is what exchanges gradients between processes."""

    def __init__(self, prior: DiffusionPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return the mean error."""
        return self.prior.training_error(x_0, eps, t)


class PriorTask:
    """One prior and its optimiser (see `loop.Task`)."""

    kind = "prior"

    def __init__(
        self,
        prior: DiffusionPrior,
        average: DiffusionPrior,
        config: PriorTraining,
        *,
        faces: ImageSource,
        batch: int,
        held_out: NDArray[np.uint8],
        run: Path,
        workers: Workers,
    ) -> None:
        device = workers.device
        self.workers, self.batch = workers, batch
        self.parts = workers.parts(batch, config.accumulate)
        self.prior = place(prior, device).train()
        self.trained = workers.wrap(_TrainingError(self.prior))
        self.ema = Ema(self.prior, average.to(device), config.ema)
        if config.crop_steps and config.crop > held_out.shape[1]:
            msg = f"Crops of {config.crop} px do not fit faces of {held_out.shape[1]} px. Set training.crop lower."
            raise ConfigError(msg)
        self.config, self.faces, self.run, self.device = config, faces, run, device
        self.held_out = to_tensor(held_out, device) * 2 - 1
        self.abar = base_abar(device)
        self.optimizer = build_optimizer(config.optimizer, prior.parameters(), lr=config.lr, beta2=0.99)

    @property
    def result(self) -> DiffusionPrior:
        """The averaged prior."""
        return self.ema.module  # type: ignore[return-value]

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step; noise and timesteps depend on the seed and the step only."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(step, config.steps, config.lr, config.lr_end, warmup=config.warmup)
        side = config.crop if step < config.crop_steps else self.held_out.shape[-1]
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        t = self._draw_timesteps(self.batch, generator, cropped=step < config.crop_steps)
        eps = torch.randn((self.batch, 3, side, side), generator=generator)
        self.optimizer.zero_grad(set_to_none=True)
        figures = self.workers.mean([self._backward(step, part, eps[part], t[part]) for part in self.parts])
        check_finite(figures["loss"], step, self.run)
        descend(self.optimizer, config.clip_norm, step, self.run)
        self.ema.update(step)
        return figures

    def _backward(self, step: int, part: slice, eps: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Add the gradient of one part of the batch; returns its loss."""
        faces = self.faces(step, part)
        if step < self.config.crop_steps:
            faces = self._crop(faces, step)
        x_0 = to_tensor(faces, self.device) * 2 - 1
        with self.workers.accumulating(self.trained, last=part is self.parts[-1]):
            with autocast(self.device, self.config.precision):
                loss: Tensor = self.trained(x_0, eps.to(self.device), t.to(self.device))
            (loss / len(self.parts)).backward()  # type: ignore[no-untyped-call]
        return {"loss": loss}

    def _crop(self, faces: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
        side, room = self.config.crop, faces.shape[1] - self.config.crop
        top, left = np.random.default_rng((self.config.seed, step, 2)).integers(0, room // 16 + 1, 2) * 16
        return faces[:, top : top + side, left : left + side]

    def _draw_timesteps(self, count: int, generator: torch.Generator, *, cropped: bool) -> Tensor:
        config = self.config
        highest = config.crop_visited if cropped else config.visited
        visited = torch.randint(0, highest, (count,), generator=generator)
        beyond = torch.randint(highest, config.highest, (count,), generator=generator)
        low = torch.randint(0, config.low, (count,), generator=generator)
        u = torch.rand(count, generator=generator) + cropped * config.beyond  # crops never go beyond
        inside = torch.where(u < config.beyond + config.low_share, low, visited)
        return torch.where(u < config.beyond, beyond, inside)

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out epsilon loss at fixed noise levels (`eps_20` .. `eps_600`), and a one-step denoising strip."""
        generator = torch.Generator().manual_seed(0)
        figures = {}
        columns = {"clean": to_uint8((self.held_out[:4] + 1) / 2)}
        for t in EVALUATED_TIMESTEPS:
            eps = torch.randn(self.held_out.shape, generator=generator).to(self.device)
            a = self.abar[t]
            x_t = a.sqrt() * self.held_out + (1 - a).sqrt() * eps
            with autocast(self.device, self.config.precision):
                predicted = self.result(x_t, torch.full((len(x_t),), t, device=self.device))[:, :3].float()
            figures[f"eps_{t}"] = float(F.mse_loss(predicted, eps))
            x_0 = (x_t - (1 - a).sqrt() * predicted) / a.sqrt()
            columns[f"x0 from t={t}"] = to_uint8((x_0[:4] + 1) / 2)
        write_image(strip_path(self.run, step), strip(columns))
        return figures

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "prior": self.prior.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.prior.load_state_dict(state["prior"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
