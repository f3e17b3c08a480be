"""Source and sink URIs, and the hiding of the credentials that they may carry."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ufr_edge.errors import ConfigError

HIDDEN = "***"
# Greedy on purpose: a password may hold "@" or "/"; rather too much is hidden than too little.
_USER = re.compile(r"(?<=://)[^\s'\"]*@")
_USER_OF_ONE = re.compile(r"(?<=://).*@")
_SECRET = re.compile(
    r"(?i)([?&\s]|^)([\w-]*(?:password|passwd|pwd|pass|token|secret|auth|key|user|user-id|user-pw|signature|sig))="
    r"(\"[^\"]*\"|'[^']*'|[^&\s#'\",)]+)"
)
_SCHEMES = {
    "csi": "csi",
    "display": "display",
    "file": "path",
    "http": "http",
    "https": "http",
    "null": "null",
    "rtmp": "net",
    "rtsp": "net",
    "rtsps": "net",
    "synthetic": "synthetic",
    "tcp": "net",
    "udp": "net",
    "v4l2": "device",
}


@dataclass(frozen=True, kw_only=True)
class Uri:
    """What a source or sink argument says.

    kind: path, glob, device, csi, gst, net (rtsp, udp, ...), http, synthetic, display or null.
    target: what to open, credentials and all; never printed (`repr` leaves it out). masked: the same for
    logs, manifests, pages and messages. options: the query, for the kinds that are ours to read.
    """

    kind: str
    scheme: str
    target: str = field(repr=False)
    masked: str
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.masked

    def hide(self, text: str) -> str:
        """Another library's message with this address, and any other credentials, hidden."""
        return mask(text.replace(self.target, self.masked) if self.masked != self.target else text)

    @property
    def path(self) -> Path:
        """The target as a path, for the kinds path, glob and device."""
        return Path(self.target)

    def only(self, known: Collection[str]) -> None:
        """Raise ConfigError when the query holds a setting that is not `known`."""
        if unknown := set(self.options) - set(known):
            msg = f"{self.masked}: unknown setting {sorted(unknown)}. Known are {sorted(known)}."
            raise ConfigError(msg)

    def size(self) -> tuple[int, int] | None:
        """`size=1280x720` of the query as (width, height). Raises ConfigError."""
        text = self.options.get("size")
        if text is None:
            return None
        parts = text.split("x")
        if len(parts) != 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
            msg = f"{self.masked}: size {text} cannot be understood. Write size=1280x720"
            raise ConfigError(msg)
        return int(parts[0]), int(parts[1])

    def rate(self) -> Fraction | None:
        """`rate=30` (or 30000/1001) of the query. Raises ConfigError."""
        text = self.options.get("rate")
        try:
            rate = None if text is None else Fraction(text)
        except (ValueError, ZeroDivisionError):
            rate = Fraction(0)
        if rate is not None and not 0 < rate <= 1000:
            msg = f"{self.masked}: rate {text} cannot be understood. Write rate=30"
            raise ConfigError(msg)
        return rate


def parse_uri(text: str | Path) -> Uri:
    """Understand a source or sink: a path, folder or glob, `0`, `/dev/video0`, `v4l2:///dev/video0`,
    `csi://0`, `gst:PIPELINE`, `rtsp://`, `udp://`, `http(s)://`, `synthetic://`, `display://`, `null://`.

    Raises ConfigError for another scheme or an empty text; the message hides credentials.
    """
    given = str(text)
    if not given.strip():
        msg = "The source or sink is empty. Give a path or an address."
        raise ConfigError(msg)
    if isinstance(text, str):
        if given.startswith("gst:"):
            return Uri(kind="gst", scheme="gst", target=given[4:].strip(), masked=mask(given))
        if given.isdecimal() or re.match(r"/dev/video\d+", given):
            return _ours("device", "v4l2", given)
        if "://" in given:
            return _with_scheme(given)
    kind = "glob" if any(c in given for c in "*?[") and not Path(given).exists() else "path"
    return Uri(kind=kind, scheme="file", target=given, masked=given)


def mask(text: str) -> str:
    """Hide user names, passwords, tokens and keys of every address in `text`."""
    return _SECRET.sub(rf"\1\2={HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


def _with_scheme(given: str) -> Uri:
    scheme = given.split("://", 1)[0].lower()
    masked = mask(_USER_OF_ONE.sub(f"{HIDDEN}@", given))
    kind = _SCHEMES.get(scheme)
    if kind is None:
        msg = (
            f"{masked}: addresses of the kind {scheme}:// are not supported. "
            f"Known are {', '.join(f'{name}://' for name in sorted(_SCHEMES))} and gst:"
        )
        raise ConfigError(msg)
    if kind in ("net", "http"):
        if not _host(given):
            msg = f"{masked} names no host. Write {scheme}://HOST:PORT/PATH"
            raise ConfigError(msg)
        return Uri(kind=kind, scheme=scheme, target=given, masked=masked)
    rest = given.split("://", 1)[1]
    return _ours(kind, scheme, given if kind == "synthetic" else rest, masked=masked)


def _host(given: str) -> str | None:
    try:
        parts = urlsplit(given)
        _ = parts.port  # raises when it is no number
        return parts.hostname or ("any" if parts.port else None)  # udp://@:1234 listens on all
    except ValueError:
        return None


def _ours(kind: str, scheme: str, rest: str, masked: str | None = None) -> Uri:
    """An address whose query is for us to read."""
    target, _, query = rest.partition("?")
    options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    return Uri(kind=kind, scheme=scheme, target=target, masked=masked or mask(rest), options=options)
