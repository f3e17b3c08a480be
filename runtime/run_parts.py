"""The folder beside an unfinished film, in which its parts wait: whose they are, which are there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av

from ufr_edge import __version__
from ufr_edge.errors import InputFileError
from ufr_edge.files import disk_errors, read_json, write_json
from ufr_edge.runtime.job import RunConfig
from ufr_edge.runtime.lock import file_lock
from ufr_edge.runtime.pipeline import Restores
from ufr_edge.runtime.video.parts import PartRecord, read_record
from ufr_edge.runtime.video.source import SourceFrame

_LOCK_S = 1.0
_SPANS_EACH = 4  # stretches for each worker at least, so that all end at about the same time
_LONGEST = 6  # windows of a stretch


@dataclass(frozen=True)
class Span:
    """Windows `first` to `last` (outside); last None: to the end of the film."""

    first: int
    last: int | None


@dataclass(frozen=True, kw_only=True)
class PartFolder:
    """Parts by window: window n begins `window` * n seconds after `start`."""

    path: Path
    window: Fraction
    start: Fraction

    def part(self, index: int) -> Path:
        """Where the part of a window lies, or will."""
        return self.path / f"{index:07d}.part"

    def begin(self, index: int) -> Fraction:
        """When a window begins, in seconds."""
        return self.start + index * self.window

    def of(self, frame: SourceFrame) -> int:
        """The window of a frame."""
        return max(0, int((frame.pts * frame.time_base - self.start) // self.window))

    def finished(self) -> dict[int, PartRecord]:
        """The parts that are there; a damaged one is taken away."""
        out = {}
        for path in sorted(self.path.glob("*.part")):
            try:
                out[int(path.stem)] = read_record(path)
            except InputFileError:
                path.unlink()
        return out

    def missing(self, finished: dict[int, PartRecord], *, end: Fraction | None, workers: int) -> list[Span]:
        """What is left to do: few stretches for one worker, many for several."""
        known = max(finished, default=-1) + 1
        if workers > 1 and end is not None:
            known = max(known, int((end - self.start) // self.window))
        left = [index for index in range(known) if index not in finished]
        longest = known if workers == 1 else max(1, min(_LONGEST, len(left) // (_SPANS_EACH * workers)))
        spans: list[Span] = []
        for index in left:
            last = spans[-1] if spans else None
            if last is not None and last.last == index and index - last.first < longest:
                spans[-1] = Span(last.first, index + 1)
            else:
                spans.append(Span(index, index + 1))
        return [*spans, Span(known, None)]

    @contextmanager
    def held(self, key: str) -> Iterator[tuple[str, ...]]:
        """Hold the folder for one run; parts of another job in it are thrown away, and the note says so.

        A folder in which nothing was finished is taken away at the end. Raises OutputError when another run has it.
        """
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with file_lock(self.path / "lock", timeout_s=_LOCK_S):
            notes = self._claim(key)
            try:
                yield notes
            finally:
                if not any(self.path.glob("*.part")):
                    self.clear()

    def clear(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _claim(self, key: str) -> tuple[str, ...]:
        whose = self.path / "job.json"
        try:
            known = read_json(whose).get("key")
        except (InputFileError, AttributeError):
            known = None
        for path in self.path.glob("*.tmp"):
            path.unlink()  # of a run that was killed: the lock is ours
        if known == key:
            return ()
        old = list(self.path.glob("*.part"))
        for path in old:
            path.unlink()
        write_json(whose, {"key": key})
        return (f"{len(old)} parts of a run with other settings were thrown away.",) if old else ()


def job_key(source: str | Path, engine: Restores, config: RunConfig) -> str:
    """What must be the same for parts to be of one film: source, engine, settings and versions, as SHA-256."""
    encode = replace(config.encode, threads=None)
    settings = replace(
        config, encode=encode, threads=None, workers=1, overwrite=False, pipeline=config.pipeline
    )
    info = replace(engine.info, threads=None)
    facts = (
        __version__,
        av.__version__,
        str(source),
        _stamp(Path(source)),
        info,
        _stamp(info.path),
        settings,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def kept_frames(out: Path) -> int:
    """Frames that an interrupted run to `out` has finished and kept."""
    folder = PartFolder(path=out.parent / f".{out.name}.parts", window=Fraction(1), start=Fraction(0))
    return sum(record.frames for record in folder.finished().values())


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
