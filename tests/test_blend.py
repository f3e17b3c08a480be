"""Mixing the weights of two restorers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ufr_edge.cli import main
from ufr_edge.errors import ConfigError
from ufr_edge.restorers.blend import blend_restorers
from ufr_edge.restorers.edge import build_restorer
from ufr_edge.restorers.files import load_restorer, save_restorer


def test_a_blend_lies_between() -> None:
    first, second = build_restorer("edge-s"), build_restorer("edge-s")
    before = [p.clone() for p in first.parameters()]
    blended = blend_restorers(first, second, 0.25)
    for own, a, b in zip(blended.parameters(), before, second.parameters(), strict=True):
        torch.testing.assert_close(own, 0.75 * a + 0.25 * b)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), before, strict=True))


def test_misfits_are_refused() -> None:
    small = build_restorer("edge-s")
    with pytest.raises(ConfigError, match="one architecture"):
        blend_restorers(small, build_restorer("edge-m"), 0.5)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        blend_restorers(small, small, 1.5)


def test_the_command_writes_a_restorer(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        save_restorer(build_restorer("edge-s"), file, arch="edge-s", side=256, meta={"steps": "3"})
    out = tmp_path / "c.safetensors"
    args = ["models", "blend", *map(str, files), "--share", "1", "-o", str(out)]
    assert CliRunner().invoke(main, args).exit_code == 0
    loaded, second = load_restorer(out), load_restorer(files[1])
    assert loaded.arch == "edge-s" and loaded.meta["blend"] == "1" and loaded.meta["steps"] == "3"
    assert all(torch.equal(p, q) for p, q in zip(loaded.model.parameters(), second.model.parameters(), strict=True))
    assert CliRunner().invoke(main, args).exit_code != 0
