"""The embedded demo, end to end: collect, adapt, export, restore, and measure against the known truth."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.adapt import LOGGED, AdaptConfig, adapt
from ufr_edge.adaptation.evaluate import measure
from ufr_edge.adaptation.finetune import FinetuneConfig, finetune, load_pairs
from ufr_edge.adaptation.loop import LoopConfig
from ufr_edge.adaptation.pictures import strip
from ufr_edge.adaptation.report import Section, curve_uri, figures_table, picture_uri, write_report
from ufr_edge.adaptation.restorer_task import HeldOut, restore_batch
from ufr_edge.adaptation.targets import TargetsConfig
from ufr_edge.adaptation.training import pick_device, read_log, resolve_precision
from ufr_edge.demo.clearing import clear_written
from ufr_edge.demo.clip import ClipReport, make_clip
from ufr_edge.demo.scene import FACES, SENSITIVE, CameraConfig, Cast, film, load_cast, write_truth
from ufr_edge.export.bundle_export import export_bundle
from ufr_edge.export.requests import EngineRequest
from ufr_edge.files import check_free, write_json
from ufr_edge.priors.features import load_features
from ufr_edge.priors.sampler import SamplerConfig
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.runtime.bench import BenchReport, bench_bundle
from ufr_edge.runtime.collect import CollectConfig, collect
from ufr_edge.runtime.faces.detect import FaceDetector
from ufr_edge.runtime.images import write_image
from ufr_edge.runtime.video.synthetic import SyntheticSource

Images = NDArray[np.uint8]
Tell = Callable[[str], None]
WRITTEN = (
    "faces",
    "adapted",
    "oracle",
    "camera.ufr",
    "base.ufr",
    "camera.mp4",
    "restored.mp4",
    "side-by-side.mp4",
    "strip.jpg",
    "figures.json",
    "report.html",
)
ENGINES = (
    EngineRequest(format="onnx", precision="fp32"),
    EngineRequest(format="onnx", precision="int8"),
    EngineRequest(format="openvino", precision="fp32"),
    EngineRequest(format="openvino", precision="int8"),
)


def _adaptation() -> AdaptConfig:
    sampler = SamplerConfig(
        start=100,
        hold_until=40,
        filter_n=8,
        fast_steps=10,
        samples_per_image=2,
        precision=resolve_precision(pick_device(), "auto"),
    )
    settings = FinetuneConfig()
    training = dataclasses.replace(settings.training, steps=150)
    return AdaptConfig(
        targets=TargetsConfig(sampler=sampler),
        finetune=dataclasses.replace(settings, training=training, loop=LoopConfig(evaluate_every=30)),
    )


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """How many people are collected, how long the clip is, and how adaptation is set."""

    camera: CameraConfig = field(default_factory=CameraConfig)
    people: int = 54
    frames_each: int = 2
    clip_people: int = 6
    clip_frames_each: int = 30
    adaptation: AdaptConfig = field(default_factory=_adaptation)


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """The demo's figures of "base", "adapted" and "oracle" on held-out faces, and of each engine."""

    out: Path
    figures: Mapping[str, Mapping[str, float]]
    engines: tuple[BenchReport, ...]
    clip: ClipReport
    seconds: float

    def closing_line(self) -> str:
        """Say in one line what improved by how much."""
        base, adapted, oracle = (self.figures[name] for name in ("base", "adapted", "oracle"))
        distance = "prior_feature_distance"
        change = 100 * (adapted[distance] / base[distance] - 1)
        gap = base[distance] - oracle[distance]
        share = f"; {100 * (base[distance] - adapted[distance]) / gap:.0f} % of the way to the oracle" if gap > 0 else ""
        return (
            f"Without any ground truth, the perceptual distance on this camera's held-out faces changed by {change:+.0f} % "
            f"({base[distance]:.3f} to {adapted[distance]:.3f}{share}; lower is better), "
            f"PSNR {base['psnr_db']:.2f} to {adapted['psnr_db']:.2f} dB."
        )


@dataclass(frozen=True, kw_only=True)
class _Faces:
    seen: Path
    seen_truth: Path
    test: Path
    test_truth: Path


def run_demo(
    out: Path, config: DemoConfig | None = None, *, overwrite: bool = False, show: bool = True, tell: Tell = lambda _: None
) -> DemoReport:
    """Run the demo into `out`. `tell` is called with a line before each stage. Raises OutputError when `out` is taken."""
    config = config or DemoConfig()
    check_free(out, overwrite=overwrite)
    clear_written(out, WRITTEN)
    started = time.monotonic()
    base = load_any_restorer(config.adaptation.targets.restorer)
    cast = load_cast(config.people)
    tell(f"1/6 collecting faces from an unseen camera (raw, ISO {config.camera.iso:g}, {config.camera.scale:g}x down)")
    faces = collect_faces(cast, out / "faces", config, side=base.side)
    tell("2/6 adapting: targets from the diffusion prior, then fine-tuning (no ground truth)")
    adapted = adapt(
        faces.seen,
        out / "adapted",
        config.adaptation,
        real=FACES / "clean",
        test_faces=faces.test,
        truth=faces.test_truth,
        show=show,
    )
    tell("3/6 the oracle: the same training on the true pairs, to compare with")
    oracle = train_oracle(faces, out / "oracle", config, show=show)
    held = load_pairs(faces.test, faces.test_truth, base.side, minimum=1)
    models = {"base": base.path, "adapted": adapted.weights, "oracle": oracle}
    restored, figures = compare(models, held, config)
    tell("4/6 exporting fp32 and INT8 engines")
    bundle = export(adapted.weights, faces.seen, out / "camera.ufr", config)
    plain = export_bundle(base, out / "base.ufr", formats=ENGINES[:1]).path
    tell("5/6 restoring a clip, and timing the engines")
    scene = film(cast.unseen[: config.clip_people], config.camera, frames_each=config.clip_frames_each, take=3)
    clip = make_clip(scene, out, base=plain, adapted=bundle)
    engines = bench_bundle(bundle, runs=30).reports
    tell("6/6 report")
    report = DemoReport(
        out=out, figures=figures, engines=engines, clip=clip, seconds=time.monotonic() - started
    )
    write_results(report, held, restored)
    return report


