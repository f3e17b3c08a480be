"""Making room for a demo in a folder that an earlier one was written to."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path


def clear_written(out: Path, names: Iterable[str]) -> None:
    """Remove what an earlier demo wrote, by name, and nothing else: its finished training must not be gone on with."""
    for name in names:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
