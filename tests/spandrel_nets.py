"""Tiny random networks of other people's architectures, built in the test."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ufr_edge.errors import BackendUnavailableError
from ufr_edge.restorers.spandrel_loader import import_architecture


def architecture(name: str, package: str = "spandrel") -> Callable[..., Any]:
    """The builder of an architecture; skips the test where its package is not installed."""
    try:
        module = import_architecture(f"{package}.architectures.{name}", extra=package)
    except BackendUnavailableError as exc:
        pytest.skip(str(exc))

    def build(**options: object) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch.meshgrid without indexing
            return getattr(module, name)(**options)

    return build


def swinir(*, depths: int = 1, blocks: int = 2, dim: int = 16, heads: int = 2, img: int = 16) -> nn.Module:
    """SwinIR with the paper's 8x unshuffle head; the defaults are tiny, at 128 px."""
    torch.manual_seed(0)
    network: nn.Module = architecture("SwinIR")(
        img_size=img,
        patch_size=1,
        in_chans=3,
        embed_dim=dim,
        depths=[blocks] * depths,
        num_heads=[heads] * depths,
        window_size=8,
        mlp_ratio=2,
        upscale=8,
        img_range=1.0,
        upsampler="nearest+conv",
        resi_connection="1conv",
        start_unshuffle=8,
    )
    return network.eval()


def swinir_state(network: nn.Module) -> dict[str, Tensor]:
    """Its state under the keys of the release."""
    return {k.replace("conv_first.", "conv_first.1."): v for k, v in network.state_dict().items()}


def codeformer() -> nn.Module:
    """The whole CodeFormer, random weights; on the meta device inside `torch.device("meta")`."""
    network: nn.Module = architecture("CodeFormer", "spandrel_extra_arches")()
    return network
