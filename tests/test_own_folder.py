"""Folders of one process: gone at its end, or with the next one that comes after it was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ufr_edge.errors import OutputError
from ufr_edge.runtime import faces_archive
from ufr_edge.runtime.bundle_archive import pack_files
from ufr_edge.runtime.faces_archive import pack_faces, unpack_faces
from ufr_edge.runtime.images import write_image
from ufr_edge.runtime.lock import own_folder

PREFIX = ".ufr-edge-pack-"
HOLD = f"""
import sys
from pathlib import Path
from ufr_edge.runtime.lock import own_folder
with own_folder(Path(sys.argv[1]), {PREFIX!r}) as place:
    (place / "face.png").write_text("x")
    print(place, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with a folder of its own in `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def left(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*"))


def test_it_is_gone_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), own_folder(tmp_path / "new", PREFIX) as place:
        (place / "face.png").write_text("x")
        assert left(tmp_path / "new") == [place]
        raise KeyboardInterrupt
    assert left(tmp_path / "new") == []


def test_one_of_a_killed_process_goes_with_the_next_and_one_that_lives_stays(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], Path]
) -> None:
    process, place = holder
    faces = tmp_path / "faces"
    faces.mkdir()
    write_image(faces / "0.png", np.zeros((16, 16, 3), np.uint8))
    pack_faces(faces, tmp_path / "a.ufrf")
    assert left(tmp_path) == [place] and (place / "face.png").is_file()
    process.kill()
    process.wait()
    assert left(tmp_path) == [place]
    pack_faces(faces, tmp_path / "b.ufrf")
    assert left(tmp_path) == []
    assert {path.name for path in unpack_faces(tmp_path / "b.ufrf", tmp_path / "out").iterdir()} >= {"0.png"}


def test_what_has_no_lock_goes_after_a_day_and_a_link_is_not_followed(tmp_path: Path) -> None:
    old, fresh, elsewhere = tmp_path / f"{PREFIX}old", tmp_path / f"{PREFIX}fresh", tmp_path / "elsewhere"
    for folder in (old, fresh, elsewhere):
        folder.mkdir()
        (folder / "face.png").write_text("x")
    (elsewhere / ".lock").touch()
    link = tmp_path / f"{PREFIX}link"
    link.symlink_to(elsewhere, target_is_directory=True)
    two_days_ago = time.time() - 2 * 86_400
    for folder in (old, elsewhere):
        os.utime(folder, (two_days_ago, two_days_ago))
    with own_folder(tmp_path, PREFIX):
        pass
    assert left(tmp_path) == [fresh, link]
    assert (fresh / "face.png").is_file() and (elsewhere / "face.png").is_file()


def test_a_disk_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: int, path: Path) -> bool:
        msg = f"{path} cannot be locked."
        raise OutputError(msg)

    monkeypatch.setattr("ufr_edge.runtime.lock.try_lock", none)
    with own_folder(tmp_path, PREFIX) as place, own_folder(tmp_path, PREFIX) as other:
        assert left(tmp_path) == sorted([place, other])
    assert left(tmp_path) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"), own_folder(tmp_path / "file", PREFIX):
        pass


def test_an_archive_of_faces_is_begun_inside_the_folder_of_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a killed call leaves no half an archive, which shows people, that nobody removes."""
    faces, begun = tmp_path / "faces", []
    faces.mkdir()
    write_image(faces / "0.png", np.zeros((16, 16, 3), np.uint8))

    def watched(paths: object, digests: object, out: Path, **rest: object) -> Path:
        begun.append(out.parent)
        return pack_files(paths, digests, out, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(faces_archive, "pack_files", watched)
    archive = tmp_path / "a.ufrf"
    pack_faces(faces, archive)
    assert begun and begun[0].parent == tmp_path and begun[0].name.startswith(PREFIX)
    assert archive.stat().st_mode & 0o777 == 0o600 and left(tmp_path) == []
