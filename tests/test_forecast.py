"""What a forecast is made of: the time of a step, and the parts that a batch is cut into."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_fakes import make_faces, save_small_restorer, write_faces

import ufr_edge.adaptation.forecast as forecasting
from ufr_edge.adaptation.finetune import FinetuneConfig, trial_task
from ufr_edge.adaptation.forecast import parts_for, time_step
from ufr_edge.adaptation.restorer_task import LossWeights, RestorerTraining
from ufr_edge.adaptation.workers import Workers
from ufr_edge.errors import ConfigError


class Timed:
    """A task whose first step takes seconds and every other 20 ms, by a clock of its own."""

    def __init__(self) -> None:
        self.now, self.steps = 0.0, 0

    def step(self, step: int) -> None:
        assert step == self.steps
        self.now += 0.02 if step else 7.0
        self.steps += 1


def test_a_short_step_is_forecast_as_long_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Timed()
    monkeypatch.setattr(forecasting, "trial_task", lambda *_, **__: task)
    monkeypatch.setattr(forecasting, "time", SimpleNamespace(perf_counter=lambda: task.now))
    assert time_step(Path("faces"), FinetuneConfig(), None) == pytest.approx(0.02)
    assert task.steps > 2


def test_a_trial_trains_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = write_faces(tmp_path / "faces", make_faces(8))
    losses = LossWeights(prior_features=0.0, adversarial=0.0)
    config = FinetuneConfig(
        restorer=save_small_restorer(tmp_path / "base.safetensors"),
        batch=2,
        camera_pairs=0.5,
        training=RestorerTraining(steps=1, precision="fp32", losses=losses),
        device="cpu",
    )
    task, before = trial_task(faces, config), sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(forecasting, "trial_task", lambda *_, **__: task)
    weights = [parameter.detach().clone() for parameter in task.model.parameters()]
    assert time_step(faces, config, None) > 0
    assert any(not torch.equal(old, new) for old, new in zip(weights, task.model.parameters(), strict=True))
    assert sorted(tmp_path.rglob("*")) == before


def test_parts_are_those_that_every_process_can_compute() -> None:
    """Whatever the batch, the memory and the processes: what is chosen can be cut, wherever anything can."""

    class Some(Workers):
        def __init__(self, count: int) -> None:
            super().__init__("cpu")
            self.count = count

    for processes in (1, 2, 3, 4):
        for batch in range(1, 25):
            for free in (0.5, 3.0, 100.0):
                parts = parts_for(batch, free, 1.0, processes=processes)
                if batch % processes == 0:
                    assert len(Some(processes).parts(batch, parts)) == parts
                else:
                    assert parts == 1
    with pytest.raises(ConfigError, match="multiple of 2"):
        Some(2).parts(9, parts_for(9, 0.5, 1.0, processes=2))
