"""What adapting promises beside quality: however many processes, however large the parts, however often it is killed.

    python benchmarks/loop_claims.py --faces ADAPT --real TRAIN -o runs/loop

Runs the commands of ufr-edge as a user would, on a few faces and the shipped weights, alone and in two processes of
torchrun, in parts of a batch, and killed (SIGKILL) in mid-run and called again; compares what they wrote. Also counts the
tests of the paper's statements. Writes loop.json to docs/measured/, of which benchmarks/quality.py makes a section.
About 10 minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured import KEPT, digests
from safetensors.torch import load_file

from ufr_edge.adaptation.faces import load_faces
from ufr_edge.adaptation.finetune import FinetuneConfig, load_pairs, pair_source
from ufr_edge.adaptation.prior_pages import kept
from ufr_edge.adaptation.real_faces import load_real
from ufr_edge.adaptation.restorer_task import RestorerTask
from ufr_edge.adaptation.terms import build_task
from ufr_edge.adaptation.training import CHECKPOINT
from ufr_edge.adaptation.workers import Workers
from ufr_edge.cli.border import script_border
from ufr_edge.degradations.presets import degrade
from ufr_edge.files import write_json
from ufr_edge.restorers.loading import WEIGHTS_NAME, load_any_restorer
from ufr_edge.runtime.images import read_image, write_image
from ufr_edge.weights.cards import command_block, markdown_table

RESULT = "loop.json"
COMMAND = "python benchmarks/loop_claims.py --faces ADAPT --real TRAIN -o runs/loop"
CAMERA, COUNT, CALLS, STEPS, SAVED = "raw-iso3000-x4", 12, 6, 12, 4
RESTORER, PRIOR = "edge-m-256", "prior-256"
GRADIENT = 1e-5
"""What parts of a batch may differ by from the whole, as asked."""


@dataclass(frozen=True)
class Runs:
    """The folder of all runs, and the commands in it."""

    out: Path

    @property
    def real(self) -> Path:
        """Unrelated clean faces."""
        return self.out / "real"

    def targets(self, name: str) -> list[str]:
        """Draw targets into NAME."""
        words = ["targets", "-i", str(self.out / "lq"), "-o", str(self.out / name), "--restorer", RESTORER]
        return [*words, "--prior", PRIOR, "--fast-steps", str(CALLS), "--batch", "2", "--no-qa", "--no-progress"]

    def finetune(self, name: str, *more: str) -> list[str]:
        """Train NAME on the targets of one process."""
        words = ["finetune", "-i", str(self.out / "lq"), "-t", str(self.out / "targets-one"), "--real", str(self.real)]
        words += ["-o", str(self.out / name), "--config", str(self.out / "finetune.toml"), "--no-progress"]
        return [*words, *more]


def prepare(args: argparse.Namespace) -> Runs:
    """Faces through an unseen camera, and the settings of training, in an empty folder."""
    runs = Runs(args.output)
    shutil.rmtree(runs.out, ignore_errors=True)
    for i, face in enumerate(load_faces(args.faces, 256, limit=COUNT, minimum=COUNT).images):
        write_image(runs.out / "lq" / f"{i:02d}.png", degrade(face, CAMERA, seed=i))
    for i, face in enumerate(load_faces(args.real, 256, limit=32, minimum=32).images):  # these do, and load at once
        write_image(runs.real / f"{i:02d}.png", face)
    settings = f'replay = 0.25\ndevice = "cpu"\n[training]\nsteps = {STEPS}\nprecision = "fp32"\n[loop]\n'
    (runs.out / "finetune.toml").write_text(settings + f"save_every = {SAVED}\nlog_every = 1\n", encoding="utf-8")
    return runs


def run(words: Sequence[str], *, processes: int = 1) -> None:
    """A command of ours to its end, as `torchrun` starts it where there are several processes."""
    print("ufr-edge", shlex.join(words), f"({processes})", flush=True)
    subprocess.run(_started(words, processes), check=True, env=_environment(), stdout=subprocess.DEVNULL)


def killed(words: Sequence[str], when: Callable[[], bool]) -> None:
    """The same, killed without warning as soon as `when` holds. Ends the program where it came to its end before."""
    process = subprocess.Popen(_started(words, 1), env=_environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and not when():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        sys.exit(f"it ended before it was killed: {shlex.join(words)}")


def _started(words: Sequence[str], processes: int) -> list[str]:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(several if processes > 1 else ()), "-m", "ufr_edge", *words]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}  # rounding depends on threads


def targets_figures(runs: Runs) -> dict[str, Any]:
    """Targets of one process, of two, and of one that was killed: how many are the same to the byte."""
    run(runs.targets("targets-one"))
    run(runs.targets("targets-two"), processes=2)
    killed(runs.targets("targets-killed"), lambda: len(list((runs.out / "targets-killed").glob("*.png"))) >= 4)
    there = len(list((runs.out / "targets-killed").glob("*.png")))
    run(runs.targets("targets-killed"))
    one = _pictures(runs.out / "targets-one")
    return {
        "count": len(one),
        "same_in_two_processes": _same(one, _pictures(runs.out / "targets-two")),
        "same_after_kill": _same(one, _pictures(runs.out / "targets-killed")),
        "there_when_killed": there,
    }


def _pictures(folder: Path) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    return {path.name: read_image(path) for path in sorted(folder.glob("*.png"))}


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    return sum(name in other and np.array_equal(one[name], other[name]) for name in one)


def training_figures(runs: Runs) -> dict[str, Any]:
    """Fine-tuning by one process, by two, in parts, and killed: how far apart, as a share of the way from the start."""
    run(runs.finetune("one"))
    run(runs.finetune("two"), processes=2)
    run(runs.finetune("parts", "--accumulate", "4"))
    killed(runs.finetune("killed"), lambda: (runs.out / "killed" / CHECKPOINT).exists())
    run(runs.finetune("killed"))
    one = load_file(runs.out / "one" / WEIGHTS_NAME)
    resumed = load_file(runs.out / "killed" / WEIGHTS_NAME)
    return {
        "steps": STEPS,
        "two_processes_apart": apart(one, load_file(runs.out / "two" / WEIGHTS_NAME)),
        "parts_apart": apart(one, load_file(runs.out / "parts" / WEIGHTS_NAME)),
        "tensors": len(one),
        "same_after_kill": sum(torch.equal(one[name], resumed[name]) for name in one),
        "gradient_apart": gradient_apart(runs),
    }


def apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """How far two sets of weights are from each other, as a share of how far the first went from the shipped ones."""
    begun = load_any_restorer(RESTORER).model.state_dict()
    moved = sum(float((one[name] - begun[name]).square().sum()) for name in one)
    between = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return float((between / moved) ** 0.5)


def gradient_apart(runs: Runs) -> float:
    """How far the gradient of 8 faces in 4 parts is from that of all at once, as a share of its length; all terms in force."""
    whole, parts = (gradient(runs, accumulate) for accumulate in (1, 4))
    return float((whole - parts).norm() / whole.norm())


def gradient(runs: Runs, accumulate: int) -> torch.Tensor:
    """The first step's gradient of all weights in a row, in fp32."""
    usual = FinetuneConfig()
    training = dataclasses.replace(usual.training, accumulate=accumulate, clip_norm=0.0, precision="fp32")
    config = dataclasses.replace(usual, training=training, device="cpu")
    pairs = load_pairs(runs.out / "lq", runs.out / "targets-one", 256)
    real = load_real(runs.real, 256)
    start = load_any_restorer(RESTORER)
    task = build_task(
        start.model, pair_source(pairs, config), real, config, held_out=None, run=runs.out, workers=Workers("cpu")
    )
    assert isinstance(task, RestorerTask)  # not codes
    task.step(0)
    return torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])


