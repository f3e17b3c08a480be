"""The edge family: compact U-Net restorers made of what INT8 engines run fastest.

3x3 and 1x1 convolutions, ReLU, nearest upsampling and additions; no normalisation layers, no concatenation.
Every block ends in a ReLU, so activations are non-negative and quantize to unsigned 8 bit without zero points.
The network works on `pixel_unshuffle(x, 4)` and predicts a residual to its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ufr_edge.errors import ConfigError, ShapeError

UNSHUFFLE = 4


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Which sizes a restorer takes: H and W in pixels, each a multiple of `multiple_of` and at least `minimum`."""

    multiple_of: int = 32
    minimum: int = 32

    def check(self, height: int, width: int) -> None:
        """Raise ShapeError unless (height, width) fits."""
        if min(height, width) < self.minimum or height % self.multiple_of or width % self.multiple_of:
            msg = (
                f"The restorer takes sides that are multiples of {self.multiple_of} and at least {self.minimum}; "
                f"got {height}x{width}."
            )
            raise ShapeError(msg)


@dataclass(frozen=True, kw_only=True)
class EdgeConfig:
    """Widths and depths, from full to lowest resolution (4, 8, 16 and 32 pixels a cell)."""

    channels: tuple[int, int, int, int]
    encoder_blocks: tuple[int, int, int, int]
    decoder_blocks: tuple[int, int, int]


EDGE_FAMILY: Mapping[str, EdgeConfig] = MappingProxyType(
    {
        "edge-s": EdgeConfig(channels=(32, 64, 96, 128), encoder_blocks=(1, 2, 2, 3), decoder_blocks=(2, 2, 2)),
        "edge-m": EdgeConfig(channels=(56, 104, 136, 160), encoder_blocks=(1, 2, 2, 4), decoder_blocks=(2, 2, 2)),
        "edge-l": EdgeConfig(channels=(72, 128, 160, 192), encoder_blocks=(1, 3, 3, 6), decoder_blocks=(2, 3, 3)),
    }
)


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))): features in and out (B, C, H, W), non-negative."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.2)  # no norm layers: start near the identity

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, same shape."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


class EdgeUNet(nn.Module):
    """A compact restorer: RGB float (B, 3, H, W) in [0, 1] in, same shape out, unclamped."""

    input_spec = InputSpec()

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__()
        c = config.channels
        self.config = config
        self.stem = nn.Conv2d(3 * UNSHUFFLE**2, c[0], 3, padding=1)
        self.encoder = nn.ModuleList(_blocks(c[i], config.encoder_blocks[i]) for i in range(4))
        self.down = nn.ModuleList(nn.Conv2d(c[i], c[i + 1], 3, stride=2, padding=1) for i in range(3))
        self.up = nn.ModuleList(nn.Conv2d(c[i + 1], c[i], 1) for i in range(3))
        self.decoder = nn.ModuleList(_blocks(c[i], config.decoder_blocks[i]) for i in range(3))
        self.head = nn.Conv2d(c[0], 3 * UNSHUFFLE**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias) if self.head.bias is not None else None

    def forward(self, image: Tensor) -> Tensor:
        """Restore. Raises ShapeError unless `input_spec` fits (checked outside of tracing only)."""
        if not torch.compiler.is_compiling():
            self.input_spec.check(image.shape[2], image.shape[3])
        x = F.relu(self.stem(F.pixel_unshuffle(image, UNSHUFFLE)))
        skips: list[Tensor] = []
        for level in range(3):
            x = self.encoder[level](x)
            skips.append(x)
            x = F.relu(self.down[level](x))
        x = self.encoder[3](x)
        for level in (2, 1, 0):
            x = F.interpolate(self.up[level](x), scale_factor=2.0, mode="nearest")
            x = self.decoder[level](F.relu(x + skips[level]))
        return image + F.pixel_shuffle(self.head(x), UNSHUFFLE)


def build_restorer(name: str) -> EdgeUNet:
    """Build an untrained restorer by family name. Raises ConfigError for an unknown one."""
    if name not in EDGE_FAMILY:
        msg = f"There is no restorer named {name!r}. Known: {', '.join(EDGE_FAMILY)}."
        raise ConfigError(msg)
    return EdgeUNet(EDGE_FAMILY[name])


def count_macs(model: EdgeUNet, side: int) -> int:
    """Multiply-accumulates of one forward pass over one side x side image (convolutions only)."""
    total = 0

    def hook(module: nn.Conv2d, _: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        total += out[0].numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1]

    hooks = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, side, side))
    finally:
        for handle in hooks:
            handle.remove()
    return total
