"""How long each stage of the pipeline takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

STAGES = ("decode", "detect", "track", "warp", "restore", "stabilise", "paste", "encode")


@dataclass(frozen=True, kw_only=True)
class StageTiming:
    """Milliseconds per frame spent in one stage, over `count` frames."""

    name: str
    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    total_ms: float


class StageClock:
    """Collects durations by stage. Each stage may be timed by one thread at a time."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {name: [] for name in STAGES}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as one run of stage `name`; a block that raises is not counted."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add one duration."""
        self._seconds[name].append(seconds)

    def timings(self) -> tuple[StageTiming, ...]:
        """One entry per stage that ran, in the order of the pipeline."""
        return tuple(_timing(name, values) for name, values in self._seconds.items() if values)


def _timing(name: str, seconds: list[float]) -> StageTiming:
    ms = np.asarray(seconds) * 1000
    p50, p95, p99 = (float(v) for v in np.percentile(ms, (50, 95, 99)))
    return StageTiming(name=name, count=len(ms), p50_ms=p50, p95_ms=p95, p99_ms=p99, total_ms=float(ms.sum()))
