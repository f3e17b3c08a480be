"""Bundles: what is refused, which engine is chosen, and that a device needs no torch."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import SIDE, entry, full_entry, manifest, write_tiny_bundle

from ufr_edge.errors import (
    BackendUnavailableError,
    BundleError,
    ConfigError,
    EngineMisfitError,
    InputFileError,
)
from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import Wanted, choose_engine, open_bundle_engine, read_bundle, write_manifest
from ufr_edge.runtime.device import cpu_features, device_fingerprint, parse_cpuinfo, parse_smi
from ufr_edge.runtime.manifest import Manifest

FACES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
ORT = {"onnxruntime": "1.20"}
ALL = {**ORT, "openvino": "2026.4", "tensorrt": "10.9.0.34"}
INTEL = {"os": "linux", "machine": "x86_64", "cpu": "Xeon", "cpu_flags": "amx,avx2,avx512,bf16,vnni"}
JETSON = {"os": "linux", "machine": "aarch64", "cpu_flags": "", "gpu": "Orin", "gpu_compute": "8.7"}
OV = entry("ov-int8", backend="openvino", format="openvino", precision="int8")
OV_BF16 = entry("ov-bf16", backend="openvino", format="openvino", precision="bf16")
TRT = entry(
    "trt",
    backend="tensorrt",
    backend_version="10.9.0.34",
    format="tensorrt",
    precision="fp16",
    device_fingerprint={"gpu_compute": "8.7"},
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.ufr")


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a bundle on disk."""
    path = bundle / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_manifest_survives_json() -> None:
    before = manifest(entry(), full_entry())
    assert Manifest.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_a_manifest_of_the_first_release_is_read() -> None:
    value = manifest(entry()).to_json()
    value.pop("needs_ufr_edge")
    assert Manifest.from_json(value) == manifest(entry())


