"""Looking at a stream's faces beside it: the recorder and drift, in one thread of low priority that never holds it up."""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from ufr_edge.runtime.drift import DriftConfig, DriftMonitor, DriftState
from ufr_edge.runtime.faces.track import TrackedFace
from ufr_edge.runtime.fingerprint import LEAST_SIDE, Fingerprint, measure_face
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.watch import FaceWatch
from ufr_edge.runtime.pipeline import RestoredFaces
from ufr_edge.runtime.recorder import FaceRecorder, RecorderConfig, Sighting, around, open_recorder
from ufr_edge.runtime.video.source import SourceFrame

_DEPTH = 32  # faces that wait to be looked at
_NICE = 10
_IDLE_S = 1.0
_JOIN_S = 5.0
_LAST_KEPT = 1024
_AGAIN_S = 60.0  # after the disk could not be written
ENDED_BY_DRIFT = "drift"
"""How the reason begins for which a stream ends that was to end on drift."""


@dataclass(frozen=True, kw_only=True)
class ObserverConfig:
    """record: folder to record faces into; None records none, and nothing else does. reference: the bundle's
    fingerprint; None watches for no drift. hook: command, run without a shell once each time drift is raised.
    exit_on_drift: end the stream then.
    """

    record: Path | None = None
    recorder: RecorderConfig = field(default_factory=RecorderConfig)
    reference: Fingerprint | None = None
    drift: DriftConfig = field(default_factory=DriftConfig)
    hook: tuple[str, ...] = ()
    exit_on_drift: bool = False


@dataclass(frozen=True)
class _Seen:
    """A face on its way to the thread: a sighting, and a piece of the frame around it."""

    sighting: Sighting
    native: Frame


class FaceObserver:
    """Takes faces from the stream's thread, at most one of a track each `vote_s`; looks at them in its own.

    recorder: an open one, used by this thread only until `close` returns.
    """

    def __init__(
        self,
        events: EventLog,
        *,
        recorder: FaceRecorder | None = None,
        drift: DriftMonitor | None = None,
        vote_s: float = 1.0,
        source: str = "",
        hook: Sequence[str] = (),
        exit_on_drift: bool = False,
    ) -> None:
        self._events, self._recorder, self._drift = events, recorder, drift
        self._vote_s, self._source, self._hook = vote_s, source, tuple(hook)
        self._exit_on_drift = exit_on_drift
        self._stop: Callable[[str], None] = _stop_nothing
        self._recording = recorder is not None
        self._again_at = math.inf
        self._queue: queue.Queue[_Seen | None] = queue.Queue(maxsize=_DEPTH)
        self._last: dict[int, float] = {}
        self._missed = 0
        self._adopted: Fingerprint | None = None
        self._watch = self._now()
        self._thread = threading.Thread(target=self._run, name="ufr-observer", daemon=True)

    @property
    def watch(self) -> FaceWatch:
        """What was found so far. For any thread."""
        return self._watch

    def start(self, stop: Callable[[str], None]) -> None:
        """Begin to look. stop: ends the stream, with a reason."""
        self._stop = stop
        self._thread.start()

    def offer(self, frame: SourceFrame, original: Frame, faces: RestoredFaces) -> None:
        """Take the faces of a frame that are due; never waits. Called by one thread."""
        for number, track in enumerate(faces.tracks):
            if track.evidence == "predicted" or not self._due(track, frame.seconds):
                continue
            native = around(original, track.face.box)
            sighting = Sighting(
                crop=faces.crops[number],
                face=track.face,
                matrix=faces.matrices[number],
                frame_size=(original.shape[1], original.shape[0]),
                track=track.identity,
                frame=frame.index,
                time_s=frame.seconds,
                source=self._source,
            )
            try:
                self._queue.put_nowait(_Seen(sighting, native))
            except queue.Full:
                self._missed += 1

    def adopt(self, reference: Fingerprint) -> None:
        """Compare with another bundle's fingerprint from now on, where drift is watched. For any thread."""
        self._adopted = reference

    def close(self) -> None:
        """Look at what waits, and end; twice is fine."""
        if not self._thread.is_alive():
            return
        try:
            self._queue.put(None, timeout=_JOIN_S)
        except queue.Full:
            pass
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            self._events.add("stuck", f"{self._thread.name} did not end", level=logging.ERROR)

    def _due(self, track: TrackedFace, time_s: float) -> bool:
        last = self._last.get(track.identity)
        if last is not None and 0 <= time_s - last < self._vote_s:
            return False
        self._last.pop(track.identity, None)
        self._last[track.identity] = time_s
        if len(self._last) > _LAST_KEPT:
            del self._last[next(iter(self._last))]
        return True

    def _run(self) -> None:
        _yield_to_others()
        try:
            while True:
                try:
                    seen = self._queue.get(timeout=_IDLE_S)
                except queue.Empty:
                    if self._recording:
                        self._write(lambda recorder: recorder.sync())
                    continue
                if seen is None:
                    return
                self._look(seen)
                self._watch = self._now()
        except Exception as exc:  # noqa: BLE001 - the border of a thread that must never end the stream
            self._events.add("failed", f"faces are no longer looked at: {exc!r}", level=logging.ERROR)
            self._recording, self._again_at = False, math.inf
        finally:
            self._watch = self._now()

    def _look(self, seen: _Seen) -> None:
        adopted, self._adopted = self._adopted, None
        if adopted is not None and self._drift is not None:
            before, self._drift = self._drift, self._drift.against(adopted)
            if before.state.raised:
                self._events.add("drift", "cleared: compared with another version's camera from now on")
        sighting, measures = seen.sighting, dict[str, float]()
        if sighting.crop.shape[0] >= LEAST_SIDE:
            measures = measure_face(sighting.crop, native=seen.native)
        self._write(lambda recorder: recorder.offer(_with(sighting, measures)))
        if self._drift is None or not measures:
            return
        change = self._drift.observe(measures, track=sighting.track, time_s=sighting.time_s)
        if change is None:
            return
        state = self._drift.state
        self._watch = self._now()
        level = logging.WARNING if change == "raised" else logging.INFO
        self._events.add("drift", f"{change}: {state.describe()}", level=level)
        if change == "raised":
            self._act_on(state)

    def _act_on(self, state: DriftState) -> None:
        if self._hook:
            run_hook(self._hook, state, self._events)
        if self._exit_on_drift:
            self._stop(f"{ENDED_BY_DRIFT}: {state.describe()}")

    def _write(self, act: Callable[[FaceRecorder], object]) -> None:
        """Where the recorder cannot write, recording pauses and is tried again every minute; the stream goes on."""
        if self._recorder is None or not (self._recording or time.monotonic() >= self._again_at):
            return
        try:
            act(self._recorder)
        except OSError as exc:
            self._again_at = time.monotonic() + _AGAIN_S
            if self._recording:
                text = f"recording has stopped, and is tried again every minute: {exc}"
                self._events.add("record", text, level=logging.ERROR)
            self._recording = False
            return
        if not self._recording:
            self._recording = True
            self._events.add("record", "recording goes on")

    def _now(self) -> FaceWatch:
        return FaceWatch(
            drift=None if self._drift is None else self._drift.state,
            recorded=None if self._recorder is None else self._recorder.stats,
            recording=self._recording,
            missed=self._missed,
        )


