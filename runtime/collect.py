"""Collecting aligned low-quality faces from a camera: the start of an adaptation.

`collect` takes every face of a source, all or nothing; `collect_faces` follows faces and keeps what a recorder finds
worth keeping, as it comes, so that a camera can be collected from for days.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

from ufr_edge.errors import ConfigError, InputFileError
from ufr_edge.files import atomic_folder, check_replaceable, write_json
from ufr_edge.runtime.face_store import INDEX, RECORD
from ufr_edge.runtime.faces.align import estimate_alignment, warp_face
from ufr_edge.runtime.faces.detect import Detects, Face
from ufr_edge.runtime.faces.limits import FaceLimits
from ufr_edge.runtime.faces.track import FaceTracker, TrackConfig, TrackedFace
from ufr_edge.runtime.faces.warp import scale_of
from ufr_edge.runtime.fingerprint import LEAST_SIDE, measure_face
from ufr_edge.runtime.images import is_image, list_images, read_image, write_image
from ufr_edge.runtime.recorder import RecorderConfig, RecorderStats, Sighting, around, open_recorder
from ufr_edge.runtime.run import Watch
from ufr_edge.runtime.video.opening import open_source
from ufr_edge.runtime.video.source import SourceFrame, VideoSource


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """side: of the crops. every: look at each so manieth frame. limit: most faces, None for all.

    min_score: of the detection. min_pixels: smallest side, in frame pixels, of what a crop shows.
    """

    side: int = 256
    every: int = 1
    limit: int | None = None
    min_score: float = 0.6
    min_pixels: float = 48.0

    def __post_init__(self) -> None:
        if self.side < 32 or self.every < 1 or (self.limit is not None and self.limit < 1):
            msg = "collect needs a side of 32 or more, and every and limit of 1 or more."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """What was collected: `faces` crops from `frames` frames looked at, in folder `out`."""

    source: str
    out: Path
    frames: int
    frames_without_face: int
    faces: int


def collect(
    source: str | Path | VideoSource,
    out: Path,
    *,
    detector: Detects,
    config: CollectConfig | None = None,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> CollectReport:
    """Cut the faces of a video, picture, folder of pictures or open source into `out`, all or nothing.

    `out` gets 000000.png, ... and index.jsonl, one line a crop: file, source, frame, time (s), score,
    box and landmarks (frame pixels), matrix (frame to crop). Raises InputFileError when no face is found,
    OutputError; `overwrite` replaces only a folder that an earlier collect made.
    """
    config = config or CollectConfig()
    check_replaceable(out, RECORD)
    frames = faceless = faces = 0
    name = _name(source)
    with atomic_folder(out, overwrite=overwrite) as folder, (folder / INDEX).open("w") as index:
        for label, frame, total in _frames(source, config.every):
            found = _good(detector.detect(frame.image), config)
            found = found if config.limit is None else found[: config.limit - faces]
            for face in found:
                _keep(folder, index, faces, label=label, frame=frame, face=face, side=config.side)
                faces += 1
            frames, faceless = frames + 1, faceless + (not found)
            if watch:
                watch(frames, total)
            if faces == config.limit:
                break
        if faces == 0:
            msg = f"No face was found in {frames} frames of {name}. Check the source, or lower --min-score."
            raise InputFileError(msg)
        write_json(folder / RECORD, {"source": name, "config": asdict(config)})
    return CollectReport(source=name, out=out, frames=frames, frames_without_face=faceless, faces=faces)


@dataclass(frozen=True, kw_only=True)
class CollectedReport:
    """What was looked at, and what the recorder made of it."""

    source: str
    out: Path
    frames: int
    frames_without_face: int
    recorded: RecorderStats


def collect_faces(
    frames: Iterable[SourceFrame],
    out: Path,
    *,
    source: str,
    detector: Detects,
    config: CollectConfig | None = None,
    recorder: RecorderConfig | None = None,
    track: TrackConfig | None = None,
    watch: Callable[[RecorderStats], None] | None = None,
) -> CollectedReport:
    """Follow the faces of frames in order and keep in folder `out` what `recorder` asks for: unlike faces of many people.

    `out` is new, or holds collected faces, to which these are added. It is whole whenever this ends or is cut off.
    Raises OutputError (disk full, other files in it, in use), ShapeError, InferenceError.
    """
    config, recorder = config or CollectConfig(), recorder or RecorderConfig()
    tracker = FaceTracker(detector, track or TrackConfig(), FaceLimits())
    looked = faceless = 0
    with open_recorder(out, recorder) as store:
        for frame in frames:
            if looked % config.every == 0:
                faces = tracker.update(frame.image, frame.seconds)
                faceless += not faces
                for face in faces:
                    if face.skipped is None and face.evidence != "predicted":
                        store.offer(_sighting(frame, face, side=config.side, source=source))
            looked += 1
            if watch is not None:
                watch(store.stats)
            if config.limit is not None and store.stats.kept >= config.limit:
                break
        return CollectedReport(
            source=source, out=out, frames=looked, frames_without_face=faceless, recorded=store.stats
        )


def _sighting(frame: SourceFrame, track: TrackedFace, *, side: int, source: str) -> Sighting:
    matrix = estimate_alignment(track.face.landmarks, side)
    crop = warp_face(frame.image, matrix, side)
    native = around(frame.image, track.face.box)
    return Sighting(
        crop=crop,
        face=track.face,
        matrix=matrix,
        frame_size=(frame.image.shape[1], frame.image.shape[0]),
        track=track.identity,
        frame=frame.index,
        time_s=frame.seconds,
        source=source,
        measures=measure_face(crop, native=native) if side >= LEAST_SIDE else {},
    )


def _good(faces: list[Face], config: CollectConfig) -> list[Face]:
    """Faces sure and large enough to learn from."""

    def pixels(face: Face) -> float:
        return config.side / scale_of(estimate_alignment(face.landmarks, config.side))

    return [f for f in faces if f.score >= config.min_score and pixels(f) >= config.min_pixels]


def _keep(
    folder: Path, index: TextIO, number: int, *, label: str, frame: SourceFrame, face: Face, side: int
) -> None:
    matrix = estimate_alignment(face.landmarks, side)
    file = f"{number:06d}.png"
    write_image(folder / file, warp_face(frame.image, matrix, side))
    line: dict[str, Any] = {
        "file": file,
        "source": label,
        "frame": frame.index,
        "time": round(frame.seconds, 6),
        "score": round(face.score, 4),
        "box": face.box.round(2).tolist(),
        "landmarks": face.landmarks.round(2).tolist(),
        "matrix": matrix.tolist(),
    }
    index.write(json.dumps(line) + "\n")


def _frames(source: str | Path | VideoSource, every: int) -> Iterator[tuple[str, SourceFrame, int | None]]:
    """Each `every`-th frame with the name of its file and how many there will be."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_dir() or is_image(path):
            yield from _pictures(path, every)
            return
        source = open_source(source)
    with closing(source) as video:
        total = None if video.info.frames is None else -(-video.info.frames // every)
        for item in video.items():
            if isinstance(item, SourceFrame) and item.index % every == 0:
                yield video.info.name, item, total


def picture_frames(path: Path) -> Iterator[SourceFrame] | None:
    """The pictures of a path as frames some seconds apart, each with people of its own; None when it is no picture and no
    folder of pictures.
    """
    if not (path.is_dir() or is_image(path)):
        return None
    # Times far apart: each picture begins new tracks.
    return (replace(frame, pts=10 * number) for number, (_, frame, _) in enumerate(_pictures(path, 1)))


def _pictures(path: Path, every: int) -> Iterator[tuple[str, SourceFrame, int | None]]:
    chosen = (list_images(path) if path.is_dir() else [path])[::every]
    for number, file in enumerate(chosen):
        frame = SourceFrame(index=number * every, pts=0, time_base=Fraction(1), image=read_image(file))
        yield file.name, frame, len(chosen)


def _name(source: str | Path | VideoSource) -> str:
    return str(source) if isinstance(source, (str, Path)) else source.info.name
