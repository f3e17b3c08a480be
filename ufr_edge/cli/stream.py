"""`ufr-edge stream`: restore the faces of a live stream."""

from __future__ import annotations

import json
import logging
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ufr_edge.cli.options import FOLDER, stack
from ufr_edge.cli.rebuilding import rebuild_misfits, rebuild_option
from ufr_edge.cli.restoring import encode_config, encode_options, face_options, pipeline_config
from ufr_edge.cli.settings import settings_option
from ufr_edge.errors import ConfigError, ExitCode, UfrEdgeError
from ufr_edge.files import check_writable, write_json
from ufr_edge.runtime.bundle import Wanted, read_bundle
from ufr_edge.runtime.faces.detect import DetectorConfig
from ufr_edge.runtime.fingerprint import Fingerprint
from ufr_edge.runtime.fingerprint_files import bundle_fingerprint
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.installed import EngineWish, open_live_engines
from ufr_edge.runtime.live.links import LinkConfig
from ufr_edge.runtime.live.observer import ENDED_BY_DRIFT, ObserverConfig
from ufr_edge.runtime.live.page_address import make_token, needs_token
from ufr_edge.runtime.live.session import LiveConfig, open_stream, stream_report
from ufr_edge.runtime.live.shadow import SwapConfig
from ufr_edge.runtime.live.sinks import LIVE_ENCODE, SinkConfig
from ufr_edge.runtime.live.sources import Backoff, SourceConfig
from ufr_edge.runtime.live.stats import LiveStats
from ufr_edge.runtime.live.stream import LiveStream, StreamConfig
from ufr_edge.runtime.live.watcher import SwapWatcher
from ufr_edge.runtime.recorder import RecorderConfig
from ufr_edge.runtime.video.uri import parse_uri
from ufr_edge.runtime.video.writer import VIDEO_SUFFIXES

Watch = Callable[[LiveStats], None]
Beside = Callable[[EventLog], AbstractContextManager[Watch]]

