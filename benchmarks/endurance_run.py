"""One long run of a stream in a process of its own: memory, descriptors, threads, drops and latency, as JSON.

Called by benchmarks/endurance.py. What is noted goes into arrays made beforehand, so that measuring takes no memory
while it measures. `--look URL` is a page that looks on, in another process: one pair of pictures a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from live_latency import Camera, live_camera, opened

from ufr_edge.cli.border import script_border
from ufr_edge.files import write_json
from ufr_edge.optional import require
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.live.ladder import Step
from ufr_edge.runtime.live.page import PageSink
from ufr_edge.runtime.live.sinks import LiveFrame, Sink, SinkContext
from ufr_edge.runtime.live.stats import STAGES, LiveStats
from ufr_edge.runtime.live.stream import LiveStream, StreamConfig
from ufr_edge.runtime.live.timecode import TimeCode, draw_code, read_code
from ufr_edge.runtime.machine import process_memory
from ufr_edge.runtime.video.opening import synthetic_scene
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo
from ufr_edge.runtime.video.synthetic import SyntheticScene
from ufr_edge.runtime.video.uri import parse_uri

SAMPLE_S = 5.0
COLUMNS = (
    "seconds",
    "rss_mib",
    "descriptors",
    "threads",
    "frames_in",
    "frames_out",
    "late",
    "step",
    "stall_ms",
    *STAGES,
)
"""Of a sample. stall_ms: how much longer than asked a sleeping thread slept, at most, since the one before. The last
five: frames dropped so far before each stage."""

_NAP_S = 0.02
_SCENE = 600


class FastCamera:
    """The synthetic camera as fast as it is asked, its frames' times as if they came at its rate."""

    live = False

    def __init__(self, scene: SyntheticScene, info: VideoInfo, *, frames: int, stop: threading.Event) -> None:
        self._scene, self.info, self._frames, self._stop = scene, info, frames, stop

    def frames(self) -> Iterator[SourceFrame]:
        """All of them, the scene to and fro."""
        span = 2 * (len(self._scene) - 1)
        for index in range(self._frames):
            if self._stop.is_set():
                return
            place = index % span
            image: Frame = self._scene.glance(min(place, span - place))
            now = time.monotonic()
            draw_code(image, TimeCode(now, index))
            yield SourceFrame(
                index=index, pts=index, time_base=self.info.time_base, image=image, captured=now
            )

    def close(self) -> None:
        """Nothing to release."""


def fast_camera(size: str, rate: int, frames: int) -> Camera:
    """Opens a `FastCamera`."""
    scene, given = synthetic_scene(parse_uri(f"synthetic://?size={size}&rate={rate}"), frames=_SCENE)
    width, height = scene.size
    info = VideoInfo(name="synthetic", width=width, height=height, rate=given, time_base=1 / given)
    return lambda stop, _events: FastCamera(scene, info, frames=frames, stop=stop)


