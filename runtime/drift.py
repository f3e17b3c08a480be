"""Drift: whether live faces still come from the camera a bundle was adapted to. Knows no clock and no thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.fingerprint import (
    DEGRADATIONS,
    Distance,
    Fingerprint,
    Measures,
    combine,
    fingerprint_distance,
)

_SINCE_KEPT = 4096  # tracks whose last vote is remembered


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """raise_at, clear_below: distances, in units of uncertainty. raise_s, clear_s: for how long, in seconds.

    faces, seconds: of the window the running estimate is made over, whichever is shorter. fewest: faces in it
    below which nothing is said. vote_s: seconds between two votes of a track, so that one who stands there counts
    once a second however fast the frames come.
    """

    raise_at: float = 5.0
    clear_below: float = 3.5
    raise_s: float = 10.0
    clear_s: float = 30.0
    faces: int = 40
    seconds: float = 900.0
    fewest: int = 20
    vote_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.clear_below < self.raise_at:
            msg = f"Drift must clear below where it is raised, above 0: {self.clear_below:g} and {self.raise_at:g}."
            raise ConfigError(msg)
        if not 2 <= self.fewest <= self.faces or min(self.seconds, self.vote_s) <= 0:
            msg = "Drift needs fewest from 2 up to faces, and seconds and vote_s above 0."
            raise ConfigError(msg)
        if min(self.raise_s, self.clear_s) < 0:
            msg = "Drift: raise_s and clear_s must be 0 or more."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class DriftState:
    """distance: None while there are too few faces. limit: where it is raised. parts: by group of the fingerprint.
    cause: the group that differs most. faces: in the window; votes: of all time. since: stream seconds at which
    it was raised, None when it is not.
    """

    raised: bool
    distance: float | None
    limit: float
    parts: tuple[tuple[str, float], ...]
    cause: str | None
    faces: int
    votes: int
    raises: int
    since: float | None

    def describe(self) -> str:
        """In words."""
        if self.distance is None:
            return f"too few faces to tell ({self.faces})"
        parts = ", ".join(f"{name} {value:.1f}" for name, value in self.parts if name in DEGRADATIONS)
        return f"distance {self.distance:.1f} (limit {self.limit:g}): {parts}"

    def to_json(self) -> dict[str, Any]:
        """The state as plain JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"parts": dict(self.parts)}


Change = Literal["raised", "cleared"]


class DriftMonitor:
    """Fed with the measures of live faces; compares their running mean with the bundle's fingerprint.

    For one thread. Times are seconds of any clock that runs forwards; where it jumps back, waiting begins anew.
    """

    def __init__(self, reference: Fingerprint, config: DriftConfig | None = None) -> None:
        self._reference, self._config = reference, config or DriftConfig()
        self._window: deque[tuple[float, Hashable, Measures]] = deque(maxlen=self._config.faces)
        self._last: dict[Hashable, float] = {}
        self._beyond: float | None = None  # since when the distance is on the other side of its limit
        self._since: float | None = None
        self._distance: Distance | None = None
        self._votes = self._raises = 0
        self._now: float | None = None

    def against(self, reference: Fingerprint) -> DriftMonitor:
        """A fresh one with the same settings, as for another version of a bundle; it goes on counting."""
        fresh = DriftMonitor(reference, self._config)
        fresh._votes, fresh._raises = self._votes, self._raises
        return fresh

    def due(self, track: Hashable, time_s: float) -> bool:
        """Whether a vote of this track would count now: what need not be measured can be skipped."""
        last = self._last.get(track)
        return last is None or time_s - last >= self._config.vote_s or time_s < last

    def observe(self, measures: Measures, *, track: Hashable, time_s: float) -> Change | None:
        """A face as `measure_face` saw it, at `time_s`; says when drift is raised or cleared by it."""
        if not self.due(track, time_s):
            return None
        self._jumped(time_s)
        self._remember(track, time_s)
        self._votes += 1
        self._window.append((time_s, track, measures))
        while self._window and time_s - self._window[0][0] > self._config.seconds:
            self._window.popleft()
        self._distance = None
        if len(self._window) >= self._config.fewest:
            self._distance = fingerprint_distance(self.running(), self._reference)
        return self._decide(time_s)

    def running(self) -> Fingerprint:
        """The fingerprint of the faces in the window. Raises ConfigError when there are none."""
        measured = [measures for _, _, measures in self._window]
        tracks = [track for _, track, _ in self._window]
        return combine(measured, tracks=tracks, side=self._reference.side)

    @property
    def state(self) -> DriftState:
        """Where it stands."""
        distance = self._distance
        return DriftState(
            raised=self._since is not None,
            distance=None if distance is None else round(distance.value, 3),
            limit=self._config.raise_at,
            parts=() if distance is None else tuple((k, round(v, 3)) for k, v in distance.parts.items()),
            cause=None if distance is None else distance.cause,
            faces=len(self._window),
            votes=self._votes,
            raises=self._raises,
            since=self._since,
        )

    def _decide(self, time_s: float) -> Change | None:
        config, raised = self._config, self._since is not None
        if self._distance is None:  # too few faces: nothing is learnt either way
            self._beyond = None
            return None
        value = self._distance.value
        if not (value < config.clear_below if raised else value > config.raise_at):
            self._beyond = None
            return None
        self._beyond = time_s if self._beyond is None else self._beyond
        if time_s - self._beyond < (config.clear_s if raised else config.raise_s):
            return None
        self._beyond = None
        self._since = None if raised else time_s
        self._raises += not raised
        return "cleared" if raised else "raised"

    def _jumped(self, time_s: float) -> None:
        if self._now is not None and time_s < self._now:
            self._window.clear()
            self._last.clear()
            self._beyond = None
        self._now = time_s

    def _remember(self, track: Hashable, time_s: float) -> None:
        self._last.pop(track, None)
        self._last[track] = time_s  # newest last
        if len(self._last) > _SINCE_KEPT:
            del self._last[next(iter(self._last))]
