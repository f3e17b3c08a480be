"""Where to start and what to hold, chosen from the camera's own faces instead of by hand (`--sampler auto`).

The paper sets start, end of holding and N per restorer and degradation by hand and gives no rule (paper.md section 12).
Ours, on a small probe of faces, up a ladder from a light touch to the paper's (`RUNGS`):

1. Targets of a rung *agree* when, against the restorer's output, their colours stay (median rms on an 8 x 8 grid within
   `max_drift` levels, where noise and detail mean out) and so do their points (90th percentile of the displacement
   within `max_landmarks` px at 512). Where only the colours go, the rung is tried again with its low frequencies held
   to the end by a coarse filter, then with half of N.
2. They look *clean* when the medians of their noise on flat parts, luma and chroma, are at most `slack` times what
   19 of 20 clean faces stay under, and their fine detail is at least half of what 19 of 20 have (`CleanLevels`).
3. The first rung that agrees and looks clean is taken: further ones only re-invent more. If none looks clean, the one
   nearest to it among those that agree; if none agrees, the lightest, with half of N held to the end.

N is never one that cannot be scaled to the side of the faces: in its place comes the least doubling of it that can
(`least_filter`). At 192 or 320 px half of 8 is 8 again, and a setting that was just tried is not tried twice.

Probing uses few calls of the prior (`calls`); the targets themselves are drawn with as many as were asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.qa import CLEAN_NOISE, CLEAN_NOISE_CHROMA, drift, noise_scores
from ufr_edge.config import to_json
from ufr_edge.errors import ConfigError, ShapeError
from ufr_edge.metrics.landmarks import find_landmarks, landmark_shift
from ufr_edge.metrics.spectrum import high_frequency_energy
from ufr_edge.priors.lowpass import least_filter
from ufr_edge.priors.sampler import SamplerConfig
from ufr_edge.runtime.faces.detect import Detects

Images = NDArray[np.uint8]
Sample = Callable[[SamplerConfig], Images]
"""A sampler's settings to the targets of the probe, uint8 (N, S, S, 3)."""

RUNGS = ((30, 5, 16), (60, 10, 16), (90, 15, 8), (150, 30, 8), (90, 30, 16), (120, 60, 16), (150, 90, 16))
"""(start, hold_until, N) of 250 steps, in the order of how far their targets leave the restorer's output."""
TAIL = 4
"""Holding to the end is by this many times N."""


@dataclass(frozen=True, kw_only=True)
class CleanLevels:
    """What clean faces have at most of noise, in 8-bit levels, and at least of fine detail (levels squared).

    The 95th and 5th percentiles; the defaults are those of 132 held-out clean faces at 256 px. Other sides have
    others, so give clean faces (`of`) where there are some.
    """

    noise: float = CLEAN_NOISE
    noise_chroma: float = CLEAN_NOISE_CHROMA
    detail: float = 15.0

    @classmethod
    def of(cls, clean: Images) -> CleanLevels:
        """Measure clean faces uint8 (N, S, S, 3). Raises ShapeError when there are none."""
        if len(clean) == 0:
            msg = "The levels of clean faces need at least one face."
            raise ShapeError(msg)
        scores = [noise_scores(face) for face in clean]
        most = {
            name: float(np.percentile([s[name] for s in scores if name in s] or [default], 95))
            for name, default in (("noise", cls.noise), ("noise_chroma", cls.noise_chroma))
        }
        return cls(**most, detail=float(np.percentile([high_frequency_energy(face) for face in clean], 5)))


