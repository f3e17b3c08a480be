"""What every training loop here shares: device and precision, EMA, checkpoints, the log, Ctrl-C."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ufr_edge.errors import ConfigError, ModelFileError, TrainingError
from ufr_edge.files import atomic_file
from ufr_edge.restorers.checkpoints import why_unreadable
from ufr_edge.runtime.device import cpu_features

M = TypeVar("M", bound=nn.Module)
CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


def strip_path(run: Path, step: int) -> Path:
    """Where the strip of held-out faces after `step` steps lies."""
    return run / "strips" / f"step-{step:07d}.jpg"


def pick_device(wanted: str = "auto") -> torch.device:
    """Return the device asked for; "auto" is CUDA when there is one. Raises ConfigError when it is not there."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as exc:
        msg = f"There is no device {wanted!r}. Use --device auto, cpu or cuda:0."
        raise ConfigError(msg) from exc
    if device.type == "cuda" and not torch.cuda.is_available():
        msg = "There is no CUDA device here (torch.cuda.is_available() is False). Use --device cpu."
        raise ConfigError(msg)
    return device


def place(module: M, device: torch.device) -> M:
    """Move a module to the device, channels-last in memory (convolutions run faster so)."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context for "fp32" (off), "bf16", "fp16", or "auto" (bf16 where the device is fast at it)."""
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(
        device.type, half, enabled=precision == "fp16" or resolve_precision(device, precision) == "bf16"
    )


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Return what keeps small gradients from vanishing in "fp16"; with any other precision it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def resolve_precision(device: torch.device, precision: str) -> Literal["fp32", "bf16"]:
    """Turn "auto" into what the device is fast at. Raises ConfigError for an unknown precision."""
    if precision == "auto":
        return "bf16" if fast_at_bf16(device) else "fp32"
    if precision not in ("fp32", "bf16"):
        msg = f"There is no training precision {precision!r}. Known: auto, fp32, bf16."
        raise ConfigError(msg)
    return "bf16" if precision == "bf16" else "fp32"


def fast_at_bf16(device: torch.device) -> bool:
    """Whether a device computes bf16 itself: NVIDIA GPUs from Ampere on do, older ones only pretend, slowly."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool({"bf16", "amx"} & cpu_features())


def to_tensor(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 (B, S, S, 3) in [0, 255] to float32 (B, 3, S, S) in [0, 1], channels-last in memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return (tensor.float() / 255).contiguous(memory_format=torch.channels_last)


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Float (B, 3, S, S) in [0, 1] to uint8 (B, S, S, 3), clamped and rounded."""
    array = images.detach().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return np.ascontiguousarray(array)


def cosine(step: int, total: int, start: float, end: float, *, warmup: int = 0) -> float:
    """Cosine from `start` to `end` over `total` steps, after a linear warm-up."""
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return ramp * (end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total)))))


def halved(step: int, total: int, start: float, at: Sequence[float]) -> float:
    """`start`, halved once `step` reaches each of the shares `at` of the `total` steps."""
    return start * 0.5 ** sum(step >= round(share * total) for share in at)


@contextmanager
def seeded(step: int, index: int, device: torch.device) -> Iterator[None]:
    """Let what a network draws itself (stochastic depth) follow from the step and the process alone.

    So that a resumed run draws what it would have drawn. The generators are put back afterwards.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence((step, index)).generate_state(1)[0]))
        yield


class Ema:
    """Exponential moving average of a module's parameters.

    With `warmup` the decay grows to `decay` over the first steps, so that they do not weigh; without it is constant.
    """

    def __init__(self, source: nn.Module, target: nn.Module, decay: float, *, warmup: bool = True) -> None:
        target.load_state_dict(source.state_dict())
        self.source, self.module, self.decay = source, target.eval().requires_grad_(False), decay
        self.warmup = warmup

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average toward the source after optimiser step `step` (from 0)."""
        decay = min(self.decay, (step + 1) / (step + 10)) if self.warmup else self.decay
        torch._foreach_lerp_(list(self.module.parameters()), list(self.source.parameters()), 1 - decay)


def check_finite(value: float, step: int, run: Path, *, what: str = "loss") -> None:
    """Raise TrainingError, naming the step and the checkpoint that is left, when the value is not finite."""
    if math.isfinite(value):
        return
    path = run / CHECKPOINT
    kept = f"The last good checkpoint is kept in {path}" if path.exists() else f"No checkpoint was saved yet in {run}"
    msg = f"The {what} is {value} at step {step}. {kept}; lower the learning rate (--lr) and run the command again."
    raise TrainingError(msg)


def descend(
    optimizer: torch.optim.Optimizer,
    clip_norm: float,
    step: int,
    run: Path,
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Take one optimiser step, the gradient clipped to `clip_norm` (0: not).

    `scaler`: what the loss was scaled by (see `loss_scaler`). A gradient that overflowed for its scale is left out,
    and the scale halved. Raises TrainingError when the gradient is not finite, before it reaches a weight: a loss
    may still be.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    scaled = scaler is not None and scaler.is_enabled()
    if scaler is not None and scaled:
        scaler.unscale_(optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf))
    if scaler is None or not scaled:
        check_finite(norm, step, run, what="gradient's norm")
        optimizer.step()
        return
    if scaler.get_scale() < 1:  # it is no overflow any more
        check_finite(norm, step, run, what="gradient's norm")
    scaler.step(optimizer)
    scaler.update()


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically. Raises OutputError on a full disk."""
    # Through Python's file: torch's own writer says "unexpected pos" where the disk is full.
    with atomic_file(path) as beside, beside.open("wb") as file:
        torch.save(dict(state), file)


def load_checkpoint(path: Path, *, kind: str) -> dict[str, Any] | None:
    """Read a checkpoint written by `save_checkpoint` (weights-only), or None when there is none.

    Raises ModelFileError when it is damaged or of another kind of training.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as exc:  # border: torch raises many kinds for a damaged file
        msg = f"{path} is damaged: {why_unreadable(path, exc)}. Remove it to start over."
        raise ModelFileError(msg) from exc
    if not isinstance(state, dict) or state.get("kind") != kind:
        msg = f"{path} is no checkpoint of {kind}. Choose another output folder."
        raise ModelFileError(msg)
    return state


def saved_step(run: Path, *, kind: str) -> int:
    """The steps that a run's checkpoint has behind it, 0 without one. Raises as `load_checkpoint`."""
    saved = load_checkpoint(run / CHECKPOINT, kind=kind)
    return int(saved["step"]) if saved else 0


def append_log(run: Path, entry: Mapping[str, Any]) -> None:
    """Append one JSON line to the run's log."""
    with (run / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": round(time.time(), 1), **entry}) + "\n")


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the log's entries, without torn lines (power cut) and steps that were done again after a crash."""
    path = run / LOG
    entries: list[dict[str, Any]] = []
    if not path.exists():
        return entries
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        while entries and entries[-1]["step"] > entry["step"]:
            entries.pop()
        entries.append(entry)
    return entries


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """Collect SIGINT/SIGTERM in the yielded list instead of raising, so that a step is never cut in half.

    The loop looks at the list after each step, saves, and raises KeyboardInterrupt. A second signal raises
    at once. Outside the main thread signals are left alone.
    """
    asked: list[int] = []

    def note(signum: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)

    try:
        old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield asked
        return
    try:
        yield asked
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
