"""What a run did, and how fast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.timing import StageTiming
from ufr_edge.runtime.video.parts import PartRecord


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Counts and times of one run.

    kind: "image", "folder" or "video". faces: over all frames. seconds: wall clock from the first frame
    read to the last written; the stages overlap in a video, so that their sum is more. frames_kept: of those out,
    how many an earlier run, which was interrupted, had finished.
    """

    kind: str
    source: str
    out: Path
    frames_in: int
    frames_out: int
    frames_without_face: int
    faces: int
    seconds: float
    stages: tuple[StageTiming, ...]
    engine: EngineInfo
    detector: EngineInfo | None
    notes: tuple[str, ...] = ()
    frames_kept: int = 0

    @property
    def frames_per_second(self) -> float:
        """Frames written by this run per second of wall clock."""
        return (self.frames_out - self.frames_kept) / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        plain = asdict(self) | {"frames_per_second": self.frames_per_second}
        return {name: _plain(value) for name, value in plain.items()}


@dataclass(kw_only=True)
class Tally:
    """Counts while a run goes on; each field is written by one thread."""

    read: int = 0
    written: int = 0
    faces: int = 0
    faceless: int = 0
    left_alone: Counter[str] = field(default_factory=Counter)

    def saw(self, faces: int, skipped: Iterable[str] = ()) -> None:
        """Count one frame, the faces restored in it, and the reasons of those left alone."""
        self.read += 1
        self.faces += faces
        self.faceless += faces == 0
        self.left_alone.update(reason.partition(":")[0] for reason in skipped)

    def add(self, record: PartRecord) -> None:
        """Count the frames of a finished part of a film."""
        self.read += record.frames
        self.written += record.frames
        self.faces += record.faces
        self.faceless += record.faceless
        self.left_alone.update(record.left_alone)

    def notes(self) -> tuple[str, ...]:
        """Say which faces were left alone, if any were."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_alone.most_common())
        return (f"Faces left alone: {reasons}.",) if reasons else ()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