STREAM_OPTIONS = stack(
    settings_option,
    click.option("--bundle", "--engine", "bundle", required=True, type=FOLDER, help="Bundle NAME.ufr, or a folder of installed versions: a new one takes over while it runs."),
    click.option("--engine-name", help="Engine of the bundle, by name. Default: the best for this device."),
    click.option("--smaller-engine", help="Engine for when frames are late. Default: the fastest, if another."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, GPU, ..."),
    rebuild_option,
    face_options(),
    encode_options(LIVE_ENCODE),
    click.option("--deadline", type=click.FloatRange(0, min_open=True), metavar="MS", help="Age at the sink from which a frame is late. [default: 3 frame periods]"),
    click.option("--no-ladder", is_flag=True, help="Late frames change nothing."),
    click.option("--filling", type=click.Choice(["wait", "drop_oldest", "drop_latest"]), help="When frames come too fast. [default: drop_oldest for cameras, wait for files]"),
    click.option("--consuming", type=click.Choice(["lazy", "eager"]), help="All in order, or the newest. [default: eager for cameras, lazy for files]"),
    click.option("--reconnect", type=click.IntRange(0), default=10, show_default=True, help="Tries to connect again before the source, or a network sink, is lost."),
    click.option("--timeout", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Seconds to wait for a connection or a picture."),
    click.option("--token", envvar="UFR_TOKEN", metavar="TEXT", help="Of the live page (better in UFR_TOKEN). [default: made anew, if others can reach the page]"),
    click.option("--record", type=FOLDER, metavar="DIR|FILE", help="A folder: collect faces in it, to adapt to. A video file: also write the stream there; %Y%m%d-%H%M%S in its name is the time."),
    click.option("--keep-days", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, help="Age at which recorded faces are removed."),
    click.option("--max-faces", type=click.IntRange(1), default=2000, show_default=True, help="Recorded; redundant and old ones make room."),
    click.option("--max-mb", type=click.FloatRange(0, min_open=True), default=500.0, show_default=True, help="Of the folder of recorded faces."),
    click.option("--min-free", "min_free_mb", type=click.FloatRange(0), default=500.0, show_default=True, metavar="MB", help="Recording pauses while the disk has less."),
    click.option("--camera", default="", help="Name of the camera, for the recorded faces."),
    click.option("--on-drift", metavar="CMD", help="Run this (no shell) each time the faces are no longer those adapted to."),
    click.option("--exit-on-drift", is_flag=True, help="End the stream then, with exit code 3."),
    click.option("--no-drift", is_flag=True, help="Do not compare faces with those the bundle was adapted to."),
    click.option("--frames", type=click.IntRange(1), help="Stop after so many."),
    click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Stop after so long."),
    click.option("--latency", is_flag=True, help="Read the time code of synthetic:// at the sink."),
    click.option("--shadow-seconds", type=click.FloatRange(0), default=10.0, show_default=True, help="A new version runs beside the old so long first."),
    click.option("--probation-seconds", type=click.FloatRange(0), default=30.0, show_default=True, help="After it took over, the old one is kept so long to go back to."),
    click.option("--threads", type=click.IntRange(1), help="Threads of each engine and codec."),
    click.option("--overwrite", is_flag=True, help="Replace an output that exists."),
    click.option("--report", type=FOLDER, help="Write numbers and events into this JSON file at the end."),
    click.option("--json", "as_json", is_flag=True, help="Print them."),
    click.option("--log-json", is_flag=True, help="Log as lines of JSON."),
    click.option("--no-progress", is_flag=True, help="No status line."),
)  # fmt: skip


@click.command("stream")
@click.argument("source")
@click.argument("sink")
@STREAM_OPTIONS
def command(source: str, sink: str, **given: Any) -> None:
    """Restore the faces of SOURCE as it comes, into SINK.

    SOURCE: a file, folder or "glob*"; a camera (0, /dev/video0, csi://0), rtsp://, http://, gst:PIPELINE or
    synthetic://?size=1280x720. SINK: a file or folder, display://, http://HOST:PORT, v4l2:///dev/video9,
    rtsp://, udp:// or null://. Ctrl-C ends it; what was written can be played. In the name of a file to write,
    %Y %m %d %H %M %S are the time of the start (%% is a percent sign), so that each run has a file of its own.
    """
    play(source, sink, given)


def play(
    source: str, sink: str, given: dict[str, Any], *, beside: Beside | None = None, needs_drift: str = ""
) -> None:
    """Run the stream of `stream` and `watch`. beside: what goes on next to it, called four times a second.

    needs_drift: the option that is of no use unless drift can be seen; ConfigError when it cannot.
    """
    if given["report"] is not None:
        check_writable(given["report"])
    given = given | {"token": _token(sink, given["token"])}
    if given["rebuild"]:
        rebuild_misfits(given["bundle"], Wanted(name=given["engine_name"], device=given["device"]))
    config, events = replace(_config(given), observer=_observer(given, needs_drift)), EventLog()
    ended, error = "failed", None
    wish = EngineWish(
        engine=given["engine_name"],
        smaller=given["smaller_engine"],
        device=given["device"],
        threads=given["threads"],
    )
    swap = SwapConfig(shadow_s=given["shadow_seconds"], probation_s=given["probation_seconds"])
    with (
        _json_log(given["log_json"]),
        open_live_engines(given["bundle"], wish, swap=swap, events=events) as live,
        open_stream(source, sink, live.engines, config, events=events) as stream,
        live.watching(stream) as watcher,
        _on_hangup(watcher),
        nullcontext() if beside is None else beside(events) as tick,
    ):
        quiet = given["as_json"]
        if not quiet:
            _print_what_runs(stream.snapshot())
        try:
            with _status(show=not (given["no_progress"] or quiet)) as watch:
                ended = stream.run(_both(watch, tick))
        except KeyboardInterrupt:
            ended = "stopped by a signal"
        except UfrEdgeError as exc:
            error = str(exc)
            raise
        finally:
            _hand_over(stream, events, ended, error, given)
    if ended == "stopped by a signal":
        raise click.exceptions.Exit(int(ExitCode.STOPPED))
    if ended.startswith(ENDED_BY_DRIFT):
        raise click.exceptions.Exit(int(ExitCode.GATE_FAILED))


def _both(first: Watch | None, second: Watch | None) -> Watch:
    def watch(stats: LiveStats) -> None:
        for call in filter(None, (first, second)):
            call(stats)

    return watch


@contextmanager
def _on_hangup(watcher: SwapWatcher | None) -> Iterator[None]:
    """Let SIGHUP look for another version at once."""
    if watcher is None or not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.signal(signal.SIGHUP, lambda *_: watcher.poke())
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _token(sink: str, given: str | None) -> str | None:
    """The token that was given, or, where the page needs one, a new one, told this once and nowhere else."""
    uri = parse_uri(sink)
    if given or not needs_token(uri):
        return given or None
    made = make_token()
    click.echo(f"token: {made} (made for this run: {uri.target.rstrip('/')}/?token={made})", err=True)
    return made


def _config(given: dict[str, Any]) -> LiveConfig:
    tries = given["reconnect"]
    backoff = Backoff(tries=tries, at_start=max(1, min(3, tries)))
    link = LinkConfig(open_s=given["timeout"], read_s=given["timeout"])
    return LiveConfig(
        pipeline=pipeline_config(given),
        detector=DetectorConfig(long_side=given["detect_side"]),
        source=SourceConfig(link=link, backoff=backoff),
        sink=SinkConfig(
            overwrite=given["overwrite"],
            encode=encode_config(given, LIVE_ENCODE),
            timeout_s=given["timeout"],
            backoff=backoff,
            token=given["token"],
        ),
        stream=StreamConfig(
            deadline_ms=given["deadline"],
            ladder=not given["no_ladder"],
            filling=given["filling"],
            consuming=given["consuming"],
            frames=given["frames"],
            seconds=given["seconds"],
            latency=given["latency"],
        ),
        record=given["record"] if _is_video(given["record"]) else None,
        threads=given["threads"],
    )


def _observer(given: dict[str, Any], needs_drift: str) -> ObserverConfig:
    hook = tuple(shlex.split(given["on_drift"] or ""))
    named = {needs_drift: needs_drift, "--on-drift": hook, "--exit-on-drift": given["exit_on_drift"]}
    recorder = ("keep_days", "max_faces", "max_mb", "min_free_mb", "camera")
    return ObserverConfig(
        record=None if _is_video(given["record"]) else given["record"],
        recorder=RecorderConfig(**{name: given[name] for name in recorder}),
        reference=_reference(given, [name for name, value in named.items() if value]),
        hook=hook,
        exit_on_drift=given["exit_on_drift"],
    )


def _reference(given: dict[str, Any], needed_by: list[str]) -> Fingerprint | None:
    """The fingerprint to compare with. Raises ConfigError when an option needs one and there is none that fits."""
    if given["no_drift"]:
        if needed_by:
            msg = f"--no-drift leaves nothing for {' and '.join(needed_by)}."
            raise click.UsageError(msg)
        return None
    bundle = read_bundle(given["bundle"])
    reference, side = bundle_fingerprint(bundle), bundle.manifest.restorer.side
    if needed_by and (reference is None or reference.side != side):
        why = (
            "does not say what camera it was adapted to"
            if reference is None
            else f"has the fingerprint of {reference.side} px faces and restores those of {side} px"
        )
        msg = (
            f"{given['bundle']} {why}, so drift cannot be seen, which {' and '.join(needed_by)} waits for. "
            "Export it again with --calibration FACES of the camera."
        )
        raise ConfigError(msg)
    return reference


def _is_video(path: Path | None) -> bool:
    return path is not None and path.suffix.lower() in VIDEO_SUFFIXES


def _hand_over(
    stream: LiveStream, events: EventLog, ended: str, error: str | None, given: dict[str, Any]
) -> None:
    report = stream_report(stream, events, ended=ended, error=error)
    if given["as_json"]:
        click.echo(json.dumps(report, indent=2))
    else:
        _print_end(stream.snapshot(), ended)
    if given["report"] is not None:  # last: should the disk be full, the numbers have been printed
        write_json(given["report"], report)


def _print_end(stats: LiveStats, ended: str) -> None:
    click.echo(f"{ended}: {status_text(stats)}")
    for stage in stats.stages:
        click.echo(
            f"  {stage.name:<9} p50 {stage.p50_ms:6.1f}  p95 {stage.p95_ms:6.1f}  p99 {stage.p99_ms:6.1f} ms"
        )


def _print_what_runs(stats: LiveStats) -> None:
    click.echo(f"source:   {stats.source}, {stats.width}x{stats.height}")
    click.echo(f"engine:   {stats.engine}")
    click.echo(f"detector: CenterFace on {stats.detector}")
    click.echo(f"sink:     {stats.sink}")
    if stats.watch is not None and stats.watch.recording:
        click.echo("faces:    recorded (see docs/privacy.md)")


def status_text(stats: LiveStats) -> str:
    """The numbers that matter, on one line."""
    age = stats.glass or stats.age
    latency = "-" if age is None else f"{age.p50_ms:.0f}/{age.p95_ms:.0f}/{age.p99_ms:.0f} ms"
    kind = "glass-to-glass" if stats.glass else "latency"
    return (
        f"{stats.frames_in} in, {stats.frames_out} out, {stats.dropped_total} dropped, {stats.late} late, "
        f"{stats.failed} failed; {stats.fps_out:.1f} frames/s; {kind} {latency}; "
        f"{len(stats.tracks)} faces; {stats.step.value}{_watch_text(stats)}"
    )


def _watch_text(stats: LiveStats) -> str:
    watch, words = stats.watch, ""
    if watch is not None and watch.drift is not None and stats.drift is not None:
        words += f"; drift {stats.drift:.1f} of {watch.drift.limit:g}" + (" RAISED" if stats.drifted else "")
    if watch is not None and watch.recorded is not None:
        words += f"; {watch.recorded.kept} faces recorded" + ("" if watch.recording else " (stopped)")
    return words


@contextmanager
def _status(*, show: bool) -> Iterator[Watch | None]:
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield None
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def watch(stats: LiveStats) -> None:
            live.update(Text(status_text(stats), no_wrap=True, overflow="ellipsis"))

        yield watch


class _JsonLines(logging.Handler):
    """One JSON object a line on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        line = {"at": record.created, "level": record.levelname.lower(), "logger": record.name}
        event = getattr(record, "event", None)
        line |= {"message": record.getMessage()} | ({"event": event} if event else {})
        click.echo(json.dumps(line), err=True)


@contextmanager
def _json_log(wanted: bool) -> Iterator[None]:
    """Log as JSON while the command runs."""
    logger = logging.getLogger("ufr_edge")
    before = list(logger.handlers)
    if wanted:
        logger.handlers = [_JsonLines()]
    try:
        yield
    finally:
        logger.handlers = before
