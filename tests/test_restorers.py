"""The edge family and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import ufr_edge.demo
from ufr_edge.errors import ConfigError, InputFileError, ModelFileError, ShapeError
from ufr_edge.restorers.edge import EDGE_FAMILY, EdgeUNet, build_restorer, count_macs
from ufr_edge.restorers.files import WEIGHTS_NAME, Storage, load_restorer, save_restorer
from ufr_edge.runtime.images import read_image

DEMO_FACES = Path(ufr_edge.demo.__file__).parent / "faces"

GMACS = {"edge-s": (2.0, 4.0), "edge-m": (8.0, 12.0), "edge-l": (16.0, 20.0)}


def random_restorer(name: str) -> EdgeUNet:
    """Untrained, but not the identity."""
    torch.manual_seed(0)
    model = build_restorer(name)
    torch.nn.init.normal_(model.head.weight, std=0.01)
    return model


@pytest.mark.parametrize("name", EDGE_FAMILY)
def test_family_cost_at_512(name: str) -> None:
    low, high = GMACS[name]
    assert low < count_macs(build_restorer(name), 512) / 1e9 < high


@pytest.mark.parametrize("name", EDGE_FAMILY)
def test_fresh_restorer_is_the_identity(name: str) -> None:
    image = torch.rand(1, 3, 64, 96)
    assert torch.equal(build_restorer(name)(image), image)


def test_quantization_friendly_layers_only() -> None:
    kinds = {type(m) for m in build_restorer("edge-l").modules() if not list(m.children())}
    assert kinds == {nn.Conv2d}


def test_input_spec_is_true() -> None:
    model = build_restorer("edge-s")
    spec = model.input_spec
    assert model(torch.rand(1, 3, spec.minimum, spec.minimum + spec.multiple_of)).shape[-1] == 64
    for side in (spec.minimum - 1, spec.minimum + spec.multiple_of // 2):
        with pytest.raises(ShapeError, match="multiples of 32"):
            model(torch.rand(1, 3, side, side))


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="edge-xl"):
        build_restorer("edge-xl")


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_round_trip(tmp_path: Path, storage: Storage) -> None:
    model = random_restorer("edge-s")
    save_restorer(model, tmp_path / WEIGHTS_NAME, arch="edge-s", side=128, meta={"note": "x"}, storage=storage)
    loaded = load_restorer(tmp_path)  # a run folder
    assert (loaded.arch, loaded.side, loaded.meta["note"]) == ("edge-s", 128, "x")
    assert loaded.meta["storage"] == storage
    assert {v.dtype for v in loaded.model.state_dict().values()} == {torch.float32}
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.model(image), model(image), atol=2e-3, rtol=0)


def test_int8_storage_is_a_quarter_and_off_by_half_a_step_at_most(tmp_path: Path) -> None:
    model = random_restorer("edge-s")
    with torch.no_grad():
        model.stem.weight[0].zero_()  # a dead channel has no scale of its own
    sizes = {}
    for storage in ("fp32", "int8"):
        path = tmp_path / storage / WEIGHTS_NAME
        save_restorer(model, path, arch="edge-s", side=256, storage=storage)
        sizes[storage] = path.stat().st_size
    assert sizes["int8"] < 0.27 * sizes["fp32"]
    loaded = load_restorer(tmp_path / "int8").model.state_dict()
    for name, weight in model.state_dict().items():
        step = weight.abs().amax((1, 2, 3), keepdim=True) / 127 if weight.ndim == 4 else weight.abs() / 1024
        assert ((loaded[name] - weight).abs() <= 0.501 * step + 3e-8).all(), name  # fp16 is coarser below 6e-5


@pytest.mark.slow
def test_int8_storage_hardly_changes_what_a_shipped_restorer_does(tmp_path: Path) -> None:
    shipped = load_restorer("edge-m-256")
    save_restorer(shipped.model, tmp_path / WEIGHTS_NAME, arch=shipped.arch, side=256, storage="int8")
    face = read_image(next((DEMO_FACES / "camera").glob("*.jpg")))[:256, :256]
    image = torch.from_numpy(face.copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        error = (load_restorer(tmp_path).model(image) - shipped.model(image)) * 255
    assert error.square().mean().sqrt() < 0.5  # levels of 8 bit: less than the rounding to them, nearly


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = build_restorer("edge-s")
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ModelFileError, match="stem.weight is not finite"):
        save_restorer(model, tmp_path / WEIGHTS_NAME, arch="edge-s", side=256, storage="int8")
    assert not (tmp_path / WEIGHTS_NAME).exists()


def test_int8_weights_without_their_scales_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_NAME
    save_restorer(build_restorer("edge-s"), path, arch="edge-s", side=256, storage="int8")
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del tensors["stem.weight.scale"]
    save_file(tensors, path, metadata=header)
    with pytest.raises(ModelFileError, match="stem.weight is int8 without one scale per channel"):
        load_restorer(path)


def test_missing_file_names_the_shipped_models() -> None:
    with pytest.raises(InputFileError, match="no-such-thing is no restorer"):
        load_restorer("no-such-thing")


def test_checkpoint_of_another_network(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match="not a restorer of ours"):
        load_restorer(tmp_path / "other.safetensors")
    wrong = tmp_path / "wrong.safetensors"
    save_restorer(build_restorer("edge-m"), wrong, arch="edge-s", side=256)
    with pytest.raises(ModelFileError, match="do not fit"):
        load_restorer(wrong)


@pytest.mark.parametrize("storage", ["fp32", "int8"])
def test_truncated_file(tmp_path: Path, storage: Storage) -> None:
    path = tmp_path / "weights.safetensors"
    save_restorer(build_restorer("edge-s"), path, arch="edge-s", side=256, storage=storage)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="damaged"):
        load_restorer(path)
