"""The same re-adaptation for many cameras: one after the other, or shared over the processes of `accelerate launch`.

    OUT/NAME/       the work folder of camera NAME, as of `readapt`
    OUT/NAME.json   what came of it

Each camera is adapted whole by one process, so what comes of it does not depend on how many there are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ufr_edge.adaptation.readapt import ReadaptConfig, ReadaptReport, Tell, readapt
from ufr_edge.adaptation.readapt_record import register_readapt
from ufr_edge.adaptation.workers import Crew, alone
from ufr_edge.config import from_json, load_config, to_json
from ufr_edge.errors import (
    BundleError,
    ConfigError,
    GateFailedError,
    InputFileError,
    TrainingError,
    UfrEdgeError,
)
from ufr_edge.files import read_json, write_json
from ufr_edge.runtime.lock import file_lock
from ufr_edge.runtime.registry import is_known
from ufr_edge.runtime.version_link import linked_number
from ufr_edge.runtime.versions import history

Adapt = Callable[..., ReadaptReport]
"""`readapt`, or what takes the same arguments."""

log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class CameraJob:
    """One camera of a jobs file. settings: its own, over those of the file. The rest: as `readapt` takes it."""

    name: str
    bundle: Path
    faces: Path
    weights: str | None = None
    real: Path | None = None
    keep: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FleetJobs:
    """A jobs file. settings, real: of all cameras that have none of their own."""

    cameras: tuple[CameraJob, ...]
    settings: ReadaptConfig = field(default_factory=ReadaptConfig)
    real: Path | None = None


@dataclass(frozen=True, kw_only=True)
class CameraTask:
    """One camera with all its settings; paths are absolute."""

    name: str
    bundle: Path
    faces: Path
    config: ReadaptConfig
    weights: str | None = None
    real: Path | None = None
    keep: int | None = None


@dataclass(frozen=True, kw_only=True)
class CameraResult:
    """What came of a camera. "made": `bundle`, installed as `installed` where there is a folder of versions, `model`
    in the registry. "refused" by a gate, "failed" by an error: `reason`. new: by this call, not an earlier one.
    """

    camera: str
    state: Literal["made", "refused", "failed"]
    reason: str = ""
    bundle: str = ""
    installed: str = ""
    model: str = ""
    new: bool = True


@dataclass(frozen=True, kw_only=True)
class FleetReport:
    """One result for each camera, in the order of the jobs."""

    results: tuple[CameraResult, ...]

    def raise_if_failed(self) -> None:
        """Raise TrainingError naming the cameras that failed, else GateFailedError those that were refused."""
        for state, error, text in (
            ("failed", TrainingError, "failed: {}. The same command tries them again"),
            ("refused", GateFailedError, "were refused by a gate and keep their bundle: {}"),
        ):
            names = [item.camera for item in self.results if item.state == state]
            if names:
                msg = f"{len(names)} of {len(self.results)} cameras {text.format(', '.join(names))}."
                raise error(msg)


@dataclass(frozen=True, kw_only=True)
class FleetPlace:
    """Where results go: `out`, and the registry, where there is one. keep_bundle: it stores the bundles too."""

    out: Path
    registry: Path | None = None
    keep_bundle: bool = False


def load_jobs(path: Path) -> tuple[CameraTask, ...]:
    """Read a jobs file (TOML or JSON); its paths count from its own folder.

    Raises InputFileError, ConfigError (a setting, a name that is no file name or not the only one, a folder of
    versions that two cameras would install into).
    """
    jobs = load_config(FleetJobs, path)
    tasks = tuple(_task(job, jobs, path) for job in jobs.cameras)
    names = [task.name.casefold() for task in tasks]
    double = sorted({name for name in names if names.count(name) > 1})
    if double or not tasks:
        what = f"two cameras are named {double[0]}" if double else "there is no [[cameras]]"
        msg = f"{path}: {what}. Each camera has a [[cameras]] with a name of its own."
        raise ConfigError(msg)
    sites = [task.bundle for task in tasks if linked_number(task.bundle) is not None]
    for site in sites:
        if sites.count(site) > 1:
            msg = f"{path}: {site} is the folder of versions of two cameras; one would replace the other's bundle."
            raise ConfigError(msg)
    return tasks


def readapt_all(
    tasks: Sequence[CameraTask],
    place: FleetPlace,
    *,
    adapt: Adapt = readapt,
    show: bool = False,
    tell: Tell = lambda _: None,
) -> FleetReport:
    """Adapt every camera, and go on with the next where one fails; those that are done already are left out.

    Under `accelerate launch` each process takes its share; all return the same report, once all are done.
    Raises OutputError (another call works in `place.out`).
    """
    crew = Crew()
    with claimed(place.out, mine=crew.index == 0):
        # What is left to do is decided once, for all: it changes while they work.
        todo = crew.gather([task.name for task in tasks if done(task, place) is None])[0]
        mine = [task for task in tasks if task.name in todo][crew.index :: crew.count]
        with alone():
            own = [adapt_camera(task, place, adapt=adapt, show=show, tell=tell) for task in mine]
        fresh = [result for part in crew.gather(own) for result in part]
    return collect(tasks, place, fresh)


def adapt_camera(
    task: CameraTask,
    place: FleetPlace,
    *,
    adapt: Adapt = readapt,
    show: bool = False,
    tell: Tell = lambda _: None,
) -> CameraResult:
    """Adapt one camera and write down what came of it. Never raises what concerns this camera alone."""
    given = {"weights": task.weights, "real": task.real, "camera": task.name, "keep": task.keep}
    work = place.out / task.name

    def say(line: str) -> None:
        tell(f"{task.name}: {line}")

    try:
        report = adapt(task.bundle, task.faces, work, task.config, **given, show=show, tell=say)
        result = _made(task, place, report)
    except GateFailedError as exc:
        result = CameraResult(camera=task.name, state="refused", reason=str(exc))
    except Exception as exc:  # the border of one camera: the others go on
        log.debug("camera %s failed", task.name, exc_info=True)
        reason = str(exc) if isinstance(exc, UfrEdgeError) else f"{type(exc).__name__}: {exc}"
        result = CameraResult(camera=task.name, state="failed", reason=reason)
    write_json(_result_path(task, place), {"asked": to_json(task), "result": to_json(result)})
    tell(f"{task.name}: {result.state}")
    return result


def done(task: CameraTask, place: FleetPlace) -> CameraResult | None:
    """What an earlier call made of the camera, with the same settings; None where there is something left to do."""
    try:
        value = read_json(_result_path(task, place))
        result = from_json(CameraResult, value["result"])
        if value["asked"] != to_json(task) or result.state == "failed":
            return None
        left = result if result.state == "refused" else _left_of(result, task, place)
    except (InputFileError, BundleError, ConfigError, KeyError, TypeError, ValueError):
        return None
    return None if left is None else replace(left, new=False)


def collect(tasks: Sequence[CameraTask], place: FleetPlace, fresh: Sequence[CameraResult]) -> FleetReport:
    """The report over all cameras: of this call, else of an earlier one."""
    by_name = {result.camera: result for result in fresh}
    found = [by_name.get(task.name) or done(task, place) or _lost(task) for task in tasks]
    return FleetReport(results=tuple(found))


def _left_of(made: CameraResult, task: CameraTask, place: FleetPlace) -> CameraResult | None:
    """The result where its bundle is whole and, if asked, in the registry; or where newer versions took its place."""
    if Path(made.bundle).is_dir():
        known = place.registry is None or is_known(place.registry, Path(made.bundle))
        return made if known else None
    number = int(Path(made.installed).stem) if made.installed else None
    # Removed as one of the oldest (`keep`): the numbers of versions only rise, and the newest stays.
    if number is None or not any(version.number > number for version in history(task.bundle)):
        return None
    if place.registry is None or made.model:
        return made
    reason = "it cannot be added to the registry: newer versions came, and its own was removed"
    return replace(made, reason="; ".join(filter(None, (made.reason, reason))))


@contextmanager
def claimed(out: Path, *, mine: bool) -> Iterator[None]:
    """Hold the folder, for one of the processes that share it. Raises OutputError when another call works in it."""
    if not mine:
        yield
        return
    with file_lock(out / ".lock", timeout_s=0.0):
        yield


def _made(task: CameraTask, place: FleetPlace, report: ReadaptReport) -> CameraResult:
    model = ""
    if place.registry is not None:
        work = place.out / task.name
        model = register_readapt(place.registry, work, report, keep_bundle=place.keep_bundle).record.id
    return CameraResult(
        camera=task.name,
        state="made",
        reason="; ".join(report.notes),
        bundle=str(report.bundle),
        installed="" if report.installed is None else str(report.installed),
        model=model,
    )


def _task(job: CameraJob, jobs: FleetJobs, path: Path) -> CameraTask:
    where = f"{path}: camera {job.name!r}"
    if not _NAME.fullmatch(job.name):
        msg = f"{where}: a name is of letters, digits, dots, dashes and underscores, and begins with one of the first two."
        raise ConfigError(msg)
    base = path.parent.absolute()
    real = job.real or jobs.real
    named = job.weights is None or not (base / job.weights).exists()
    try:
        config = from_json(ReadaptConfig, _overlay(to_json(jobs.settings), job.settings))
    except ConfigError as exc:
        msg = f"{where}: settings.{exc}"
        raise ConfigError(msg) from exc
    return CameraTask(
        name=job.name,
        bundle=base / job.bundle,
        faces=base / job.faces,
        config=config,
        weights=job.weights if named else str(base / str(job.weights)),
        real=None if real is None else base / real,
        keep=job.keep,
    )


def _overlay(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in given.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[name] = _overlay(old, value)
        else:
            merged[name] = value
    return merged


def _result_path(task: CameraTask, place: FleetPlace) -> Path:
    return place.out / f"{task.name}.json"


def _lost(task: CameraTask) -> CameraResult:
    return CameraResult(camera=task.name, state="failed", reason="its result is gone")
