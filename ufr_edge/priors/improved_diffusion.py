"""The improved-diffusion UNet of the paper's prior (paper.md section 4), written afresh, under its file's own keys.

DifFace's FFHQ-512 network: 159,788,454 parameters in 630 tensors; residual blocks counted per level, attention at
real pixel sizes, heads split before q, k and v (the legacy layout), six output channels (noise and learned range).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ufr_edge.errors import ConfigError, ModelFileError
from ufr_edge.priors.model import DiffusionPrior
from ufr_edge.restorers.checkpoints import first_misfit, guess_architecture, read_state_dict, refuse

_GROUPS = 32
_MAX_PERIOD = 10000.0


@dataclass(frozen=True, kw_only=True)
class ImprovedDiffusionConfig:
    """The shape of the network; the defaults are the paper's.

    `multipliers` and `blocks`: width (times `channels`) and residual blocks of each level, from `side` pixels down
    by twos; the decoder has one block more a level. `attention`: the pixel sizes that have attention, in heads of
    `head_channels`. `outputs`: 3 for the noise, 6 with the learned range of the variance.
    """

    side: int = 512
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4, 8, 8, 16, 16)
    blocks: tuple[int, ...] = (1, 2, 2, 2, 2, 3, 4)
    attention: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    outputs: int = 6

    def __post_init__(self) -> None:
        """Check that the levels fit each other."""
        if len(self.blocks) != len(self.multipliers) or self.side % 2 ** (len(self.blocks) - 1):
            msg = f"{len(self.multipliers)} widths, {len(self.blocks)} block counts and side {self.side} do not fit."
            raise ConfigError(msg)


PAPER_NETWORK = ImprovedDiffusionConfig()


class GroupNorm32(nn.GroupNorm):
    """Group normalisation of 32 groups, computed in float32 whatever comes in."""

    def __init__(self, channels: int) -> None:
        super().__init__(_GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, same shape and dtype."""
        return super().forward(x.float()).to(x.dtype)


class ResBlock(nn.Module):
    """A residual block whose second norm is scaled and shifted by the time embedding."""

    def __init__(self, inside: int, outside: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm32(inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outside))
        # The empty place is the dropout's (0 here): the release's keys count it.
        self.out_layers = nn.Sequential(
            GroupNorm32(outside), nn.SiLU(), nn.Identity(), nn.Conv2d(outside, outside, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Features (B, C, H, W) and the embedding (B, E) to features (B, C', H, W)."""
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, 1)
        norm, *rest = self.out_layers
        h = norm(self.in_layers(x)) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        out: Tensor = self.skip_connection(x) + h
        return out


class Attention(nn.Module):
    """Self-attention over all positions; channels are split into heads first, each into q, k, v (legacy layout)."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = max(channels // head_channels, 1)
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to the same shape."""
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat)).unflatten(1, (self.heads, 3, -1)).transpose(3, 4)
        mixed = F.scaled_dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        out: Tensor = flat + self.proj_out(mixed.transpose(2, 3).flatten(1, 2))
        return out.reshape(x.shape)


class Downsample(nn.Module):
    """Half the size by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to (B, C, H/2, W/2)."""
        return cast(Tensor, self.op(x))


class Upsample(nn.Module):
    """Twice the size, nearest, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to (B, C, 2H, 2W)."""
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class Stage(nn.Sequential):
    """Layers of which the residual blocks are told the time."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """Run the layers in order."""
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class ImprovedDiffusionUNet(nn.Module):
    """`forward(x_t, t)`: float (B, 3, H, W) and int64 (B,) base timesteps to float (B, outputs, H, W)."""

    def __init__(self, shape: ImprovedDiffusionConfig = PAPER_NETWORK) -> None:
        super().__init__()
        self.shape = shape
        self.config = {"in_channels": 3, "out_channels": shape.outputs, "sample_size": shape.side}
        embedding = 4 * shape.channels
        self.time_embed = nn.Sequential(
            nn.Linear(shape.channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.input_blocks, widths = _encoder(shape, embedding)
        deep = widths[-1]
        self.middle_block = Stage(
            ResBlock(deep, deep, embedding), Attention(deep, shape.head_channels), ResBlock(deep, deep, embedding)
        )
        self.output_blocks = _decoder(shape, embedding, widths)
        last = shape.channels * shape.multipliers[0]
        self.out = nn.Sequential(GroupNorm32(last), nn.SiLU(), nn.Conv2d(last, shape.outputs, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise (and the variance channels)."""
        embedding = self.time_embed(timestep_embedding(t, self.shape.channels))
        skips: list[Tensor] = []
        for block in self.input_blocks:
            x = block(x, embedding)
            skips.append(x)
        x = self.middle_block(x, embedding)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], 1), embedding)
        out: Tensor = self.out(x)
        return out


