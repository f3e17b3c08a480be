"""How long each stage of the pipeline takes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

STAGES = ("decode", "detect", "track", "warp", "restore", "stabilise", "paste", "encode")

_LEAST_S, _RATIO, _BINS = 1e-6, 1.01, 2100  # bins of 1 %, from a microsecond to twenty minutes


@dataclass(frozen=True, kw_only=True)
class StageTiming:
    """Milliseconds per frame spent in one stage, over `count` frames."""

    name: str
    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    total_ms: float


@dataclass(frozen=True)
class StageCounts:
    """What a `StageClock` holds of one stage: durations by bin, and their sum in seconds. Can be pickled."""

    bins: npt.NDArray[np.int64]
    seconds: float


class StageClock:
    """Collects durations by stage, in memory that does not grow: percentiles are right to 1 %.

    Each stage may be timed by one thread at a time.
    """

    def __init__(self) -> None:
        self._bins: dict[str, npt.NDArray[np.int64]] = {}
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as one run of stage `name`; a block that raises is not counted."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add one duration."""
        place = int(math.log(max(seconds, _LEAST_S) / _LEAST_S) / math.log(_RATIO))
        self._stage(name)[min(place, _BINS - 1)] += 1
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def counts(self) -> dict[str, StageCounts]:
        """All that was collected, to be merged into the clock of another process."""
        return {name: StageCounts(bins.copy(), self._seconds[name]) for name, bins in self._bins.items()}

    def merge(self, counts: Mapping[str, StageCounts]) -> None:
        """Add what another clock collected."""
        for name, other in counts.items():
            self._stage(name)[:] += other.bins
            self._seconds[name] = self._seconds.get(name, 0.0) + other.seconds

    def timings(self) -> tuple[StageTiming, ...]:
        """One entry per stage that ran, in the order of the pipeline."""
        known = [name for name in STAGES if name in self._bins]
        others = [name for name in self._bins if name not in STAGES]
        return tuple(_timing(name, self._bins[name], self._seconds[name]) for name in (*known, *others))

    def _stage(self, name: str) -> npt.NDArray[np.int64]:
        if name not in self._bins:
            self._bins[name] = np.zeros(_BINS, np.int64)
        return self._bins[name]


def _timing(name: str, bins: npt.NDArray[np.int64], seconds: float) -> StageTiming:
    total = np.cumsum(bins)
    count = int(total[-1])
    places = [int(np.searchsorted(total, share * count)) for share in (0.5, 0.95, 0.99)]
    p50, p95, p99 = (_LEAST_S * 1000 * _RATIO ** (place + 0.5) for place in places)
    return StageTiming(name=name, count=count, p50_ms=p50, p95_ms=p95, p99_ms=p99, total_ms=seconds * 1000)
