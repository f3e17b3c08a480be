"""Losses on the pixels themselves."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ufr_edge.restorers.edge import UNSHUFFLE

LOG_MSE_FLOOR = 2e-5
"""Squared error, of images in [0, 1], below which `log_mse` flattens out: 47 dB PSNR."""

_CELLS = 4
"""Side, in cells of the grid, over which an error must repeat to count as a pattern: what a face has there averages out."""


def pixel_loss(out: Tensor, target: Tensor, kind: Literal["l1", "log_mse"]) -> Tensor:
    """Mean absolute error, or the mean over the images of log(mean squared error + `LOG_MSE_FLOOR`)."""
    if kind == "l1":
        return F.l1_loss(out, target)
    return ((out - target).square().mean((1, 2, 3)) + LOG_MSE_FLOOR).log().mean()


def grid_loss(out: Tensor, target: Tensor) -> Tensor:
    """How far the error repeats with the period of the network's own grid: 0 without a pattern, scalar.

    `out`, `target`: (B, 3, H, W), sides multiples of 16. The error at each of the 4 x 4 places within a cell is
    averaged over 4 x 4 cells; the mean absolute departure of these places from their mean is returned.
    """
    phases = F.avg_pool2d(F.pixel_unshuffle(out - target, UNSHUFFLE), _CELLS)
    phases = phases.reshape(len(out), out.shape[1], UNSHUFFLE**2, *phases.shape[2:])
    return (phases - phases.mean(2, keepdim=True)).abs().mean()
