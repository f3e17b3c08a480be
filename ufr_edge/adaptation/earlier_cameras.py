"""The cameras a bundle was adapted to before: kept in its lineage, so that skill on them can be replayed and checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.camera_pairs import CameraModel, camera_source, estimate_from_fingerprint
from ufr_edge.adaptation.faces import FaceSet, load_faces
from ufr_edge.adaptation.restorer_task import PairSource
from ufr_edge.adaptation.sources import degrading_source
from ufr_edge.errors import ConfigError, InputFileError
from ufr_edge.files import read_json, write_json
from ufr_edge.runtime.bundle import Bundle
from ufr_edge.runtime.fingerprint_files import bundle_fingerprint
from ufr_edge.runtime.frame import Frame

Images = NDArray[np.uint8]
CAMERAS = "cameras"
"""The entry of the lineage: JSON, oldest camera first."""
MOST = 3


def earlier_cameras(parent: Bundle, real: Path, work: Path, *, seed: int) -> tuple[CameraModel, ...]:
    """The last `MOST` cameras of the bundle's lineage, oldest first, written into `work` for the next call.

    A bundle that names none but carries a fingerprint (exported with calibration faces) has one camera, estimated from
    that with the clean faces of `real`; their contents are others than the camera's, so this estimate is rougher.
    Raises InputFileError for a lineage that cannot be read.
    """
    path = work / f"{CAMERAS}.json"
    if not path.is_file():
        text = parent.manifest.lineage.get(CAMERAS)
        found = _estimated(parent, real, seed) if text is None else _parsed(text, parent)
        write_json(path, [camera_json(model) for model in found])
    return tuple(_model(item) for item in read_json(path))


def lineage_text(models: Sequence[CameraModel]) -> str:
    """What the lineage says of the last `MOST` of these cameras, oldest first."""
    return json.dumps([camera_json(model) for model in models[-MOST:]], separators=(",", ":"))


def replay_source(clean: FaceSet, cameras: Sequence[CameraModel], count: int, seed: int) -> PairSource:
    """Return (step, rows) -> those of `count` pairs (degraded, clean): each as in the first training or as by one of
    the earlier cameras, with the same chance. Fixed by (seed, step).
    """
    classic = degrading_source(clean, {"classic": 1.0}, count, seed)
    if not cameras:
        return classic
    sources = [
        classic,
        *(camera_source(clean.images, model, count, seed + 1 + i) for i, model in enumerate(cameras)),
    ]

    def draw(step: int, rows: slice) -> tuple[Images, Images]:
        chosen = np.random.default_rng((seed, step, 2)).integers(len(sources), size=count)
        pairs: dict[int, tuple[Frame, Frame]] = {}
        for k in sorted(set(chosen[rows].tolist())):
            own = [i for i in range(count)[rows] if chosen[i] == k]
            # In one call: a camera draws what comes before a row as well.
            lq, goal = sources[k](step, slice(own[0], own[-1] + 1))
            pairs |= {i: (lq[i - own[0]], goal[i - own[0]]) for i in own}
        made, truth = zip(*(pairs[i] for i in range(count)[rows]), strict=True)
        return np.stack(made), np.stack(truth)

    return draw


def camera_json(model: CameraModel) -> dict[str, Any]:
    """The settings of a camera, rounded, as JSON values."""
    plain = dataclasses.asdict(model) | {"noise": [round(level, 4) for level in model.noise]}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in plain.items()}


def _estimated(parent: Bundle, real: Path, seed: int) -> tuple[CameraModel, ...]:
    seen, side = bundle_fingerprint(parent), parent.manifest.restorer.side
    if seen is None or seen.side != side or "blur" not in seen.values:
        return ()
    clean = load_faces(real, side, minimum=1, show=False).images
    return (estimate_from_fingerprint(seen, clean, seed=seed).model,)


def _parsed(text: str, parent: Bundle) -> tuple[CameraModel, ...]:
    try:
        return tuple(_model(item) for item in json.loads(text))[-MOST:]
    except (ValueError, TypeError, KeyError, ConfigError) as exc:
        msg = f"The lineage of {parent.path} names cameras that cannot be read: {exc}."
        raise InputFileError(msg) from exc


def _model(item: Any) -> CameraModel:
    quality = item["quality"]
    return CameraModel(
        blur=float(item["blur"]),
        shrink=float(item["shrink"]),
        noise=tuple(float(level) for level in item["noise"]),
        chroma=float(item["chroma"]),
        quality=None if quality is None else int(quality),
        motion=float(item.get("motion", 0.0)),  # bundles of before it was estimated have none
    )
