"""What training makes of the files it is given, and what it says of those it leaves out."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from training_fakes import SIDE, make_faces, write_faces

from ufr_edge.adaptation.faces import load_faces
from ufr_edge.adaptation.real_faces import load_real, real_lines


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