@dataclass(frozen=True, kw_only=True)
class ChooseConfig:
    """How the choice is made. `probe`: faces looked at. `calls` of the prior per face and rung. The rest: see the module.

    Raises ConfigError when a count or limit is not positive.
    """

    probe: int = 12
    calls: int = 20
    max_drift: float = 3.0
    max_landmarks: float = 20.0
    slack: float = 1.2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.probe, self.calls) < 1 or min(self.max_drift, self.max_landmarks, self.slack) <= 0:
            msg = f"probe and calls must be 1 or more, the limits above 0; got {self}."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One setting that was tried, and what its targets are like; `landmarks` is None where no face could be found.

    `unclean`: by what share noise and detail miss the level of clean faces, added up; 0 for a clean look.
    """

    sampler: SamplerConfig
    drift: float
    landmarks: float | None
    noise: float
    noise_chroma: float
    detail: float
    colours_stay: bool
    points_stay: bool
    unclean: float

    @property
    def clean(self) -> bool:
        """Whether the targets look like clean faces."""
        return self.unclean == 0

    @property
    def agrees(self) -> bool:
        """Whether the targets are still the restorer's faces."""
        return self.colours_stay and self.points_stay

    def row(self) -> list[str]:
        """The rung as a row of the report's table (`HEAD`)."""
        s = self.sampler
        tail = "" if s.tail_filter_n is None else f", {s.tail_filter_n} to the end"
        points = "" if self.landmarks is None else f"{self.landmarks:.1f}"
        values = (f"{self.drift:.2f}", points, f"{self.noise:.2f}", f"{self.noise_chroma:.2f}", f"{self.detail:.1f}")
        words = (_word(self.agrees), _word(self.clean))
        return [f"{s.start} / {s.hold_until}", f"{s.filter_n}{tail}", *values, *words]


