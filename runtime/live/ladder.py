"""The deadline ladder: what to leave out when frames come too late, and when to take it up again.

It holds no clock: it is fed with the age of each frame at the sink, and decides by counting frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ufr_edge.errors import ConfigError


class Step(str, Enum):
    """What a frame gets, best first."""

    FULL = "full"
    SMALLER = "smaller-engine"
    CARRY = "every-second-frame"
    PASS = "pass-through"


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """deadline_ms: the age at which a frame counts as late. window: frames that decide about going down.

    share: of the window that may be late. patience: frames in time, one after the other,
    before a step up is tried; doubled, up to `most_patience`, each time such a try fails within `trial` frames.
    headroom: a try is made only if the largest age of the window is below this share of the deadline.
    settle: frames after a move that are not judged, as they were under way before it.
    """

    deadline_ms: float
    window: int = 30
    share: float = 0.3
    patience: int = 150
    most_patience: int = 4800
    trial: int = 90
    headroom: float = 0.9
    settle: int = 8

    def __post_init__(self) -> None:
        if self.deadline_ms <= 0:
            msg = f"The deadline must be above 0 ms, not {self.deadline_ms:g}."
            raise ConfigError(msg)
        counts = (self.window, self.patience, self.trial, self.most_patience - self.patience + 1)
        if min(counts) < 1 or not 0 < self.share < 1 or not 0 < self.headroom <= 1:
            msg = "The ladder's window, patience and trial must be 1 or more, share and headroom between 0 and 1."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class Move:
    """A change of step, and why."""

    before: Step
    after: Step
    reason: str


class Ladder:
    """Decides the step. For one thread; `step` may be read by others."""

    def __init__(self, config: LadderConfig, *, steps: Sequence[Step] = tuple(Step)) -> None:
        """steps: those that this stream can take, best first."""
        if not steps:
            msg = "The ladder needs a step to stand on."
            raise ConfigError(msg)
        self._config, self._steps = config, tuple(steps)
        self._at = 0
        self._ages: deque[float] = deque(maxlen=config.window)
        self._late: deque[bool] = deque(maxlen=config.window)
        self._in_time = 0
        self._unsettled = 0
        self._since_up: int | None = None
        self._patience = config.patience

    @property
    def step(self) -> Step:
        """Where it stands."""
        return self._steps[self._at]

    @property
    def patience(self) -> int:
        """Frames in time that the next step up asks for."""
        return self._patience

    def observe(self, age_ms: float, *, dropped: int = 0) -> Move | None:
        """Take in one frame: its age at the sink, and how many before it had to be dropped (each counts as late,
        so that the window is as long in time whatever becomes of the frames).

        Returns the move that follows from it, else None.
        """
        unjudged = min(self._unsettled, 1 + dropped)
        self._unsettled -= unjudged
        if unjudged > dropped:
            return None
        late = age_ms > self._config.deadline_ms
        misses = min(dropped - unjudged, self._config.window)
        self._late.extend([True] * misses + [late])
        self._ages.append(age_ms)
        self._in_time = 0 if late or misses else self._in_time + 1
        self._judge_try()
        if sum(self._late) > self._config.share * self._config.window:
            return self._down()
        return self._up() if self._may_go_up() else None

    def _judge_try(self) -> None:
        if self._since_up is None:
            return
        self._since_up += 1
        if self._since_up > self._config.trial:  # the try has held
            self._since_up, self._patience = None, self._config.patience

    def _may_go_up(self) -> bool:
        enough = self._at > 0 and self._in_time >= self._patience
        return enough and max(self._ages) <= self._config.headroom * self._config.deadline_ms

    def _down(self) -> Move | None:
        missed, seen = sum(self._late), len(self._late)
        if self._at + 1 == len(self._steps):
            self._forget()
            return None
        if self._since_up is not None:
            self._patience = min(2 * self._patience, self._config.most_patience)
            self._since_up = None
        reason = (
            f"{missed} of the last {seen} frames were dropped or older than {self._config.deadline_ms:.0f} ms"
        )
        return self._move(1, reason)

    def _up(self) -> Move:
        reason = f"{self._in_time} frames in time, none older than {max(self._ages):.0f} ms"
        move = self._move(-1, reason)
        self._since_up = 0
        return move

    def _move(self, by: int, reason: str) -> Move:
        before = self.step
        self._at += by
        self._forget()
        self._unsettled = self._config.settle
        return Move(before=before, after=self.step, reason=reason)

    def _forget(self) -> None:
        """What was measured on another step says nothing about this one."""
        self._ages.clear()
        self._late.clear()
        self._in_time = 0
