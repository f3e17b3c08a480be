"""Measuring the engines of a bundle on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ufr_edge.errors import ConfigError, ShapeError
from ufr_edge.runtime.bundle import Bundle, Wanted, choose_engine, open_entry, rank_engines, read_bundle
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.engines import Engine, EngineInfo, installed_backends
from ufr_edge.runtime.kernels import KernelProfile, profile_kernels
from ufr_edge.runtime.machine import (
    PowerState,
    machine_name,
    process_memory,
    read_power_state,
    reset_peak_memory,
)
from ufr_edge.runtime.manifest import EngineEntry

__all__ = ["BenchReport", "BundleBench", "bench_bundle", "bench_engine", "machine_name"]

DEFAULT_SIDE = 512


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """One engine's cost at one batch size. Times in ms per batch, `faces_per_s` over all timed runs.

    load_ms: opening the file, checksums included (None when opened elsewhere). first_ms: the first call at this batch
    size; of an engine just loaded it is the cold one. rss_mib: resident memory of this process afterwards;
    peak_rss_mib: its peak since the engine was opened where the system allows that (Linux), else since it started.
    Both hold Python and the libraries too. kernels: what ran, None when not asked or not known.
    """

    name: str
    info: EngineInfo
    machine: str
    side: int
    batch: int
    runs: int
    first_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    faces_per_s: float
    load_ms: float | None
    rss_mib: float
    peak_rss_mib: float
    times_ms: tuple[float, ...]
    kernels: KernelProfile | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a value for json.dumps."""
        value = asdict(self)
        value["info"]["path"] = self.info.path.name
        value["times_ms"] = [round(ms, 4) for ms in self.times_ms]
        return value


@dataclass(frozen=True)
class BundleBench:
    """Every engine of a bundle that fits this machine, the one `run` would choose first, at each batch size.

    turned_down: (engine, reason) of the rest; also of batch sizes an engine was not built for.
    """

    reports: tuple[BenchReport, ...]
    turned_down: tuple[tuple[str, str], ...]
    bundle: str
    power: PowerState

    def to_json(self) -> dict[str, Any]:
        """Return a value for json.dumps."""
        return {
            "bundle": self.bundle,
            "machine": machine_name(),
            "power": asdict(self.power),
            "doubts": list(self.power.doubts()),
            "engines": [report.to_json() for report in self.reports],
            "turned_down": [{"name": name, "reason": reason} for name, reason in self.turned_down],
        }


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How much is measured: untimed calls, timed calls, CPU threads (None: the backend's), the kernels."""

    warmup: int = 5
    runs: int = 50
    threads: int | None = None
    kernels: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for a number out of range."""
        if self.runs < 1 or self.warmup < 0:
            msg = f"runs must be 1 or more and warmup 0 or more, not {self.runs}, {self.warmup}."
            raise ConfigError(msg)


def bench_engine(
    engine: Engine,
    *,
    batch: int = 1,
    warmup: int = 5,
    runs: int = 50,
    name: str = "engine",
    load_ms: float | None = None,
    kernels: KernelProfile | None = None,
) -> BenchReport:
    """Time the first call of engine.infer, then `runs` calls after `warmup` untimed ones, on random faces.

    An engine that takes any side is measured at 512 px. Raises ConfigError for a batch, warmup or runs out
    of range, and what Engine.infer raises.
    """
    config = BenchConfig(warmup=warmup, runs=runs)
    if batch < 1:
        msg = f"batch must be 1 or more, not {batch}."
        raise ConfigError(msg)
    side = engine.info.side or DEFAULT_SIDE
    faces = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    first = _seconds(engine, faces)
    for _ in range(config.warmup):
        engine.infer(faces)
    times = np.array([_seconds(engine, faces) for _ in range(config.runs)]) * 1e3
    p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    memory = process_memory()
    return BenchReport(
        name=name,
        info=engine.info,
        machine=machine_name(),
        side=side,
        batch=batch,
        runs=config.runs,
        first_ms=first * 1e3,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=float(times.mean()),
        faces_per_s=float(batch * config.runs * 1e3 / times.sum()),
        load_ms=load_ms,
        rss_mib=memory.rss_mib,
        peak_rss_mib=memory.peak_mib,
        times_ms=tuple(float(ms) for ms in times),
        kernels=kernels,
    )


def bench_bundle(
    path: Path,
    *,
    wanted: Wanted | None = None,
    batches: Sequence[int] = (1,),
    warmup: int = 5,
    runs: int = 50,
    threads: int | None = None,
    kernels: bool = False,
) -> BundleBench:
    """Open and measure each engine of a bundle that fits this machine and `wanted`, at each batch size in turn.

    kernels: also open each once more under its backend's profiler and say which kernels ran.
    Raises as open_bundle_engine when none fits, ConfigError for a number out of range.
    """
    config = BenchConfig(warmup=warmup, runs=runs, threads=threads, kernels=kernels)
    if not batches or min(batches) < 1:
        msg = f"batches must be 1 or more each, not {list(batches)}."
        raise ConfigError(msg)
    asked = wanted or Wanted()
    bundle = read_bundle(path)
    power = read_power_state()
    machine, backends = device_fingerprint(), installed_backends()
    # raises when nothing fits
    choose_engine(bundle.manifest, wanted=asked, fingerprint=machine, backends=backends, path=bundle.path)
    fitting, refusals = rank_engines(bundle.manifest, wanted=asked, fingerprint=machine, backends=backends)
    reports: list[BenchReport] = []
    turned_down = [(name, str(error)) for name, error in refusals]
    for entry in fitting:
        measured, refused = _bench_entry(bundle, entry, asked.device, tuple(dict.fromkeys(batches)), config)
        reports += measured
        turned_down += refused
    return BundleBench(tuple(reports), tuple(turned_down), bundle.manifest.name, power)


def _bench_entry(
    bundle: Bundle, entry: EngineEntry, device: str, batches: Sequence[int], config: BenchConfig
) -> tuple[list[BenchReport], list[tuple[str, str]]]:
    profile = _profile(bundle, entry, device, config) if config.kernels else None
    reports: list[BenchReport] = []
    refused: list[tuple[str, str]] = []
    reset_peak_memory()
    start = time.perf_counter()
    with open_entry(bundle, entry, device=device, threads=config.threads) as engine:
        load_ms = (time.perf_counter() - start) * 1e3
        for batch in batches:
            try:
                report = bench_engine(
                    engine,
                    batch=batch,
                    warmup=config.warmup,
                    runs=config.runs,
                    name=entry.name,
                    load_ms=load_ms,
                    kernels=profile,
                )
            except ShapeError as exc:  # a TensorRT engine takes no larger batch than it was built for
                refused.append((f"{entry.name} at batch {batch}", str(exc)))
            else:
                reports.append(report)
    return reports, refused


def _profile(bundle: Bundle, entry: EngineEntry, device: str, config: BenchConfig) -> KernelProfile | None:
    bundle.verify(entry.files)
    return profile_kernels(
        bundle.file(entry.files[0]),
        backend=entry.backend,
        side=bundle.manifest.restorer.side,
        device=device,
        precision=entry.precision,
        threads=config.threads,
    )


def _seconds(engine: Engine, faces: np.ndarray[Any, np.dtype[np.uint8]]) -> float:
    start = time.perf_counter()
    engine.infer(faces)
    return time.perf_counter() - start
