"""The doctor tries what is installed and names what mends each problem."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from ufr_edge import doctor, doctor_probes
from ufr_edge.cli import main
from ufr_edge.doctor import (
    Memory,
    PackageState,
    Probe,
    advise,
    driver_problems,
    estimate_memory,
    memory_problems,
    unmet,
)
from ufr_edge.doctor_nets import FLOAT_ONNX, INT8_ONNX, SIDE
from ufr_edge.errors import ConfigError
from ufr_edge.runtime.machine import cpu_arithmetic

BASE = (PackageState("numpy", "2.0", None), PackageState("torch", "2.13.0+cpu", "train"))
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None


@pytest.fixture(scope="module")
def report() -> doctor.DoctorReport:
    """One examination of this machine, without the TensorRT build that takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor_probes, "_build", lambda model, backend: "built nothing, in a test")
        return doctor.examine()


def test_onnxruntime_really_runs_a_network(report: doctor.DoctorReport) -> None:
    found = {probe.name: probe for probe in report.probes}
    assert found["onnxruntime"].status == "works"
    assert found["onnxruntime"].detail == "ran a network on cpu in fp32"
    assert found["onnxruntime-int8"].detail.endswith("convolutions in INT8 kernels")
    assert found["face detector"].status == "works"


@pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed")
def test_openvino_is_tried_in_each_precision_and_on_each_device(report: doctor.DoctorReport) -> None:
    found = {probe.name: probe for probe in report.probes}
    assert found["openvino"].status == found["openvino-int8"].status == "works"
    assert found["openvino-bf16"].status in ("works", "not here")
    assert {"openvino-gpu", "openvino-npu"} <= found.keys()


def test_the_report_is_printed_as_json_and_as_text(
    report: doctor.DoctorReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda require: report)
    value = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    assert set(value) == {field.name for field in dataclasses.fields(doctor.DoctorReport)}
    text = CliRunner().invoke(main, ["doctor"])
    for row in (*value["packages"], *value["probes"]):
        assert row["name"] in text.stdout
    for line in value["arithmetic"]:
        assert line in text.stdout
    assert text.exit_code == 0


