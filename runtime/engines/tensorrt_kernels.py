"""The kernels that TensorRT for RTX makes on the device when an engine first runs, kept in a file for the next start."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ufr_edge.errors import OutputError
from ufr_edge.files import atomic_file, cache_folder, sha256_file

_LOG = logging.getLogger(__name__)

KEEP = 32
"""Of the files in the folder, those written last are kept."""


def kernel_file(engine: Path, *, version: str, gpu: str, folder: Path | None = None) -> Path:
    """Where the kernels of an engine file lie, for one TensorRT version and GPU. folder: None = `kernels` in the cache."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{version}-{gpu}")
    return (folder or cache_folder() / "kernels") / f"{sha256_file(engine)[:32]}-{words}.cache"


class KernelCache:
    """An engine's kernels: read from `path` where it is there, written back by `save` when there are new ones.

    TensorRT compares what is in the file with version, driver and GPU, and takes nothing that does not fit; such a file
    is written anew. That there is no file, or that none can be written, costs time and is no error.
    """

    def __init__(self, engine: Any, path: Path) -> None:
        self._path = path
        self._config: Any = engine.create_runtime_config()
        self._cache: Any = self._config.create_runtime_cache()
        self._known = b""
        with suppress(OSError):
            self._known = path.read_bytes()
        if self._known and not self._cache.deserialize(self._known):
            _LOG.info("%s is damaged or of another version or driver; it is made anew.", path)
            self._known = b""
        self._config.set_runtime_cache(self._cache)

    def context(self, engine: Any) -> Any:
        """An execution context of `engine` that takes its kernels from here; None where TensorRT makes none."""
        return engine.create_execution_context(self._config)

    def save(self) -> None:
        """Write the kernels where they are not those that were read; remove the files written longest ago."""
        blob = self._cache.serialize()
        content = b"" if blob is None else bytes(memoryview(blob))
        if not content or content == self._known:
            return
        try:
            with atomic_file(self._path, mode=0o600) as beside:
                beside.write_bytes(content)
            self._known = content
            _prune(self._path.parent)
        except (OutputError, OSError) as exc:
            _LOG.info("The kernels were not kept: %s", exc)


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("[0-9a-f]*.cache"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[KEEP:]:
        path.unlink(missing_ok=True)
