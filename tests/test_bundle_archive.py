"""Archives of bundles: the same bytes every time, and nothing hostile or damaged gets out of one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bundle import write_tiny_bundle

from ufr_edge.cli import main
from ufr_edge.errors import BundleError, ConfigError, InputFileError, OutputError
from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import read_bundle, write_manifest
from ufr_edge.runtime.bundle_archive import ArchiveLimits, pack_bundle, unpack_bundle

Entry = tuple[zipfile.ZipInfo | str, bytes]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.ufr")


@pytest.fixture
def archive(bundle: Path, tmp_path: Path) -> Path:
    return pack_bundle(read_bundle(bundle), tmp_path / "tiny.ufrz")


def entries(archive: Path) -> list[Entry]:
    with zipfile.ZipFile(archive) as zipped:
        return [(info.filename, zipped.read(info)) for info in zipped.infolist()]


def write(path: Path, parts: list[Entry], *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as zipped:
        for name, data in parts:
            zipped.writestr(name, data)
    return path


def linked(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    return info


def refused(path: Path, out: Path, words: str, limits: ArchiveLimits | None = None) -> None:
    """The archive is refused in these words, and nothing is left behind."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(BundleError, match=words):
        unpack_bundle(path, out, limits=limits)
    assert sorted(out.parent.rglob("*")) == before


def test_there_and_back(bundle: Path, archive: Path, tmp_path: Path) -> None:
    out = unpack_bundle(archive, tmp_path / "deep" / "back.ufr")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in bundle.iterdir()
    }
    read_bundle(out).check()


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(bundle, copy)
    for path in copy.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    (copy / "not-listed.txt").write_text("stays at home")
    again = pack_bundle(read_bundle(copy), tmp_path / "again.ufrz")
    assert again.read_bytes() == archive.read_bytes()
    with zipfile.ZipFile(archive) as zipped:
        assert zipped.namelist() == ["manifest.json", "tiny.onnx"]


def test_an_archive_with_pictures_of_people_says_so_and_is_for_its_owner(
    bundle: Path, archive: Path, tmp_path: Path
) -> None:
    assert stat.S_IMODE(archive.stat().st_mode) == 0o644
    face = bundle / "reference" / "lq" / "000.png"
    face.parent.mkdir(parents=True)
    face.write_bytes(b"a face")
    whole = read_bundle(bundle).manifest
    write_manifest(bundle, replace(whole, files={**whole.files, "reference/lq/000.png": sha256_file(face)}))
    out, words = tmp_path / "people.ufrz", "holds pictures of people"
    result = CliRunner().invoke(main, ["bundle", "pack", str(bundle), "-o", str(out)])
    assert result.exit_code == 0 and words in result.output and stat.S_IMODE(out.stat().st_mode) == 0o600
    assert words in CliRunner().invoke(main, ["bundle", "info", str(bundle)]).output
    told = json.loads(CliRunner().invoke(main, ["bundle", "info", str(bundle), "--json"]).stdout)
    assert told["shows_people"] is True


def test_packing_refuses_what_is_damaged_or_too_large(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.ufrz"
    with pytest.raises(ConfigError, match=r"-o NAME\.ufrz"):
        pack_bundle(read_bundle(bundle), tmp_path / "a.zip")
    with pytest.raises(BundleError, match=r"manifest\.json.*more than 10"):
        pack_bundle(read_bundle(bundle), out, limits=ArchiveLimits(file_bytes=10))
    data = bytearray((bundle / "tiny.onnx").read_bytes())
    data[5] ^= 1
    (bundle / "tiny.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"tiny\.onnx is damaged"):
        pack_bundle(read_bundle(bundle), out)
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match="--overwrite"):
        pack_bundle(read_bundle(bundle), out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ufrz", "tiny.ufr"]
    assert out.read_bytes() == b"mine"


def test_unpacking_never_replaces_what_is_not_asked_for(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        unpack_bundle(archive, out)
    with pytest.raises(OutputError, match="not made by this command"):
        unpack_bundle(archive, out, overwrite=True)
    assert [p.name for p in out.iterdir()] == ["holiday.jpg"]
    old = unpack_bundle(archive, tmp_path / "old.ufr")
    unpack_bundle(archive, old, overwrite=True)
    read_bundle(old).check()


def test_every_cut_and_every_kind_of_wrong_file_is_refused(archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    bad = tmp_path / "bad.ufrz"
    for size in (0, 1, 21, 22, 100, len(data) // 2, len(data) - 23, len(data) - 1):
        bad.write_bytes(data[:size])
        refused(bad, tmp_path / "out.ufr", "cut off|damaged")
    for junk in (b"\0" * 1000, b"PK\x05\x06" + b"\xff" * 16 + b"\0\0", b"\x1f\x8b" + b"x" * 500):
        bad.write_bytes(junk)
        refused(bad, tmp_path / "out.ufr", "bad.ufrz")
    with pytest.raises(InputFileError, match="does not exist"):
        unpack_bundle(tmp_path / "none.ufrz", tmp_path / "out.ufr")
    with pytest.raises(InputFileError, match="is no file"):
        unpack_bundle(tmp_path, tmp_path / "out.ufr")


def test_a_changed_byte_is_refused_or_changes_nothing(archive: Path, bundle: Path, tmp_path: Path) -> None:
    data, bad, out = archive.read_bytes(), tmp_path / "bad.ufrz", tmp_path / "out.ufr"
    good = (bundle / "tiny.onnx").read_bytes()
    rng = np.random.default_rng(0)
    ends = range(len(data) - 150, len(data))  # the zip's directory, byte by byte
    for at in (*rng.integers(0, len(data), 250).tolist(), *ends):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        bad.write_bytes(changed)
        try:
            unpack_bundle(bad, out)
        except BundleError:
            assert not out.exists()
        else:
            assert (out / "tiny.onnx").read_bytes() == good
            shutil.rmtree(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ufrz", "tiny.ufr", "tiny.ufrz"]


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/../../evil", "C:\\evil", "a\\b", "./x", "x/", "a:b"]
)
def test_names_that_lead_out(archive: Path, tmp_path: Path, name: str) -> None:
    bad = write(tmp_path / "bad.ufrz", [*entries(archive), (name, b"x")])
    refused(bad, tmp_path / "in" / "out.ufr", "not a plain path|no plain file")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (stat.S_IFLNK, "a link"),
        (stat.S_IFCHR, "no plain file"),
        (stat.S_IFIFO, "no plain file"),
        (stat.S_IFDIR, "no plain"),
    ],
)
def test_links_and_devices(archive: Path, tmp_path: Path, kind: int, words: str) -> None:
    parts = entries(archive)
    bad = write(tmp_path / "bad.ufrz", [parts[0], (linked("tiny.onnx", kind), b"/etc/passwd")])
    refused(bad, tmp_path / "out.ufr", words)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["tiny.onnx"], "twice"),
        (["TINY.onnx"], "twice"),
        (["e\u0301", "\u00e9"], "twice"),
        (["manifest.JSON"], "twice"),
        (["tiny.onnx/x"], "as a file and as a folder"),
        (["unlisted.bin"], "does not list 'unlisted.bin'"),
        ([f"{i}.bin" for i in range(600)], "more than 512"),
    ],
)
def test_names_twice_and_files_too_many(archive: Path, tmp_path: Path, names: list[str], words: str) -> None:
    bad = write(tmp_path / "bad.ufrz", [*entries(archive), *((name, b"x") for name in names)])
    refused(bad, tmp_path / "out.ufr", words)


