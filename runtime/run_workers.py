"""Several processes that restore stretches of one film. Each opens the engine and the detector for itself."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from ufr_edge.errors import InferenceError, UfrEdgeError
from ufr_edge.runtime.job import Job, Reopen, prepared
from ufr_edge.runtime.run_parts import Span
from ufr_edge.runtime.run_span import Plan, restore_span
from ufr_edge.runtime.timing import StageCounts
from ufr_edge.runtime.video.opening import open_source

_POLL_S = 0.5
_END_S = 5.0


@dataclass(frozen=True)
class _Frame:
    """One frame was written."""


@dataclass(frozen=True)
class _Ended:
    """A worker has no more to do, or failed."""

    counts: Mapping[str, StageCounts]
    error: UfrEdgeError | None = None


class _OrphanedError(UfrEdgeError):
    """The process that started this one is gone."""


def restore_in_workers(job: Job, plan: Plan, spans: Sequence[Span], reopen: Reopen) -> None:
    """Restore the spans in `plan.config.workers` processes. Raises what one of them raises.

    A worker that dies (killed, out of memory) is an InferenceError; what was finished is kept.
    """
    context = multiprocessing.get_context("spawn")  # engines have threads, which a fork does not survive
    tasks, news = context.Queue(), context.Queue()
    count = min(plan.config.workers, len(spans))
    for task in (*spans, *[None] * count):
        tasks.put(task)
    workers = [
        context.Process(target=_work, args=(plan, reopen, tasks, news), name=f"restore-{n}", daemon=True)
        for n in range(count)
    ]
    try:
        for worker in workers:
            worker.start()
        _listen(job, plan, workers, news)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join(_END_S)
        for pipe in (tasks, news):
            pipe.cancel_join_thread()
            pipe.close()


def _listen(job: Job, plan: Plan, workers: Sequence[BaseProcess], news: Any) -> None:
    running = len(workers)
    while running:
        try:
            item = news.get(timeout=_POLL_S)
        except queue.Empty:
            dead = [worker for worker in workers if worker.exitcode not in (None, 0)]
            if dead:
                msg = (
                    f"Worker {dead[0].name} died (exit code {dead[0].exitcode}), perhaps for want of memory. What was "
                    "finished is kept: run the same command again, with fewer --workers."
                )
                raise InferenceError(msg) from None
            continue
        if isinstance(item, _Frame):
            job.wrote(plan.info.expected)
            continue
        job.clock.merge(item.counts)
        if item.error is not None:
            raise item.error
        running -= 1


def _work(plan: Plan, reopen: Reopen, tasks: Any, news: Any) -> None:
    """What a worker does, in its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process ends the others
    parent = multiprocessing.parent_process()

    def watch(_done: int, _total: int | None) -> None:
        if parent is not None and not parent.is_alive():
            msg = "The process that gave the work is gone."
            raise _OrphanedError(msg)
        news.put(_Frame())

    try:
        with ExitStack() as stack:
            engine = stack.enter_context(reopen())
            config = plan.config
            job = stack.enter_context(prepared(engine, config, None, watch))
            while (span := tasks.get()) is not None:
                with closing(
                    open_source(plan.source, threads=config.threads, partial=config.partial)
                ) as video:
                    restore_span(job, video, plan, span)
            news.put(_Ended(job.clock.counts()))
    except UfrEdgeError as exc:
        news.put(_Ended({}, exc))
