"""One live run in a process of its own: every frame's glass-to-glass time, and this process's memory, as JSON.

Called by benchmarks/performance.py. The source draws a time code into each frame; it is read back at the sink.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ufr_edge.cli.border import script_border
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.session import open_engines
from ufr_edge.runtime.live.sinks import LiveFrame, Sink, SinkContext
from ufr_edge.runtime.live.sources import LiveSource, SourceConfig, open_live_source
from ufr_edge.runtime.live.stages import ChoosesEngine
from ufr_edge.runtime.live.stats import Labels, LiveStats, StatsBoard
from ufr_edge.runtime.live.stream import LiveStream, StreamConfig
from ufr_edge.runtime.live.timecode import read_code
from ufr_edge.runtime.machine import process_memory
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig
from ufr_edge.runtime.run import RunConfig, open_detector
from ufr_edge.runtime.video.uri import parse_uri

Camera = Callable[[threading.Event, EventLog], LiveSource]
"""Opens a source: (the event that ends it, where to tell events)."""


class CodeSink:
    """Reads the time code of each frame, and forgets the frame."""

    name = "null://"

    def __init__(self) -> None:
        self.ages_ms: list[float] = []
        self.unreadable = 0

    def open(self, context: SinkContext) -> None:
        """Nothing to do."""

    def write(self, frame: LiveFrame) -> None:
        """Read the code and note its age."""
        code = read_code(frame.frame.image)
        if code is None:
            self.unreadable += 1
        else:
            self.ages_ms.append(code.age(time.monotonic()) * 1000)

    def close(self) -> None:
        """Nothing to do."""


class MemoryLog:
    """Resident memory, once a second, as (seconds, MiB)."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._started = time.monotonic()

    def __call__(self, _stats: LiveStats) -> None:
        now = time.monotonic() - self._started
        if not self.samples or now - self.samples[-1][0] >= 1:
            self.samples.append((now, process_memory().rss_mib))


@contextmanager
def opened(
    bundle: Path, sinks: Sequence[Sink], camera: Camera, config: StreamConfig, *, engine: str | None = None
) -> Iterator[tuple[LiveStream, EventLog]]:
    """A stream of the camera through the bundle into the sinks, warm. Raises UfrEdgeError."""
    with (
        open_engines(bundle, engine=engine) as engines,
        opened_around(engines, sinks, camera, config) as both,
    ):
        yield both


@contextmanager
def opened_around(
    engines: ChoosesEngine, sinks: Sequence[Sink], camera: Camera, config: StreamConfig
) -> Iterator[tuple[LiveStream, EventLog]]:
    """The same through engines that are open. Raises UfrEdgeError."""
    stop, events = threading.Event(), EventLog()
    with ExitStack() as stack:
        detector = stack.enter_context(open_detector(engines.full, RunConfig()))
        source = stack.enter_context(closing(camera(stop, events)))
        labels = Labels(
            source=source.info.name,
            engine=engines.full.info.describe(),
            width=source.info.width,
            height=source.info.height,
        )
        board = StatsBoard(labels)
        pipeline = FacePipeline(engines.full, detector, PipelineConfig(), clock=board.clock)
        detector.detect(np.zeros((source.info.height, source.info.width, 3), np.uint8))
        for each in filter(None, (engines.full, engines.smaller)):
            side = each.info.side or 256
            each.infer(np.zeros((1, side, side, 3), np.uint8))
        stream = LiveStream(source, sinks, pipeline, engines, config, board=board, events=events, stop=stop)
        yield stream, events


def live_camera(size: str, rate: int) -> Camera:
    """The synthetic camera at its own speed, without end, a time code in each frame."""
    uri = parse_uri(f"synthetic://?size={size}&rate={rate}&frames=0")
    return lambda stop, events: open_live_source(uri, SourceConfig(code=True), stop=stop, events=events)


def measure(bundle: Path, *, engine: str | None, size: str, rate: int, seconds: float) -> dict[str, Any]:
    """Run the synthetic camera through the bundle into nothing. Raises UfrEdgeError."""
    sink, memory = CodeSink(), MemoryLog()
    config = StreamConfig(seconds=seconds)
    with opened(bundle, [sink], live_camera(size, rate), config, engine=engine) as (stream, events):
        stream.run(memory)
        stats = stream.snapshot()
    return {
        "stats": stats.to_json(),
        "ages_ms": sink.ages_ms,
        "unreadable": sink.unreadable,
        "memory": memory.samples,
        "events": [event.to_json() for event in events.last()],
    }


def run(args: argparse.Namespace) -> None:
    """Measure, and print the JSON. Raises UfrEdgeError."""
    found = measure(
        args.bundle, engine=args.engine_name, size=args.size, rate=args.rate, seconds=args.seconds
    )
    print(json.dumps(found))


def main() -> int:
    """Run; an error is one line and its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine-name")
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--rate", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    return script_border(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
