"""The improved-diffusion network of the paper's prior: its size, its layout, its file, and the sampler on it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from prior_fakes import faces
from torch import Tensor
from torch.nn import functional as F

from ufr_edge.errors import ConfigError, InputFileError, ModelFileError, ShapeError
from ufr_edge.files import sha256_file
from ufr_edge.priors.features import PriorFeatures
from ufr_edge.priors.files import load_prior, prior_digest
from ufr_edge.priors.improved_diffusion import (
    PAPER_NETWORK,
    Attention,
    Downsample,
    ImprovedDiffusionConfig,
    ImprovedDiffusionPrior,
    ImprovedDiffusionUNet,
    ResBlock,
    Upsample,
    infer_shape,
    load_improved_diffusion,
    timestep_embedding,
)
from ufr_edge.priors.sampler import SamplerConfig, sample_targets
from ufr_edge.restorers.registry import KNOWN_MODELS

# Attention at 256 px and below of a side of 512: at levels 1 and 2, as real pixels, not factors.
TINY = ImprovedDiffusionConfig(
    side=512, channels=32, multipliers=(1, 2, 2), blocks=(1, 1, 2), attention=(256, 128), head_channels=64
)


def tiny(outputs: int = 6) -> ImprovedDiffusionUNet:
    torch.manual_seed(0)
    shape = ImprovedDiffusionConfig(**{**TINY.__dict__, "outputs": outputs})
    return ImprovedDiffusionUNet(shape).eval()


def saved(path: Path, unet: ImprovedDiffusionUNet, prefix: str = "") -> Path:
    torch.save({prefix + key: tensor for key, tensor in unet.state_dict().items()}, path)
    return path


def places(blocks: torch.nn.ModuleList, kind: type[torch.nn.Module]) -> list[int]:
    """Which blocks hold a layer of this kind."""
    return [k for k, block in enumerate(blocks) if any(isinstance(layer, kind) for layer in block.children())]


def test_the_paper_s_network_has_its_layers_where_the_brief_says() -> None:
    with torch.device("meta"):
        unet = ImprovedDiffusionUNet()
    assert (len(unet.input_blocks), len(unet.output_blocks)) == (23, 23)
    assert places(unet.input_blocks, Attention) == [12, 13, 15, 16, 17, 19, 20, 21, 22]
    assert places(unet.output_blocks, Attention) == list(range(12))
    assert places(unet.input_blocks, Downsample) == [2, 5, 8, 11, 14, 18]
    assert places(unet.output_blocks, Upsample) == [4, 8, 11, 14, 17, 20]
    heads = {m.heads for m in unet.modules() if isinstance(m, Attention)}
    assert heads == {4, 8}
    assert infer_shape(unet.state_dict(), Path("x")) == PAPER_NETWORK


def test_the_keys_are_those_of_the_release() -> None:
    with torch.device("meta"):
        keys = ImprovedDiffusionUNet().state_dict().keys()
    for key in (
        "time_embed.0.weight",
        "time_embed.2.bias",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.in_layers.0.weight",
        "input_blocks.1.0.in_layers.2.weight",
        "input_blocks.2.0.op.weight",
        "input_blocks.3.0.emb_layers.1.weight",
        "input_blocks.3.0.out_layers.0.weight",
        "input_blocks.3.0.out_layers.3.weight",
        "input_blocks.3.0.skip_connection.weight",
        "input_blocks.12.1.norm.weight",
        "input_blocks.12.1.qkv.weight",
        "input_blocks.12.1.proj_out.weight",
        "middle_block.1.qkv.bias",
        "middle_block.2.out_layers.3.bias",
        "output_blocks.4.2.conv.weight",
        "output_blocks.14.1.conv.weight",
        "out.0.weight",
        "out.2.bias",
    ):
        assert key in keys
    assert "input_blocks.1.0.skip_connection.weight" not in keys  # only where the width changes


def test_time_embedding_has_cosines_first() -> None:
    t = torch.tensor([0, 602])
    out = timestep_embedding(t, 32)
    assert out[0].tolist() == [1.0] * 16 + [0.0] * 16
    rate = math.exp(-math.log(10000) * 3 / 16)
    assert float(out[1, 3]) == pytest.approx(math.cos(602 * rate), abs=1e-4)
    assert float(out[1, 19]) == pytest.approx(math.sin(602 * rate), abs=1e-4)


def test_attention_splits_heads_before_q_k_and_v() -> None:
    """Against the plain formula, head by head, in the legacy order of channels: [q k v] of head 0, of head 1, ..."""
    torch.manual_seed(1)
    layer = Attention(128, 64)
    x = torch.randn(2, 128, 4, 4)
    flat = x.flatten(2)
    qkv = layer.qkv(F.group_norm(flat, 32, layer.norm.weight, layer.norm.bias))
    heads: list[Tensor] = []
    for head in range(2):
        q, k, v = qkv[:, head * 192 : (head + 1) * 192].chunk(3, 1)
        weights = (torch.einsum("bct,bcs->bts", q, k) / 8).softmax(2)
        heads.append(torch.einsum("bts,bcs->bct", weights, v))
    expected = (flat + layer.proj_out(torch.cat(heads, 1))).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


def test_the_time_scales_and_shifts_the_second_norm() -> None:
    torch.manual_seed(1)
    block = ResBlock(32, 64, 16)
    x, embedding = torch.randn(2, 32, 8, 8), torch.randn(2, 16)
    scale, shift = block.emb_layers(embedding)[:, :, None, None].chunk(2, 1)
    h = block.out_layers[0](block.in_layers(x)) * (1 + scale) + shift
    expected = block.skip_connection(x) + block.out_layers[3](F.silu(h))
    torch.testing.assert_close(block(x, embedding), expected)
    assert not torch.allclose(block(x, embedding), block(x, 2 * embedding))


def test_forward_gives_noise_and_variance(tmp_path: Path) -> None:
    prior = load_prior(saved(tmp_path / "x.pth", tiny()))
    assert isinstance(prior, ImprovedDiffusionPrior)
    assert (prior.side, prior.factor, prior.learns_variance, prior.prediction_type) == (512, 1, True, "epsilon")
    assert not prior.training
    out = prior(torch.randn(2, 3, 32, 48), torch.tensor([0, 602]))
    assert out.shape == (2, 6, 32, 48)
    assert torch.isfinite(out).all()
    with pytest.raises(ShapeError, match="multiples of 4"):
        prior(torch.randn(1, 3, 30, 32), torch.tensor([0]))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_file_is_loaded_whole(tmp_path: Path, prefix: str) -> None:
    unet = tiny()
    prior = load_prior(saved(tmp_path / "x.pth", unet, prefix))
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([100])
    with torch.no_grad():
        assert torch.equal(prior(x, t), unet(x, t))
    assert prior_digest(tmp_path / "x.pth") == sha256_file(tmp_path / "x.pth")


def test_a_network_without_learned_variance(tmp_path: Path) -> None:
    prior = load_improved_diffusion(saved(tmp_path / "x.pth", tiny(outputs=3)))
    assert not prior.learns_variance
    assert prior(torch.randn(1, 3, 16, 16), torch.tensor([1])).shape == (1, 3, 16, 16)


def test_it_is_loaded_strictly(tmp_path: Path) -> None:
    state = tiny().state_dict()
    torch.save({**state, "label_emb.weight": torch.zeros(10, 128)}, tmp_path / "x.pth")
    with pytest.raises(ModelFileError, match=r"another kind of improved-diffusion UNet.*label_emb"):
        load_prior(tmp_path / "x.pth")
    del state["out.2.bias"]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ModelFileError, match=r"out\.2\.bias"):
        load_prior(tmp_path / "x.pth")
    del state["input_blocks.1.0.out_layers.3.weight"]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ModelFileError, match="than the paper's"):
        load_prior(tmp_path / "x.pth")


def test_another_file_says_what_it_is(tmp_path: Path) -> None:
    torch.save({"toRGB.0.weight": torch.zeros(1), "stylegan_decoder.style_mlp.1.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ModelFileError, match=r"holds GFPGAN.*expected an unconditional improved-diffusion"):
        load_prior(tmp_path / "x.pth")


def test_the_sampler_uses_its_learned_range(tmp_path: Path) -> None:
    """The same noise channels with another s give another target: the variance channels reach eq. 4."""
    prior = load_prior(saved(tmp_path / "x.pth", tiny()))
    config = SamplerConfig(steps=10, start=4, hold_until=2)
    reference = faces(1, 64)

    def target(shift: float) -> Tensor:
        def shifted(x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = prior(x, t).clone()
            out[:, 3:] += shift
            return out

        with torch.no_grad():
            return sample_targets(shifted, reference, config, [1])

    assert torch.equal(target(0.0), sample_targets(prior, reference, config, [1]))
    assert not torch.equal(target(0.0), target(1.0))


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    prior = load_improved_diffusion(saved(tmp_path / "x.pth", tiny()))
    with pytest.raises(ConfigError, match="use LPIPS"):
        PriorFeatures(prior)
    with pytest.raises(ConfigError, match="keep its original file"):
        prior.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="do not fit"):
        ImprovedDiffusionConfig(side=100, multipliers=(1, 2, 2, 2), blocks=(1, 1, 1, 1))


def test_the_known_name_asks_for_its_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UFR_CACHE", str(tmp_path))
    model = KNOWN_MODELS["iddpm-ffhq-512"]
    with pytest.raises(InputFileError, match="ufr-edge models fetch iddpm-ffhq-512 --accept-licence"):
        load_prior("iddpm-ffhq-512")
    model.folder.mkdir(parents=True)
    saved(model.path, tiny())
    with pytest.raises(ConfigError, match="S-Lab"):
        load_prior("iddpm-ffhq-512")
