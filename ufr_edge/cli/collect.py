"""`ufr-edge collect`: gather aligned face crops from a camera's material."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import click

from ufr_edge.cli.options import FOLDER, stack
from ufr_edge.errors import ConfigError, ExitCode, InputFileError
from ufr_edge.files import check_free
from ufr_edge.progress import progress_bar
from ufr_edge.runtime.collect import (
    CollectConfig,
    CollectedReport,
    collect,
    collect_faces,
    picture_frames,
)
from ufr_edge.runtime.face_store import purge
from ufr_edge.runtime.faces.detect import DetectorConfig, FaceDetector
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.sources import open_live_source
from ufr_edge.runtime.recorder import RecorderConfig, RecorderStats
from ufr_edge.runtime.video.source import SourceFrame
from ufr_edge.runtime.video.uri import parse_uri

_OPTIONS = stack(
    click.option("-o", "--output", "out", required=True, type=FOLDER, help="Folder for the faces, readable by you only."),
    click.option("--all", "every_face", is_flag=True, help="Every face of every frame, alike or not; not for cameras."),
    click.option("--append", is_flag=True, help="Add to a folder of collected faces."),
    click.option("--side", type=click.IntRange(32), default=256, show_default=True, help="Side of the crops."),
    click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Look at every Nth frame."),
    click.option("--limit", type=click.IntRange(1), help="Stop after so many faces."),
    click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Stop after so long."),
    click.option("--min-score", type=click.FloatRange(0, 1), default=0.6, show_default=True, help="Surest faces only."),
    click.option("--min-pixels", type=click.FloatRange(8), default=48.0, show_default=True, help="Smallest side of a face in the frame."),
    click.option("--gap", "gap_s", type=click.FloatRange(0), help="Seconds between two faces of a person. [default: 1 for cameras, 0.2 for files]"),
    click.option("--repeat", "repeat_s", type=click.FloatRange(0), help="Seconds after which a face like another is taken. [default: 5 for cameras, 1 for files]"),
    click.option("--per-track", type=click.IntRange(1), help="Most faces of one person passing. [default: 60 for cameras, 300 for files]"),
    click.option("--max-faces", type=click.IntRange(1), default=2000, show_default=True, help="Of the folder; redundant and old ones make room."),
    click.option("--max-mb", type=click.FloatRange(0, min_open=True), default=500.0, show_default=True, help="Of the folder."),
    click.option("--min-free", "min_free_mb", type=click.FloatRange(0), default=500.0, show_default=True, metavar="MB", help="Stop when the disk has less."),
    click.option("--keep-days", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, help="Age at which faces are removed."),
    click.option("--camera", default="", help="Name of the camera, for the index."),
    click.option("--detect-side", type=click.IntRange(128, 2048), default=416, show_default=True, help="More finds smaller faces."),
    click.option("--threads", type=click.IntRange(1), help="Threads of the detector."),
    click.option("--overwrite", is_flag=True, help="Replace a folder of collected faces."),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
    click.option("--no-progress", is_flag=True, help="No progress bar."),
)  # fmt: skip

_FILE: Mapping[str, Any] = MappingProxyType({"gap_s": 0.2, "repeat_s": 1.0, "per_track": 300})


@click.command("collect")
@click.argument("source")
@_OPTIONS
def command(source: str, **given: Any) -> None:
    """Gather aligned face crops from SOURCE: a video, pictures, a camera (0, rtsp://, ...) or synthetic://

    Of each person passing, faces in different poses and light are kept. The folder is whole at every moment; Ctrl-C
    ends a camera. See docs/privacy.md for what is stored and how it is removed: ufr-edge faces purge FOLDER
    """
    config = CollectConfig(
        side=given["side"],
        every=given["every"],
        limit=given["limit"],
        min_score=given["min_score"],
        min_pixels=given["min_pixels"],
    )
    detecting = DetectorConfig(long_side=given["detect_side"])
    with FaceDetector(detecting, threads=given["threads"]) as detector:
        if given["every_face"]:
            _collect_all(source, config, detector, given)
            return
        report, stopped = _collect(source, config, detector, given)
    _tell(report, as_json=given["as_json"])
    if stopped:
        raise click.exceptions.Exit(int(ExitCode.STOPPED))


def _collect(
    source: str, config: CollectConfig, detector: FaceDetector, given: dict[str, Any]
) -> tuple[CollectedReport, bool]:
    out: Path = given["out"]
    if given["append"] and given["overwrite"]:
        msg = "--append and --overwrite exclude each other."
        raise click.UsageError(msg)
    if not given["append"]:
        check_free(out, overwrite=given["overwrite"])
    ended = threading.Event()
    show = not (given["no_progress"] or given["as_json"])
    with _frames(source, given, ended) as (name, frames), progress_bar("collect", None, show=show) as advance:

        def watch(_: RecorderStats) -> None:
            advance()

        if given["overwrite"] and out.is_dir() and any(out.iterdir()):
            purge(out)
        report = collect_faces(
            frames,
            out,
            source=name,
            detector=detector,
            config=config,
            recorder=_recorder(given, live=parse_uri(source).kind not in ("path", "glob")),
            watch=watch,
        )
    return report, ended.is_set()


def _recorder(given: dict[str, Any], *, live: bool) -> RecorderConfig:
    names = ("min_score", "min_pixels", "max_faces", "max_mb", "min_free_mb", "keep_days", "camera")
    pace = {name: given[name] for name in _FILE if given[name] is not None}
    # A file is short and often of one person: more of it is taken.
    usual = {} if live else _FILE
    return RecorderConfig(**{name: given[name] for name in names}, **{**usual, **pace})


@contextmanager
def _frames(
    source: str, given: dict[str, Any], ended: threading.Event
) -> Iterator[tuple[str, Iterator[SourceFrame]]]:
    """The source's name without credentials, and its frames until --seconds or Ctrl-C (`ended`)."""
    path = Path(source)
    if path.exists() and (found := picture_frames(path)) is not None:
        yield path.name, found
        return
    uri, stop = parse_uri(source), threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()
        stop.set()

    with closing(open_live_source(uri, stop=stop, events=EventLog())) as live, _on_interrupt(end):
        yield uri.masked, _until(live.frames(), given["seconds"])


@contextmanager
def _on_interrupt(end: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let the first Ctrl-C end the source, so that what was collected is told; a second one breaks off."""

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        end(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _until(frames: Iterator[SourceFrame], seconds: float | None) -> Iterator[SourceFrame]:
    begun: float | None = None
    for frame in frames:
        begun = frame.seconds if begun is None else begun
        if seconds is not None and frame.seconds - begun >= seconds:
            return
        yield frame


def _tell(report: CollectedReport, *, as_json: bool) -> None:
    done = report.recorded
    if as_json:
        plain = asdict(report) | {"recorded": done.to_json(), "faces": done.kept}
        click.echo(json.dumps(plain, default=str, indent=2))
    else:
        why = ", ".join(
            f"{count} {reason}" for reason, count in sorted(done.refused.items(), key=lambda i: -i[1])
        )
        click.echo(
            f"{done.kept} faces from {report.frames} frames ({report.frames_without_face} without a face) -> {report.out}"
        )
        click.echo(f"left out: {why or 'none'}; the folder holds {done.held} faces, {done.megabytes:.1f} MB")
    if done.held == 0:
        msg = f"No face was kept of {report.source}. Check the source, or lower --min-score or --min-pixels."
        raise InputFileError(msg)


def _collect_all(source: str, config: CollectConfig, detector: FaceDetector, given: dict[str, Any]) -> None:
    if given["append"] or given["seconds"]:
        msg = "--all takes a whole source into a new folder: it goes without --append and --seconds."
        raise ConfigError(msg)
    with progress_bar("collect", None, show=not (given["no_progress"] or given["as_json"])) as advance:
        report = collect(
            source,
            given["out"],
            detector=detector,
            config=config,
            overwrite=given["overwrite"],
            watch=lambda _d, _t: advance(),
        )
    if given["as_json"]:
        click.echo(json.dumps(asdict(report), default=str, indent=2))
        return
    click.echo(
        f"{report.faces} faces from {report.frames} frames "
        f"({report.frames_without_face} without a good face) -> {report.out}"
    )