def _encoder(shape: ImprovedDiffusionConfig, embedding: int) -> tuple[nn.ModuleList, list[int]]:
    """The input blocks, and the width after each."""
    width, side = shape.channels * shape.multipliers[0], shape.side
    blocks, widths = nn.ModuleList([Stage(nn.Conv2d(3, width, 3, padding=1))]), [width]
    for level, (multiplier, count) in enumerate(zip(shape.multipliers, shape.blocks, strict=True)):
        for _ in range(count):
            blocks.append(_stage(shape, width, multiplier * shape.channels, embedding, side))
            width = multiplier * shape.channels
            widths.append(width)
        if level + 1 < len(shape.multipliers):
            blocks.append(Stage(Downsample(width)))
            widths.append(width)
            side //= 2
    return blocks, widths


def _decoder(shape: ImprovedDiffusionConfig, embedding: int, widths: list[int]) -> nn.ModuleList:
    blocks, skips, width = nn.ModuleList(), list(widths), widths[-1]
    for level in range(len(shape.multipliers) - 1, -1, -1):
        outside, side = shape.multipliers[level] * shape.channels, shape.side // 2**level
        for i in range(shape.blocks[level] + 1):
            stage = _stage(shape, width + skips.pop(), outside, embedding, side)
            width = outside
            if level > 0 and i == shape.blocks[level]:
                stage.append(Upsample(width))
            blocks.append(stage)
    return blocks


def _stage(shape: ImprovedDiffusionConfig, inside: int, outside: int, embedding: int, side: int) -> Stage:
    stage = Stage(ResBlock(inside, outside, embedding))
    if side in shape.attention:
        stage.append(Attention(outside, shape.head_channels))
    return stage


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of the timesteps, cosines first: int (B,) to float32 (B, width)."""
    half = width // 2
    rates = torch.exp(-math.log(_MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


class ImprovedDiffusionPrior(DiffusionPrior):
    """The prior around the network: predicts epsilon in pixel space, at the network's own side."""

    def __init__(self, unet: ImprovedDiffusionUNet) -> None:
        super().__init__(unet, prediction_type="epsilon")
        self.multiple_of = 2 ** (len(unet.shape.multipliers) - 1)

    def _check(self, x_t: Tensor) -> None:
        self._check_multiple(x_t, self.multiple_of)

    def _network(self, seen: Tensor, t: Tensor) -> Tensor:
        return cast(Tensor, self.unet(seen, t))

    def save_pretrained(self, folder: Path, *, half: bool = False) -> None:
        """Refused: this network is read, not trained. Raises ConfigError."""
        msg = f"{folder}: an improved-diffusion prior is not written in diffusers' layout; keep its original file."
        raise ConfigError(msg)


def load_improved_diffusion(path: Path, *, side: int = 512) -> ImprovedDiffusionPrior:
    """Load a prior from its original file (see `checkpoints.read_state_dict`), strictly, in eval mode.

    The shape of the network is read off the tensors; `side`, the pixels it was trained at, cannot be. Raises
    ModelFileError for another network.
    """
    state = read_state_dict(path)
    guess = guess_architecture(state.keys())
    if guess is None or guess.arch != "improved-diffusion":
        raise refuse(path, state, "an unconditional improved-diffusion UNet or a diffusers folder")
    with torch.device("meta"):
        unet = ImprovedDiffusionUNet(infer_shape(state, path, side=side))
    try:
        unet.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as exc:
        msg = (
            f"{path} is another kind of improved-diffusion UNet (class-conditional, or with blocks that resample): "
            f"{first_misfit(exc)}"
        )
        raise ModelFileError(msg) from exc
    return ImprovedDiffusionPrior(unet).eval()


def infer_shape(state: Mapping[str, Tensor], path: Path, *, side: int = 512) -> ImprovedDiffusionConfig:
    """Read the shape of the network off its tensors. Raises ModelFileError when the blocks make no sense."""
    try:
        channels = state["time_embed.0.weight"].shape[1]
        multipliers, blocks, attention, at = [0], [0], set[int](), side
        k = 1
        while any(key.startswith(f"input_blocks.{k}.") for key in state):
            if f"input_blocks.{k}.0.op.weight" in state:
                multipliers, blocks, at = [*multipliers, 0], [*blocks, 0], at // 2
            else:
                multipliers[-1] = state[f"input_blocks.{k}.0.out_layers.3.weight"].shape[0] // channels
                blocks[-1] += 1
                attention |= {at} if f"input_blocks.{k}.1.qkv.weight" in state else set()
            k += 1
        return ImprovedDiffusionConfig(
            side=side,
            channels=channels,
            multipliers=tuple(multipliers),
            blocks=tuple(blocks),
            attention=tuple(sorted(attention, reverse=True)),
            outputs=state["out.2.weight"].shape[0],
        )
    except (KeyError, IndexError, ConfigError) as exc:
        msg = f"{path} is another kind of improved-diffusion UNet than the paper's ({exc})."
        raise ModelFileError(msg) from exc
