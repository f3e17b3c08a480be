"""The demo's clip: filmed, restored as a file by `ufr-edge run`'s own path, and laid side by side."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ufr_edge.demo.scene import SENSITIVE
from ufr_edge.runtime.bundle import open_bundle_engine
from ufr_edge.runtime.engines.base import Engine
from ufr_edge.runtime.faces.detect import FaceDetector
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig
from ufr_edge.runtime.run import RunConfig, run_video
from ufr_edge.runtime.timing import StageTiming
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo
from ufr_edge.runtime.video.synthetic import SyntheticScene
from ufr_edge.runtime.video.writer import EncodeConfig, VideoWriter

_RATE = Fraction(30)


@dataclass(frozen=True, kw_only=True)
class ClipReport:
    """What restoring the clip took. `still` is one side-by-side frame, uint8 (H, W, 3)."""

    frames: int
    size: str
    engine: str
    frames_per_second: float
    stages: tuple[StageTiming, ...]
    still: Frame

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        value = {k: v for k, v in asdict(self).items() if k != "still"}
        return {**value, "stages": [asdict(stage) for stage in self.stages]}


def make_clip(scene: SyntheticScene, out: Path, *, base: Path, adapted: Path) -> ClipReport:
    """Write camera.mp4, restored.mp4 (adapted, INT8 where it fits) and side-by-side.mp4 into `out`."""
    camera = out / "camera.mp4"
    frames = [scene.frame(i) for i in range(len(scene))]
    write_video(camera, frames, crf=12)
    with open_bundle_engine(adapted, engine="openvino-int8") as engine:
        run = run_video(camera, out / "restored.mp4", engine, RunConfig(overwrite=True, detector=SENSITIVE))
    panels = _side_by_side(scene, frames, base, adapted)
    write_video(out / "side-by-side.mp4", panels, crf=16)
    still = panels[len(panels) * 5 // 12]  # past the astronaut, whose face is small
    return ClipReport(
        frames=run.frames_out,
        size=f"{scene.size[0]}x{scene.size[1]}",
        engine=f"{run.engine.backend} {run.engine.precision} on {run.engine.device}",
        frames_per_second=run.frames_per_second,
        stages=run.stages,
        still=still,
    )


def write_video(path: Path, frames: list[Frame], *, crf: int) -> None:
    """Encode RGB frames, all of one size, at 30 frames per second."""
    height, width = frames[0].shape[:2]
    info = VideoInfo(
        name=path.name, width=width, height=height, rate=_RATE, time_base=1 / _RATE, frames=len(frames)
    )
    writer = VideoWriter(path, info, size=(width, height), config=EncodeConfig(crf=crf))
    for index, frame in enumerate(frames):
        writer.write(SourceFrame(index=index, pts=index, time_base=info.time_base, image=frame))
    writer.finish()


def _side_by_side(scene: SyntheticScene, frames: list[Frame], base: Path, adapted: Path) -> list[Frame]:
    width, height = scene.size
    middle = slice((width - height) // 2, (width + height) // 2)
    with ExitStack() as stack:
        engines = [stack.enter_context(open_bundle_engine(base)), stack.enter_context(open_bundle_engine(adapted))]
        detector = stack.enter_context(FaceDetector(SENSITIVE, backend="onnxruntime"))
        pipelines = [_pipeline(engine, detector) for engine in engines]
        panels = []
        for index, frame in enumerate(frames):
            time_s = float(index / _RATE)
            restored = [pipeline.process(frame, time_s=time_s).image for pipeline in pipelines]
            views = [frame, *restored, scene.clean(index)]
            row = np.concatenate([view[:, middle] for view in views], axis=1)
            panels.append(_labelled(row, ("camera", "base", "adapted (INT8)", "truth")))
    return panels


def _pipeline(engine: Engine, detector: FaceDetector) -> FacePipeline:
    return FacePipeline(engine, detector, PipelineConfig())


def _labelled(row: Frame, labels: tuple[str, ...]) -> Frame:
    row = np.ascontiguousarray(row)
    for i, label in enumerate(labels):
        at = (i * row.shape[1] // len(labels) + 8, 22)
        for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(row, label, at, cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, width, cv2.LINE_AA)
    return row
