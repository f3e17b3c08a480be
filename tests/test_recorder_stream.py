"""Recording and drift beside a live stream: they find what is there, and never hold the stream up."""

from __future__ import annotations

import json
import shlex
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clips import STUB_INFO, StubDetector, StubEngine
from live_fakes import FakeSource, KeepingSink
from test_recorder import sighting

from ufr_edge.errors import OutputError
from ufr_edge.runtime.drift import DriftConfig, DriftMonitor, DriftState
from ufr_edge.runtime.face_store import FaceStore, read_rows
from ufr_edge.runtime.faces.track import TrackConfig
from ufr_edge.runtime.fingerprint import Fingerprint, Value, combine, measure_face
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.observer import (
    ENDED_BY_DRIFT,
    FaceObserver,
    ObserverConfig,
    _Seen,
    open_observer,
    run_hook,
)
from ufr_edge.runtime.live.onsite import STATE, Child, OnsiteConfig, OnsiteLoop
from ufr_edge.runtime.live.stages import Engines
from ufr_edge.runtime.live.stats import Labels, LiveStats, StatsBoard
from ufr_edge.runtime.live.stream import LiveStream
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig
from ufr_edge.runtime.recorder import RecorderConfig

ANYTHING = RecorderConfig(
    min_pixels=8, min_free_mb=0, min_inside=0, gap_s=0, novelty=0, per_track=1000, max_yaw=90
)
FAR = Fingerprint(values={"blur": Value(mean=50.0, spread=0.1, looks=99)}, faces=99, side=64)
SOON = DriftConfig(fewest=2, faces=4, raise_s=0, vote_s=0.01)


def played(
    config: ObserverConfig,
    *,
    frames: int = 40,
    events: EventLog | None = None,
    watch: Callable[[LiveStats], None] | None = None,
) -> tuple[str, LiveStats, EventLog, KeepingSink]:
    """Run a stream over fakes at 25 frames of stream time a second; why it ended, its numbers, what happened."""
    source, events, sink = FakeSource(count=frames), events or EventLog(), KeepingSink()
    engines, board = Engines(full=StubEngine()), StatsBoard(Labels(source="fake"))
    plain = PipelineConfig(stabilise=None, track=TrackConfig(detect_every=1))
    pipeline = FacePipeline(engines.full, StubDetector([1]), plain, clock=board.clock)
    with ExitStack() as stack:
        side = STUB_INFO.side or 0
        observer = stack.enter_context(open_observer(config, events, side=side, source="fake"))
        stream = LiveStream(
            source,
            (sink,),
            pipeline,
            engines,
            board=board,
            events=events,
            stop=source.stop,
            observer=observer,
        )
        ended = stream.run(watch)
    return ended, stream.snapshot(), events, sink


