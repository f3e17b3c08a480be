"""GFPGAN's modulated convolution with constant weights, as engines need it; the same numbers up to rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ModulatedConv(nn.Module):
    """StyleGAN2's modulated convolution (arXiv:1912.04958, section 2.2), modulating features instead of weights.

    The usual form makes one set of weights per face and a convolution in as many groups as there are faces: no
    engine takes that with a dynamic batch. Scaling by the style before and by the demodulation after the convolution
    is equal, as both are linear in it. Parameters and keys are those of the module it replaces.
    """

    def __init__(self, twin: Any) -> None:
        super().__init__()
        self.weight: nn.Parameter = twin.weight  # (1, out, in, k, k)
        self.modulation: nn.Module = twin.modulation
        self.padding, self.eps = int(twin.padding), float(twin.eps)
        self.demodulate, self.upsample = bool(twin.demodulate), twin.sample_mode == "upsample"

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Convolve features (B, in, H, W) under style (B, num_style_feat): (B, out, H or 2 H, W or 2 W)."""
        scale = self.modulation(style)
        x = x * scale[:, :, None, None]
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        weight = self.weight[0]
        out = F.conv2d(x, weight, padding=self.padding)
        if not self.demodulate:
            return out
        energy = scale.square() @ weight.square().sum((2, 3)).t()
        return out * torch.rsqrt(energy + self.eps)[:, :, None, None]


def use_constant_weights(network: nn.Module) -> None:
    """Put `ModulatedConv` in the place of every modulated convolution of a GFPGAN, parameters shared."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "ModulatedConv2d" and getattr(child, "sample_mode", None) != "downsample":
                setattr(module, name, ModulatedConv(child))


__all__ = ["ModulatedConv", "use_constant_weights"]
