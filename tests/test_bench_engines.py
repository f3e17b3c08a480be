"""The page of engines: its rows come from the manifest and the timings, and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from export_helpers import write_faces, write_run
from script_loading import load_script
from tiny_bundle import entry, write_tiny_bundle

from ufr_edge.calibration.frames import load_faces
from ufr_edge.errors import InputFileError
from ufr_edge.export.bundle_export import load_pairs
from ufr_edge.runtime.bench import bench_bundle
from ufr_edge.runtime.bundle import Wanted, read_bundle
from ufr_edge.runtime.machine import read_power_state


@pytest.fixture(scope="module")
def engines() -> Any:
    return load_script("engines")


def test_what_is_exported(engines: Any) -> None:
    assert engines.Case.parse("edge-m-256") == engines.Case("edge-m-256", None)
    assert engines.Case.parse("edge-l-256@512") == engines.Case("edge-l-256", 512)
    assert engines.Case("edge-m-256", None) in engines.shipped_cases()
    names = [request.name for request in engines.offered_requests(["onnx"])]
    assert names == ["onnx-fp32", "onnx-int8"]


def test_faces_to_calibrate_on_and_to_measure_on_are_different_and_come_in_pairs(
    engines: Any, tmp_path: Path
) -> None:
    calibration, reference = engines.make_faces(tmp_path, 64)
    again = engines.make_faces(tmp_path, 64)  # a second run replaces the first
    assert again == (calibration, reference)
    names = [{path.stem for path in folder.glob("*.png")} for folder in (calibration, reference / "lq")]
    assert names[0] and names[1] and not names[0] & names[1]
    low, high = load_pairs(reference, 64)
    assert low.shape == high.shape and len(low) == len(names[1])
    assert load_faces(calibration, 64, limit=4).shape == (4, 64, 64, 3)


def test_a_row_and_the_page(engines: Any, tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "tiny.ufr")
    bench = bench_bundle(path, wanted=Wanted(name="ort-fp32"), warmup=0, runs=3, kernels=True)
    built_only = entry(
        "rtx", backend="tensorrt-rtx", quality={"reference_drop_db": -0.0001, "reference_worst_drop_db": 0.5}
    )
    row = dict(zip(engines.COLUMNS, engines.engine_row(built_only, path, None), strict=True))
    assert (row["p50 ms"], row["drop dB"], row["worst dB"]) == ("-", "0.000", "0.500")
    assert row["ran on"].endswith("built only")
    measured = engines.Measured(path, read_bundle(path).manifest, 12.3, bench.reports, ("a note",))
    args = engines.parse(["-o", str(tmp_path)])
    text = engines.page([measured], read_power_state(), args)
    assert "| ort-fp32 | fp32 |" in text and f"{bench.reports[0].p50_ms:.2f}" in text
    assert "- a note" in text and "12 s." in text and str(tmp_path) not in text


def test_an_adapted_restorer_is_read_before_anything_long(engines: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    seen, low, high = (write_faces(tmp_path / name, 3, seed=i) for i, name in enumerate(("seen", "lq", "hq")))
    order = ["-o", str(tmp_path / "out"), "--adapted", *(str(path) for path in (run, seen, low, high))]
    stale = tmp_path / "out" / "adapted" / "lq" / "stale.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    restorer, (calibration, pairs) = engines.read_adapted(engines.parse(order))
    assert (restorer.arch, calibration) == ("edge-s", seen)
    assert len(load_pairs(pairs, restorer.side)[0]) == 3 and not stale.exists()
    (high / "002.png").unlink()
    with pytest.raises(InputFileError, match="002 is in one of them only"):
        engines.read_adapted(engines.parse(order))
    page = tmp_path / "engines.md"
    assert engines.main([*order, "--page", str(page)]) == 1
    assert not page.exists() and not list((tmp_path / "out").glob("*.ufr"))


def test_the_ratio_is_of_one_run(engines: Any, tmp_path: Path) -> None:
    import dataclasses

    (report,) = bench_bundle(
        write_tiny_bundle(tmp_path / "tiny.ufr"), wanted=Wanted(name="ort-fp32"), warmup=0, runs=1
    ).reports
    base = dataclasses.replace(report, name="onnx-fp32", p50_ms=90.0)
    fast = dataclasses.replace(report, name="openvino-int8", p50_ms=9.0)
    assert (
        engines.ratio_line([fast, base])
        == "openvino-int8 takes 10.0 times less than onnx-fp32 in the same run."
    )
    assert engines.ratio_line([base]) == engines.ratio_line([fast]) == ""


def test_an_error_is_one_line_and_its_code(
    engines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = engines.main(["no-such-restorer", "-o", str(tmp_path), "--page", str(tmp_path / "page.md")])
    assert code == 1 and capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "page.md").exists()
