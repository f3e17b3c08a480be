"""Statements 10-15, 19 and 20 of the method brief, section 13, as far as networks and figures go, each by its number.

1-9 are in test_paper_statements.py, the rest of 12-15 in test_presets.py and test_finetune.py, 16 and 17 in test_degradations.py.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from spandrel_nets import TinyCodeFormer, codeformer, swinir, swinir_state
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from training_fakes import make_faces, save_small_restorer, write_faces

from ufr_edge.adaptation.discriminator import UNetDiscriminatorSN
from ufr_edge.adaptation.eval_run import EvalConfig, evaluate
from ufr_edge.adaptation.restorer_task import restore_batch
from ufr_edge.errors import ModelFileError
from ufr_edge.metrics.quality import QualitySettings
from ufr_edge.priors.files import load_prior
from ufr_edge.priors.improved_diffusion import (
    PAPER_NETWORK,
    Attention,
    ImprovedDiffusionConfig,
    ImprovedDiffusionUNet,
)
from ufr_edge.restorers.codeformer import (
    code_loss,
    codebook_features,
    encode,
    freeze_rest,
    nearest_codes,
    predict_codes,
    trained_parameters,
)
from ufr_edge.restorers.edge import build_restorer
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.restorers.protocol import fixed
from ufr_edge.restorers.spandrel_loader import CodeFormerRestorer, SwinIRRestorer


def count(parameters: dict[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def test_statement_10_the_prior_s_network() -> None:
    """Statement 10: 159,788,454 parameters, 630 tensors, attention only where the image is 32, 16 or 8 px."""
    with torch.device("meta"):
        unet = ImprovedDiffusionUNet()
    assert count(dict(unet.named_parameters())) == 159_788_454
    assert len(unet.state_dict()) == 630
    assert PAPER_NETWORK.attention == (32, 16, 8)
    sides: set[int] = set()
    for module in unet.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(lambda _, args: sides.add(args[0].shape[-1]))
    with torch.no_grad():
        out = unet(torch.empty(1, 3, 512, 512, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta"))
    assert sides == {32, 16, 8}
    assert out.shape == (1, 6, 512, 512)


@pytest.mark.slow
def test_statement_10_strict_load_at_full_size(tmp_path: Path) -> None:
    """Statement 10: a file with the release's keys and shapes loads strictly, with `module.` before every key."""
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in ImprovedDiffusionUNet().state_dict().items()}
    torch.save({f"module.{key}": torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "iddpm.pth")
    prior = load_prior(tmp_path / "iddpm.pth")
    assert (prior.side, prior.learns_variance, len(prior.state_dict())) == (512, True, 630)


def test_statement_11_swinir(tmp_path: Path) -> None:
    """Statement 11: 15,792,587 parameters, 732 state tensors, strict load, output as large as the input."""
    network = swinir(depths=8, blocks=6, dim=180, heads=6, img=64)
    state = swinir_state(network)
    assert (count(dict(network.named_parameters())), len(state)) == (15_792_587, 732)
    assert state["conv_first.1.weight"].shape == (180, 192, 3, 3)
    torch.save(state, tmp_path / "swinir_gan_v1.pth")
    loaded = load_any_restorer(tmp_path / "swinir_gan_v1.pth")
    assert (loaded.arch, loaded.side) == ("swinir", 512)
    assert isinstance(loaded.model, SwinIRRestorer)
    assert len(loaded.model.file_state()) == 732
    with torch.no_grad():
        assert loaded.model(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_statements_10_and_11_at_small_size(tmp_path: Path) -> None:
    """Statements 10 and 11: strict loading and size in = size out, on tiny networks of the same kinds."""
    torch.manual_seed(0)
    shape = ImprovedDiffusionConfig(
        side=512, channels=32, multipliers=(1, 2), blocks=(1, 1), attention=(256,), head_channels=64
    )
    files: dict[str, tuple[dict[str, torch.Tensor], Callable[[Path], object]]] = {
        "iddpm.pth": (ImprovedDiffusionUNet(shape).state_dict(), load_prior),
        "swinir.pth": (swinir_state(swinir()), load_any_restorer),
    }
    for name, (state, load) in files.items():
        path = tmp_path / name
        torch.save({f"module.{key}": tensor for key, tensor in state.items()}, path)
        load(path)
        torch.save(dict(list(state.items())[:-1]), path)
        with pytest.raises(ModelFileError):
            load(path)
    torch.save(swinir_state(swinir()), tmp_path / "swinir.pth")
    model = load_any_restorer(tmp_path / "swinir.pth").model
    for side in (64, 128):
        with torch.no_grad():
            assert model(torch.rand(1, 3, side, side)).shape == (1, 3, side, side)


@pytest.mark.slow
def test_statement_11_swinir_at_512() -> None:
    """Statement 11: 512 in, 512 out."""
    with torch.no_grad():
        out = swinir(depths=8, blocks=6, dim=180, heads=6, img=64)(torch.rand(1, 3, 512, 512))
    assert out.shape == (1, 3, 512, 512)


def test_statement_12_stochastic_depth(tmp_path: Path) -> None:
    """Statement 12: drop path up to 0.1, linear over the blocks; on in train mode, off at test."""
    torch.save(swinir_state(swinir(depths=2)), tmp_path / "x.pth")
    model = load_any_restorer(tmp_path / "x.pth").model
    rates = [float(m.drop_prob) for m in model.modules() if type(m).__name__ == "DropPath"]  # type: ignore[arg-type]
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])  # the first of the four blocks has none
    image = torch.rand(1, 3, 64, 64)
    torch.manual_seed(0)
    with torch.no_grad():
        kept = [model.eval()(image) for _ in range(8)]
        dropped = [model.train()(image) for _ in range(40)]
    assert all(torch.equal(kept[0], out) for out in kept)
    assert any(not torch.equal(kept[0], out) for out in dropped)


