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
    extra = "spandrel" if package == "spandrel" else "codeformer"
    try:
        module = import_architecture(f"{package}.architectures.{name}", extra=extra)
    except BackendUnavailableError as exc:
        pytest.skip(str(exc))

    def build(**options: object) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch.meshgrid without indexing
            return getattr(module, name)(**options)

    return build


def swinir(
    *, depths: int = 1, blocks: int = 2, dim: int = 16, heads: int = 2, img: int = 16, drop_path: float = 0.1
) -> nn.Module:
    """SwinIR with the paper's 8x unshuffle head and stochastic depth; the defaults are tiny, at 128 px."""
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
        drop_path_rate=drop_path,
    )
    return network.eval()


def swinir_state(network: nn.Module) -> dict[str, Tensor]:
    """Its state under the keys of the release."""
    return {k.replace("conv_first.", "conv_first.1."): v for k, v in network.state_dict().items()}


def gfpgan() -> nn.Module:
    """A GFPGAN at 32 px, random weights."""
    torch.manual_seed(0)
    network: nn.Module = architecture("GFPGAN")(out_size=32, num_style_feat=16, narrow=1 / 32)
    return network


def restoreformer() -> nn.Module:
    """A RestoreFormer at 32 px with attention on the way down too, as the released one has it; random weights."""
    torch.manual_seed(0)
    network: nn.Module = architecture("RestoreFormer")(
        n_embed=16, embed_dim=32, ch=32, ch_mult=(1, 1), z_channels=32, num_res_blocks=1, resolution=32
    )
    return network


def codeformer() -> nn.Module:
    """The whole CodeFormer, random weights; on the meta device inside `torch.device("meta")`."""
    network: nn.Module = architecture("CodeFormer", "spandrel_extra_arches")()
    return network


class Layer(nn.Module):
    """A stand-in for a transformer layer: mixes tokens with the positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width)

    def forward(self, tokens: Tensor, query_pos: Tensor) -> Tensor:
        out: Tensor = tokens + self.linear1(tokens + query_pos)
        return out


class TinyCodeFormer(nn.Module):
    """The parts of CodeFormer under their own names, 16 x 16 tokens of a 512 px face, few channels."""

    def __init__(self, width: int = 8, codes: int = 12) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 32, stride=32))
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(codes, width)})
        self.feat_emb = nn.Linear(width, width)
        self.position_emb = nn.Parameter(torch.randn(256, width))
        self.ft_layers = nn.Sequential(Layer(width), Layer(width))
        self.idx_pred_layer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, codes, bias=False))
        self.generator = nn.Conv2d(width, 3, 1)
        self.fuse_convs_dict = nn.ModuleDict({"32": nn.Conv2d(width, width, 1)})