HEAD = ("start / hold", "N", "drift", "points px", "noise", "chroma", "detail", "agrees", "clean")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen sampler, why, and all that was tried, in that order."""

    sampler: SamplerConfig
    reason: str
    rungs: tuple[Rung, ...] = ()
    levels: CleanLevels = field(default_factory=CleanLevels)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "sampler": _plain(self.sampler),
            "reason": self.reason,
            "levels": _plain(self.levels),
            "rungs": [_plain(rung) for rung in self.rungs],
        }

    def lines(self) -> list[str]:
        """The choice in words, with the numbers behind it."""
        table = ["  ".join(f"{cell:>12}" for cell in row) for row in (list(HEAD), *(r.row() for r in self.rungs))]
        return [*(table if self.rungs else ()), self.reason]


def choose_sampler(
    restored: Images,
    sample: Sample,
    base: SamplerConfig,
    config: ChooseConfig,
    *,
    levels: CleanLevels | None = None,
    detector: Detects | None = None,
) -> Choice:
    """Choose start, hold and N for faces like `restored`, uint8 (N, S, S, 3), the restorer's outputs of the probe.

    `sample` draws their targets; all but those three settings come from `base`. See the module for the rule.
    """
    prober = _Prober(restored, sample, base, config, levels or CleanLevels(), detector)
    agreeing: list[Rung] = []
    for start, hold, n in RUNGS:
        rung = prober.climb(start, hold, n)
        if rung is not None:
            agreeing.append(rung)
            if rung.clean:
                return prober.choice(rung, "the first whose targets agree with the restorer's output and look clean")
    if not agreeing:
        held = prober.measured(prober.held(prober.at(*RUNGS[0]), halve=True))
        return prober.choice(held, "no start leaves colours and points where they were: the lightest, held to the end")
    nearest = min(agreeing, key=lambda rung: rung.unclean)
    return prober.choice(nearest, "no start looks clean: the nearest to it whose targets agree with the restorer's output")


class _Prober:
    """Measures settings on the probe and remembers them."""

    def __init__(
        self,
        restored: Images,
        sample: Sample,
        base: SamplerConfig,
        config: ChooseConfig,
        levels: CleanLevels,
        detector: Detects | None,
    ) -> None:
        self.restored, self.sample, self.base, self.config, self.levels = restored, sample, base, config, levels
        self.detector, self.side = detector, restored.shape[1]
        self.points = find_landmarks(restored, detector) if detector else None
        self.rungs: list[Rung] = []

    def at(self, start: int, hold: int, n: int) -> SamplerConfig:
        """The setting of a rung, scaled to the base's steps and the side; fewer calls than asked for while probing."""
        start, hold = max(1, self.base.index_of(start)), self.base.index_of(hold)
        fast = min(start, self.config.calls, self.base.fast_steps or start)
        return dataclasses.replace(
            self.base,
            start=start,
            hold_until=hold,
            filter_n=least_filter(n, self.side),
            fast_steps=fast,
            samples_per_image=1,
            tail_filter_n=None,
        )

    def held(self, sampler: SamplerConfig, *, halve: bool) -> SamplerConfig:
        """The setting, held to the end by a coarse filter; with half of N, where the side takes that."""
        n = least_filter(max(1, sampler.filter_n // 2), self.side) if halve else sampler.filter_n
        return dataclasses.replace(sampler, filter_n=n, tail_filter_n=TAIL * n)

    def climb(self, start: int, hold: int, n: int) -> Rung | None:
        """The rung in the first form that agrees, or None."""
        plain = self.at(start, hold, n)
        rung = self.measured(plain)
        for held in dict.fromkeys(self.held(plain, halve=halve) for halve in (False, True)):
            if rung.agrees or not rung.points_stay:
                break
            rung = self.measured(held)
        return rung if rung.agrees else None

    def measured(self, sampler: SamplerConfig) -> Rung:
        targets = self.sample(sampler)
        figures = self._figures(targets)
        shift = self._shift(targets)
        limits = self.config
        rung = Rung(
            sampler=sampler,
            landmarks=shift,
            colours_stay=figures["drift"] <= limits.max_drift,
            points_stay=shift is None or shift <= limits.max_landmarks,
            unclean=self._unclean(figures),
            **figures,
        )
        self.rungs.append(rung)
        return rung

    def _unclean(self, figures: Mapping[str, float]) -> float:
        levels, slack = self.levels, self.config.slack
        noise = (figures["noise"] / (slack * levels.noise), figures["noise_chroma"] / (slack * levels.noise_chroma))
        lacking = 1 - figures["detail"] / (levels.detail / 2) if levels.detail > 0 else 0.0
        return round(sum(max(0.0, share - 1) for share in noise) + max(0.0, lacking), 4)

    def _figures(self, targets: Images) -> dict[str, float]:
        scores = [noise_scores(face) for face in targets]
        colours = [drift(a, b) for a, b in zip(targets, self.restored, strict=True)]
        figures = {
            "drift": float(np.median(colours)),
            "detail": float(np.median([high_frequency_energy(face) for face in targets])),
        }
        for name in ("noise", "noise_chroma"):
            figures[name] = float(np.median([s[name] for s in scores if name in s] or [0.0]))
        return {name: round(value, 4) for name, value in figures.items()}

    def _shift(self, targets: Images) -> float | None:
        """90th percentile of the points' displacement; a face that is lost counts as moved beyond any limit."""
        if self.points is None or self.detector is None:
            return None
        known = ~np.isnan(self.points).any((1, 2))
        if not known.any():
            return None
        found = find_landmarks(targets[known], self.detector)
        side = targets.shape[1]
        shifts = [landmark_shift(p, q, side=side) for p, q in zip(found, self.points[known], strict=True)]
        return round(float(np.percentile(np.nan_to_num(shifts, nan=1e3), 90)), 2)

    def choice(self, rung: Rung, why: str) -> Choice:
        """Take a rung, with the calls and samples that the base asks for."""
        start = rung.sampler.start
        fast = self.base.fast_steps
        sampler = dataclasses.replace(
            rung.sampler,
            fast_steps=None if fast is None else min(fast, start),
            samples_per_image=self.base.samples_per_image,
        )
        s = sampler
        tail = "" if s.tail_filter_n is None else f", N = {s.tail_filter_n} to the end"
        reason = f"start {s.start}, hold until {s.hold_until}, N = {s.filter_n}{tail}: {why}"
        return Choice(sampler=sampler, reason=reason, rungs=tuple(self.rungs), levels=self.levels)


def _word(flag: bool) -> str:
    return "yes" if flag else "no"


def _plain(value: Any) -> Mapping[str, Any]:
    return {name: item for name, item in to_json(value).items() if name != "version"}
