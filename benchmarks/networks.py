"""Export SwinIR, GFPGAN, CodeFormer and RestoreFormer with random weights to every target; write docs/networks.md.

    python benchmarks/networks.py -o runs/networks [NETWORK ...]

The networks have the size of the released ones. Each is exported, its engines are run where they can, and compared
with torch. Networks measured before (OUT/NAME.json) stay in the page.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from published import PUBLISHED, random_network

from ufr_edge.calibration.compare import compare_frames, pattern_frames, run_batches
from ufr_edge.cli.border import script_border
from ufr_edge.errors import BackendUnavailableError, BuildError, EngineMisfitError
from ufr_edge.export.engine_build import build_engine_files
from ufr_edge.export.onnx_export import OPSET, restore_frames
from ufr_edge.export.requests import EngineRequest, backend_of
from ufr_edge.export.sources import OnnxSources
from ufr_edge.files import atomic_file, read_json, write_json
from ufr_edge.runtime.engines import Engine, installed_backends, open_engine_file
from ufr_edge.weights.cards import markdown_table

DOCS = Path(__file__).parents[1] / "docs" / "networks.md"
TARGETS = (
    EngineRequest(format="onnx", precision="fp32"),
    EngineRequest(format="onnx", precision="fp16"),
    EngineRequest(format="openvino", precision="fp32"),
    EngineRequest(format="openvino", precision="fp16"),
    EngineRequest(format="openvino", precision="bf16"),
    EngineRequest(format="tensorrt-rtx", precision="fp16"),
)
COLUMNS = ("network", "engine", "MB", "PSNR to torch dB", "largest", "mean", "kept in fp32")
INTRO = """# Networks of others as engines

