"""`ufr-edge bench`: what each engine of a bundle costs on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ufr_edge.errors import GateFailedError
from ufr_edge.runtime.bench import BenchReport, BundleBench, bench_bundle
from ufr_edge.runtime.bundle import Wanted


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engine", metavar="NAME", help="Measure this engine only. [default: all that fit]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda:0, or an OpenVINO device.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Faces per call.")
@click.option("--runs", default=50, show_default=True, type=click.IntRange(1), help="Timed calls.")
@click.option("--warmup", default=5, show_default=True, type=click.IntRange(0), help="Untimed calls before.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: the backend's]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--min-fps", type=float, help="Exit with 3 when the first engine restores fewer faces a second."
)
def command(
    bundle: Path,
    engine: str | None,
    device: str,
    batch: int,
    runs: int,
    warmup: int,
    threads: int | None,
    as_json: bool,
    min_fps: float | None,
) -> None:
    """Measure the engines of BUNDLE that fit this machine; the first is the one `ufr-edge run` chooses."""
    wanted = Wanted(name=engine, device=device)
    bench = bench_bundle(bundle, wanted=wanted, batch=batch, warmup=warmup, runs=runs, threads=threads)
    click.echo(_as_json(bench) if as_json else _as_text(bench))
    first = bench.reports[0]
    if min_fps is not None and first.faces_per_s < min_fps:
        msg = f"{first.name} restores {first.faces_per_s:.1f} faces/s, --min-fps asks for {min_fps:g}."
        raise GateFailedError(msg)


def _as_json(bench: BundleBench) -> str:
    value = {
        "engines": [report.to_json() for report in bench.reports],
        "turned_down": [{"name": name, "reason": reason} for name, reason in bench.turned_down],
    }
    return json.dumps(value, indent=2)


def _as_text(bench: BundleBench) -> str:
    first = bench.reports[0]
    lines = [
        f"machine: {first.machine}",
        f"{first.side} px faces, batch {first.batch}, {first.runs} runs",
        "",
        f"{'engine':<24}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'faces/s':>9}{'load ms':>9}{'peak MiB':>10}  runs on",
    ]
    lines += [_row(report) for report in bench.reports]
    lines += [f"{name:<24} not measured: {reason}" for name, reason in bench.turned_down]
    return "\n".join(lines)


def _row(report: BenchReport) -> str:
    load = "" if report.load_ms is None else f"{report.load_ms:.0f}"
    return (
        f"{report.name:<24}{report.p50_ms:>9.2f}{report.p95_ms:>9.2f}{report.p99_ms:>9.2f}"
        f"{report.faces_per_s:>9.1f}{load:>9}{report.peak_rss_mib:>10.0f}  {report.info.describe()}"
    )
