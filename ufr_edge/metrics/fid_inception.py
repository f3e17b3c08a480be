"""The Inception network FID is defined on (Heusel et al. 2017), from its published weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ufr_edge.downloads import RemoteFile
from ufr_edge.errors import ModelFileError, ShapeError
from ufr_edge.metrics.backbones import Backbone, find_backbone, read_tensors

FEATURES = 2048
SIDE = 299
INCEPTION = Backbone(
    title="FID needs the Inception network of 2015-12-05",
    file=RemoteFile(
        name="pt_inception-2015-12-05-6726825d.pth",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    aliases=("weights-inception-2015-12-05-6726825d.pth",),
    option="--fid-backbone",
)

Kernel = int | tuple[int, int]
Conv = tuple[str, int, Kernel]
"""Name, output channels, kernel."""
Steps = tuple[tuple[Conv, ...], ...]
"""Steps of a path, one after the other; convolutions of one step take the same input and are concatenated."""


class _ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU. Same size out at stride 1, none padded otherwise."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()
        tall, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (tall // 2, wide // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (tall, wide), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Parallel paths of convolutions and one of pooling, concatenated (Szegedy et al. 2015).

    `pool`: "avg" (edges not counted, as in TensorFlow) or "max", at stride 1 before the convolution
    `branch_pool` of `pooled` channels; "shrink": max at stride 2 alone, and each path's last step has stride 2.
    """

    def __init__(self, inputs: int, paths: tuple[Steps, ...], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.outputs = pooled or inputs
        self.names = [self._add(path, inputs) for path in paths]
        if pooled:
            self.branch_pool = _ConvNorm(inputs, pooled, 1)

    def _add(self, path: Steps, channels: int) -> list[list[str]]:
        for step in path:
            stride = 2 if self.pool == "shrink" and step is path[-1] else 1
            for name, width, kernel in step:
                self.add_module(name, _ConvNorm(channels, width, kernel, stride))
            channels = sum(width for _, width, _ in step)
        self.outputs += channels
        return [[name for name, _, _ in step] for step in path]

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for path in self.names:
            y = x
            for step in path:
                y = torch.cat([self.get_submodule(name)(y) for name in step], 1)
            outputs.append(y)
        return torch.cat([*outputs, self._pooled(x)], 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "shrink":
            return F.max_pool2d(x, 3, 2)
        # The released network takes the maximum in its last block where the paper has the average.
        pooled = F.max_pool2d(x, 3, 1, 1) if self.pool == "max" else _average(x)
        return torch.as_tensor(self.branch_pool(pooled))


class FidInception(nn.Module):
    """2048 pooled features of RGB float (B, 3, H, W) in [0, 1], resized to 299 (bilinear, no antialiasing).

    As pytorch-fid computes them. Made without weights; `load_inception` gives the published ones.
    Raises ShapeError on a wrong shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _ConvNorm(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _ConvNorm(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = _ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = _ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = _ConvNorm(80, 192, 3, pad=False)
        channels = 192
        for name, paths, pool, pooled in _mixed_blocks():
            block = _Mixed(channels, paths, pool, pooled)
            self.add_module(name, block)
            channels = block.outputs
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, 2048)."""
        if images.ndim != 4 or images.shape[1] != 3:
            msg = f"FID features take (B, 3, H, W); got {tuple(images.shape)}."
            raise ShapeError(msg)
        x = 2 * F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, *_ in _mixed_blocks():
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def load_inception(
    *, path: Path | None = None, download: bool = False, backbone: Backbone = INCEPTION
) -> FidInception:
    """Load the network from its checked file (`path`, or the torch hub cache).

    Raises BackendUnavailableError when it is not here, InputFileError or ModelFileError when it is wrong.
    """
    source = find_backbone(backbone, path=path, download=download)
    model = FidInception()
    try:
        result = model.load_state_dict(_without_head(read_tensors(source)), strict=False)
    except RuntimeError as exc:  # a tensor of another shape
        msg = f"{source} is not the Inception network of FID: {str(exc).splitlines()[-1].strip()}"
        raise ModelFileError(msg) from exc
    missing = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys:
        msg = f"{source} is not the Inception network of FID: {(missing + result.unexpected_keys)[0]} does not fit."
        raise ModelFileError(msg)
    return model


def _without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave the classifier out, which FID does not use."""
    return {key: value for key, value in state.items() if not key.startswith(("fc.", "AuxLogits."))}


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _chain(*convs: Conv) -> Steps:
    return tuple((conv,) for conv in convs)


def _mixed_blocks() -> list[tuple[str, tuple[Steps, ...], str, int]]:
    """Name, paths, pooling and channels of its convolution, of every block in order."""
    shrink = (
        _chain(("branch3x3", 384, 3)),
        _chain(("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
    )
    again = (
        _chain(("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)),
        _chain(
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3),
        ),
    )
    return [
        *((f"Mixed_5{at}", _squares(), "avg", pooled) for at, pooled in (("b", 32), ("c", 64), ("d", 64))),
        ("Mixed_6a", shrink, "shrink", 0),
        *(
            (f"Mixed_6{at}", _strips(w), "avg", 192)
            for at, w in (("b", 128), ("c", 160), ("d", 160), ("e", 192))
        ),
        ("Mixed_7a", again, "shrink", 0),
        ("Mixed_7b", _forks(), "avg", 192),
        ("Mixed_7c", _forks(), "max", 192),
    ]


def _squares() -> tuple[Steps, ...]:
    return (
        _chain(("branch1x1", 64, 1)),
        _chain(("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        _chain(("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
    )


def _strips(width: int) -> tuple[Steps, ...]:
    """Factorised 7x7 convolutions."""
    flat, tall = (1, 7), (7, 1)
    return (
        _chain(("branch1x1", 192, 1)),
        _chain(("branch7x7_1", width, 1), ("branch7x7_2", width, flat), ("branch7x7_3", 192, tall)),
        _chain(
            ("branch7x7dbl_1", width, 1),
            ("branch7x7dbl_2", width, tall),
            ("branch7x7dbl_3", width, flat),
            ("branch7x7dbl_4", width, tall),
            ("branch7x7dbl_5", 192, flat),
        ),
    )


def _forks() -> tuple[Steps, ...]:
    def fork(name: str) -> tuple[Conv, Conv]:
        return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))

    return (
        _chain(("branch1x1", 320, 1)),
        (*_chain(("branch3x3_1", 384, 1)), fork("branch3x3_2")),
        (*_chain(("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)), fork("branch3x3dbl_3")),
    )
