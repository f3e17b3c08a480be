"""Training a restorer on pairs: the same task pretrains, adapts to pseudo targets and trains the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ufr_edge.adaptation.discriminator import Adversary
from ufr_edge.adaptation.pictures import strip
from ufr_edge.adaptation.training import Ema, autocast, check_loss, cosine, place, to_tensor, to_uint8
from ufr_edge.errors import ConfigError
from ufr_edge.metrics.quality import psnr
from ufr_edge.priors.features import PriorFeatures, prior_feature_distance
from ufr_edge.restorers.edge import EdgeUNet
from ufr_edge.runtime.images import write_image

Images = NDArray[np.uint8]
PairSource = Callable[[int], tuple[Images, Images]]
"""step -> (low-quality, target), each uint8 (B, S, S, 3) RGB."""
ImageSource = Callable[[int], Images]


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Batch-independent weights (paper.md section 6: 1.0 L1 + 0.4 perceptual + 0.1 adversarial).

    The perceptual term is the distance on the frozen prior's own features, not LPIPS.
    """

    l1: float = 1.0
    prior_features: float = 0.4
    adversarial: float = 0.1


@dataclass(frozen=True, kw_only=True)
class RestorerTraining:
    """Optimiser settings: AdamW, cosine from `lr` to `lr_end`, EMA of the weights when `ema` > 0.

    `adversarial_crop`: the discriminator sees a random crop of this side (multiple of 8) instead of the whole
    face, which makes it as many times cheaper; 0 is the whole face, the paper's.
    """

    steps: int
    lr: float = 2e-5
    lr_end: float = 5e-6
    warmup: int = 0
    ema: float = 0.0
    precision: str = "auto"
    discriminator_lr: float = 2e-5
    discriminator_features: int = 64
    adversarial_crop: int = 0
    clip_norm: float = 0.0
    losses: LossWeights = field(default_factory=LossWeights)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Faces to look at while training: `lq` and, where it is known, the `truth`; uint8 (N, S, S, 3)."""

    lq: Images
    truth: Images


class RestorerTask:
    """One restorer, its losses and its optimiser (see `loop.Task`)."""

    kind = "restorer"

    def __init__(
        self,
        model: EdgeUNet,
        config: RestorerTraining,
        *,
        pairs: PairSource,
        run: Path,
        device: torch.device,
        real: ImageSource | None = None,
        features: PriorFeatures | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self.model = place(model, device).train()
        self.config, self.pairs, self.real, self.run, self.device = config, pairs, real, run, device
        self.features, self.held_out = features, held_out
        weights = config.losses
        if weights.prior_features > 0 and features is None:
            msg = "The perceptual term needs a prior: give --prior, or set its weight to 0."
            raise ConfigError(msg)
        if weights.adversarial > 0 and real is None:
            msg = "The adversarial term needs real faces: give --real FOLDER, or set its weight to 0."
            raise ConfigError(msg)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=0.0)
        self.ema = Ema(self.model, EdgeUNet(model.config).to(device), config.ema) if config.ema > 0 else None
        self.adversary = (
            Adversary(features=config.discriminator_features, lr=config.discriminator_lr, device=device)
            if weights.adversarial > 0
            else None
        )

    @property
    def result(self) -> EdgeUNet:
        """The network to keep: the average when there is one."""
        return self.ema.module if self.ema else self.model  # type: ignore[return-value]

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step on the pairs of this step; returns each loss term, unweighted."""
        config = self.config
        lq, target = (to_tensor(images, self.device) for images in self.pairs(step))
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(step, config.steps, config.lr, config.lr_end, warmup=config.warmup)
        with autocast(self.device, config.precision):
            out = self.model(lq).float()
            total, parts = self._losses(out, target, step)
        check_loss(total, step, self.run)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        if self.adversary and self.real:
            real = to_tensor(self.real(step), self.device)
            with autocast(self.device, config.precision):
                parts["discriminator"] = self.adversary.update(self._crop(out, step), self._crop(real, step))
        if self.ema:
            self.ema.update(step)
        return parts

    def _crop(self, images: Tensor, step: int) -> Tensor:
        """The part of the faces that the discriminator sees in this step."""
        side, room = self.config.adversarial_crop, images.shape[-1] - self.config.adversarial_crop
        if side == 0 or room <= 0:
            return images
        top, left = np.random.default_rng((step, 3)).integers(0, room + 1, 2)
        return images[:, :, top : top + side, left : left + side]

    def _losses(self, out: Tensor, target: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        weights = self.config.losses
        terms = {"l1": (weights.l1, F.l1_loss(out, target))}
        if self.features is not None and weights.prior_features > 0:
            # The features sit on a grid of `factor` pixels: a new offset each step, or its pattern is learned.
            offset = tuple(np.random.default_rng((step, 4)).integers(0, self.features.factor, 2).tolist())
            pair = (torch.roll(images, offset, (2, 3)) for images in (out, target))
            terms["prior_features"] = (weights.prior_features, prior_feature_distance(self.features, *pair).mean())
        if self.adversary:
            terms["adversarial"] = (weights.adversarial, self.adversary.generator_loss(self._crop(out, step)))
        total = torch.stack([weight * value for weight, value in terms.values()]).sum()
        return total, {name: float(value.detach()) for name, (_, value) in terms.items()}

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out PSNR in dB (plain, RGB, no border crop), and a strip of the first faces."""
        held = self.held_out
        if held is None:
            return {}
        restored = restore_batch(self.result, held.lq, self.device, precision=self.config.precision)
        columns = {"input": held.lq[:4], f"step {step}": restored[:4], "truth": held.truth[:4]}
        write_image(self.run / "strips" / f"step-{step:07d}.jpg", strip(columns))
        return {"psnr": float(np.mean([psnr(a, b) for a, b in zip(restored, held.truth, strict=True)]))}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "adversary": self.adversary.state() if self.adversary else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned. The learning rates of this run's config stay in force."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema and state["ema"]:
            self.ema.module.load_state_dict(state["ema"])
        if self.adversary and state["adversary"]:
            self.adversary.load(state["adversary"])


@torch.no_grad()
def restore_batch(
    model: EdgeUNet, images: Images, device: torch.device, *, precision: str = "fp32", batch: int = 8
) -> Images:
    """Restore uint8 (N, S, S, 3) faces with a torch restorer, one forward pass each (paper.md stage 3)."""
    was_training = model.training
    model.eval()
    out = []
    for start in range(0, len(images), batch):
        with autocast(device, precision):
            restored = model(to_tensor(images[start : start + batch], device)).float()
        out.append(to_uint8(restored))
    model.train(was_training)
    return np.concatenate(out)
