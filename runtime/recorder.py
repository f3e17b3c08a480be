"""The recorder: which of a camera's faces are worth keeping, into a folder of bounded size and age."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ufr_edge.errors import ConfigError, OutputError
from ufr_edge.runtime.face_store import DAY_S, FaceRow, FaceStore, open_store
from ufr_edge.runtime.faces.detect import Face
from ufr_edge.runtime.faces.limits import yaw_degrees
from ufr_edge.runtime.faces.warp import apply, inverse, scale_of
from ufr_edge.runtime.fingerprint import Measures
from ufr_edge.runtime.frame import Affine, FloatArray, Frame
from ufr_edge.runtime.video.uri import mask

Refused = Literal["unsure", "small", "cut off", "turned", "soon", "enough", "alike"]
_CHECK_S = 60.0  # between looks at the age of faces and at the disk
_YAW, _PITCH, _SIZE, _LIGHT = (
    10.0,
    0.08,
    0.35,
    12.0,
)  # degrees, eye-mouth heights, octaves, levels: one unit each
_HOUR_S = 3600.0
_PATCH = 384
_LAST_KEPT = 1024  # tracks whose last kept face is remembered


@dataclass(frozen=True, kw_only=True)
class RecorderConfig:
    """min_score: of the detection. min_pixels: smallest side, in frame pixels, of what a crop shows. max_yaw: degrees.
    min_inside: share of the crop that lies in the frame. gap_s: seconds between two faces of a track.
    per_track: most faces of one. novelty: how unlike all others of its track a face must be, in units of `look`;
    repeat_s: after so long without a new face, one like another is taken all the same: its noise is new.
    max_faces, max_mb: of the folder; the redundant and old go first. keep_days: age at which faces are removed, None:
    never. min_free_mb: nothing is recorded while the disk has less. camera: a name, for the index.
    """

    min_score: float = 0.6
    min_pixels: float = 48.0
    max_yaw: float = 50.0
    min_inside: float = 0.9
    gap_s: float = 1.0
    per_track: int = 60
    novelty: float = 1.0
    repeat_s: float = 5.0
    max_faces: int = 2000
    max_mb: float = 500.0
    keep_days: float | None = 30.0
    min_free_mb: float = 500.0
    camera: str = ""

    def __post_init__(self) -> None:
        if min(self.per_track, self.max_faces) < 1 or self.max_mb <= 0:
            msg = "A recorder needs per_track and max_faces of 1 or more, and max_mb above 0."
            raise ConfigError(msg)
        if self.keep_days is not None and self.keep_days <= 0:
            msg = f"keep_days must be above 0, not {self.keep_days:g}."
            raise ConfigError(msg)
        if (
            not (0 <= self.min_score <= 1 and 0 <= self.min_inside <= 1)
            or min(self.gap_s, self.novelty, self.repeat_s) < 0
        ):
            msg = "A recorder needs min_score and min_inside from 0 to 1, gap_s, novelty and repeat_s of 0 or more."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A face as it was seen. crop: aligned, uint8 (S, S, 3). matrix: frame to crop. frame_size: width, height.

    track: its number in this stream. time_s: of the stream. measures: by `measure_face`, for the index.
    """

    crop: Frame
    face: Face
    matrix: Affine
    frame_size: tuple[int, int]
    track: int
    frame: int
    time_s: float
    source: str = ""
    measures: Measures = field(default_factory=dict)

    @property
    def pixels(self) -> float:
        """Side of what the crop shows, in frame pixels."""
        return float(self.crop.shape[0] / scale_of(self.matrix))


@dataclass(frozen=True, kw_only=True)
class RecorderStats:
    """kept: written by this recorder. held: in the folder now. refused: faces by reason. removed: to make room."""

    kept: int
    held: int
    tracks: int
    megabytes: float
    removed: int
    refused: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return asdict(self) | {"refused": dict(self.refused)}