def statements() -> dict[str, Any]:
    """The tests of the paper's statements, run: how many statements have one, how many passed and were skipped."""
    words = ["-m", "pytest", "tests", "-q", "-k", "statement", "-p", "no:cacheprovider", "-rA"]
    said = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True).stdout
    passed = re.findall(r"^PASSED (\S*statements?_\S*)", said, re.MULTILINE)
    named = re.compile(r"statements?_(\d+)(?:_and_(\d+))?")
    numbers = {int(n) for test in passed for found in named.findall(test) for n in found if n}
    tail = said.strip().splitlines()[-1]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", tail)}
    return {"command": "pytest -k statement", "numbers": sorted(numbers), **counts}


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """What was asked, what is, whether it holds."""
    targets, training, tests = (record[name] for name in ("targets", "training", "statements"))
    count, tensors = targets["count"], training["tensors"]
    broken = tests.get("failed", 0) + tests.get("error", 0)
    numbers = ", ".join(map(str, tests["numbers"]))
    found = [
        (
            "targets drawn by 2 processes are those of 1, to the byte",
            f"{targets['same_in_two_processes']} of {count}",
            targets["same_in_two_processes"] == count,
        ),
        (
            f"drawing killed with {targets['there_when_killed']} of {count} there, called again: the same targets",
            f"{targets['same_after_kill']} of {count}",
            targets["same_after_kill"] == count,
        ),
        (
            f"gradient of a batch of 8 in 4 parts, all terms in force: within {GRADIENT:g} of the whole batch's (of its length)",
            f"{training['gradient_apart']:.1e}",
            training["gradient_apart"] <= GRADIENT,
        ),
        (
            f"fine-tuning killed after a checkpoint, called again: bit-identical after {training['steps']} steps",
            f"{training['same_after_kill']} of {tensors} tensors",
            training["same_after_kill"] == tensors,
        ),
        (
            f"fine-tuning by 2 processes, and in 4 parts: weights apart after {training['steps']} steps, of the way they "
            + "went (rounding; limit ours: 2 %)",
            f"{training['two_processes_apart']:.2%}, {training['parts_apart']:.2%}",
            max(training["two_processes_apart"], training["parts_apart"]) <= 0.02,
        ),
        (
            f"statements of paper.md, section 13, with a test that names it and passes ({tests['command']}): 1-15, 19, 20",
            f"{numbers}; {tests.get('passed', 0)} tests passed, {tests.get('skipped', 0)} skipped, {broken} failed",
            not broken and {*range(1, 16), 19, 20} <= set(tests["numbers"]),
        ),
    ]
    return [[asked, is_, kept(good)] for asked, is_, good in found]


