"""Where the licences that a bundle's manifest states come from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from ufr_edge.export.bundle_export import _restorer_info
from ufr_edge.restorers import registry
from ufr_edge.restorers.files import load_restorer, shipped_files
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.restorers.registry import KNOWN_MODELS, recognise
from ufr_edge.weights import find_weights


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.parent.name)
def test_a_bundle_of_shipped_weights_states_the_licence_of_their_card(path: Path) -> None:
    card = find_weights(path.parent.name).card
    for source in (path.parent.name, path):
        loaded = load_any_restorer(source)
        info = _restorer_info(loaded, loaded.side)
        assert info.weights_licence == card["weights_licence"] != "unknown"
        assert info.code_licence == card["code_licence"]


def test_weights_without_a_card_state_none(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(shipped_files()[0].read_bytes())
    assert "weights_licence" not in load_restorer(path).meta


def test_known_checkpoints_are_recognised_by_file_or_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UFR_CACHE", str(tmp_path / "cache"))
    gfpgan, content = KNOWN_MODELS["gfpgan-1.4"], b"weights"
    file = replace(gfpgan.files[0], size=len(content), sha256=hashlib.sha256(content).hexdigest())
    known = {"gfpgan-1.4": replace(gfpgan, files=(file,)), "swinir-face-gan": KNOWN_MODELS["swinir-face-gan"]}
    monkeypatch.setattr(registry, "KNOWN_MODELS", MappingProxyType(known))
    copy, other = tmp_path / "renamed.pth", tmp_path / "other.pth"
    copy.write_bytes(content)
    other.write_bytes(b"Weights")
    found = recognise(copy)
    assert found is not None
    assert found.name == "gfpgan-1.4"
    assert recognise(other) is None
    assert recognise(tmp_path) is None
    swinir = known["swinir-face-gan"]
    swinir.folder.mkdir(parents=True)
    swinir.path.write_bytes(b"anything")
    assert recognise(swinir.path) == swinir