class FaceRecorder:
    """Chooses and writes; for one thread. Made by `open_recorder`.

    Tracks of an earlier run of the same folder count for the room they take, but are other tracks.
    """

    def __init__(
        self, store: FaceStore, config: RecorderConfig, *, now: Callable[[], float] = time.time
    ) -> None:
        self._store, self._config, self._now = store, config, now
        self._run = store.next_seq  # tracks are numbered from 1 in every run
        self._last: dict[str, float] = {}
        self._refused: Counter[str] = Counter()
        self._kept = self._removed = 0
        self._looked: float | None = None
        self._size = store.size - store.index_size  # of the crops
        self._tracks: defaultdict[str, dict[int, FaceRow]] = defaultdict(dict)
        for row in store.rows.values():
            self._tracks[_group(row)][row.seq] = row

    @property
    def stats(self) -> RecorderStats:
        """What it did, and what the folder holds."""
        return RecorderStats(
            kept=self._kept,
            held=len(self._store.rows),
            tracks=len(self._tracks),
            megabytes=round(self._total() / 1e6, 3),
            removed=self._removed,
            refused=dict(self._refused),
        )

    def offer(self, seen: Sighting) -> Refused | None:
        """Keep the face, or say why not. Raises OutputError when the disk is full or nearly so."""
        self._tidy()
        track, look = f"{self._run}.{seen.track}", look_of(seen)
        reason = self._reason(seen, track, look)
        if reason is not None:
            self._refused[reason] += 1
            self._store.keep_up()  # while faces come that are not kept, those before must not wait for the next
            return reason
        rest = _line(seen) | ({"camera": self._config.camera} if self._config.camera else {})
        row = self._store.add(seen.crop, track=track, look=look, at=self._now(), rest=rest)
        self._tracks[track][row.seq] = row
        self._size += row.size
        self._last.pop(track, None)
        self._last[track] = seen.time_s  # newest last; a stream has new tracks for as long as it runs
        if len(self._last) > _LAST_KEPT:
            del self._last[next(iter(self._last))]
        self._kept += 1
        self._make_room()
        return None

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        self._store.sync()

    def _make_room(self) -> None:
        if self._is_over() and self._store.waste > 5e4 * self._config.max_mb:  # a twentieth
            self._store.compact()
        while self._is_over():
            self._drop(victim(self._tracks.values()), "no room")

    def _total(self) -> int:
        return self._size + self._store.index_size

    def _is_over(self) -> bool:
        held = len(self._store.rows)
        return held > self._config.max_faces or (held > 1 and self._total() > self._config.max_mb * 1e6)

    def _reason(self, seen: Sighting, track: str, look: tuple[float, ...]) -> Refused | None:
        config, last = self._config, self._last.get(track)
        mine = self._tracks.get(track, {})
        waited = seen.time_s - (-math.inf if last is None else last)
        checks: tuple[tuple[Refused, Callable[[], bool]], ...] = (
            ("unsure", lambda: seen.face.score < config.min_score),
            ("small", lambda: seen.pixels < config.min_pixels),
            ("turned", lambda: abs(yaw_degrees(seen.face.landmarks)) > config.max_yaw),
            ("soon", lambda: 0 <= waited < config.gap_s),
            ("cut off", lambda: share_inside(seen) < config.min_inside),
            ("enough", lambda: len(mine) >= config.per_track),
            ("alike", lambda: waited < config.repeat_s and self._is_known(look, mine)),
        )
        return next((reason for reason, holds in checks if holds()), None)

    def _is_known(self, look: tuple[float, ...], mine: Mapping[int, FaceRow]) -> bool:
        return any(apart(look, row.look) < self._config.novelty for row in mine.values())

    def _drop(self, row: FaceRow, why: str) -> None:
        self._store.drop(row, why)
        self._forget(row)
        self._removed += 1

    def _forget(self, row: FaceRow) -> None:
        group = _group(row)
        self._tracks[group].pop(row.seq, None)
        if not self._tracks[group]:
            del self._tracks[group]
        self._size -= row.size

    def _tidy(self) -> None:
        """Once a minute: remove what is too old, and look whether the disk has room."""
        clock = time.monotonic()
        if self._looked is not None and clock - self._looked < _CHECK_S:
            return
        if self._config.keep_days is not None:
            before = dict(self._store.rows)
            self._removed += self._store.expire(self._config.keep_days * DAY_S, now=self._now())
            for seq in before.keys() - self._store.rows.keys():
                self._forget(before[seq])
        free = shutil.disk_usage(self._store.folder).free / 1e6
        if free < self._config.min_free_mb:
            msg = (
                f"The disk of {self._store.folder} has {free:.0f} MB left, recording keeps {self._config.min_free_mb:.0f} "
                "free. Free some space, or record elsewhere."
            )
            raise OutputError(msg)
        self._looked = clock


