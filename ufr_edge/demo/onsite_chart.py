"""The time line of the loop on site as one SVG: what ran when, how far the faces were, how fast frames came."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from ufr_edge.demo.onsite_story import ASKED_RATE, Sample, Story, windows

WIDTH, LEFT, RIGHT = 1080, 140, 24
_LANE, _GAP, _PLOT = 24, 8, 110
_TOP = 34
_CHAR = 6.4  # px a letter takes
_COLOURS = {"old": "#8aa5c4", "new": "#3d7a4e", "bad": "#c4683a", "work": "#6a5a9c", "trial": "#b08a2e"}
_STAGES = (
    ("drawing", "targets"),
    ("fine-tuning", "fine-tuning"),
    ("exporting", "export"),
    ("comparing", "gate"),
    ("installing", "install"),
)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A stretch of time in a lane, in seconds."""

    start: float
    end: float
    label: str
    colour: str


def lanes(story: Story, samples: Sequence[Sample], *, before: str, after: str) -> dict[str, list[Bar]]:
    """What goes on, by lane."""
    end = story.end
    swap = end if story.swap is None else story.swap
    back = end if story.rollback is None else story.rollback
    engine = [
        Bar(start=0.0, end=swap, label="version 1", colour="old"),
        Bar(start=swap, end=max(swap, back), label="version 2", colour="new"),
        Bar(start=max(swap, back), end=end, label="version 1 again", colour="old"),
    ]
    trial = []
    if story.shadow is not None:
        trial.append(Bar(start=story.shadow, end=min(swap, back), label="shadow", colour="trial"))
    if story.swap is not None:
        stands = back if story.stands is None else story.stands
        trial.append(Bar(start=swap, end=stands, label="probation", colour="new"))
    return {
        "camera": [
            Bar(start=0.0, end=min(story.switch, end), label=before, colour="old"),
            Bar(start=min(story.switch, end), end=end, label=after, colour="bad"),
        ],
        "drift": [Bar(start=a, end=b, label="raised", colour="bad") for a, b in _raised(samples)],
        "re-adaptation": _stages(story),
        "trial": trial,
        "engine": engine,
    }


def timeline_svg(story: Story, samples: Sequence[Sample], *, before: str, after: str, limit: float) -> str:
    """Draw it. limit: of the distance at which drift is raised. The width is 1080 px."""
    scale = _Scale(story.end)
    parts, y = [_axis_marks(story, scale)], float(_TOP)
    for name, bars in lanes(story, samples, before=before, after=after).items():
        parts.append(_text(LEFT - 10, y + 16, name, anchor="end"))
        parts += [_bar(bar, scale, y) for bar in bars]
        y += _LANE + _GAP
    drift = [(sample.at, sample.drift) for sample in samples if sample.drift is not None]
    parts.append(_plot("drift distance", drift, scale, y + 14, line=limit, note=f"raised above {limit:g}"))
    y += _PLOT + 40
    rates = windows(samples)
    first = story.end if story.begin is None else story.begin
    usual = [rate for at, rate in rates if at < first][1:]
    kept = ASKED_RATE * sum(usual) / len(usual) if usual else None
    parts.append(
        _plot("frames/s, over 5 s", rates, scale, y + 14, line=kept, note=f"{ASKED_RATE:.0%} of before")
    )
    y += _PLOT + 24
    parts.append(_axis(scale, y))
    height = y + 34
    lines = "".join(_line(scale(at), _TOP - 6, scale(at), y, "#888", dash=True) for at, _ in _moments(story))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="system-ui, sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/>{lines}{"".join(parts)}</svg>'
    )


