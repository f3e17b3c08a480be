"""Training a restorer on pairs: the same task pretrains, adapts to pseudo targets and trains the oracle.

`PairTask` is what every training on pairs shares; `code_task` is the other kind, CodeFormer's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ufr_edge.adaptation.discriminator import Adversary, build_discriminator
from ufr_edge.adaptation.optimizers import OptimizerName, build_optimizer
from ufr_edge.adaptation.pictures import strip
from ufr_edge.adaptation.pixel_losses import grid_loss, pixel_loss
from ufr_edge.adaptation.training import (
    Ema,
    autocast,
    check_finite,
    cosine,
    descend,
    halved,
    loss_scaler,
    place,
    seeded,
    strip_path,
    to_tensor,
    to_uint8,
)
from ufr_edge.adaptation.workers import Workers
from ufr_edge.errors import ConfigError
from ufr_edge.metrics.lpips_net import Lpips
from ufr_edge.metrics.quality import psnr
from ufr_edge.priors.features import PriorFeatures, prior_feature_distance
from ufr_edge.restorers.loading import AnyModel
from ufr_edge.runtime.images import write_image

Images = NDArray[np.uint8]
PairSource = Callable[[int, slice], tuple[Images, Images]]
"""(step, rows) -> those rows of the step's batch: (low-quality, target), each uint8 (B, S, S, 3) RGB."""
ImageSource = Callable[[int, slice], Images]


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Batch-independent weights (paper.md section 6: 1.0 L1 + 0.4 perceptual + 0.1 adversarial).

    `pixel` chooses the pixel term that `l1` weighs: "l1", or "log_mse", the log of each image's mean squared
    error, which is PSNR but for a factor: a mild degradation weighs as much as a strong one.
    The perceptual term is LPIPS v0.1 (`lpips`, on `lpips_net`, the paper's), or the distance on the frozen prior's
    own features (`prior_features`); the one never stands in for the other. `grid` weighs `grid_loss`, against the
    pattern that features on a grid of pixels do not see and a network on the same grid likes to leave.
    """

    pixel: Literal["l1", "log_mse"] = "l1"
    l1: float = 1.0
    prior_features: float = 0.4
    lpips: float = 0.0
    lpips_net: Literal["vgg", "alex"] = "vgg"
    adversarial: float = 0.1
    grid: float = 0.0


NO_LOSSES = LossWeights(l1=0.0, prior_features=0.0, lpips=0.0, adversarial=0.0)


@dataclass(frozen=True, kw_only=True)
class CodeWeights:
    """CodeFormer's terms (paper.md section 7): squared distance to the codebook's entries, cross-entropy of the codes."""

    features: float = 1.0
    codes: float = 0.5


@dataclass(frozen=True, kw_only=True)
class RestorerTraining:
    """Optimiser settings: AdamW, Adam or Muon, cosine from `lr` to `lr_end`, EMA of the weights when `ema` > 0.

    `halve_at`: in place of the cosine, `lr` is halved at these shares of the steps. `ema_warmup`: the average's decay
    grows to `ema` over the first steps, or is constant.
    `objective`: "images" trains the whole network on `losses`; "codes" the code prediction of a CodeFormer on
    `code_losses` alone.

    `accumulate`: a step's batch is computed in so many parts, one after another, to fit into memory; the gradient
    is that of the whole batch but for rounding. What a network draws itself is drawn for each part: a SwinIR's
    stochastic depth leaves other layers out than on the whole batch, so that only the expectation is the same.
    `discriminator`: "unet" is the paper's, trained from scratch, and needs many thousands of steps; "prior-features"
    is small heads on the frozen prior's features, for short trainings.
    `adversarial_crop`: the discriminator sees a random crop of this side (multiple of 8) instead of the whole
    face, which makes it as many times cheaper; 0 is the whole face, the paper's. `features_crop`: the same for
    the perceptual term. The restorer does not hear the discriminator in the first `adversarial_delay` steps,
    while it learns; its weight then grows over `adversarial_ramp` steps. `beta2` is that of both.
    """

    steps: int
    lr: float = 2e-5
    lr_end: float = 5e-6
    warmup: int = 0
    halve_at: tuple[float, ...] = ()
    ema: float = 0.0
    ema_warmup: bool = True
    optimizer: OptimizerName = "adamw"
    beta2: float = 0.999
    accumulate: int = 1
    precision: str = "auto"
    discriminator: Literal["unet", "prior-features"] = "unet"
    discriminator_lr: float = 2e-5
    discriminator_beta1: float = 0.9
    discriminator_features: int = 64
    adversarial_crop: int = 0
    adversarial_delay: int = 0
    adversarial_ramp: int = 0
    features_crop: int = 0
    clip_norm: float = 0.0
    losses: LossWeights = field(default_factory=LossWeights)
    objective: Literal["images", "codes"] = "images"
    code_losses: CodeWeights = field(default_factory=CodeWeights)

    def rate(self, step: int) -> float:
        """The learning rate of optimiser step `step`, from 0."""
        if self.halve_at:
            return halved(step, self.steps, self.lr, self.halve_at)
        return cosine(step, self.steps, self.lr, self.lr_end, warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Faces to look at while training: `lq` and, where it is known, the `truth`; uint8 (N, S, S, 3).

    `groups`: what each face was degraded by, where there are several kinds; they get figures of their own.
    """

    lq: Images
    truth: Images
    groups: tuple[str, ...] = ()


class PairTask:
    """A restorer in training on pairs: its optimiser, its average, parts of a batch and held-out figures.

    A kind of training says what one part of a batch adds to the gradient (`_backward`), and may do more in a step.
    """

    kind: str

    def __init__(
        self,
        model: AnyModel,
        config: RestorerTraining,
        *,
        pairs: PairSource,
        batch: int,
        run: Path,
        workers: Workers,
        held_out: HeldOut | None = None,
    ) -> None:
        self.workers, self.device = workers, workers.device
        self.parts = workers.parts(batch, config.accumulate)
        self.model = place(model, self.device).train()
        self.config, self.pairs, self.run, self.held_out = config, pairs, run, held_out
        average = copy.deepcopy(self.model) if config.ema > 0 else None
        self.ema = Ema(self.model, average, config.ema, warmup=config.ema_warmup) if average else None
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(config.optimizer, trained, lr=config.lr, beta2=config.beta2)
        self.scaler = loss_scaler(self.device, config.precision)

    @property
    def result(self) -> AnyModel:
        """The network to keep: the average when there is one."""
        return self.ema.module if self.ema else self.model  # type: ignore[return-value]

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step on the pairs of this step; returns each loss term, unweighted."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        with seeded(step, self.workers.index, self.device):
            outs, terms = zip(*(self._backward(step, part) for part in self.parts), strict=True)
        figures = self.workers.mean(terms)
        check_finite(figures.pop("total"), step, self.run)
        descend(self.optimizer, self.config.clip_norm, step, self.run, scaler=self.scaler)
        figures |= self._after(step, outs)
        if self.ema:
            self.ema.update(step)
        return figures

    def _backward(self, step: int, part: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradient of one part of the batch; returns the outputs and each loss term, and "total"."""
        raise NotImplementedError

    def _after(self, step: int, outs: Sequence[Tensor]) -> dict[str, float]:
        """What else a step trains, on the outputs of its parts; returns its losses."""
        return {}

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out PSNR in dB (plain, RGB, no border crop), the gain over the input, and a strip of the first faces.

        Of several groups each has its own figures too: `psnr_GROUP`, `gain_GROUP`.
        """
        held = self.held_out
        if held is None:
            return {}
        restored = restore_batch(self.result, held.lq, self.device, precision=self.config.precision)
        shown = _shown(held.groups)
        columns = {"input": held.lq[shown], f"step {step}": restored[shown], "truth": held.truth[shown]}
        write_image(strip_path(self.run, step), strip(columns))
        after, before = (
            np.array([psnr(a, b) for a, b in zip(images, held.truth, strict=True)]) for images in (restored, held.lq)
        )
        figures = {"psnr": float(after.mean()), "gain": float((after - before).mean())}
        for group in dict.fromkeys(held.groups):
            own = np.array(held.groups) == group
            figures[f"psnr_{group}"] = float(after[own].mean())
            figures[f"gain_{group}"] = float((after - before)[own].mean())
        return figures

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned. The learning rates of this run's config stay in force."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"] or state["model"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


class RestorerTask(PairTask):
    """One restorer, all of it trained, on losses of images (see `loop.Task`)."""

    kind = "restorer"

    def __init__(
        self,
        model: AnyModel,
        config: RestorerTraining,
        *,
        pairs: PairSource,
        batch: int,
        run: Path,
        workers: Workers,
        real: ImageSource | None = None,
        features: PriorFeatures | None = None,
        lpips: Lpips | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        _check_terms(config.losses, real=real, features=features, lpips=lpips)
        super().__init__(model, config, pairs=pairs, batch=batch, run=run, workers=workers, held_out=held_out)
        self.trained = workers.wrap(self.model)
        self.real, self.features, self.lpips = real, features, lpips
        self.adversary = (
            Adversary(
                build_discriminator(
                    config.discriminator, features=config.discriminator_features, prior=features
                ),
                lr=config.discriminator_lr,
                betas=(config.discriminator_beta1, config.beta2),
                workers=workers,
                precision=config.precision,
            )
            if config.losses.adversarial > 0
            else None
        )

    def _after(self, step: int, outs: Sequence[Tensor]) -> dict[str, float]:
        return {"discriminator": self._train_adversary(step, outs)} if self.adversary else {}

    def _backward(self, step: int, part: slice) -> tuple[Tensor, dict[str, Tensor]]:
        lq, target = (to_tensor(images, self.device) for images in self.pairs(step, part))
        with self.workers.accumulating(self.trained, last=part is self.parts[-1]):
            with autocast(self.device, self.config.precision):
                out = self.trained(lq).float()
                total, terms = self._losses(out, target, step, first=part is self.parts[0])
            self.scaler.scale(total / len(self.parts)).backward()  # type: ignore[no-untyped-call]
        return out.detach(), {**terms, "total": total}

    def _train_adversary(self, step: int, outs: Sequence[Tensor]) -> float:
        assert self.adversary and self.real  # `step` asked
        seen = []
        for part, out in zip(self.parts, outs, strict=True):
            fake = self._crop(out, step, self.config.adversarial_crop)
            real = to_tensor(self.real(step, part), self.device)
            seen.append((fake, self._crop(real, step, fake.shape[-1])))
        with autocast(self.device, self.config.precision):
            loss = self.adversary.update(seen, step=step, run=self.run)
        check_finite(loss, step, self.run, what="discriminator's loss")
        return loss

    @staticmethod
    def _crop(images: Tensor, step: int, side: int, *, stream: int = 3) -> Tensor:
        """The part of the faces that a term sees in this step: all for a `side` of 0, or where they are no larger."""
        room = images.shape[-1] - side
        if room <= 0 or side == 0:
            return images
        top, left = np.random.default_rng((step, stream)).integers(0, room + 1, 2)
        return images[:, :, top : top + side, left : left + side]

    def _losses(
        self, out: Tensor, target: Tensor, step: int, *, first: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum and each term; `first`: of the parts of a step."""
        weights = self.config.losses
        terms: dict[str, tuple[float, Tensor]] = {weights.pixel: (weights.l1, pixel_loss(out, target, weights.pixel))}
        if weights.grid > 0:
            terms["grid"] = (weights.grid, grid_loss(out, target))
        if self.lpips is not None and weights.lpips > 0:
            pair = (self._crop(images, step, self.config.features_crop, stream=7) for images in (out, target))
            terms["lpips"] = (weights.lpips, self.lpips(*pair).mean())
        if self.features is not None and weights.prior_features > 0:
            distance = self._feature_distance(self.features, out, target, step)
            terms["prior_features"] = (weights.prior_features, distance)
        adversarial = weights.adversarial * self._adversarial_share(step)
        if self.adversary and adversarial > 0:
            seen = self._crop(out, step, self.config.adversarial_crop)
            terms["adversarial"] = (adversarial, self.adversary.generator_loss(seen, first=first))
        total = torch.stack([weight * value for weight, value in terms.values()]).sum()
        return total, {name: value.detach() for name, (_, value) in terms.items()}

    def _feature_distance(self, features: PriorFeatures, out: Tensor, target: Tensor, step: int) -> Tensor:
        # The features sit on a grid of `factor` pixels: a new offset each step, or its pattern is learned.
        offset = tuple(np.random.default_rng((step, 4)).integers(0, features.factor, 2).tolist())
        pair = (
            torch.roll(self._crop(images, step, self.config.features_crop, stream=7), offset, (2, 3))
            for images in (out, target)
        )
        return prior_feature_distance(features, *pair).mean()

    def _adversarial_share(self, step: int) -> float:
        """How much of the adversarial weight is in force at a step, from 0 to 1."""
        late, ramp = step - self.config.adversarial_delay, self.config.adversarial_ramp
        if late < 0 or ramp == 0:
            return float(late >= 0)
        return min(1.0, late / ramp)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {**super().state(), "adversary": self.adversary.state() if self.adversary else None}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned. The learning rates of this run's config stay in force."""
        super().load(state)
        if self.adversary and state["adversary"]:
            self.adversary.load(state["adversary"])


def _check_terms(
    weights: LossWeights, *, real: ImageSource | None, features: PriorFeatures | None, lpips: Lpips | None
) -> None:
    if weights.lpips > 0 and lpips is None:
        msg = "The LPIPS term needs LPIPS: give it (see `load_lpips`), or set its weight to 0."
        raise ConfigError(msg)
    if weights.prior_features > 0 and features is None:
        msg = "The perceptual term needs a prior: give --prior, or set its weight to 0."
        raise ConfigError(msg)
    if weights.adversarial > 0 and real is None:
        msg = "The adversarial term needs real faces: give --real FOLDER, or set its weight to 0."
        raise ConfigError(msg)


def _shown(groups: tuple[str, ...]) -> list[int] | slice:
    """Rows of the strip: the first four faces, or the first two of each group."""
    if not groups:
        return slice(4)
    return [row for group in dict.fromkeys(groups) for row in np.flatnonzero(np.array(groups) == group)[:2].tolist()]


@torch.no_grad()
def restore_batch(
    model: AnyModel, images: Images, device: torch.device, *, precision: str = "fp32", batch: int = 8
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
