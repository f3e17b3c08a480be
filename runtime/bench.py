"""Measuring an engine on this machine."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.bundle import Wanted, choose_engine, open_entry, rank_engines, read_bundle
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.engines import Engine, EngineInfo, installed_backends

DEFAULT_SIDE = 512


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """One engine's cost. Times in milliseconds per batch, `faces_per_s` over all runs.

    `peak_rss_mib` is the process's peak so far, so it also holds what was loaded before.
    """

    name: str
    info: EngineInfo
    machine: str
    side: int
    batch: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    faces_per_s: float
    load_ms: float | None
    peak_rss_mib: float

    def to_json(self) -> dict[str, Any]:
        """Return a value for json.dumps."""
        value = asdict(self)
        value["info"]["path"] = self.info.path.name
        return value


@dataclass(frozen=True)
class BundleBench:
    """Every engine of a bundle that fits this machine, the one `run` would choose first; and the rest with why."""

    reports: tuple[BenchReport, ...]
    turned_down: tuple[tuple[str, str], ...]


def bench_engine(
    engine: Engine,
    *,
    batch: int = 1,
    warmup: int = 5,
    runs: int = 50,
    name: str = "engine",
    load_ms: float | None = None,
) -> BenchReport:
    """Time `runs` calls of engine.infer on random faces after `warmup` untimed ones.

    An engine that takes any side is measured at 512 px. Raises ConfigError for a batch, warmup or runs out
    of range, and what Engine.infer raises.
    """
    if batch < 1 or runs < 1 or warmup < 0:
        msg = f"batch and runs must be 1 or more and warmup 0 or more, not {batch}, {runs}, {warmup}."
        raise ConfigError(msg)
    side = engine.info.side or DEFAULT_SIDE
    faces = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    for _ in range(warmup):
        engine.infer(faces)
    times = np.array([_seconds(engine, faces) for _ in range(runs)]) * 1e3
    p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    return BenchReport(
        name=name,
        info=engine.info,
        machine=machine_name(),
        side=side,
        batch=batch,
        runs=runs,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=float(times.mean()),
        faces_per_s=float(batch * runs * 1e3 / times.sum()),
        load_ms=load_ms,
        peak_rss_mib=peak_rss_mib(),
    )


def bench_bundle(
    path: Path,
    *,
    wanted: Wanted | None = None,
    batch: int = 1,
    warmup: int = 5,
    runs: int = 50,
    threads: int | None = None,
) -> BundleBench:
    """Open and measure each engine of a bundle that fits this machine and `wanted`.

    Raises as open_bundle_engine when none does.
    """
    asked = wanted or Wanted()
    bundle = read_bundle(path)
    here = {"fingerprint": device_fingerprint(), "backends": installed_backends()}
    choose_engine(bundle.manifest, wanted=asked, **here)  # raises when nothing fits
    fitting, refusals = rank_engines(bundle.manifest, wanted=asked, **here)
    reports = []
    for entry in fitting:
        start = time.perf_counter()
        with open_entry(bundle, entry, device=asked.device, threads=threads) as engine:
            load_ms = (time.perf_counter() - start) * 1e3
            report = bench_engine(
                engine, batch=batch, warmup=warmup, runs=runs, name=entry.name, load_ms=load_ms
            )
        reports.append(report)
    return BundleBench(tuple(reports), tuple((name, str(error)) for name, error in refusals))


def machine_name() -> str:
    """Return such as `AMD EPYC, 2 cores (avx2,avx512,bf16,vnni)`, and the GPU where there is one."""
    found = device_fingerprint()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = f" ({found['cpu_flags']})" if found["cpu_flags"] else ""
    gpu = f", {found['gpu']}" if "gpu" in found else ""
    return f"{found['cpu']}, {cores} cores{flags}{gpu}"


def peak_rss_mib() -> float:
    """Return the peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def _seconds(engine: Engine, faces: np.ndarray[Any, np.dtype[np.uint8]]) -> float:
    start = time.perf_counter()
    engine.infer(faces)
    return time.perf_counter() - start
