"""Making a larger restorer out of a trained smaller one, without changing what it computes (after Net2Net)."""

from __future__ import annotations

import torch
from torch import nn

from ufr_edge.errors import ConfigError
from ufr_edge.restorers.edge import EDGE_FAMILY, EdgeUNet, build_restorer


def widen_restorer(source: EdgeUNet, arch: str, *, seed: int = 0) -> EdgeUNet:
    """Return a network of family `arch` whose output equals that of `source` within float error.

    New channels compute random features (fixed by `seed`) that no old channel reads yet: their weights into old
    channels are zero, and get a gradient from the first step on. New blocks end in a zero convolution: their
    input is non-negative, so relu(x + 0) is the identity (after Chen et al. 2016, Net2Net, section 2.3).
    Same device and dtype as `source`. Raises ConfigError for an unknown `arch`, or one that is narrower or
    shallower than `source` somewhere.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = build_restorer(arch)
    _check(source, arch)
    trained = {name: module for name, module in source.named_modules() if isinstance(module, nn.Conv2d)}
    wide = wide.to(source.stem.weight.device, source.stem.weight.dtype)
    for name, module in wide.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if name in trained:
            _copy_into(module, trained[name])
        elif name.endswith("conv2"):
            _zero(module)
    return wide.train(source.training)


def _check(source: EdgeUNet, arch: str) -> None:
    old, new = source.config, EDGE_FAMILY[arch]
    for what in ("channels", "encoder_blocks", "decoder_blocks"):
        have, wanted = getattr(old, what), getattr(new, what)
        if any(b < a for a, b in zip(have, wanted, strict=True)):
            msg = f"A restorer of {what} {have} cannot be widened to {arch}, which has fewer: {wanted}."
            raise ConfigError(msg)


@torch.no_grad()
def _copy_into(wide: nn.Conv2d, trained: nn.Conv2d) -> None:
    outside, inside = trained.weight.shape[:2]
    wide.weight[:outside, inside:] = 0  # old channels do not hear the new ones yet
    wide.weight[:outside, :inside] = trained.weight
    if wide.bias is not None and trained.bias is not None:
        wide.bias[:outside] = trained.bias


def _zero(conv: nn.Conv2d) -> None:
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
