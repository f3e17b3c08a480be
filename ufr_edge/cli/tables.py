"""Tables on standard output, as wide as they need to be when it is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ufr_edge.runtime.manifest import ParityInfo


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a title line."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=160)
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def parity_cells(parity: ParityInfo | None) -> list[str]:
    """PSNR, largest and mean difference (uint8 levels) and image count as cells; dashes when not measured."""
    if parity is None:
        return ["not measured here", "-", "-", "-"]
    same = "identical" if parity.max_abs == 0 else f"{parity.psnr_db:.1f} dB"
    return [same, f"{parity.max_abs:g}", f"{parity.mean_abs:.3f}", f"{parity.images} images"]
