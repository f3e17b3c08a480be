"""Options of how faces are restored and how pictures are coded: the same for `run`, `stream` and `watch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import click

from ufr_edge.cli.options import F, override, stack
from ufr_edge.runtime.faces.limits import FaceLimits
from ufr_edge.runtime.faces.stabilise import StabiliserConfig
from ufr_edge.runtime.faces.track import TrackConfig
from ufr_edge.runtime.pipeline import PipelineConfig
from ufr_edge.runtime.video.encoder import CODECS, PRESETS, EncodeConfig


def face_options(*also: str) -> Callable[[F], F]:
    """`-w` and which faces are restored and how. also: further names of `--restore-faces`."""
    return stack(
        click.option("-w", "--fidelity", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="1 keeps the input."),
        click.option("--detect-every", type=click.IntRange(1), help="Look for faces in each so manieth frame; they are followed in between. [default: 3]"),
        click.option("--detect-side", type=click.IntRange(128, 2048), default=416, show_default=True, help="More finds smaller faces."),
        click.option("--min-face", type=click.FloatRange(0), help="Smaller faces are left alone: pixels. [default: 16]"),
        click.option("--max-yaw", type=click.FloatRange(0, 90, min_open=True), help="Turned farther, too: degrees. [default: 65]"),
        click.option("--restore-faces", *also, "restore_faces", type=click.IntRange(1), help="Restore only the largest. [default: all]"),
        click.option("--no-stabilise", is_flag=True, help="Video: leave each restored face as the engine gave it."),
        click.option("--grain", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="1: the input's noise."),
    )  # fmt: skip


def encode_options(base: EncodeConfig) -> Callable[[F], F]:
    """`--codec`, `--crf`, `--preset` of a video that is written; `base` has their defaults."""
    return stack(
        click.option("--codec", type=click.Choice(list(CODECS)), default=base.codec, show_default=True, help="Of a video."),
        click.option("--crf", type=click.IntRange(0, 51), default=base.crf, show_default=True, help="Quality: lower is better, larger."),
        click.option("--preset", type=click.Choice(PRESETS), default=base.preset, show_default=True, help="Slower makes smaller files."),
    )  # fmt: skip


def pipeline_config(given: Mapping[str, Any]) -> PipelineConfig:
    """What `face_options` were given. Raises ConfigError."""
    limits = {"min_side": "min_face", "max_yaw": "max_yaw", "max_faces": "restore_faces"}
    return PipelineConfig(
        fidelity=given["fidelity"],
        grain=given["grain"],
        limits=override(FaceLimits(), {field: given[name] for field, name in limits.items()}),
        track=override(TrackConfig(), {"detect_every": given["detect_every"]}),
        stabilise=None if given["no_stabilise"] else StabiliserConfig(),
    )


def encode_config(given: Mapping[str, Any], base: EncodeConfig) -> EncodeConfig:
    """`base` with what `encode_options` were given, and `--threads`. Raises ConfigError."""
    names = ("codec", "crf", "preset", "threads")
    return replace(base, **{name: given[name] for name in names})
