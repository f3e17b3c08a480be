"""A perceptual distance on the frozen prior's own features, under its own name (it is not LPIPS)."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from ufr_edge.errors import ConfigError, ShapeError
from ufr_edge.priors.files import load_prior
from ufr_edge.priors.improved_diffusion import ImprovedDiffusionPrior
from ufr_edge.priors.model import DiffusionPrior, clean_input
from ufr_edge.priors.schedule import BASE_STEPS, base_abar

DEFAULT_TIMESTEP = 20


class PriorFeatures(nn.Module):
    """Frozen features of a prior's down path at one small timestep.

    Holds its own copy of the down blocks, so the prior itself stays as it was and may be let go.
    `forward(images)`: RGB float (B, 3, H, W) in [0, 1], H and W multiples of `multiple_of`; returns one
    float (B, C, h, w) map per level, finest first. No noise is added: images in [-1, 1] are scaled by
    sqrt(abar) of the timestep. Gradients reach the images, never the weights.

    Raises ConfigError when `timestep` is not in [0, 1000) or the prior is no diffusers network, ShapeError on a
    wrong shape.
    """

    emb: Tensor

    def __init__(self, prior: DiffusionPrior, *, timestep: int = DEFAULT_TIMESTEP) -> None:
        super().__init__()
        if not 0 <= timestep < BASE_STEPS:
            msg = f"The feature timestep must lie in 0..{BASE_STEPS - 1}; got {timestep}."
            raise ConfigError(msg)
        if isinstance(prior, ImprovedDiffusionPrior):
            msg = "Prior features come from a prior in diffusers' layout; use LPIPS with an improved-diffusion prior."
            raise ConfigError(msg)
        unet = prior.unet
        self.timestep = timestep
        self.factor = prior.factor
        self.prediction_type = prior.prediction_type
        self.abar = float(base_abar()[timestep])
        self.conv_in = copy.deepcopy(unet.conv_in).requires_grad_(False)
        self.down_blocks = copy.deepcopy(unet.down_blocks).requires_grad_(False)
        self.multiple_of = self.factor * 2 ** sum(
            block.downsamplers is not None for block in self.down_blocks
        )
        with torch.no_grad():
            t = torch.tensor([timestep], device=unet.device)
            emb = unet.time_embedding(unet.time_proj(t).to(unet.dtype))
        self.register_buffer("emb", emb)
        self.channels = tuple(block.resnets[-1].out_channels for block in self.down_blocks)
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps, finest first."""
        m = self.multiple_of
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % m or images.shape[3] % m:
            msg = f"Features take (B, 3, H, W) with H and W multiples of {m}; got {tuple(images.shape)}."
            raise ShapeError(msg)
        x = self.conv_in(
            clean_input(2 * images - 1, self.abar, factor=self.factor, prediction_type=self.prediction_type)
        )
        emb = self.emb.expand(len(images), -1)
        maps = []
        for block in self.down_blocks:
            x, states = block(hidden_states=x, temb=emb)
            # The last state is the shrunk one where the block shrinks; the level's own comes before.
            maps.append(states[-1] if block.downsamplers is None else states[-2])
        return maps


def load_features(source: str | Path, device: torch.device) -> PriorFeatures:
    """Load the features of a prior by name, folder or hub id, on a device. Raises as `load_prior` and the class."""
    return PriorFeatures(load_prior(source).to(device))


def find_features(source: str | Path, device: torch.device) -> PriorFeatures | None:
    """As `load_features`, None for a prior that has none to give (improved-diffusion): a figure is left out then."""
    prior = load_prior(source)
    return None if isinstance(prior, ImprovedDiffusionPrior) else PriorFeatures(prior.to(device))


def prior_feature_distance(features: PriorFeatures, a: Tensor, b: Tensor) -> Tensor:
    """Return the prior-feature distance of image pairs, float32 (B,), from 0 (equal) to 4.

    `a` and `b`: RGB float (B, 3, H, W) in [0, 1]. As LPIPS without its learned weights (Zhang et al.
    2018): features normalised over the channels, squared differences summed over the channels, meaned over
    space and levels. Differentiable with respect to both. Raises ShapeError when the shapes differ.
    """
    if a.shape != b.shape:
        msg = f"The images to compare differ in shape: {tuple(a.shape)} and {tuple(b.shape)}."
        raise ShapeError(msg)
    pairs = zip(features(a), features(b), strict=True)
    levels = [(unit_features(p) - unit_features(q)).square().sum(1).mean((1, 2)) for p, q in pairs]
    return torch.stack(levels).mean(0)


def unit_features(maps: Tensor) -> Tensor:
    """Return feature maps (B, C, h, w), float32, of length 1 over the channels at every position."""
    maps = maps.float()
    return maps * (maps.square().sum(1, keepdim=True) + 1e-10).rsqrt()


def pooled_features(features: PriorFeatures, images: Tensor) -> Tensor:
    """Return each image's features meaned over space, all levels joined: float32 (B, sum of channels).

    `images`: RGB float (B, 3, H, W) in [0, 1]. For Fréchet distances on the prior's own features.
    """
    return torch.cat([level.float().mean((2, 3)) for level in features(images)], 1)
