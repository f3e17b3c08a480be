"""What no gradient reaches in the networks of others is frozen: several processes that train wait for every gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from spandrel_nets import architecture, codeformer, gfpgan, restoreformer, swinir
from test_finetune import launch
from torch import nn
from training_fakes import make_faces

from ufr_edge.adaptation.restorer_task import LossWeights, RestorerTask, RestorerTraining
from ufr_edge.adaptation.training import place
from ufr_edge.adaptation.workers import Workers
from ufr_edge.restorers.codeformer import freeze_rest, trained_parameters
from ufr_edge.restorers.edge import InputSpec
from ufr_edge.restorers.gfpgan import use_constant_weights
from ufr_edge.restorers.protocol import fixed
from ufr_edge.restorers.spandrel_loader import (
    CodeFormerRestorer,
    GFPGANRestorer,
    RestoreFormerRestorer,
    SpandrelRestorer,
    SwinIRRestorer,
)

ANY = InputSpec(multiple_of=32, minimum=32)
KINDS: dict[str, type[SpandrelRestorer]] = {
    "gfpgan": GFPGANRestorer,
    "restoreformer": RestoreFormerRestorer,
    "codeformer": CodeFormerRestorer,
}


def tiny(name: str) -> SpandrelRestorer:
    """Behind its adapter as the loader puts it there."""
    if name == "swinir":
        return SwinIRRestorer(swinir(img=8), side=64)
    if name == "gfpgan":
        network = gfpgan()
        use_constant_weights(network)
        return GFPGANRestorer(network, side=32, input_spec=fixed(32))
    return RestoreFormerRestorer(restoreformer(), side=32, input_spec=ANY)


def released(name: str) -> nn.Module:
    """The network of the release, without memory for its weights."""
    with torch.device("meta"):
        if name == "codeformer":
            return codeformer()
        network: nn.Module = architecture({"gfpgan": "GFPGAN", "restoreformer": "RestoreFormer"}[name])()
        return network


def asked(module: nn.Module) -> set[str]:
    return {key for key, parameter in module.named_parameters() if parameter.requires_grad}


def reached(model: nn.Module, side: int, device: str = "cpu") -> set[str]:
    """The parameters that have a gradient after one backward pass, laid out in memory as training does."""
    model.zero_grad(set_to_none=True)
    image = torch.rand(2, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    out = place(model, torch.device(device)).train()(image)
    out.square().mean().backward()
    return {key for key, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(("name", "side"), [("swinir", 64), ("gfpgan", 32), ("restoreformer", 32)])
def test_every_parameter_that_asks_for_a_gradient_has_one(name: str, side: int) -> None:
    model = tiny(name)
    assert reached(model, side) == asked(model)


@pytest.mark.parametrize("name", KINDS)
def test_of_the_released_networks_what_is_frozen_is_what_no_gradient_reaches(name: str) -> None:
    network = released(name)
    whole = asked(network)
    model = KINDS[name](network, side=512, input_spec=ANY)
    idle = whole - asked(network)
    assert reached(model, 512, "meta") == asked(model)
    for key in idle:
        network.get_parameter(key).requires_grad_(True)
    assert idle and not idle & {key.removeprefix("network.") for key in reached(model, 512, "meta")}


def test_training_by_codes_has_all_of_its_part_again() -> None:
    """Statement 15: 49,129,024 parameters, also behind the adapter."""
    network = released("codeformer")
    CodeFormerRestorer(network, side=512, input_spec=fixed(512))
    freeze_rest(network)
    assert asked(network) == trained_parameters(network).keys()
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 49_129_024


def task(name: str, run: Path) -> RestorerTask:
    faces = make_faces(8)[:, ::2, ::2].copy()
    torch.manual_seed(0)
    return RestorerTask(
        tiny(name),
        RestorerTraining(steps=3, precision="fp32", losses=LossWeights(prior_features=0, adversarial=0)),
        pairs=lambda _, rows: (faces[:4][rows], faces[4:][rows]),
        batch=4,
        run=run,
        workers=Workers("cpu"),
    )


SCRIPT = """
import sys, torch
from pathlib import Path
from test_idle_parameters import task
found = task(sys.argv[1], Path(sys.argv[2]))
for step in range(3):
    found.step(step)
if found.workers.main:
    torch.save(found.model.state_dict(), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gfpgan", "restoreformer"])
def test_two_processes_train_what_one_does(tmp_path: Path, name: str) -> None:
    begun = task(name, tmp_path).model.state_dict()
    for count in (1, 2):
        launch(["-c", SCRIPT, name, str(tmp_path / f"{count}.pt")], count)
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    moved = np.mean([float((one[key] - begun[key]).abs().mean()) for key in begun])
    apart = np.mean([float((one[key] - two[key]).abs().mean()) for key in begun])
    assert apart < 0.02 * moved
