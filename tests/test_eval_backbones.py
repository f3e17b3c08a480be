"""LPIPS and FID: the networks against their references, their files found, checked, and never stood in for."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ufr_edge.downloads import RemoteFile
from ufr_edge.errors import BackendUnavailableError, ConfigError, InputFileError, ModelFileError, ShapeError
from ufr_edge.files import sha256_file
from ufr_edge.metrics.backbones import Head, find_backbone, find_head
from ufr_edge.metrics.fid_inception import INCEPTION, FidInception, load_inception
from ufr_edge.metrics.lpips_net import NETS, Lpips, LpipsNet, load_lpips

SMALL_LAYERS = ((4, 3, 1, 1), None, (6, 3, 1, 1))


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("UFR_OFFLINE", "1")
    return tmp_path / "hub" / "checkpoints"


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that keep the signal alive."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 100
        parameter.data = torch.randn(parameter.shape, generator=generator) * (2 / fan) ** 0.5
    return module


def small_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LpipsNet:
    """A tiny LPIPS whose backbone and package are made here, with the keys of the published files."""
    package = tmp_path / "site" / "tiny_lpips"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("import torchvision_that_is_not_there\n")
    heads = {f"lin{i}.model.1.weight": torch.full((1, c, 1, 1), 0.5) for i, c in enumerate((4, 6))}
    torch.save(heads, package / "weights" / "tiny.pth")
    generator = torch.Generator().manual_seed(2)
    shapes = {"features.0": (4, 3, 3, 3), "features.3": (6, 4, 3, 3)}
    state = {f"{k}.weight": torch.randn(shape, generator=generator) for k, shape in shapes.items()}
    state |= {f"{k}.bias": torch.zeros(shape[0]) for k, shape in shapes.items()}
    torch.save({**state, "classifier.1.weight": torch.zeros(3, 3)}, tmp_path / "tiny-backbone.pth")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    digests = [sha256_file(p) for p in (tmp_path / "tiny-backbone.pth", package / "weights" / "tiny.pth")]
    file = RemoteFile(url="http://localhost:9/tiny.pth", name="tiny.pth", sha256=digests[0])
    return LpipsNet(
        layers=SMALL_LAYERS,
        pool=(2, 2),
        taps=(0, 1),
        backbone=dataclasses.replace(NETS["alex"].backbone, file=file),
        head=Head(package="tiny_lpips", inside="weights/tiny.pth", sha256=digests[1]),
    )


def test_lpips_loads_from_checked_files_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small_net(tmp_path, monkeypatch)
    model = load_lpips("tiny", path=tmp_path / "tiny-backbone.pth", nets=MappingProxyType({"tiny": net}))
    a, b = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    assert model(a, a).tolist() == [0, 0]
    assert (model(a, b) > 0).all() and model(a, b).shape == (2,)
    assert "tiny_lpips" not in sys.modules
    with pytest.raises(ShapeError, match="one shape"):
        model(a, b[:1])


def test_lpips_is_found_in_the_hub_cache_and_damage_is_named(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = {"tiny": small_net(tmp_path, monkeypatch)}
    with pytest.raises(BackendUnavailableError, match=r"tiny\.pth is not in .*--download.*--lpips-backbone"):
        load_lpips("tiny", nets=nets)
    with pytest.raises(BackendUnavailableError, match="network is switched off"):
        load_lpips("tiny", download=True, nets=nets)
    hub.mkdir(parents=True)
    whole = (tmp_path / "tiny-backbone.pth").read_bytes()
    (hub / "tiny.pth").write_bytes(whole)
    assert isinstance(load_lpips("tiny", nets=nets), Lpips)
    (hub / "tiny.pth").write_bytes(whole[:-10])
    with pytest.raises(ModelFileError, match="damaged or another file"):
        load_lpips("tiny", nets=nets)
    with pytest.raises(InputFileError, match="--lpips-backbone"):
        load_lpips("tiny", path=tmp_path / "missing.pth", nets=nets)
    with pytest.raises(ConfigError, match="alex, vgg"):
        load_lpips("squeeze")


def test_a_refused_download_is_a_reason_not_a_crash(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UFR_OFFLINE")
    file = RemoteFile(url="http://127.0.0.1:9/x.pth", name="x.pth", sha256="0" * 64)  # discard port: refused
    with pytest.raises(BackendUnavailableError, match="give --fid-backbone FILE"):
        find_backbone(dataclasses.replace(INCEPTION, file=file), download=True)
    assert not (hub / "x.pth").exists()


def test_heads_of_other_releases_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net(tmp_path, monkeypatch)
    with pytest.raises(ModelFileError, match="force-reinstall"):
        find_head(dataclasses.replace(net.head, sha256="0" * 64))
    with pytest.raises(BackendUnavailableError, match="pip install --no-deps no_such_package"):
        find_head(dataclasses.replace(net.head, package="no_such_package"))


def torchvision_features(name: str) -> nn.Sequential:
    """The published layer lists of torchvision's AlexNet and VGG-16 (Krizhevsky 2014; Simonyan 2015)."""
    pools: dict[str, Callable[[], nn.Module]] = {
        "alex": lambda: nn.MaxPool2d(3, 2),
        "vgg": lambda: nn.MaxPool2d(2, 2),
    }
    pool = pools[name]
    if name == "alex":
        return nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), pool()),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), pool()),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), pool()),
        )
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(pool())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_lpips_agrees_with_its_authors_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("tqdm")
    try:
        head_file = find_head(NETS[name].head)
    except BackendUnavailableError as exc:
        pytest.skip(str(exc))
    features = filled(torchvision_features(name))
    made = SimpleNamespace(features=features)
    torchvision: Any = ModuleType("torchvision")
    torchvision.models = SimpleNamespace(alexnet=lambda **_: made, vgg16=lambda **_: made)
    for module in [m for m in sys.modules if m.split(".")[0] == "lpips"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    theirs = importlib.import_module("lpips").LPIPS(net=name, verbose=False, model_path=str(head_file))
    ours = Lpips(NETS[name])
    published = {k: v for k, v in features.state_dict().items() if k in ours.features.state_dict()}
    ours.features.load_state_dict(published)
    heads = torch.load(head_file, weights_only=True, map_location="cpu")
    ours.lins.load_state_dict({f"{i}.weight": heads[f"lin{i}.model.1.weight"] for i in range(5)})
    a, b = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    with torch.no_grad():
        expected = theirs(a, b, normalize=True).flatten()
    assert (expected > 1e-3).all()
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-4, atol=1e-6)
    for module in [m for m in sys.modules if m.split(".")[0] == "lpips"]:
        monkeypatch.delitem(sys.modules, module, raising=False)


