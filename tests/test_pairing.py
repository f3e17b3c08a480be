"""Faces and targets that do not match by name: what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_fakes import SIDE, make_faces, write_faces

from ufr_edge.adaptation.adapt import _to_measure_on
from ufr_edge.adaptation.pairing import load_pairs
from ufr_edge.adaptation.target_index import INDEX
from ufr_edge.errors import InputFileError


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces", make_faces(10))


@pytest.fixture
def targets(tmp_path: Path) -> Path:
    """Of the same ten faces under other names, but for the first."""
    folder = write_faces(tmp_path / "targets", make_faces(10, seed=1))
    for path in sorted(folder.glob("*.png"))[1:]:
        path.rename(folder / path.name.replace("face", "clean"))
    return folder


def test_names_of_both_sides_are_shown(faces: Path, targets: Path) -> None:
    with pytest.raises(InputFileError) as caught:
        load_pairs(faces, targets, SIDE)
    said = str(caught.value)
    assert "Only 1 faces" in said and "at least 8 are needed" in said
    assert "Faces without a target: face_001.png, face_002.png, face_003.png and 6 more" in said
    assert "targets without a face: clean_001.png, clean_002.png, clean_003.png and 6 more" in said
    assert "Rename" in said and "ufr-edge targets" not in said  # the folder is the user's own


def test_targets_are_offered_where_they_are_ours_or_there_are_none(faces: Path, targets: Path, tmp_path: Path) -> None:
    command = f"ufr-edge targets -i {faces} -o "
    (targets / INDEX).write_text(json.dumps({"face": "face_000.png", "target": "face_000.png"}) + "\n")
    with pytest.raises(InputFileError, match=command):
        load_pairs(faces, targets, SIDE)
    with pytest.raises(InputFileError, match=f"is no folder.*{command}"):
        load_pairs(faces, tmp_path / "none", SIDE)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputFileError, match=f"holds no pictures.*{command}"):
        load_pairs(faces, tmp_path / "none", SIDE)


def test_truths_are_never_made_by_targets(faces: Path, targets: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    few = write_faces(tmp_path / "few", make_faces(2))
    for folder, words in ((tmp_path / "none", "clean version"), (few, "Give a truth for more"), (targets, "Rename")):
        with pytest.raises(InputFileError, match=words) as caught:
            load_pairs(faces, folder, SIDE, goal="truth")
        assert "ufr-edge" not in str(caught.value)


def test_two_targets_of_one_name_are_refused(faces: Path, tmp_path: Path) -> None:
    folder = write_faces(tmp_path / "own", make_faces(10, seed=1))
    (folder / "face_004.bmp").write_bytes((folder / "face_005.png").read_bytes())
    with pytest.raises(InputFileError, match=r"holds face_004\.bmp and face_004\.png"):
        load_pairs(faces, folder, SIDE)


def test_what_is_not_measured_is_told(faces: Path, targets: Path) -> None:
    told: list[str] = []
    (faces / "face_009.png").write_bytes(b"no picture")
    held, test = _to_measure_on(faces, targets, SIDE, told.append)
    assert held is not None and len(held.lq) == 1 and test is None
    assert told[0].startswith("to measure on: matched 1 of 9 faces; without a truth: face_001.png,")
    assert "face_009.png" in told[-1]
    told.clear()
    held, test = _to_measure_on(faces, None, SIDE, told.append)
    assert held is None and test is not None and len(test) == 9
    assert "left out 1 files" in told[0] and "face_009.png" in told[1]


def test_only_so_many_faces_are_measured(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ufr_edge.adaptation.adapt.MEASURED", 4)
    told: list[str] = []
    _to_measure_on(faces, None, SIDE, told.append)
    assert told == [f"to measure on: the first 4 faces of {faces} are measured"]
