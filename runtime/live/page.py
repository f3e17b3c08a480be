"""`http://HOST:PORT`: the live page as a sink. The server has a thread of its own; the pipeline never waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from aiohttp import web

from ufr_edge.errors import ConfigError, OutputError
from ufr_edge.runtime.live.page_address import PageConfig, check_free_port, listen, page_address
from ufr_edge.runtime.live.page_board import PageBoard
from ufr_edge.runtime.live.page_guard import Guard
from ufr_edge.runtime.live.page_pictures import encode_pair, shot_of
from ufr_edge.runtime.live.page_server import PageServer, Parts
from ufr_edge.runtime.live.page_viewers import Slot, Viewers
from ufr_edge.runtime.live.sinks import LiveFrame, SinkContext
from ufr_edge.runtime.video.uri import Uri

_OPEN_S = 10.0
_SHUTDOWN_S = 0.5  # of aiohttp, for connections that are in the middle of an answer


class PageSink:
    """Shows the stream on a web page. `write` puts the frame where the server finds it, and returns at once."""

    def __init__(self, uri: Uri, config: PageConfig | None = None) -> None:
        """Raises ConfigError (not local, and no token), OutputError (the port is in use)."""
        self.name, self._config = uri.masked, config or PageConfig()
        self._address = page_address(uri)
        if not self._address.local and self._config.token is None:
            msg = (
                f"{self.name} can be reached by others, so it needs a token: --token or UFR_TOKEN. "
                f"For this machine only: http://127.0.0.1:{self._address.port}"
            )
            raise ConfigError(msg)
        check_free_port(self._address)
        self._slot, self._frames = Slot(), 0
        self._server: _Server | None = None
        self._board: PageBoard | None = None

    @property
    def url(self) -> str:
        """Where the page is, without the token; with the port that the system chose when it was 0."""
        return self._address.url(None if self._server is None else self._server.port)

    @property
    def encoded(self) -> int:
        """Pairs of pictures encoded so far."""
        return 0 if self._server is None else self._server.viewers.encoded

    @property
    def queued(self) -> int:
        """Pictures that wait to be sent, all open pages together: at most one for each."""
        return 0 if self._server is None else self._server.viewers.queued

    def open(self, context: SinkContext) -> None:
        """Start to listen. Raises OutputError."""
        self._board = PageBoard(context, stall_s=self._config.stall_s)
        sockets = listen(self._address)

        def tell(kind: str, text: str) -> None:
            context.events.add(kind, f"live page: {text}", level=logging.WARNING)

        self._server = _Server(sockets, self._config, self._board, self._slot, tell)
        self._server.start()
        context.events.add("page", f"live page at {self.url}")

    def write(self, frame: LiveFrame) -> None:
        """Show the frame to whoever looks. Raises OutputError when the server has died."""
        server, board = self._server, self._board
        if server is None or board is None:
            msg = f"{self.name} is not open. Call open() first."
            raise OutputError(msg)
        self._frames += 1
        captured = frame.frame.captured
        board.frame((time.monotonic() - captured) * 1000 if captured else 0.0)
        self._slot.put(shot_of(frame, self._frames))
        server.frame_came()

    def close(self) -> None:
        """Stop the server; it has ended after `close_s` at the latest. Twice is fine."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()


class _Server:
    """The thread, its event loop and what lives in it."""

    def __init__(
        self,
        sockets: list[socket.socket],
        config: PageConfig,
        board: PageBoard,
        slot: Slot,
        tell: Callable[[str, str], None],
    ) -> None:
        self._sockets, self._config, self._tell = sockets, config, tell
        self.port: int = sockets[0].getsockname()[1]
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="ufr-page")
        encode = partial(encode_pair, long_side=config.long_side, quality=config.quality)
        self.viewers = Viewers(slot, encode, pool=self._pool, most_fps=config.most_fps)
        guard = Guard(config.token, cookie=f"ufr_edge_{self.port}")
        self._parts = Parts(
            config=config,
            board=board,
            slot=slot,
            viewers=self.viewers,
            pool=self._pool,
            guard=guard,
            tell=tell,
        )
        self._ready, self._error = threading.Event(), ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="ufr-page", daemon=True)

    def start(self) -> None:
        """Return when it answers. Raises OutputError."""
        self._thread.start()
        if not self._ready.wait(_OPEN_S) or self._error:
            self.stop()
            msg = f"The live page did not start: {self._error or f'no answer within {_OPEN_S:g} s'}."
            raise OutputError(msg)

    def frame_came(self) -> None:
        """Wake whoever waits for a frame. Raises OutputError when the server has died."""
        if self._error:
            msg = f"The live page has died: {self._error}."
            raise OutputError(msg)
        if len(self.viewers):
            self._call(self.viewers.wake)

    def stop(self) -> None:
        """End it, within the time limit."""
        if self._stop is not None:
            self._call(self._stop.set)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._thread.join(self._config.close_s)
        if self._thread.is_alive():
            self._tell("stuck", f"it did not end within {self._config.close_s:g} s")

    def _call(self, act: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(act)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as exc:  # noqa: BLE001 - the border of the thread: write() raises it
            self._error = f"{type(exc).__name__}: {exc}"
        finally:
            self._ready.set()
            for listening in self._sockets:
                listening.close()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = PageServer(self._parts)
        # No access log: it would hold the token of a first visit.
        runner = web.AppRunner(
            server.application(), access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_S
        )
        try:
            await runner.setup()
            for listening in self._sockets:
                await web.SockSite(runner, listening).start()
            work, stop = asyncio.ensure_future(server.work()), asyncio.ensure_future(self._stop.wait())
            self._ready.set()
            done, left = await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            for task in done:
                task.result()
        finally:
            await runner.cleanup()