def test_a_bundle_runs(bundle: Path) -> None:
    read_bundle(bundle).check()
    with open_bundle_engine(bundle, engine="ort-fp32", threads=1) as engine:
        np.testing.assert_array_equal(engine.infer(FACES), FACES // 2)
        assert engine.info.path == bundle / "tiny.onnx"


def test_what_was_asked_for_is_what_runs(bundle: Path) -> None:
    assert open_bundle_engine(bundle, backend="onnxruntime").info.backend == "onnxruntime"
    with pytest.raises(ConfigError, match=r"precision int8 was asked for.*it is fp32"):
        open_bundle_engine(bundle, precision="int8")
    with pytest.raises(ConfigError, match="The bundle .* has no engine 'nope'; it has: "):
        open_bundle_engine(bundle, engine="nope")


def test_one_flipped_bit_anywhere_is_noticed(bundle: Path) -> None:
    path = bundle / "tiny.onnx"
    good, digest = path.read_bytes(), sha256_file(path)
    for at in (0, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 1
        path.write_bytes(bytes(bad))
        with pytest.raises(BundleError, match="export it again") as caught:
            open_bundle_engine(bundle, engine="ort-fp32")
        for part in ("tiny.onnx is damaged", digest[:12], sha256_file(path)[:12]):
            assert part in str(caught.value)


def test_a_file_of_another_engine_does_not_matter_until_check(bundle: Path) -> None:
    extra = bundle / "other.bin"
    extra.write_bytes(b"12345")
    edit(bundle, lambda value: value["files"].update({"other.bin": "b" * 64}))
    open_bundle_engine(bundle, engine="ort-fp32").close()
    with pytest.raises(BundleError, match=r"other\.bin is damaged"):
        read_bundle(bundle).check()


def test_a_missing_file(bundle: Path) -> None:
    (bundle / "tiny.onnx").unlink()
    with pytest.raises(BundleError, match=r"tiny\.onnx is missing"):
        open_bundle_engine(bundle)


def test_a_link_is_refused_even_when_its_content_is_right(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    shutil.move(bundle / "tiny.onnx", outside)
    (bundle / "tiny.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="is a link"):
        open_bundle_engine(bundle)


def test_a_linked_subfolder_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(bundle / "tiny.onnx", tmp_path / "elsewhere")
    (bundle / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link"):
        read_bundle(bundle).file("sub/tiny.onnx")


def test_a_bundle_reached_through_a_link_is_fine(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current.ufr").symlink_to(bundle)
    open_bundle_engine(tmp_path / "current.ufr").close()


@pytest.mark.parametrize(
    "name",
    [
        *("../tiny.onnx", "/etc/passwd", "a/../../b", "C:\\b", "a\\b", "", ".", "./a", "manifest.json", "a//b"),
        *("a:b", "a\0b", "a\nb", "\ud800", "n" * 201),
    ],
)
def test_names_that_lead_out_of_the_bundle(bundle: Path, name: str) -> None:
    edit(bundle, lambda value: value["files"].update({name: "a" * 64}))
    with pytest.raises(BundleError, match="not a plain path"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(schema=2), "schema 2.*reads up to 1.*a newer ufr-edge.*pip install --upgrade"),
        (
            lambda v: v.update(schema=3, needs_ufr_edge="9.1"),
            r'needs ufr-edge 9\.1 or newer.*install --upgrade "ufr-edge>=9\.1"',
        ),
        (lambda v: v.update(schema=2, needs_ufr_edge="1; rm -r"), "needs_ufr_edge is .* no version"),
        (lambda v: v.update(schema=0), "schema 0, which never was"),
        (lambda v: v["restorer"].update(side=0), r"restorer\.side is 0"),
        (lambda v: v["restorer"].update(weights_sha256="x"), r"weights_sha256 in the manifest is no sha256"),
        (lambda v: v["engines"][0].update(onnx_sha256=""), "onnx_sha256 of engine ort-fp32 .* no sha256"),
        (lambda v: v.pop("schema"), r"manifest\.schema is missing"),
        (lambda v: v.update(schema=True), r"manifest\.schema is bool"),
        (lambda v: v["restorer"].pop("side"), r"manifest\.restorer\.side is missing"),
        (lambda v: v["restorer"].update(side="256"), r"restorer\.side is str, it must be int"),
        (lambda v: v["engines"][1].pop("files"), r"engines\[1\]\.files is missing"),
        (lambda v: v["engines"][0].update(name="ov-fp32"), "two engines alike"),
        (lambda v: v["engines"][0].update(files=[]), "no files"),
        (lambda v: v["engines"][0].update(files=["else.onnx"]), r"else\.onnx but gives no checksum"),
        (lambda v: v["engines"][0].update(format="caffe"), "unknown format 'caffe'"),
        (lambda v: v["files"].update({"tiny.onnx": "xyz"}), "no sha256"),
        (lambda v: v.update(onnx="gone.onnx"), r"gone\.onnx but gives no checksum"),
    ],
)
def test_a_manifest_that_is_wrong_names_the_field(
    bundle: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=words):
        read_bundle(bundle)


def test_an_ir_without_its_weights_in_the_list_is_refused() -> None:
    with pytest.raises(BundleError, match=r"face\.bin"):
        manifest(entry(backend="openvino", format="openvino", files=("face.xml",)))


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"gone\.ufr does not exist"):
        read_bundle(tmp_path / "gone.ufr")
    with pytest.raises(InputFileError, match="not a bundle"):
        read_bundle(tmp_path)
    for text in ("{not json", "[]", "\x00\x01", "null", "[" * 100_000):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(BundleError):
            read_bundle(tmp_path)


def test_a_manifest_is_only_written_over_files_that_match(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="damaged"):
        write_manifest(tmp_path, manifest(entry()))
    assert not (tmp_path / "manifest.json").exists()


def test_an_engine_of_another_side_than_the_manifest_says(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "odd.ufr", side=SIDE * 2)
    with pytest.raises(BundleError, match=f"takes {SIDE} px faces, the manifest says {SIDE * 2}"):
        open_bundle_engine(bundle)


def test_the_fastest_kind_that_fits_is_chosen_and_the_rest_get_a_reason() -> None:
    engines = (entry("ort"), entry("ort-int8", precision="int8"), OV_BF16, OV, TRT)
    choice = choose_engine(manifest(*engines), fingerprint=INTEL, backends=ALL)
    assert choice.entry is OV
    assert dict(choice.turned_down) == {
        "ov-bf16": "ov-int8 goes before it: int8 before bf16",
        "ort-int8": "ov-int8 goes before it: openvino before onnxruntime",
        "ort": "ov-int8 goes before it: openvino before onnxruntime",
        "trt": "gpu_compute is none here, the engine was built for 8.7",
    }
    assert choose_engine(manifest(*engines), fingerprint=INTEL, backends=ORT).entry.name == "ort-int8"
    assert choose_engine(manifest(*engines), fingerprint=JETSON, backends=ALL).entry is TRT


@pytest.mark.parametrize(
    ("here", "built", "fits"), [("8.7", "8.7", True), ("8.9", "8.7", False), ("8.9", "8.6, 8.9", True)]
)
def test_every_field_of_the_fingerprint_must_be_equal_or_in_the_list(
    here: str, built: str, fits: bool
) -> None:
    engine = replace(TRT, device_fingerprint={"gpu_compute": built})
    fingerprint = JETSON | {"gpu_compute": here}
    if fits:
        assert choose_engine(manifest(engine), fingerprint=fingerprint, backends=ALL).entry is engine
    else:
        with pytest.raises(EngineMisfitError, match="gpu_compute is 8.9 here, the engine was built for 8.7"):
            choose_engine(manifest(engine), fingerprint=fingerprint, backends=ALL)


def test_another_tensorrt_version_is_a_misfit() -> None:
    words = r"backend_version is 10\.8 here.*10\.9\.0\.34.*--engine-name.*bundle rebuild door\.ufr --all-misfits"
    with pytest.raises(EngineMisfitError, match=words):
        here = {"tensorrt": "10.8"}
        choose_engine(manifest(TRT), fingerprint=JETSON, backends=here, path=Path("door.ufr"))


def test_bf16_needs_a_cpu_that_has_it() -> None:
    old = INTEL | {"cpu_flags": "avx2"}
    both = manifest(OV_BF16, entry("ort"))
    assert choose_engine(both, fingerprint=INTEL, backends=ALL).entry is OV_BF16
    assert choose_engine(both, fingerprint=old, backends=ALL).entry.name == "ort"
    with pytest.raises(EngineMisfitError, match="cpu_flags has none of bf16, amx"):
        choose_engine(both, fingerprint=old, backends=ALL, wanted=Wanted(precision="bf16"))


def test_a_missing_backend_names_the_command() -> None:
    both = manifest(OV, entry("ort"))
    with pytest.raises(BackendUnavailableError, match=r'pip install "ufr-edge\[openvino\]"'):
        choose_engine(both, fingerprint=INTEL, backends=ORT, wanted=Wanted(backend="openvino"))


def test_the_device_narrows_the_choice() -> None:
    both = manifest(OV, entry("ort"))
    wanted = Wanted(device="cuda:0")
    assert choose_engine(both, fingerprint=INTEL, backends=ALL, wanted=wanted).entry.name == "ort"
    with pytest.raises(ConfigError, match="device npu was asked for"):
        choose_engine(manifest(entry("ort")), fingerprint=INTEL, backends=ALL, wanted=Wanted(device="npu"))


def test_of_two_alike_the_first_is_chosen() -> None:
    choice = choose_engine(manifest(entry("a"), entry("b")), fingerprint=INTEL, backends=ALL)
    assert choice.entry.name == "a"
    assert choice.turned_down == (("b", "a goes before it: it comes first in the manifest"),)


def test_a_bundle_without_engines() -> None:
    with pytest.raises(ConfigError, match="it has none"):
        choose_engine(manifest(), fingerprint=INTEL, backends=ALL)


def test_the_choice_is_pure() -> None:
    engines = manifest(entry("a"), entry("b"), OV)
    picks = [choose_engine(engines, fingerprint=INTEL, backends=ALL) for _ in range(3)]
    assert picks[0] == picks[1] == picks[2]


def test_a_bundle_runs_without_loading_torch(bundle: Path) -> None:
    assert importlib.util.find_spec("torch") is not None, "proves nothing where torch is not installed"
    code = (
        "import sys, numpy, ufr_edge.runtime\n"
        "from pathlib import Path\n"
        "from ufr_edge.runtime.bundle import open_bundle_engine\n"
        "from ufr_edge.runtime.bench import bench_engine\n"
        f"with open_bundle_engine(Path({str(bundle)!r}), engine='ort-fp32', threads=1) as engine:\n"
        f"    faces = numpy.full((1, {SIDE}, {SIDE}, 3), 9, 'uint8')\n"
        "    assert (engine.infer(faces) == 4).all()\n"
        "    bench_engine(engine, runs=1)\n"
        "print(*sys.modules)\n"
    )
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert "onnxruntime" in loaded
    heavy = {"torch", "diffusers", "onnx", "openvino", "nncf", "tensorrt_rtx", "ufr_edge.export"}
    assert not loaded & (heavy | {"ufr_edge.calibration", "ufr_edge.restorers"})


def test_cpu_features_are_read_from_cpuinfo() -> None:
    text = "processor : 0\nmodel name\t: Xeon\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 avx512_bf16\n"
    assert parse_cpuinfo(text) == ("Xeon", frozenset({"avx2", "avx512", "vnni", "amx", "bf16"}))
    arm = "Features\t: fp asimd asimddp asimdhp i8mm\nModel\t\t: Board 5\n"
    assert parse_cpuinfo(arm) == ("Board 5", frozenset({"dotprod", "fp16", "i8mm"}))
    assert parse_cpuinfo("") == ("", frozenset())


def test_the_gpu_is_read_from_nvidia_smi() -> None:
    text = "NVIDIA L4, 8.9, 580.10\nNVIDIA L4, 8.9, 580.10\n"
    assert parse_smi(text) == {"gpu": "NVIDIA L4", "gpu_compute": "8.9", "gpu_driver": "580.10"}
    assert parse_smi("") == parse_smi("Failed to start NVML") == parse_smi("Orin, [N/A], [N/A]") == {}


def test_the_fingerprint_of_this_machine() -> None:
    found = device_fingerprint()
    assert found["os"] and found["machine"] and found["cpu"]
    assert set(filter(None, found["cpu_flags"].split(","))) == cpu_features()


def test_an_engine_named_that_cannot_be_is_the_only_one_told_of(tmp_path: Path) -> None:
    manifest = read_bundle(write_tiny_bundle(tmp_path / "a.ufr")).manifest
    first = manifest.engines[0]
    wanted = Wanted(name=first.name, device="npu:9")
    with pytest.raises(ConfigError) as caught:
        choose_engine(manifest, fingerprint={}, backends={}, wanted=wanted)
    assert first.name in str(caught.value)
    assert "name " + first.name + " was asked for" not in str(caught.value)
