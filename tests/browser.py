"""A headless Chromium driven over its DevTools protocol, for the tests of the live page.

`python tests/browser.py URL live.jpg` photographs a page that is open.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "google-chrome", "chromium-browser", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--mute-audio",
    "--remote-debugging-port=0", "--remote-debugging-address=127.0.0.1",
)  # fmt: skip
_WAIT_S = 90.0


def find_browser() -> str | None:
    """The program of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Tab:
    """One page. `problems`: what it wrote to its console as a warning or error, and what it threw."""

    socket: Any
    problems: list[str] = field(default_factory=list)
    _number: int = 0
    _answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)

    async def listen(self) -> None:
        """Sort what the browser sends, until it hangs up."""
        async for message in self.socket:
            told = json.loads(message.data)
            if "id" in told:
                answer = self._answers.pop(told["id"])
                if not answer.done():
                    answer.set_result(told)
                continue
            params = told.get("params", {})
            if told["method"] == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(params["exceptionDetails"])[:600])
            elif told["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                self.problems.append(json.dumps(params["args"])[:600])
            elif told["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                self.problems.append(json.dumps(params["entry"])[:600])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": self._number, "method": method, "params": params})
        told: dict[str, Any] = await asyncio.wait_for(answer, _WAIT_S)
        assert "error" not in told, told
        result: dict[str, Any] = told["result"]
        return result

    async def value(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        told = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until the expression is true."""
        until = time.monotonic() + _WAIT_S
        while not (value := await self.value(script)):
            assert time.monotonic() < until, f"never true: {script}; {self.problems}"
            await asyncio.sleep(0.1)
        return value

    async def goto(self, url: str) -> None:
        """Open an address, and wait until the page has loaded."""
        told = await self.call("Page.navigate", url=url)
        assert "errorText" not in told, told
        await self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    async def resize(self, width: int, height: int, *, phone: bool = False, scale: float = 1) -> None:
        """The size of the window; a phone also has touch."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        await self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    async def prefer(self, scheme: str) -> None:
        """dark or light."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """With the mouse."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1
            )

    async def swipe(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """With a finger."""
        for kind, points in (("touchStart", [start]), ("touchMove", [end]), ("touchEnd", [])):
            touches = [{"x": x, "y": y} for x, y in points]
            await self.call("Input.dispatchTouchEvent", type=kind, touchPoints=touches)

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """As PNG or JPEG."""
        kind = "jpeg" if path.suffix == ".jpg" else "png"
        extra = {"quality": 82} if kind == "jpeg" else {}
        told = await self.call("Page.captureScreenshot", format=kind, captureBeyondViewport=whole, **extra)
        path.write_bytes(base64.b64decode(told["data"]))


@contextlib.asynccontextmanager
async def open_tab(program: str, folder: Path) -> AsyncIterator[Tab]:
    """Start the browser with a profile in `folder`, and open an empty page."""
    # A session of its own: the browser is many processes, and all of them are ours to end.
    process = await asyncio.create_subprocess_exec(
        program,
        *FLAGS,
        f"--user-data-dir={folder}",
        "about:blank",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port = await _port(folder / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = await answer.json(content_type=None)
            url = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            async with session.ws_connect(url, max_msg_size=0, autoping=True) as socket:
                tab = Tab(socket)
                listening = asyncio.ensure_future(tab.listen())
                for domain in ("Page", "Runtime", "Log"):
                    await tab.call(f"{domain}.enable")
                yield tab
                listening.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _port(file: Path, process: asyncio.subprocess.Process) -> int:
    until = time.monotonic() + _WAIT_S
    while not file.exists() or not file.read_text().strip():
        assert process.returncode is None, "the browser did not start"
        assert time.monotonic() < until, "the browser tells no port"
        await asyncio.sleep(0.1)
    return int(file.read_text().splitlines()[0])


async def photograph(url: str, path: Path, *, after: float = 40.0) -> None:
    """A picture of the live page at `url`, after so many seconds."""
    program = find_browser()
    assert program is not None, "no Chromium here"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with open_tab(program, Path(folder)) as tab:
            await tab.resize(1360, 850)
            await tab.prefer("dark")
            await tab.goto(url)
            await tab.until("page.drawn > 3")
            await tab.value("$('boxes').click()")
            await asyncio.sleep(after)
            await tab.screenshot(path)
            assert tab.problems == [], tab.problems


if __name__ == "__main__":
    asyncio.run(photograph(sys.argv[1], Path(sys.argv[2])))
