"""Nothing half-written, nothing lost."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from ufr_edge.errors import InputFileError, OutputError
from ufr_edge.files import (
    atomic_file,
    atomic_folder,
    check_free,
    check_replaceable,
    read_json,
    sha256_file,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    with atomic_file(target) as beside:
        assert beside.suffix == ".json"
        beside.write_text("new", encoding="utf-8")
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "new"
    assert names(target.parent) == ["a.json"]
    assert target.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(error), atomic_file(target) as beside:
        beside.write_text("half", encoding="utf-8")
        raise error
    assert names(tmp_path) == ["a.txt"]
    assert target.read_text(encoding="utf-8") == "old"


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with atomic_folder(target) as beside:
        (beside / "a").write_text("1", encoding="utf-8")
        assert not target.exists()
    assert names(target) == ["a"]
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_folder_and_leaves_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(error), atomic_folder(target, overwrite=True) as beside:
        (beside / "new").touch()
        raise error
    assert names(tmp_path) == ["run"]
    assert names(target) == ["old"]


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").touch()
    with atomic_folder(target, overwrite=True) as beside:
        (beside / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["run"]


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    check_free(target, overwrite=False)  # an empty folder may be filled
    (target / "old").touch()
    with pytest.raises(OutputError, match="exists already. Give --overwrite"), atomic_folder(target):
        pytest.fail("the block must not run")
    check_free(target, overwrite=True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_clear_error(tmp_path: Path, number: int) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with (
        pytest.raises(OutputError, match=r"disk is full while writing .*a\.bin"),
        atomic_file(target) as beside,
    ):
        beside.write_bytes(b"half")
        raise OSError(number, "full")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_full_disk_really(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OutputError, match="disk is full"), atomic_folder(tmp_path / "run"):
        full.write_bytes(b"x" * 100_000)
    assert names(tmp_path) == []


def test_other_system_errors_are_not_renamed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"), atomic_file(tmp_path / "file" / "a"):
        pytest.fail("the block must not run")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"), atomic_file(tmp_path / "folder") as beside:
        beside.touch()
    assert names(tmp_path) == ["file", "folder"]


def test_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a"
    data = bytes(range(256)) * 9000  # more than one block
    path.write_bytes(data)
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()


def test_json_round_trip_and_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, None], "a": "ü"})
    assert read_json(path) == {"b": [1, None], "a": "ü"}
    with pytest.raises(InputFileError, match="does not exist"):
        read_json(tmp_path / "none.json")
    path.write_bytes(b"\xff{")
    with pytest.raises(InputFileError, match=r"a\.json cannot be read as JSON"):
        read_json(path)


def test_overwriting_never_removes_what_is_not_ours(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "absent", "record.json")
    check_replaceable(tmp_path, "record.json")  # empty
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(OutputError, match="not made by this command"):
        check_replaceable(tmp_path, "record.json")
    (tmp_path / "record.json").write_text("{}")
    check_replaceable(tmp_path, "record.json")
