"""Verifying a bundle on the faces it carries: the drop per engine, the worst face, crash checks, what cannot run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper
from tiny_bundle import SIDE, entry, manifest, write_tiny_onnx

from ufr_edge.calibration.compare import pattern_frames
from ufr_edge.calibration.gate import GateConfig
from ufr_edge.calibration.verify import failing, verify_bundle
from ufr_edge.cli import main
from ufr_edge.errors import BundleError
from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import write_manifest
from ufr_edge.runtime.images import write_image
from ufr_edge.runtime.manifest import EngineEntry

FACES = pattern_frames(3, SIDE)
DARK = FACES // 2
"""What the tiny network makes of FACES: floor(0.5 x)."""


def with_gain(source: Path, target: Path, gain: float) -> Path:
    """The tiny network with another gain: an engine that deviates."""
    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        if tensor.name == "gain":
            tensor.CopyFrom(numpy_helper.from_array(np.array(gain, np.float32), "gain"))
    onnx.save(model, str(target))
    return target


def write_bundle(
    folder: Path,
    *,
    truth: NDArray[np.uint8] | None = None,
    gains: tuple[float, ...] = (0.5,),
    more: tuple[EngineEntry, ...] = (),
    stored: bool = True,
) -> Path:
    """A bundle with one engine per gain and, when `stored`, FACES as its reference."""
    folder.mkdir()
    base = write_tiny_onnx(folder / "tiny.onnx")
    names = ["tiny.onnx"]
    engines = []
    for index, gain in enumerate(gains):
        path = with_gain(base, folder / f"engine{index}.onnx", gain)
        names.append(path.name)
        engines.append(entry(f"gain-{gain:g}", files=(path.name,), onnx_sha256=sha256_file(base)))
    parts = {"lq": FACES, "fp32": DARK} | ({} if truth is None else {"hq": truth})
    for part, frames in parts.items() if stored else ():
        (folder / "reference" / part).mkdir(parents=True)
        for index, frame in enumerate(frames):
            names.append(f"reference/{part}/{index:03d}.png")
            write_image(folder / names[-1], frame)
    files = {name: sha256_file(folder / name) for name in names}
    write_manifest(folder, manifest(*engines, *more, files=files))
    return folder


def test_an_engine_that_is_fp32_loses_nothing_on_the_stored_faces(tmp_path: Path) -> None:
    report = verify_bundle(write_bundle(tmp_path / "a.ufr"))
    (check,) = report.engines
    assert report.origin == "its 3 stored faces" and report.base_psnr_db == 100.0
    assert check.parity is not None and check.parity.max_abs == 0
    assert (
        check.drop is not None
        and check.drop.implied
        and check.drop.mean_db < 1e-6
        and check.drop.faults == ()
    )
    assert "onnxruntime" in check.runs
    assert failing(report, limits=GateConfig()) == ()


def test_the_drop_against_a_known_truth_and_the_worst_face(tmp_path: Path) -> None:
    truth = DARK.copy()
    truth[1] = np.clip(DARK[1].astype(np.int16) + 3, 0, 255).astype(
        np.uint8
    )  # where fp32 is worst to begin with
    report = verify_bundle(write_bundle(tmp_path / "a.ufr", truth=truth, gains=(0.5, 0.49)))
    good, off = report.engines
    assert report.origin == "its 3 stored faces, whose truth is known"
    assert good.drop is not None and good.drop.mean_db == 0 and not good.drop.implied
    assert off.drop is not None and off.drop.mean_db > 1 and off.worst_image in ("000.png", "002.png")
    (line,) = failing(report, limits=GateConfig(max_drop_db=0.3))
    assert line.startswith("gain-0.49 (the mean drop is")


def test_a_crash_check_fails_whatever_the_limits(tmp_path: Path) -> None:
    report = verify_bundle(write_bundle(tmp_path / "a.ufr", gains=(0.5, 0.0)))
    lines = failing(report)
    assert len(lines) == 1 and lines[0].startswith("gain-0 (solid white comes out 127 levels off")
    assert "output channel is dead" in lines[0]


def test_without_stored_faces_a_pattern_is_named(tmp_path: Path) -> None:
    report = verify_bundle(write_bundle(tmp_path / "a.ufr", stored=False))
    assert report.origin == "a test pattern" and report.base_psnr_db is None
    assert report.engines[0].worst_image == "face 0"


def test_what_cannot_run_here_is_listed_and_not_judged(tmp_path: Path) -> None:
    foreign = entry(
        "trt", backend="tensorrt", format="tensorrt", precision="fp16", device="cuda", files=("tiny.onnx",)
    )
    report = verify_bundle(write_bundle(tmp_path / "a.ufr", more=(foreign,)))
    check = report.engines[1]
    assert check.parity is None and check.drop is None and check.reason and not check.broken
    assert failing(report, limits=GateConfig()) == ()


def test_when_nothing_runs_a_limit_is_not_met(tmp_path: Path) -> None:
    foreign = entry("trt", backend="tensorrt", format="tensorrt", device="cuda", files=("tiny.onnx",))
    report = verify_bundle(write_bundle(tmp_path / "a.ufr", gains=(), more=(foreign,)))
    assert failing(report) == ()
    assert failing(report, limits=GateConfig()) == ("no engine of it runs here",)


def test_an_engine_that_does_not_open_is_broken_and_the_others_are_still_checked(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a.ufr", gains=(0.5, 0.5001))
    bad = bundle / "engine0.onnx"
    bad.write_bytes(bad.read_bytes()[:-40])
    value = json.loads((bundle / "manifest.json").read_text())
    value["files"]["engine0.onnx"] = sha256_file(bad)
    (bundle / "manifest.json").write_text(json.dumps(value))
    first, second = verify_bundle(bundle).engines
    assert "does not open" in first.broken and first.parity is None
    assert second.parity is not None
    result = CliRunner().invoke(main, ["verify", str(bundle)])
    assert result.exit_code == 3 and "does not open" in result.output and "Traceback" not in result.output


def test_stored_faces_of_another_side_are_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a.ufr")
    target = bundle / "reference/lq/001.png"
    write_image(target, np.zeros((8, 8, 3), np.uint8))
    value = json.loads((bundle / "manifest.json").read_text())
    value["files"]["reference/lq/001.png"] = sha256_file(target)
    (bundle / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(BundleError, match=r"001\.png is \(8, 8, 3\), not \(32, 32, 3\)"):
        verify_bundle(bundle)


def test_the_command_prints_drops_and_exits_with_3_over_the_limit(tmp_path: Path) -> None:
    bundle = str(write_bundle(tmp_path / "a.ufr", truth=DARK // 2 * 2, gains=(0.5, 0.49)))
    lenient = CliRunner().invoke(main, ["verify", bundle])
    assert lenient.exit_code == 0, lenient.output
    assert "worst face" in lenient.output and "100.0 dB to the results stored at export" in lenient.output
    bad = CliRunner().invoke(main, ["verify", bundle, "--max-drop", "0.3"])
    assert bad.exit_code == 3
    assert "gain-0.49" in bad.stderr and "the mean drop is" in bad.stderr
    value = json.loads(CliRunner().invoke(main, ["verify", bundle, "--json"]).stdout)
    assert [check["name"] for check in value["engines"]] == ["gain-0.5", "gain-0.49"]
    assert value["engines"][1]["drop"]["worst_db"] > 0.3


@pytest.mark.parametrize(
    "order",
    [
        "verify a.ufr --max-drop",
        "verify a.ufr --max-worst",
        "verify a.ufr --min-psnr",
        "bundle rebuild a.ufr --all-misfits --max-drop",
        "export edge-m-256 -o a.ufr --max-drop",
        "export edge-m-256 -o a.ufr --gate-time",
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_limit_that_lets_everything_pass_is_refused(order: str, value: str) -> None:
    result = CliRunner().invoke(main, [*order.split(), value])
    assert result.exit_code == 2, result.output
    assert value in result.output and not Path("a.ufr").exists()


def test_names_of_faces_do_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a.ufr")
    value = json.loads((bundle / "manifest.json").read_text())
    value["files"] = dict(reversed(list(value["files"].items())))
    (bundle / "manifest.json").write_text(json.dumps(value))
    report = verify_bundle(bundle)
    assert replace(report, origin="") == replace(verify_bundle(bundle), origin="")
    assert report.base_psnr_db == 100.0
