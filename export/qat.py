"""Quantization-aware fine-tuning: a short training through rounded weights and activations, towards fp32's output.

Written with torch's own fake quantization. NNCF's torch backend compiles C++ on the first forward pass and needs a
package it does not install (torchao) to hand the network on; neither belongs on a machine that exports.
Only weights and biases move: every engine format then calibrates and quantizes them as it does any others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ufr_edge.calibration.frames import CalibrationSet
from ufr_edge.errors import ConfigError
from ufr_edge.restorers.edge import EdgeUNet, ResidualBlock
from ufr_edge.restorers.loading import AnyModel

_SAMPLE = 1 << 18  # values a percentile is taken of, per image and tensor
_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class QatConfig:
    """How to fine-tune. steps of `batch` random crops of `crop` pixels (less where faces are smaller); rate: of Adam
    at the start, falling to 0 by a cosine; seed: of crops and order."""

    steps: int = 200
    batch: int = 4
    crop: int = 128
    rate: float = 2e-5
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for what is not positive, or a crop that is no multiple of 32."""
        if min(self.steps, self.batch, self.crop) < 1 or not self.rate > 0 or self.crop % 32:
            msg = f"Fine-tuning takes positive steps, batch and rate, and a crop that is a multiple of 32; got {self}."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class QatResult:
    """The fine-tuned network, and whether it is one to use.

    model: a copy, fp32, eval mode; equal to the original where fine-tuning did not help (`used` False).
    mse_before, mse_after: mean squared distance (levels squared) of the fake-quantized network to fp32 on faces it
    was not trained on. frames, set_id: what it was trained on.
    """

    model: EdgeUNet
    used: bool
    mse_before: float
    mse_after: float
    frames: int
    set_id: str
    config: QatConfig

    @property
    def method(self) -> str:
        """In words, as the manifest records it; "" where it was not used."""
        if not self.used:
            return ""
        return f"quantization-aware fine-tuning, {self.config.steps} steps on {self.frames} faces"

    def describe(self) -> str:
        """One line for a person."""
        found = f"fine-tuning for int8: squared error {self.mse_before:.3f} to {self.mse_after:.3f} levels²"
        return found if self.used else f"{found}: no better, not used"

    def record(self) -> dict[str, Any]:
        """A value for json.dumps."""
        shown = ("used", "mse_before", "mse_after", "frames", "set_id")
        return {**{name: getattr(self, name) for name in shown}, **asdict(self.config)}


class _FakeWeight(nn.Module):
    """Signed 8 bit per output channel, of the weights as they are: what every quantizer does after us."""

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().abs().amax(dim=(1, 2, 3)).clamp_min(_EPS) / 127
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


