"""Several processes train as one does; a killed command goes on where its checkpoint is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_fakes import SIDE, make_faces, save_small_prior, save_small_restorer, write_faces

from ufr_edge.adaptation.training import CHECKPOINT, read_log
from ufr_edge.restorers.files import load_restorer

pytestmark = pytest.mark.slow
CONFIG = """
arch = "edge-s"
side = 64
batch = 4
crop_share = 0.5
crop = 32
init = "{init}"
prior = "{prior}"
device = "cpu"
[degradations]
classic = 1.0
classic-light = 1.0
[training]
steps = {steps}
lr = 1e-3
ema = 0.5
clip_norm = 1.0
accumulate = {accumulate}
precision = "fp32"
discriminator_features = 8
adversarial_crop = 32
[training.losses]
prior_features = 0.1
adversarial = 0.1
[loop]
log_every = 1
save_every = 2
"""
PRIOR = """
side = 64
channels = [32, 32]
batch = 4
device = "cpu"
[training]
steps = 3
warmup = 1
ema = 0.5
precision = "fp32"
[loop]
log_every = 1
"""


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What a launcher sets (torch's and accelerate's alike)."""
    alone = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    env = {k: v for k, v in os.environ.items() if k not in alone} | {
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    if count > 1:
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return env


def start(arguments: list[str], count: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ufr_edge", "pretrain", *arguments, "--no-progress"]
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(command, env=environment(rank, count, port), stdout=pipe, stderr=pipe, text=True)
        for rank in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for all; returns what each wrote on standard output."""
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [out for out, _ in outputs]


def arguments(folder: Path, name: str, *, steps: int = 3, accumulate: int = 1) -> list[str]:
    """Write faces, a start and a config into `folder` once; returns the command's arguments for run `name`."""
    if not (folder / "faces").exists():
        write_faces(folder / "faces", make_faces(8))
        save_small_restorer(folder / "start.safetensors")
        save_small_prior(folder / "prior")
    text = CONFIG.format(
        init=folder / "start.safetensors", prior=folder / "prior", steps=steps, accumulate=accumulate
    )
    (folder / f"{name}.toml").write_text(text)
    given = ["-i", str(folder / "faces"), "--val", str(folder / "faces"), "-o", str(folder / name)]
    return ["restorer", *given, "--config", str(folder / f"{name}.toml")]


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    finish(start(arguments(tmp_path, "one"), 1))
    outputs = finish(start(arguments(tmp_path, "two", accumulate=2), 2))
    assert outputs == [f"weights: {tmp_path / 'two' / 'weights.safetensors'}\n", ""]
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one] == [1, 2, 3, 3]
    for a, b in zip(one, two, strict=True):
        assert {k: v for k, v in a.items() if k != "time"} == pytest.approx(
            {k: v for k, v in b.items() if k != "time"}, rel=2e-3, abs=2e-4
        )
    begun, alone, together = (
        load_restorer(p).model for p in (tmp_path / "start.safetensors", tmp_path / "one", tmp_path / "two")
    )
    image = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        moved, apart = ((m(image) - alone(image)).abs().mean() for m in (begun, together))
    assert apart < 0.02 * moved


def test_two_processes_train_a_prior_as_one_does(tmp_path: Path) -> None:
    faces = str(write_faces(tmp_path / "faces", make_faces(8)))
    (tmp_path / "prior.toml").write_text(PRIOR)
    for name, count in (("one", 1), ("two", 2)):
        given = [
            "prior",
            "-i",
            faces,
            "--val",
            faces,
            "-o",
            str(tmp_path / name),
            "--config",
            str(tmp_path / "prior.toml"),
        ]
        finish(start(given, count))
    one, two = (
        [{k: v for k, v in e.items() if k != "time"} for e in read_log(tmp_path / n)] for n in ("one", "two")
    )
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    assert (tmp_path / "two" / "prior" / "unet").is_dir()


def test_killed_command_goes_on_bit_identically(tmp_path: Path) -> None:
    finish(start(arguments(tmp_path, "whole", steps=8), 1))
    process = start(arguments(tmp_path, "part", steps=8), 1)[0]
    deadline = time.monotonic() + 200
    while not (tmp_path / "part" / CHECKPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    state = torch.load(tmp_path / "part" / CHECKPOINT, weights_only=True)
    assert state["step"] < 8
    finish(start(arguments(tmp_path, "part", steps=8), 1))
    whole, part = (load_restorer(tmp_path / name).model.state_dict() for name in ("whole", "part"))
    assert all(torch.equal(whole[key], part[key]) for key in whole)
    assert [entry["step"] for entry in read_log(tmp_path / "part")] == [*range(1, 9), 8]
