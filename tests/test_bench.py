"""Measuring engines. Nothing here asserts how fast this machine is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_bundle import SIDE, write_tiny_bundle

from ufr_edge.cli import main
from ufr_edge.errors import ConfigError
from ufr_edge.runtime.bench import bench_bundle, bench_engine, machine_name
from ufr_edge.runtime.bundle import Wanted, open_bundle_engine

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.ufr")


def test_a_report_holds_together(bundle: Path) -> None:
    with open_bundle_engine(bundle, engine="ort-fp32", threads=1) as engine:
        report = bench_engine(engine, batch=2, warmup=1, runs=20)
    assert (report.batch, report.runs, report.side) == (2, 20, SIDE)
    assert 0 < report.p50_ms <= report.p95_ms <= report.p99_ms
    assert report.faces_per_s == pytest.approx(2e3 / report.mean_ms)
    assert report.peak_rss_mib > 1
    assert report.machine == machine_name() and "cores" in report.machine
    assert json.loads(json.dumps(report.to_json()))["info"]["path"] == "tiny.onnx"


@pytest.mark.parametrize(("batch", "warmup", "runs"), [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_settings_out_of_range(bundle: Path, batch: int, warmup: int, runs: int) -> None:
    with (
        open_bundle_engine(bundle, engine="ort-fp32") as engine,
        pytest.raises(ConfigError, match="1 or more"),
    ):
        bench_engine(engine, batch=batch, warmup=warmup, runs=runs)


@pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed")
def test_every_engine_that_fits_is_measured_the_chosen_one_first(bundle: Path) -> None:
    bench = bench_bundle(bundle, warmup=0, runs=2)
    assert [report.name for report in bench.reports] == ["ov-fp32", "ort-fp32"]
    one = bench_bundle(bundle, wanted=Wanted(name="ort-fp32"), warmup=0, runs=2)
    assert [report.name for report in one.reports] == ["ort-fp32"]
    assert one.turned_down[0][0] == "ov-fp32"
    assert one.reports[0].load_ms is not None


def test_the_command_prints_a_table_and_json(bundle: Path) -> None:
    options = ["bench", str(bundle), "--engine", "ort-fp32", "--runs", "2", "--warmup", "0"]
    table = CliRunner().invoke(main, options)
    assert table.exit_code == 0, table.output
    assert "faces/s" in table.output and "ort-fp32" in table.output and "onnxruntime" in table.output
    value = json.loads(CliRunner().invoke(main, [*options, "--json"]).stdout)
    assert value["engines"][0]["name"] == "ort-fp32"
    assert value["turned_down"][0]["name"] == "ov-fp32"


def test_a_rate_that_is_not_reached_exits_with_3(bundle: Path) -> None:
    options = ["bench", str(bundle), "--engine", "ort-fp32", "--runs", "1", "--min-fps"]
    assert CliRunner().invoke(main, [*options, "0.001"]).exit_code == 0
    slow = CliRunner().invoke(main, [*options, "1e12"])
    assert slow.exit_code == 3
    assert "--min-fps asks for 1e+12" in slow.output


def test_a_bundle_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", str(tmp_path / "gone.ufr")])
    assert result.exit_code == 1
    assert "gone.ufr does not exist" in result.output and "Traceback" not in result.output
