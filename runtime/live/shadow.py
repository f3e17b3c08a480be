"""Whether a new engine may take over from the one that runs: what is looked at in live faces, and the decision.

Nothing here holds a clock, a thread or an engine: a `Trial` is fed with faces and times, and says what follows.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.frame import Frame

_BLANK = 2.0  # levels of standard deviation below which a picture shows nothing
_COARSE = 16  # cells a side in which the low frequencies are compared
_TIMES = 9  # runs the speed is the median of
_FEWEST_TIMES = 3
_HASTY = 2.0  # times the limit, while there are fewer than _TIMES: a busy machine is no slow engine
_HOLD_S = 1.0  # after a frame the stream had no time for
_MOST_HOLD_S = 2.0  # a stream that never has time must get a faster engine too


@dataclass(frozen=True, kw_only=True)
class SwapConfig:
    """How a new version is tried before and after it takes over.

    shadow_s, shadow_faces: both must have passed before the swap. every: one run in so many is looked at.
    probation_s: how long the old engine stays loaded after it. bad_share: of `shadow_faces` that may look wrong; an
    engine that throws or gives a blank picture is refused at once. low_limit: mean difference from the input in cells
    of 1/16 of the face, in levels (or `low_margin` more than the old engine's). far_limit: mean difference from the
    old output, in levels. clip_limit: share of pixels at 0 or 255 beyond the input's. time_share: of the deadline that
    a face may take (where there is a deadline), or `slower` times what the old engine takes, whichever is longer.
    poll_s: between two looks at the folder.
    """

    shadow_s: float = 10.0
    shadow_faces: int = 20
    every: int = 5
    probation_s: float = 30.0
    bad_share: float = 0.1
    low_limit: float = 12.0
    low_margin: float = 4.0
    far_limit: float = 24.0
    clip_limit: float = 0.2
    time_share: float = 0.33
    slower: float = 2.0
    poll_s: float = 0.5

    def __post_init__(self) -> None:
        """Raise ConfigError for a limit that makes no sense."""
        if min(self.shadow_faces, self.every) < 1 or not 0 <= self.bad_share < 1:
            msg = "A swap needs shadow_faces and every of 1 or more, and bad_share from 0 up to 1."
            raise ConfigError(msg)
        if min(self.shadow_s, self.probation_s) < 0 or self.poll_s <= 0:
            msg = "A swap needs shadow_s and probation_s of 0 or more, and poll_s above 0."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class Look:
    """One face seen: crop, made uint8 (S, S, 3); old: what the engine before made of it, of any side, None: unknown.

    ms: what the engine took for this face.
    """

    crop: Frame
    made: Frame
    ms: float
    old: Frame | None = None


class Verdict(str, Enum):
    """What follows from a trial so far."""

    WAIT = "wait"
    PASS = "pass"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Faults of one face in words, without figures (so that they can be counted). blank: enough to refuse at once."""

    faults: tuple[str, ...]
    blank: bool = False


def time_limit(config: SwapConfig, *, deadline_ms: float | None, old_ms: float | None) -> float | None:
    """Milliseconds a face may take, None: nothing to hold it against."""
    by_deadline = None if deadline_ms is None else config.time_share * deadline_ms
    by_old = None if old_ms is None else config.slower * old_ms
    known = [limit for limit in (by_deadline, by_old) if limit is not None]
    return max(known, default=None)


def inspect(look: Look, config: SwapConfig, *, usual_low: float = 0.0) -> Found:
    """Look at one face. What was made must be of the crop's shape and dtype.

    usual_low: how far the low frequencies of the engine before were from the input's, where `look.old` is unknown.
    """
    crop, made, old = look.crop, look.made, look.old
    if made.shape != crop.shape or made.dtype != np.uint8:
        return Found(faults=("its output has another shape or dtype than the face",), blank=True)
    if float(made.std()) < _BLANK <= float(crop.std()) / 2:
        return Found(faults=("its output shows nothing",), blank=True)
    faults = []
    if _clipped(made) > _clipped(crop) + config.clip_limit:
        faults.append("its output is clipped")
    low, usual = low_distance(made, crop), usual_low if old is None else low_distance(old, crop)
    if low > max(config.low_limit, usual + config.low_margin):
        faults.append("its low frequencies are not those of the input")
    if old is not None and _apart(made, old) > config.far_limit:
        faults.append("it is too far from what the engine before makes")
    return Found(faults=tuple(faults))


class Slack:
    """Whether a stream has time for another face in shadow: not for 1 s after it had none for a frame; yet a face every
    2 s in any case. Seconds of any clock that runs forwards.
    """

    def __init__(self, *, started: float, short: int) -> None:
        """short: frames so far for which the stream had no time; only what comes on top of it counts."""
        self._short, self._held_until, self._taken = short, started, started

    def take(self, now: float, *, short: int) -> bool:
        """Whether a face may be tried at `now`; True counts as having done so."""
        if short > self._short:
            self._short, self._held_until = short, now + _HOLD_S
        if now < self._held_until and now - self._taken < _MOST_HOLD_S:
            return False
        self._taken = now
        return True


class Trial:
    """The faces of one engine on trial, from `started` on (seconds of any clock that runs forwards)."""

    def __init__(
        self, config: SwapConfig, *, started: float, seconds: float, faces: int, usual_low: float = 0.0
    ) -> None:
        """seconds, faces: both must have passed before it can pass. Speed is judged from as many faces on.

        usual_low: what `inspect` is told, of an earlier trial.
        """
        self.usual_low = usual_low
        self._config, self._started = config, started
        self._seconds, self._faces = seconds, faces
        self._seen = self._bad = 0
        self._kinds: Counter[str] = Counter()
        self._ms: deque[float] = deque(maxlen=max(_TIMES, faces))
        self._reason: str | None = None

    @property
    def faces(self) -> int:
        """Faces looked at."""
        return self._seen

    @property
    def reason(self) -> str | None:
        """Why it failed, in words; None while it has not."""
        return self._reason

    @property
    def median_ms(self) -> float | None:
        """Milliseconds a face takes; None while too few were seen to tell."""
        return float(np.median(self._ms)) if len(self._ms) >= max(_FEWEST_TIMES, self._faces) else None

    def observe(self, look: Look) -> None:
        """Take in one face."""
        found = inspect(look, self._config, usual_low=self.usual_low)
        if look.old is not None:
            self.usual_low = max(self.usual_low, low_distance(look.old, look.crop))
        self._seen += 1
        self._ms.append(look.ms)
        self._bad += bool(found.faults)
        self._kinds.update(found.faults)
        if found.blank:
            self.fail(found.faults[0])
        elif self._bad > self._config.bad_share * self._config.shadow_faces:
            kind, count = self._kinds.most_common(1)[0]
            self.fail(f"{kind} ({count} of {self._seen} faces)")

    def timed(self, ms: float) -> None:
        """Take in how long one face took that was not looked at."""
        self._ms.append(ms)

    def fail(self, reason: str) -> None:
        """It failed for another reason; the first one stands."""
        self._reason = self._reason or reason

    def verdict(self, now: float, *, limit_ms: float | None) -> Verdict:
        """What follows at `now`."""
        median = self.median_ms
        allowed = 1.0 if len(self._ms) >= _TIMES else _HASTY
        if limit_ms is not None and median is not None and median > allowed * limit_ms:
            self.fail(f"it takes {median:.1f} ms a face, the limit is {limit_ms:.1f} ms")
        if self._reason is not None:
            return Verdict.FAIL
        enough = now - self._started >= self._seconds and self._seen >= self._faces
        return Verdict.PASS if enough else Verdict.WAIT


def _clipped(image: Frame) -> float:
    return float(((image == 0) | (image == 255)).mean())


def low_distance(image: Frame, other: Frame) -> float:
    """Mean difference of 16 x 16 cells, in levels; the mean colour aside, which the pipeline takes from the input."""
    a, b = (_cells(picture, _COARSE) for picture in (image, other))
    a, b = a - a.mean(axis=(0, 1)), b - b.mean(axis=(0, 1))
    return float(np.abs(a - b).mean())


def _apart(image: Frame, other: Frame) -> float:
    side = min(len(image), len(other))
    return float(np.abs(_cells(image, side) - _cells(other, side)).mean())


def _cells(image: Frame, side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.float32)
