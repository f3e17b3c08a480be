"""Cameras through OpenCV that are missing, hang or fail: named in words, within the time limit."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.links import CaptureLink, LinkConfig, LinkError, open_link
from ufr_edge.runtime.live.sources import Backoff, ReconnectingSource
from ufr_edge.runtime.video.uri import parse_uri

pytestmark = pytest.mark.timeout(60)
SOON = LinkConfig(open_s=0.1, read_s=0.1)
PATIENT = LinkConfig(open_s=20, read_s=20)


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + 20
    while not set(threading.enumerate()) <= before and time.monotonic() < until:
        time.sleep(0.01)  # one that hung comes back by and by
    assert set(threading.enumerate()) <= before


class FakeCapture:
    """A camera; each read is what `reads` says: a picture, None, an error to raise, or something to wait for."""

    def __init__(self, reads: list[Any], *, opening: Callable[[], object] | None = None) -> None:
        self.reads, self.released, self.asked = reads, 0, [0, 0]
        if opening is not None:
            opening()

    def isOpened(self) -> bool:
        return True

    def set(self, *_: Any) -> bool:
        return True

    def get(self, _: int) -> float:
        return 30.0

    def read(self) -> tuple[bool, Any]:
        what = self.reads.pop(0) if self.reads else np.full((48, 64, 3), 7, np.uint8)
        if isinstance(what, threading.Event):
            what.wait(30)
            return False, None
        if isinstance(what, Exception):
            raise what
        return what is not None, what

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., FakeCapture]], list[FakeCapture]]:
    """Put what `make` returns in place of OpenCV's captures; returns those that were made."""

    def use(make: Callable[..., FakeCapture]) -> list[FakeCapture]:
        made: list[FakeCapture] = []

        def capture(target: Any, backend: int) -> FakeCapture:
            made.append(make())
            made[-1].asked = [target, backend]
            return made[-1]

        monkeypatch.setattr(cv2, "VideoCapture", capture)
        return made

    return use


def test_pictures_come_and_the_camera_is_let_go(fake: Any) -> None:
    (made,) = (fake(lambda: FakeCapture([])),)
    link = open_link(parse_uri("0"), PATIENT)
    assert (link.grab().image[0, 0] == 7).all() and link.rate == 30  # type: ignore[union-attr]
    link.close()
    link.close()
    assert made[0].released == 1


def test_a_camera_that_hangs_is_told_within_the_limit_and_let_go_later(fake: Any) -> None:
    release = threading.Event()
    made = fake(lambda: FakeCapture([release]))
    link = open_link(parse_uri("0"), SOON)
    with pytest.raises(LinkError, match=r"no answer within 0\.1 s"):
        link.grab()
    with pytest.raises(LinkError, match="has not come back"):
        link.grab()
    link.close()  # does not wait
    assert made[0].released == 0
    release.set()
    until = time.monotonic() + 20
    while not made[0].released:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_one_that_hangs_while_it_opens(fake: Any) -> None:
    release = threading.Event()
    fake(lambda: FakeCapture([], opening=lambda: release.wait(30)))
    with pytest.raises(LinkError, match="no answer within"):
        open_link(parse_uri("0"), SOON)
    release.set()


def test_what_opencv_throws_breaks_the_connection_only(fake: Any) -> None:
    made = fake(lambda: FakeCapture([cv2.error("GStreamer: pipeline have not been created")]))
    link = open_link(parse_uri("0"), PATIENT)
    with pytest.raises(LinkError, match="its driver failed: GStreamer: pipeline"):
        link.grab()
    link.close()
    assert made[0].released == 1


def test_the_source_connects_again_after_a_hang_and_an_error(fake: Any) -> None:
    release, events, stop = threading.Event(), EventLog(), threading.Event()
    picture = np.zeros((48, 64, 3), np.uint8)
    plans: list[list[Any]] = [[picture, release], [cv2.error("gone")], []]
    made = fake(lambda: FakeCapture(plans.pop(0)))
    config = LinkConfig(open_s=20, read_s=0.3)
    source = ReconnectingSource(
        "0",
        lambda: open_link(parse_uri("0"), config),
        backoff=Backoff(first_s=0.001, most_s=0.01),
        stop=stop,
        events=events,
    )
    frames = source.frames()
    next(frames), next(frames)
    assert [event.kind for event in events.last()] == ["lost", "reconnect"] and len(made) == 3
    source.close()
    release.set()
    with contextlib.suppress(StopIteration):
        stop.set()
        next(frames)


def test_a_missing_camera_is_told_by_us_alone(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("/dev/video87", "87"):
        with pytest.raises(LinkError, match="cannot be opened"):
            open_link(parse_uri(name), PATIENT)
    told = capfd.readouterr()
    assert told.out == "" and told.err == ""


@pytest.mark.skipif(not Path("/dev").is_dir(), reason="names of Linux")
def test_a_camera_is_opened_by_number_whatever_its_name(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    made = fake(lambda: FakeCapture([]))
    by_id = tmp_path / "usb-camera"
    by_id.symlink_to("/dev/video3")
    for name in ("3", "/dev/video3", f"v4l2://{by_id}", "v4l2:///dev/video3?size=640x480"):
        open_link(parse_uri(name), PATIENT).close()
    assert [capture.asked for capture in made] == [[3, cv2.CAP_V4L2]] * 4


def test_pipelines_have_the_limit_too(fake: Any) -> None:
    release = threading.Event()
    fake(lambda: FakeCapture([release]))
    link = CaptureLink("videotestsrc ! appsink", cv2.CAP_GSTREAMER, uri=parse_uri("gst:x"), config=SOON)
    with pytest.raises(LinkError, match="no answer"):
        link.grab()
    link.close()
    release.set()