def test_inception_has_the_published_layout(tmp_path: Path, hub: Path) -> None:
    model = FidInception()
    assert sum(p.numel() for p in model.parameters()) == 21_785_568  # Inception v3 without its classifier
    state = model.state_dict()
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert state["Mixed_6e.branch7x7dbl_5.conv.weight"].shape == (192, 192, 1, 7)
    published = {k: v for k, v in filled(model).state_dict().items() if "num_batches" not in k}
    published |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    hub.mkdir(parents=True)
    torch.save(published, hub / INCEPTION.aliases[0])
    digest = sha256_file(hub / INCEPTION.aliases[0])
    backbone = dataclasses.replace(INCEPTION, file=dataclasses.replace(INCEPTION.file, sha256=digest))
    loaded = load_inception(backbone=backbone)
    faces = torch.rand(1, 3, 64, 64)
    assert loaded(faces).shape == (1, 2048)
    torch.testing.assert_close(loaded(faces), model(faces))
    with pytest.raises(ModelFileError, match="damaged or another file"):
        load_inception()  # the published checksum
    with pytest.raises(ShapeError):
        loaded(faces[:, :1])


def test_other_tensors_under_the_right_checksum_do_not_load(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for state in ({"a": torch.zeros(1)}, {"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, [1]):
        torch.save(state, path)
        file = dataclasses.replace(INCEPTION.file, sha256=sha256_file(path))
        with pytest.raises(ModelFileError):
            load_inception(path=path, backbone=dataclasses.replace(INCEPTION, file=file))
    path.write_bytes(b"no tensors")
    file = dataclasses.replace(INCEPTION.file, sha256=sha256_file(path))
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_inception(path=path, backbone=dataclasses.replace(INCEPTION, file=file))