class _FakeActivation:
    """Unsigned 8 bit over a range that is first observed, then fixed; as a hook before or after a module."""

    def __init__(self, percentile: float | None) -> None:
        self.percentile, self.observing = percentile, True
        self.low, self.high = 0.0, 0.0

    def __call__(self, x: Tensor) -> Tensor:
        if self.observing:
            self._observe(x)
            return x
        scale = max(self.high - self.low, _EPS) / 255
        zero = round(-self.low / scale)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)

    def _observe(self, x: Tensor) -> None:
        for image in x.detach().flatten(1):
            low, high = float(image.min()), float(image.max())
            if self.percentile is not None:
                values = image[:: -(-len(image) // _SAMPLE)]
                tail = 1 - self.percentile / 100
                low, high = torch.quantile(values, torch.tensor([tail, 1 - tail])).tolist()
            self.low, self.high = min(self.low, low), max(self.high, high)


class FakeQuantized:
    """An EdgeUNet (a copy) that computes as an int8 engine does; training it trains the weights behind the rounding.

    Quantized are the convolutions' weights and inputs, and both sides of each addition; the picture's own path stays
    in float, as in the engines.
    """

    def __init__(self, model: EdgeUNet, *, percentile: float | None = None) -> None:
        self.model = copy.deepcopy(model)
        self._points: list[_FakeActivation] = []
        self._handles: list[Any] = []
        for module in self.model.modules():
            self._attach(module, percentile)
        for stage in (self.model.stem, *self.model.encoder, *self.model.decoder):
            self._before(stage, percentile)
        for conv in self.model.up:
            self._after(conv, percentile)
        for conv in self._convolutions():
            parametrize.register_parametrization(conv, "weight", _FakeWeight())

    @torch.no_grad()
    def calibrate(self, frames: NDArray[np.uint8]) -> None:
        """Take the activation ranges from frames, uint8 (N, S, S, 3)."""
        for point in self._points:
            point.observing, point.low, point.high = True, 0.0, 0.0
        for index in range(len(frames)):
            self.model(_to_float(frames[index : index + 1]))
        for point in self._points:
            point.observing = False

    def release(self) -> EdgeUNet:
        """Return the network with the rounding taken off and the trained weights left in; ends this object's use."""
        for handle in self._handles:
            handle.remove()
        for conv in self._convolutions():
            parametrize.remove_parametrizations(conv, "weight", leave_parametrized=False)
        return self.model.eval()

    def _convolutions(self) -> list[nn.Conv2d]:
        return [module for module in self.model.modules() if isinstance(module, nn.Conv2d)]

    def _attach(self, module: nn.Module, percentile: float | None) -> None:
        if isinstance(module, ResidualBlock):
            self._before(module.conv2, percentile)
            self._after(module.conv2, percentile)
            self._after(module, percentile)

    def _before(self, module: nn.Module, percentile: float | None) -> None:
        point = _FakeActivation(percentile)
        self._points.append(point)
        self._handles.append(module.register_forward_pre_hook(lambda _, inputs: (point(inputs[0]),)))

    def _after(self, module: nn.Module, percentile: float | None) -> None:
        point = _FakeActivation(percentile)
        self._points.append(point)
        self._handles.append(module.register_forward_hook(lambda _, __, out: point(out)))


def finetune_quantized(
    model: AnyModel,
    faces: CalibrationSet,
    calibration: NDArray[np.uint8],
    *,
    percentile: float | None = None,
    config: QatConfig | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> QatResult:
    """Fine-tune a copy of `model` (fp32, eval) so that its int8 form comes closer to what it computes in fp32.

    faces: what to train on; its held-out ones decide whether it helped. calibration: uint8 (N, S, S, 3), activation
    ranges come from it, clipped to `percentile` (None: min-max). note: told the step and the loss.
    No truth is needed: the target is the network's own fp32 output (distillation, mean squared error).
    Raises ConfigError for a network that is not of the edge family.
    """
    chosen = config or QatConfig()
    if not isinstance(model, EdgeUNet):
        msg = "Quantization-aware fine-tuning is for the edge family only. Leave --qat out."
        raise ConfigError(msg)
    held = faces.held_out if len(faces.held_out) else faces.frames[:4]
    student = FakeQuantized(model, percentile=percentile)
    student.calibrate(calibration)
    before = _distance(student.model, model, held)
    _train(student.model, model, faces.frames, chosen, note)
    student.calibrate(calibration)  # as the engines will, of the weights as they are now
    after = _distance(student.model, model, held)
    tuned, used = student.release(), after < before
    return QatResult(
        model=tuned if used else copy.deepcopy(model),
        used=used,
        mse_before=round(before, 5),
        mse_after=round(after, 5),
        frames=len(faces.frames),
        set_id=faces.set_id,
        config=chosen,
    )


def _train(
    student: EdgeUNet,
    teacher: EdgeUNet,
    frames: NDArray[np.uint8],
    config: QatConfig,
    note: Callable[[str], None],
) -> None:
    optimizer = torch.optim.Adam(student.parameters(), lr=config.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for step, batch in enumerate(_crops(frames, config), start=1):
        with torch.no_grad():
            target = teacher(batch)
        loss = (student(batch) - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        note(f"fine-tuning step {step} of {config.steps}, {255**2 * loss.item():.3f} levels²")


def _crops(frames: NDArray[np.uint8], config: QatConfig) -> Iterator[Tensor]:
    """Batches of random crops, mirrored half of the time: float (B, 3, C, C) in [0, 1]."""
    rng = np.random.default_rng(config.seed)
    side = frames.shape[1]
    crop = min(config.crop, side)
    for _ in range(config.steps):
        picked = []
        for index in rng.integers(0, len(frames), config.batch):
            y, x = rng.integers(0, side - crop + 1, 2)
            piece = frames[index, y : y + crop, x : x + crop]
            picked.append(piece[:, ::-1] if rng.random() < 0.5 else piece)
        yield _to_float(np.stack(picked))


@torch.no_grad()
def _distance(network: EdgeUNet, reference: EdgeUNet, frames: NDArray[np.uint8]) -> float:
    """Mean squared distance of two networks' outputs, in levels squared."""
    errors = [
        float((network(image) - reference(image)).square().mean())
        for image in (_to_float(frames[i : i + 1]) for i in range(len(frames)))
    ]
    return 255.0**2 * float(np.mean(errors))


def _to_float(frames: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