def section(record: Mapping[str, Any]) -> list[str]:
    """The part of docs/quality.md."""
    said = (
        f"{record['faces']} faces through {CAMERA}, {RESTORER} and {PRIOR}, fp32 on the CPU, a thread for each process. "
        "Processes are started by torchrun; killed is by SIGKILL, in mid-run."
    )
    return [
        "## However many processes, however often it is killed",
        command_block(record["command"]),
        said,
        markdown_table(["asked", "is", ""], rows(record)),
    ]


def measure(args: argparse.Namespace) -> None:
    """Run all of it and write the record."""
    runs = prepare(args)
    record = {
        "command": COMMAND,
        "weights": digests((RESTORER, PRIOR)),
        "faces": COUNT,
        "targets": targets_figures(runs),
        "training": training_figures(runs),
        "statements": statements(),
    }
    write_json(args.kept / RESULT, record)
    print("\n\n".join(section(record)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run; an error is one line and its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True, help="clean faces that play the camera's (ADAPT)")
    parser.add_argument("--real", type=Path, required=True, help="unrelated clean faces (TRAIN)")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/loop"))
    parser.add_argument("--kept", type=Path, default=KEPT, help="where the JSON is kept [docs/measured]")
    args = parser.parse_args(argv)
    return script_border(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
