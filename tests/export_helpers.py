"""A restorer small enough to export in seconds, and pictures to calibrate it on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ufr_edge.calibration.compare import pattern_frames
from ufr_edge.calibration.frames import CalibrationConfig
from ufr_edge.restorers.edge import EdgeConfig, EdgeUNet, ResidualBlock, build_restorer
from ufr_edge.restorers.files import LoadedRestorer, save_restorer

SIDE = 64
ANY_PICTURES = CalibrationConfig(require_faces=False)
"""For the smooth blobs of these tests, which no detector takes for faces."""
TINY = EdgeConfig(channels=(8, 8, 8, 8), encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1))


def tiny_model() -> EdgeUNet:
    """A restorer whose residual is not zero, the same every time."""
    return _trained_looking(EdgeUNet(TINY))


def hostile_model(*blocks: str) -> EdgeUNet:
    """The tiny model, computing the same, with a channel between the convolutions of some blocks 1000 times as
    large: one range for all channels then leaves the others next to nothing. Default: one block."""
    model = tiny_model()
    for name in blocks or ("decoder.0.0",):
        block = model.get_submodule(name)
        assert isinstance(block, ResidualBlock)
        with torch.no_grad():
            block.conv2.weight.mul_(20)  # so that the block matters
            block.conv1.weight[0].mul_(1000)
            assert block.conv1.bias is not None
            block.conv1.bias[0].mul_(1000)
            block.conv2.weight[:, 0].div_(1000)
    return model


def tiny_restorer(folder: Path, model: EdgeUNet | None = None) -> LoadedRestorer:
    """The tiny model (or another of its shape) as if loaded from a file in `folder`."""
    path = folder / "weights.safetensors"
    model = model or tiny_model()
    save_restorer(model, path, arch="edge-s", side=SIDE)
    return LoadedRestorer(model=model, arch="edge-s", side=SIDE, meta={"camera": "door"}, path=path)


def write_run(folder: Path) -> Path:
    """A run folder with an edge-s in it, for the command line."""
    save_restorer(
        _trained_looking(build_restorer("edge-s")), folder / "weights.safetensors", arch="edge-s", side=SIDE
    )
    return folder


def write_faces(folder: Path, count: int, *, seed: int = 0, side: int = SIDE) -> Path:
    """A folder of `count` different smooth pictures."""
    return write_images(folder, pattern_frames(count, side, seed=seed))


def write_images(folder: Path, frames: NDArray[np.uint8]) -> Path:
    """Write uint8 (N, S, S, 3) RGB frames as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{index:03d}.png"), frame[..., ::-1])
    return folder


def _trained_looking(model: EdgeUNet) -> EdgeUNet:
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.01, generator=generator)  # the exporter drops zeros
    nn.init.normal_(model.head.weight, 0.0, 0.02, generator=generator)
    return model.eval()
