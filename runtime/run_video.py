"""Restoring a video: in stretches that are kept as they are finished, joined at the end."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from ufr_edge.errors import ConfigError, OutputError
from ufr_edge.files import atomic_file, check_free
from ufr_edge.runtime.faces.detect import Detects
from ufr_edge.runtime.job import Job, Reopen, RunConfig, Watch, prepared
from ufr_edge.runtime.pipeline import Restores
from ufr_edge.runtime.report import RunReport
from ufr_edge.runtime.run_parts import PartFolder, job_key
from ufr_edge.runtime.run_span import Plan, restore_span
from ufr_edge.runtime.run_workers import restore_in_workers
from ufr_edge.runtime.video.encoder import coded_format, coded_size
from ufr_edge.runtime.video.joining import Film, fitting_tracks, join
from ufr_edge.runtime.video.opening import open_source
from ufr_edge.runtime.video.planes import layout_of
from ufr_edge.runtime.video.source import VideoInfo, VideoSource
from ufr_edge.runtime.video.writer import check_video_name

_NO_TRACKS: tuple[tuple[int, ...], tuple[str, ...]] = ((), ())


def run_video(
    source: str | Path,
    out: Path,
    engine: Restores,
    config: RunConfig | None = None,
    *,
    detector: Detects | None = None,
    watch: Watch | None = None,
    reopen: Reopen | None = None,
) -> RunReport:
    """`run_path` for a video: one frame out per frame in, with its time stamp; sound and subtitles are copied.

    What no face touches is encoded from the decoder's own picture, at its depth and chroma. Reading, restoring
    and writing overlap in three threads, with a few frames between them.
    """
    config = config or RunConfig()
    is_file = "://" not in str(source)
    if is_file:
        out = check_out(Path(source), out, config)
    check_free(out, overwrite=config.overwrite)
    check_video_name(out)
    with ExitStack() as stack:
        video = stack.enter_context(
            closing(open_source(source, threads=config.threads, partial=config.partial))
        )
        plan = _plan(source, out, video, engine, config)
        lost = stack.enter_context(plan.folder.held(job_key(source, engine, config)))
        probe = plan.folder.path / f"probe{out.suffix}"
        tracks, left_out = fitting_tracks(Path(source), probe) if is_file else _NO_TRACKS
        job = stack.enter_context(prepared(engine, config, detector, watch))
        started = time.perf_counter()
        kept = _restore(job, video, plan, reopen)
        _join(job, plan, out, source=Path(source) if is_file else None, tracks=tracks)
        plan.folder.clear()
        notes = (*_notes(video, plan), *left_out, *lost)
        return job.report("video", str(source), out, started, *notes, kept=kept)


def _plan(source: str | Path, out: Path, video: VideoSource, engine: Restores, config: RunConfig) -> Plan:
    info = _as_written(video.info, engine, config)
    folder = PartFolder(
        path=out.parent / f".{out.name}.parts",
        window=Fraction(config.segment_s).limit_denominator(1000),
        start=info.start,
    )
    pix_fmt = coded_format(info, config.encode)
    return Plan(source=source, info=info, pix_fmt=pix_fmt, folder=folder, config=config)


def _join(job: Job, plan: Plan, out: Path, *, source: Path | None, tracks: tuple[int, ...]) -> None:
    """Make the film of the parts, and count what they hold."""
    records = plan.folder.finished()
    for record in records.values():
        job.tally.add(record)
    film = Film(
        parts=[(plan.folder.part(index), record) for index, record in sorted(records.items())],
        info=plan.info,
        size=coded_size((plan.info.width, plan.info.height), plan.pix_fmt),
        encode=plan.config.encode,
        source=source,
        tracks=tracks,
        partial=plan.config.partial,
    )
    with atomic_file(out) as beside:
        join(film, beside)


def _restore(job: Job, video: VideoSource, plan: Plan, reopen: Reopen | None) -> int:
    """Restore what is not finished; returns how many frames were."""
    finished = plan.folder.finished()
    kept = sum(record.frames for record in finished.values())
    total = plan.info.expected
    job.tally.written = kept
    if job.watch:
        job.watch(kept, total)
    steady = all(record.steady for record in finished.values())
    workers = plan.config.workers if plan.info.end is not None and steady else 1
    spans = plan.folder.missing(finished, end=plan.info.end, workers=workers)
    if workers > 1:
        if reopen is None:
            msg = "workers above 1 need `reopen`, which opens the engine in each of them."
            raise ConfigError(msg)
        restore_in_workers(job, plan, spans, reopen)
    else:
        for span in spans:
            restore_span(job, video, plan, span, seek=steady)
    job.tally.written = 0  # counted anew from the parts
    return kept


def check_out(source: Path, out: Path, config: RunConfig) -> Path:
    """The file to write: `out`, or of that name in it. Raises OutputError when it may not be written."""
    if out.is_dir():
        out = out / source.name
    if out.exists() and out.resolve() == source.resolve():
        msg = f"{out} is the input itself. Choose another output."
        raise OutputError(msg)
    check_free(out, overwrite=config.overwrite)
    return out


def _as_written(info: VideoInfo, engine: Restores, config: RunConfig) -> VideoInfo:
    if not config.aligned:
        return info
    side = engine.info.side or config.pipeline.side
    return replace(info, width=side, height=side, aspect=None, pix_fmt="yuv420p")


def _notes(video: VideoSource, plan: Plan) -> tuple[str, ...]:
    found, written = layout_of(video.info.pix_fmt), layout_of(plan.pix_fmt)
    width, height = plan.info.width, plan.info.height
    notes: list[str] = []
    if coded_size((width, height), plan.pix_fmt) != (width, height):
        notes.append(
            f"{width}x{height} has an odd side, which {written.chroma[:1]}:{written.chroma[1]}:"
            f"{written.chroma[2]} chroma cannot hold: its last line is repeated once."
        )
    if found.bits != written.bits:
        notes.append(f"{found.bits} bits per sample were written as {written.bits}.")
    if written.bits > 8 and plan.config.encode.codec == "h264":
        notes.append(f"{written.bits}-bit H.264 plays in few players; --codec h265 plays in more.")
    if plan.config.workers > 1 and plan.info.end is None:
        notes.append("Its length is not declared, so that one worker read it from end to end.")
    return (*notes, *video.notes())
