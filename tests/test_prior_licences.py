"""`--accept-licence` of the commands that take a prior counts for the prior too, not for the restorer alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from click.testing import CliRunner, Result
from training_fakes import make_faces, save_small_prior, save_small_restorer, write_faces

from ufr_edge.cli import main
from ufr_edge.downloads import RemoteFile
from ufr_edge.priors import files
from ufr_edge.restorers import registry
from ufr_edge.restorers.registry import KNOWN_MODELS, accepted_licences

NAME = "faces-for-research"


@pytest.fixture(autouse=True)
def restricted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known prior that lies in the cache and forbids commercial use."""
    monkeypatch.setenv("UFR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UFR_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    parts = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json")
    remote = tuple(RemoteFile(url=f"http://localhost:9/{part}", name=part) for part in parts)
    given = KNOWN_MODELS["ddpm-celebahq-256"]
    model = replace(given, name=NAME, restricted=True, weights_licence="for research only", files=remote)
    for module in (registry, files):
        monkeypatch.setattr(module, "KNOWN_MODELS", MappingProxyType({NAME: model}))
    save_small_prior(model.folder)


def prior_report(tmp_path: Path) -> list[str]:
    few = ["--count", "3", "--fast-steps", "1", "--sample-steps", "1", "--precision", "fp32"]
    return ["prior-report", NAME, "--faces", str(tmp_path / "faces"), "-o", str(tmp_path / "report"), *few]


def eval_(tmp_path: Path) -> list[str]:
    restorer = save_small_restorer(tmp_path / "small.safetensors")
    what = ["--degrade", "classic-light", "--restorer", restorer, "--prior", NAME, "--no-landmarks"]
    return ["eval", "--truth", str(tmp_path / "faces"), *what]


@pytest.mark.parametrize("order", [prior_report, eval_], ids=["prior-report", "eval"])
def test_a_priors_licence_is_accepted_by_the_flag_and_told(tmp_path: Path, order: Callable[[Path], list[str]]) -> None:
    write_faces(tmp_path / "faces", make_faces(8))
    arguments = order(tmp_path)

    def run(*more: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--no-progress", *more])

    refused = run()
    assert refused.exit_code == 1 and "--accept-licence" in refused.stderr and "research" in refused.stderr
    assert accepted_licences() == {}
    taken = run("--accept-licence")
    assert taken.exit_code == 0, taken.output
    assert f"{NAME}: code Apache-2.0 (diffusers); weights for research only" in taken.stderr
    assert list(accepted_licences()) == [NAME]
