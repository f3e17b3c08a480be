"""The loss against the network's own grid."""

from __future__ import annotations

import pytest
import torch

from ufr_edge.adaptation.pixel_losses import grid_loss


def _pattern(side: int = 64) -> torch.Tensor:
    image = torch.zeros(1, 3, side, side)
    image[..., ::4, ::4] = 0.1
    return image


def test_a_pattern_of_the_grid_counts_in_full() -> None:
    loss = float(grid_loss(_pattern() + 0.5, torch.full((1, 3, 64, 64), 0.5)))
    assert loss == pytest.approx(2 * 0.1 * 15 / 16**2, rel=1e-5)


def test_what_does_not_repeat_hardly_counts() -> None:
    torch.manual_seed(0)
    target = torch.rand(1, 3, 64, 64)
    assert float(grid_loss(target, target)) == 0
    assert float(grid_loss(target + 0.3, target)) == pytest.approx(0, abs=1e-6)
    noise = torch.randn(1, 3, 64, 64)
    pattern = _pattern()
    noise *= pattern.std() / noise.std()
    assert float(grid_loss(target + noise, target)) < 0.5 * float(grid_loss(target + pattern, target))
