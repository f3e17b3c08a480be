"""Progress bars (rich) on standard error, silent when not wanted or not at a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]
"""Call it as `advance(n=1, note="")`: n units are done, and a short note to show."""


@contextmanager
def progress_bar(title: str, total: int | None, *, done: int = 0, show: bool = True) -> Iterator[Advance]:
    """Yield `advance(n=1, note="")`. `total` None draws a bar without an end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(n: int = 1, note: str = "") -> None:
            bar.update(task, advance=n, **({"note": note} if note else {}))  # type: ignore[arg-type]

        yield advance
