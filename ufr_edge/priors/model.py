"""A diffusers `UNet2DModel` over pixel-unshuffled images, as a pixel-space noise predictor.

Unshuffling by f (3 x S x S to 3 f^2 x S/f x S/f) is a permutation of pixels: i.i.d. noise stays i.i.d.
noise, so everything the paper says in pixel space holds unchanged, at a fraction of the cost.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from ufr_edge.errors import ModelFileError, ShapeError
from ufr_edge.priors import schedule
from ufr_edge.priors.wiener import deviation, wiener_estimate, wiener_gain

PREDICTION_TYPES = ("epsilon", "v_prediction", "wiener_residual")


class DiffusionPrior(nn.Module):
    """Unconditional face prior: predicts the noise in a noised image.

    `forward(x_t, t)`: x_t float (B, 3, S, S), t int64 (B,) base timesteps in [0, 1000);
    returns float (B, 3, S, S), or (B, 6, S, S) when the network also predicts the variance
    (channels 3-5, the interpolation s of paper.md eq. 2).

    `prediction_type` is the scheduler's: "epsilon"; "v_prediction" (Salimans and Ho 2022:
    v = sqrt(abar) eps - sqrt(1 - abar) x_0); or "wiener_residual", ours: the network sees x_t beside the linear
    estimate of x_0 and predicts what is missing from that estimate's noise, at unit variance (see `wiener`).
    All are turned into the noise here.
    """

    def __init__(self, unet: UNet2DModel, *, prediction_type: str = "epsilon") -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            msg = f"The prior's prediction type is {prediction_type!r}; supported are {', '.join(PREDICTION_TYPES)}."
            raise ModelFileError(msg)
        self.unet = unet
        self.prediction_type = prediction_type
        images_seen = 2 if prediction_type == "wiener_residual" else 1
        self.channels = int(unet.config["in_channels"]) // images_seen
        self.factor = unshuffle_factor(self.channels)
        self.side = unet_side(unet.config["sample_size"]) * self.factor
        self.learns_variance = int(unet.config["out_channels"]) == 2 * self.channels

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the noise estimate (and variance channels, where learned) for x_t at timesteps t."""
        self._check(x_t)
        if self.prediction_type == "epsilon":
            return self._network(x_t, t)
        abar = base_abar(x_t.device)[t][:, None, None, None]
        if self.prediction_type == "v_prediction":
            raw = self._network(x_t, t)
            eps = (1 - abar).sqrt() * x_t + abar.sqrt() * raw[:, :3]
            return torch.cat([eps, raw[:, 3:]], 1)
        x_0, spread = wiener_estimate(x_t, abar.flatten())
        raw = self._network(torch.cat([x_t, x_0.to(x_t.dtype)], 1), t)
        eps = (x_t - abar.sqrt() * x_0) / (1 - abar).sqrt() + spread * raw[:, :3]
        return torch.cat([eps, raw[:, 3:]], 1)

    def training_error(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of what the network predicts, for clean x_0 (B, 3, H, W) in [-1, 1], noise and timesteps."""
        abar = base_abar(x_0.device)[t][:, None, None, None]
        x_t = abar.sqrt() * x_0 + (1 - abar).sqrt() * eps
        error: Tensor = (self(x_t, t)[:, :3].float() - eps).square().mean((1, 2, 3))
        if self.prediction_type == "v_prediction":
            error = error / abar.flatten()  # eps = sqrt(1 - abar) x_t + sqrt(abar) v
        if self.prediction_type == "wiener_residual":
            error = error / deviation(wiener_gain(abar.flatten(), *x_0.shape[2:])).flatten() ** 2
        return error.mean()

    def _check(self, x_t: Tensor) -> None:
        self._check_multiple(x_t, 8 * self.factor)

    def _check_multiple(self, x_t: Tensor, multiple: int) -> None:
        if x_t.ndim != 4 or x_t.shape[1] != 3 or x_t.shape[2] % multiple or x_t.shape[3] % multiple:
            msg = f"The prior takes (B, 3, H, W) with H and W multiples of {multiple}; got {tuple(x_t.shape)}."
            raise ShapeError(msg)

    def _network(self, seen: Tensor, t: Tensor) -> Tensor:
        out = self.unet(F.pixel_unshuffle(seen, self.factor), t).sample
        # Both halves (noise, variance) shuffle back on their own.
        return torch.cat([F.pixel_shuffle(part, self.factor) for part in out.split(self.channels, 1)], 1)

    def save_pretrained(self, folder: Path, *, half: bool = False) -> None:
        """Write `unet/` and `scheduler/` in diffusers' own layout; fp16 weights when `half`."""
        scheduler = DDPMScheduler(
            num_train_timesteps=schedule.BASE_STEPS,
            beta_start=schedule.BETA_START,
            beta_end=schedule.BETA_END,
            beta_schedule="linear",
            prediction_type=self.prediction_type,
            variance_type="learned_range" if self.learns_variance else "fixed_small",
        )
        config = {key: value for key, value in self.unet.config.items() if key != "_name_or_path"}  # a folder here
        unet = UNet2DModel.from_config(config)
        unet.load_state_dict(self.unet.state_dict())
        (unet.half() if half else unet).save_pretrained(folder / "unet")
        scheduler.save_pretrained(folder / "scheduler")


def clean_input(image: Tensor, abar: float, *, factor: int, prediction_type: str) -> Tensor:
    """What a prior's network sees of a clean image (B, 3, H, W) in [-1, 1] at a low noise level, unshuffled."""
    seen = [abar**0.5 * image] if prediction_type != "wiener_residual" else [abar**0.5 * image, image]
    return F.pixel_unshuffle(torch.cat(seen, 1), factor)


def base_abar(device: torch.device) -> Tensor:
    """abar of the base schedule (see `schedule.base_abar`) as float32 (1000,)."""
    return torch.from_numpy(schedule.base_abar()).float().to(device)


def unshuffle_factor(in_channels: int) -> int:
    """Return f such that in_channels = 3 f^2. Raises ModelFileError when there is none."""
    factor = round(math.sqrt(in_channels / 3))
    if factor < 1 or 3 * factor * factor != in_channels:
        msg = f"A prior over pixel-unshuffled RGB needs 3 f^2 input channels; this one has {in_channels}."
        raise ModelFileError(msg)
    return factor


def unet_side(sample_size: object) -> int:
    """The side a network was made for, in its own pixels, of a config's `sample_size`: one number or a pair of equal ones.

    Raises ModelFileError for anything else.
    """
    side = sample_size
    if isinstance(sample_size, (list, tuple)) and len(sample_size) == 2 and sample_size[0] == sample_size[1]:
        side = sample_size[0]
    if not isinstance(side, int) or side < 1:
        msg = (
            f"The prior's sample_size is {sample_size!r}; a prior over square faces has one side. "
            "Write the side it was trained at, in pixels of its input, into the config.json of its UNet."
        )
        raise ModelFileError(msg)
    return side


def build_prior(
    *,
    side: int = 256,
    factor: int = 4,
    channels: tuple[int, ...] = (64, 96, 160, 224),
    layers: int = 1,
    learn_variance: bool = False,
    prediction_type: str = "wiener_residual",
) -> DiffusionPrior:
    """Build an untrained prior: attention only at the lowest level, so that any multiple size runs."""
    n = len(channels)
    unet = UNet2DModel(
        sample_size=side // factor,
        in_channels=3 * factor**2 * (2 if prediction_type == "wiener_residual" else 1),
        out_channels=3 * factor**2 * (2 if learn_variance else 1),
        layers_per_block=layers,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * (n - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (n - 1),
        attention_head_dim=32,
        norm_num_groups=32,
    )
    if prediction_type == "wiener_residual":
        nn.init.zeros_(unet.conv_out.weight)  # untrained, it is the linear denoiser itself
        nn.init.zeros_(unet.conv_out.bias)
    return DiffusionPrior(unet, prediction_type=prediction_type)
