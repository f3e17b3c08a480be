"""The edge family and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ufr_edge.errors import ConfigError, InputFileError, ModelFileError, ShapeError
from ufr_edge.restorers.edge import EDGE_FAMILY, build_restorer, count_macs
from ufr_edge.restorers.files import load_restorer, save_restorer

GMACS = {"edge-s": (2.0, 4.0), "edge-m": (8.0, 12.0), "edge-l": (16.0, 20.0)}


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


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(tmp_path: Path, half: bool) -> None:
    model = build_restorer("edge-s")
    save_restorer(model, tmp_path / "weights.safetensors", arch="edge-s", side=128, meta={"note": "x"}, half=half)
    loaded = load_restorer(tmp_path)  # a run folder
    assert (loaded.arch, loaded.side, loaded.meta["note"]) == ("edge-s", 128, "x")
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.model(image), model(image), atol=2e-3, rtol=0)


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


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_restorer(build_restorer("edge-s"), path, arch="edge-s", side=256)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="damaged"):
        load_restorer(path)
