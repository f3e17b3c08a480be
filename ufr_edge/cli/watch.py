"""`ufr-edge watch`: a stream that notices when its camera changes, adapts again, and exchanges its engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import click

from ufr_edge.cli.options import FOLDER, stack
from ufr_edge.cli.stream import STREAM_OPTIONS, Watch, play
from ufr_edge.errors import InputFileError
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.onsite import Mode, OnsiteConfig, open_onsite, start_readapt
from ufr_edge.runtime.version_link import linked_number
from ufr_edge.runtime.video.uri import mask

_OPTIONS = stack(
    click.option(
        "--readapt",
        type=click.Choice(["auto", "ask", "off"]),
        default="ask",
        show_default=True,
        help="When drift is raised: adapt by itself; ask, and wait for the file BUNDLE/readapt.yes; never.",
    ),
    click.option("--least-faces", type=click.IntRange(24), default=64, show_default=True, help="Faces recorded since drift was raised."),
    click.option("--rest-minutes", type=click.FloatRange(0), default=30.0, show_default=True, help="After one re-adaptation before the next; twice as long after each that was refused, up to a day."),
    click.option("--keep", type=click.IntRange(2), default=5, show_default=True, help="Installed versions to keep; older ones are removed."),
    click.option("--readapt-steps", type=click.IntRange(1), default=150, show_default=True, help="Optimiser steps of a re-adaptation."),
    click.option("--real", type=FOLDER, help="Clean faces to keep the old skill by.  [default: the shipped ones]"),
)  # fmt: skip


@click.command("watch")
@click.argument("source")
@click.argument("sink")
@_OPTIONS
@STREAM_OPTIONS
def command(
    source: str,
    sink: str,
    readapt: str,
    least_faces: int,
    rest_minutes: float,
    keep: int,
    readapt_steps: int,
    real: Path | None,
    **given: Any,
) -> None:
    """As `stream`, with the loop around it: record, notice drift, adapt again, try in shadow, swap.

    --bundle names a folder of installed versions, --record the folder for the faces of the camera (see docs/onsite.md
    on privacy). A re-adaptation runs as a process of low priority, and goes on after a power cut. The bundle must carry
    the fingerprint of its camera (export --calibration): without it drift cannot be seen, and only --readapt off is left.
    """
    folder, faces = given["bundle"], given["record"]
    if linked_number(folder) is None:
        msg = f"{folder} holds no installed versions. Make them with: ufr-edge bundle install FOLDER {folder}"
        raise InputFileError(msg)
    if readapt != "off" and faces is None:
        msg = "Re-adaptation needs recorded faces: give --record FOLDER, or --readapt off."
        raise click.UsageError(msg)
    config = OnsiteConfig(mode=cast(Mode, readapt), least_faces=least_faces, rest_s=rest_minutes * 60)
    options = ["--steps", str(readapt_steps), "--least-faces", str(config.least_usable), "--keep", str(keep)]
    options += ["--camera", mask(given["camera"])] if given["camera"] else []
    options += [] if real is None else ["--real", str(real)]

    @contextmanager
    def beside(events: EventLog) -> Iterator[Watch]:
        start = start_readapt(folder, faces or folder, *options)
        with open_onsite(folder, config, start, events=events) as loop:
            yield loop.tick

    play(source, sink, given, beside=beside, needs_drift="" if readapt == "off" else f"--readapt {readapt}")
