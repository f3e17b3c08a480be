"""Export the shipped restorers to every engine that can be built here, measure each, and write docs/engines.md.

    python benchmarks/engines.py -o runs/engines

RESTORER@SIDE chooses what is exported (default: all shipped ones at their own side; edge-l also at 512). Faces to calibrate
on and to measure on are the demo's, degraded by a preset; other faces in each half. Or give --calibration and --reference.
An adapted restorer, such as the demo's, gets rows of its own:

    python benchmarks/engines.py --adapted demo/adapted demo/faces/seen demo/faces/test demo/faces/test-truth
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from asked import asked_section, engines_asked

from ufr_edge import __version__
from ufr_edge.calibration.gate import GateConfig
from ufr_edge.cli.border import script_border
from ufr_edge.degradations.folder import DegradeConfig, degrade_folder
from ufr_edge.errors import InputFileError
from ufr_edge.export.bundle_export import ExportOptions, export_bundle
from ufr_edge.export.requests import EngineRequest
from ufr_edge.files import atomic_file, write_json
from ufr_edge.restorers.files import load_restorer
from ufr_edge.restorers.loading import AnyRestorer, load_any_restorer
from ufr_edge.runtime.bench import BenchReport, bench_bundle
from ufr_edge.runtime.engines import installed_backends
from ufr_edge.runtime.images import list_images, read_image, write_image
from ufr_edge.runtime.machine import PowerState, machine_name, read_power_state
from ufr_edge.runtime.manifest import EngineEntry, Manifest
from ufr_edge.weights import list_weights
from ufr_edge.weights.cards import markdown_table

OFFERED = {
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp16", "int8"),
    "tensorrt-rtx": ("fp16", "int8"),
}
"""Format -> the precisions worth a row: fp16 in ONNX Runtime is slower on a CPU than fp32 and there for GPUs."""

FACES = Path(str(files("ufr_edge.demo"))) / "faces"
DOCS = Path(__file__).parents[1] / "docs" / "engines.md"
LARGE = "edge-l"
PRESET, SEED = "classic", 0
COLUMNS = (
    "engine",
    "precision",
    "MB",
    "load ms",
    "first ms",
    "p50 ms",
    "p95 ms",
    "INT8 time",
    "drop dB",
    "worst dB",
    "ran on",
)


@dataclass(frozen=True)
class Case:
    """A shipped restorer at one side in pixels, None for its own."""

    name: str
    side: int | None

    @classmethod
    def parse(cls, text: str) -> Case:
        """Read NAME or NAME@SIDE."""
        name, _, side = text.partition("@")
        return cls(name, int(side) if side else None)


@dataclass(frozen=True)
class Measured:
    """A bundle, how long its export took, and what its engines cost."""

    path: Path
    manifest: Manifest
    seconds: float
    reports: tuple[BenchReport, ...]
    notes: tuple[str, ...]
    adapted: bool = False


def shipped_cases() -> list[Case]:
    """Every shipped restorer at its own side, and the large one at 512 too."""
    found = [item for item in list_weights() if item.kind == "restorer"]
    cases = [Case(item.name, None) for item in found]
    return [
        *cases,
        *(
            Case(item.name, 512)
            for item in found
            if item.card.get("arch") == LARGE and item.card["side"] != 512
        ),
    ]


def offered_requests(formats: Iterable[str]) -> tuple[EngineRequest, ...]:
    """What can be built here of OFFERED, and was asked for."""
    here = {"onnx", *installed_backends()}
    return tuple(
        EngineRequest(format=f, precision=p)
        for f in OFFERED
        if f in formats and f in here
        for p in OFFERED[f]
    )


def make_faces(out: Path, side: int) -> tuple[Path, Path]:
    """Degrade the demo's clean faces: (folder to calibrate on, folder with lq/ and hq/ of the other faces)."""
    halves = (out / "calibration", out / "reference" / "hq")
    for index, path in enumerate(list_images(FACES / "clean")):
        half = halves[index % 3 == 2]
        half.mkdir(parents=True, exist_ok=True)
        write_image(half / f"{path.stem}.png", read_image(path))
    config = DegradeConfig(preset=PRESET, seed=SEED, side=side)
    degrade_folder(halves[0], out / "degraded", config, overwrite=True)
    degrade_folder(halves[1], out / "reference" / "lq", config, overwrite=True)
    return out / "degraded", out / "reference"