def waited(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def test_nothing_is_recorded_unless_asked_for(tmp_path: Path) -> None:
    with open_observer(ObserverConfig(), EventLog(), side=64, source="x") as observer:
        assert observer is None
    _, stats, _, _ = played(ObserverConfig())
    assert stats.watch is None and stats.drift is None and not stats.drifted
    assert list(tmp_path.iterdir()) == []


def test_faces_of_a_stream_are_recorded_once_a_second_of_each_track(tmp_path: Path) -> None:
    ended, stats, events, sink = played(
        ObserverConfig(record=tmp_path / "faces", recorder=ANYTHING), frames=76
    )
    assert ended == "the source ended" and len(sink.got) == 76
    rows = read_rows(tmp_path / "faces")
    assert 1 <= len(rows) <= 4 and {row.rest["source"] for row in rows} == {"fake"}
    assert rows[0].rest["frame"] == 0 and "blur" in rows[0].rest["measures"]
    assert stats.watch is not None and stats.watch.recorded is not None
    assert stats.watch.recorded.kept + stats.watch.missed >= len(rows) and stats.watch.recording
    assert "record" in [event.kind for event in events.last()]
    assert json.loads(json.dumps(stats.to_json()))["watch"]["recorded"]["kept"] == len(rows)


def test_drift_is_raised_said_and_counted() -> None:
    _, stats, events, _ = played(ObserverConfig(reference=FAR, drift=SOON))
    assert stats.drifted and stats.drift is not None and stats.drift > 5
    assert stats.watch is not None and stats.watch.drift is not None and stats.watch.drift.cause == "blur"
    (raised,) = [event.text for event in events.last() if event.kind == "drift"]
    assert raised.startswith("raised: distance")


def test_after_a_swap_it_compares_with_the_camera_of_the_version_that_runs() -> None:
    events = EventLog()
    looks = [_Seen(sighting(n, float(n), seed=n), sighting(n, seed=n).crop) for n in range(12)]
    near = combine([measure_face(seen.sighting.crop, native=seen.native) for seen in looks], side=64)
    far = {name: replace(value, mean=value.mean + 50) for name, value in near.values.items()}
    observer = FaceObserver(events, drift=DriftMonitor(replace(near, values=far), SOON))
    for seen in looks[:5]:
        observer._look(seen)
    drift = observer._now().drift
    assert drift is not None and drift.raised and (drift.raises, drift.votes) == (1, 5)
    observer.adopt(near)
    for seen in looks[5:]:
        observer._look(seen)
    drift = observer._now().drift
    assert drift is not None and not drift.raised and drift.distance is not None and drift.distance < 5
    assert (drift.raises, drift.votes) == (1, 12)  # the counts of a stream, whichever version runs
    raised, cleared = [event.text for event in events.last() if event.kind == "drift"]
    assert raised.startswith("raised") and cleared.startswith("cleared: compared with another version")


def test_drift_can_end_the_stream() -> None:
    source_frames = 4000
    ended, _, _, sink = played(
        ObserverConfig(reference=FAR, drift=SOON, exit_on_drift=True), frames=source_frames
    )
    assert ended.startswith(ENDED_BY_DRIFT) and len(sink.got) < source_frames


def test_faces_of_another_side_are_not_compared() -> None:
    _, stats, events, _ = played(ObserverConfig(reference=replace(FAR, side=256)))
    assert stats.drift is None
    assert any("256 px" in event.text for event in events.last() if event.kind == "drift")


def test_a_full_disk_ends_the_recording_and_not_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        msg = "The disk is full while writing x.png."
        raise OutputError(msg)

    monkeypatch.setattr(FaceStore, "add", full)
    ended, stats, events, sink = played(ObserverConfig(record=tmp_path / "faces", recorder=ANYTHING))
    assert ended == "the source ended" and len(sink.got) == 40
    assert stats.watch is not None and not stats.watch.recording
    said = [event.text for event in events.last() if event.kind == "record"]
    assert len(said) == 2 and "disk is full" in said[1]


def test_recording_goes_on_once_the_disk_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, add = [], FaceStore.add

    def full_at_first(self: FaceStore, *given: object, **named: object) -> object:
        calls.append(1)
        if len(calls) <= 2:
            raise OSError(28, "No space left on device")
        return add(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(FaceStore, "add", full_at_first)
    monkeypatch.setattr("ufr_edge.runtime.live.observer._AGAIN_S", 0.0)
    config = ObserverConfig(record=tmp_path / "faces", recorder=ANYTHING, drift=SOON)
    _, stats, events, _ = played(config)
    assert stats.watch is not None and stats.watch.recording
    assert len(read_rows(tmp_path / "faces")) == len(calls) - 2 > 0
    said = [event.text for event in events.last() if event.kind == "record"]
    assert ["has stopped" in said[1], said[2:]] == [True, ["recording goes on"]]


def test_a_disk_that_is_full_at_the_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: FaceStore) -> None:
        msg = "The disk is full while writing index.jsonl."
        raise OutputError(msg)

    monkeypatch.setattr(FaceStore, "sync", full)
    ended, _, events, _ = played(ObserverConfig(record=tmp_path / "faces", recorder=ANYTHING), frames=1)
    assert ended == "the source ended"
    assert "the last faces may be lost" in events.last()[-1].text


def test_a_full_disk_in_the_loop_on_site_does_not_end_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def start(_work: Path, _newest: int) -> Child:
        raise OSError(28, "No space left on device")

    (tmp_path / STATE).write_text('{"run": 1, "state": "running", "faces": 70, "reason": ""}')
    events = EventLog()
    loop = OnsiteLoop(tmp_path, OnsiteConfig(mode="auto"), start, events=events)
    monkeypatch.setattr("ufr_edge.runtime.live.onsite.write_json", full)
    ended, _, _, sink = played(ObserverConfig(), frames=4000, events=events, watch=loop.tick)
    assert ended == "the source ended" and len(sink.got) == 4000
    loop.tick(StatsBoard(Labels()).snapshot())
    assert [event.kind for event in events.last()].count("failed") == 1


def test_an_error_nobody_thought_of_ends_the_looking_and_not_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        msg = "never thought of"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr(FaceStore, "add", broken)
    ended, _, events, sink = played(ObserverConfig(record=tmp_path / "faces", recorder=ANYTHING))
    assert ended == "the source ended" and len(sink.got) == 40
    assert any("no longer looked at" in event.text for event in events.last())


def test_a_slow_recorder_misses_faces_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    add = FaceStore.add

    def slow(self: FaceStore, *given: object, **named: object) -> object:
        gate.wait(20)
        return add(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(FaceStore, "add", slow)
    sink_done: list[int] = []

    class Opening(KeepingSink):
        def close(self) -> None:
            sink_done.append(len(self.got))
            gate.set()

    monkeypatch.setattr(sys.modules[__name__], "KeepingSink", Opening)
    config = ObserverConfig(record=tmp_path / "faces", recorder=ANYTHING, drift=DriftConfig(vote_s=0.01))
    _, stats, _, _ = played(config, frames=120)
    assert sink_done == [120]  # every frame went out while the recorder stood still
    assert stats.watch is not None and stats.watch.missed >= 120 - 34


def test_a_folder_that_cannot_be_recorded_into_is_said_before_the_stream_begins(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(OutputError, match="holds files"):
        played(ObserverConfig(record=tmp_path))


class TestHook:
    STATE = DriftState(
        raised=True, distance=7.25, limit=5.0, parts=(("noise", 7.25),), cause="noise", faces=40, votes=99,
        raises=1, since=12.0,
    )  # fmt: skip

    def test_runs_without_a_shell_and_knows_what_happened(self, tmp_path: Path) -> None:
        out = tmp_path / "it's $HOME; said.json"
        code = "import os, sys; open(sys.argv[1], 'w').write(os.environ['UFR_DRIFT'] + '\\n')"
        events = EventLog()
        run_hook([sys.executable, "-c", code, str(out)], self.STATE, events)
        assert waited(lambda: out.exists() and out.read_text().endswith("\n"))
        assert json.loads(out.read_text())["cause"] == "noise"
        assert events.last() == ()

    def test_a_command_that_is_not_there_is_an_event(self) -> None:
        events = EventLog()
        run_hook(["/nonexistent/command"], self.STATE, events)
        (event,) = events.last()
        assert "/nonexistent/command cannot be run" in event.text

    def test_runs_once_per_raise(self, tmp_path: Path) -> None:
        out = tmp_path / "calls"
        code = f"open({str(out)!r}, 'a').write('x')"
        hook = tuple(shlex.split(shlex.join([sys.executable, "-c", code])))
        _, stats, _, _ = played(ObserverConfig(reference=FAR, drift=SOON, hook=hook), frames=60)
        assert stats.watch is not None and stats.watch.drift is not None and stats.watch.drift.raises == 1
        assert waited(out.exists)
        assert out.read_text() == "x"


def test_the_crops_recorded_are_those_of_the_frame_before_restoring(tmp_path: Path) -> None:
    from ufr_edge.runtime.images import read_image

    played(ObserverConfig(record=tmp_path / "faces", recorder=ANYTHING), frames=3)
    row = read_rows(tmp_path / "faces")[0]
    crop = read_image(tmp_path / "faces" / row.file)
    assert crop.shape == (64, 64, 3)
    # The stub engine makes faces brighter in stripes of 8 rows: the input has none.
    rows = crop[:, :, 0].astype(np.float64).mean(axis=1)
    assert np.abs(np.diff(rows)).max() < 5
