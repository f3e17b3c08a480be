"""Who may look at the live page: the token, where one is set, and no other web site in any case."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from aiohttp import web

from ufr_edge.runtime.live.page_address import is_local

_COOKIE_AGE_S = 30 * 24 * 3600
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send the login form with Origin: null
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
"""Sent with every answer. No script, style or picture from elsewhere; shown in no other site's frame."""


class Guard:
    """Checks a request. The token is compared in constant time and never logged."""

    def __init__(self, token: str | None, *, cookie: str) -> None:
        """cookie: its name; one for each port, as cookies are shared by all ports of a host."""
        self._token, self._cookie = token, cookie
        self._pass = None if token is None else _digest(token)

    def may_look(self, request: web.Request) -> bool:
        """Whether the request carries the token (header, query, cookie), or none is needed."""
        if self._token is None:
            return True
        given = request.headers.get("Authorization", "")
        found = (given[7:] if given[:7].lower() == "bearer " else "", request.query.get("token", ""))
        return any(self.is_token(text) for text in found) or self._has_cookie(request)

    def is_token(self, text: str) -> bool:
        """Whether `text` is the token."""
        # Digests have one length: the comparison does not tell the token's either.
        return self._pass is not None and hmac.compare_digest(_digest(text), self._pass)

    def remember(self, response: web.StreamResponse) -> None:
        """Let the browser in from now on. The cookie is not the token itself."""
        if self._pass is not None:
            response.set_cookie(
                self._cookie, self._pass, max_age=_COOKIE_AGE_S, httponly=True, samesite="Lax", path="/"
            )

    def is_own_page(self, request: web.Request) -> bool:
        """False when another web site is behind the request: by its Origin, or by a host name of its making.

        Without a token the server listens to this machine only, yet any site open in its browser can send
        requests here, under a name that leads to 127.0.0.1 (DNS rebinding). So the name must be a local one.
        """
        host = urlsplit(f"//{request.host}").hostname or ""
        if self._token is None and not is_local(host):
            return False
        origin = request.headers.get("Origin")
        return origin is None or urlsplit(origin).netloc.lower() == request.host.lower()

    def _has_cookie(self, request: web.Request) -> bool:
        given = request.cookies.get(self._cookie, "")
        return self._pass is not None and hmac.compare_digest(given.encode(), self._pass.encode())


def _digest(token: str) -> str:
    return hashlib.sha256(b"ufr-edge live page\0" + token.encode("utf-8", "replace")).hexdigest()