def measure(
    case: Case,
    args: argparse.Namespace,
    faces: tuple[Path, Path],
    requests: Sequence[EngineRequest],
    *,
    restorer: AnyRestorer | None = None,
) -> Measured:
    """Export one restorer under the gate, and time its engines."""
    start = time.monotonic()
    report = export_bundle(
        restorer or load_restorer(case.name),
        args.output / f"{case.name}{f'-{case.side}' if case.side else ''}.ufr",
        formats=requests,
        side=case.side,
        calibration=faces[0],
        reference=faces[1],
        overwrite=True,
        options=ExportOptions(
            gate=GateConfig(max_drop_db=args.max_drop, time_s=args.gate_time), store_faces=False
        ),
        advance=lambda n=1, note="": print(f"  {note}", flush=True) if n else None,
    )
    seconds = time.monotonic() - start
    bench = bench_bundle(report.path, runs=args.runs, kernels=True)
    notes = tuple(f"{name}: {reason}" for name, reason in bench.turned_down)
    return Measured(report.path, report.manifest, seconds, bench.reports, notes)


def read_adapted(args: argparse.Namespace) -> tuple[AnyRestorer, tuple[Path, Path]]:
    """The restorer of --adapted; the folders to calibrate and to measure on. Raises what a wrong one is, at once."""
    weights, calibration, low, high = args.adapted
    restorer, pairs = load_any_restorer(str(weights)), args.output / "adapted"
    names = [{path.stem for path in list_images(folder)} for folder in (low, high)]
    if alone := sorted(names[0] ^ names[1]):
        msg = f"{low} and {high} must hold pictures of the same names; {alone[0]} is in one of them only."
        raise InputFileError(msg)
    list_images(calibration)
    for name, folder in (("lq", low), ("hq", high)):
        shutil.rmtree(pairs / name, ignore_errors=True)  # of an earlier run
        (pairs / name).mkdir(parents=True)
        for path in list_images(folder):
            write_image(pairs / name / f"{path.stem}.png", read_image(path))
    return restorer, (calibration, pairs)


def engine_row(entry: EngineEntry, path: Path, report: BenchReport | None) -> list[str]:
    """One engine as COLUMNS; a dash for what was not measured here."""
    size = sum((path / name).stat().st_size for name in entry.files) / 1e6
    figures = ["-"] * 5 if report is None else _figures(report)
    drop, worst = (entry.quality.get(f"reference_{name}drop_db") for name in ("", "worst_"))
    cells = ["-" if value is None else f"{round(value, 3) + 0.0:.3f}" for value in (drop, worst)]
    where = (
        f"{entry.backend} {entry.backend_version}, built only" if report is None else report.info.describe()
    )
    return [entry.name, entry.precision, f"{size:.1f}", *figures, *cells, where]


def _figures(report: BenchReport) -> list[str]:
    load = "-" if report.load_ms is None else f"{report.load_ms:.0f}"
    share = "-" if report.kernels is None else f"{report.kernels.int8_share:.0%}"
    return [load, f"{report.first_ms:.1f}", f"{report.p50_ms:.2f}", f"{report.p95_ms:.2f}", share]


def ratio_line(reports: Sequence[BenchReport]) -> str:
    """How much faster the fastest engine is than ONNX Runtime fp32 in the same run; "" without both."""
    base = next((report for report in reports if report.name == "onnx-fp32"), None)
    if base is None or len(reports) < 2:
        return ""
    best = min(reports, key=lambda report: report.p50_ms)
    return f"{best.name} takes {base.p50_ms / best.p50_ms:.1f} times less than onnx-fp32 in the same run."


