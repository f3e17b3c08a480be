"""Measuring engines. Nothing here asserts how fast this machine is."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from tiny_bundle import SIDE, write_tiny_bundle

from ufr_edge import bench_report
from ufr_edge.bench_report import bench_markdown, write_histogram
from ufr_edge.cli import main
from ufr_edge.doctor_nets import FLOAT_ONNX, INT8_ONNX
from ufr_edge.errors import BackendUnavailableError, ConfigError, InferenceError, ShapeError
from ufr_edge.runtime import bench as bench_module
from ufr_edge.runtime.bench import BenchConfig, bench_bundle, bench_engine, machine_name
from ufr_edge.runtime.bundle import Wanted, open_bundle_engine
from ufr_edge.runtime.engines import Engine
from ufr_edge.runtime.engines.base import LayerTime
from ufr_edge.runtime.engines.onnxruntime_engine import open_onnxruntime
from ufr_edge.runtime.kernels import profile_kernels, summarise
from ufr_edge.runtime.machine import (
    PowerState,
    available_memory_mib,
    process_memory,
    read_power_state,
    reset_peak_memory,
)

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
BACKENDS = [
    "onnxruntime",
    pytest.param("openvino", marks=pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed")),
]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.ufr")


def test_a_report_holds_together(bundle: Path) -> None:
    with open_bundle_engine(bundle, engine="ort-fp32", threads=1) as engine:
        report = bench_engine(engine, batch=2, warmup=1, runs=20)
    assert (report.batch, report.runs, report.side, len(report.times_ms)) == (2, 20, SIDE, 20)
    assert 0 < report.p50_ms <= report.p95_ms <= report.p99_ms and report.first_ms > 0
    assert report.faces_per_s == pytest.approx(2e3 / report.mean_ms)
    assert report.peak_rss_mib > 1
    assert report.machine == machine_name() and "cores" in report.machine
    assert json.loads(json.dumps(report.to_json()))["info"]["path"] == "tiny.onnx"


def test_the_first_call_after_loading_is_timed_apart(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 0.001, 0.003])
    monkeypatch.setattr(bench_module, "_seconds", lambda engine, faces: next(seconds))
    with open_bundle_engine(bundle, engine="ort-fp32") as engine:
        report = bench_engine(engine, warmup=0, runs=2)
    assert report.first_ms == 9000.0 and report.times_ms == (1.0, 3.0) and report.p50_ms == 2.0


@pytest.mark.parametrize(("batch", "warmup", "runs"), [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_settings_out_of_range(bundle: Path, batch: int, warmup: int, runs: int) -> None:
    with (
        open_bundle_engine(bundle, engine="ort-fp32") as engine,
        pytest.raises(ConfigError, match="1 or more"),
    ):
        bench_engine(engine, batch=batch, warmup=warmup, runs=runs)
    with pytest.raises(ConfigError, match="1 or more"):
        bench_bundle(bundle, batches=(batch,), warmup=warmup, runs=runs)
    with pytest.raises(ConfigError):
        BenchConfig(runs=0)


@pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed")
def test_every_engine_that_fits_is_measured_at_every_batch_the_chosen_one_first(bundle: Path) -> None:
    bench = bench_bundle(bundle, batches=(1, 4, 1), warmup=0, runs=2)
    found = [(report.name, report.batch) for report in bench.reports]
    assert found == [("ov-fp32", 1), ("ov-fp32", 4), ("ort-fp32", 1), ("ort-fp32", 4)]
    one = bench_bundle(bundle, wanted=Wanted(name="ort-fp32"), warmup=0, runs=2)
    assert [report.name for report in one.reports] == ["ort-fp32"]
    assert one.turned_down[0][0] == "ov-fp32"
    assert one.reports[0].load_ms is not None and one.reports[0].kernels is None


def test_a_batch_the_engine_was_not_built_for_is_listed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = Engine.infer

    def small(self: Engine, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if len(batch) > 2:
            msg = "built for (1, 32, 32, 3) to (2, 32, 32, 3)"
            raise ShapeError(msg)
        return infer(self, batch)

    monkeypatch.setattr(Engine, "infer", small)
    bench = bench_bundle(bundle, wanted=Wanted(name="ort-fp32"), batches=(1, 4), warmup=0, runs=1)
    assert [report.batch for report in bench.reports] == [1]
    assert ("ort-fp32 at batch 4", "built for (1, 32, 32, 3) to (2, 32, 32, 3)") in bench.turned_down


@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_kernels_are_told_from_float_ones(tmp_path: Path, backend: str) -> None:
    shares = []
    for data in (FLOAT_ONNX, INT8_ONNX):
        path = tmp_path / "net.onnx"
        path.write_bytes(data)
        profile = profile_kernels(path, backend=backend, side=32, threads=1, runs=2)
        assert profile is not None and profile.convolutions == 2
        shares.append((profile.int8_share, profile.int8_convolutions))
    assert shares[0] == (0.0, 0)
    assert shares[1][1] == 2 and 0 < shares[1][0] <= 1


def test_tensorrt_engines_have_no_profile(tmp_path: Path) -> None:
    assert profile_kernels(tmp_path / "x.engine", backend="tensorrt-rtx", side=32) is None


def test_moving_bytes_is_no_int8_arithmetic() -> None:
    layers = (
        LayerTime("a", "Transpose", "u8", 3.0),
        LayerTime("b", "QLinearConv", "uint8", 5.0),
        LayerTime("c", "Conv", "float", 2.0),
        LayerTime("d", "QuantizeLinear", "float", 0.0),
    )
    profile = summarise(layers)
    assert profile.int8_share == pytest.approx(0.5)
    assert (profile.convolutions, profile.int8_convolutions) == (2, 1)
    assert [kernel.kind for kernel in profile.kernels][:2] == ["QLinearConv", "Transpose"]
    assert profile.describe() == "INT8 50% of the time, 1 of 2 convolutions; most in QLinearConv int8 (50%)"
    with pytest.raises(InferenceError, match="names none of the layers"):
        summarise(())


def test_layer_times_want_a_session_that_measures_them(bundle: Path) -> None:
    session = open_onnxruntime(bundle / "tiny.onnx")
    with pytest.raises(InferenceError, match="profile=True"):
        session.layer_times()
    measuring = open_onnxruntime(bundle / "tiny.onnx", profile=True)
    measuring.close()
    measuring.close()
    with pytest.raises(InferenceError, match="closed"):
        measuring.layer_times()


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_power_state_is_read(tmp_path: Path) -> None:
    files = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/devices/system/cpu/intel_pstate/no_turbo": "1\n",
        "sys/class/power_supply/AC/type": "Mains\n",
        "sys/class/power_supply/AC/online": "0\n",
        "sys/class/power_supply/BAT0/type": "Battery\n",
    }
    state = read_power_state(write(tmp_path, files))
    assert (state.governor, state.turbo, state.on_mains) == ("powersave", False, False)
    assert state.describe().startswith("governor powersave, turbo off, on battery, load")
    doubts = dataclasses.replace(state, load=99.0).doubts()
    assert [
        word for word in ("busy", "cpupower", "battery") if not any(word in line for line in doubts)
    ] == []


def test_a_machine_that_tells_nothing_is_unknown_not_good(tmp_path: Path) -> None:
    state = read_power_state(tmp_path)
    assert (state.governor, state.turbo, state.on_mains, state.jetson) == (None, None, None, None)
    assert "governor unknown, turbo unknown, power supply unknown" in state.describe()
    assert dataclasses.replace(state, load=0.0).doubts() == ()


def test_amd_boost_and_a_board_whose_clocks_move() -> None:
    state = PowerState(
        governor="schedutil", turbo=None, on_mains=None, load=0.0, cores=6, jetson="clocks not locked"
    )
    assert state.doubts() == (
        "The clocks are not locked. For steady times: sudo nvpmodel -m 0 && sudo jetson_clocks",
    )


def test_boost_of_amd_is_turbo(tmp_path: Path) -> None:
    assert read_power_state(write(tmp_path, {"sys/devices/system/cpu/cpufreq/boost": "1"})).turbo is True


def test_memory_of_the_process_and_of_the_machine(tmp_path: Path) -> None:
    memory = process_memory()
    assert memory.peak_mib > 1
    root = write(tmp_path, {"proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable:    5836800 kB\n"})
    assert available_memory_mib(root) == 5700
    assert available_memory_mib(tmp_path / "none") is None


def test_the_peak_starts_anew() -> None:
    block = np.ones(64 << 20, np.uint8)  # 64 MiB, really written
    high = process_memory().peak_mib
    size = block.nbytes >> 20
    del block
    if not reset_peak_memory():
        pytest.skip("this system cannot reset a process's peak memory")
    assert process_memory().peak_mib < high - size / 2


def test_the_command_prints_a_table_json_or_markdown(bundle: Path) -> None:
    options = [
        "bench",
        str(bundle),
        "--engine",
        "ort-fp32",
        "--runs",
        "2",
        "--warmup",
        "0",
        "--batch",
        "1",
        "--batch",
        "2",
    ]
    table = CliRunner().invoke(main, options)
    assert table.exit_code == 0, table.output
    for words in (
        "faces/s",
        "first ms",
        "INT8 time",
        "ort-fp32",
        "onnxruntime",
        "governor",
        "0 of 0 convolutions",
    ):
        assert words in table.output
    value = json.loads(CliRunner().invoke(main, [*options, "--json"]).stdout)
    assert [(item["name"], item["batch"]) for item in value["engines"]] == [("ort-fp32", 1), ("ort-fp32", 2)]
    assert value["engines"][0]["kernels"]["int8_share"] == 0
    assert value["turned_down"][0]["name"] == "ov-fp32" and "governor" in value["power"]
    page = CliRunner().invoke(main, [*options, "--markdown"]).stdout
    assert page.startswith("# tiny: engines on this machine") and "| ort-fp32 | 2 |" in page
    assert CliRunner().invoke(main, [*options, "--markdown", "--json"]).exit_code == 2


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed")
def test_a_folder_of_results(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["bench", str(bundle), "--engine", "ort-fp32", "--runs", "5", "--no-kernels", "-o", str(out)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert json.loads((out / "bench.json").read_text())["engines"][0]["kernels"] is None
    picture = cv2.imread(str(out / "bench.png"))
    assert picture is not None and min(picture.shape[:2]) > 100


def test_without_matplotlib_the_rest_is_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str, *, extra: str) -> None:
        msg = f"{module} is not installed"
        raise BackendUnavailableError(msg)

    monkeypatch.setattr(bench_report, "require", missing)
    out = tmp_path / "out"
    options = ["bench", str(bundle), "--engine", "ort-fp32", "--runs", "1", "--no-kernels", "-o", str(out)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0 and "no histogram: matplotlib.figure is not installed" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md"]
    with pytest.raises(BackendUnavailableError):
        write_histogram(bench_bundle(bundle, wanted=Wanted(name="ort-fp32"), runs=1), tmp_path / "x.png")


def test_the_page_names_the_machine_its_state_and_what_did_not_run(bundle: Path) -> None:
    bench = bench_bundle(bundle, wanted=Wanted(name="ort-fp32"), warmup=0, runs=1)
    busy = dataclasses.replace(bench.power, load=50.0)
    page = bench_markdown(dataclasses.replace(bench, power=busy))
    assert machine_name() in page and "> The machine is busy" in page
    assert "- ov-fp32 was not measured:" in page


def test_a_rate_that_is_not_reached_exits_with_3(bundle: Path) -> None:
    options = ["bench", str(bundle), "--engine", "ort-fp32", "--runs", "1", "--no-kernels", "--min-fps"]
    assert CliRunner().invoke(main, [*options, "0.001"]).exit_code == 0
    slow = CliRunner().invoke(main, [*options, "1e12"])
    assert slow.exit_code == 3
    assert "--min-fps asks for 1e+12" in slow.output


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "fast"])
def test_a_rate_that_lets_everything_pass_is_refused(bundle: Path, value: str) -> None:
    result = CliRunner().invoke(main, ["bench", str(bundle), "--min-fps", value])
    assert result.exit_code == 2
    assert "--min-fps" in result.output and "engine  " not in result.output


def test_a_bundle_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", str(tmp_path / "gone.ufr")])
    assert result.exit_code == 1
    assert "gone.ufr does not exist" in result.output and "Traceback" not in result.output