def svg_uri(svg: str) -> str:
    """An SVG as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


@dataclass(frozen=True)
class _Scale:
    """Seconds to pixels."""

    end: float

    def __call__(self, at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, at / max(self.end, 1e-6)))


def _raised(samples: Iterable[Sample]) -> list[tuple[float, float]]:
    spans: list[tuple[float, float]] = []
    since: float | None = None
    last = 0.0
    for sample in samples:
        if sample.drifted and since is None:
            since = sample.at
        elif not sample.drifted and since is not None:
            spans.append((since, sample.at))
            since = None
        last = sample.at
    return spans if since is None else [*spans, (since, last)]


def _stages(story: Story) -> list[Bar]:
    if story.begin is None:
        return []
    done = story.end if story.done is None else story.done
    known = [(at, name) for at, text in story.stages for word, name in _STAGES if text.startswith(word)]
    starts = [(story.begin, "start"), *known]
    ends = [at for at, _ in starts[1:]] + [done]
    return [
        Bar(start=at, end=end, label=name, colour="work")
        for (at, name), end in zip(starts, ends, strict=True)
    ]


def _moments(story: Story) -> list[tuple[float, str]]:
    named = ((story.switch, "the camera changes"), (story.drift, "drift raised"), (story.swap, "swap"))
    return [(at, name) for at, name in named if at is not None and at <= story.end]


def _axis_marks(story: Story, scale: _Scale) -> str:
    """Names of the moments above the lanes; one that would lie over the one before stands a line higher."""
    out, free = [], 0.0
    for at, name in _moments(story):
        x, high = scale(at), 0
        if x < free:
            high = 13
        out.append(_text(x, _TOP - 10 - high, name, anchor="middle"))
        free = x + _CHAR * len(name)
    return "".join(out)


def _bar(bar: Bar, scale: _Scale, y: float) -> str:
    x, width = scale(bar.start), scale(bar.end) - scale(bar.start)
    if width <= 0:
        return ""
    label = f"{bar.label}, {bar.end - bar.start:.0f} s"
    inside = label if _CHAR * len(label) < width else bar.label if _CHAR * len(bar.label) < width else ""
    text = _text(x + width / 2, y + 16, inside, anchor="middle", fill="#fff") if inside else ""
    shape = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(1.0, width - 1):.1f}" height="{_LANE}" rx="2" '
        f'fill="{_COLOURS[bar.colour]}"><title>{escape(label)}</title></rect>'
    )
    return shape + text


def _plot(
    name: str,
    points: Sequence[tuple[float, float]],
    scale: _Scale,
    y: float,
    *,
    line: float | None,
    note: str,
) -> str:
    """A curve from 0 up, with its limit."""
    top = 1.1 * max([value for _, value in points] + ([] if line is None else [line]) + [1.0])

    def place(value: float) -> float:
        return y + _PLOT * (1 - value / top)

    parts = [
        _text(LEFT - 10, y + _PLOT / 2, name, anchor="end"),
        _text(LEFT - 10, y + _PLOT, "0", anchor="end", fill="#888"),
        _text(LEFT - 10, y + 10, f"{top:.3g}", anchor="end", fill="#888"),
        _line(LEFT, y + _PLOT, WIDTH - RIGHT, y + _PLOT, "#bbb"),
    ]
    path = " ".join(f"{scale(at):.1f},{place(value):.1f}" for at, value in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="#1f5fa8" stroke-width="1.6"/>')
    if line is not None:
        parts.append(_line(LEFT, place(line), WIDTH - RIGHT, place(line), "#c4683a", dash=True))
        parts.append(_text(LEFT + 4, place(line) - 4, note, fill="#c4683a"))
    return "".join(parts)


def _axis(scale: _Scale, y: float) -> str:
    step = next((s for s in (10, 30, 60, 120, 300, 600) if scale.end / s <= 12), 1200)
    ticks = range(0, int(scale.end) + 1, step)
    marks = [
        _text(scale(at), y + 14, f"{at // 60}:{at % 60:02d}", anchor="middle", fill="#555") for at in ticks
    ]
    return "".join(marks) + _text(LEFT - 30, y + 14, "min:s", anchor="end", fill="#555")


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, *, dash: bool = False) -> str:
    style = ' stroke-dasharray="4 3"' if dash else ""
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}"{style}/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'