def collect_faces(cast: Cast, out: Path, config: DemoConfig, *, side: int) -> _Faces:
    """Collect crops of the people seen and of the unseen ones; the truth is kept apart, for the oracle and the figures."""
    paths = _Faces(
        seen=out / "seen", seen_truth=out / "oracle-truth", test=out / "test", test_truth=out / "test-truth"
    )
    with FaceDetector(SENSITIVE, backend="onnxruntime") as detector:
        settings = CollectConfig(side=side, min_score=SENSITIVE.threshold)
        takes = ((cast.seen, paths.seen, paths.seen_truth), (cast.unseen, paths.test, paths.test_truth))
        for take, (people, crops, truth) in enumerate(takes):
            scene = film(people, config.camera, frames_each=config.frames_each, take=take)
            collect(SyntheticSource(scene), crops, detector=detector, config=settings, overwrite=True)
            write_truth(scene, crops, truth, side)
    return paths


def train_oracle(faces: _Faces, out: Path, config: DemoConfig, *, show: bool) -> Path:
    """Fine-tune as adaptation does, but on the true pairs and without the adversary."""
    settings = config.adaptation.aligned().finetune
    losses = dataclasses.replace(settings.training.losses, adversarial=0.0)
    training = dataclasses.replace(settings.training, losses=losses)
    return finetune(
        faces.seen, faces.seen_truth, out, dataclasses.replace(settings, training=training), show=show
    )


def compare(
    models: Mapping[str, Path], held: HeldOut, config: DemoConfig
) -> tuple[dict[str, Images], dict[str, dict[str, float]]]:
    """Restore the held-out faces with each model and measure them against the truth."""
    device = pick_device(config.adaptation.targets.device)
    features = load_features(config.adaptation.targets.prior, device)
    restored = {
        name: restore_batch(load_any_restorer(path).model.to(device), held.lq, device) for name, path in models.items()
    }
    return restored, measure(restored, held.lq, held.truth, features)


def export(weights: Path, faces: Path, out: Path, config: DemoConfig) -> Path:
    """Export the adapted restorer, INT8 calibrated on the camera's own faces."""
    lineage = {"camera": "demo", "prior": config.adaptation.targets.prior}
    restorer = load_any_restorer(weights)
    return export_bundle(restorer, out, formats=ENGINES, calibration=faces, lineage=lineage).path


def write_results(report: DemoReport, held: HeldOut, restored: Mapping[str, Images]) -> None:
    """Write figures.json, the comparison strip and report.html."""
    out = report.out
    engines = [engine.to_json() for engine in report.engines]
    write_json(
        out / "figures.json",
        {"faces": report.figures, "engines": engines, "clip": report.clip.to_json(), "seconds": report.seconds},
    )
    columns = {"camera": held.lq, **restored, "truth": held.truth}
    every_second = slice(0, 12, 2)  # two frames of each person lie side by side
    picture = strip({name: images[every_second] for name, images in columns.items()})
    write_image(out / "strip.jpg", picture)
    head, rows = figures_table(report.figures)
    timings = [
        [e.name, e.info.device, f"{e.p50_ms:.1f}", f"{e.p95_ms:.1f}", f"{e.faces_per_s:.0f}"] for e in report.engines
    ]
    stages = [[s.name, f"{s.p50_ms:.1f}", f"{s.p95_ms:.1f}", f"{s.p99_ms:.1f}"] for s in report.clip.stages]
    sections = [
        Section(title="Held-out people, seen by this camera", picture=picture_uri(picture)),
        Section(
            title="Figures on held-out faces",
            text="Base: as shipped. Adapted: no ground truth used. Oracle: the same training on the true pairs.",
            head=head,
            rows=rows,
        ),
        Section(
            title="Engines on this machine",
            text=report.engines[0].machine,
            head=["engine", "device", "p50 ms", "p95 ms", "faces/s"],
            rows=timings,
        ),
        Section(
            title=f"The clip: {report.clip.frames_per_second:.0f} frames/s, file to file",
            text=f"{report.clip.frames} frames of {report.clip.size}, engine {report.clip.engine}.",
            head=["stage", "p50 ms", "p95 ms", "p99 ms"],
            rows=stages,
            picture=picture_uri(report.clip.still),
        ),
        Section(title="Fine-tuning", picture=curve_uri(read_log(out / "adapted"), LOGGED)),
    ]
    lead = f"{report.closing_line()} The collected faces, the targets and the bundles lie beside this file."
    write_report(out / "report.html", title="ufr-edge demo", lead=lead, sections=sections)
