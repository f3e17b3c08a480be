"""The live page in a real browser: it shows frames, the divider moves, and its console stays empty."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import StubDetector
from live_fakes import KeepingSink, drift_watch, rig

from ufr_edge.runtime.images import read_image, write_image
from ufr_edge.runtime.live.page_address import PageConfig
from ufr_edge.runtime.live.sources import TestCamera
from ufr_edge.runtime.live.stream import LiveStream
from ufr_edge.runtime.video.uri import parse_uri

aiohttp = pytest.importorskip("aiohttp", reason="needs the extra `live`")
from browser import Tab, find_browser, open_tab

from ufr_edge.runtime.live.page import PageSink

TOKEN = "a-token-of-twenty-chars"
BROWSER = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here (chromium, google-chrome)"),
]


@dataclass(frozen=True)
class Running:
    """A stream into the page."""

    page: PageSink
    stream: LiveStream


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A stream of the synthetic camera into the page; the stub engine draws stripes."""
    scene = np.zeros((200, 320, 3), np.uint8)
    scene[:, :160], scene[:, 160:] = (180, 60, 40), (40, 90, 180)
    write_image(tmp_path / "scene.png", scene)
    uri = parse_uri(f"synthetic://?size=320x180&rate=20&frames=0&picture={tmp_path / 'scene.png'}")
    stop = threading.Event()
    sink = PageSink(parse_uri("http://127.0.0.1:0"), PageConfig(token=TOKEN, stall_s=60))
    opened = threading.Event()
    kept = KeepingSink(before=lambda frame: opened.set())
    made = rig(
        TestCamera(uri, code=False, stop=stop),
        detector=StubDetector([2]),
        sink=kept,
        others=(sink,),
        stop=stop,
    )
    thread = threading.Thread(target=made.stream.run)
    thread.start()
    assert opened.wait(60)
    yield Running(sink, made.stream)
    made.stream.stop()
    thread.join(60)
    assert not thread.is_alive()


@contextlib.asynccontextmanager
async def visiting(page: PageSink, folder: Path) -> AsyncIterator[Tab]:
    """A browser that has opened the page by its token and drawn a few frames."""
    assert BROWSER is not None
    async with open_tab(BROWSER, folder) as tab:
        await tab.resize(1280, 800)
        await tab.prefer("dark")
        await tab.goto(f"{page.url}?token={TOKEN}")
        await tab.until("page.drawn > 3 && page.samples.length > 1")
        yield tab


# Read back from a copy: reading the page's own canvas again and again makes the browser warn of slowness.
PIXELS = """(() => {
  const copy = Object.assign(document.createElement("canvas"), {width: canvas.width, height: canvas.height});
  const own = copy.getContext("2d", {willReadFrequently: true});
  own.drawImage(canvas, 0, 0);
  return own.getImageData(0, 0, copy.width, copy.height).data;
})()"""


async def colour_at(tab: Tab, x: float, y: float) -> list[int]:
    """RGB of the picture's canvas at shares of its size."""
    width, height = await tab.value("[canvas.width, canvas.height]")
    start = 4 * (int(height * y) * width + int(width * x))
    found: list[int] = await tab.value(f"[...{PIXELS}.slice({start}, {start + 3})]")
    return found


async def brightness(tab: Tab) -> float:
    """Sum over the whole canvas."""
    return float(await tab.value(f"{PIXELS}.reduce((sum, v) => sum + v, 0)"))


def test_it_shows_frames_and_numbers_and_the_console_stays_empty(running: Running, tmp_path: Path) -> None:
    async def work() -> None:
        async with visiting(running.page, tmp_path / "profile") as tab:
            assert await tab.value("location.href") == running.page.url  # the token is out of the address
            assert await tab.value("document.cookie") == ""  # and no script can read the cookie
            first = await tab.value("Number(view.dataset.frame)")
            await tab.until(f"Number(view.dataset.frame) > {first + 5}")
            assert await tab.value("[canvas.width, canvas.height]") == [320, 180]
            red, _, blue = await colour_at(tab, 0.1, 0.9)
            assert red > 120 > blue  # the left half of the scene, not a grey canvas
            await tab.until("$('state').dataset.state === 'ok'")
            assert await tab.value("$('faces').textContent") == "2"
            assert float(await tab.value("parseFloat($('fps').textContent)")) > 0
            assert "onnxruntime" not in await tab.value("$('facts').textContent")  # the rig names no engine
            assert await tab.value("$('events').textContent.includes('live page at')")
            assert await tab.value("$('stages').tBodies[0].rows.length") >= 3
            assert await tab.value("$('ladder').querySelector('[aria-current]').dataset.step") == "full"
            drawn = "[...$('rate').getContext('2d').getImageData(0,0,$('rate').width,$('rate').height).data]"
            assert await tab.value(f"{drawn}.some(v => v > 0)")
            await tab.value("$('boxes').click()")
            await tab.until("page.boxes && page.drawn > 20")
            await look(tab, tmp_path)
            assert tab.problems == []

    asyncio.run(work())