def test_problems_alone_do_not_fail_it_requirements_do(
    report: doctor.DoctorReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    ill = dataclasses.replace(report, advice=("something is wrong",))
    monkeypatch.setattr(doctor, "examine", lambda require: ill)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0 and "! something is wrong" in result.stdout
    broken = dataclasses.replace(report, unmet=("openvino is required: fails: bad",))
    monkeypatch.setattr(doctor, "examine", lambda require: broken)
    result = CliRunner().invoke(main, ["doctor", "--require", "openvino"])
    assert result.exit_code == 1 and "openvino is required: fails: bad" in result.stderr


def test_an_unknown_requirement_is_refused_before_anything_is_tried() -> None:
    with pytest.raises(ConfigError, match="nothing called 'caffe'.*openvino-int8"):
        doctor.examine(["caffe"])


def test_what_a_requirement_takes() -> None:
    probes = (
        Probe("openvino", "works", ""),
        Probe("openvino-gpu", "not here", "OpenVINO lists no GPU"),
        Probe("tensorrt-rtx", "builds", ""),
        Probe("tensorrt", "not installed", "pip install x"),
    )
    assert unmet(probes, ["openvino", "tensorrt-rtx"]) == ()
    assert unmet(probes, ["openvino-gpu"]) == ("openvino-gpu is required: not here: OpenVINO lists no GPU",)
    assert unmet(probes, ["tensorrt"]) == ("tensorrt is required: not installed: pip install x",)
    gone = (Probe("openvino", "not installed", "pip install y"),)
    assert unmet(gone, ["openvino-int8"]) == ("openvino-int8 is required: not installed: pip install y",)


def test_the_doctor_loads_no_torch() -> None:
    code = (
        "import sys\nfrom ufr_edge import doctor, doctor_probes\n"
        "doctor_probes._build = lambda model, backend: ''\ndoctor.examine()\nprint('MODULES', *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in out.stdout.split("MODULES")[1].split()


def test_all_well_is_no_advice() -> None:
    missing = Probe("openvino", "not installed", "pip install ...")
    elsewhere = Probe("openvino-gpu", "not here", "no GPU")
    assert advise(BASE, (Probe("onnxruntime", "works", ""), missing, elsewhere)) == ()


@pytest.mark.parametrize(
    ("probe", "line"),
    [
        (Probe("opencv", "fails", "libGL.so.1: cannot open shared object file"), "apt-get install libgl1"),
        (
            Probe("openvino", "fails", "RuntimeError: bad"),
            "openvino is installed but fails: RuntimeError: bad",
        ),
    ],
)
def test_a_failure_is_one_line_with_a_command(probe: Probe, line: str) -> None:
    (advice,) = advise(BASE, (probe,))
    assert line in advice
    assert "\n" not in advice


def test_a_missing_base_package_and_mixed_builds_are_named() -> None:
    (advice,) = advise((PackageState("av", None, None),), ())
    assert advice.startswith("av missing from the base install")
    (advice,) = advise(BASE, (), torchvision="0.28.0")
    assert "pip uninstall torchvision" in advice
    assert advise(BASE, (), torchvision="0.28.0+cpu") == ()
    (advice,) = advise(BASE, (), gpu=True)
    assert "does not use the NVIDIA GPU" in advice


def test_a_driver_that_is_too_old_is_named() -> None:
    wheels = {"tensorrt_cu13": "11.0.0", "tensorrt_rtx_cu12": "1.3.0"}
    (line,) = driver_problems(wheels, "570.86.10")
    assert "tensorrt_cu13 11.0.0 needs NVIDIA driver 580" in line and "570.86.10" in line and "cu12" in line
    assert len(driver_problems(wheels, "470.57")) == 2
    assert (
        driver_problems(wheels, "580.65.06")
        == driver_problems(wheels, None)
        == driver_problems({}, "1.0")
        == ()
    )


def test_memory_that_is_too_little_names_the_workspace_that_fits() -> None:
    assert memory_problems(estimate_memory(64_000)) == memory_problems(estimate_memory(None)) == ()
    tight = estimate_memory(2500)
    assert tight.largest_workspace_mib is not None
    (line,) = memory_problems(tight)
    assert f"at most {tight.largest_workspace_mib} MiB fits" in line
    (line,) = memory_problems(Memory(available_mib=300, build_mib=3000, largest_workspace_mib=0))
    assert "not even a build without workspace" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("flags\t: avx2 avx512f avx512_vnni amx_int8 amx_bf16", ("AMX-INT8", "AMX-BF16")),
        ("flags\t: avx2 avx512_vnni avx512_bf16", ("AVX512-VNNI, no AMX", "bf16 without AMX")),
        ("flags\t: avx2 avx_vnni", ("AVX-VNNI, no AMX", "no bf16")),
        ("flags\t: avx2", ("no VNNI and no AMX", "no bf16")),
        ("Features\t: fp asimd asimddp bf16", ("dot product", "bf16 without AMX")),
    ],
)
def test_what_the_instructions_mean(tmp_path: Path, flags: str, words: tuple[str, str]) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    int8, bf16 = cpu_arithmetic(tmp_path)
    assert words[0] in int8 and words[1] in bf16


def test_without_cpuinfo_nothing_is_claimed(tmp_path: Path) -> None:
    assert cpu_arithmetic(tmp_path) == ()


def test_whatever_a_backend_raises_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        msg = "driver\nmissing"
        raise RuntimeError(msg)

    monkeypatch.setattr(doctor_probes, "open_engine_file", broken)
    monkeypatch.setattr(doctor_probes, "installed_backends", lambda: {"onnxruntime": "1"})
    found = tuple(doctor_probes.run_probes(gpu=False))
    probe = next(probe for probe in found if probe.name == "onnxruntime")
    assert (probe.status, probe.detail) == ("fails", "RuntimeError: driver missing")
    assert any(line.startswith("onnxruntime is installed but fails") for line in advise(BASE, found))