@contextmanager
def open_recorder(
    folder: Path, config: RecorderConfig | None = None, *, now: Callable[[], float] = time.time
) -> Iterator[FaceRecorder]:
    """Open a recorder on a new folder, or one that holds recorded faces already, which is mended first.

    now: seconds since 1970. Raises OutputError: other files are in it, another process records into it.
    """
    config = config or RecorderConfig()
    config = replace(config, camera=mask(config.camera))  # an address as a name would carry its password onto the disk
    with open_store(folder, record={"config": asdict(config)}) as store:
        yield FaceRecorder(store, config, now=now)


def look_of(seen: Sighting) -> tuple[float, ...]:
    """Yaw, pitch, size and brightness, each in units of a difference that makes another picture."""
    points = seen.face.landmarks.astype(np.float64)
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    height = float(np.linalg.norm(mouth - eyes))
    pitch = float((points[2] - eyes) @ (mouth - eyes)) / max(height * height, 1e-6)
    light = float(seen.crop[::8, ::8].mean())
    return (
        yaw_degrees(seen.face.landmarks) / _YAW,
        pitch / _PITCH,
        math.log2(max(seen.pixels, 1.0)) / _SIZE,
        light / _LIGHT,
    )


def apart(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Distance of two looks; faces of an unknown look are apart."""
    return math.dist(one, other) if len(one) == len(other) and one else math.inf


def share_inside(seen: Sighting) -> float:
    """Share of the crop that lies in the frame, by a grid of 8 x 8 points."""
    side = seen.crop.shape[0]
    line = (np.arange(8, dtype=np.float32) + 0.5) * side / 8 - 0.5
    grid: FloatArray = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    points = apply(inverse(seen.matrix), grid)
    return float(((points >= 0) & (points <= np.array(seen.frame_size) - 1)).all(axis=1).mean())


def around(frame: Frame, box: FloatArray) -> Frame:
    """A copy of the frame at a face's box, from multiples of 8 px on, 384 px at most: for what `measure_face` can
    only see in the frame's own pixels.
    """
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = (int(v) for v in np.nan_to_num(box))
    left, top = max(0, x0) // 8 * 8, max(0, y0) // 8 * 8
    right, bottom = min(width, x1, left + _PATCH), min(height, y1, top + _PATCH)
    return frame[top : max(top, bottom), left : max(left, right)].copy()


def victim(tracks: Any) -> FaceRow:
    """The face to remove when there is no room: of the track with most, the older of the two most alike; when each
    track has but one, the oldest of the hour with most.
    """
    groups = [list(rows.values()) for rows in tracks]
    most = max(len(rows) for rows in groups)
    if most > 1:
        # Of tracks with as many, the one whose newest face is oldest.
        largest = min(
            (rows for rows in groups if len(rows) == most), key=lambda rows: max(r.seq for r in rows)
        )
        return _redundant(largest)
    hours: defaultdict[int, list[FaceRow]] = defaultdict(list)
    for (row,) in groups:
        hours[int(row.time // _HOUR_S)].append(row)
    fullest = max(hours.values(), key=lambda rows: (len(rows), -min(r.seq for r in rows)))
    return min(fullest, key=lambda row: row.seq)


def _redundant(rows: list[FaceRow]) -> FaceRow:
    rows = sorted(rows, key=lambda row: row.seq)
    pairs = [(apart(a.look, b.look), a.seq, a) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    return min(pairs, key=lambda pair: pair[:2])[2]


def _group(row: FaceRow) -> str:
    return f"#{row.seq}" if row.track is None else row.track


def _line(seen: Sighting) -> dict[str, Any]:
    return {
        "source": seen.source,
        "frame": seen.frame,
        "stream_s": round(seen.time_s, 3),
        "score": round(float(seen.face.score), 4),
        "pixels": round(seen.pixels, 1),
        "box": seen.face.box.round(2).tolist(),
        "landmarks": seen.face.landmarks.round(2).tolist(),
        "matrix": seen.matrix.tolist(),
        "measures": {name: round(value, 4) for name, value in seen.measures.items()},
    }
