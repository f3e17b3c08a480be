"""The demo's camera: it looks at photographs through a raw sensor the restorer has never seen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ufr_edge.degradations.raw import RawSensor
from ufr_edge.errors import InputFileError
from ufr_edge.runtime.face_store import read_rows
from ufr_edge.runtime.faces.align import warp_face
from ufr_edge.runtime.faces.detect import DetectorConfig
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import read_image, write_image
from ufr_edge.runtime.video.opening import builtin_picture
from ufr_edge.runtime.video.synthetic import Motion, SyntheticScene

FACES = Path(__file__).parent / "faces"
SENSITIVE = DetectorConfig(threshold=0.4)  # this camera is dark and noisy


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """The unseen camera: raw sensor noise at `iso`, `scale` times fewer pixels, one light, seeded."""

    size: tuple[int, int] = (960, 540)
    iso: float = 3000.0
    scale: float = 4.0
    seed: int = 7


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Who stands before the camera: `seen` while collecting, `unseen` people for the test and the clip."""

    seen: tuple[Frame, ...]
    unseen: tuple[Frame, ...]


def load_cast(count: int) -> Cast:
    """Return `count` people to collect and a quarter as many others, scikit-image's astronaut the first of them.

    The shipped pictures are generated faces (sources and licences beside them): nobody's likeness.
    """
    pictures = [read_image(path) for path in sorted((FACES / "camera").glob("*.jpg"))]
    # Sources lie one after the other; a fixed shuffle mixes them.
    order = np.random.default_rng(0).permutation(len(pictures))
    others = max(4, count // 4)
    if count + others > len(pictures) + 1:
        msg = f"The demo ships {len(pictures)} people; {count} to collect and {others} to test are too many."
        raise InputFileError(msg)
    mixed = [pictures[i] for i in order]
    return Cast(seen=tuple(mixed[others:][:count]), unseen=(builtin_picture(), *mixed[: others - 1]))


def film(people: tuple[Frame, ...], config: CameraConfig, *, frames_each: int, take: int) -> SyntheticScene:
    """Return the camera's clip of `people`; each `take` moves otherwise and has other noise, in the same light."""
    sensor = RawSensor(iso=config.iso, scale=config.scale, reference_side=None).fixed(config.seed)

    def expose(frame: Frame, index: int) -> Frame:
        return sensor(frame, np.random.default_rng((config.seed, take, index)))

    return SyntheticScene(
        people,
        size=config.size,
        frames=frames_each * len(people),
        seed=config.seed + take,
        sensor=expose,
        motion=Motion(zoom=(0.8, 0.95), pan=0.03, turn=5.0),  # the whole face stays in the picture
    )


class KnowsTruth(Protocol):
    """What was filmed, as a perfect camera would see it."""

    def clean(self, index: int) -> Frame:
        """Frame `index`: uint8 (H, W, 3)."""


def write_truth(
    scene: KnowsTruth, crops: Path, out: Path, side: int, *, names: Collection[str] | None = None
) -> NDArray[np.uint8]:
    """Write what a perfect camera would have seen of each collected crop (names: of these only); returns them,
    uint8 (N, S, S, 3). Raises InputFileError without an index."""
    out.mkdir(parents=True, exist_ok=True)
    truth = []
    for row in read_rows(crops):
        if names is None or row.file in names:
            face = warp_face(scene.clean(row.rest["frame"]), np.array(row.rest["matrix"]), side)
            write_image(out / row.file, face)
            truth.append(face)
    return np.stack(truth)
