"""The doctor tries what is installed and names what mends each problem."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ufr_edge import doctor
from ufr_edge.cli import main
from ufr_edge.doctor import PackageState, Probe, advise

BASE = (PackageState("numpy", "2.0", None), PackageState("torch", "2.13.0+cpu", "train"))


def test_onnxruntime_really_runs_a_network() -> None:
    found = {probe.name: probe for probe in doctor.examine().probes}
    assert found["onnxruntime"].status == "works"
    assert "ran a network on cpu" in found["onnxruntime"].detail
    assert found["face detector"].status == "works"


def test_the_report_is_printed_as_json_and_as_text() -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert set(report) == {field.name for field in dataclasses.fields(doctor.DoctorReport)}
    text = CliRunner().invoke(main, ["doctor"])
    for row in (*report["packages"], *report["probes"]):
        assert row["name"] in text.stdout
    assert text.exit_code == (1 if report["advice"] else 0)


def test_the_doctor_loads_no_torch() -> None:
    code = "import sys\nfrom ufr_edge.doctor import examine\nexamine()\nprint('MODULES', *sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in out.stdout.split("MODULES")[1].split()


def test_all_well_is_no_advice() -> None:
    missing = Probe("openvino", "not installed", "pip install ...")
    assert advise(BASE, (Probe("onnxruntime", "works", ""), missing)) == ()


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


def test_whatever_a_backend_raises_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        msg = "driver\nmissing"
        raise RuntimeError(msg)

    monkeypatch.setattr(doctor, "open_engine_file", broken)
    report = doctor.examine()
    probe = next(probe for probe in report.probes if probe.name == "onnxruntime")
    assert (probe.status, probe.detail) == ("fails", "RuntimeError: driver missing")
    assert any(line.startswith("onnxruntime is installed but fails") for line in report.advice)
