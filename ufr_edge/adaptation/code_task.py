"""Training CodeFormer's code prediction on pairs, as the paper does (paper.md section 7)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ufr_edge.adaptation.restorer_task import HeldOut, PairSource, PairTask, RestorerTraining
from ufr_edge.adaptation.training import autocast, place, to_tensor
from ufr_edge.adaptation.workers import Workers
from ufr_edge.errors import ConfigError
from ufr_edge.restorers.codeformer import code_loss, freeze_rest, trained_parameters
from ufr_edge.restorers.loading import AnyModel
from ufr_edge.restorers.spandrel_loader import CodeFormerRestorer


class CodeLoss(nn.Module):
    """`code_loss` as the forward pass of a module, so that several processes mean its gradients."""

    def __init__(self, network: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._teacher = (teacher,)  # no part of the module: neither trained nor sent to other processes

    def forward(
        self, image: Tensor, target: Tensor, w_features: float, w_codes: float
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and both terms (see `code_loss`)."""
        return code_loss(self.network, self._teacher[0], image, target, w_features=w_features, w_codes=w_codes)


class CodeTask(PairTask):
    """A CodeFormer whose encoder, transformer and code prediction are trained; codebook, generator and CFT stay.

    The labels come from a frozen copy of the network as it is given. Raises ConfigError for another network, and
    for losses on images, which this training has not.
    """

    kind = "codes"

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
        check_codes(model, config)
        network = model.get_submodule("network")
        freeze_rest(network)
        super().__init__(model, config, pairs=pairs, batch=batch, run=run, workers=workers, held_out=held_out)
        self.network = network
        self.trained = workers.wrap(CodeLoss(network, place(_teacher(network), self.device)))

    def _backward(self, step: int, part: slice) -> tuple[Tensor, dict[str, Tensor]]:
        lq, target = (to_tensor(images, self.device) for images in self.pairs(step, part))
        weights = self.config.code_losses
        with self.workers.accumulating(self.trained, last=part is self.parts[-1]):
            with autocast(self.device, self.config.precision):
                total, terms = self.trained(lq, target, weights.features, weights.codes)
            self.scaler.scale(total / len(self.parts)).backward()
        named = {name: torch.tensor(value, device=self.device) for name, value in terms.items()}
        return total.detach(), {**named, "total": total}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: of the networks the trained part alone, the rest is what it started from."""
        average = self.ema.module.get_submodule("network") if self.ema else None
        parts = {"model": _part(self.network), "ema": _part(average) if average else None}
        return {**parts, "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        _fill(self.network, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            _fill(self.ema.module.get_submodule("network"), state["ema"] or state["model"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


def check_codes(model: AnyModel, config: RestorerTraining) -> None:
    """Raise ConfigError unless the model is a CodeFormer and no loss on images is asked for."""
    if not isinstance(model, CodeFormerRestorer):
        msg = (
            "Codes can be trained of a CodeFormer only; this restorer is another network. "
            "Give --restorer codeformer, or leave --preset paper-codeformer (objective codes) out."
        )
        raise ConfigError(msg)
    losses = config.losses
    if any(weight > 0 for weight in (losses.l1, losses.lpips, losses.prior_features, losses.adversarial)):
        msg = (
            "Training codes has no pixel, perceptual or adversarial loss. Leave their weights "
            "(--w-l1, --perceptual, --w-adversarial) out, or set them to 0."
        )
        raise ConfigError(msg)


def _teacher(network: nn.Module) -> nn.Module:
    """A frozen copy of what gives the labels: encoder and codebook."""
    teacher = nn.Module()
    for name in ("encoder", "quantize"):
        teacher.add_module(name, copy.deepcopy(network.get_submodule(name)))
    return teacher.eval().requires_grad_(False)


def _part(network: nn.Module) -> dict[str, Tensor]:
    return {key: parameter.detach() for key, parameter in trained_parameters(network).items()}


@torch.no_grad()
def _fill(network: nn.Module, part: dict[str, Tensor]) -> None:
    """Copy a trained part into a network. Raises KeyError or RuntimeError when it is another's."""
    own = trained_parameters(network)
    if own.keys() != part.keys():
        raise KeyError(*(own.keys() ^ part.keys()))
    for key, parameter in own.items():
        parameter.copy_(part[key])

