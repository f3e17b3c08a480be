"""The page and the figures of the demo on site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.pictures import strip
from ufr_edge.adaptation.report import Section, figures_table, picture_uri, write_report
from ufr_edge.config import to_json
from ufr_edge.demo.onsite_chart import svg_uri, timeline_svg
from ufr_edge.demo.onsite_story import Row, Story
from ufr_edge.files import write_json
from ufr_edge.runtime.drift import DriftConfig
from ufr_edge.runtime.images import write_image
from ufr_edge.runtime.live.onsite import OnsiteConfig
from ufr_edge.runtime.machine import machine_name

if TYPE_CHECKING:
    from ufr_edge.demo.onsite import OnsiteReport

Images = NDArray[np.uint8]
_SHOWN = 6
_STATES = {True: "yes", False: "NO", None: "-"}


def write_onsite_report(report: OnsiteReport, columns: Mapping[str, Images]) -> None:
    """Write figures.json, strip.jpg and onsite.html. columns: faces by label, uint8 (N, S, S, 3), of equal N."""
    out = report.out
    write_json(out / "figures.json", figures(report))
    picture = face_strip(columns)
    write_image(out / "strip.jpg", picture)
    write_report(out / "onsite.html", title="On site: the camera changes, the stream mends itself",
                 lead=lead(report.rows, report.story), sections=sections(report, picture))  # fmt: skip


def figures(report: OnsiteReport) -> dict[str, Any]:
    """All figures as plain JSON values."""
    trace = report.trace
    return {
        "machine": machine_name(),
        "seconds": round(report.seconds, 1),
        "ended": trace.ended,
        "config": to_json(report.config),
        "story": asdict(report.story),
        "since_switch": since_switch(report.story),
        "readaptation": {
            "cpu_s": round(trace.child_cpu_s, 1),
            "faces": report.story.faces,
            "gate": report.gate,
        },
        "phases": report.phases,
        "quality": report.quality.to_json(),
        "rows": [asdict(row) for row in report.rows],
        "marks": [asdict(mark) for mark in trace.marks],
        "samples": [asdict(sample) for sample in trace.samples[::4]],
    }


def since_switch(story: Story) -> dict[str, float | None]:
    """Seconds from the camera's change to what followed."""
    moments = {name: getattr(story, name) for name in ("drift", "begin", "done", "shadow", "swap", "stands")}
    return {name: None if at is None else round(at - story.switch, 1) for name, at in moments.items()}


def lead(rows: tuple[Row, ...], story: Story) -> str:
    """What came out, in two sentences."""
    met, asked = sum(row.met is True for row in rows), sum(row.met is not None for row in rows)
    found = since_switch(story)
    words = {
        "installed": "adapted to the camera by itself and exchanged its engine",
        "refused": "tried to adapt; the gate refused the result, and the old engine stayed",
        "failed": "tried to adapt; the re-adaptation failed, and the old engine stayed",
        "none": "did not come to adapt before the stream's end",
    }[story.outcome]
    if story.rollback is not None:
        words += ", and went back to the old one"
    swap = (
        ""
        if found["swap"] is None
        else f" {found['swap']:.0f} s after the camera had changed, the new engine ran."
    )
    return f"A stream that nobody touched {words}.{swap} {met} of {asked} figures measured are as asked."


def face_strip(columns: Mapping[str, Images]) -> Images:
    """Some faces, spread over all, under labelled columns."""
    count = len(next(iter(columns.values())))
    index = np.linspace(0, count - 1, min(_SHOWN, count)).round().astype(int)
    return strip({name: images[index] for name, images in columns.items()})


