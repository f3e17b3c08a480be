"""The loop on site: when a re-adaptation begins, what becomes of it, and that a power cut loses nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bundle import write_tiny_bundle

from ufr_edge.cli import main
from ufr_edge.errors import BundleError, ConfigError, InputFileError, OutputError
from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import read_bundle, write_manifest
from ufr_edge.runtime.bundle_archive import pack_bundle
from ufr_edge.runtime.face_store import open_store
from ufr_edge.runtime.faces_archive import pack_faces, unpack_faces
from ufr_edge.runtime.fingerprint import Fingerprint, Value
from ufr_edge.runtime.fingerprint_files import write_fingerprint
from ufr_edge.runtime.images import write_image
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.onsite import (
    ANSWER,
    STATE,
    OnsiteConfig,
    OnsiteLoop,
    open_onsite,
    read_state,
    start_readapt,
)
from ufr_edge.runtime.live.stats import Labels, LiveStats, StatsBoard
from ufr_edge.runtime.live.watch import FaceWatch
from ufr_edge.runtime.recorder import RecorderStats
from ufr_edge.runtime.versions import current_version, history, install_version, refuse_version

AUTO = OnsiteConfig(mode="auto", least_faces=10, rest_s=60.0)


@dataclass
class FakeChild:
    """A re-adaptation that ends when `code` is set."""

    code: int | None = None
    ended: list[str] = field(default_factory=list)
    stubborn: bool = False

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.ended.append("terminate")

    def kill(self) -> None:
        self.ended.append("kill")
        self.stubborn = False

    def wait(self, timeout: float | None = None) -> int:
        if self.stubborn:
            raise subprocess.TimeoutExpired(["readapt"], timeout or 0)
        return self.code or 0


@dataclass
class Bench:
    """A loop with a clock of its own, and children that are fakes."""

    folder: Path
    config: OnsiteConfig = AUTO
    clock: float = 0.0
    started: list[tuple[Path, int]] = field(default_factory=list)
    children: list[FakeChild] = field(default_factory=list)
    events: EventLog = field(default_factory=EventLog)
    refuse_start: bool = False

    def loop(self) -> OnsiteLoop:
        return OnsiteLoop(self.folder, self.config, self.start, events=self.events, now=lambda: self.clock)

    def start(self, work: Path, faces: int) -> FakeChild:
        if self.refuse_start:
            raise FileNotFoundError(2, "No such file")
        self.started.append((work, faces))
        self.children.append(FakeChild())
        return self.children[-1]

    def texts(self) -> list[str]:
        return [event.text for event in self.events.last() if event.kind == "readapt"]


def stats(*, drifted: bool, kept: int) -> LiveStats:
    recorded = RecorderStats(kept=kept, held=kept, tracks=3, megabytes=1.0, removed=0, refused={})
    plain = StatsBoard(Labels()).snapshot()
    return replace(
        plain, drifted=drifted, watch=FaceWatch(drift=None, recorded=recorded, recording=True, missed=0)
    )


def test_it_begins_once_enough_faces_came_after_drift(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    loop = bench.loop()
    for kept in (0, 50, 100):
        loop.tick(stats(drifted=False, kept=kept))
    loop.tick(stats(drifted=True, kept=100))
    loop.tick(stats(drifted=True, kept=109))
    assert bench.started == []
    loop.tick(stats(drifted=True, kept=112))
    assert bench.started == [
        (tmp_path / "readapt" / "0001", 12)
    ]  # the faces of the camera as it is now, no others
    loop.tick(stats(drifted=True, kept=200))
    assert len(bench.started) == 1
    assert read_state(tmp_path)["state"] == "running"


@pytest.mark.parametrize(("code", "state"), [(0, "installed"), (3, "refused"), (1, "failed"), (-9, "failed")])
def test_what_becomes_of_it_and_a_rest_after_it(tmp_path: Path, code: int, state: str) -> None:
    bench = Bench(tmp_path)
    loop = bench.loop()
    loop.tick(stats(drifted=True, kept=0))
    loop.tick(stats(drifted=True, kept=10))
    bench.children[0].code = code
    loop.tick(stats(drifted=True, kept=20))
    assert loop.state["state"] == state
    assert json.loads((tmp_path / STATE).read_text())["state"] == state
    for kept in (30, 40, 50):
        loop.tick(stats(drifted=True, kept=kept))
    assert len(bench.started) == 1
    bench.clock = 61.0
    loop.tick(stats(drifted=True, kept=60))
    assert bench.started[1] == (tmp_path / "readapt" / "0002", 30)


def test_drift_that_goes_by_itself_begins_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    loop = bench.loop()
    loop.tick(stats(drifted=True, kept=0))
    loop.tick(stats(drifted=False, kept=9))
    loop.tick(stats(drifted=True, kept=15))
    loop.tick(stats(drifted=True, kept=20))
    assert bench.started == []


def test_ask_waits_for_an_answer(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(AUTO, mode="ask"))
    (tmp_path / ANSWER).touch()  # an answer to no question
    loop = bench.loop()
    for kept in (0, 20, 30, 40):
        loop.tick(stats(drifted=True, kept=kept))
    assert bench.started == []
    assert bench.texts() == [
        f"the camera has changed; to adapt to it: touch {tmp_path / ANSWER}"
    ]  # said once
    (tmp_path / ANSWER).touch()
    loop.tick(stats(drifted=True, kept=50))
    assert len(bench.started) == 1
    assert not (tmp_path / ANSWER).exists()


def test_off_does_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(AUTO, mode="off"))
    loop = bench.loop()
    for kept in (0, 20, 30):
        loop.tick(stats(drifted=True, kept=kept))
    assert bench.started == []
    assert list(tmp_path.iterdir()) == []


def test_what_was_interrupted_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    loop = bench.loop()
    loop.tick(stats(drifted=True, kept=0))
    loop.tick(stats(drifted=True, kept=11))
    loop.close()
    assert bench.children[0].ended == ["terminate"]
    again = Bench(tmp_path)
    second = again.loop()
    second.tick(stats(drifted=False, kept=0))  # whether there still is drift or not
    assert again.started == [(tmp_path / "readapt" / "0001", 11)]
    again.children[0].stubborn = True
    second.close()
    assert again.children[0].ended == ["terminate", "kill"]


def test_a_damaged_state_uses_no_number_twice(tmp_path: Path) -> None:
    (tmp_path / "readapt" / "0007").mkdir(parents=True)
    (tmp_path / STATE).write_text('{"run": 7, "sta')
    nothing = {"run": 7, "state": "none", "faces": 0, "reason": "", "misses": 0, "before": 0, "rest_s": 0.0}
    assert read_state(tmp_path) == nothing
    (tmp_path / STATE).write_text(
        '{"run": 3, "state": "refused", "faces": 70, "reason": ""}'
    )  # of release 1.0
    assert read_state(tmp_path) == nothing | {"run": 3, "state": "refused", "faces": 70}


def test_a_child_that_cannot_be_started(tmp_path: Path) -> None:
    bench = Bench(tmp_path, refuse_start=True)
    loop = bench.loop()
    loop.tick(stats(drifted=True, kept=0))
    loop.tick(stats(drifted=True, kept=10))
    assert loop.state["state"] == "failed"
    assert (
        bench.texts()[-1]
        == "re-adaptation 1: failed: it cannot be started: No such file; the next in 1 minutes at the earliest"
    )


def once(bench: Bench, loop: OnsiteLoop, code: int) -> None:
    """A re-adaptation from its beginning to its end, without a pause."""
    before = len(bench.started)
    loop.tick(stats(drifted=True, kept=0))
    loop.tick(stats(drifted=True, kept=10))
    assert len(bench.started) == before + 1
    bench.children[-1].code = code
    loop.tick(stats(drifted=True, kept=10))


def test_each_refusal_doubles_the_rest_up_to_a_day(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(AUTO, rest_s=3600.0))
    loop = bench.loop()
    for hours in (1, 2, 4, 8, 16, 24, 24):
        once(bench, loop, 3)
        begun, bench.clock = len(bench.started), bench.clock + 3600 * hours - 1
        loop.tick(stats(drifted=True, kept=0))
        loop.tick(stats(drifted=True, kept=99))
        assert len(bench.started) == begun
        loop.tick(stats(drifted=False, kept=99))
        bench.clock += 1
    once(bench, loop, 0)
    assert loop.state["misses"] == 0 and loop.state["rest_s"] == 3600.0


def test_one_that_was_installed_and_left_again_is_a_miss(tmp_path: Path) -> None:
    """The gate lets it through, the stream goes back: without this they would take turns every half hour for ever."""
    for name in ("one", "two"):
        install_version(
            tmp_path, write_tiny_bundle(tmp_path.parent / f"{tmp_path.name}-{name}.ufr", name=name)
        )
    bench = Bench(tmp_path, replace(AUTO, rest_s=3600.0))
    loop = bench.loop()
    once(bench, loop, 3)
    bench.clock += 3600
    once(bench, loop, 0)
    assert (loop.state["misses"], loop.state["rest_s"]) == (0, 3600.0)
    refuse_version(tmp_path, 2, instead=1, reason="it threw")
    bench.clock += 3600
    loop.tick(stats(drifted=True, kept=0))
    loop.tick(stats(drifted=True, kept=99))
    assert len(bench.started) == 2
    assert (loop.state["state"], loop.state["misses"], loop.state["rest_s"]) == ("refused", 2, 7200.0)
    assert "it was installed, and left again: it threw; the next in 120 minutes" in bench.texts()[-1]
    bench.clock += 7200
    loop.tick(stats(drifted=True, kept=100))
    loop.tick(stats(drifted=True, kept=199))
    assert len(bench.started) == 3


def test_the_rest_goes_on_after_a_restart_whatever_the_clock_says(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(AUTO, rest_s=3600.0))
    loop = bench.loop()
    once(bench, loop, 3)
    bench.clock = 3000.0
    loop.tick(stats(drifted=False, kept=0))
    assert read_state(tmp_path)["rest_s"] == 600.0  # a cut now, with nothing closed
    again = Bench(tmp_path, bench.config, clock=-1e6)  # a machine that has just started
    second = again.loop()
    again.clock += 599
    second.tick(stats(drifted=True, kept=0))
    second.tick(stats(drifted=True, kept=50))
    assert again.started == []
    again.clock += 2
    second.tick(stats(drifted=True, kept=51))
    assert [work.name for work, _ in again.started] == ["0002"]
    assert second.state["misses"] == 1
    second.close()


def test_a_full_disk_is_said_once_and_the_loop_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    bench = Bench(tmp_path)
    loop = bench.loop()
    with monkeypatch.context() as patch:
        patch.setattr("ufr_edge.runtime.live.onsite.write_json", full)
        for clock in range(0, 300, 20):
            bench.clock = float(clock)
            loop.tick(stats(drifted=True, kept=clock))
    assert bench.started == []
    (said,) = [event.text for event in bench.events.last() if event.kind == "failed"]
    assert "No space left" in said and "tries again every minute" in said
    bench.clock = 400.0
    loop.tick(stats(drifted=True, kept=400))
    assert len(bench.started) == 1
    bench.children[0].code = 0
    with monkeypatch.context() as patch:
        patch.setattr("ufr_edge.runtime.live.onsite.write_json", full)
        loop.tick(stats(drifted=True, kept=401))
    assert loop.state["state"] == "running"
    bench.clock = 500.0
    loop.tick(stats(drifted=True, kept=402))  # its end is not forgotten, nor is it begun again
    assert (loop.state["state"], len(bench.started)) == ("installed", 1)


def test_a_failed_re_adaptation_leaves_no_picture_behind(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    loop = bench.loop()
    work = tmp_path / "readapt" / "0001"
    for name in ("split/train/1.png", "run/config.json", "run/checkpoint.pt", ".split.x/2.png", "base.ufr/a"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("x")
    for name in (".lock", "readapt.json", "faces.json"):
        (work / name).write_text("x")
    (work / "split" / "link").symlink_to(tmp_path)
    once(bench, loop, 1)
    left = sorted(path.relative_to(work).as_posix() for path in work.rglob("*"))
    assert left == [".lock", "faces.json", "readapt.json", "run", "run/config.json"]
    assert (tmp_path / STATE).is_file()


def test_two_watchers_on_one_folder(tmp_path: Path) -> None:
    with (
        open_onsite(tmp_path, AUTO, Bench(tmp_path).start, events=EventLog()),
        pytest.raises(OutputError, match="is watched already"),
        open_onsite(tmp_path, AUTO, Bench(tmp_path).start, events=EventLog()),
    ):
        pass
    with open_onsite(tmp_path, AUTO, Bench(tmp_path).start, events=EventLog()):
        pass


def test_the_child_has_low_priority_and_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, sys, pathlib; group = pathlib.Path('/proc/self/autogroup'); "
        "text = group.read_text().replace(' ', '').strip() if group.exists() else '-'; "
        "print(os.nice(0), os.environ['OMP_NUM_THREADS'], text, *sys.argv[1:])"
    )
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nsleep 0.3\nexec {sys.executable} -c "{code}" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    child = start_readapt(tmp_path / "door", tmp_path / "faces", "--camera", "yard")(
        tmp_path / "w" / "0003", 70
    )
    assert child.wait(60) == 0
    nice, threads, group, *args = (tmp_path / "w" / "0003.log").read_text().split()
    assert (int(nice) >= 15, threads) == (True, "1")
    if Path("/proc/self/autogroup").exists():
        assert group.endswith("nice15")
    assert args[:3] == ["-m", "ufr_edge", "readapt"]
    assert {"--newest", "70", "--threads", "--camera", "yard"} <= set(args)


LOOP = """
import itertools, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
from test_recorder import SMALL, sighting
from test_watch import AUTO, stats
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.onsite import open_onsite
from ufr_edge.runtime.recorder import open_recorder

