"""SwinIR, GFPGAN, RestoreFormer and CodeFormer as engines: random weights, the smallest networks of each design."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from spandrel_nets import architecture, codeformer, swinir, swinir_state
from torch import nn

from ufr_edge.calibration.compare import compare_frames, pattern_frames, run_batches
from ufr_edge.export.half import find_kept, write_half
from ufr_edge.export.onnx_check import check_border
from ufr_edge.export.onnx_export import OPSET, export_onnx, restore_frames
from ufr_edge.export.openvino_export import export_openvino
from ufr_edge.export.tensorrt_export import TensorRtConfig, export_tensorrt
from ufr_edge.restorers.gfpgan import ModulatedConv, use_constant_weights
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.restorers.protocol import fixed
from ufr_edge.restorers.spandrel_loader import GFPGANRestorer, SpandrelRestorer
from ufr_edge.runtime.engines import open_engine_file


def tiny_gfpgan() -> nn.Module:
    """GFPGAN at 64 px with few channels, as its package makes it."""
    torch.manual_seed(0)
    network: nn.Module = architecture("GFPGAN")(out_size=64, num_style_feat=16, narrow=1 / 32, num_mlp=1)
    for module in network.modules():
        if type(module).__name__ == "StyleConv":
            nn.init.normal_(module.weight)  # type: ignore[arg-type]  # the strength of the noise, zero at first
    return network.eval()


def load(name: str, folder: Path) -> SpandrelRestorer:
    """A network by name, through its checkpoint where the loader takes small ones."""
    torch.manual_seed(0)
    if name == "gfpgan":
        network = tiny_gfpgan()
        use_constant_weights(network)
        return GFPGANRestorer(network, side=64, input_spec=fixed(64)).eval()
    if name == "swinir":
        state = swinir_state(swinir())
    elif name == "restoreformer":
        options = {"n_embed": 16, "embed_dim": 32, "ch": 32, "z_channels": 32, "num_res_blocks": 1}
        state = architecture("RestoreFormer")(ch_mult=(1, 1), attn_resolutions=(), **options).state_dict()
    else:
        state = codeformer().state_dict()
    torch.save({"params_ema": state}, folder / f"{name}.pth")
    model = load_any_restorer(folder / f"{name}.pth", accept_licence=True).model
    assert isinstance(model, SpandrelRestorer)
    return model


def test_modulating_features_is_modulating_weights() -> None:
    network = tiny_gfpgan()
    twin = copy.deepcopy(network)
    use_constant_weights(twin)
    assert any(isinstance(module, ModulatedConv) for module in twin.modules())
    assert not any(type(module).__name__ == "ModulatedConv2d" for module in twin.modules())
    before, after = network.state_dict(), twin.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    image = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        want = network(2 * image - 1, return_rgb=False, randomize_noise=False)[0]
        got = twin(2 * image - 1, return_rgb=False, randomize_noise=False)[0]
    assert want.std() > 0.01
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_gfpgan_takes_channels_last_faces() -> None:
    network = tiny_gfpgan()
    use_constant_weights(network)
    model = GFPGANRestorer(network, side=64, input_spec=fixed(64)).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        want = model(image)
        torch.testing.assert_close(model(image.to(memory_format=torch.channels_last)), want)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side"), [("swinir", 128), ("gfpgan", 64), ("restoreformer", 32), ("codeformer", 512)]
)
def test_every_network_becomes_engines(
    name: str, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch -> ONNX -> fp16 with its islands -> OpenVINO IR and a TensorRT for RTX engine."""
    monkeypatch.setenv("UFR_CACHE", str(tmp_path / "cache"))
    model = load(name, tmp_path)
    faces = pattern_frames(1 if side == 512 else 3, side)
    report = export_onnx(model, tmp_path / "model.onnx", side=side, faces=faces)
    assert report.parity.max_abs <= 1
    assert report.opset == OPSET
    want = restore_frames(model, faces)
    if side < 512:  # any batch
        with open_engine_file(tmp_path / "model.onnx") as engine:
            assert compare_frames(engine.infer(faces), want).max_abs <= 1
    kept = find_kept(tmp_path / "model.onnx", faces[:1])
    assert not kept.overflow_words
    assert any("Arg" in word or "TopK" in word for word in kept.words) == (
        name in ("restoreformer", "codeformer")
    )
    write_half(tmp_path / "model.onnx", tmp_path / "half.onnx", kept)
    half = onnx.load(tmp_path / "half.onnx")
    check_border(half)
    weights = [
        onnx.numpy_helper.to_array(value).dtype
        for value in half.graph.initializer
        if np.prod(value.dims) > 64
    ]
    assert weights.count(np.dtype(np.float16)) > 0.8 * sum(kind.kind == "f" for kind in weights)
    with open_engine_file(tmp_path / "half.onnx") as engine:
        # Random weights choose among CodeFormer's codes by a hair: rounding them takes others here and there.
        assert compare_frames(run_batches(engine, faces), want).psnr_db > (20 if name == "codeformer" else 45)
    _openvino(tmp_path, faces, want)
    _tensorrt(tmp_path, side)


def _openvino(folder: Path, faces: NDArray[np.uint8], want: NDArray[np.uint8]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    export_openvino(folder / "model.onnx", folder / "ov.xml", precision="fp32")
    with open_engine_file(folder / "ov.xml", backend="openvino", precision="fp32") as engine:
        assert compare_frames(run_batches(engine, faces), want).max_abs <= 2


def _tensorrt(folder: Path, side: int) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    target = folder / "half.engine"
    export_tensorrt(folder / "half.onnx", target, backend="tensorrt-rtx", config=TensorRtConfig(side=side))
    assert target.stat().st_size > 100_000
