"""The one training loop: steps, log, held-out figures, checkpoints, resume, Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ufr_edge.adaptation.journal import Journal
from ufr_edge.adaptation.training import CHECKPOINT, LOG, deferred_interrupt, load_checkpoint, save_checkpoint
from ufr_edge.adaptation.workers import Workers
from ufr_edge.errors import ConfigError, ModelFileError
from ufr_edge.progress import progress_bar


class Task(Protocol):
    """What is trained. Steps are numbered from 0; a step depends only on the state and its number."""

    kind: str
    workers: Workers

    def step(self, step: int) -> dict[str, float]:
        """Do optimiser step `step`; return its losses."""
        ...

    def evaluate(self, step: int) -> dict[str, float]:
        """Return held-out figures after `step` steps (and draw a sample strip)."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on, as tensors and plain values."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How often: held-out figures, checkpoints and log lines every so many steps; `minutes` ends a sitting early."""

    evaluate_every: int = 500
    save_every: int = 250
    log_every: int = 10
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError when a count is not positive."""
        if min(self.evaluate_every, self.save_every, self.log_every) < 1:
            msg = "evaluate_every, save_every and log_every must be at least 1."
            raise ConfigError(msg)


def run_loop(
    task: Task,
    run: Path,
    config: LoopConfig,
    *,
    steps: int,
    origin: str | None = None,
    on_start: Callable[[], object] | None = None,
    show: bool = True,
) -> int:
    """Train `task` in the folder `run`, going on from its checkpoint when there is one. Returns the steps done.

    `on_start` is called once the checkpoint turned out to fit, where files may be written.
    Ctrl-C (or SIGTERM) ends after the step in hand: state is saved, then KeyboardInterrupt is raised.
    `origin` names what is trained from and on; see `check_origin`.
    Raises TrainingError on a NaN loss, ModelFileError for a checkpoint of another kind or network.
    """
    step, workers = _go_on(task, run), task.workers
    if workers.main:
        run.mkdir(parents=True, exist_ok=True)
    if workers.main and on_start is not None:
        on_start()
    deadline = time.monotonic() + config.minutes * 60 if config.minutes else float("inf")
    with (
        closing(Journal(run, step=step, writes=workers.main)) as journal,
        progress_bar(task.kind, steps, done=step, show=show and workers.main) as advance,
        deferred_interrupt() as asked,
    ):
        while step < steps and not workers.any(bool(asked) or time.monotonic() >= deadline):
            losses = task.step(step)
            step += 1
            if step % config.log_every == 0 or step == 1:
                journal.losses(step, losses)
                advance(0, note=" ".join(f"{k} {v:.4g}" for k, v in losses.items()))
            if workers.main and (step % config.evaluate_every == 0 or step == steps):
                journal.held_out(step, task.evaluate(step))
            if step % config.save_every == 0:
                _save(task, run, step, origin)
            advance(1)
    _save(task, run, step, origin)
    if workers.any(bool(asked)):
        raise KeyboardInterrupt
    return step


def check_origin(
    run: Path,
    *,
    kind: str,
    origin: str,
    overwrite: bool = False,
    mend: str = "Give --overwrite, or choose another folder.",
) -> None:
    """Make sure that a checkpoint in `run` was trained from and on the same things; `overwrite` removes another.

    Raises ConfigError when it was not, ModelFileError when it is damaged or of another kind.
    """
    saved = load_checkpoint(run / CHECKPOINT, kind=kind)
    if saved is None or saved.get("origin") == origin:
        return
    if not overwrite:
        msg = f"{run} holds training from other weights, on other faces or with other settings. {mend}"
        raise ConfigError(msg)
    for name in (CHECKPOINT, LOG):
        (run / name).unlink(missing_ok=True)


def _go_on(task: Task, run: Path) -> int:
    saved = load_checkpoint(run / CHECKPOINT, kind=task.kind)
    if saved is None:
        return 0
    try:
        task.load(saved["task"])
        return int(saved["step"])
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as exc:
        msg = f"{run / CHECKPOINT} is of another network, other settings or an earlier version. Remove it to start afresh."
        raise ModelFileError(msg) from exc


def _save(task: Task, run: Path, step: int, origin: str | None) -> None:
    known = {"origin": origin} if origin else {}
    if task.workers.main:
        save_checkpoint(run / CHECKPOINT, {"kind": task.kind, "step": step, **known, "task": task.state()})
    task.workers.wait()
