"""The U-Net discriminator with spectral normalisation (Real-ESRGAN's), and its training (paper.md section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ufr_edge.adaptation.training import descend, loss_scaler, place
from ufr_edge.adaptation.workers import Workers
from ufr_edge.errors import ConfigError
from ufr_edge.priors.features import PriorFeatures, unit_features


class UNetDiscriminatorSN(nn.Module):
    """Per-pixel real/fake logits: RGB float (B, 3, H, W) to (B, 1, H, W), H and W multiples of 8.

    With 64 features it has the paper's 4,376,897 parameters; spectral norm on the 8 inner convolutions.
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        f = features
        self.first = nn.Conv2d(3, f, 3, padding=1)
        self.down = nn.ModuleList(_sn(f * 2**i, f * 2 ** (i + 1), 4, stride=2) for i in range(3))
        self.up = nn.ModuleList(_sn(f * 2 ** (i + 1), f * 2**i, 3) for i in (2, 1, 0))
        self.last = nn.ModuleList([_sn(f, f, 3), _sn(f, f, 3)])
        self.logits = nn.Conv2d(f, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits, (B, 1, H, W)."""
        skips = [F.leaky_relu(self.first(image), 0.2)]
        for conv in self.down:
            skips.append(F.leaky_relu(conv(skips[-1]), 0.2))
        x = skips.pop()
        for conv in self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = F.leaky_relu(conv(x), 0.2) + skips.pop()
        for conv in self.last:
            x = F.leaky_relu(conv(x), 0.2)
        out: Tensor = self.logits(x)
        return out


def _sn(inside: int, outside: int, kernel: int, *, stride: int = 1) -> nn.Module:
    return spectral_norm(nn.Conv2d(inside, outside, kernel, stride=stride, padding=1, bias=False))


class PriorDiscriminator(nn.Module):
    """Real/fake logits on the frozen prior's features: RGB float (B, 3, H, W) to (B, levels, h, w).

    A small head on each level, all at the finest level's grid (after Sauer et al. 2021, Projected GANs). It tells
    fakes apart within some hundred steps, where `UNetDiscriminatorSN` from scratch still guesses: not the paper's.
    Only the heads are trained, and kept in checkpoints.
    """

    def __init__(self, features: PriorFeatures, width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(channels, width) for channels in features.channels)
        self._look = features.__call__  # not a submodule: frozen, and never in the state

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        maps = self._look(images)
        size = maps[0].shape[-2:]
        logits = [head(unit_features(level)) for head, level in zip(self.heads, maps, strict=True)]
        return torch.cat([F.interpolate(x, size=size) for x in logits], 1)


def _head(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, width, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 1, 1),
    )


def build_discriminator(kind: str, *, features: int, prior: PriorFeatures | None) -> nn.Module:
    """Return an untrained discriminator: "unet" with `features` channels, or "prior-features" on those of `prior`.

    Raises ConfigError for "prior-features" without a prior.
    """
    if kind == "unet":
        return UNetDiscriminatorSN(features)
    if prior is None:
        msg = "The discriminator on the prior's features needs a prior: give --prior, or choose discriminator = \"unet\"."
        raise ConfigError(msg)
    return PriorDiscriminator(prior)


class Adversary:
    """A discriminator trained from scratch beside the restorer, one step for each of the restorer's."""

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        workers: Workers,
        betas: tuple[float, float] = (0.9, 0.999),
        precision: str = "fp32",
    ) -> None:
        self.workers = workers
        self.model = place(model, workers.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, betas=betas, weight_decay=0.0)
        self.trained = workers.wrap(self.model)
        self.scaler = loss_scaler(workers.device, precision)

    def generator_loss(self, fake: Tensor, *, first: bool = True) -> Tensor:
        """BCE(D(fake), real). Its gradient reaches the image only, never D (paper.md section 13, statement 14).

        `first`: of the parts of a step. Spectral norm iterates once a step, so that the number of parts does
        not matter.
        """
        self.model.requires_grad_(False).train(first)
        logits = self.model(fake).float()
        self.model.requires_grad_(True)
        return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    def update(self, parts: Sequence[tuple[Tensor, Tensor]], *, step: int, run: Path) -> float:
        """One optimiser step of D on the parts (fakes, real faces) of a step; returns its mean loss.

        Raises TrainingError as `descend`, before a gradient that is not finite reaches D.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for i, (fake, real) in enumerate(parts):
            self.model.train(i == 0)
            with self.workers.accumulating(self.trained, last=i == len(parts) - 1):
                logits = self.trained(torch.cat([real, fake.detach()])).float()
                loss = _bce(logits[: len(real)], 1.0) + _bce(logits[len(real) :], 0.0)
                self.scaler.scale(loss / len(parts)).backward()  # type: ignore[no-untyped-call]
            losses.append({"loss": loss})
        descend(self.optimizer, 0, step, run, scaler=self.scaler)
        return self.workers.mean(losses)["loss"]

    def state(self) -> dict[str, Any]:
        """Return model and optimiser state."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


def _bce(logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
