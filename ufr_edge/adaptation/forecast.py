"""How long an adaptation will take, from a few timed calls and steps; and what suits the machine."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ufr_edge.adaptation.choose import RUNGS
from ufr_edge.adaptation.finetune import FinetuneConfig, finetune
from ufr_edge.adaptation.targets import Atelier, TargetsConfig
from ufr_edge.adaptation.training import pick_device, read_log, resolve_precision
from ufr_edge.priors.sampler import SamplerConfig

Images = NDArray[np.uint8]
_CALLS = 2
_STEPS = 4
_LARGE = 8e9  # bytes free on a GPU from which 32 faces are sampled at once


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Seconds: `per_target` of one face's target, `per_step` of training; of all there is to do, `targets` and `training`.

    `choosing` is the most that choosing the sampler takes, 0 where it is given.
    """

    per_target: float
    per_step: float
    targets: float
    training: float
    choosing: float = 0.0

    @property
    def total(self) -> float:
        """All of it, in seconds."""
        return self.choosing + self.targets + self.training

    def line(self) -> str:
        """The forecast in words."""
        choosing = f"up to {_duration(self.choosing)} to choose the sampler, " if self.choosing else ""
        return (
            f"expected: {choosing}{_duration(self.targets)} of targets ({self.per_target:.2g} s each), "
            f"{_duration(self.training)} of training ({self.per_step:.2g} s a step); about {_duration(self.total)} in all"
        )


def for_machine(targets: TargetsConfig) -> TargetsConfig:
    """The settings with the prior's precision and the faces sampled at once that suit the device."""
    device = pick_device(targets.device)
    sampler = dataclasses.replace(targets.sampler, precision=resolve_precision(device, "auto"))
    roomy = device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > _LARGE
    return dataclasses.replace(targets, sampler=sampler, batch=32 if roomy else targets.batch)


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
) -> Forecast:
    """Time a few calls and steps on faces uint8 (N, S, S, 3) of the folder `faces`; `wanted` targets, `steps` to do."""
    per_call = time_call(targets, images) if wanted else 0.0
    per_step = time_step(faces, training, real) if steps else 0.0
    choosing = 0.0
    if targets.auto and wanted:
        choosing = per_call * (len(RUNGS) + 1) * min(targets.choose.probe, len(images)) * targets.choose.calls
    per_target = per_call * targets.sampler.calls
    return Forecast(
        per_target=per_target,
        per_step=per_step,
        targets=per_target * wanted / processes,
        training=per_step * steps,
        choosing=choosing,
    )


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
    """Seconds of a training step: a few are done in a folder of their own, with the faces as their own targets."""
    training = dataclasses.replace(config.training, steps=1 + _STEPS)
    loop = dataclasses.replace(config.loop, log_every=1, save_every=10**6, evaluate_every=10**6, minutes=None)
    short = dataclasses.replace(config, training=training, loop=loop, camera_pairs=0.0)
    with tempfile.TemporaryDirectory(prefix="ufr-edge-forecast-") as folder:
        finetune(faces, faces, Path(folder), short, real=real, show=False)
        times = [float(entry["time"]) for entry in read_log(Path(folder)) if "time" in entry]
    return max(times[-1] - times[0], 0.01) / max(1, len(times) - 1)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
