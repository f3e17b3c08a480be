"""The demo of the loop on site: a camera changes in mid-stream, and the stream mends itself, unattended.

Nothing in it is faked: two clips are filmed, laid end to end and played at their own speed into the loop of
`ufr-edge watch --readapt auto`. What it then does, it does by itself; this module only looks, and measures afterwards.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.evaluate import measure
from ufr_edge.adaptation.finetune import FinetuneConfig, finetune, load_pairs
from ufr_edge.adaptation.readapt import GATE
from ufr_edge.adaptation.restorer_task import HeldOut, restore_batch
from ufr_edge.adaptation.training import pick_device
from ufr_edge.config import load_config
from ufr_edge.demo.clearing import clear_written
from ufr_edge.demo.onsite_film import Doorway, People, Reel, Site, film_clip, share_out
from ufr_edge.demo.onsite_story import (
    Quality,
    Row,
    Story,
    Trace,
    drops_around,
    phase_figures,
    tell_story,
    verdicts,
)
from ufr_edge.demo.onsite_watch import WatchedConfig, watch_site
from ufr_edge.demo.scene import FACES, write_truth
from ufr_edge.export.bundle_export import export_bundle
from ufr_edge.export.requests import EngineRequest
from ufr_edge.files import check_free, read_json
from ufr_edge.priors.features import load_features
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.runtime.bundle import open_bundle_engine
from ufr_edge.runtime.collect import CollectConfig, collect
from ufr_edge.runtime.face_store import read_rows
from ufr_edge.runtime.faces.detect import FaceDetector
from ufr_edge.runtime.live.onsite import WORK, OnsiteConfig
from ufr_edge.runtime.live.shadow import SwapConfig
from ufr_edge.runtime.live.stream import StreamConfig
from ufr_edge.runtime.pipeline import infer_all
from ufr_edge.runtime.version_link import linked_number, version_path
from ufr_edge.runtime.versions import install_version

Images = NDArray[np.uint8]
Tell = Callable[[str], None]
CLIPS, REEL, DOOR, FACES_SEEN, HELD, ORACLE = "clips", "reel", "door", "faces", "held-out", "oracle"
WRITTEN = (
    CLIPS,
    REEL,
    DOOR,
    FACES_SEEN,
    HELD,
    ORACLE,
    "earlier",
    "base.ufr",
    "strip.jpg",
    "figures.json",
    "onsite.html",
)
CAMERA = "door"
_NOW, _EARLIER = "after", "before"  # the cameras, by when they are there
_FRAMES_TO_MEASURE = 4  # of each of those unseen


@dataclass(frozen=True, kw_only=True)
class OnsiteDemoConfig:
    """before, after: presets, the camera as it was and as it becomes. before_s: how long the first is played at least;
    most_minutes: when the stream ends in any case. shift_s: how long each two people stay. steps: of the re-adaptation.
    least_faces: recorded since drift was raised before it begins; as under `watch` three quarters of them must be
    usable, or one dark face would end the story. stream: paced, as a camera is. oracle: train one on the true pairs of the same faces, to
    know how far one could come.
    """

    restorer: str = "edge-m-256"
    before: str = "classic-light"
    after: str = "raw-iso3000-x4"
    site: Site = field(default_factory=Site)
    earlier: int = 16
    passing: int = 40
    unseen: int = 12
    before_s: float = 45.0
    shift_s: float = 3.0
    most_minutes: float = 30.0
    steps: int = 150
    least_faces: int = 64
    linger_s: float = 10.0
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(pace=True))
    swap: SwapConfig = field(default_factory=SwapConfig)
    engine: EngineRequest = field(default_factory=lambda: EngineRequest(format="onnx", precision="int8"))
    oracle: bool = True


@dataclass(frozen=True, kw_only=True)
class OnsiteReport:
    """Everything found. phases: the stream's figures before, during and after the re-adaptation. gate: its gate.json,
    empty when it never came so far. rows: asked against is.
    """

    out: Path
    config: OnsiteDemoConfig
    trace: Trace
    story: Story
    phases: Mapping[str, Mapping[str, float]]
    quality: Quality
    gate: Mapping[str, Any]
    rows: tuple[Row, ...]
    seconds: float

    @property
    def page(self) -> Path:
        """Where the page lies."""
        return self.out / "onsite.html"


def run_onsite_demo(
    out: Path,
    config: OnsiteDemoConfig | None = None,
    *,
    overwrite: bool = False,
    show: bool = True,
    tell: Tell = lambda _: None,
) -> OnsiteReport:
    """Play the story into `out` and write figures.json and onsite.html there. tell: called with a line now and then.

    Raises OutputError when `out` is taken, and as the stages: `export_bundle`, `watch_site`, `finetune`.
    """
    from ufr_edge.demo.onsite_report import write_onsite_report

    config = config or OnsiteDemoConfig()
    check_free(out, overwrite=overwrite)
    clear_written(out, WRITTEN)
    started = time.monotonic()
    people = share_out(config.earlier, config.passing, config.unseen)
    tell(f"1/5 filming {config.passing} people through two cameras: {config.before}, then {config.after}")
    reel = film(people, out, config)
    tell("2/5 the bundle on site: shipped weights, calibrated on the first camera; installed as version 1")
    install_base(people, out, config)
    tell("3/5 the stream, watched; nobody helps from here on")
    trace = watch(reel, out, config, tell=tell)
    story = tell_story(trace, switch=reel.switch / config.site.rate)
    tell("4/5 measuring on people nobody has seen" + ("; training the oracle" if config.oracle else ""))
    quality, columns = judge(people, reel, trace, story, out, config, show=show)
    phases = {name: phase_figures(trace.samples, span) for name, span in story.phases().items()}
    drops = None if story.swap is None else drops_around(trace.samples, story.swap)
    tell("5/5 the page")
    report = OnsiteReport(
        out=out,
        config=config,
        trace=trace,
        story=story,
        phases=phases,
        quality=quality,
        gate=_gate(out),
        rows=tuple(verdicts(story, phases, quality, swap_drops=drops)),
        seconds=time.monotonic() - started,
    )
    write_onsite_report(report, columns)
    return report


def film(people: People, out: Path, config: OnsiteDemoConfig) -> Reel:
    """Film those who pass through both cameras, and lay the clips end to end: out/clips, out/reel."""
    each = max(1, round(config.shift_s * config.site.rate))
    scenes = [
        Doorway(people.passing, config.site, config.site.look(preset), frames_each=each, take=take)
        for take, preset in enumerate((config.before, config.after))
    ]
    length = len(scenes[0]) / config.site.rate
    reel = Reel(
        first=scenes[0],
        second=scenes[1],
        before=math.ceil(config.before_s / length),
        after=math.ceil(60 * config.most_minutes / length),
    )
    clips = [
        film_clip(scene, out / CLIPS / f"{name}.mp4", config.site)
        for scene, name in zip(scenes, (_EARLIER, _NOW), strict=True)
    ]
    reel.lay(clips[0], clips[1], out / REEL)
    return reel


def install_base(people: People, out: Path, config: OnsiteDemoConfig) -> None:
    """Export the shipped weights, calibrated on other people seen by the first camera, and install them: out/door."""
    scene = _look_at(people.earlier, config, config.before, take=2)
    faces = _collected(scene, out / "earlier", config)
    bundle = export_bundle(
        load_any_restorer(config.restorer),
        out / "base.ufr",
        formats=[config.engine],
        calibration=faces,
        lineage={"camera": CAMERA},
    )
    install_version(out / DOOR, bundle.path)


def watch(reel: Reel, out: Path, config: OnsiteDemoConfig, *, tell: Tell) -> Trace:
    """Play the reel into the loop of `ufr-edge watch --readapt auto`."""
    loop = OnsiteConfig(mode="auto", least_faces=config.least_faces)
    watched = WatchedConfig(
        onsite=loop,
        swap=config.swap,
        readapt=("--steps", str(config.steps), "--least-faces", str(loop.least_usable)),
        camera=CAMERA,
        linger_s=config.linger_s,
        stream=config.stream,
        seconds=60 * config.most_minutes,
    )
    return watch_site(str(out / REEL / "*.mp4"), out / DOOR, out / FACES_SEEN, watched, tell=tell)


def judge(
    people: People,
    reel: Reel,
    trace: Trace,
    story: Story,
    out: Path,
    config: OnsiteDemoConfig,
    *,
    show: bool,
) -> tuple[Quality, dict[str, Images]]:
    """Restore people nobody has seen with the engines of both versions, and with the oracle; figures, and pictures."""
    side = load_any_restorer(config.restorer).side
    now, earlier = (
        _held_out(people, out / HELD / name, config, preset, side)
        for name, preset in ((_NOW, config.after), (_EARLIER, config.before))
    )
    bundles = {"base": version_path(out / DOOR, 1)}
    current = linked_number(out / DOOR)
    if current is not None and current > 1:
        bundles["adapted"] = version_path(out / DOOR, current)
    restored = {name: _restored(path, now.lq) for name, path in bundles.items()}
    before = {name: _restored(path, earlier.lq) for name, path in bundles.items()}
    oracle = train_oracle(reel, story, out, show=show) if config.oracle else None
    prior, device = "prior-256", pick_device("auto")
    if oracle is not None:
        restored["oracle"] = restore_batch(load_any_restorer(oracle).model.to(device), now.lq, device)
    features = load_features(prior, device)
    quality = Quality(
        faces=len(now.lq),
        now=measure(restored, now.lq, now.truth, features),
        earlier=measure(before, earlier.lq, earlier.truth, features),
        oracle=oracle is not None,
    )
    return quality, {"camera": now.lq, **restored, "truth": now.truth}


def train_oracle(reel: Reel, story: Story, out: Path, *, show: bool) -> Path | None:
    """Fine-tune as the box did, but towards the truth and without the adversary, on as many faces as it began with,
    recorded by it through this camera (it held some of its own out). None when there was no re-adaptation.
    """
    work = next(iter(sorted((out / DOOR / WORK).glob("[0-9]*/run"))), None)
    if work is None or story.faces == 0 or not (work / "config.json").is_file():
        return None
    settings = load_config(FinetuneConfig, work / "config.json")
    losses = dataclasses.replace(settings.training.losses, adversarial=0.0)
    training = dataclasses.replace(settings.training, losses=losses)
    seen, pairs = out / FACES_SEEN, out / ORACLE / "lq"
    fresh = [row.file for row in read_rows(seen) if int(row.rest["frame"]) >= reel.switch]
    pairs.mkdir(parents=True)
    for name in fresh[: story.faces]:
        shutil.copyfile(seen / name, pairs / name)
    side = load_any_restorer(settings.restorer).side
    write_truth(reel, seen, out / ORACLE / "hq", side, names=fresh[: story.faces])
    return finetune(
        pairs,
        out / ORACLE / "hq",
        out / ORACLE / "run",
        dataclasses.replace(settings, training=training),
        real=FACES / "clean",
        show=show,
    )


def _look_at(people: tuple[Images, ...], config: OnsiteDemoConfig, preset: str, *, take: int) -> Doorway:
    look = config.site.look(preset)
    return Doorway(people, config.site, look, frames_each=_FRAMES_TO_MEASURE, take=take)


def _collected(scene: Doorway, folder: Path, config: OnsiteDemoConfig) -> Path:
    """Film a scene into folder/clip.mp4 and collect its faces into folder/faces, as `ufr-edge collect` does."""
    clip = film_clip(scene, folder / "clip.mp4", config.site)
    side = load_any_restorer(config.restorer).side
    with FaceDetector(backend="onnxruntime") as detector:
        collect(clip, folder / "faces", detector=detector, config=CollectConfig(side=side))
    return folder / "faces"


def _held_out(people: People, folder: Path, config: OnsiteDemoConfig, preset: str, side: int) -> HeldOut:
    scene = _look_at(people.unseen, config, preset, take=3)
    faces = _collected(scene, folder, config)
    write_truth(scene, faces, folder / "truth", side)
    return load_pairs(faces, folder / "truth", side, minimum=1)


def _restored(bundle: Path, faces: Images) -> Images:
    with open_bundle_engine(bundle) as engine:
        return infer_all(engine, faces, batch=8)


def _gate(out: Path) -> dict[str, Any]:
    path = next(iter(sorted((out / DOOR / WORK).glob(f"[0-9]*/{GATE}"))), None)
    return {} if path is None else dict(read_json(path))