def test_statement_14_discriminator() -> None:
    """Statement 14: 4,376,897 parameters, a logit per pixel, spectral norm on the 8 inner convolutions, fresh."""
    one, two = UNetDiscriminatorSN(), UNetDiscriminatorSN()
    assert count(dict(one.named_parameters())) == 4_376_897
    convolutions = [module for module in one.modules() if isinstance(module, nn.Conv2d)]
    assert [parametrize.is_parametrized(module) for module in convolutions].count(True) == 8
    assert len(convolutions) == 10
    assert not torch.equal(one.first.weight, two.first.weight)
    with torch.device("meta"):
        whole = UNetDiscriminatorSN()
    assert whole(torch.empty(1, 3, 512, 512, device="meta")).shape == (1, 1, 512, 512)


def test_statement_15_trained_part_of_codeformer() -> None:
    """Statement 15: 49,129,024 trained of 94,112,707 parameters, by part as section 7 lists them."""
    with torch.device("meta"):
        network = codeformer()
    trained = freeze_rest(network)
    assert count(trained) == 49_129_024
    assert count({k: p for k, p in network.named_parameters() if p.requires_grad}) == 49_129_024
    parts = {
        "encoder.": 29_416_000,
        "feat_emb.": 131_584,
        "ft_layers.": 18_925_056,
        "idx_pred_layer.": 525_312,
        "position_emb": 131_072,
    }
    for prefix, size in parts.items():
        assert count({k: p for k, p in trained.items() if k.startswith(prefix)}) == size
    frozen = {k: p for k, p in network.named_parameters() if not p.requires_grad}
    assert count(frozen) == 44_983_683
    assert {key.split(".")[0] for key in frozen} == {"quantize", "generator", "fuse_convs_dict"}


def test_statement_15_loss_on_256_tokens() -> None:
    """Statement 15: MSE to the codebook entries + 0.5 CE, labels from the frozen pre-trained copy alone."""
    torch.manual_seed(0)
    teacher = TinyCodeFormer()
    network = copy.deepcopy(teacher)
    with torch.no_grad():
        network.feat_emb.weight.add_(0.1)
    image, target = torch.rand(2, 2, 3, 512, 512)
    with torch.no_grad():
        loss, parts = code_loss(network, teacher, image, target)
    network.requires_grad_(False)
    teacher.requires_grad_(False)
    goal = teacher.encoder(2 * target - 1)
    codebook = teacher.get_parameter("quantize.embedding.weight")
    distances = (goal.flatten(2).transpose(1, 2)[:, :, None] - codebook).square().sum(-1)
    labels = distances.argmin(-1)
    assert labels.shape == (2, 256)
    assert torch.equal(nearest_codes(teacher, encode(teacher, target)), labels)
    features = network.encoder(2 * image - 1)
    entries = codebook[labels].transpose(1, 2).reshape(features.shape)
    assert torch.equal(codebook_features(network, labels, features), entries)
    logits = predict_codes(network, features)
    assert logits.shape == (2, 256, 12)
    entropy = F.cross_entropy(logits.reshape(-1, 12), labels.flatten())
    expected = F.mse_loss(features, entries) + 0.5 * entropy
    torch.testing.assert_close(loss, expected)
    assert parts == pytest.approx({"features": float(F.mse_loss(features, entries)), "codes": float(entropy)}, rel=1e-5)