class Ledger:
    """A sink that notes, by the number in its time code, when each frame came and how old it was."""

    name = "null://"

    def __init__(self, most: int) -> None:
        """most: frames there may be."""
        self.age_ms = np.full(most, np.nan, np.float32)
        self.came_s = np.full(most, np.nan, np.float32)
        self.unreadable = 0
        self._started = time.monotonic()

    def open(self, context: SinkContext) -> None:
        """Start its clock."""
        self._started = time.monotonic()

    def write(self, frame: LiveFrame) -> None:
        """Note the frame."""
        now, code = time.monotonic(), read_code(frame.frame.image)
        if code is None or code.number >= len(self.age_ms):
            self.unreadable += 1
            return
        self.age_ms[code.number] = code.age(now) * 1000
        self.came_s[code.number] = now - self._started

    def close(self) -> None:
        """Nothing to do."""

    def seconds(self) -> float:
        """Since it was opened."""
        return time.monotonic() - self._started

    def minutes(self) -> list[list[float]]:
        """[minute, frames, p50, p95, p99, most] of each minute, ms."""
        came = np.isfinite(self.came_s)
        minute, ages = (self.came_s[came] // 60).astype(int), self.age_ms[came]
        rows = []
        for number in np.unique(minute):
            of = ages[minute == number]
            rows.append(
                [int(number), len(of), *(round(float(v), 2) for v in np.percentile(of, (50, 95, 99, 100)))]
            )
        return rows

    def missing(self, frames: int) -> list[int]:
        """Numbers below `frames` that never came."""
        return [int(number) for number in np.flatnonzero(np.isnan(self.came_s[:frames]))]

    def oldest(self, since_s: float, until_s: float) -> float:
        """Age in ms of the oldest frame that came between two moments; 0 when none did."""
        of = self.age_ms[(self.came_s >= since_s) & (self.came_s < until_s)]
        return float(of.max()) if len(of) else 0.0


class Stalls:
    """A thread that sleeps, and notes how much longer than asked: what the machine takes from everyone."""

    def __init__(self) -> None:
        self._most, self._end = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run, name="stalls", daemon=True)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note while the block runs."""
        self._thread.start()
        try:
            yield
        finally:
            self._end.set()
            self._thread.join()

    def take_ms(self) -> float:
        """The longest since the last call."""
        most, self._most = self._most, 0.0
        return most * 1000

    def _run(self) -> None:
        since = time.monotonic()
        while not self._end.wait(_NAP_S):
            now = time.monotonic()
            self._most, since = max(self._most, now - since - _NAP_S), now


class Sampler:
    """Called four times a second by the stream; takes a sample each `SAMPLE_S`, and reads /metrics as Prometheus would."""

    def __init__(
        self, stalls: Stalls, clock: Callable[[], float], *, most_s: float, page: PageSink | None
    ) -> None:
        self._rows = np.full((int(most_s / SAMPLE_S) + 100, len(COLUMNS)), np.nan)
        self._stalls, self._clock, self._page, self._count = stalls, clock, page, 0

    @property
    def rows(self) -> list[list[float]]:
        """Samples so far, by `COLUMNS`."""
        return [[round(float(value), 3) for value in row] for row in self._rows[: self._count]]

    def __call__(self, stats: LiveStats) -> None:
        now = self._clock()
        if self._count == len(self._rows) or now < SAMPLE_S * (self._count + 1):
            return
        self.take(stats)
        if self._page is not None:
            with urllib.request.urlopen(f"{self._page.url}metrics", timeout=10) as answer:
                answer.read()
        if self._count % 12 == 0:
            print(
                f"  {now / 60:4.0f} min  {stats.frames_out} frames  {self._rows[self._count - 1, 1]:.1f} MiB  "
                f"{stats.dropped_total} dropped",
                file=sys.stderr,
                flush=True,
            )

    def take(self, stats: LiveStats) -> None:
        """Take a sample now."""
        now = self._clock()
        counts = (stats.frames_in, stats.frames_out, stats.late, list(Step).index(stats.step))
        drops = (stats.dropped.get(stage, 0) for stage in STAGES)
        self._rows[self._count] = (now, *process_sizes(), *counts, self._stalls.take_ms(), *drops)
        self._count += 1


def process_sizes() -> tuple[float, float, float]:
    """Resident memory in MiB, open descriptors, threads of this process; nan where the system does not tell."""
    descriptors = threads = float("nan")
    with contextlib.suppress(OSError):
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no Path is made for each of them
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    return process_memory().rss_mib, descriptors, threads


@contextlib.contextmanager
def onlooker(page: PageSink | None) -> Iterator[None]:
    """A page that looks on in another process, where there is a page."""
    if page is None:
        yield
        return
    child = subprocess.Popen([sys.executable, __file__, "--look", page.url])
    try:
        yield
    finally:
        child.terminate()
        child.wait(10)


async def look(url: str) -> None:
    """Ask for a pair of pictures each second until the stream ends."""
    aiohttp = require("aiohttp", extra="live")
    async with aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with session.ws_connect(f"{url}frames", max_msg_size=0) as socket:
                    await socket.send_str("next")
                    async for _ in socket:
                        await asyncio.sleep(1)
                        await socket.send_str("next")
            await asyncio.sleep(1)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run one part. Raises UfrEdgeError."""
    fast = args.frames is not None
    most = args.frames if fast else round(args.seconds * args.rate * 1.1) + 100
    camera = fast_camera(args.size, args.rate, args.frames) if fast else live_camera(args.size, args.rate)
    page = None if args.no_page else PageSink(parse_uri("http://127.0.0.1:0"))
    ledger = Ledger(most)
    sinks: list[Sink] = [ledger] if page is None else [ledger, page]
    config = StreamConfig(seconds=None if fast else args.seconds)
    stalls = Stalls()
    sampler = Sampler(stalls, ledger.seconds, most_s=args.limit_s, page=page)
    running = opened(args.bundle, sinks, camera, config, engine=args.engine_name)
    with running as (stream, events), stalls.noting():
        ended = watched(stream, sampler, page)
        stats = stream.snapshot()
        sampler.take(stats)
    return {
        "part": "compressed" if fast else "real",
        "engine": stats.engine,
        "size": args.size,
        "rate": args.rate,
        "page": page is not None,
        "ended": ended,
        "stats": stats.to_json(),
        "unreadable": ledger.unreadable,
        "missing": ledger.missing(stats.frames_in),
        "minutes": ledger.minutes(),
        "columns": COLUMNS,
        "samples": sampler.rows,
        "oldest_ms": [ledger.oldest(row[0] - SAMPLE_S, row[0]) for row in sampler.rows],
        "events": [event.to_json() for event in events.last()],
    }


def watched(stream: LiveStream, sampler: Sampler, page: PageSink | None) -> str:
    """Run the stream; the page that looks on is opened at the first sample, when the server is there."""
    with contextlib.ExitStack() as stack:

        def watch(stats: LiveStats) -> None:
            nonlocal page
            if page is not None and stats.frames_out:
                stack.enter_context(onlooker(page))
                page = None
            sampler(stats)

        return stream.run(watch)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("-o", "--output", type=Path, help="the JSON")
    parser.add_argument("--engine-name")
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--rate", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=900, help="at the camera's own speed")
    parser.add_argument("--frames", type=int, help="as fast as it goes, in place of --seconds")
    parser.add_argument("--limit-s", type=float, default=7200, help="room for samples of so long")
    parser.add_argument("--no-page", action="store_true")
    parser.add_argument("--look", metavar="URL")
    return parser.parse_args()


def main() -> int:
    """Run; an error is one line and its exit code."""
    args = parse()
    if args.look:
        os.nice(10)  # who looks on must not slow what is looked at
        asyncio.run(look(args.look))
        return 0
    return script_border(lambda: write_json(args.output, measure(args)))


if __name__ == "__main__":
    sys.exit(main())
