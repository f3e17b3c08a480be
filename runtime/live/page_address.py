"""Where the live page listens, who may look, and its settings. Imports no web server."""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ufr_edge.errors import ConfigError, OutputError
from ufr_edge.runtime.video.uri import Uri

TOKEN_LENGTH = 16
"""Characters that a token must have at least."""

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_REASONS = {
    errno.EADDRINUSE: "another program listens on it",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
    errno.EACCES: "ports below 1024 are for root only",
}


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """Settings of the live page.

    token: asked for from everyone who looks; a must unless the address is this machine's own. long_side: pixels;
    larger pictures are shown smaller (a snapshot is not). quality: JPEG's, 1 to 100. most_fps: pictures per second
    that are encoded at most. most_viewers: open pages. stall_s: without a frame for so long, /healthz says 503.
    send_s: a page that takes longer to read a picture, or to answer a ping, is closed. close_s: the server has ended after so long.
    """

    token: str | None = field(default=None, repr=False)
    long_side: int = 1280
    quality: int = 88
    most_fps: float = 30.0
    most_viewers: int = 16
    stall_s: float = 5.0
    send_s: float = 15.0
    close_s: float = 3.0

    def __post_init__(self) -> None:
        if self.token is not None and (
            len(self.token) < TOKEN_LENGTH or not self.token.isascii() or not self.token.isprintable()
        ):
            msg = f"The page's token needs {TOKEN_LENGTH} plain characters or more. Make one: openssl rand -hex 16"
            raise ConfigError(msg)
        most = min(
            self.most_fps, self.most_viewers, self.stall_s, self.send_s, self.close_s, self.long_side - 15
        )
        if most <= 0 or not 1 <= self.quality <= 100:
            msg = "The page's limits must be above 0, long_side 16 or more and quality 1 to 100."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class PageAddress:
    """host: a name or a number, without brackets. port: 0 lets the system choose."""

    host: str
    port: int

    @property
    def local(self) -> bool:
        """Whether only programs of this machine can reach it."""
        return is_local(self.host)

    def url(self, port: int | None = None) -> str:
        """The page's URL; `port` where the system has chosen one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port if port is None else port}/"


def is_local(host: str) -> bool:
    """Whether a host, by its name or number, is this machine talking to itself."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def page_address(uri: Uri) -> PageAddress:
    """Read `http://HOST:PORT`. Raises ConfigError for anything more than that."""
    parts = urlsplit(uri.target)
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None
    if uri.scheme != "http" or more or parts.port is None or not parts.hostname:
        msg = (
            f"{uri.masked}: the live page takes http://HOST:PORT and no more. For https or a path put a web "
            "server before it; a password is --token or UFR_TOKEN."
        )
        raise ConfigError(msg)
    return PageAddress(host=parts.hostname, port=parts.port)


def needs_token(uri: Uri) -> bool:
    """Whether a sink is a live page that others than this machine can reach. Raises ConfigError."""
    return uri.kind == "http" and not page_address(uri).local


def make_token() -> str:
    """A new token: 192 random bits."""
    return secrets.token_urlsafe(24)


def check_free_port(address: PageAddress) -> None:
    """Raise OutputError unless the address can be listened on at this moment."""
    for listener in listen(address):
        listener.close()


def listen(address: PageAddress) -> list[socket.socket]:
    """Sockets that listen, one for each number the host has. Raises OutputError."""
    made: list[socket.socket] = []
    try:
        kind = socket.SOCK_STREAM
        found = socket.getaddrinfo(address.host, address.port, type=kind, flags=socket.AI_PASSIVE)
        for number, (family, *_, where) in enumerate(found):
            port = made[0].getsockname()[1] if made else address.port  # 0 is chosen once
            try:
                made.append(_listen(str(where[0]), port, family))
            except OSError as exc:
                # `localhost` is also ::1 where IPv6 is switched off: one that works will do.
                last = number == len(found) - 1
                if exc.errno not in _NOT_HERE or (last and not made):
                    raise
        return made
    except OSError as exc:
        for one in made:
            one.close()
        raise _translated(exc, address) from None


def _listen(host: str, port: int, family: int) -> socket.socket:
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=64, dualstack_ipv6=both)


def _translated(exc: OSError, address: PageAddress) -> OutputError:
    if isinstance(exc, socket.gaierror):
        why, mend = f"the name is not known ({exc.strerror})", "http://127.0.0.1:8080"
    else:
        why = _REASONS.get(exc.errno or 0, exc.strerror or str(exc))
        mend = f"http://127.0.0.1:{address.port + 1 if 1024 <= address.port < 65535 else 8080}"
    return OutputError(f"The live page cannot listen on {address.url()}: {why}. Try another, such as {mend}")
