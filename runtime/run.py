"""Restoring the faces of a picture, a folder of pictures, or a video."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from ufr_edge.errors import InputFileError, OutputError
from ufr_edge.files import atomic_file, check_free
from ufr_edge.runtime.faces.detect import DetectorConfig, Detects, FaceDetector
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import is_image, list_images, read_image, write_image
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig, Restored, Restores, restore_aligned
from ufr_edge.runtime.report import RunReport, Tally
from ufr_edge.runtime.timing import StageClock
from ufr_edge.runtime.video.opening import open_source
from ufr_edge.runtime.video.prefetch import prefetch
from ufr_edge.runtime.video.source import CopiedPacket, SourceFrame, SourceItem, VideoSource
from ufr_edge.runtime.video.writer import VIDEO_SUFFIXES, EncodeConfig, VideoWriter

_QUEUE = 4  # frames held between two stages


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a run. aligned: the input is aligned faces already. threads: per engine and codec."""

    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    aligned: bool = False
    overwrite: bool = False
    threads: int | None = None


Work = Callable[[Frame, str, float | None], Restored]
"""A frame, its name, and its time in seconds (None for a still) to the restored frame."""

Watch = Callable[[int, int | None], None]
"""Called after each frame with (frames done, frames in all or None)."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    engine: Restores
    detector: Detects | None
    work: Work
    clock: StageClock
    tally: Tally
    config: RunConfig
    watch: Watch | None

    def report(self, kind: str, source: str, out: Path, started: float, *notes: str) -> RunReport:
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
        )

    def wrote(self, total: int | None) -> None:
        self.tally.written += 1
        if self.watch:
            self.watch(self.tally.written, total)


def run_path(
    source: str | Path,
    out: Path,
    engine: Restores,
    config: RunConfig | None = None,
    *,
    detector: Detects | None = None,
    watch: Watch | None = None,
) -> RunReport:
    """Restore `source` (picture, folder of pictures, video, `synthetic://`) into `out` of the same kind.

    engine: an open `Engine`. detector: one that is open already; else CenterFace is opened here, on the
    engine's backend where that can run it. Nothing half-written is left behind on failure.
    Raises InputFileError, OutputError, ConfigError, InferenceError, BackendUnavailableError.
    """
    if isinstance(source, str) and "://" in source:
        return run_video(source, out, engine, config, detector=detector, watch=watch)
    path = Path(source)
    if not path.exists():
        msg = f"{path} does not exist. Check the path."
        raise InputFileError(msg)
    run = run_folder if path.is_dir() else run_image if is_image(path) else run_video
    return run(path, out, engine, config, detector=detector, watch=watch)


def run_image(
    source: str | Path,
    out: Path,
    engine: Restores,
    config: RunConfig | None = None,
    *,
    detector: Detects | None = None,
    watch: Watch | None = None,
) -> RunReport:
    """`run_path` for one picture."""
    path, config = Path(source), config or RunConfig()
    out = _check_out(path, out, config)
    with _prepared(engine, config, detector, watch) as run:
        started = time.perf_counter()
        _one_image(run, path, out, total=1)
        return run.report("image", str(path), out, started)


def run_folder(
    source: str | Path,
    out: Path,
    engine: Restores,
    config: RunConfig | None = None,
    *,
    detector: Detects | None = None,
    watch: Watch | None = None,
) -> RunReport:
    """`run_path` for a folder of pictures; names are kept.

    A damaged picture does not stop the others: they are written, then InputFileError names the damaged.
    """
    folder, config = Path(source), config or RunConfig()
    pictures = list_images(folder)
    if out.resolve() == folder.resolve():
        msg = f"{out} is the input folder itself. Choose another output."
        raise OutputError(msg)
    if out.is_file():
        msg = f"{out} is a file; a folder goes into a folder. Choose another output."
        raise OutputError(msg)
    check_free(out, overwrite=config.overwrite)
    damaged: list[str] = []
    with _prepared(engine, config, detector, watch) as run:
        started = time.perf_counter()
        for path in pictures:
            try:
                _one_image(run, path, out / path.name, total=len(pictures))
            except InputFileError as exc:
                damaged.append(str(exc))
        if damaged:
            msg = f"{len(damaged)} of {len(pictures)} pictures were left out, the rest is in {out}: "
            raise InputFileError(msg + " ".join(damaged[:5]))
        return run.report("folder", str(folder), out, started)


def run_video(
    source: str | Path,
    out: Path,
    engine: Restores,
    config: RunConfig | None = None,
    *,
    detector: Detects | None = None,
    watch: Watch | None = None,
) -> RunReport:
    """`run_path` for a video: one frame out per frame in, with its time stamp; sound is copied.

    A frame without a face is encoded from the decoder's own picture. An odd side grows by one pixel.
    Reading, restoring and writing overlap in three threads, with a few frames between them.
    """
    config = config or RunConfig()
    if "://" not in str(source):
        out = _check_out(Path(source), out, config)
    check_free(out, overwrite=config.overwrite)
    if out.suffix.lower() not in VIDEO_SUFFIXES:
        msg = f"{out} is no video name this can write. End it with {', '.join(sorted(VIDEO_SUFFIXES))}."
        raise OutputError(msg)
    with ExitStack() as stack:
        video = stack.enter_context(closing(open_source(source, threads=config.threads)))
        run = stack.enter_context(_prepared(engine, config, detector, watch))
        started = time.perf_counter()
        with atomic_file(out) as beside:
            _write_all(run, video, beside)
        return run.report("video", str(source), out, started, *_notes(video))


def _write_all(run: _Run, video: VideoSource, path: Path) -> None:
    side = run.engine.info.side or run.config.pipeline.side
    size = (side, side) if run.config.aligned else (video.info.width, video.info.height)
    writer = VideoWriter(path, video.info, size=size, copied=video.copied, config=run.config.encode)
    read = prefetch(_timed(video.items(), run.clock), depth=_QUEUE)
    try:
        with closing(prefetch(_restored(run, read), depth=_QUEUE)) as restored:
            for item in restored:
                _write(run, writer, item, video.info.frames)
        with run.clock.stage("encode"):
            writer.finish()
    except BaseException:
        writer.abort()
        raise


def _write(run: _Run, writer: VideoWriter, item: SourceItem, total: int | None) -> None:
    if isinstance(item, CopiedPacket):
        writer.copy(item)
        return
    with run.clock.stage("encode"):
        writer.write(item)
    run.wrote(total)


def _restored(run: _Run, items: Generator[SourceItem, None, None]) -> Iterator[SourceItem]:
    with closing(items):  # stops the reading thread when the engine fails
        for item in items:
            yield item if isinstance(item, CopiedPacket) else _restore_one(run, item)


def _restore_one(run: _Run, item: SourceFrame) -> SourceFrame:
    done = run.work(item.image, f"Frame {item.index}", item.seconds)
    run.tally.saw(done.count, done.skipped)
    native = None if done.touched is None else item.native
    return replace(item, image=done.image, native=native, touched=done.touched or ())


def _timed(items: Iterator[SourceItem], clock: StageClock) -> Iterator[SourceItem]:
    """Time what each frame took to read, sound packets before it included."""
    since = time.perf_counter()
    for item in items:
        if isinstance(item, SourceFrame):
            clock.add("decode", time.perf_counter() - since)
        yield item
        if isinstance(item, SourceFrame):
            since = time.perf_counter()


def _one_image(run: _Run, path: Path, out: Path, *, total: int) -> None:
    with run.clock.stage("decode"):
        frame = read_image(path)
    done = run.work(frame, str(path), None)
    run.tally.saw(done.count, done.skipped)
    with run.clock.stage("encode"):
        write_image(out, done.image)
    run.wrote(total)


@contextmanager
def _prepared(
    engine: Restores, config: RunConfig, detector: Detects | None, watch: Watch | None
) -> Iterator[_Run]:
    clock = StageClock()
    with ExitStack() as stack:
        if config.aligned:
            detector, work = None, _aligned_work(engine, config, clock)
        else:
            if detector is None:
                detector = stack.enter_context(open_detector(engine, config))
            work = _face_work(FacePipeline(engine, detector, config.pipeline, clock=clock))
        yield _Run(
            engine=engine,
            detector=detector,
            work=work,
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


def _check_out(source: Path, out: Path, config: RunConfig) -> Path:
    if out.is_dir():
        out = out / source.name
    if out.exists() and out.resolve() == source.resolve():
        msg = f"{out} is the input itself. Choose another output."
        raise OutputError(msg)
    check_free(out, overwrite=config.overwrite)
    return out


def _notes(video: VideoSource) -> tuple[str, ...]:
    width, height = video.info.width, video.info.height
    if width % 2 or height % 2:
        return (
            f"{width}x{height} has an odd side, which H.264 cannot hold: its last line is repeated once.",
        )
    return ()