def test_statement_15_the_rest_stays_bit_identical() -> None:
    """Statement 15: codebook, generator, CFT and the label-giving copy are as before after training."""
    torch.manual_seed(0)
    teacher = TinyCodeFormer().requires_grad_(False)
    network = copy.deepcopy(teacher)
    trained = freeze_rest(network)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2, betas=(0.9, 0.99))
    losses = []
    image, target = torch.rand(2, 1, 3, 512, 512)
    for _ in range(3):
        loss, _ = code_loss(network, teacher, image, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    after = network.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} == set(trained)
    assert trained.keys() == trained_parameters(network).keys()
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.state_dict().items())
    assert losses[-1] < losses[0]


def test_statement_15_w_is_a_half_at_test() -> None:
    """Statement 15: w = 0.5 (AdaIN is on in the architecture used; see test_checkpoints.py for the whole network)."""
    assert CodeFormerRestorer.w == 0.5


def test_statement_15_adain_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statement 15: the codebook's features get the statistics of the encoder's in the pass that we make."""
    with torch.device("meta"):
        network = codeformer().eval()
    module, seen = sys.modules[type(network).__module__], list[torch.Size]()

    def watched(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        seen.extend((content.shape, style.shape))
        return content

    monkeypatch.setattr(module, "adaptive_instance_normalization", watched)
    model = CodeFormerRestorer(network, side=512, input_spec=fixed(512))
    with torch.no_grad():
        out = model(torch.empty(1, 3, 512, 512, device="meta"))
    assert out.shape == (1, 3, 512, 512)
    assert seen == [(1, 256, 16, 16)] * 2


def test_statement_15_w_reaches_the_network() -> None:
    """Statement 15: w = 0.5 is what one pass asks of the network."""
    asked: list[float] = []

    class Asked(TinyCodeFormer):
        def forward(self, image: torch.Tensor, weight: float = 0.0) -> tuple[torch.Tensor]:
            asked.append(weight)
            return (image,)

    image = torch.rand(1, 3, 512, 512)
    model = CodeFormerRestorer(Asked(), side=512, input_spec=fixed(512))
    with torch.no_grad():
        torch.testing.assert_close(model(image), image)
    assert asked == [0.5]


@pytest.mark.slow
def test_statement_15_codes_of_the_whole_network() -> None:
    """Statement 15: our way to the logits is the network's own."""
    torch.manual_seed(0)
    network = codeformer().eval()
    image = torch.rand(1, 3, 512, 512)
    with torch.no_grad():
        features = encode(network, image)
        logits = predict_codes(network, features)
        own = network(2 * image - 1, weight=0)[1]
    assert (features.shape, logits.shape) == ((1, 256, 16, 16), (1, 256, 1024))
    torch.testing.assert_close(logits, own)


def test_statement_19_one_forward_pass_each() -> None:
    """Statement 19: restoring faces calls the restorer once for each, and nothing else."""
    model, seen = build_restorer("edge-s"), list[int]()
    model.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    restore_batch(model, make_faces(5), torch.device("cpu"), batch=2)
    assert seen == [2, 2, 1]


def test_statement_19_no_diffusion_is_loaded(tmp_path: Path) -> None:
    """Statement 19: loading a restorer and restoring with it imports no prior and no diffusers."""
    path = save_small_restorer(tmp_path / "small.safetensors")
    code = (
        "import sys, torch\n"
        "from ufr_edge.restorers.loading import load_any_restorer\n"
        f"out = load_any_restorer({path!r}).model(torch.rand(1, 3, 64, 64))\n"
        "print(out.shape[-1], *sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert shown[0] == "64"
    assert not [name for name in shown if name.startswith(("diffusers", "ufr_edge.priors"))]


@pytest.mark.parametrize("matched", [False, True])
def test_statement_20_figures_say_what_they_are(tmp_path: Path, matched: bool) -> None:
    """Statement 20: PSNR and SSIM say whether mean and deviation were matched; counts and reference stand beside."""
    faces = make_faces(4)
    dimmed = np.asarray(faces * 0.8, dtype=np.uint8)
    config = EvalConfig(
        faces=write_faces(tmp_path / "lq", dimmed),
        truth=write_faces(tmp_path / "clean", faces),
        side=64,
        landmarks=False,
        quality=QualitySettings(match_mean_std=matched),
    )
    report = evaluate(config, show=False)
    settings = report.to_json()["settings"]
    assert settings["psnr_ssim"]["match_mean_std"] is matched
    assert (settings["faces"], settings["truth"]) == (4, str(tmp_path / "clean"))
    psnr_db = report.figures["given"]["input"]["psnr_db"]
    assert psnr_db > 35 if matched else psnr_db < 30