def test_it_shows_the_installed_version_and_drift(running: Running, tmp_path: Path) -> None:
    async def work() -> None:
        async with visiting(running.page, tmp_path / "profile") as tab:
            told = "[...$('facts').children].map(e => e.textContent).join('|')"
            assert not {"bundle version", "drift"} & set((await tab.value(told)).split("|"))
            board = running.stream.board
            board.labels.bundle_version = 7
            board.watch_faces(lambda: drift_watch(distance=None, raised=False))
            await tab.until(f"{told}.includes('bundle version|7')")
            await tab.until(f"{told}.includes('drift|too few faces yet (7)')")
            board.watch_faces(lambda: drift_watch(distance=6.25, raised=True))
            await tab.until(f"{told}.includes('drift|6.3 of 5: raised')")
            assert await tab.value("$('facts').querySelector('.warn').textContent") == "6.3 of 5: raised"
            assert tab.problems == []

    asyncio.run(work())


async def look(tab: Tab, folder: Path) -> None:
    """A screenshot that is no empty page; kept where UFR_SCREENSHOTS says."""
    keep = Path(os.environ.get("UFR_SCREENSHOTS", folder))
    await tab.screenshot(keep / "page.png")
    picture = read_image(keep / "page.png")
    assert picture.shape == (800, 1280, 3)
    assert float(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).std()) > 10


def test_the_divider_moves_by_mouse_keys_and_finger(running: Running, tmp_path: Path) -> None:
    async def work() -> None:
        async with visiting(running.page, tmp_path / "profile") as tab:
            box = await tab.value(
                "(({x, y, width, height}) => [x, y, width, height])(view.getBoundingClientRect())"
            )
            x, y, width, height = box
            middle = y + height / 2
            await tab.drag((x + width / 2, middle), (x + width * 0.25, middle))
            assert abs(await tab.value("page.share") - 0.25) < 0.02
            assert await tab.value("divider.getAttribute('aria-valuenow')") == "25"
            await tab.value("divider.focus()")
            for _ in range(3):
                for kind in ("keyDown", "keyUp"):
                    await tab.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight")
            assert abs(await tab.value("page.share") - 0.31) < 0.02
            await tab.value("moveTo(1)")
            await tab.value("$('hold').click()")
            before = await brightness(tab)
            await tab.value("moveTo(0)")
            assert await brightness(tab) > before  # the restored picture has brighter stripes
            await tab.value("$('hold').click()")
            shown = await tab.value("page.drawn")
            await tab.until(f"page.drawn > {shown + 3}")  # it goes on after having been held
            await tab.resize(390, 844, phone=True)
            assert await tab.value("document.documentElement.scrollWidth <= innerWidth")
            x, y, width, height = await tab.value(
                "(({x, y, width, height}) => [x, y, width, height])(view.getBoundingClientRect())"
            )
            await tab.swipe((x + width * 0.5, y + height / 2), (x + width * 0.8, y + height / 2))
            assert abs(await tab.value("page.share") - 0.8) < 0.03
            assert tab.problems == []

    asyncio.run(work())


def test_when_the_stream_ends_the_page_says_so(running: Running, tmp_path: Path) -> None:
    async def work() -> None:
        async with visiting(running.page, tmp_path / "profile") as tab:
            running.stream.stop()
            await tab.until("$('state').dataset.state === 'bad' && !$('veil').hidden")
            assert "has ended" in await tab.value("$('veil').textContent")

    asyncio.run(work())
