"""Fine-tuning as it runs: CodeFormer's codes, resuming, parts of a batch, precisions, several processes."""

from __future__ import annotations

import copy
import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spandrel_nets import TinyCodeFormer, swinir
from torch import Tensor
from training_fakes import SIDE, make_faces, save_small_restorer, write_faces

from ufr_edge.adaptation.code_task import CodeTask
from ufr_edge.adaptation.finetune import finetune
from ufr_edge.adaptation.loop import LoopConfig, run_loop
from ufr_edge.adaptation.presets import CODEFORMER
from ufr_edge.adaptation.restorer_task import LossWeights, PairTask, RestorerTask, RestorerTraining
from ufr_edge.adaptation.training import CHECKPOINT, read_log, seeded
from ufr_edge.adaptation.workers import Workers
from ufr_edge.errors import ConfigError, ModelFileError
from ufr_edge.restorers.codeformer import FROZEN, TRAINED
from ufr_edge.restorers.edge import build_restorer
from ufr_edge.restorers.files import load_restorer
from ufr_edge.restorers.loading import LoadedCheckpoint
from ufr_edge.restorers.protocol import fixed
from ufr_edge.restorers.spandrel_loader import CodeFormerRestorer, SwinIRRestorer

CODES = dataclasses.replace(CODEFORMER.finetune.training, lr=1e-3, steps=6)


