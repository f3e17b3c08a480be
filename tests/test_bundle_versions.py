"""Installed versions: the old or the new is current, whole, whatever happens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_bundle import write_tiny_bundle

from ufr_edge.cli import main
from ufr_edge.errors import BundleError, InputFileError, OutputError
from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import open_bundle_engine, read_bundle
from ufr_edge.runtime.bundle_archive import pack_bundle
from ufr_edge.runtime.lock import file_lock
from ufr_edge.runtime.version_link import link_version
from ufr_edge.runtime.versions import current_version, history, install_once, install_version, rollback


@pytest.fixture
def bundles(tmp_path: Path) -> list[Path]:
    return [
        write_tiny_bundle(tmp_path / f"{name}.ufr", name=name) for name in ("one", "two", "three", "four")
    ]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "door"


def chain(site: Path) -> list[tuple[int, str, int | None, bool]]:
    return [(v.number, v.name, v.previous, v.current) for v in history(site)]


def test_install_and_roll_back(site: Path, bundles: list[Path]) -> None:
    for number, bundle in enumerate(bundles[:3], 1):
        assert install_version(site, bundle) == site / "versions" / f"000{number}.ufr"
    assert chain(site) == [(1, "one", None, False), (2, "two", 1, False), (3, "three", 2, True)]
    assert rollback(site, reason="flicker").name == "two"
    assert [v.rejected for v in history(site)] == ["", "", "flicker"]
    assert rollback(site).number == 1
    with pytest.raises(
        InputFileError, match=r"no version to go back to \(one before the current\); it has: 1, 2, 3"
    ):
        rollback(site)
    assert current_version(site).number == 1


def test_going_back_after_a_rollback_leads_past_the_one_that_was_left(
    site: Path, bundles: list[Path]
) -> None:
    for bundle in bundles[:3]:
        install_version(site, bundle)
    rollback(site, reason="bad")
    rollback(site, reason="bad too")
    install_version(site, bundles[3])
    assert chain(site)[-1] == (4, "four", 1, True)
    assert rollback(site).name == "one"
    assert rollback(site, to=3).name == "three"
    assert {v.number: v.rejected for v in history(site)} == {
        1: "rolled back",
        2: "bad too",
        3: "",
        4: "rolled back",
    }
    with pytest.raises(InputFileError, match="number 9"):
        rollback(site, to=9)


def test_the_same_again_is_no_new_version(site: Path, bundles: list[Path]) -> None:
    install_version(site, bundles[0])
    assert install_version(site, bundles[0]).name == "0001.ufr"
    assert install_version(site, site).name == "0001.ufr"
    assert len(history(site)) == 1
    (site / "versions" / "0001.ufr" / "tiny.onnx").write_bytes(b"broken")
    assert (
        install_version(site, bundles[0]).name == "0002.ufr"
    )  # the current one is damaged: a whole one comes in
    read_bundle(site).check()


def test_every_reader_takes_the_folder(site: Path, bundles: list[Path], tmp_path: Path) -> None:
    install_version(site, pack_bundle(read_bundle(bundles[0]), tmp_path / "one.ufrz"))
    install_version(site, bundles[1])
    with open_bundle_engine(site, engine="ort-fp32", threads=1) as engine:
        assert engine.info.path == site / "versions" / "0002.ufr" / "tiny.onnx"
    open_bundle_engine(site / "current", engine="ort-fp32", threads=1).close()


def test_a_damaged_bundle_is_not_installed(site: Path, bundles: list[Path]) -> None:
    install_version(site, bundles[0])
    (bundles[1] / "tiny.onnx").write_bytes(b"broken")
    with pytest.raises(BundleError, match=r"tiny\.onnx is damaged"):
        install_version(site, bundles[1])
    assert sorted(p.name for p in (site / "versions").iterdir()) == ["0001.json", "0001.ufr"]
    with pytest.raises(InputFileError, match=r"gone\.ufr does not exist"):
        install_version(site, site.parent / "gone.ufr")
    assert current_version(site).name == "one"


def test_no_rollback_to_a_damaged_version(site: Path, bundles: list[Path]) -> None:
    for bundle in bundles[:2]:
        install_version(site, bundle)
    (site / "versions" / "0001.ufr" / "tiny.onnx").write_bytes(b"broken")
    with pytest.raises(BundleError, match="is damaged"):
        rollback(site)
    assert current_version(site).number == 2


def test_places_that_cannot_hold_versions(tmp_path: Path, bundles: list[Path]) -> None:
    with pytest.raises(OutputError, match="is a bundle itself"):
        install_version(bundles[0], bundles[1])
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        install_version(tmp_path / "file", bundles[1])
    for function in (rollback, current_version):
        with pytest.raises(InputFileError, match="No bundle is installed"):
            function(tmp_path / "nothing")
    assert history(tmp_path / "nothing") == ()
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "taken" / "current").mkdir(parents=True)
    with pytest.raises(OutputError, match="is a folder"):
        install_version(tmp_path / "taken", bundles[0])


def test_a_link_that_leads_elsewhere_is_refused_and_mended(site: Path, bundles: list[Path]) -> None:
    for bundle in bundles[:2]:
        install_version(site, bundle)
    for target in ("../one.ufr", "/etc", "versions/../../one.ufr", "versions/x.ufr"):
        (site / "current").unlink()
        (site / "current").symlink_to(target)
        with pytest.raises(BundleError, match="not to a version.*--to NUMBER"):
            read_bundle(site)
    assert rollback(site, to=1).current
    assert read_bundle(site).manifest.name == "one"


def test_a_file_stands_in_where_there_are_no_links(
    site: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: object, target_is_directory: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted")

    install_version(site, bundles[0])
    monkeypatch.setattr(Path, "symlink_to", refuse)
    install_version(site, bundles[1])
    assert (site / "current").read_text() == "versions/0002.ufr\n"
    assert read_bundle(site).manifest.name == "two"
    assert rollback(site).name == "one"
    (site / "current").write_text("versions/0002.ufr and more")
    with pytest.raises(BundleError, match="not to a version"):
        read_bundle(site)


def test_only_so_many_are_kept(site: Path, bundles: list[Path]) -> None:
    for bundle in bundles[:3]:
        install_version(site, bundle)
    rollback(site, to=1)
    install_version(site, bundles[3], keep=2)  # its way back is 1
    assert chain(site) == [(1, "one", None, False), (4, "four", 1, True)]
    assert sorted(p.name for p in (site / "versions").glob("*.ufr")) == ["0001.ufr", "0004.ufr"]
    install_version(site, bundles[2], keep=2)
    assert [number for number, *_ in chain(site)] == [4, 5]


def test_a_damaged_record_is_named(site: Path, bundles: list[Path]) -> None:
    install_version(site, bundles[0])
    (site / "versions" / "0001.json").write_text("{}")
    with pytest.raises(BundleError, match=r"0001\.json is damaged"):
        history(site)
    assert read_bundle(site).manifest.name == "one"  # the stream runs on


def test_what_is_not_ours_stays(site: Path, bundles: list[Path]) -> None:
    install_version(site, bundles[0])
    for name in (".hidden", "notes.txt", "mine.ufr"):
        (site / "versions" / name).write_text("mine")
    install_version(site, bundles[1])
    assert {".hidden", "notes.txt", "mine.ufr"} <= {p.name for p in (site / "versions").iterdir()}


def test_one_that_finds_the_folder_in_use_says_so(site: Path, bundles: list[Path]) -> None:
    with file_lock(site / ".lock"), pytest.raises(OutputError, match="in use by another process"):
        install_version(site, bundles[0], timeout_s=0)
    install_version(site, bundles[0], timeout_s=0)


def run_script(code: str, *arguments: Path) -> str:
    """Run code that forks, in a process without the threads of this one."""
    head = (
        "import os, sys\nfrom pathlib import Path\n"
        "from ufr_edge.runtime.bundle import read_bundle\n"
        "from ufr_edge.runtime.bundle_info import bundle_problems\n"
        "from ufr_edge.runtime.versions import history, install_once, install_version, rollback\n"
        "paths = [Path(a) for a in sys.argv[1:]]\n"
    )
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_processes_that_install_at_once_take_turns(site: Path, bundles: list[Path]) -> None:
    code = """
