"""A stream over a folder of installed versions: opened at the current one, exchanged when another becomes current."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ufr_edge.errors import BundleError, InferenceError, InputFileError, ModelFileError
from ufr_edge.runtime.bundle import read_bundle
from ufr_edge.runtime.fingerprint_files import bundle_fingerprint
from ufr_edge.runtime.live.events import EventLog
from ufr_edge.runtime.live.session import open_engines
from ufr_edge.runtime.live.shadow import SwapConfig
from ufr_edge.runtime.live.stages import ChoosesEngine
from ufr_edge.runtime.live.stream import LiveStream
from ufr_edge.runtime.live.swap import EngineSlot, Loaded
from ufr_edge.runtime.live.watcher import SwapWatcher, Versions
from ufr_edge.runtime.version_link import linked_number, version_path
from ufr_edge.runtime.versions import current_version, refuse_version, rollback

_SIDE = 256  # to warm up engines that take any side


@dataclass(frozen=True, kw_only=True)
class EngineWish:
    """Which engines of each version to open; see `open_engines`."""

    engine: str | None = None
    smaller: str | None = None
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class LiveEngines:
    """Open engines, and the watcher that exchanges them; None for a single bundle, which stays as it is."""

    engines: ChoosesEngine
    watch: Callable[[LiveStream], SwapWatcher] | None = None

    @contextmanager
    def watching(self, stream: LiveStream) -> Iterator[SwapWatcher | None]:
        """Exchange the engines of `stream` while the block runs, where there are versions to exchange."""
        if self.watch is None:
            yield None
            return
        with self.watch(stream).watching() as watcher:
            yield watcher


@contextmanager
def open_live_engines(
    bundle: Path, wish: EngineWish | None = None, *, swap: SwapConfig | None = None, events: EventLog
) -> Iterator[LiveEngines]:
    """Open the engines of a bundle, or of the current version of a folder of versions, to be watched.

    A current version that is damaged is left for the one before it. Raises as `open_engines`.
    """
    wish, swap = wish or EngineWish(), swap or SwapConfig()
    if linked_number(bundle) is None:
        with open_engines(bundle, **vars(wish)) as engines:
            yield LiveEngines(engines=engines)
        return
    slot = EngineSlot(_first(bundle, wish, events), every=swap.every)
    versions = Versions(
        current=partial(linked_number, bundle),
        load=partial(load_version, bundle, wish),
        refuse=lambda number, instead, reason: refuse_version(bundle, number, instead=instead, reason=reason),
    )

    def watch(stream: LiveStream) -> SwapWatcher:
        labels = stream.board.labels
        return SwapWatcher(
            slot,
            versions,
            swap,
            events=events,
            deadline_ms=lambda: labels.deadline_ms,
            short=lambda: stream.snapshot().short,
            on_change=partial(_tell, stream, bundle),
        )

    try:
        yield LiveEngines(engines=slot, watch=watch)
    finally:
        for loaded in filter(None, (slot.loaded, slot.back)):
            loaded.close()


def load_version(folder: Path, wish: EngineWish, number: int) -> Loaded:
    """Open a version's engines and run each once. Raises as `open_engines`, InferenceError."""
    with ExitStack() as stack:
        engines = stack.enter_context(open_engines(version_path(folder, number), **vars(wish)))
        for engine in filter(None, (engines.full, engines.smaller)):
            side = engine.info.side or _SIDE
            engine.infer(np.zeros((1, side, side, 3), np.uint8))
        return Loaded(number=number, engines=engines, close=stack.pop_all().close)


def _first(folder: Path, wish: EngineWish, events: EventLog) -> Loaded:
    while True:
        number = current_version(folder).number
        try:
            return load_version(folder, wish, number)
        except (BundleError, ModelFileError, InferenceError) as exc:
            try:
                instead = rollback(folder, reason=f"it does not load: {exc}").number
            except (InputFileError, BundleError):
                raise exc from None
            text = f"version {number} does not load, version {instead} is current again: {exc}"
            events.add("rollback", text, level=logging.WARNING)


def _tell(stream: LiveStream, folder: Path, loaded: Loaded) -> None:
    """Let the numbers, and the watch for drift, go by the version that runs."""
    info, labels = loaded.engines.full.info, stream.board.labels
    labels.engine, labels.device, labels.bundle_version = info.describe(), info.device, loaded.number
    if stream.observer is None:
        return
    reference = bundle_fingerprint(read_bundle(version_path(folder, loaded.number)))
    if reference is not None and reference.side == info.side:
        stream.observer.adopt(reference)