def faces_512(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return make_faces(count, seed=seed).repeat(8, axis=1).repeat(8, axis=2)


def tiny_codeformer() -> CodeFormerRestorer:
    torch.manual_seed(0)
    return CodeFormerRestorer(TinyCodeFormer(), side=512, input_spec=fixed(512))


def code_task(run: Path, training: RestorerTraining = CODES, *, batch: int = 2) -> CodeTask:
    lq, goal = faces_512(batch, 1), faces_512(batch, 2)
    return CodeTask(
        tiny_codeformer(),
        training,
        pairs=lambda _, rows: (lq[rows], goal[rows]),
        batch=batch,
        run=run,
        workers=Workers("cpu"),
    )


def swinir_gradient(run: Path, accumulate: int, drop_path: float) -> Tensor:
    """Of a step on four faces, as a task takes it: with what the network draws fixed by the step."""
    lq, goal = make_faces(4, seed=1), make_faces(4, seed=2)
    losses = LossWeights(prior_features=0, adversarial=0)
    found = RestorerTask(
        SwinIRRestorer(swinir(depths=2, img=8, drop_path=drop_path), side=SIDE),
        RestorerTraining(steps=1, precision="fp32", accumulate=accumulate, losses=losses),
        pairs=lambda _, rows: (lq[rows], goal[rows]),
        batch=4,
        run=run,
        workers=Workers("cpu"),
    )
    with seeded(0, 0, found.device):
        for part in found.parts:
            found._backward(0, part)
    return torch.cat([p.grad.flatten() for p in found.model.parameters() if p.grad is not None])


def swinir_task(run: Path) -> RestorerTask:
    """With stochastic depth and an adversary: all that draws numbers."""
    lq, goal = make_faces(2, seed=1), make_faces(2, seed=2)
    model = SwinIRRestorer(swinir(depths=2, img=8), side=SIDE)
    torch.manual_seed(0)  # the discriminator
    return RestorerTask(
        model,
        RestorerTraining(
            steps=6, lr=1e-3, precision="fp32", discriminator_features=4, losses=LossWeights(prior_features=0)
        ),
        pairs=lambda _, rows: (lq[rows], goal[rows]),
        batch=2,
        run=run,
        workers=Workers("cpu"),
        real=lambda _, rows: goal[rows],
    )


def weights(found: PairTask) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in found.result.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_statement_15_run_as_a_task(tmp_path: Path) -> None:
    """Statement 15: Adam on the trained part alone; codebook, generator, CFT stay to the last bit; the average is kept."""
    found = code_task(tmp_path)
    before = weights(found)
    assert type(found.optimizer) is torch.optim.Adam
    assert found.optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    moved = {id(p) for group in found.optimizer.param_groups for p in group["params"]}
    assert moved == {id(p) for k, p in found.network.named_parameters() if k.startswith(TRAINED)}
    figures = [found.step(step) for step in range(6)]
    assert figures[0].keys() == {"features", "codes"}
    assert figures[-1]["codes"] < figures[0]["codes"]
    for model in (found.model, found.result):
        after = model.state_dict()
        changed = {key.removeprefix("network.") for key in before if not torch.equal(before[key], after[key])}
        assert changed and all(key.startswith(TRAINED) for key in changed)
        assert not [key for key in changed if key.startswith(FROZEN)]
    assert found.result is not found.model  # EMA 0.995 is what is used at test


def test_statement_15_what_is_kept_is_the_average(tmp_path: Path) -> None:
    """Statement 15: 0.995 of what it was and 0.005 of the new weights, from the start, after every step."""
    found = code_task(tmp_path)
    average = weights(found)
    for step in range(3):
        found.step(step)
        now = found.model.state_dict()
        average = {key: 0.995 * old + 0.005 * now[key] for key, old in average.items()}
    kept = found.result.state_dict()
    for key, expected in average.items():
        torch.testing.assert_close(kept[key], expected, rtol=0, atol=1e-6)
    moved = [key for key in kept if not torch.equal(kept[key], found.model.state_dict()[key])]
    assert moved and all(key.removeprefix("network.").startswith(TRAINED) for key in moved)


class Half(Workers):
    """One of two processes, without the other: its rows of each batch alone."""

    def __init__(self, index: int) -> None:
        super().__init__("cpu")
        self.index, self.count = index, 2


def test_the_gradients_of_two_halves_mean_that_of_the_whole(tmp_path: Path) -> None:
    """As the slow tests with real processes below: what each computes, meaned, is what one computes."""
    lq, goal = make_faces(4, seed=1), make_faces(4, seed=2)

    def gradient(workers: Workers) -> Tensor:
        torch.manual_seed(0)
        model = build_restorer("edge-s")
        torch.nn.init.normal_(model.head.weight, std=0.01)
        training = RestorerTraining(
            steps=3, precision="fp32", accumulate=2, losses=LossWeights(prior_features=0, adversarial=0)
        )
        found = RestorerTask(
            model, training, pairs=lambda _, rows: (lq[rows], goal[rows]), batch=4, run=tmp_path, workers=workers
        )
        for part in found.parts:
            found._backward(0, part)
        return torch.cat([p.grad.flatten() for p in found.model.parameters() if p.grad is not None])

    halves = [gradient(Half(index)) for index in (0, 1)]
    assert not torch.allclose(halves[0], halves[1], rtol=1e-2)
    torch.testing.assert_close((halves[0] + halves[1]) / 2, gradient(Workers("cpu")), rtol=1e-3, atol=1e-6)


def test_statement_15_labels_stay_those_of_the_start(tmp_path: Path) -> None:
    """Statement 15: the copy that gives the labels is the network as it was, after training and after a resume."""
    found = code_task(tmp_path)
    start = copy.deepcopy(found.network.get_submodule("encoder").state_dict())
    run_loop(found, tmp_path, LoopConfig(), steps=3, show=False)
    resumed = code_task(tmp_path)
    run_loop(resumed, tmp_path, LoopConfig(), steps=4, show=False)
    for one in (found, resumed):
        (teacher,) = one.trained._teacher  # type: ignore[misc]
        assert same(teacher.encoder.state_dict(), start)
        assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("build", [code_task, swinir_task])
def test_resumed_is_bit_identical(tmp_path: Path, build: Any) -> None:
    whole = build(tmp_path / "whole")
    run_loop(whole, tmp_path / "whole", LoopConfig(), steps=6, show=False)
    part = build(tmp_path / "part")
    run_loop(part, tmp_path / "part", LoopConfig(), steps=3, show=False)
    torch.rand(7)  # whatever else drew numbers meanwhile
    resumed = build(tmp_path / "part")
    assert run_loop(resumed, tmp_path / "part", LoopConfig(), steps=6, show=False) == 6
    assert same(weights(whole), weights(resumed))
    assert same(whole.model.state_dict(), resumed.model.state_dict())


def test_a_checkpoint_of_codes_holds_the_trained_part(tmp_path: Path) -> None:
    found = code_task(tmp_path)
    run_loop(found, tmp_path, LoopConfig(), steps=1, show=False)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["kind"] == "codes"
    for name in ("model", "ema"):
        assert all(key.startswith(TRAINED) for key in saved["task"][name])
    saved["task"]["model"].popitem()
    torch.save(saved, tmp_path / CHECKPOINT)
    with pytest.raises(ModelFileError, match="another network"):
        run_loop(code_task(tmp_path), tmp_path, LoopConfig(), steps=2, show=False)


def test_parts_of_a_batch_add_up_to_it(tmp_path: Path) -> None:
    """Gradient accumulation: four faces at once, in two parts and in four give one gradient within 1e-5."""
    gradients = []
    for accumulate in (1, 2, 4):
        found = code_task(tmp_path, dataclasses.replace(CODES, accumulate=accumulate), batch=4)
        for part in found.parts:
            found._backward(0, part)
        gradients.append(torch.cat([p.grad.flatten() for p in found.network.parameters() if p.grad is not None]))
    for parts in gradients[1:]:
        torch.testing.assert_close(parts, gradients[0], rtol=0, atol=1e-5)


def test_parts_of_a_batch_add_up_to_it_but_for_stochastic_depth(tmp_path: Path) -> None:
    """A SwinIR without it has one gradient within 1e-5; with it each part draws layers of its own to leave out."""
    whole = swinir_gradient(tmp_path, 1, 0.0)
    assert float(whole.abs().max()) > 1e-3
    for accumulate in (2, 4):
        torch.testing.assert_close(swinir_gradient(tmp_path, accumulate, 0.0), whole, rtol=0, atol=1e-5)
    depth = [swinir_gradient(tmp_path, accumulate, 0.5) for accumulate in (1, 1, 2)]
    assert torch.equal(depth[0], depth[1]) and not torch.allclose(depth[2], depth[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(tmp_path: Path, precision: str) -> None:
    training = dataclasses.replace(CODES, precision=precision)
    for found in (code_task(tmp_path, training), _edge_task(tmp_path, precision)):
        before = weights(found)
        figures = [found.step(step) for step in range(4)]
        assert all(np.isfinite(list(step.values())).all() for step in figures)
        assert not same(before, weights(found))
        assert found.scaler.is_enabled() is (precision == "fp16")
        assert all(tensor.dtype == torch.float32 for tensor in weights(found).values() if tensor.is_floating_point())


def test_an_overflow_in_fp16_is_left_out_and_the_scale_halved(tmp_path: Path) -> None:
    found = _edge_task(tmp_path, "fp16")
    found.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = {key: tensor.clone() for key, tensor in found.model.state_dict().items()}
    found.step(0)
    assert same(before, found.model.state_dict())
    assert found.scaler.get_scale() == 2.0**119


def _edge_task(run: Path, precision: str) -> RestorerTask:
    lq, goal = make_faces(2, seed=1), make_faces(2, seed=2)
    torch.manual_seed(0)
    return RestorerTask(
        build_restorer("edge-s"),
        RestorerTraining(
            steps=6, lr=1e-3, precision=precision, discriminator_features=4, losses=LossWeights(prior_features=0)
        ),
        pairs=lambda _, rows: (lq[rows], goal[rows]),
        batch=2,
        run=run,
        workers=Workers("cpu"),
        real=lambda _, rows: goal[rows],
    )


def test_codes_of_another_network_are_refused(tmp_path: Path) -> None:
    def build(model: Any, training: RestorerTraining) -> CodeTask:
        return CodeTask(
            model, training, pairs=lambda *_: (None, None), batch=1, run=tmp_path, workers=Workers("cpu")  # type: ignore[arg-type]
        )

    with pytest.raises(ConfigError, match="a CodeFormer only"):
        build(build_restorer("edge-s"), CODES)
    with pytest.raises(ConfigError, match="no pixel, perceptual or adversarial loss"):
        build(tiny_codeformer(), dataclasses.replace(CODES, losses=LossWeights()))


def test_finetune_trains_codes_by_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of `finetune` with the preset's settings, but for its length: the network is the tiny stand-in."""
    start = tmp_path / "codeformer.pth"
    start.write_bytes(b"the start's digest is taken of this")
    loaded = LoadedCheckpoint(
        model=tiny_codeformer().eval(), arch="codeformer", side=512, meta={}, path=start, licence=""
    )
    monkeypatch.setattr("ufr_edge.adaptation.finetune.load_any_restorer", lambda source: copy.deepcopy(loaded))
    saved: list[Any] = []
    monkeypatch.setattr(
        "ufr_edge.adaptation.finetune.save_any_restorer", lambda model, path, **_: saved.append(model)
    )
    faces = write_faces(tmp_path / "lq", make_faces(8, seed=1))
    targets = write_faces(tmp_path / "targets", make_faces(8, seed=2))
    training = dataclasses.replace(CODEFORMER.finetune.training, steps=2)
    config = dataclasses.replace(CODEFORMER.finetune, training=training, device="cpu", batch=2)
    finetune(faces, targets, tmp_path / "run", config, show=False)
    assert torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["kind"] == "codes"
    assert isinstance(saved[0], CodeFormerRestorer)
    entries = [entry for entry in read_log(tmp_path / "run") if "codes" in entry]
    assert entries[0]["codes"] > 0
    other = dataclasses.replace(training, code_losses=dataclasses.replace(training.code_losses, codes=1.0))
    with pytest.raises(ConfigError, match="--overwrite"):
        finetune(faces, targets, tmp_path / "run", dataclasses.replace(config, training=other), show=False)


def launch(arguments: list[str], count: int) -> None:
    """Run a command in `count` processes as a launcher would; fails unless all succeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    base = {k: v for k, v in os.environ.items() if k not in alone}
    base |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(Path(__file__).parent)}
    running = []
    for rank in range(count):
        env = dict(base)
        if count > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        running.append(subprocess.Popen([sys.executable, *arguments], env=env, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does(tmp_path: Path) -> None:
    """DDP: the same batch in two processes gives the weights of one, but for rounding; of one camera's pairs too."""
    write_faces(tmp_path / "lq", make_faces(8, seed=1))
    write_faces(tmp_path / "clean", make_faces(8, seed=2))
    start = save_small_restorer(tmp_path / "base.safetensors")
    given = ["-m", "ufr_edge", "finetune", "-i", str(tmp_path / "lq"), "-t", str(tmp_path / "clean")]
    given += ["--restorer", start, "--perceptual", "none", "--real", str(tmp_path / "clean"), "--device", "cpu"]
    given += ["--batch", "4", "--steps", "3", "--train-precision", "fp32", "--no-progress"]
    given += ["--camera-pairs", "0.5"]
    launch([*given, "-o", str(tmp_path / "one")], 1)
    launch([*given, "-o", str(tmp_path / "two"), "--accumulate", "2"], 2)
    begun, one, two = (load_restorer(p).model for p in (start, tmp_path / "one", tmp_path / "two"))
    image = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        moved, apart = ((model(image) - one(image)).abs().mean() for model in (begun, two))
    assert apart < 0.02 * moved


CODE_SCRIPT = """
import sys, torch
from pathlib import Path
from test_finetune import code_task, CODES
import dataclasses
found = code_task(Path(sys.argv[1]), dataclasses.replace(CODES, optimizer="adamw"), batch=4)
for step in range(2):
    found.step(step)
if found.workers.main:
    torch.save(found.model.state_dict(), sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_train_codes_as_one_does(tmp_path: Path) -> None:
    for count in (1, 2):
        launch(["-c", CODE_SCRIPT, str(tmp_path / f"{count}.pt")], count)
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-5)
