"""What is told of the loop on site, from what was written down: the time line, frame rates, and asked against is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

WINDOW_S = 5.0
ASKED_DRIFT_S, ASKED_TOTAL_S, ASKED_RATE = 60.0, 1200.0, 0.8
ASKED_GAP, ASKED_LOSS_DB = 0.3, 0.3
_DISTANCE, _PSNR = "prior_feature_distance", "psnr_db"
_SETTLE_S = 3.0  # of the stream's start, left out of its frame rate
_AROUND_S = 2.0  # of a swap, in which its drops are counted


@dataclass(frozen=True)
class Mark:
    """Something that happened `at` seconds after the stream's start. kind: of the event, or "stage"."""

    at: float
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The stream's counts at one moment, all since its start; see `LiveStats`."""

    at: float
    frames_in: int
    frames_out: int
    dropped: int
    late: int
    carried: int
    passed: int
    failed: int
    drift: float | None
    drifted: bool
    recorded: int
    version: int | None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """All that was written down, in order. child_cpu_s: CPU seconds of the re-adaptation, children of its own included."""

    ended: str
    samples: tuple[Sample, ...]
    marks: tuple[Mark, ...]
    child_cpu_s: float = 0.0

    def with_child(self, seconds: float) -> Trace:
        """The same with what the child took."""
        return replace(self, child_cpu_s=seconds)


@dataclass(frozen=True, kw_only=True)
class Story:
    """Seconds after the stream's start at which things happened, None: they did not. stages: of the re-adaptation.

    false_alarms: times drift was raised before the switch. outcome: installed, refused, failed or none.
    """

    switch: float
    end: float
    drift: float | None
    begin: float | None
    done: float | None
    shadow: float | None
    swap: float | None
    stands: float | None
    rollback: float | None
    false_alarms: int
    faces: int
    outcome: str
    stages: tuple[tuple[float, str], ...]

    def phases(self) -> dict[str, tuple[float, float]]:
        """From, to of each phase that was: before, during and after the re-adaptation."""
        begin = self.end if self.begin is None else self.begin
        spans = {"before": (min(_SETTLE_S, begin), begin)}
        if self.begin is not None:
            done = self.end if self.done is None else self.done
            spans["during"] = (self.begin, done)
            spans["after"] = (done, self.end)
        return {name: span for name, span in spans.items() if span[1] - span[0] >= 1.0}


def tell_story(trace: Trace, *, switch: float) -> Story:
    """Find what happened in the marks. switch: when the camera changed."""
    begin = _first(trace.marks, "readapt", r"begins with the (\d+) faces")
    done = _first(trace.marks, "readapt", r": (installed|refused|failed)")
    raised = [mark.at for mark in trace.marks if mark.kind == "drift" and mark.text.startswith("raised")]
    swap = _first(trace.marks, "swap", "takes over")
    found = re.search(r"with the (\d+) faces", "" if begin is None else begin.text)
    outcome = re.search(r": (installed|refused|failed)", "" if done is None else done.text)
    return Story(
        switch=switch,
        end=trace.samples[-1].at if trace.samples else 0.0,
        drift=next((at for at in raised if at >= switch), None),
        begin=_at(begin),
        done=_at(done),
        shadow=_at(_first(trace.marks, "swap", "is loaded beside")),
        swap=_at(swap),
        stands=_at(_first(trace.marks, "swap", " stands")),
        rollback=_at(_first(trace.marks, "rollback", "")),
        false_alarms=sum(at < switch for at in raised),
        faces=0 if found is None else int(found[1]),
        outcome="none" if outcome is None else outcome[1],
        stages=tuple(
            (mark.at, mark.text) for mark in trace.marks if mark.kind == "stage" and _is_stage(mark.text)
        ),
    )


def windows(samples: Sequence[Sample], *, width: float = WINDOW_S) -> list[tuple[float, float]]:
    """(middle, frames per second out) of each whole window of `width` seconds."""
    out: list[tuple[float, float]] = []
    first = samples[0] if samples else None
    for sample in samples:
        if first is not None and sample.at - first.at >= width:
            span = sample.at - first.at
            out.append((first.at + span / 2, (sample.frames_out - first.frames_out) / span))
            first = sample
    return out


def phase_figures(samples: Sequence[Sample], span: tuple[float, float]) -> dict[str, float]:
    """What the stream did from, to: frames per second in and out, the slowest window, and counts of frames."""
    inside = [sample for sample in samples if span[0] <= sample.at <= span[1]]
    if len(inside) < 2:
        return {}
    first, last = inside[0], inside[-1]
    seconds = last.at - first.at
    slices = [rate for _, rate in windows(inside)]
    figures = {
        "seconds": seconds,
        "fps_in": (last.frames_in - first.frames_in) / seconds,
        "fps_out": (last.frames_out - first.frames_out) / seconds,
        "slowest_window_fps": min(slices, default=(last.frames_out - first.frames_out) / seconds),
    }
    for name in ("frames_out", "dropped", "late", "carried", "passed", "failed"):
        figures[name] = getattr(last, name) - getattr(first, name)
    return figures