def sections(report: OnsiteReport, picture: Images) -> list[Section]:
    """The parts of the page, in order."""
    story, config = report.story, report.config
    limit = DriftConfig().raise_at
    chart = timeline_svg(story, report.trace.samples, before=config.before, after=config.after, limit=limit)
    asked = [[row.what, row.asked, row.measured, _STATES[row.met]] for row in report.rows]
    head, rows = figures_table(report.quality.now)
    old_head, old_rows = figures_table(report.quality.earlier)
    oracle = (
        "Oracle: the same fine-tuning on the same number of faces, towards the truth and without the adversary, in fp32."
        if "oracle" in report.quality.now
        else "No oracle was trained, so the gap it would leave is not known."
    )
    return [
        Section(title="The time line", text=_legend(report), picture=svg_uri(chart)),
        Section(title="Asked, and found", head=["", "asked", "is", "met"], rows=asked,
                text="An hour of the unchanged camera without an alarm is measured in docs/drift.md."),
        Section(title="Before and after: people nobody has seen, through the changed camera", picture=picture_uri(picture)),
        Section(title=f"The changed camera ({config.after})", head=head, rows=rows,
                text=f"{report.quality.faces} faces against the truth. Base, adapted: versions 1 and 2, by the engine that ran in the stream ({config.engine.name}). {oracle}"),
        Section(title=f"The camera before ({config.before})", head=old_head, rows=old_rows,
                text="The same people through the camera as it was: is the old skill still there?"),
        Section(title="The stream", head=["", *report.phases], rows=_phase_rows(report.phases),
                text="Carried: faces of the frame before shown again; passed: shown unrestored; both when frames are late."),
        Section(title="What the gate compared", head=["on held-out recorded faces", "old", "new"], rows=_gate_rows(report.gate),
                text=_gate_text(report.gate)),
        Section(title="What happened", head=["", "second"], rows=_happened(report)),
        Section(title="How it was set", head=["", ""], rows=_settings(report), text=machine_name()),
    ]  # fmt: skip


def _legend(report: OnsiteReport) -> str:
    story, site = report.story, report.config.site
    size = f"{site.size[0]}x{site.size[1]} at {site.rate} frames/s"
    cpu = (
        f" The re-adaptation took {report.trace.child_cpu_s / 60:.1f} CPU minutes."
        if report.trace.child_cpu_s
        else ""
    )
    return (
        f"A synthetic camera ({size}, two people at a time, others every {report.config.shift_s:g} s) is "
        f"{report.config.before} until second {story.switch:.0f} and {report.config.after} from then on.{cpu}"
    )


def _phase_rows(phases: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    names = list(dict.fromkeys(name for found in phases.values() for name in found))
    return [
        [name.replace("_", " "), *(_plain(found.get(name)) for found in phases.values())] for name in names
    ]


def _gate_rows(gate: Mapping[str, Any]) -> list[list[str]]:
    if not gate:
        return []
    old, new = gate["figures"]["old"], gate["figures"]["new"]
    return [[name, f"{old[name]:.3f}", f"{new[name]:.3f}"] for name in new if name in old]


def _gate_text(gate: Mapping[str, Any]) -> str:
    if not gate:
        return "It was not reached."
    if gate["reasons"]:
        return f"Refused: {'; '.join(gate['reasons'])}."
    return f"On {gate['faces']} faces kept out of training, without ground truth: within its limits."


def _happened(report: OnsiteReport) -> list[list[str]]:
    kinds = ("start", "drift", "record", "readapt", "stage", "swap", "rollback", "ladder", "failed", "stop")
    known = [mark for mark in report.trace.marks if mark.kind in kinds]
    return [[f"{mark.kind}: {mark.text}", f"{mark.at:.0f}"] for mark in known][:200]


def _settings(report: OnsiteReport) -> list[list[str]]:
    config, drift = report.config, DriftConfig()
    return [
        ["restorer, engine", f"{config.restorer}, {config.engine.name}"],
        ["people: earlier, passing, unseen", f"{config.earlier}, {config.passing}, {config.unseen}"],
        [
            "drift",
            f"above {drift.raise_at:g} for {drift.raise_s:g} s, over the last {drift.faces} faces; as always",
        ],
        ["faces recorded before it adapts", f"{config.least_faces} (watch: 64)"],
        ["steps of fine-tuning", f"{config.steps} (readapt: 150), one thread, lowest priority"],
        ["rest after a re-adaptation", f"{OnsiteConfig().rest_s / 60:g} minutes; as always"],
        ["shadow", f"{config.swap.shadow_s:g} s and {config.swap.shadow_faces} faces (watch: 10 s, 20)"],
        ["probation", f"{config.swap.probation_s:g} s (watch: 30 s)"],
        ["all of it, filming and measuring too", f"{report.seconds / 60:.1f} minutes"],
    ]


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}"
