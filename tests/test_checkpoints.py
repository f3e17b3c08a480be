"""Checkpoints of others: read as tensors only, whatever wraps them; loaded strictly; a wrong file says what it is."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from spandrel_nets import architecture, codeformer, swinir, swinir_state
from torch import nn

from ufr_edge.adaptation.training import load_checkpoint
from ufr_edge.errors import ConfigError, InputFileError, ModelFileError, ShapeError
from ufr_edge.export.onnx_export import export_onnx
from ufr_edge.restorers.checkpoints import describe, read_state_dict
from ufr_edge.restorers.edge import build_restorer
from ufr_edge.restorers.files import LoadedRestorer, save_restorer
from ufr_edge.restorers.loading import LoadedCheckpoint, find_restorer, load_any_restorer, save_any_restorer
from ufr_edge.restorers.protocol import Restorer
from ufr_edge.restorers.spandrel_loader import CodeFormerRestorer, SwinIRRestorer

TENSORS = {"a.weight": torch.arange(4.0), "a.index": torch.arange(3)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UFR_CACHE", str(tmp_path / "cache"))


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"params": TENSORS},
        {"params": {"a.weight": torch.zeros(4), "a.index": torch.zeros(3)}, "params_ema": TENSORS},
        {"state_dict": TENSORS, "iters_start": 5, "log_step": {"train": 1}},
        {f"module.{k}": v for k, v in TENSORS.items()},
        {"state_dict": {f"module.{k}": v for k, v in TENSORS.items()}},
        {"params_ema": {k: v.half() if v.is_floating_point() else v for k, v in TENSORS.items()}},
    ],
    ids=["bare", "params", "params_ema first", "state_dict", "module", "state_dict module", "half"],
)
def test_every_layout_is_read(tmp_path: Path, content: object) -> None:
    state = read_state_dict(saved(tmp_path / "x.pth", content))
    assert {k: v.tolist() for k, v in state.items()} == {k: v.tolist() for k, v in TENSORS.items()}
    assert (state["a.weight"].dtype, state["a.index"].dtype) == (torch.float32, torch.int64)


def test_a_prefix_of_some_keys_stays(tmp_path: Path) -> None:
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert set(read_state_dict(saved(tmp_path / "x.pth", mixed))) == {"module.a", "b"}


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file({f"module.{k}": v for k, v in TENSORS.items()}, tmp_path / "x.safetensors")
    assert set(read_state_dict(tmp_path / "x.safetensors")) == set(TENSORS)


class Evil:
    """What unpickling must never run."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="only tensors are"):
        read_state_dict(saved(tmp_path / "x.pth", {"params": TENSORS, "extra": Evil()}))
    assert not (tmp_path / "ran").exists()


def test_bad_files_are_named(tmp_path: Path) -> None:
    page = tmp_path / "page.pth"
    page.write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(ModelFileError, match=r"page\.pth.*web page"):
        read_state_dict(page)
    whole = saved(tmp_path / "cut.pth", TENSORS)
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(ModelFileError, match=r"cut\.pth is damaged"):
        read_state_dict(whole)
    for name in ("empty.pth", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ModelFileError, match="damaged"):
            read_state_dict(tmp_path / name)
    with pytest.raises(InputFileError, match="does not exist"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(ModelFileError, match=r"no tensors.*it holds: epoch, optimizer"):
        read_state_dict(saved(tmp_path / "x.pth", {"epoch": 1, "optimizer": {"lr": 1.0}}))


def test_what_torch_says_of_a_bad_file_is_never_passed_on(tmp_path: Path) -> None:
    """Its advice for a hostile file is to unpickle it."""
    whole = saved(tmp_path / "whole.pth", TENSORS).read_bytes()
    evil = saved(tmp_path / "evil.pth", {"p": Evil()}).read_bytes()
    random = np.random.default_rng(0).bytes(5000)
    cases = {
        "calls [a-z]+.mkdir.*do not trust": evil,
        "was cut short": whole[:-300],
        "neither an archive": random,
        "bytes are neither": bytes(5000),
    }
    for words, content in cases.items():
        for name in ("net.pth", "checkpoint.pt"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ModelFileError, match=words) as caught:
                load_checkpoint(tmp_path / name, kind="restorer") if name.endswith(".pt") else read_state_dict(tmp_path / name)
            assert "weights_only" not in str(caught.value) and "Error" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        (["body.0.rdb1.conv1.weight"], "ESRGAN"),
        (["quantize.embedding.weight", "encoder.blocks.0.weight"], "VQGAN"),
        (["conv_in.weight", "time_embedding.linear_1.weight"], "diffusers UNet"),
        (["mean", "cov"], "Fréchet"),
        (["x"], r"unknown network of 1 tensors \(x of shape \(2,\) first\)"),
    ],
)
def test_a_wrong_file_says_what_it_is_and_what_was_expected(tmp_path: Path, keys: list[str], label: str) -> None:
    path = saved(tmp_path / "x.pth", {key: torch.zeros(2) for key in keys})
    with pytest.raises(ModelFileError, match=f"{label}.*expected a face restorer: SwinIR.*edge restorer of ours"):
        load_any_restorer(path)


