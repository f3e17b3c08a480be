"""The loop on site: drift, re-adaptation in a child process, and what came of it; decided four times a second.

What is under way is in `FOLDER/onsite.json`, so that after a power cut the same re-adaptation goes on. The child alone
installs, in one step; the stream notices that by itself (see `watcher`).
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ufr_edge.errors import BundleError, ConfigError, ExitCode, InputFileError, OutputError
from ufr_edge.files import read_json, write_json
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.stats import LiveStats
from ufr_edge.runtime.lock import file_lock
from ufr_edge.runtime.versions import history

STATE = "onsite.json"
ANSWER = "readapt.yes"
LOCK = ".watch.lock"
WORK = "readapt"
Mode = Literal["auto", "ask", "off"]
RECORDS = ("readapt.json", "gate.json", "faces.json", "lineage.json", "run/config.json")
"""What stays of a work folder once it is decided; none of it shows anybody."""
_NICE = 15
_END_S = 10.0
_MOST_REST_S = 86_400.0
_NOTE_REST_S = 300.0  # a restart rests at most so much too long
_AGAIN_S = 60.0  # after the disk could not be written


class Child(Protocol):
    """A re-adaptation under way, as `subprocess.Popen` shows it."""

    def poll(self) -> int | None:
        """The exit status, None while it runs."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""


Start = Callable[[Path, int], Child]
"""(work folder, how many of the newest faces) -> a re-adaptation; the same arguments go on with the same one."""


@dataclass(frozen=True, kw_only=True)
class OnsiteConfig:
    """mode: "auto" re-adapts when drift is raised, "ask" when the file FOLDER/readapt.yes is made after the question,
    "off" never. least_faces: recorded since drift was raised. rest_s: after one re-adaptation before the next; twice as
    long after each that was refused or failed, up to a day, until one is installed.
    """

    mode: Mode = "ask"
    least_faces: int = 64
    rest_s: float = 1800.0

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be."""
        if self.mode not in ("auto", "ask", "off") or self.least_faces < 1 or self.rest_s < 0:
            msg = "--readapt is auto, ask or off; least_faces 1 or more, rest_s 0 or more."
            raise ConfigError(msg)

    @property
    def least_usable(self) -> int:
        """So many of `least_faces` must be usable: a quarter may be dark, or removed by the recorder's ring meanwhile."""
        return 3 * self.least_faces // 4