def test_what_the_manifest_says_holds(archive: Path, tmp_path: Path) -> None:
    (name, manifest), (onnx, data) = entries(archive)
    bad, out = tmp_path / "bad.ufrz", tmp_path / "out.ufr"
    refused(write(bad, [(name, manifest)]), out, r"lists 'tiny.onnx', which is not in the archive")
    refused(write(bad, [(onnx, data)]), out, r"no manifest\.json")
    refused(write(bad, [(name, manifest), (onnx, data[:-1] + b"!")]), out, r"tiny\.onnx is damaged")
    refused(write(bad, [(name, b"{"), (onnx, data)]), out, "damaged")
    refused(write(bad, [(name, b"[" * 50_000), (onnx, data)]), out, "damaged")
    refused(write(bad, [(name, b" " * (5 << 20)), (onnx, data)]), out, "larger than")
    value = json.loads(manifest) | {"schema": 7, "needs_ufr_edge": "7.7"}
    refused(write(bad, [(name, json.dumps(value).encode()), (onnx, data)]), out, r"needs ufr-edge 7\.7")


def bomb(archive: Path, path: Path, size: int) -> Path:
    """An archive whose manifest lists a large file of zeros, deflated to nearly nothing."""
    (name, raw), onnx = entries(archive)
    value = json.loads(raw)
    zeros = b"\0" * size
    value["files"]["zeros.bin"] = hashlib.sha256(zeros).hexdigest()
    parts: list[Entry] = [(name, json.dumps(value).encode()), onnx, ("zeros.bin", zeros)]
    return write(path, parts, compression=zipfile.ZIP_DEFLATED)


def test_sizes_are_limited(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ufr"
    large = bomb(archive, tmp_path / "large.ufrz", 8 << 20)
    refused(large, out, r"'zeros\.bin' is larger than the \d+ bytes")  # by its ratio
    unpack_bundle(large, out, limits=ArchiveLimits(ratio=2000))  # it is whole: nothing but the ratio is wrong
    shutil.rmtree(out)
    refused(large, out, r"zeros\.bin.*more than 5000", ArchiveLimits(file_bytes=5000))
    refused(large, out, "bytes in all, more than 5001", ArchiveLimits(total_bytes=5001))


def test_sizes_are_counted_while_reading_not_believed(archive: Path, tmp_path: Path) -> None:
    large = bomb(archive, tmp_path / "large.ufrz", 8 << 20)
    size, lie = (8 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")
    data = large.read_bytes()
    assert data.count(size) == 2  # the entry's own header, and the directory
    large.write_bytes(data.replace(size, lie))
    refused(large, tmp_path / "out.ufr", "damaged")


def test_files_that_lie_over_each_other(archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    at = data.rindex(b"PK\x01\x02")  # the directory's entry of tiny.onnx
    size = int.from_bytes(data[at + 20 : at + 24], "little")
    bad = bytearray(data)
    bad[at + 20 : at + 24] = (size * 50).to_bytes(4, "little")
    (tmp_path / "bad.ufrz").write_bytes(bad)
    refused(tmp_path / "bad.ufrz", tmp_path / "out.ufr", "over each other")


def test_a_directory_that_would_fill_the_memory(archive: Path, tmp_path: Path) -> None:
    filler = io.BytesIO()
    with zipfile.ZipFile(filler, "w") as zipped:
        info = zipfile.ZipInfo("a")
        info.extra = b"\xff\xff\xf0\xff" + b"\0" * 0xFFF0
        for index in range(8):
            info.filename = f"{index}"
            zipped.writestr(info, b"")
    (tmp_path / "bad.ufrz").write_bytes(filler.getvalue())
    refused(tmp_path / "bad.ufrz", tmp_path / "out.ufr", "more than 512")


def test_a_full_disk_is_said_and_leaves_nothing(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="disk is full"):
        unpack_bundle(archive, tmp_path / "out.ufr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.ufr", "tiny.ufrz"]
