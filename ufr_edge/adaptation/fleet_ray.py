"""The same re-adaptation for many cameras on a Ray cluster: one task a camera.

Every node must see the paths of the jobs, OUT and the registry under the same names (a shared disk), and have this
version of ufr-edge installed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ufr_edge import __version__
from ufr_edge.adaptation.fleet import (
    Adapt,
    CameraResult,
    CameraTask,
    FleetPlace,
    FleetReport,
    adapt_camera,
    claimed,
    collect,
    done,
)
from ufr_edge.adaptation.readapt import Tell, readapt
from ufr_edge.config import from_json, to_json
from ufr_edge.errors import BackendUnavailableError, ConfigError
from ufr_edge.optional import require


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """address: "auto", HOST:PORT, ray://HOST:PORT, or "local" to start Ray on this machine. cpus, gpus: that each
    camera takes of its node.
    """

    address: str
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be."""
        if not self.address or self.cpus < 0 or self.gpus < 0:
            msg = "Ray needs an address, and numbers of CPUs and GPUs that are not below 0."
            raise ConfigError(msg)


def readapt_on_ray(
    tasks: Sequence[CameraTask],
    place: FleetPlace,
    config: RayConfig,
    *,
    adapt: Adapt = readapt,
    tell: Tell = lambda _: None,
) -> FleetReport:
    """As `readapt_all`, on a cluster. A camera whose worker died is begun again by Ray, and goes on where it was.

    Raises BackendUnavailableError (Ray is not installed, or nobody answers at the address), OutputError.
    """
    ray = require("ray", extra="ray")
    with claimed(place.out, mine=True):
        left = [task for task in tasks if done(task, place) is None]
        fresh = []
        with _connected(ray, config.address):
            remote = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus)(on_worker)
            here = {name: None if path is None else str(path) for name, path in _paths(place).items()}
            running = {
                remote.remote(to_json(task), here, place.keep_bundle, __version__, adapt): task
                for task in left
            }
            while running:
                ready, _ = ray.wait(list(running), num_returns=1)
                for reference in ready:
                    fresh.append(_outcome(ray, reference, running.pop(reference)))
                    tell(f"{fresh[-1].camera}: {fresh[-1].state}")
    return collect(tasks, place, fresh)


def on_worker(
    asked: Mapping[str, Any], paths: Mapping[str, str | None], keep_bundle: bool, version: str, adapt: Adapt
) -> dict[str, Any]:
    """What runs on a node: one camera. Takes and returns plain values, so that no class needs to travel."""
    if version != __version__:
        reason = f"its node has ufr-edge {__version__}, not {version}. Install the same on every node"
        return to_json(CameraResult(camera=str(asked["name"]), state="failed", reason=reason))
    registry = paths["registry"]
    place = FleetPlace(
        out=Path(str(paths["out"])),
        registry=None if registry is None else Path(registry),
        keep_bundle=keep_bundle,
    )
    return to_json(adapt_camera(from_json(CameraTask, asked), place, adapt=adapt))


def _outcome(ray: Any, reference: Any, task: CameraTask) -> CameraResult:
    try:
        result = from_json(CameraResult, ray.get(reference))
    except ray.exceptions.RayError as exc:
        reason = f"{type(exc).__name__}: {str(exc).strip().splitlines()[-1]}"
        return CameraResult(camera=task.name, state="failed", reason=reason)
    if result.state == "made" and not Path(result.bundle).is_dir():
        reason = f"{result.bundle} was made on another node and is not to be seen here. OUT must be on a shared disk"
        return CameraResult(camera=task.name, state="failed", reason=reason)
    return result


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Be a client of the cluster. Ray puts its own handler of SIGTERM in; ours, by which a command ends, is put back."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as exc:
        msg = f"No Ray cluster answers at {address} ({str(exc).strip().splitlines()[0]}). Start one with: ray start --head"
        raise BackendUnavailableError(msg) from exc
    try:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        yield
    finally:
        ray.shutdown()


def _paths(place: FleetPlace) -> dict[str, Path | None]:
    registry = None if place.registry is None else place.registry.absolute()
    return {"out": place.out.absolute(), "registry": registry}
