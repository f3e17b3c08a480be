"""How long an adaptation will take, from a few timed calls and steps; and what suits the machine."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ufr_edge.adaptation.choose import RUNGS
from ufr_edge.adaptation.finetune import FinetuneConfig, trial_task
from ufr_edge.adaptation.targets import Atelier, TargetsConfig
from ufr_edge.adaptation.training import fast_at_bf16, pick_device, resolve_precision
from ufr_edge.priors.sampler import SamplerConfig
from ufr_edge.restorers.checkpoints import read_header
from ufr_edge.restorers.edge import EDGE_FAMILY
from ufr_edge.restorers.loading import find_restorer

Images = NDArray[np.uint8]
_CALLS = 2
_STEPS = 4
_EDGE_BYTES = 2_000  # per pixel: activations of edge-l, the prior's features and the discriminator's heads, twice
_OTHER_BYTES = 20_000  # per pixel: SwinIR's blocks, LPIPS on VGG and the U-Net discriminator, by their layers
_LARGE = 10e9  # bytes of a GPU from which 32 faces are sampled at once


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Seconds: `per_target` of one face's target, `per_step` of training; of all there is to do, `targets` and `training`.

    `choosing` is the most that choosing the sampler takes, 0 where it is given, `curve` what the dial's curve takes, 0
    where it is not drawn. `untimed`: why training is left out.
    """

    per_target: float
    per_step: float
    targets: float
    training: float
    choosing: float = 0.0
    curve: float = 0.0
    untimed: str = ""

    @property
    def total(self) -> float:
        """All of it, in seconds."""
        return self.choosing + self.targets + self.training + self.curve

    def line(self) -> str:
        """The forecast in words."""
        choosing = f"up to {_duration(self.choosing)} to choose the sampler, " if self.choosing else ""
        training = self.untimed or f"{_duration(self.training)} of training ({self.per_step:.2g} s a step)"
        drawing = f"{_duration(self.targets)} of targets ({self.per_target:.2g} s each)"
        curve = f", {_duration(self.curve)} of the dial's curve (--no-curve leaves it out)" if self.curve else ""
        total = f"about {_duration(self.total)} in all" + (" before it" if self.untimed else "")
        return f"expected: {choosing}{drawing}, {training}{curve}; {total}"


def for_machine(targets: TargetsConfig) -> TargetsConfig:
    """The settings with the prior's precision and the faces sampled at once that suit the device.

    By its whole memory, not by what is free of it: processes on equal GPUs must agree, or they share faces out differently.
    """
    device = pick_device(targets.device)
    old = device.type == "cuda" and not fast_at_bf16(device)  # fast at fp16 alone
    precision = "fp16" if old else resolve_precision(device, "auto")
    sampler = dataclasses.replace(targets.sampler, precision=precision)
    roomy = device.type == "cuda" and torch.cuda.mem_get_info(device)[1] > _LARGE
    return dataclasses.replace(targets, sampler=sampler, batch=32 if roomy else targets.batch)


def for_memory(config: FinetuneConfig, *, processes: int = 1) -> FinetuneConfig:
    """The settings with each batch computed in as many parts as the GPU's free memory asks for, never in fewer.

    The batch itself is left as it is: rates were found for it. On the CPU nothing changes. Several `processes` go by
    the whole memory in place of what is free: all must come to the same parts, or they wait for each other forever.
    """
    device = pick_device(config.device)
    if device.type != "cuda":
        return config
    header = read_header(find_restorer(config.restorer))
    ours = header.get("arch") in EDGE_FAMILY
    face = int(header.get("side", 512)) ** 2 * (_EDGE_BYTES if ours else _OTHER_BYTES)
    free, whole = torch.cuda.mem_get_info(device)
    room = free if processes == 1 else whole
    parts = parts_for(config.batch, room, face, processes=processes, least=config.training.accumulate)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, accumulate=parts))


def parts_for(batch: int, free: float, face: float, *, processes: int = 1, least: int = 1) -> int:
    """The fewest equal parts of a batch, of at least `least`, of which one fits into memory on each process.

    `free`: bytes free; `face`: bytes that training on one face takes. A tenth is left free. Where not even one
    face fits, one face at a time; `least` where the batch cannot be shared out equally at all.
    """
    fitting = [n for n in range(least, batch // processes + 1) if batch % (processes * n) == 0]
    return next((n for n in fitting if batch // (processes * n) * face <= 0.9 * free), max(fitting, default=least))


def forecast(
    faces: Path,
    images: Images,
    targets: TargetsConfig,
    training: FinetuneConfig,
    *,
    wanted: int,
    steps: int,
    real: Path | None = None,
    processes: int = 1,
    curve_calls: int = 0,
) -> Forecast:
    """Time a few calls and steps on faces uint8 (N, S, S, 3) of the folder `faces`; `wanted` targets, `steps` to do.

    `curve_calls`: of the prior, for the dial's curve, which one process draws. With several `processes` training is not timed, which is said: one of them cannot step alone.
    """
    per_call = time_call(targets, images) if wanted or curve_calls else 0.0
    per_step = time_step(faces, training, real) if steps and processes == 1 else 0.0
    probed, minutes = min(targets.choose.probe, len(images)), training.loop.minutes
    choosing = per_call * (len(RUNGS) + 1) * probed * targets.choose.calls if targets.auto and wanted else 0.0
    per_target = per_call * targets.sampler.calls
    return Forecast(
        per_target=per_target,
        per_step=per_step,
        targets=per_target * wanted / processes,
        training=min(per_step * steps, minutes * 60 if minutes else per_step * steps),
        choosing=choosing,
        curve=per_call * curve_calls,
        untimed=_untimed(steps, processes, minutes) if steps and processes > 1 else "",
    )


def _untimed(steps: int, processes: int, minutes: float | None) -> str:
    ends = f", but ends after {minutes:g} min (--minutes)" if minutes else ""
    return f"then {steps} steps of training, whose time on {processes} processes is not known beforehand{ends}"


def time_call(config: TargetsConfig, images: Images) -> float:
    """Seconds of one call of the prior for one face, in batches as the targets are drawn; the first is not counted."""
    atelier = Atelier(config)
    probe = images[: config.batch]
    names = [str(i) for i in range(len(probe))]
    restored = atelier.restore(probe)
    times = {}
    for calls in (1, 1 + _CALLS):
        sampler = _calls(config.sampler, calls)
        started = time.perf_counter()
        atelier.sample(restored, names, sampler)
        times[calls] = time.perf_counter() - started
    # The first round warms up too: what it took beyond the second's own rate is not counted.
    return max(times[1 + _CALLS], 1e-6) / (1 + _CALLS) / len(probe)


def _calls(sampler: SamplerConfig, calls: int) -> SamplerConfig:
    return dataclasses.replace(sampler, fast_steps=min(calls, sampler.start), samples_per_image=1)


def time_step(faces: Path, config: FinetuneConfig, real: Path | None) -> float:
    """Seconds of a training step: a few are done, with the faces as their own targets; the first is not counted."""
    task = trial_task(faces, dataclasses.replace(config, camera_pairs=0.0), real=real)
    task.step(0)
    started = time.perf_counter()
    for step in range(1, 1 + _STEPS):
        task.step(step)  # its losses are read back, so that a GPU is waited for
    return (time.perf_counter() - started) / _STEPS


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
