"""Who looks at the live page, and which pictures they get: the newest, and never more than they have asked for.

A page asks for each picture when it has drawn the one before. So a page that stops reading gets no more, nothing
is queued for it but one picture, and when no page asks, nothing is encoded.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from ufr_edge.errors import OutputError
from ufr_edge.runtime.live.page_pictures import Shot

MOST_ASKED = 2
"""Pictures that a page may have asked for and not got: two hide the way there and back."""


@dataclass(frozen=True)
class Packet:
    """An encoded shot, shared by all pages."""

    number: int
    data: bytes = field(repr=False)


class Slot:
    """Holds the newest shot between the pipeline's thread and the server's. Neither ever waits for the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shot: Shot | None = None

    def put(self, shot: Shot) -> None:
        """Replace what is there."""
        with self._lock:
            self._shot = shot

    def newest(self) -> Shot | None:
        """What is there; it stays."""
        with self._lock:
            return self._shot


class Viewer:
    """One open page. For the server's thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._asked = 0
        self._packet: Packet | None = None
        self._ready = asyncio.Event()
        self._seen = 0

    @property
    def queued(self) -> int:
        """Pictures that wait for this page: 0 or 1."""
        return int(self._packet is not None)

    def ask(self) -> None:
        """The page can take one more picture."""
        self._asked = min(self._asked + 1, MOST_ASKED)
        self._wake()

    def waits_for(self, number: int) -> bool:
        """Whether picture `number` would be new to it, and it has asked for one."""
        return self._asked > 0 and self._packet is None and self._seen < number

    def give(self, packet: Packet) -> None:
        """Hand over a picture that it waits for."""
        self._asked -= 1
        self._seen, self._packet = packet.number, packet
        self._ready.set()

    async def next(self) -> Packet:
        """Wait for the picture that comes next."""
        while self._packet is None:
            self._ready.clear()
            await self._ready.wait()
        packet, self._packet = self._packet, None
        self._wake()
        return packet


class Viewers:
    """Encodes the newest shot when somebody waits for it, once for all. For the server's thread."""

    def __init__(
        self, slot: Slot, encode: Callable[[Shot], bytes], *, pool: Executor, most_fps: float
    ) -> None:
        self._slot, self._encode, self._pool, self._period = slot, encode, pool, 1 / most_fps
        self._open: set[Viewer] = set()
        self._wanted = asyncio.Event()
        self._last: Packet | None = None
        self._failing = False
        self.encoded = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def queued(self) -> int:
        """Pictures that wait for all pages together."""
        return sum(viewer.queued for viewer in self._open)

    def wake(self) -> None:
        """A shot came in, or somebody asked: look again."""
        self._wanted.set()

    def join(self) -> Viewer:
        """A page was opened."""
        viewer = Viewer(self.wake)
        self._open.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """A page was closed."""
        self._open.discard(viewer)
        if not self._open:
            self._last = None  # it would be old when the next one comes

    async def serve(self, failed: Callable[[str], None]) -> None:
        """Encode and hand out until cancelled. `failed` is told of pictures that cannot be encoded."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            shot = self._slot.newest()
            if shot is None or not any(viewer.waits_for(shot.number) for viewer in self._open):
                continue
            await self._hand_out(shot, failed)
            # By a timetable, so that a rate just below the limit is not halved by waiting a whole period.
            due = max(due + self._period, loop.time() - self._period)
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _hand_out(self, shot: Shot, failed: Callable[[str], None]) -> None:
        try:
            packet = await self._packed(shot)
        except OutputError as exc:
            if not self._failing:  # once for each run of failures, not for each frame
                failed(str(exc))
            self._failing = True
            return
        self._failing = False
        for viewer in self._open:
            if viewer.waits_for(packet.number):
                viewer.give(packet)

    async def _packed(self, shot: Shot) -> Packet:
        if self._last is not None and self._last.number == shot.number:
            return self._last
        loop = asyncio.get_running_loop()
        self._last = Packet(shot.number, await loop.run_in_executor(self._pool, self._encode, shot))
        self.encoded += 1
        return self._last