def drops_around(samples: Sequence[Sample], at: float) -> int:
    """Frames dropped within 2 s of a moment."""
    near = [sample.dropped for sample in samples if abs(sample.at - at) <= _AROUND_S]
    return near[-1] - near[0] if near else 0


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Mean figures on people nobody has seen, by restorer: through the camera as it is now, and as it was.

    oracle: whether one was trained; its figures then are in `now`.
    """

    faces: int
    now: Mapping[str, Mapping[str, float]]
    earlier: Mapping[str, Mapping[str, float]]
    oracle: bool

    def gap_closed(self) -> float | None:
        """Share of the way from base to oracle, in distance; None without an oracle or without a way."""
        if not self.oracle or "adapted" not in self.now:
            return None
        base, adapted, oracle = (self.now[name][_DISTANCE] for name in ("base", "adapted", "oracle"))
        return (base - adapted) / (base - oracle) if base > oracle else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "gap_closed": self.gap_closed()}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing asked. met: None where it was not measured."""

    what: str
    asked: str
    measured: str
    met: bool | None


def verdicts(
    story: Story, phases: Mapping[str, Mapping[str, float]], quality: Quality, *, swap_drops: int | None
) -> list[Row]:
    """Asked against is, a row each."""
    seen, total = _since(story.switch, story.drift), _since(story.switch, story.swap)
    return [
        _row("alarms before the camera changed", "none", story.false_alarms, lambda v: v == 0, "{:.0f}"),
        _row("drift raised after the camera changed", "within 60 s", seen, lambda v: v <= ASKED_DRIFT_S, "{:.0f} s"),
        _row("the camera's change to the new engine, unattended", "under 20 min", total,
             lambda v: v < ASKED_TOTAL_S, "{:.0f} s"),
        _rate_row(phases),
        _row("frames dropped within 2 s of the swap", "none", swap_drops, lambda v: v == 0, "{:.0f}"),
        *_quality_rows(quality),
    ]  # fmt: skip


def _rate_row(phases: Mapping[str, Mapping[str, float]]) -> Row:
    """Frames that came out on time by being left unrestored are no credit, so they are told beside it."""
    kept, during = _ratio(phases, "fps_out"), phases.get("during", {})
    row = _row(
        "frame rate kept while re-adapting", "at least 80 %", kept, lambda v: v >= ASKED_RATE, "{:.1%}"
    )
    if kept is None or not during.get("frames_out"):
        return row
    shares = [f"{during.get(name, 0) / during['frames_out']:.1%} {name}" for name in ("carried", "passed")]
    return replace(row, measured=f"{row.measured} ({', '.join(shares)})")


def _quality_rows(quality: Quality) -> list[Row]:
    gain = _difference(quality.now, _PSNR)
    loss = None if (kept := _difference(quality.earlier, _PSNR)) is None else -kept
    return [
        _row("base-to-oracle gap closed, perceptual distance", "at least 30 %", quality.gap_closed(),
             lambda v: v >= ASKED_GAP, "{:.0%}"),
        _row("PSNR on the changed camera, against the base", "no lower", gain, lambda v: v >= 0, "{:+.2f} dB"),
        _row("PSNR lost on the camera before", "at most 0.3 dB", loss, lambda v: v <= ASKED_LOSS_DB, "{:.2f} dB"),
    ]  # fmt: skip


def _row(what: str, asked: str, value: float | None, fits: Callable[[float], bool], shown: str) -> Row:
    if value is None:
        return Row(what=what, asked=asked, measured="not measured", met=None)
    return Row(what=what, asked=asked, measured=shown.format(value), met=fits(value))


def _difference(figures: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    if "adapted" not in figures or "base" not in figures:
        return None
    return figures["adapted"][name] - figures["base"][name]


def _ratio(phases: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    before, during = (phases.get(phase, {}).get(name) for phase in ("before", "during"))
    return None if before is None or during is None or before <= 0 else during / before


def _since(start: float, at: float | None) -> float | None:
    return None if at is None else at - start


def _first(marks: Sequence[Mark], kind: str, pattern: str) -> Mark | None:
    return next((mark for mark in marks if mark.kind == kind and re.search(pattern, mark.text)), None)


def _at(mark: Mark | None) -> float | None:
    return None if mark is None else mark.at


def _is_stage(text: str) -> bool:
    """Whether a line of the re-adaptation's log says what begins, and is no row of the tables at its end."""
    return text.startswith(("drawing ", "fine-tuning", "exporting ", "comparing ", "installing "))
