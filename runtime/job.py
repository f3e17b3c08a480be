"""One run of `run_path`: its settings, what it works with, and what it has counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.faces.detect import DetectorConfig, Detects, FaceDetector
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig, Restored, Restores, restore_aligned
from ufr_edge.runtime.report import RunReport, Tally
from ufr_edge.runtime.timing import StageClock
from ufr_edge.runtime.video.encoder import EncodeConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a run. aligned: the input is aligned faces already. threads: per engine and codec.

    Of a video: workers: processes that each restore stretches of it. segment_s: its length in seconds between
    two points from which an interrupted run goes on. partial: take what can be read of a damaged file.
    """

    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    aligned: bool = False
    overwrite: bool = False
    threads: int | None = None
    workers: int = 1
    segment_s: float = 10.0
    partial: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1 or self.segment_s <= 0:
            msg = "workers must be 1 or more, and segment_s above 0."
            raise ConfigError(msg)


Work = Callable[[Frame, str, float | None], Restored]
"""A frame, its name, and its time in seconds (None for a still) to the restored frame."""

Watch = Callable[[int, int | None], None]
"""Called with (frames done, frames in all or None): after each frame, and before the first of a video."""

Reopen = Callable[[], AbstractContextManager[Restores]]
"""Opens the same engine again, in another process: it must be possible to pickle it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run works with. new_work: begins a stream of frames without a past."""

    engine: Restores
    detector: Detects | None
    new_work: Callable[[], Work]
    clock: StageClock
    tally: Tally
    config: RunConfig
    watch: Watch | None

    def report(
        self, kind: str, source: str, out: Path, started: float, *notes: str, kept: int = 0
    ) -> RunReport:
        """The report of what was counted. kept: frames that an interrupted run had finished."""
        return RunReport(
            kind=kind,
            source=source,
            out=out,
            frames_in=self.tally.read,
            frames_out=self.tally.written,
            frames_without_face=self.tally.faceless,
            faces=self.tally.faces,
            seconds=time.perf_counter() - started,
            stages=self.clock.timings(),
            engine=self.engine.info,
            detector=self.detector.info if self.detector else None,
            notes=notes + self.tally.notes(),
            frames_kept=kept,
        )

    def wrote(self, total: int | None) -> None:
        """Count a frame that was written."""
        self.tally.written += 1
        if self.watch:
            self.watch(self.tally.written, total)


@contextmanager
def prepared(
    engine: Restores, config: RunConfig, detector: Detects | None, watch: Watch | None
) -> Iterator[Job]:
    """A job around an open engine; opens the detector where none is given and one is needed."""
    clock = StageClock()
    with ExitStack() as stack:
        if config.aligned:
            detector = None
        elif detector is None:
            detector = stack.enter_context(open_detector(engine, config))
        found = detector

        def new_work() -> Work:
            if found is None:
                return _aligned_work(engine, config, clock)
            return _face_work(FacePipeline(engine, found, config.pipeline, clock=clock))

        yield Job(
            engine=engine,
            detector=detector,
            new_work=new_work,
            clock=clock,
            tally=Tally(),
            config=config,
            watch=watch,
        )


def open_detector(engine: Restores, config: RunConfig) -> FaceDetector:
    """The face detector on the backend of the engine where that can run it. Close it after use."""
    # TensorRT needs a built engine per picture size; ONNX Runtime and OpenVINO take the file as it is.
    if engine.info.backend != "openvino":
        return FaceDetector(config.detector, threads=config.threads)
    precision = "bf16" if engine.info.float_precision == "bf16" else None
    return FaceDetector(config.detector, backend="openvino", precision=precision, threads=config.threads)


def _face_work(pipeline: FacePipeline) -> Work:
    def work(frame: Frame, _name: str, time_s: float | None) -> Restored:
        return pipeline.restore(frame) if time_s is None else pipeline.process(frame, time_s=time_s)

    return work


def _aligned_work(engine: Restores, config: RunConfig, clock: StageClock) -> Work:
    def work(frame: Frame, name: str, _time_s: float | None) -> Restored:
        return restore_aligned(engine, frame, config.pipeline, clock=clock, name=name)

    return work
