"""What looking at a stream's faces has found, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ufr_edge.runtime.drift import DriftState
from ufr_edge.runtime.recorder import RecorderStats


@dataclass(frozen=True, kw_only=True)
class FaceWatch:
    """drift: None when it is not watched. recorded: None when nothing is. recording: False once the disk was full.
    missed: faces there was no time to look at.
    """

    drift: DriftState | None
    recorded: RecorderStats | None
    recording: bool
    missed: int

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "drift": None if self.drift is None else self.drift.to_json(),
            "recorded": None if self.recorded is None else self.recorded.to_json(),
            "recording": self.recording,
            "missed": self.missed,
        }