def test_our_networks_are_told_apart() -> None:
    assert describe(build_restorer("edge-s").state_dict()) == "an edge restorer of ours"


def test_names_and_paths(tmp_path: Path) -> None:
    loaded = load_any_restorer("edge-m-256")
    assert isinstance(loaded, LoadedRestorer)
    assert isinstance(loaded.model, Restorer)
    save_restorer(build_restorer("edge-s"), tmp_path / "weights.safetensors", arch="edge-s", side=64)
    assert load_any_restorer(tmp_path).arch == "edge-s"
    with pytest.raises(InputFileError, match="ufr-edge models fetch gfpgan-1.4"):
        find_restorer("gfpgan-1.4")
    with pytest.raises(InputFileError, match=r"shipped: .*edge-m-256.*models fetch NAME`: swinir-face-gan"):
        find_restorer("gfpgan")


def load_tiny_swinir(tmp_path: Path) -> tuple[nn.Module, LoadedCheckpoint]:
    network = swinir()
    loaded = load_any_restorer(saved(tmp_path / "swinir.pth", {"params": swinir_state(network)}))
    assert isinstance(loaded, LoadedCheckpoint)
    return network, loaded


def test_swinir_with_the_unshuffle_head(tmp_path: Path) -> None:
    network, loaded = load_tiny_swinir(tmp_path)
    assert isinstance(loaded.model, SwinIRRestorer)
    assert isinstance(loaded.model, Restorer)
    assert (loaded.arch, loaded.side, loaded.model.training) == ("swinir", 128, False)
    assert "spandrel" in loaded.licence
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(loaded.model(image), network(image))
        assert loaded.model(torch.rand(2, 3, 64, 192)).shape == (2, 3, 64, 192)
    with pytest.raises(ShapeError, match="multiples of 64"):
        loaded.model(torch.rand(1, 3, 96, 96))
    with pytest.raises(ShapeError, match="RGB"):
        loaded.model(torch.rand(1, 1, 64, 64))


def test_saved_weights_are_read_again_by_us_and_under_the_release_keys(tmp_path: Path) -> None:
    network, loaded = load_tiny_swinir(tmp_path)
    path = tmp_path / "run" / "weights.safetensors"
    save_any_restorer(loaded.model, path, arch=loaded.arch, side=loaded.side, meta={"pairs": "10"})
    assert set(read_state_dict(path)) == set(swinir_state(network))
    again = load_any_restorer(tmp_path / "run")
    assert (again.arch, again.side, again.meta["pairs"]) == ("swinir", 128, "10")
    assert torch.equal(again.model(torch.ones(1, 3, 64, 64)), network(torch.ones(1, 3, 64, 64)))
    next(iter(loaded.model.parameters())).data.fill_(torch.nan)
    with pytest.raises(ModelFileError, match="not finite"):
        save_any_restorer(loaded.model, path, arch="swinir", side=128)


