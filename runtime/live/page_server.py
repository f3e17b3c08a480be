"""The web server of the live page: its addresses, and what each answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib import resources

from aiohttp import WSCloseCode, WSMsgType, web

from ufr_edge.errors import OutputError
from ufr_edge.runtime.live.page_address import PageConfig
from ufr_edge.runtime.live.page_board import PageBoard
from ufr_edge.runtime.live.page_guard import HEADERS, Guard
from ufr_edge.runtime.live.page_pictures import encode_snapshot
from ufr_edge.runtime.live.page_viewers import Slot, Viewer, Viewers

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_ASSETS = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/plots.js": ("plots.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_OPEN_TO_ALL = frozenset({"/page.css", "/icon.svg"})  # the page that asks for the token uses them
_METRICS = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
_BODY_BYTES = 4096
_SAMPLE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the server works with. tell: adds an event to the stream's log."""

    config: PageConfig
    board: PageBoard
    slot: Slot
    viewers: Viewers
    pool: Executor
    guard: Guard
    tell: Callable[[str, str], None]


class PageServer:
    """Answers requests. For the server's thread."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._files = {path: _asset(name) for path, (name, _) in _ASSETS.items()}
        self._login = _asset("login.html")
        self._sockets: set[web.WebSocketResponse] = set()
        self._snapshot = asyncio.Lock()

    def application(self) -> web.Application:
        """The application, for a runner."""
        app = web.Application(middlewares=[self._check], client_max_size=_BODY_BYTES)
        app.on_response_prepare.append(_add_headers)
        app.on_shutdown.append(self._hang_up)
        app.router.add_routes(
            [
                *(web.get(path, self._file) for path in _ASSETS),
                web.post("/", self._log_in),
                web.get("/frames", self._frames),
                web.get("/stats.json", self._stats),
                web.get("/history.json", self._history),
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._health),
                web.get("/snapshot.{suffix:png|jpg}", self._snap),
            ]
        )
        return app

    async def work(self) -> None:
        """Encode and sample until cancelled."""
        parts = self._parts
        serving = asyncio.ensure_future(parts.viewers.serve(lambda text: parts.tell("failed", text)))
        try:
            while True:
                await asyncio.sleep(_SAMPLE_S)
                parts.board.sample()
                if serving.done():
                    serving.result()
        finally:
            serving.cancel()

    @web.middleware  # type: ignore[untyped-decorator]
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        guard = self._parts.guard
        if not guard.is_own_page(request):
            return web.Response(status=403, text="Asked for by another site.\n")
        if request.method == "POST" or request.path in _OPEN_TO_ALL or guard.may_look(request):
            return await handler(request)
        if request.path == "/":
            return web.Response(status=401, body=self._login, content_type="text/html", charset="utf-8")
        return web.Response(
            status=401, text="The token is missing or wrong.\n", headers={"WWW-Authenticate": "Bearer"}
        )

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/" and "token" in request.query:
            return self._let_in()  # so that the token is in no address bar and no history
        kind = _ASSETS[request.path][1]
        return web.Response(body=self._files[request.path], content_type=kind, charset="utf-8")

    async def _log_in(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        if not self._parts.guard.is_token(str(form.get("token", "")).strip()):
            wrong = self._login.replace(b"<!--wrong-->", b'<p role="alert">That is not the token.</p>')
            return web.Response(status=401, body=wrong, content_type="text/html", charset="utf-8")
        return self._let_in()

    def _let_in(self) -> web.StreamResponse:
        response = web.Response(status=303, headers={"Location": "/"})
        self._parts.guard.remember(response)
        return response

    async def _stats(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._parts.board.to_json(viewers=len(self._parts.viewers)))

    async def _history(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._parts.board.history())

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        text = self._parts.board.metrics(viewers=len(self._parts.viewers))
        return web.Response(body=text.encode(), headers=_METRICS)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        health = self._parts.board.health()
        return web.json_response(health.to_json(), status=200 if health.ok else 503)

    async def _snap(self, request: web.Request) -> web.StreamResponse:
        shot = self._parts.slot.newest()
        if shot is None:
            return web.Response(status=503, text="There is no frame yet.\n")
        suffix = request.match_info["suffix"]
        async with self._snapshot:  # one at a time: a PNG of two large pictures is work
            loop = asyncio.get_running_loop()
            try:
                data = await loop.run_in_executor(self._parts.pool, encode_snapshot, shot, f".{suffix}")
            except OutputError as exc:
                return web.Response(status=500, text=f"{exc}\n")
        name = f"ufr-edge-{time.strftime('%Y%m%d-%H%M%S')}-{shot.index:06d}.{suffix}"
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        kind = "image/png" if suffix == "png" else "image/jpeg"
        return web.Response(body=data, content_type=kind, headers=disposition)

    async def _frames(self, request: web.Request) -> web.StreamResponse:
        if len(self._parts.viewers) >= self._parts.config.most_viewers:
            return web.Response(status=503, text="Too many pages are open.\n")
        limit = self._parts.config.send_s
        socket = web.WebSocketResponse(heartbeat=limit, compress=False, max_msg_size=256)
        viewer = self._parts.viewers.join()
        sending: asyncio.Future[None] | None = None
        try:
            await socket.prepare(request)
            self._sockets.add(socket)
            sending = asyncio.ensure_future(self._send(socket, viewer, request))
            async for message in socket:
                if message.type is not WSMsgType.TEXT or message.data != "next":
                    break
                viewer.ask()
        finally:
            self._parts.viewers.leave(viewer)
            self._sockets.discard(socket)
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return socket

    async def _send(self, socket: web.WebSocketResponse, viewer: Viewer, request: web.Request) -> None:
        limit = self._parts.config.send_s
        while not socket.closed:
            packet = await viewer.next()
            try:
                await asyncio.wait_for(socket.send_bytes(packet.data), limit)
            except (asyncio.TimeoutError, ConnectionError):
                # It reads no more, so it would not read a farewell either.
                if request.transport is not None:
                    request.transport.abort()
                return

    async def _hang_up(self, app: web.Application) -> None:
        closing = [s.close(code=WSCloseCode.GOING_AWAY, message=b"the stream ended") for s in self._sockets]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), 0.5)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _asset(name: str) -> bytes:
    return resources.files("ufr_edge.runtime.live").joinpath("assets", name).read_bytes()
