"""Two builds of one bundle, and what is left of builds that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ufr_edge.errors import OutputError
from ufr_edge.export.lock import build_lock


def test_the_second_build_waits_for_the_first(tmp_path: Path) -> None:
    out, order, waiting = tmp_path / "a.ufr", [], threading.Event()

    def second() -> None:
        def told(holder: str) -> None:
            order.append(holder)
            waiting.set()

        with build_lock(out, on_wait=told):
            order.append("second")

    with build_lock(out):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(60)
        order.append("first")
    thread.join(60)
    assert order[0].startswith(f"process {os.getpid()} on ")
    assert order[1:] == ["first", "second"]
    assert list(tmp_path.iterdir()) == []  # the lock file goes with its last holder


def test_waiting_ends_in_words(tmp_path: Path) -> None:
    with (
        build_lock(tmp_path / "a.ufr"),
        pytest.raises(OutputError, match=f"held by process {os.getpid()} on"),
        build_lock(tmp_path / "a.ufr", wait_s=0),
    ):
        pass


def test_another_bundle_beside_it_is_free(tmp_path: Path) -> None:
    with build_lock(tmp_path / "a.ufr"), build_lock(tmp_path / "b.ufr", wait_s=0):
        assert len(list(tmp_path.iterdir())) == 2


def test_a_killed_build_neither_blocks_nor_leaves_anything(tmp_path: Path) -> None:
    """The child takes the lock, leaves half a bundle, and dies without cleaning up."""
    code = (
        "import os, sys; from pathlib import Path; from ufr_edge.export.lock import build_lock\n"
        "out = Path(sys.argv[1])\n"
        "lock = build_lock(out); lock.__enter__()\n"
        "half = out.parent / ('.' + out.name + '.x1'); half.mkdir(); (half / 'model.onnx').write_text('half')\n"
        "os._exit(9)\n"
    )
    out = tmp_path / "a.ufr"
    assert subprocess.run([sys.executable, "-c", code, str(out)], check=False).returncode == 9
    assert {p.name for p in tmp_path.iterdir()} == {".a.ufr.lock", ".a.ufr.x1"}
    (tmp_path / ".ab.ufr.x1").mkdir()  # another bundle's
    with build_lock(out, wait_s=0):
        assert not (tmp_path / ".a.ufr.x1").exists()
    assert [p.name for p in tmp_path.iterdir()] == [".ab.ufr.x1"]


def test_an_old_bundle_caught_between_two_renames_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".a.ufr.old.x1" / "a.ufr"
    aside.mkdir(parents=True)
    (aside / "manifest.json").write_text("{}")
    with build_lock(tmp_path / "a.ufr"):
        assert (tmp_path / "a.ufr" / "manifest.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["a.ufr"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="Choose another output"),
        build_lock(tmp_path / "file" / "a.ufr"),
    ):
        pass