def test_swinir_is_loaded_strictly(tmp_path: Path) -> None:
    state = swinir_state(swinir())
    with pytest.raises(ModelFileError, match="looks like SwinIR but its tensors do not fit.*extra"):
        load_any_restorer(saved(tmp_path / "x.pth", {**state, "extra.weight": torch.zeros(1)}))
    del state["conv_last.bias"]
    with pytest.raises(ModelFileError, match=r"do not fit.*conv_last\.bias"):
        load_any_restorer(saved(tmp_path / "x.pth", state))


def test_super_resolution_is_refused(tmp_path: Path) -> None:
    network = architecture("SwinIR")(
        img_size=16, embed_dim=16, depths=[2], num_heads=[2], window_size=8, upscale=2, upsampler="pixelshuffle"
    )
    with pytest.raises(ModelFileError, match="SwinIR for 2x super-resolution"):
        load_any_restorer(saved(tmp_path / "x.pth", network.state_dict()))


def test_a_checkpoint_restorer_trains(tmp_path: Path) -> None:
    _, loaded = load_tiny_swinir(tmp_path)
    out = loaded.model.train()(torch.rand(1, 3, 64, 64))
    out.mean().backward()
    grads = [p.grad for p in loaded.model.parameters() if p.requires_grad]
    assert all(grad is not None for grad in grads)


@pytest.mark.slow
def test_a_checkpoint_restorer_is_copied_and_exported(tmp_path: Path) -> None:
    """What fine-tuning (average of the weights, channels-last) and export ask of a network."""
    _, loaded = load_tiny_swinir(tmp_path)
    faces = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    twin = copy.deepcopy(loaded.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(twin(image), loaded.model(image), rtol=0, atol=1e-5)
    export: Any = export_onnx
    report = export(loaded.model, tmp_path / "model.onnx", side=64, faces=faces)
    assert report.parity.max_abs <= 1


def test_restoreformer_in_and_out_of_its_range(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = architecture("RestoreFormer")(
        n_embed=16, embed_dim=32, ch=32, ch_mult=(1, 1), z_channels=32, num_res_blocks=1
    ).eval()
    loaded = load_any_restorer(saved(tmp_path / "x.pth", {"params": network.state_dict()}))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(image), (network(2 * image - 1)[0] + 1) / 2)


def test_codeformer_asks_for_its_licence_before_anything_is_built(tmp_path: Path) -> None:
    keys = ["position_emb", "idx_pred_layer.1.weight", "quantize.embedding.weight"]
    path = saved(tmp_path / "x.pth", {"params_ema": {key: torch.zeros(2, 2) for key in keys}})
    with pytest.raises(ConfigError, match="S-Lab License.*ufr-edge models accept codeformer"):
        load_any_restorer(path)


@pytest.mark.slow
def test_codeformer_whole(tmp_path: Path) -> None:
    """The released size: 515 tensors; one face through it at w = 0.5."""
    torch.manual_seed(0)
    network = codeformer().eval()
    assert len(network.state_dict()) == 515
    path = saved(tmp_path / "codeformer.pth", {"params_ema": network.state_dict()})
    loaded = load_any_restorer(path, accept_licence=True)
    assert isinstance(loaded.model, CodeFormerRestorer)
    image = torch.rand(1, 3, 512, 512)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(image), (network(2 * image - 1, weight=0.5)[0] + 1) / 2)
    with pytest.raises(ShapeError, match="512x512 faces only"):
        loaded.model(torch.rand(1, 3, 256, 256))


@pytest.mark.slow
def test_gfpgan_whole(tmp_path: Path) -> None:
    """The released size; the stored noise makes it deterministic."""
    torch.manual_seed(0)
    network = architecture("GFPGAN")().eval()
    loaded = load_any_restorer(saved(tmp_path / "x.pth", {"params_ema": network.state_dict()}))
    image = torch.rand(1, 3, 512, 512)
    with torch.no_grad():
        first, second = loaded.model(image), loaded.model(image)
    assert torch.equal(first, second)
    assert first.shape == image.shape
    with pytest.raises(ShapeError, match="512x512 faces only"):
        loaded.model(torch.rand(1, 3, 256, 256))