children = []
for bundle in paths[1:] * 2:
    if (pid := os.fork()) == 0:
        install_version(paths[0], bundle)
        os._exit(0)
    children.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(children)
"""
    run_script(code, site, *bundles)
    versions = history(site)
    assert {v.name for v in versions} == {"one", "two", "three", "four"}
    assert [v.number for v in versions] == list(range(1, len(versions) + 1))
    assert [v.previous for v in versions] == [None, *range(1, len(versions))]
    assert versions[-1].current
    for version in versions:
        read_bundle(version.path).check()


def test_once_is_once_also_where_it_was_left_since(site: Path, bundles: list[Path]) -> None:
    install_version(site, bundles[0])
    two = install_once(site, bundles[1])
    assert (current_version(site).path, install_once(site, bundles[1])) == (two, two)
    rollback(site, reason="no good")
    assert install_once(site, bundles[1]) == two
    assert current_version(site).name == "one"
    install_version(site, bundles[2])
    assert install_once(site, bundles[1]) == two
    assert current_version(site).name == "three"


def test_one_that_was_cut_short_before_its_link_becomes_current(site: Path, bundles: list[Path]) -> None:
    install_version(site, bundles[0])
    two = install_version(site, bundles[1])
    link_version(site, 1)  # as if the power had gone between the record and the link
    assert install_once(site, bundles[1]) == two
    assert chain(site) == [(1, "one", None, False), (2, "two", 1, True)]
    link_version(site, 1)
    assert install_version(site, bundles[2]).stem == "0003"  # another one takes its place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "again"),
    [
        ("install_version(site, paths[2], keep=2)", "install_version"),
        ("install_once(site, paths[2], keep=2)", "install_once"),
        ("rollback(site)", "install_version"),
    ],
)
def test_killed_at_any_point_the_old_or_the_new_is_current(
    tmp_path: Path, bundles: list[Path], action: str, again: str
) -> None:
    """The child dies before its k-th call that touches the disk, for every k until it gets through."""
    code = f"""
