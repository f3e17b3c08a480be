"""What training makes of the files it is given, and what it says of those it leaves out."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from training_fakes import SIDE, make_faces, save_small_prior, save_small_restorer, write_faces

from ufr_edge.adaptation import adapt as adapting
from ufr_edge.adaptation import targets as targeting
from ufr_edge.adaptation.faces import load_faces
from ufr_edge.adaptation.real_faces import load_real, real_lines
from ufr_edge.calibration.frames import list_images as list_calibration
from ufr_edge.calibration.frames import read_face as read_calibration_face
from ufr_edge.cli import main
from ufr_edge.restorers.files import load_restorer


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces", make_faces(10))


def cut_jpeg(path: Path) -> None:
    cv2.imwrite(str(path), make_faces(1, seed=9)[0])
    path.write_bytes(path.read_bytes()[:-60])


def test_a_cut_jpeg_is_no_face(faces: Path) -> None:
    cut_jpeg(faces / "cut.jpg")
    found = load_faces(faces, SIDE)
    assert len(found) == 10 and found.kinds == ("broken",) and "cut.jpg" in found.skipped[0][0]


@pytest.mark.parametrize("in_memory", [10**9, 100])
def test_real_faces_are_clean_ones(faces: Path, in_memory: int) -> None:
    cut_jpeg(faces / "cut.jpg")
    grey, deep = make_faces(2, seed=5)
    cv2.imwrite(str(faces / "a_grey.png"), np.repeat(grey[..., :1], 3, axis=2))
    cv2.imwrite(str(faces / "deep.png"), deep.astype(np.uint16) * 257)
    real = load_real(faces, SIDE, in_memory=in_memory)
    drawn = real.images[np.arange(len(real))]
    assert all(np.ptp(face.astype(int), axis=2).max() > 2 for face in drawn)
    assert {face.tobytes() for face in drawn} == {face.tobytes() for face in make_faces(10)}
    said = "\n".join(real_lines(faces, real))
    assert "left out 3 files" in said and all(name in said for name in ("a_grey.png", "cut.jpg", "deep.png"))


@pytest.fixture
def nets(tmp_path: Path) -> list[str]:
    prior, restorer = tmp_path / "prior", tmp_path / "base.safetensors"
    return ["--prior", save_small_prior(prior), "--restorer", save_small_restorer(restorer), "--device", "cpu"]


QUICK = ["--steps", "2", "--batch", "4", "--no-progress"]
LIGHT = ["--preset", "light", "--start", "20", "--hold-until", "10", "--fast-steps", "2", "--no-qa", *QUICK]


def run(*order: str | Path) -> Result:
    result = CliRunner().invoke(main, list(map(str, order)))
    assert result.exit_code == 0, result.output
    return result


def test_finetune_says_what_matched_and_what_did_not(faces: Path, tmp_path: Path, nets: list[str]) -> None:
    targets = write_faces(tmp_path / "targets", make_faces(9))
    (faces / "broken.png").write_bytes(b"nothing")
    cut_jpeg(targets / "face_009.jpg")
    (targets / "config.json").write_text(json.dumps({"prior": "far-prior", "teacher": "gone.pth"}))
    said = run("finetune", "-i", faces, "-t", targets, "-o", tmp_path / "run", *nets, *QUICK).stdout
    assert "matched 9 of 10 faces; without a target: face_009.png" in said
    assert "left out 1 files\n  broken.png: " in said and "face_009.jpg" in said
    meta = load_restorer(tmp_path / "run").meta
    assert meta["prior"] == f"far-prior, {nets[1]}" and meta["teacher"] == "gone.pth"
    assert meta["teacher_licence"] == "as its source says" and meta["prior_licence"]


def test_the_next_command_of_adapt_takes_the_faces_that_were_used(
    faces: Path, tmp_path: Path, nets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And "light", the default's name, is without an adversarial term where there are no real faces."""
    for part in (adapting, targeting):
        monkeypatch.setattr(part, "open_detector", lambda stack: (None, ()))
    (faces / "broken.jpg").write_bytes(b"nothing")
    said = run("adapt", "-i", faces, "-o", tmp_path / "run", *nets, *LIGHT)
    assert "no --real" in said.stderr and "broken.jpg" in said.stdout
    shown = shlex.split(said.stdout[said.stdout.index("next:") :])
    calibration = Path(shown[shown.index("--calibration") + 1])
    assert calibration == tmp_path / "run" / "faces"
    assert len([read_calibration_face(path, SIDE) for path in list_calibration(calibration)]) == 10
    assert load_restorer(tmp_path / "run").meta["prior"] == nets[1]
