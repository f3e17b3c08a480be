"""A stream put together: source, engine, detector and sinks by their addresses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ufr_edge import __version__
from ufr_edge.runtime.bundle import Wanted, choose_engine, open_entry, rank_engines, read_bundle
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.engines import installed_backends
from ufr_edge.runtime.faces.detect import DetectorConfig, Detects
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.file_names import sink_at
from ufr_edge.runtime.live.observer import ObserverConfig, open_observer
from ufr_edge.runtime.live.sinks import PACED_KINDS, SinkConfig, open_sink
from ufr_edge.runtime.live.sources import SourceConfig, open_live_source
from ufr_edge.runtime.live.stages import ChoosesEngine, Engines
from ufr_edge.runtime.live.stats import Labels, StatsBoard
from ufr_edge.runtime.live.stream import LiveStream, StreamConfig
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig
from ufr_edge.runtime.run import RunConfig, open_detector
from ufr_edge.runtime.video.source import VideoInfo
from ufr_edge.runtime.video.uri import Uri, parse_uri


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """Settings of a stream. record: a second file that gets the same frames. threads: per engine and codec.

    observer: recording of faces, and drift; nothing of it unless asked for.
    """

    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    sink: SinkConfig = field(default_factory=SinkConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    record: Path | None = None
    observer: ObserverConfig = field(default_factory=ObserverConfig)
    threads: int | None = None


@contextmanager
def open_stream(
    source: str,
    sink: str,
    engines: ChoosesEngine,
    config: LiveConfig | None = None,
    *,
    detector: Detects | None = None,
    events: EventLog | None = None,
) -> Iterator[LiveStream]:
    """Open source and sinks around the engines; call `run()` of what is yielded.

    The names of files that are written may hold the time (`file_names`). The sinks are checked before the source is connected to. detector: one that is open already.
    Raises ConfigError, InputFileError, OutputError, SourceLostError, BackendUnavailableError.
    """
    config, events, stop = config or LiveConfig(), events or EventLog(), threading.Event()
    now = datetime.now().astimezone()
    source_uri, sink_uri = parse_uri(source), sink_at(parse_uri(sink), now)
    sinks = [open_sink(sink_uri, config.sink)]
    if config.record is not None:
        sinks.append(open_sink(sink_at(parse_uri(config.record), now), config.sink))
    with ExitStack() as stack:
        if detector is None:
            run = RunConfig(detector=config.detector, threads=config.threads)
            detector = stack.enter_context(open_detector(engines.full, run))
        given = replace(
            config.source, threads=config.threads, code=config.source.code or config.stream.latency
        )
        opened = stack.enter_context(closing(open_live_source(source_uri, given, stop=stop, events=events)))
        labels = _labels(source_uri, sink_uri, engines, detector, opened.info)
        board = StatsBoard(labels)
        pipeline = FacePipeline(engines.full, detector, config.pipeline, clock=board.clock)
        settings = replace(config.stream, pace=config.stream.pace or sink_uri.kind in PACED_KINDS)
        _warm_up(engines, detector, opened.info, config.pipeline)
        side = engines.full.info.side or config.pipeline.side
        watched = open_observer(config.observer, events, side=side, source=source_uri.masked)
        observer = stack.enter_context(watched)
        yield LiveStream(
            opened,
            sinks,
            pipeline,
            engines,
            settings,
            board=board,
            events=events,
            stop=stop,
            observer=observer,
        )


def _labels(source: Uri, sink: Uri, engines: ChoosesEngine, detector: Detects, info: VideoInfo) -> Labels:
    return Labels(
        source=source.masked,
        sink=sink.masked,
        engine=engines.full.info.describe(),
        device=engines.full.info.device,
        detector=detector.info.describe(),
        width=info.width,
        height=info.height,
    )


def _warm_up(engines: ChoosesEngine, detector: Detects, info: VideoInfo, config: PipelineConfig) -> None:
    """Run everything once: the first run of an engine takes several frame periods, and would drop frames."""
    detector.detect(np.zeros((info.height, info.width, 3), np.uint8))
    for engine in filter(None, (engines.full, engines.smaller)):
        side = engine.info.side or config.side
        engine.infer(np.zeros((1, side, side, 3), np.uint8))


@contextmanager
def open_engines(
    bundle: Path,
    *,
    engine: str | None = None,
    smaller: str | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Iterator[Engines]:
    """Open the engine that was asked for (else the fastest that fits), and one to fall back on when late.

    smaller: its name; None takes the fastest that fits, unless that is the first one already.
    Raises as `open_bundle_engine`.
    """
    found = read_bundle(bundle)
    here = {"fingerprint": device_fingerprint(), "backends": installed_backends()}
    wanted = Wanted(name=engine, device=device)
    entry = choose_engine(found.manifest, **here, wanted=wanted, path=bundle).entry
    wanted = Wanted(name=smaller, device=device)
    fitting, _ = rank_engines(found.manifest, **here, wanted=wanted)
    if smaller is not None:  # raises when it does not fit
        fitting = (choose_engine(found.manifest, **here, wanted=wanted, path=bundle).entry,)
    with ExitStack() as stack:
        full = stack.enter_context(open_entry(found, entry, device=device, threads=threads))
        second = None
        if fitting and fitting[0].name != entry.name:
            second = stack.enter_context(open_entry(found, fitting[0], device=device, threads=threads))
        yield Engines(full=full, smaller=second)


def stream_report(
    stream: LiveStream, events: EventLog, *, ended: str, error: str | None = None
) -> dict[str, Any]:
    """What a stream did, as plain JSON values."""
    return {
        "version": __version__,
        "ended": ended,
        "error": error,
        "stats": stream.snapshot().to_json(),
        "events": [event.to_json() for event in events.last()],
    }
