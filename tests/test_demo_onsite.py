"""The demo on site: who passes, what is told of a trace, its page, and (slow) the whole story in small."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from ufr_edge.cli import main
from ufr_edge.demo.onsite import OnsiteDemoConfig, OnsiteReport, run_onsite_demo, watch
from ufr_edge.demo.onsite_chart import lanes, timeline_svg
from ufr_edge.demo.onsite_film import Doorway, Reel, Site, film_clip, share_out
from ufr_edge.demo.onsite_report import face_strip, figures, lead, since_switch, write_onsite_report
from ufr_edge.demo.onsite_story import (
    Mark,
    Quality,
    Row,
    Sample,
    Story,
    Trace,
    drops_around,
    phase_figures,
    tell_story,
    verdicts,
    windows,
)
from ufr_edge.demo.onsite_watch import WatchedConfig
from ufr_edge.demo.scene import write_truth
from ufr_edge.errors import ConfigError, InputFileError, OutputError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import read_image
from ufr_edge.runtime.live.shadow import SwapConfig
from ufr_edge.runtime.live.stream import StreamConfig
from ufr_edge.runtime.video.opening import open_source

SMALL = Site(size=(320, 180), rate=10)
MARKS = (
    Mark(0.0, "start", "reel to null://"),
    Mark(52.0, "drift", "raised: distance 6.1 (limit 5): noise 8.0"),
    Mark(80.0, "readapt", "re-adaptation 1 begins with the 66 faces recorded since drift was raised"),
    Mark(84.0, "stage", "drawing targets"),
    Mark(100.0, "stage", "fine-tuning"),
    Mark(140.0, "stage", "exporting onnx-int8"),
    Mark(150.0, "stage", "comparing the new bundle with the old one"),
    Mark(155.0, "stage", "installing into door"),
    Mark(156.0, "swap", "version 2 is loaded beside version 1"),
    Mark(157.0, "readapt", "re-adaptation 1: installed"),
    Mark(157.0, "stage", "noise_sigma 3.100 2.000"),
    Mark(166.0, "swap", "version 2 takes over from version 1"),
    Mark(180.0, "drift", "cleared: distance 1.2 (limit 5): noise 1.0"),
    Mark(196.0, "swap", "version 2 stands; version 1 is closed"),
)


def samples(*, slow: tuple[float, float] = (0.0, 0.0), drops_at: float | None = None) -> tuple[Sample, ...]:
    """200 s at 10 frames/s, four samples a second; half the speed between two moments, and one drop."""
    out, done = [], 0.0
    for tick in range(801):
        at = tick / 4
        done += 2.5 * (0.5 if slow[0] < at <= slow[1] else 1.0) if tick else 0.0
        out.append(
            Sample(
                at=at,
                frames_in=int(at * 10),
                frames_out=int(done),
                dropped=int(drops_at is not None and at >= drops_at),
                late=0,
                carried=0,
                passed=0,
                failed=0,
                drift=None if at < 10 else 1.0 if at < 45 else 6.0,
                drifted=52 <= at < 180,
                recorded=int(at),
                version=1 if at < 166 else 2,
            )
        )
    return tuple(out)


def trace(marks: Sequence[Mark] = MARKS) -> Trace:
    return Trace(ended="the story is over", samples=samples(), marks=tuple(marks), child_cpu_s=61.0)


def quality(*, oracle: bool = True, adapted: bool = True) -> Quality:
    now = {"base": {"prior_feature_distance": 0.5, "psnr_db": 20.0}}
    earlier = {"base": {"prior_feature_distance": 0.3, "psnr_db": 25.0}}
    if adapted:
        now["adapted"] = {"prior_feature_distance": 0.42, "psnr_db": 20.5}
        earlier["adapted"] = {"prior_feature_distance": 0.3, "psnr_db": 24.6}
    if oracle:
        now["oracle"] = {"prior_feature_distance": 0.3, "psnr_db": 22.0}
    return Quality(faces=8, now=now, earlier=earlier, oracle=oracle)


def story(**changes: object) -> Story:
    return dataclasses.replace(tell_story(trace(), switch=30.0), **changes)  # type: ignore[arg-type]


def test_nobody_is_in_two_groups() -> None:
    people = share_out(4, 10, 6)
    groups = [
        {picture.tobytes() for picture in group} for group in (people.earlier, people.passing, people.unseen)
    ]
    assert [len(group) for group in groups] == [4, 10, 6]
    assert len(set.union(*groups)) == 20
    again = share_out(4, 10, 6)
    assert all(np.array_equal(a, b) for a, b in zip(people.unseen, again.unseen, strict=True))
    with pytest.raises(InputFileError, match="cannot be had"):
        share_out(40, 40, 40)


def test_the_default_people_are_there() -> None:
    config = OnsiteDemoConfig()
    assert len(share_out(config.earlier, config.passing, config.unseen).passing) == config.passing


def test_a_camera_is_the_same_in_every_frame_but_for_its_noise() -> None:
    flat = np.full((180, 320, 3), 128, np.uint8)
    for preset in ("classic-light", "raw-iso3000-x4"):
        one, other = (SMALL.look(preset)(flat, np.random.default_rng(seed)) for seed in (1, 2))
        assert not np.array_equal(one, other)
        assert np.abs(one.mean(axis=(0, 1)) - other.mean(axis=(0, 1))).max() < 3  # one light


def test_a_doorway_shows_two_people_and_comes_again_the_same() -> None:
    people = share_out(4, 10, 6).passing
    scene = Doorway(people, SMALL, lambda frame, _: frame, frames_each=2, take=0)
    assert len(scene) == 10
    assert scene.clean(0).shape == (180, 320, 3)
    assert np.array_equal(scene.frame(3), scene.clean(3))
    assert not np.array_equal(scene.clean(0)[:, :160], scene.clean(0)[:, 160:])
    with pytest.raises(ConfigError, match="2 people"):
        Doorway(people[:1], SMALL, lambda frame, _: frame, frames_each=2, take=0)


def test_it_asks_for_as_many_usable_faces_as_watch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[WatchedConfig] = []

    def watched(_: str, __: Path, ___: Path, config: WatchedConfig, **____: object) -> Trace:
        seen.append(config)
        return trace()

    monkeypatch.setattr("ufr_edge.demo.onsite.watch_site", watched)
    watch(make_reel(), tmp_path, OnsiteDemoConfig(least_faces=40), tell=lambda _: None)
    (config,) = seen
    assert config.onsite.least_faces == 40
    assert config.readapt[config.readapt.index("--least-faces") + 1] == "30"


def make_reel() -> Reel:
    people = share_out(4, 4, 4).passing

    def darker(frame: Frame, rng: np.random.Generator) -> Frame:
        return np.asarray(frame // 4, np.uint8)

    first = Doorway(people, SMALL, lambda frame, _: frame, frames_each=2, take=0)
    return Reel(first=first, second=Doorway(people, SMALL, darker, frames_each=3, take=1), before=2, after=2)


def test_a_reel_is_its_clips_end_to_end_and_knows_the_truth_of_each_frame(tmp_path: Path) -> None:
    reel = make_reel()
    assert (len(reel.first), len(reel.second), reel.switch) == (4, 6, 8)
    clips = [
        film_clip(scene, tmp_path / f"{name}.mp4", SMALL)
        for name, scene in (("a", reel.first), ("b", reel.second))
    ]
    pattern = reel.lay(clips[0], clips[1], tmp_path / "reel")
    files = sorted(tmp_path.glob("reel/*.mp4"))
    assert pattern == str(tmp_path / "reel" / "*.mp4")
    assert [path.name for path in files] == ["0000-a.mp4", "0001-a.mp4", "0002-b.mp4", "0003-b.mp4"]
    shown = [item.image for path in files for item in open_source(path).items() if hasattr(item, "image")]
    assert len(shown) == 2 * 4 + 2 * 6
    for index, image in enumerate(shown):
        truth = reel.clean(index) // (4 if index >= reel.switch else 1)
        assert np.abs(image.astype(int) - truth).mean() < 6, index
    assert np.array_equal(reel.clean(0), reel.clean(4))
    assert np.array_equal(reel.clean(8), reel.clean(14))


def test_truth_of_some_faces_only(tmp_path: Path) -> None:
    line = {"frame": 9, "matrix": [[0.5, 0.0, 3.0], [0.0, 0.5, 4.0]]}
    rows = [json.dumps({"seq": i, "file": f"{i:06d}.png", **line}) for i in range(3)]
    gone = json.dumps({"gone": "000002.png", "why": "no room"})
    (tmp_path / "index.jsonl").write_text("\n".join([*rows, gone]) + "\n")
    reel = make_reel()
    truth = write_truth(reel, tmp_path, tmp_path / "hq", 64, names=["000001.png", "000002.png"])
    assert [path.name for path in (tmp_path / "hq").iterdir()] == ["000001.png"]
    assert truth.shape == (1, 64, 64, 3)
    assert np.array_equal(read_image(tmp_path / "hq" / "000001.png"), truth[0])


def test_the_story_is_told_from_what_happened() -> None:
    found = tell_story(trace(), switch=30.0)
    assert (found.drift, found.begin, found.done) == (52.0, 80.0, 157.0)
    assert (found.shadow, found.swap, found.stands, found.rollback) == (156.0, 166.0, 196.0, None)
    assert (found.outcome, found.faces, found.false_alarms, found.end) == ("installed", 66, 0, 200.0)
    assert [text for _, text in found.stages][:2] == ["drawing targets", "fine-tuning"]
    assert len(found.stages) == 5  # the table at the end of the log is no stage
    assert found.phases() == {"before": (3.0, 80.0), "during": (80.0, 157.0), "after": (157.0, 200.0)}
    assert since_switch(found)["swap"] == 136.0


def test_a_story_that_ends_early() -> None:
    quiet = tell_story(trace(MARKS[:1]), switch=300.0)
    assert (quiet.drift, quiet.outcome, quiet.phases()) == (None, "none", {"before": (3.0, 200.0)})
    refused = Mark(150.0, "readapt", "re-adaptation 1: refused: the gate refused the new bundle")
    assert tell_story(trace([*MARKS[:6], refused]), switch=30.0).outcome == "refused"
    early = tell_story(trace([Mark(20.0, "drift", "raised: distance 9"), *MARKS]), switch=30.0)
    assert (early.false_alarms, early.drift) == (1, 52.0)
    empty = Trace(ended="", samples=(), marks=())
    assert tell_story(empty, switch=30.0).end == 0.0


def test_frame_rates_by_phase_and_by_window() -> None:
    taken = samples(slow=(100.0, 110.0), drops_at=165.0)
    rates = windows(taken)
    assert len(rates) == 40
    assert rates[0] == (2.5, 10.0)
    assert min(rate for _, rate in rates) == pytest.approx(5.0, abs=0.3)
    during = phase_figures(taken, (80.0, 157.0))
    assert during["seconds"] == 77.0
    assert during["fps_out"] == pytest.approx((770 - 50) / 77, abs=0.05)
    assert during["slowest_window_fps"] == pytest.approx(5.0, abs=0.3)
    assert (during["dropped"], phase_figures(taken, (160.0, 170.0))["dropped"]) == (0, 1)
    assert (drops_around(taken, 166.0), drops_around(taken, 180.0)) == (1, 0)
    assert phase_figures(taken, (500.0, 600.0)) == {}


def rows_of(**changes: object) -> dict[str, Row]:
    given: dict[str, object] = {
        "phases": {"before": {"fps_out": 15.0}, "during": {"fps_out": 13.5}},
        "quality": quality(),
        "drops": 0,
        "story": story(),
        **changes,
    }
    found = verdicts(given["story"], given["phases"], given["quality"], swap_drops=given["drops"])  # type: ignore[arg-type]
    return {row.what.split(",")[0]: row for row in found}


def test_asked_against_is() -> None:
    rows = rows_of()
    assert rows["drift raised after the camera changed"] == Row(
        what="drift raised after the camera changed", asked="within 60 s", measured="22 s", met=True
    )
    assert rows["the camera's change to the new engine"].measured == "136 s"
    assert (
        rows["frame rate kept while re-adapting"].measured,
        rows["frame rate kept while re-adapting"].met,
    ) == ("90.0%", True)
    assert (rows["base-to-oracle gap closed"].measured, rows["base-to-oracle gap closed"].met) == (
        "40%",
        True,
    )
    assert (rows["PSNR on the changed camera"].measured, rows["PSNR on the changed camera"].met) == (
        "+0.50 dB",
        True,
    )
    lost = rows["PSNR lost on the camera before"]
    assert (lost.measured, lost.met) == ("0.40 dB", False)


def test_frames_that_were_let_through_are_told_beside_the_rate() -> None:
    during = {"fps_out": 15.0, "frames_out": 1000, "carried": 120, "passed": 5}
    row = rows_of(phases={"before": {"fps_out": 15.0}, "during": during})["frame rate kept while re-adapting"]
    assert (row.measured, row.met) == ("100.0% (12.0% carried, 0.5% passed)", True)


def test_what_was_not_measured_is_not_met() -> None:
    rows = rows_of(quality=quality(oracle=False), phases={"before": {"fps_out": 15.0}}, drops=None)
    for what in (
        "base-to-oracle gap closed",
        "frame rate kept while re-adapting",
        "frames dropped within 2 s of the swap",
    ):
        assert (rows[what].measured, rows[what].met) == ("not measured", None)
    rows = rows_of(quality=quality(adapted=False), story=story(swap=None, drift=None))
    assert {row.met for row in rows.values()} == {
        None,
        True,
    }  # no false alarm, the frame rate; and nothing else
    assert rows["PSNR lost on the camera before"].met is None


def test_no_gap_is_no_share() -> None:
    same = quality()
    worse = {**same.now, "oracle": {"prior_feature_distance": 0.6, "psnr_db": 20.0}}
    assert dataclasses.replace(same, now=worse).gap_closed() is None
    assert same.gap_closed() == pytest.approx(0.4)


def test_lanes_fill_the_stream_without_overlap() -> None:
    found = lanes(story(), samples(), before="mild", after="bad")
    assert [(bar.start, bar.end, bar.label) for bar in found["engine"] if bar.end > bar.start] == [
        (0.0, 166.0, "version 1"), (166.0, 200.0, "version 2")
    ]  # fmt: skip
    assert [bar.label for bar in found["re-adaptation"]] == [
        "start",
        "targets",
        "fine-tuning",
        "export",
        "gate",
        "install",
    ]
    assert [(bar.start, bar.end) for bar in found["drift"]] == [(52.0, 180.0)]
    for bars in found.values():
        assert all(a.end <= b.start for a, b in pairwise(bars))
    back = lanes(story(rollback=170.0, stands=None), samples(), before="mild", after="bad")
    assert back["engine"][-1].label == "version 1 again" and back["engine"][-1].start == 170.0
    assert back["trial"][-1].end == 170.0


@pytest.mark.parametrize("end", [12.0, 200.0, 3000.0])
def test_the_chart_is_one_picture_inside_its_frame(end: float) -> None:
    svg = timeline_svg(story(end=end), samples(), before="a<b", after="raw", limit=5.0)
    root = ElementTree.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    for node in root.iter():
        if "width" in node.attrib and "x" in node.attrib:
            assert float(node.attrib["x"]) + float(node.attrib["width"]) <= width
        if "y" in node.attrib:
            assert 0 <= float(node.attrib["y"]) <= height
    assert "a&lt;b" in svg or end == 12.0


def make_report(out: Path, **changes: object) -> OnsiteReport:
    told = story()
    phases = {name: phase_figures(samples(), span) for name, span in told.phases().items()}
    gate = {"figures": {"old": {"noise_sigma": 3.0}, "new": {"noise_sigma": 2.0}}, "reasons": [], "faces": 9}
    made = OnsiteReport(
        out=out,
        config=OnsiteDemoConfig(),
        trace=trace(),
        story=told,
        phases=phases,
        quality=quality(),
        gate=gate,
        rows=tuple(verdicts(told, phases, quality(), swap_drops=0)),
        seconds=900.0,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def columns(count: int = 8) -> dict[str, Frame]:
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
        for name in ("camera", "base", "adapted", "truth")
    }


def test_the_page_holds_everything_itself(tmp_path: Path) -> None:
    write_onsite_report(make_report(tmp_path), columns())
    page = (tmp_path / "onsite.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page)
    pictures = re.findall(r'src="data:(image/[a-z+]+);base64,([^"]+)"', page)
    assert [kind for kind, _ in pictures] == ["image/svg+xml", "image/jpeg"]
    assert base64.b64decode(pictures[0][1]).startswith(b"<svg")
    for words in (
        "at least 30 %",
        "40%",
        "within 60 s",
        "docs/drift.md",
        "version 2 takes over",
        "watch: 64",
        "noise_sigma",
    ):
        assert words in page
    assert read_image(tmp_path / "strip.jpg").shape[1] == 4 * 32


def test_the_page_says_what_did_not_happen(tmp_path: Path) -> None:
    told = tell_story(trace(MARKS[:1]), switch=300.0)
    bare = make_report(
        tmp_path, story=told, gate={}, quality=quality(oracle=False, adapted=False), phases={},
        rows=tuple(verdicts(told, {}, quality(oracle=False, adapted=False), swap_drops=None)),
    )  # fmt: skip
    write_onsite_report(bare, {"camera": columns()["camera"]})
    page = (tmp_path / "onsite.html").read_text(encoding="utf-8")
    for words in ("did not come to adapt", "No oracle was trained", "not measured", "It was not reached."):
        assert words in page
    assert json.loads((tmp_path / "figures.json").read_text())["story"]["swap"] is None


def test_figures_and_lead(tmp_path: Path) -> None:
    found = json.loads(json.dumps(figures(make_report(tmp_path))))
    assert found["since_switch"]["drift"] == 22.0
    assert found["readaptation"]["cpu_s"] == 61.0
    assert found["quality"]["gap_closed"] == pytest.approx(0.4)
    assert found["config"]["steps"] == 150
    assert {row["met"] for row in found["rows"]} == {True, False}
    text = lead(make_report(tmp_path).rows, story())
    assert "136 s after the camera had changed" in text and "7 of 8 figures measured are as asked" in text
    assert "went back" in lead((), story(rollback=170.0))
    assert face_strip(columns(2)).shape == (26 + 2 * 32, 4 * 32, 3)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    result = CliRunner().invoke(main, ["demo-onsite", "-o", str(tmp_path)])
    assert result.exit_code == 1 and "--overwrite" in result.output
    with pytest.raises(OutputError):
        run_onsite_demo(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "x"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_story_in_small(tmp_path: Path) -> None:
    config = OnsiteDemoConfig(
        site=Site(rate=8),
        passing=24,
        unseen=4,
        before_s=20.0,
        most_minutes=20.0,
        steps=2,
        least_faces=24,
        linger_s=2.0,
        stream=StreamConfig(pace=True, ladder=False),  # a busy machine changes nothing
        swap=SwapConfig(shadow_s=2.0, shadow_faces=5, probation_s=4.0),
    )
    said: list[str] = []
    report = run_onsite_demo(tmp_path / "demo", config, show=False, tell=said.append)
    told = report.story
    assert told.drift is not None and told.begin is not None and told.done is not None, said
    assert told.switch < told.drift < told.begin < told.done
    assert told.outcome in ("installed", "refused")  # two steps may make it worse; then the old one stays
    assert len(report.gate["figures"]["new"]) > 3
    assert set(report.quality.now) >= {"base", "oracle"}
    assert ("adapted" in report.quality.now) == (told.outcome == "installed" and told.rollback is None)
    assert told.faces >= 24
    found = json.loads((tmp_path / "demo" / "figures.json").read_text())
    assert found["readaptation"]["cpu_s"] > 1
    assert (tmp_path / "demo" / "onsite.html").is_file() and (tmp_path / "demo" / "strip.jpg").is_file()