@contextmanager
def open_observer(
    config: ObserverConfig, events: EventLog, *, side: int, source: str
) -> Iterator[FaceObserver | None]:
    """An observer as configured; None when there is nothing to look for. side: of the faces it will get, px.

    Raises OutputError when the folder cannot be recorded into.
    """
    drift = _monitor(config, events, side)
    if config.record is None and drift is None:
        yield None
        return
    with ExitStack() as stack:
        recorder = None
        if config.record is not None:
            recorder = stack.enter_context(_recording(config.record, config.recorder, events))
            events.add("record", f"faces are recorded into {config.record}")
        yield FaceObserver(
            events,
            recorder=recorder,
            drift=drift,
            vote_s=config.drift.vote_s,
            source=source,
            hook=config.hook,
            exit_on_drift=config.exit_on_drift,
        )


@contextmanager
def _recording(folder: Path, config: RecorderConfig, events: EventLog) -> Iterator[FaceRecorder]:
    """An open recorder; a disk that is full when it is closed is told, and is no error of the stream."""
    stack = ExitStack()
    recorder = stack.enter_context(open_recorder(folder, config))
    try:
        yield recorder
    finally:
        try:
            stack.close()
        except OSError as exc:
            events.add("record", f"the last faces may be lost: {exc}", level=logging.ERROR)


def run_hook(command: Sequence[str], state: DriftState, events: EventLog) -> None:
    """Start a command, without a shell and without waiting for it. What it may know is in its environment:
    UFR_DRIFT_DISTANCE, UFR_DRIFT_LIMIT, UFR_DRIFT_CAUSE and all of it as JSON in UFR_DRIFT.
    """
    about: Mapping[str, str] = {
        "UFR_DRIFT_DISTANCE": f"{state.distance:.3f}" if state.distance is not None else "",
        "UFR_DRIFT_LIMIT": f"{state.limit:g}",
        "UFR_DRIFT_CAUSE": state.cause or "",
        "UFR_DRIFT": json.dumps(state.to_json()),
    }
    try:
        child = subprocess.Popen(
            list(command),
            env={**os.environ, **about},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as exc:
        events.add("drift", f"{command[0]} cannot be run: {exc.strerror}", level=logging.ERROR)
        return
    # Someone has to take its exit status, or it stays behind as a zombie.
    threading.Thread(target=child.wait, name="ufr-hook", daemon=True).start()


def _monitor(config: ObserverConfig, events: EventLog, side: int) -> DriftMonitor | None:
    if config.reference is None:
        return None
    if config.reference.side != side:
        text = (
            f"not watched: the bundle's fingerprint is of {config.reference.side} px faces, these have {side}"
        )
        events.add("drift", text, level=logging.WARNING)
        return None
    return DriftMonitor(config.reference, config.drift)


def _with(sighting: Sighting, measures: Mapping[str, float]) -> Sighting:
    return replace(sighting, measures=measures)


def _stop_nothing(reason: str) -> None:
    """There is no stream yet."""


def _yield_to_others() -> None:
    """Let every other thread go first, where the system has priorities of threads."""
    if sys.platform == "linux":
        try:
            me = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + _NICE)
        except OSError:  # not allowed: it is small work
            return