def test_an_engine_that_was_built_is_run_only_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_probes, "_build", lambda model, backend: "built")
    monkeypatch.setattr(doctor_probes, "_run", lambda model, backend: f"ran {model.suffix}")
    here = {"tensorrt": "10", "tensorrt-rtx": "1"}
    model = Path("tiny.onnx")
    assert doctor_probes._tensorrt("tensorrt-rtx", model, here, gpu=False).status == "builds"
    ran = doctor_probes._tensorrt("tensorrt", model, here, gpu=True)
    assert (ran.status, ran.detail) == ("works", "ran .tensorrt")
    assert doctor_probes._tensorrt("tensorrt", model, here, gpu=False).status == "not here"
    assert doctor_probes._tensorrt("tensorrt", model, {}, gpu=True).status == "not installed"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_a_real_build_is_part_of_it() -> None:
    found = {probe.name: probe for probe in doctor_probes.run_probes(gpu=False)}
    assert (found["tensorrt-rtx"].status, "not run" in found["tensorrt-rtx"].detail) == ("builds", True)


@pytest.mark.slow
def test_torch_is_tried_when_training_is_asked_about() -> None:
    assert importlib.util.find_spec("torch") is not None
    found = {probe.name: probe for probe in doctor_probes.run_probes(gpu=False, ask=["train", "export"])}
    assert found["train"].status == found["export"].status == "works"


@pytest.mark.parametrize("quantized", [False, True])
def test_the_stored_networks_are_what_they_are_said_to_be(quantized: bool) -> None:
    stored = onnx.load_from_string(INT8_ONNX if quantized else FLOAT_ONNX)
    onnx.checker.check_model(stored)
    assert stored == _network(quantized=quantized)


def _network(*, quantized: bool) -> onnx.ModelProto:
    """uint8 NHWC -> [0, 1] -> 3 to 8 and 8 to 3 channels by ones on the diagonal -> uint8 NHWC."""
    values: list[tuple[str, np.ndarray]] = []
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["t", "k"], ["a0"]),
    ]

    def constant(name: str, value: np.ndarray | np.generic) -> str:
        values.append((name, np.asarray(value)))
        return name

    def rounded(name: str, index: int) -> str:
        if not quantized:
            return name
        nodes.append(helper.make_node("QuantizeLinear", [name, "sa", "za"], [f"q{index}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{index}", "sa", "za"], [f"d{index}"]))
        return f"d{index}"

    def weight(name: str, shape: tuple[int, int]) -> str:
        diagonal = (
            np.eye(*shape, dtype=np.float32)[:, :, None, None]
            * (np.arange(shape[0]) < 3)[:, None, None, None]
        )
        if not quantized:
            return constant(name, diagonal.astype(np.float32))
        constant(name, (diagonal * 127).astype(np.int8))
        nodes.append(helper.make_node("DequantizeLinear", [name, "sw", "zw"], [f"{name}d"]))
        return f"{name}d"

    for name, number in (("k", 1 / 255), ("m", 255), ("lo", 0), ("hi", 255)):
        constant(name, np.float32(number))
    if quantized:
        for name, value in (
            ("sa", np.float32(1 / 255)),
            ("za", np.uint8(0)),
            ("sw", np.float32(1 / 127)),
            ("zw", np.int8(0)),
        ):
            constant(name, value)
    nodes.append(helper.make_node("Conv", [rounded("a0", 0), weight("w1", (8, 3))], ["c1"]))
    nodes.append(helper.make_node("Relu", ["c1"], ["r1"]))
    nodes.append(helper.make_node("Conv", [rounded("r1", 1), weight("w2", (3, 8))], ["c2"]))
    nodes += [
        helper.make_node("Mul", [rounded("c2", 2), "m"], ["u"]),
        helper.make_node("Round", ["u"], ["v"]),
        helper.make_node("Clip", ["v", "lo", "hi"], ["cl"]),
        helper.make_node("Transpose", ["cl"], ["n"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["n"], ["y"], to=TensorProto.UINT8),
    ]
    shape = ["batch", SIDE, SIDE, 3]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(value, name) for name, value in values],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
