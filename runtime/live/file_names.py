"""File names with the time in them, so that each run of a service writes a file of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.video.uri import Uri

KNOWN = "YmdHMSjyz"
_PART = re.compile(r"%(.?)", re.DOTALL)


def with_time(text: str, now: datetime) -> str:
    """`cam-%Y%m%d-%H%M%S.mkv` with the parts of `now` (as strftime) put in; %% is a percent sign.

    Raises ConfigError for any other use of %.
    """

    def part(found: re.Match[str]) -> str:
        letter = found[1]
        if letter == "%":
            return "%"
        if not letter or letter not in KNOWN:
            names = " ".join(f"%{known}" for known in KNOWN)
            msg = f"{text}: %{letter} is no part of a time. Known are {names}; write %% for a percent sign."
            raise ConfigError(msg)
        return now.strftime(f"%{letter}")

    return _PART.sub(part, text)


def sink_at(uri: Uri, now: datetime) -> Uri:
    """A sink's address with the time in its name, where it is a file or folder; others as they are."""
    if uri.kind != "path":
        return uri
    name = with_time(uri.target, now)
    return replace(uri, target=name, masked=name)