class OnsiteLoop:
    """Decides when to re-adapt. For one thread; made by `open_onsite`."""

    def __init__(
        self,
        folder: Path,
        config: OnsiteConfig,
        start: Start,
        *,
        events: EventLog,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._config, self._start = folder, config, start
        self._events, self._now = events, now
        self._child: Child | None = None
        self._kept_at_drift: int | None = None
        self._asked = False
        self._again_at: float | None = None
        self._state = read_state(folder)
        self._rest_until = now() + self._state["rest_s"]

    @property
    def state(self) -> dict[str, Any]:
        """run: number of the last re-adaptation; state: none, running, installed, refused or failed. misses: how many
        in a row were not installed, or were and did not stay; before: as it was before the last. rest_s: seconds to rest yet, as last noted.
        """
        return dict(self._state)

    def tick(self, stats: LiveStats) -> None:
        """Look at the stream's numbers of this moment, and do what follows. Where the disk cannot be written that is
        said once and tried again every minute; nothing is raised, so the stream goes on.
        """
        if self._config.mode == "off" or (self._again_at is not None and self._now() < self._again_at):
            return
        try:
            self._step(stats)
        except OSError as exc:
            if self._again_at is None:
                text = f"the loop cannot write into {self._folder}, and tries again every minute: {exc}"
                self._events.add("failed", text, level=logging.ERROR)
            self._again_at = self._now() + _AGAIN_S
            return
        if self._again_at is not None:
            self._again_at = None
            self._events.add("readapt", f"the loop can write into {self._folder} again")

    def _step(self, stats: LiveStats) -> None:
        if self._child is not None:
            self._look_after(self._child)
        elif self._state["state"] == "running":
            self._begin("goes on after it was interrupted")
        else:
            self._consider(stats)

    def close(self) -> None:
        """End the child; the next start goes on with what it did."""
        child, self._child = self._child, None
        if child is None:
            with suppress(OSError):
                self._note_rest(every_s=0.0)
            return
        child.terminate()
        try:
            child.wait(_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _consider(self, stats: LiveStats) -> None:
        self._note_rest(every_s=_NOTE_REST_S)
        recorded = None if stats.watch is None else stats.watch.recorded
        if not stats.drifted or recorded is None:
            self._kept_at_drift, self._asked = None, False
            return
        if self._kept_at_drift is None:
            self._kept_at_drift = recorded.kept
        fresh = recorded.kept - self._kept_at_drift
        if fresh < self._config.least_faces or self._now() < self._rest_until:
            return
        if self._was_left() or not self._allowed():
            return
        self._save(run=self._state["run"] + 1, state="running", faces=fresh, reason="")
        self._asked = False
        with suppress(OSError):  # it is removed before the next question at the latest
            (self._folder / ANSWER).unlink(missing_ok=True)
        self._begin(f"begins with the {fresh} faces recorded since drift was raised")

    def _was_left(self) -> bool:
        """Whether what was installed last was left again, as by the stream: that is a miss too, and rests as long."""
        if self._state["state"] != "installed":
            return False
        try:
            reason = next((version.rejected for version in reversed(history(self._folder))), "")
        except BundleError:
            return False
        if reason:
            self._state = {**self._state, "misses": self._state["before"]}
            self._finish("refused", f"it was installed, and left again: {reason}")
        return bool(reason)

    def _allowed(self) -> bool:
        """Whether it may begin. An answer counts once the question was asked; one that lay there before is removed."""
        answer = self._folder / ANSWER
        if self._config.mode == "auto" or (self._asked and answer.exists()):
            return True
        if not self._asked:
            answer.unlink(missing_ok=True)
            self._asked = True
            text = f"the camera has changed; to adapt to it: touch {answer}"
            self._events.add("readapt", text, level=logging.WARNING)
        return False

    def _begin(self, how: str) -> None:
        run = self._state["run"]
        self._events.add("readapt", f"re-adaptation {run} {how}")
        try:
            self._child = self._start(self._work(), self._state["faces"])
        except OSError as exc:
            self._finish("failed", f"it cannot be started: {exc.strerror}")

    def _look_after(self, child: Child) -> None:
        code = child.poll()
        if code is None:
            return
        if code == ExitCode.DONE:
            self._finish("installed", "")
        elif code == ExitCode.GATE_FAILED:
            self._finish("refused", "the gate refused the new bundle; see gate.json in its work folder")
        else:
            self._finish("failed", f"exit status {code}; see its log beside its work folder")
        self._child = None  # not before that is written: it is looked at again where it could not be

    def _finish(self, state: str, reason: str) -> None:
        misses = 0 if state == "installed" else self._state["misses"] + 1
        rest = self._config.rest_s * 2.0 ** min(max(0, misses - 1), 30)
        rest = min(rest, max(_MOST_REST_S, self._config.rest_s))
        leave_records(self._work())
        self._save(state=state, reason=reason, misses=misses, before=self._state["misses"], rest_s=rest)
        self._rest_until = self._now() + rest
        self._kept_at_drift = None
        level = logging.INFO if state == "installed" else logging.WARNING
        text = f"re-adaptation {self._state['run']}: {state}{': ' if reason else ''}{reason}"
        text += f"; the next in {rest / 60:.0f} minutes at the earliest" if misses else ""
        self._events.add("readapt", text, level=level)

    def _note_rest(self, *, every_s: float) -> None:
        """Write down how long to rest yet: seconds, because clocks jump and a machine may be off meanwhile."""
        left = max(0.0, self._rest_until - self._now())
        noted = self._state["rest_s"]
        if noted > 0 and (left == 0 or noted - left > every_s):
            self._save(rest_s=round(left, 1))

    def _work(self) -> Path:
        return self._folder / WORK / f"{self._state['run']:04d}"

    def _save(self, **changes: Any) -> None:
        state = {**self._state, **changes}
        write_json(self._folder / STATE, state)
        self._state = state


def leave_records(work: Path, *, also: Collection[str] = ()) -> None:
    """Remove everything from a work folder but `RECORDS`, its lock, and the files and folders named in `also`: it
    shows people, and it is large. What cannot be removed stays.
    """
    kept = {*RECORDS, ".lock", *also}
    for folder, folders, files in os.walk(work, topdown=False):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for path in [Path(folder) / name for name in (*files, *links)]:
            inside = path.relative_to(work)
            if inside.as_posix() not in kept and inside.parts[0] not in kept:
                with suppress(OSError):
                    path.unlink()
        with suppress(OSError):  # it holds what stays
            Path(folder).rmdir()


@contextmanager
def open_onsite(
    folder: Path, config: OnsiteConfig, start: Start, *, events: EventLog
) -> Iterator[OnsiteLoop]:
    """The loop over a folder of installed versions. Raises OutputError when another process watches it."""
    try:
        with file_lock(folder / LOCK, timeout_s=0.0):
            loop = OnsiteLoop(folder, config, start, events=events)
            try:
                yield loop
            finally:
                loop.close()
    except OutputError as exc:
        if "in use by another process" not in str(exc):
            raise
        msg = f"{folder} is watched already by another `ufr-edge watch`. Stop that one first."
        raise OutputError(msg) from exc


def read_state(folder: Path) -> dict[str, Any]:
    """What is under way. A file that is missing or damaged counts as nothing under way; its number is then taken
    from the work folders, so that none is used twice."""
    empty = {"run": _last_run(folder), "state": "none", "faces": 0, "reason": "", "misses": 0, "before": 0}
    empty["rest_s"] = 0.0
    try:
        value = read_json(folder / STATE)
        return {
            "run": max(int(value["run"]), 0),
            "state": str(value["state"]),
            "faces": int(value["faces"]),
            "reason": str(value["reason"]),
            "misses": max(int(value.get("misses", 0)), 0),
            "before": max(int(value.get("before", 0)), 0),
            "rest_s": min(max(float(value.get("rest_s", 0.0)), 0.0), _MOST_REST_S),
        }
    except (InputFileError, KeyError, TypeError, ValueError):
        return empty


def start_readapt(folder: Path, faces: Path, *options: str) -> Start:
    """A `Start` that runs `ufr-edge readapt` at low priority on one thread, its output in WORK.log."""

    def start(work: Path, newest: int) -> Child:
        work.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "ufr_edge",
            "readapt",
            "--bundle",
            str(folder),
            "--faces",
            str(faces),
        ]
        command += ["--work", str(work), "--newest", str(newest), "--threads", "1", "--no-progress", *options]
        one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        with (work.parent / f"{work.name}.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **one},
                start_new_session=True,
            )
        _lower(child.pid)
        return child

    return start


def _lower(pid: int) -> None:
    """Let everything else go first. It has one thread yet; those it starts have its priority."""
    if not hasattr(os, "setpriority"):
        return
    try:
        os.setpriority(os.PRIO_PROCESS, pid, _NICE)
        # Linux weighs sessions first where autogroups are on: within a session of its own, nice alone means nothing.
        Path(f"/proc/{pid}/autogroup").write_text(str(_NICE), encoding="ascii")
    except OSError:  # it has ended already, or there are no autogroups
        return


def _last_run(folder: Path) -> int:
    work = folder / WORK
    names = [path.name for path in work.iterdir()] if work.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)