What becomes of the four networks that `ufr-edge` fine-tunes but did not design. The weights here are **random** (the
architectures' own initialisation, seed 0, sizes as released): figures say that the engines compute what torch computes,
nothing about pictures. Where a network chooses codes (CodeFormer, RestoreFormer), random weights make near ties among
them, which any rounding decides anew; that this is why their fp16 rows are low was not verified. Measure released weights
(`ufr-edge export` does, under its gate). Faces: smooth test patterns, 512 px. Levels are of 255.

Layers that reach beyond half of fp16's range on the frames given, and those that choose codes, stay in fp32 in the
ONNX and TensorRT engines; conversion and clipping at the border always do. OpenVINO decides by device and keeps no layer
of an fp16 engine in fp32, so that such an engine is refused where layers overflow; where a CPU computes no fp16, its fp16
weights were run in fp32, and the row says so. int8 is not meant for these networks:
`ufr-edge export` makes it only with `--calibration` and under its gate.
"""
HELD_BACK = """## What held which network back

* GFPGAN: modulated convolutions make weights per face and group by the batch, which no engine takes with a dynamic batch.
  The features are scaled before and after a convolution with constant weights instead: equal up to rounding (1e-6).
* GFPGAN: the flat view of its features fails on channels-last ones, as the uint8 border makes them; they are made dense.
* CodeFormer, RestoreFormer: ask for the size of the uint8 input, which TensorRT lets only a cast read; they ask the cast.
* CodeFormer (TopK) and RestoreFormer (ArgMin): the choice of codes, back to the matrix product it is made from, is fp32.
* SwinIR: nothing. Its window masks are constants of the side, so that an engine takes its own side only.
"""


def measure_network(name: str, folder: Path) -> list[dict[str, Any]]:
    """Build every target of a network in `folder`; return a row for each."""
    folder.mkdir(parents=True, exist_ok=True)
    restorer = random_network(name)
    faces = pattern_frames(1, restorer.side)
    expected = restore_frames(restorer, faces)
    sources = OnnxSources(restorer, folder, side=restorer.side, faces=faces, calibration=None)
    rows = []
    for request in TARGETS:
        if backend_of(request.format) not in installed_backends():
            continue
        print(f"{name}: {request.name}", flush=True)
        rows.append(
            {"network": name, "engine": request.name} | _row(request, folder, sources, faces, expected)
        )
    return rows


def _row(
    request: EngineRequest,
    folder: Path,
    sources: OnnxSources,
    faces: NDArray[np.uint8],
    expected: NDArray[np.uint8],
) -> dict[str, Any]:
    try:
        files = build_engine_files(request, folder, sources=sources)
    except BuildError as exc:
        return {"refused": str(exc)}
    own = files[:1] if request.format.startswith("tensorrt") else files  # its ONNX lies beside it
    size = sum((folder / file).stat().st_size for file in own)
    half = request.precision == "fp16" and request.format != "openvino"
    row: dict[str, Any] = {"mb": size / 1e6}
    row["kept"] = sources.kept_in_fp32().words if half else ()
    try:
        engine, how = _open(request, folder / files[0])
    except (BackendUnavailableError, EngineMisfitError) as exc:
        return row | {"not_run": str(exc)}
    with engine:
        found = compare_frames(run_batches(engine, faces), expected)
    return row | how | {"psnr_db": found.psnr_db, "max_abs": found.max_abs, "mean_abs": found.mean_abs}


def _open(request: EngineRequest, path: Path) -> tuple[Engine, dict[str, str]]:
    """The engine, and what to call it where it runs otherwise than asked: fp16 weights where nothing computes in fp16."""
    backend = backend_of(request.format)
    try:
        return open_engine_file(path, backend=backend, precision=request.precision), {}
    except EngineMisfitError:
        if (request.format, request.precision) != ("openvino", "fp16"):
            raise
    name = f"{request.name} (weights; computed in fp32)"
    return open_engine_file(path, backend=backend, precision="fp32"), {"engine": name}


def page(rows: Sequence[Mapping[str, Any]], command: str) -> str:
    """The page: the table, why engines did not run or were refused, and what held a network back."""
    reasons = [
        f"* {row['network']} {row['engine']}: {row.get('refused') or row.get('not_run')}"
        for row in rows
        if "refused" in row or "not_run" in row
    ]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(installed_backends().items()))
    made = f"Made by `{command}` with torch {torch.__version__}, {versions}; ONNX opset {OPSET}."
    table = markdown_table(COLUMNS, [_cells(row) for row in rows])
    parts = [INTRO, made, table, "## Built but not run here, or refused", "\n".join(reasons), HELD_BACK]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    first = [str(row["network"]), str(row["engine"])]
    if "refused" in row:
        return [*first, "refused", *["-"] * 4]
    ops = Counter(str(word).split()[0] for word in row["kept"])
    kept = ", ".join(f"{count} {op}" if count > 1 else op for op, count in ops.items()) or "-"
    built = [f"{row['mb']:.1f}"]
    if "psnr_db" not in row:
        return [*first, *built, "built, not run", "-", "-", kept]
    return [*first, *built, f"{row['psnr_db']:.1f}", f"{row['max_abs']:.0f}", f"{row['mean_abs']:.4f}", kept]


def run(args: argparse.Namespace) -> None:
    """Measure the networks asked for, then write the page of all that were measured."""
    for name in args.networks or PUBLISHED:
        write_json(args.out / f"{name}.json", measure_network(name, args.out / name))
    rows = [row for name in PUBLISHED if (path := args.out / f"{name}.json").is_file() for row in _rows(path)]
    with atomic_file(args.page) as beside:
        beside.write_text(page(rows, f"python benchmarks/networks.py -o {args.out}"), encoding="utf-8")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"default: {' '.join(PUBLISHED)}")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/networks"))
    parser.add_argument("--page", type=Path, default=DOCS)
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.networks if name not in PUBLISHED]:
        parser.error(f"no network {unknown[0]}; there are {', '.join(PUBLISHED)}")
    return args


def _rows(path: Path) -> list[dict[str, Any]]:
    value = read_json(path)
    return value if isinstance(value, list) else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; an error is one line and its exit code."""
    return script_border(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
