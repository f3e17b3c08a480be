"""LPIPS v0.1 (Zhang et al. 2018) from its published weights, without torchvision.

The backbone's ImageNet weights come from the torch hub cache, the learned layers from the package `lpips`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ufr_edge.downloads import RemoteFile
from ufr_edge.errors import ConfigError, ModelFileError, ShapeError
from ufr_edge.metrics.backbones import Backbone, Head, find_backbone, find_head, read_tensors

Layer = tuple[int, int, int, int] | None
"""Output channels, kernel, stride, padding of a convolution (a ReLU follows); None is max pooling."""


@dataclass(frozen=True, kw_only=True)
class LpipsNet:
    """A backbone LPIPS is defined on. `taps`: which convolutions' outputs are compared, counted from 0."""

    layers: tuple[Layer, ...]
    pool: tuple[int, int]
    taps: tuple[int, ...]
    backbone: Backbone
    head: Head


_ALEX_LAYERS: tuple[Layer, ...] = (
    (64, 11, 4, 2), None, (192, 5, 1, 2), None, (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)
)  # fmt: skip
_VGG_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_VGG_LAYERS: tuple[Layer, ...] = tuple(
    layer for width, count in _VGG_BLOCKS for layer in (*((width, 3, 1, 1),) * count, None)
)[:-1]

NETS: Mapping[str, LpipsNet] = MappingProxyType(
    {
        "alex": LpipsNet(
            layers=_ALEX_LAYERS,
            pool=(3, 2),
            taps=(0, 1, 2, 3, 4),
            backbone=Backbone(
                title="LPIPS needs AlexNet's ImageNet weights",
                file=RemoteFile(
                    name="alexnet-owt-7be5be79.pth",
                    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
                    sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
                ),
                option="--lpips-backbone",
            ),
            head=Head(
                package="lpips",
                inside="weights/v0.1/alex.pth",
                sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
            ),
        ),
        "vgg": LpipsNet(
            layers=_VGG_LAYERS,
            pool=(2, 2),
            taps=(1, 3, 6, 9, 12),
            backbone=Backbone(
                title="LPIPS needs VGG-16's ImageNet weights",
                file=RemoteFile(
                    name="vgg16-397923af.pth",
                    url="https://download.pytorch.org/models/vgg16-397923af.pth",
                    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
                ),
                option="--lpips-backbone",
            ),
            head=Head(
                package="lpips",
                inside="weights/v0.1/vgg.pth",
                sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
            ),
        ),
    }
)


class Lpips(nn.Module):
    """LPIPS of image pairs. `forward(a, b)`: RGB float (B, 3, H, W) in [0, 1], not resized; returns (B,).

    0 for equal images. Made without weights; `load_lpips` gives the published ones. Raises ShapeError when
    the shapes differ.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: LpipsNet) -> None:
        super().__init__()
        self.net = net
        self.features = _features(net)
        widths = [layer[0] for layer in net.layers if layer is not None]
        self.lins = nn.ModuleList([nn.Conv2d(widths[tap], 1, 1, bias=False) for tap in net.taps])
        # ImageNet's mean and deviation as LPIPS uses them, for inputs in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances (B,)."""
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3:
            msg = f"LPIPS takes two (B, 3, H, W) of one shape; got {tuple(a.shape)} and {tuple(b.shape)}."
            raise ShapeError(msg)
        pairs = zip(self._maps(a), self._maps(b), strict=True)
        levels = [(_unit(p) - _unit(q)).square() for p, q in pairs]
        return torch.stack([lin(d).mean((1, 2, 3)) for lin, d in zip(self.lins, levels, strict=True)]).sum(0)

    def _maps(self, images: Tensor) -> list[Tensor]:
        x = (2 * images - 1 - self.shift) / self.scale
        maps = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x)
        return [maps[tap] for tap in self.net.taps]


def load_lpips(
    name: str = "alex",
    *,
    path: Path | None = None,
    download: bool = False,
    nets: Mapping[str, LpipsNet] = NETS,
) -> Lpips:
    """Load LPIPS v0.1 on "alex" or "vgg" from checked files. `path`: the backbone's file.

    Raises ConfigError for another name, BackendUnavailableError when a file is not here, InputFileError or
    ModelFileError when one is wrong.
    """
    if name not in nets:
        msg = f"LPIPS is defined on {', '.join(nets)}; got {name!r}."
        raise ConfigError(msg)
    net = nets[name]
    model = Lpips(net)
    head = read_tensors(find_head(net.head))
    source = find_backbone(net.backbone, path=path, download=download)
    backbone = {
        k.removeprefix("features."): v for k, v in read_tensors(source).items() if k.startswith("features.")
    }
    lins = {f"{i}.weight": head.get(f"lin{i}.model.1.weight") for i in range(len(model.lins))}
    try:
        model.features.load_state_dict(backbone)
        model.lins.load_state_dict(lins)
    except (RuntimeError, AttributeError) as exc:
        msg = f"{source} does not fit LPIPS on {name}: {str(exc).splitlines()[-1].strip()}"
        raise ModelFileError(msg) from exc
    return model


def _features(net: LpipsNet) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for layer in net.layers:
        if layer is None:
            layers.append(nn.MaxPool2d(*net.pool))
            continue
        width, kernel, stride, padding = layer
        layers += [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)


def _unit(maps: Tensor) -> Tensor:
    maps = maps.float()
    # Below the root, or the gradient is not a number where every channel is zero.
    return maps / ((maps.square().sum(1, keepdim=True) + 1e-20).sqrt() + 1e-10)
