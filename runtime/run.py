"""Restoring the faces of a picture, a folder of pictures, or a video."""

from __future__ import annotations

import time
from pathlib import Path

from ufr_edge.errors import InputFileError, OutputError
from ufr_edge.files import check_free
from ufr_edge.runtime.faces.detect import Detects
from ufr_edge.runtime.images import is_image, list_images, read_image, write_image
from ufr_edge.runtime.job import Job, Reopen, RunConfig, Watch, open_detector, prepared
from ufr_edge.runtime.pipeline import Restores
from ufr_edge.runtime.report import RunReport
from ufr_edge.runtime.run_video import check_out, run_video

__all__ = ["RunConfig", "Watch", "open_detector", "run_folder", "run_image", "run_path", "run_video"]


def run_path(
    source: str | Path,
    out: Path,
    engine: Restores,
    config: RunConfig | None = None,
    *,
    detector: Detects | None = None,
    watch: Watch | None = None,
    reopen: Reopen | None = None,
) -> RunReport:
    """Restore `source` (picture, folder of pictures, video, `synthetic://`) into `out` of the same kind.

    engine: an open `Engine`. detector: one that is open already; else CenterFace is opened here, on the
    engine's backend where that can run it. reopen: opens the engine again, for `config.workers` above 1.
    Raises InputFileError, OutputError, ConfigError, InferenceError, BackendUnavailableError; `out` is written
    whole or not at all. What was finished of a video is kept beside it: the same call goes on from there.
    """
    path = Path(source)
    if not isinstance(source, str) or "://" not in source:
        if not path.exists():
            msg = f"{path} does not exist. Check the path."
            raise InputFileError(msg)
        if path.is_dir() or is_image(path):
            run = run_folder if path.is_dir() else run_image
            return run(path, out, engine, config, detector=detector, watch=watch)
    return run_video(source, out, engine, config, detector=detector, watch=watch, reopen=reopen)


def run_image(
    source: str | Path,
    out: Path,
    engine: Restores,
    config: RunConfig | None = None,
    *,
    detector: Detects | None = None,
    watch: Watch | None = None,
) -> RunReport:
    """`run_path` for one picture."""
    path, config = Path(source), config or RunConfig()
    out = check_out(path, out, config)
    with prepared(engine, config, detector, watch) as job:
        started = time.perf_counter()
        _one_image(job, path, out, total=1)
        return job.report("image", str(path), out, started)


def run_folder(
    source: str | Path,
    out: Path,
    engine: Restores,
    config: RunConfig | None = None,
    *,
    detector: Detects | None = None,
    watch: Watch | None = None,
) -> RunReport:
    """`run_path` for a folder of pictures; names are kept.

    A damaged picture does not stop the others: they are written, then InputFileError names the damaged.
    """
    folder, config = Path(source), config or RunConfig()
    pictures = list_images(folder)
    if out.resolve() == folder.resolve():
        msg = f"{out} is the input folder itself. Choose another output."
        raise OutputError(msg)
    if out.is_file():
        msg = f"{out} is a file; a folder goes into a folder. Choose another output."
        raise OutputError(msg)
    check_free(out, overwrite=config.overwrite)
    damaged: list[str] = []
    with prepared(engine, config, detector, watch) as job:
        started = time.perf_counter()
        for path in pictures:
            try:
                _one_image(job, path, out / path.name, total=len(pictures))
            except InputFileError as exc:
                damaged.append(str(exc))
        if damaged:
            msg = f"{len(damaged)} of {len(pictures)} pictures were left out, the rest is in {out}: "
            raise InputFileError(msg + " ".join(damaged[:5]))
        return job.report("folder", str(folder), out, started)


def _one_image(job: Job, path: Path, out: Path, *, total: int) -> None:
    with job.clock.stage("decode"):
        frame = read_image(path)
    done = job.new_work()(frame, str(path), None)
    job.tally.saw(done.count, done.skipped)
    with job.clock.stage("encode"):
        write_image(out, done.image)
    job.wrote(total)
