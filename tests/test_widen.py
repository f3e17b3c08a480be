"""Widening a trained restorer keeps what it computes, and leaves nothing that cannot learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ufr_edge.errors import ConfigError
from ufr_edge.restorers.edge import EDGE_FAMILY, EdgeUNet, build_restorer
from ufr_edge.restorers.widen import widen_restorer


def trained(arch: str) -> EdgeUNet:
    """A network whose layers all matter: a random head, blocks that are not near the identity."""
    torch.manual_seed(3)
    model = build_restorer(arch)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            module.weight.data.mul_(0.5)
    return model


@pytest.mark.parametrize(
    ("small", "large"), [("edge-s", "edge-m"), ("edge-m", "edge-l"), ("edge-s", "edge-s")]
)
def test_output_is_the_sources(small: str, large: str) -> None:
    source = trained(small)
    wide = widen_restorer(source, large)
    assert wide.config == EDGE_FAMILY[large]
    image = torch.rand(1, 3, 64, 96)
    restored = source(image)
    assert (restored - image).abs().mean() > 0.05  # else the comparison proves nothing
    torch.testing.assert_close(wide(image), restored, atol=1e-4, rtol=1e-4)


def test_every_new_weight_learns_after_two_steps() -> None:
    """Zero weights get a gradient at once; what they hide from the loss gets one as soon as they moved."""
    wide = widen_restorer(trained("edge-s"), "edge-m")
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-4)
    before = {name: p.detach().clone() for name, p in wide.named_parameters()}
    image, goal = torch.rand(2, 2, 3, 64, 64)
    for _ in range(3):
        optimizer.zero_grad()
        (wide(image) - goal).square().mean().backward()
        optimizer.step()
    still = [name for name, p in wide.named_parameters() if torch.equal(p, before[name])]
    assert not still
    head, columns = wide.head.weight, build_restorer("edge-s").config.channels[0]
    assert (head[:, columns:] != 0).any(dim=(0, 2, 3)).float().mean() > 0.8


def test_new_channels_differ_and_are_fixed_by_the_seed() -> None:
    source = trained("edge-s")
    first, again, other = (widen_restorer(source, "edge-m", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.stem.weight, again.stem.weight)
    assert not torch.equal(first.stem.weight, other.stem.weight)
    new = first.stem.weight[source.config.channels[0] :].flatten(1)
    assert torch.cdist(new, new).fill_diagonal_(1).min() > 1e-3


def test_a_smaller_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be widened to edge-s"):
        widen_restorer(build_restorer("edge-m"), "edge-s")
    with pytest.raises(ConfigError, match="no restorer named"):
        widen_restorer(build_restorer("edge-s"), "edge-xxl")
