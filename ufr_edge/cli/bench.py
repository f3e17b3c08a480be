"""`ufr-edge bench`: what each engine of a bundle costs on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ufr_edge.cli.numbers import Finite
from ufr_edge.cli.tables import print_table
from ufr_edge.errors import GateFailedError
from ufr_edge.files import atomic_file, write_json
from ufr_edge.runtime.bench import BundleBench, bench_bundle
from ufr_edge.runtime.bundle import Wanted
from ufr_edge.runtime.machine import machine_name


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engine", metavar="NAME", help="Measure this engine only. [default: all that fit]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda:0, or an OpenVINO device.")
@click.option(
    "--batch",
    "batches",
    multiple=True,
    default=(1, 2, 4),
    show_default=True,
    type=click.IntRange(1),
    help="Faces per call; may be given several times.",
)
@click.option("--runs", default=50, show_default=True, type=click.IntRange(1), help="Timed calls.")
@click.option("--warmup", default=5, show_default=True, type=click.IntRange(0), help="Untimed calls before.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: the backend's]")
@click.option(
    "--no-kernels", is_flag=True, help="Do not look up which kernels run (opens each engine twice)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for bench.json, bench.md and, with matplotlib, bench.png (a histogram).",
)
@click.option(
    "--min-fps",
    type=Finite(0, min_open=True),
    help="Exit with 3 when the first engine restores fewer faces a second, at its best batch size.",
)
def command(
    bundle: Path,
    engine: str | None,
    device: str,
    batches: tuple[int, ...],
    runs: int,
    warmup: int,
    threads: int | None,
    no_kernels: bool,
    as_json: bool,
    markdown: bool,
    output: Path | None,
    min_fps: float | None,
) -> None:
    """Measure the engines of BUNDLE that fit this machine; the first is the one `ufr-edge run` chooses."""
    if as_json and markdown:
        msg = "--json and --markdown cannot be printed together; -o FOLDER writes both."
        raise click.UsageError(msg)
    bench = bench_bundle(
        bundle,
        wanted=Wanted(name=engine, device=device),
        batches=batches,
        warmup=warmup,
        runs=runs,
        threads=threads,
        kernels=not no_kernels,
    )
    _show(bench, as_json=as_json, markdown=markdown)
    if output is not None:
        _write(bench, output, quiet=as_json or markdown)
    first = bench.reports[0]
    best = max(report.faces_per_s for report in bench.reports if report.name == first.name)
    if min_fps is not None and best < min_fps:
        msg = f"{first.name} restores {best:.1f} faces/s, --min-fps asks for {min_fps:g}."
        raise GateFailedError(msg)


def _show(bench: BundleBench, *, as_json: bool, markdown: bool) -> None:
    from ufr_edge.bench_report import COLUMNS, bench_markdown, engine_rows

    if as_json:
        click.echo(json.dumps(bench.to_json(), indent=2))
        return
    if markdown:
        click.echo(bench_markdown(bench), nl=False)
        return
    first = bench.reports[0]
    title = f"machine: {machine_name()}\n{bench.power.describe()}\n{first.side} px faces, {first.runs} runs\n"
    print_table(title, COLUMNS, engine_rows(bench.reports))
    for report in bench.reports:
        if report.kernels is not None and report.batch == first.batch:
            click.echo(f"{report.name}: {report.kernels.describe()}")
            if report.info.precision == "int8" and not report.kernels.int8_convolutions:
                click.echo(f"note: {report.name} runs no convolution in INT8 here")
    for name, reason in bench.turned_down:
        click.echo(f"{name} was not measured: {reason}")
    for doubt in bench.power.doubts():
        click.echo(f"note: {doubt}")


def _write(bench: BundleBench, folder: Path, *, quiet: bool) -> None:
    from ufr_edge.bench_report import bench_markdown, write_histogram
    from ufr_edge.errors import BackendUnavailableError

    write_json(folder / "bench.json", bench.to_json())
    with atomic_file(folder / "bench.md") as beside:
        beside.write_text(bench_markdown(bench), encoding="utf-8")
    try:
        write_histogram(bench, folder / "bench.png")
    except BackendUnavailableError as exc:
        click.echo(f"note: no histogram: {exc}", err=True)
    if not quiet:
        click.echo(f"written: {folder}")
