"""The processes that train together, by accelerate: each takes its rows of every batch, and gradients are meaned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ufr_edge.adaptation.training import pick_device
from ufr_edge.errors import ConfigError

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


_PATIENCE = timedelta(days=30)
_MPI = ("PMI_{}", "OMPI_COMM_WORLD_{}", "MV2_COMM_WORLD_{}")


def is_main_process() -> bool:
    """Whether this process may write and print: true unless a launcher started it as a helper."""
    return _launched("RANK", 0) == 0


def process_count() -> int:
    """How many processes a launcher started; 1 without it."""
    return _launched("WORLD_SIZE", 1)


def _launched(what: str, alone: int) -> int:
    """Read RANK or WORLD_SIZE as torchrun and `accelerate launch` set them, or mpirun, which accelerate uses too."""
    return next((int(os.environ[name]) for name in _names(what) if name in os.environ), alone)


def _names(what: str) -> tuple[str, ...]:
    return (what, *(name.format(what.removeprefix("WORLD_")) for name in _MPI))


@contextmanager
def alone() -> Iterator[None]:
    """Hide the launcher from what runs inside: it trains by itself, all of it on this process."""
    names = [name for what in ("RANK", "WORLD_SIZE") for name in _names(what)]
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


class Workers:
    """This process among those that `accelerate launch` (or torchrun) started; alone without it.

    `device` "auto", "cpu" or "cuda:0"; with several processes each gets a device of its own, and naming one
    raises ConfigError. Batches are given for all processes together, so that a result does not depend on how
    many there are, but for rounding. Mixed precision and accumulation are the run's own settings, not the launcher's.
    """

    def __init__(self, device: str = "auto") -> None:
        self._accelerator: Any = None
        if _launched("WORLD_SIZE", 1) > 1:
            self._accelerator = _accelerator(device)
        self.device: torch.device = self._accelerator.device if self._accelerator else pick_device(device)
        self.index: int = self._accelerator.process_index if self._accelerator else 0
        self.count: int = self._accelerator.num_processes if self._accelerator else 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files."""
        return self.index == 0

    def parts(self, batch: int, accumulate: int = 1) -> list[slice]:
        """Rows of a batch that this process computes, in `accumulate` parts, one after another.

        Raises ConfigError unless `batch` is a multiple of processes x `accumulate`.
        """
        pieces = self.count * accumulate
        if accumulate < 1 or batch % pieces:
            msg = (
                f"A batch of {batch} cannot be cut into equal parts for {self.count} process(es) x {accumulate} "
                f"accumulated step(s). Set the batch to a multiple of {max(1, pieces)}."
            )
            raise ConfigError(msg)
        size, first = batch // pieces, self.index * accumulate
        return [slice((first + i) * size, (first + i + 1) * size) for i in range(accumulate)]

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return what to call in training: its gradients are meaned over the processes. State stays in `module`."""
        if self._accelerator is None:
            return module
        wrapped: nn.Module = self._accelerator.prepare_model(module, device_placement=False)
        return wrapped

    def accumulating(self, wrapped: nn.Module, *, last: bool) -> Any:
        """Return the context of one part's forward and backward: gradients are exchanged with the last one only."""
        return self._accelerator.no_sync(wrapped) if self._accelerator and not last else nullcontext()

    def mean(self, parts: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """Mean each named scalar over the parts of a step and over the processes."""
        stacked = torch.stack(
            [torch.stack([v.detach().float() for v in part.values()]) for part in parts]
        ).mean(0)
        if self._accelerator:
            stacked = self._accelerator.reduce(stacked, reduction="mean")
        return dict(zip(parts[0], stacked.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all get the same answer."""
        if self._accelerator is None:
            return flag
        return bool(
            self._accelerator.reduce(torch.tensor(float(flag), device=self.device), reduction="sum") > 0
        )

    def wait(self) -> None:
        """Return when all processes are here."""
        if self._accelerator:
            self._accelerator.wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process do the block before the others."""
        with self._accelerator.main_process_first() if self._accelerator else nullcontext():
            yield


class Crew:
    """The processes that `accelerate launch` (or torchrun, mpirun) started, to share whole tasks; alone without it.

    Unlike `Workers` they have nothing to say to each other while they work, which may be for days.
    """

    def __init__(self) -> None:
        self.index, self.count = 0, 1
        if _launched("WORLD_SIZE", 1) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=True, timeout=_PATIENCE)
            self.index, self.count = state.process_index, state.num_processes
            if torch.cuda.is_available():  # each its own, under the name "cuda"
                torch.cuda.set_device(state.local_process_index % torch.cuda.device_count())

    def gather(self, value: T) -> list[T]:
        """Every process's value, by its index, for all of them. Waits until all are here."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        found: list[T] = gather_object([value])
        return found


def _accelerator(device: str) -> Any:
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    if device not in ("auto", "cpu", "cuda"):
        msg = f"Several processes cannot share the device {device!r}. Use --device auto, cpu or cuda."
        raise ConfigError(msg)
    cpu = pick_device(device).type == "cpu"
    # The only buffers (spectral norm's) follow from the weights, and are the same everywhere without being sent.
    # One process may read faces, choose the sampler or write the report for long while the others wait.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=_PATIENCE)]
    return Accelerator(cpu=cpu, mixed_precision="no", device_placement=False, kwargs_handlers=handlers)