import shutil
def die_at(k):
    left = [k]
    def hook(event, args):
        if event.startswith(("os.", "shutil.")) or event == "open":
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
    sys.addaudithook(hook)
template, seen, k = paths[0], set(), 0
for bundle in (paths[1], paths[3], paths[4]):
    install_version(template, bundle)
before = read_bundle(template).manifest.name
while True:
    site = template.parent / "copy"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(template, site, symlinks=True)
    pid = os.fork()
    if pid == 0:
        die_at(k)
        {action}
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found = read_bundle(site)
    assert not bundle_problems(found), (k, bundle_problems(found))
    seen.add(found.manifest.name)
    assert sum(v.current for v in history(site)) == 1, k
    {again}(site, paths[2])
    assert read_bundle(site).manifest.name == "two", k
    install_version(site, paths[2])  # changes nothing, but clears away
    assert sum(v.name == "two" for v in history(site)) == 1, k
    names = [p.name for p in (site / "versions").iterdir()]
    assert not [n for n in names if n.startswith(".") or not (site / "versions" / n).with_suffix(".json").is_file()], names
    if code == 0:
        break
    assert code == 9, code
    k += 1
print(k, before, *sorted(seen))
"""
    steps, before, *seen = run_script(code, tmp_path / "door", *bundles).split()
    assert int(steps) > 10
    assert len(seen) == 2  # both outcomes were met
    assert before in seen


def test_the_commands(site: Path, bundles: list[Path]) -> None:
    def call(*args: object) -> str:
        result = CliRunner().invoke(main, ["bundle", *map(str, args)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "version 1 is current" in call("install", site, bundles[0])
    assert "version 2 is current" in call("install", site, bundles[1], "--keep", 3)
    assert "version 1 is current" in call("rollback", site, "--reason", "too soft")
    assert "left: too soft" in call("history", site)
    rows = json.loads(call("history", site, "--json"))
    assert [(row["name"], row["current"]) for row in rows] == [("one", True), ("two", False)]
    assert "version 2 is current" in call("rollback", site, "--to", 2)
    assert "two: edge-s" in call("info", site)
    failed = CliRunner().invoke(main, ["bundle", "history", str(site.parent / "none")])
    assert failed.exit_code == 1
    assert "No bundle is installed" in failed.stderr


def test_an_archive_whose_own_sha256_differs_is_refused(site: Path, bundles: list[Path], tmp_path: Path) -> None:
    good, poisoned = (pack_bundle(read_bundle(bundles[i]), tmp_path / f"{i}.ufrz") for i in (0, 1))
    sent = sha256_file(good)
    out = tmp_path / "out.ufr"
    for order in (
        ["deploy", poisoned, site],
        ["bundle", "install", site, poisoned],
        ["bundle", "unpack", poisoned, "-o", out],
    ):
        refused = CliRunner().invoke(main, [*map(str, order), "--sha256", sent])
        assert refused.exit_code != 0
        assert "is not the archive that was sent" in refused.stderr and sent in refused.stderr
        assert not site.exists() and not out.exists()
        right = CliRunner().invoke(main, [*map(str, order), "--sha256", sha256_file(poisoned).upper()])
        assert right.exit_code == 0, right.output
        shutil.rmtree(site, ignore_errors=True)
    for archive, wanted, words in (
        (good, "abc", "64 hex digits"),
        (bundles[0], sent, "is a folder"),
        (tmp_path / "none.ufrz", sent, "does not exist"),
    ):
        refused = CliRunner().invoke(main, ["deploy", str(archive), str(site), "--sha256", wanted])
        assert refused.exit_code != 0 and words in refused.stderr