def section(measured: Measured) -> list[str]:
    """One restorer as Markdown lines."""
    info = measured.manifest.restorer
    by_name = {report.name: report for report in measured.reports}
    rows = [engine_row(entry, measured.path, by_name.get(entry.name)) for entry in measured.manifest.engines]
    lines = [f"## {measured.path.stem}: {info.arch} at {info.side} px", ""]
    lines += [markdown_table(COLUMNS, rows), ""]
    if ratio := ratio_line(measured.reports):
        lines += [ratio, ""]
    kernels = [(report.name, report.kernels) for report in measured.reports if report.kernels is not None]
    lines += [f"- {name}: {kernel.describe()}" for name, kernel in kernels if kernel.int8_convolutions]
    lines += [f"- {note}" for note in measured.notes]
    lines += ["", f"Export, calibration and gate included: {measured.seconds:.0f} s.", ""]
    return lines


def page(results: Sequence[Measured], power: PowerState, args: argparse.Namespace) -> str:
    """docs/engines.md."""
    lines = [
        "# Engines, measured",
        "",
        f"ufr-edge {__version__} on {machine_name()}; {power.describe()}. Written by `python benchmarks/engines.py`; no figure is",
        "typed by hand. One face (batch 1), uint8 in and out; `first` is the first call after loading, `load` includes the checksums.",
        "The drop is PSNR against the truth, fp32 minus the engine, on faces that int8 was not calibrated on",
        f"(gate: {args.max_drop:g} dB).",
        "TensorRT rows without times were built here and not run, for want of a GPU; their drop is that of the ONNX they were",
        "built from, in ONNX Runtime.",
        "",
        *(f"> {doubt}\n" for doubt in power.doubts()),
    ]
    lines += asked_section(machine_name(), engines_asked([_record(measured) for measured in results]))
    for measured in results:
        lines += section(measured)
    return "\n".join(lines).rstrip() + "\n"


def run(args: argparse.Namespace) -> None:
    """Do all of it. Raises UfrEdgeError, GateFailedError among them."""
    power = read_power_state()  # before our own work loads the machine
    cases = [Case.parse(text) for text in args.restorer] or shipped_cases()
    requests = offered_requests(args.format)
    args.output.mkdir(parents=True, exist_ok=True)
    adapted = read_adapted(args) if args.adapted else None  # before the long part
    results = []
    for case in cases:
        print(f"{case.name}{f' at {case.side}' if case.side else ''}", flush=True)
        faces = (args.calibration, args.reference)
        if None in faces:
            faces = make_faces(args.output / "faces", case.side or load_restorer(case.name).side)
        results.append(measure(case, args, faces, requests))
    if adapted is not None:  # what int8 costs a restorer of one camera
        found = measure(Case("adapted", None), args, adapted[1], requests, restorer=adapted[0])
        results.append(replace(found, adapted=True))
    write_json(args.output / "engines.json", [_record(result) for result in results])
    with atomic_file(args.page) as beside:
        beside.write_text(page(results, power, args), encoding="utf-8")
    print(f"written: {args.page}")


def _record(measured: Measured) -> dict[str, Any]:
    return {
        "manifest": measured.manifest.to_json(),
        "reports": [report.to_json() for report in measured.reports],
        "export_s": measured.seconds,
        "adapted": measured.adapted,
        "notes": list(measured.notes),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("restorer", nargs="*", metavar="RESTORER@SIDE")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/engines"))
    parser.add_argument("--page", type=Path, default=DOCS)
    parser.add_argument("--format", nargs="+", choices=list(OFFERED), default=list(OFFERED))
    parser.add_argument("--calibration", type=Path, help="folder of aligned faces of a camera")
    parser.add_argument("--reference", type=Path, help="folder with lq/ and hq/ of other faces")
    parser.add_argument(
        "--adapted",
        type=Path,
        nargs=4,
        metavar=("WEIGHTS", "CALIBRATION", "LQ", "HQ"),
        help="also an adapted restorer: its run or weights, its camera's faces, and other faces with their truth",
    )
    parser.add_argument("--max-drop", type=float, default=0.3)
    parser.add_argument("--gate-time", type=float, default=60.0)
    parser.add_argument("--runs", type=int, default=50)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; an error is one line and its exit code."""
    return script_border(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
