"""What `ufr-edge bench` measured, as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ufr_edge.files import atomic_file
from ufr_edge.optional import require
from ufr_edge.runtime.bench import BenchReport, BundleBench
from ufr_edge.runtime.machine import machine_name

__all__ = ["bench_markdown", "engine_rows", "write_histogram"]

COLUMNS = (
    "engine",
    "batch",
    "first ms",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "faces/s",
    "load ms",
    "peak MiB",
    "INT8 time",
    "runs on",
)


def engine_rows(reports: Sequence[BenchReport]) -> list[list[str]]:
    """One row of COLUMNS for each report."""
    return [
        [
            report.name,
            str(report.batch),
            f"{report.first_ms:.1f}",
            f"{report.p50_ms:.2f}",
            f"{report.p95_ms:.2f}",
            f"{report.p99_ms:.2f}",
            f"{report.faces_per_s:.1f}",
            "-" if report.load_ms is None else f"{report.load_ms:.0f}",
            f"{report.peak_rss_mib:.0f}",
            "-" if report.kernels is None else f"{report.kernels.int8_share:.0%}",
            report.info.describe(),
        ]
        for report in reports
    ]


def bench_markdown(bench: BundleBench) -> str:
    """A page: the machine and its state, one table row for each engine and batch size, kernels, what did not run."""
    first = bench.reports[0]
    lines = [
        f"# {bench.bundle}: engines on this machine",
        "",
        f"Machine: {machine_name()}; {bench.power.describe()}.",
        f"{first.side} px faces, {first.runs} timed calls each after a first one, in one process.",
        "",
        *(f"> {doubt}\n" for doubt in bench.power.doubts()),
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(row) + " |" for row in engine_rows(bench.reports)),
        "",
    ]
    kernels = {report.name: report.kernels for report in bench.reports if report.kernels is not None}
    lines += [f"- {name}: {kernel.describe()}" for name, kernel in kernels.items()]
    lines += [f"- {name} was not measured: {reason}" for name, reason in bench.turned_down]
    return "\n".join(lines).rstrip() + "\n"


def write_histogram(bench: BundleBench, path: Path) -> None:
    """Draw the times of every engine at the first batch size into the PNG `path`, p50 and p95 marked.

    Raises BackendUnavailableError when matplotlib is not installed, OutputError.
    """
    figures = require("matplotlib.figure", extra="train")
    reports = [report for report in bench.reports if report.batch == bench.reports[0].batch]
    figure = figures.Figure(figsize=(7, 1.6 * len(reports) + 0.6), layout="constrained")
    axes = figure.subplots(len(reports), squeeze=False)[:, 0]
    for axis, report in zip(axes, reports, strict=True):
        axis.hist(report.times_ms, bins=min(60, max(10, report.runs // 2)), color="#4477aa")
        for value, style in ((report.p50_ms, "-"), (report.p95_ms, "--")):
            axis.axvline(value, color="#aa3377", linestyle=style, linewidth=1)
        axis.set_title(f"{report.name}: p50 {report.p50_ms:.2f} ms, p95 {report.p95_ms:.2f} ms", fontsize=9)
        axis.set_ylabel("calls", fontsize=8)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel(f"ms per call, batch {reports[0].batch}", fontsize=8)
    with atomic_file(path) as beside:
        figure.savefig(beside, dpi=120, format="png")
