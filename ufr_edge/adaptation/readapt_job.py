"""What a re-adaptation is asked for, and its work folder: begun once, and gone on with by the same call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ufr_edge.adaptation.qa import QaConfig
from ufr_edge.adaptation.readapt_gate import ReadaptLimits
from ufr_edge.config import to_json
from ufr_edge.demo.scene import FACES as SHIPPED_FACES
from ufr_edge.errors import ConfigError
from ufr_edge.export.stored_weights import bundle_weights
from ufr_edge.files import disk_errors, read_json, sha256_file, write_json
from ufr_edge.restorers.loading import find_restorer
from ufr_edge.runtime.bundle import Bundle, read_bundle
from ufr_edge.runtime.manifest import MANIFEST
from ufr_edge.runtime.video.uri import mask

Tell = Callable[[str], None]
STATE = "readapt.json"
PRIVATE = 0o700
"""Mode of folders with faces."""


@dataclass(frozen=True, kw_only=True)
class ReadaptConfig:
    """Settings for few faces and a small machine.

    replay: share of each batch that is clean faces degraded as in the first training, or as by the last 3 cameras of the
    bundle's lineage, so that old skill is kept. calls: of the prior per target (`fast_steps`), of 100 in the full chain; the
    figures of docs/quality.md were made with as many.
    held_out: share of the people (tracks) kept out of training, for the gate; at most `most_held_out` faces.
    least_faces, least_people: below which nothing is done. minutes: of training in one sitting. max_drop_db: of int8
    engines. newest: take so many of the last faces by name, None: all. require_faces: refuse pictures in which no face
    is found.
    """

    prior: str = "prior-256"
    steps: int = 150
    lr: float = 2e-4
    batch: int = 8
    replay: float = 0.25
    calls: int = 20
    minutes: float | None = None
    save_every: int = 10
    held_out: float = 0.2
    most_held_out: int = 32
    newest: int | None = None
    least_faces: int = 24
    least_people: int = 2
    max_drop_db: float = 0.3
    limits: ReadaptLimits = field(default_factory=ReadaptLimits)
    qa: QaConfig = field(default_factory=QaConfig)
    require_faces: bool = True
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be."""
        if not 0 < self.held_out < 1 or self.most_held_out < 1 or self.least_people < 2:
            msg = "Re-adaptation holds out a share above 0 and below 1, of 2 people or more."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One re-adaptation: what it starts from, and where it works. site: the folder of versions to install into, None for a single bundle."""

    parent: Bundle
    weights: Path
    real: Path
    work: Path
    site: Path | None
    config: ReadaptConfig
    camera: str
    run_id: str
    show: bool
    tell: Tell

    @property
    def bundle(self) -> Path:
        """Where the new bundle is written."""
        return self.work / f"{self.parent.manifest.name}.ufr"


def open_job(
    bundle: Path,
    faces: Path,
    work: Path,
    config: ReadaptConfig,
    *,
    weights: str | Path | None,
    real: Path | None,
    camera: str,
    show: bool,
    tell: Tell,
) -> Job:
    """Read the state of an earlier call, or begin one: which parent it started from is decided once.

    Arguments as of `readapt`; of a camera named by its address no password is kept. Raises InputFileError, BundleError, ConfigError (`work` is of another run).
    """
    parent = read_bundle(bundle)
    site = None if parent.path == bundle or bundle.is_file() else bundle
    asked: dict[str, Any] = {
        "faces": str(faces.absolute()),
        "camera": mask(camera),
        "config": to_json(config),
    }
    asked |= {"weights": None if weights is None else sha256_file(find_restorer(weights))}
    state = _read_state(work, asked) or _begin(work, asked, parent, faces)
    parent = _as_begun(parent, work, state)
    return Job(
        parent=parent,
        weights=bundle_weights(parent) if weights is None else find_restorer(weights),
        real=SHIPPED_FACES / "clean" if real is None else real,
        work=work,
        site=site,
        config=config,
        camera=mask(camera or parent.manifest.lineage.get("camera", "")),
        run_id=str(state["run_id"]),
        show=show,
        tell=tell,
    )


def _begin(work: Path, asked: Mapping[str, Any], parent: Bundle, faces: Path) -> dict[str, Any]:
    """Make the work folder, and write down what it is for."""
    parent.check()
    now = datetime.now(timezone.utc)
    digest = hashlib.sha256(f"{parent.path} {faces} {now}".encode()).hexdigest()[:8]
    state = {
        "asked": asked,
        "parent": str(parent.path),
        "parent_sha256": sha256_file(parent.path / MANIFEST),
        "run_id": f"{now:%Y%m%dT%H%M%S}-{digest}",
    }
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        work.chmod(PRIVATE)
    write_json(work / STATE, state)
    return state


def _as_begun(parent: Bundle, work: Path, state: Mapping[str, Any]) -> Bundle:
    """The bundle that the work folder was begun from; another may be current since."""
    if Path(state["parent"]) != parent.path:
        parent = read_bundle(Path(state["parent"]))
    if sha256_file(parent.path / MANIFEST) != state["parent_sha256"]:
        msg = f"{parent.path} is not the bundle that {work} was begun from. Choose another work folder."
        raise ConfigError(msg)
    return parent


def _read_state(work: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    if not (work / STATE).is_file():
        if work.is_dir() and any(path for path in work.iterdir() if not path.name.startswith(".")):
            msg = f"{work} holds files but no {STATE}. Choose another work folder."
            raise ConfigError(msg)
        return None
    state: dict[str, Any] = read_json(work / STATE)
    if state.get("asked") != asked:
        msg = (
            f"{work} holds a re-adaptation to other faces or with other settings. Choose another work folder."
        )
        raise ConfigError(msg)
    return state
