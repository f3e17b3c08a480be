"""The cache of opened archives: unpacked once, mended, and not growing for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import SIDE, write_tiny_bundle

from ufr_edge.files import sha256_file
from ufr_edge.runtime import bundle_cache
from ufr_edge.runtime.bundle import open_bundle_engine, read_bundle
from ufr_edge.runtime.bundle_archive import pack_bundle, unpack_bundle
from ufr_edge.runtime.bundle_cache import KEEP, KEEP_S, open_archive


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return pack_bundle(read_bundle(write_tiny_bundle(tmp_path / "tiny.ufr")), tmp_path / "tiny.ufrz")


def lay(archive: Path, folder: Path, *, days_ago: float) -> Path:
    """A bundle in the cache that was opened so long ago, by a process that has ended."""
    unpack_bundle(archive, folder)
    when = time.time() - days_ago * 86_400
    os.utime(folder / "manifest.json", (when, when))
    return folder


def test_an_archive_is_opened_as_it_is(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UFR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    face = np.full((1, SIDE, SIDE, 3), 8, np.uint8)
    for _ in range(2):
        with open_bundle_engine(archive, engine="ort-fp32", threads=1) as engine:
            assert (engine.infer(face) == 4).all()
    (folder,) = (tmp_path / "cache" / "ufr-edge" / "bundles").glob("*.ufr")
    assert folder.stem == sha256_file(archive)[:32]
    inode = folder.stat().st_ino
    assert read_bundle(archive).path == folder
    assert folder.stat().st_ino == inode  # not unpacked again
    (folder / "tiny.onnx").write_bytes(b"broken")
    read_bundle(archive).check()  # mended
    (folder / "manifest.json").unlink()
    read_bundle(archive).check()


def test_the_cache_may_lie_elsewhere(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UFR_CACHE", str(tmp_path / "own"))
    assert read_bundle(archive).path.parent == tmp_path / "own" / "bundles"
    folder = open_archive(archive, cache=tmp_path / "c")
    assert folder.parent == tmp_path / "c"
    read_bundle(folder).check()


def test_what_was_not_used_for_long_is_removed(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    old = lay(archive, cache / "old.ufr", days_ago=KEEP_S / 86_400 + 1)
    fresh = lay(archive, cache / "fresh.ufr", days_ago=KEEP_S / 86_400 - 1)
    half = cache / ".new.ufr.x1"
    half.mkdir()
    (cache / "mine.txt").write_text("not a bundle")
    opened = open_archive(archive, cache=cache)
    assert not old.exists() and not half.exists()
    assert {p.name for p in cache.iterdir()} == {fresh.name, opened.name, "mine.txt", ".lock"}


def test_no_more_than_so_many_are_kept_and_the_last_used_stay(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    for day in range(1, KEEP + 3):
        lay(archive, cache / f"{day:02d}.ufr", days_ago=day)
    opened = open_archive(archive, cache=cache)
    assert {p.stem for p in cache.glob("*.ufr")} == {opened.stem, *(f"{day:02d}" for day in range(1, KEEP))}


@pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be removed there")
def test_a_bundle_in_use_stays_until_its_process_has_ended(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    code = (
        "import sys; from pathlib import Path; from ufr_edge.runtime.bundle_cache import open_archive\n"
        "print(open_archive(Path(sys.argv[1]), cache=Path(sys.argv[2])), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(archive), str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        used = Path(user.stdout.readline().strip())
        os.utime(used / "manifest.json", (1.0, 1.0))
        bundle_cache._prune(cache, cache / "another.ufr")
        assert (used / "manifest.json").exists()
        user.communicate("")
    bundle_cache._prune(cache, cache / "another.ufr")
    assert not used.exists()