site, new = Path(sys.argv[1]), Path(sys.argv[2])
code = f'''
from pathlib import Path
from ufr_edge.runtime.versions import install_once
install_once(Path({str(site)!r}), Path({str(new)!r}))
'''

def start(work, faces):
    work.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", code])

with (
    open_recorder(site / "faces", replace(SMALL, max_faces=10_000)) as recorder,
    open_onsite(site, AUTO, start, events=EventLog()) as loop,
):
    print("up", flush=True)
    for n in itertools.count():
        recorder.offer(sighting(n, seed=n))
        print(len(list((site / "faces").glob("[0-9]*.png"))), flush=True)
        loop.tick(stats(drifted=True, kept=recorder.stats.kept))
        if loop.state["state"] == "installed":
            break
        time.sleep(0.01)
"""
KILLS = 50


@dataclass
class Box:
    """A site whose loop is started, killed and started again, each time as a process group of its own."""

    folder: Path
    new: Path

    def install(self, number: int, one: Path) -> Path:
        site = self.folder / f"door-{number:02d}"
        install_version(site, one)
        return site

    def run(self, site: Path, *, kill_after: float | None) -> tuple[bool, int, float]:
        """Whether it came to its end, how many faces it had written when last heard of, and seconds from "up" on."""
        place = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        command = [sys.executable, "-c", textwrap.dedent(LOOP), str(site), str(self.new)]
        with subprocess.Popen(command, env=place, stdout=subprocess.PIPE, start_new_session=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            since = time.monotonic()
            if kill_after is not None:
                try:
                    process.wait(kill_after)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
            told = process.stdout.read().split(b"\n")[:-1]  # what was cut off in the middle says nothing
            code = process.wait()
        assert code in (0, -signal.SIGKILL), code
        return code == 0, max(map(int, told), default=0), time.monotonic() - since


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
def test_killed_at_50_points_the_old_or_the_new_version_is_current_and_whole(tmp_path: Path) -> None:
    """The points are spread evenly over what one undisturbed run takes; a new site follows one that is through."""
    box = Box(tmp_path, write_tiny_bundle(tmp_path / "two.ufr", name="two"))
    one = write_tiny_bundle(tmp_path / "one.ufr", name="one")
    whole, _, lasts = box.run(box.install(0, one), kill_after=None)
    assert whole
    rng, kills, sites, seen = random.Random(0), 0, 1, set[tuple[str, str]]()
    site = box.install(sites, one)
    while kills < KILLS:
        ended, written, _ = box.run(site, kill_after=rng.uniform(0, lasts))
        version = current_version(site)
        read_bundle(version.path).check()
        assert version.name in ("one", "two")
        state = read_state(site)
        assert state["run"] <= 1
        with open_store(site / "faces") as store:
            assert len(store.rows) >= written  # nothing that was there before the cut is lost
            assert {row.file for row in store.rows.values()} == {
                p.name for p in (site / "faces").glob("*.png")
            }
        seen.add((version.name, state["state"]))
        kills += not ended
        if ended:
            assert [found.name for found in history(site)] == ["one", "two"]
            assert (version.name, state["state"]) == ("two", "installed")
            sites += 1
            site = box.install(sites, one)
    assert box.run(site, kill_after=None)[0]
    assert [found.name for found in history(site)] == ["one", "two"]
    assert {
        ("one", "none"),
        ("one", "running"),
        ("two", "installed"),
    } <= seen  # the points did fall on all of it


def faces(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        write_image(folder / f"{number:06d}.png", rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    (folder / "index.jsonl").write_text('{"seq": 0, "file": "000000.png", "time": 1}\n')
    return folder


def test_faces_travel_as_one_file(tmp_path: Path) -> None:
    folder, archive = faces(tmp_path / "faces"), tmp_path / "yard.ufrf"
    result = CliRunner().invoke(main, ["pack-faces", str(folder), "-o", str(archive)])
    assert result.exit_code == 0, result.output
    assert "3 faces" in result.output
    out = unpack_faces(archive, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.name != "manifest.json"} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
    if os.name != "nt":
        assert (archive.stat().st_mode & 0o777, out.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("links", [True, False])
def test_packing_beside_a_recorder_that_removes_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    folder, archive, link = faces(tmp_path / "faces", 6), tmp_path / "yard.ufrf", os.link

    def linked(source: Path, target: Path) -> None:
        (folder / "000002.png").unlink(missing_ok=True)
        if not links:
            raise OSError(18, "Invalid cross-device link")
        link(source, target)

    def listed(path: Path) -> str:  # by now it must not matter what the recorder removes
        for name in ("000003.png", "index.jsonl"):
            (folder / name).unlink(missing_ok=True)
        return sha256_file(path)

    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr("ufr_edge.runtime.faces_archive.sha256_file", listed)
    assert pack_faces(folder, archive) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "yard.ufrf"]
    names = sorted(path.name for path in unpack_faces(archive, tmp_path / "out").iterdir())
    assert [name for name in names if name != "manifest.json"] == [
        *(f"{n:06d}.png" for n in (0, 1, 3, 4, 5)),
        "index.jsonl",
    ]


def test_a_tampered_archive_of_faces_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "yard.ufrf"
    pack_faces(faces(tmp_path / "faces"), archive)
    whole = archive.read_bytes()
    for at in range(40, len(whole), max(1, len(whole) // 60)):
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            unpack_faces(archive, tmp_path / "out")
        except BundleError:
            assert not (tmp_path / "out").exists()
        else:  # a bit of the zip's own that means nothing, such as a date: what came out is what went in
            out = tmp_path / "out"
            for path in (tmp_path / "faces").iterdir():
                assert (out / path.name).read_bytes() == path.read_bytes()
            for path in out.iterdir():
                path.unlink()
            out.rmdir()


def test_a_bundle_is_no_archive_of_faces(tmp_path: Path) -> None:
    archive = tmp_path / "one.ufrz"
    pack_bundle(read_bundle(write_tiny_bundle(tmp_path / "one.ufr", name="one")), archive)
    with pytest.raises(BundleError, match="holds no faces"):
        unpack_faces(archive, tmp_path / "out")
    with pytest.raises(InputFileError, match="holds no faces"):
        pack_faces(tmp_path / "nowhere", tmp_path / "a.ufrf")
    with pytest.raises(ConfigError, match="NAME.ufrf"):
        pack_faces(faces(tmp_path / "faces"), tmp_path / "a.zip")


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, args)
    return result.exit_code, result.output


def test_deploy_installs_and_refuses_a_tampered_archive(tmp_path: Path) -> None:
    site, archive = tmp_path / "door", tmp_path / "two.ufrz"
    install_version(site, write_tiny_bundle(tmp_path / "one.ufr", name="one"))
    pack_bundle(read_bundle(write_tiny_bundle(tmp_path / "two.ufr", name="two")), archive)
    whole = archive.read_bytes()
    middle = whole.index(b"tiny") + 400
    archive.write_bytes(whole[:middle] + b"\0\1\2\3" + whole[middle + 4 :])
    code, text = run("deploy", str(archive), str(site))
    assert code == 1, text
    assert current_version(site).name == "one"
    archive.write_bytes(whole)
    assert run("deploy", str(archive), str(site)) == (0, f"{site}: version 2 (two) is current\n")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--readapt", "auto"], 2, "needs recorded faces: give --record FOLDER"),
        (["--readapt", "sometimes"], 2, "Invalid value for '--readapt'"),
    ],
)
def test_watch_says_what_it_needs(tmp_path: Path, args: Sequence[str], code: int, words: str) -> None:
    install_version(tmp_path / "door", write_tiny_bundle(tmp_path / "one.ufr", name="one"))
    found, text = run("watch", "synthetic://", "null://", "--bundle", str(tmp_path / "door"), *args)
    assert (found, words in text) == (code, True), text


FAR = Fingerprint(values={"blur": Value(mean=50.0, spread=0.1, looks=99)}, faces=99, side=256)


@pytest.mark.parametrize(
    ("found", "args", "code", "words"),
    [
        (None, ["--readapt", "auto"], 1, "does not say what camera it was adapted to"),
        (None, [], 1, "which --readapt ask waits for"),
        (FAR, ["--readapt", "auto"], 1, "has the fingerprint of 256 px faces and restores those of 32 px"),
        (FAR, ["--no-drift"], 2, "--no-drift leaves nothing for --readapt ask"),
    ],
)
def test_watch_refuses_what_would_silently_do_nothing(
    tmp_path: Path, found: Fingerprint | None, args: Sequence[str], code: int, words: str
) -> None:
    bundle = write_tiny_bundle(tmp_path / "one.ufr", name="one")
    if found is not None:
        name, manifest = write_fingerprint(bundle, found), read_bundle(bundle).manifest
        files = {**manifest.files, name: sha256_file(bundle / name)}
        write_manifest(bundle, replace(manifest, files=files))
    install_version(tmp_path / "door", bundle)
    place = ["--bundle", str(tmp_path / "door"), "--record", str(tmp_path / "faces"), "--no-progress"]
    status, text = run("watch", "synthetic://", "null://", *place, *args)
    assert status == code, text
    assert words in " ".join(text.split())
    assert not (tmp_path / "faces").exists()


def test_watch_hands_its_settings_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_version(tmp_path / "door", write_tiny_bundle(tmp_path / "one.ufr", name="one"))
    given: list[str] = []
    seen: dict[str, object] = {}

    def started(_folder: Path, _faces: Path, *options: str) -> object:
        given.extend(options)
        return None

    def played(_source: str, _sink: str, options: dict[str, object], **others: object) -> None:
        seen.update(options)
        with others["beside"](EventLog()):  # type: ignore[operator]
            assert others["needs_drift"] == "--readapt auto"

    monkeypatch.setattr("ufr_edge.cli.watch.start_readapt", started)
    monkeypatch.setattr("ufr_edge.cli.watch.play", played)
    args = ["--bundle", str(tmp_path / "door"), "--record", str(tmp_path / "faces"), "--readapt", "auto"]
    args += ["--keep", "3", "--max-mb", "20", "--max-faces", "77", "--min-free", "9"]
    assert run("watch", "synthetic://", "null://", *args)[0] == 0
    assert given[given.index("--keep") + 1] == "3"
    assert given[given.index("--least-faces") + 1] == "48"  # of the 64: some may be dark, or gone meanwhile
    assert (seen["max_mb"], seen["max_faces"], seen["min_free_mb"]) == (20.0, 77, 9.0)


def test_watch_wants_a_folder_of_versions(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "one.ufr", name="one")
    code, text = run("watch", "synthetic://", "null://", "--bundle", str(bundle))
    assert code == 1
    assert "holds no installed versions" in text
