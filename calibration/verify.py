"""Running every engine of a bundle against fp32 on the faces it carries. Needs no torch: works on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.compare import compare_frames, pattern_frames, psnr, run_batches
from ufr_edge.calibration.faults import solid_frames
from ufr_edge.calibration.frames import load_faces
from ufr_edge.calibration.gate import Drop, GateConfig, GateSet, make_gate_set, measure_drop, over_limits
from ufr_edge.calibration.stored_faces import read_stored, stored_names
from ufr_edge.errors import (
    BackendUnavailableError,
    EngineMisfitError,
    InferenceError,
    ModelFileError,
    ShapeError,
)
from ufr_edge.runtime.bundle import Bundle, open_entry, read_bundle
from ufr_edge.runtime.engines import open_engine_file
from ufr_edge.runtime.manifest import EngineEntry, ParityInfo

IMAGES = 8
PATTERN = "a test pattern"


@dataclass(frozen=True, kw_only=True)
class EngineCheck:
    """One engine: what it ran on, its parity to fp32 and its drop; or why it does not run here, or how it failed.

    worst_image: the name of the face that lost most. broken: it should run here and did not, in words.
    """

    name: str
    parity: ParityInfo | None
    runs: str = ""
    reason: str = ""
    drop: Drop | None = None
    worst_image: str = ""
    broken: str = ""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """A bundle whose checksums hold. base: the ONNX compared with; origin: what faces were used.

    base_psnr_db: the base ONNX on this machine against the stored fp32 faces, None where none are stored or used.
    """

    files: int
    base: str
    origin: str
    engines: tuple[EngineCheck, ...]
    base_psnr_db: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a value for json.dumps."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Faces:
    """What engines are held against, and the names of the faces."""

    gate: GateSet
    names: tuple[str, ...]
    base_psnr_db: float | None = None


def verify_bundle(
    path: Path, *, faces: Path | None = None, advance: Callable[..., None] | None = None
) -> VerifyReport:
    """Check every checksum, then run each engine that can run here and measure its drop against fp32.

    faces: folder of aligned faces; None = the reference faces stored in the bundle (against the fp32 results stored
    with them, and against the truth where that is stored too), or a test pattern when it stores none.
    `advance(1, name)` is called after each engine. An engine that cannot run here is listed with the reason, one that
    fails is listed as broken. Raises InputFileError, BundleError, CalibrationError (faces), InferenceError (the base).
    """
    bundle = read_bundle(path)
    bundle.check()
    held = _faces(bundle, faces)
    checks = []
    for entry in bundle.manifest.engines:
        checks.append(_check_engine(bundle, entry, held))
        if advance is not None:
            advance(1, entry.name)
    return VerifyReport(
        files=len(bundle.manifest.files),
        base=bundle.manifest.onnx,
        origin=held.gate.origin,
        engines=tuple(checks),
        base_psnr_db=held.base_psnr_db,
    )


def failing(
    report: VerifyReport, min_psnr: float | None = None, *, limits: GateConfig | None = None
) -> tuple[str, ...]:
    """Names and reasons of the engines that fail; those that cannot run here are not judged.

    An engine fails below `min_psnr` dB of parity, over `limits`, and in any case when it is broken or a crash check
    found a fault. When a limit was given and no engine ran, that fails too: nothing was shown.
    """
    judged = min_psnr is not None or limits is not None
    if judged and all(check.parity is None and not check.broken for check in report.engines):
        return ("no engine of it runs here",)
    found = ((check.name, _complaints(check, min_psnr, limits)) for check in report.engines)
    return tuple(f"{name} ({'; '.join(lines)})" for name, lines in found if lines)


def _complaints(check: EngineCheck, min_psnr: float | None, limits: GateConfig | None) -> Sequence[str]:
    if check.broken:
        return (check.broken,)
    if check.parity is None or check.drop is None:
        return ()
    lines = (
        [f"{check.parity.psnr_db:.1f} dB"] if min_psnr is not None and check.parity.psnr_db < min_psnr else []
    )
    return (*lines, *(check.drop.faults if limits is None else over_limits(check.drop, limits)))


def _faces(bundle: Bundle, folder: Path | None) -> _Faces:
    side = bundle.manifest.restorer.side
    stored = _stored_names(bundle)
    with open_engine_file(bundle.file(bundle.manifest.onnx)) as base:

        def run(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return run_batches(base, frames)

        if folder is None and stored:
            return _stored_faces(bundle, stored, run)
        if folder is None:
            pattern = pattern_frames(IMAGES // 2, side)
            return _named(make_gate_set(run, pattern, origin=PATTERN))
        given = load_faces(folder, side, limit=IMAGES)
        return _named(make_gate_set(run, given, origin=f"{len(given)} faces of {folder}"))


def _named(gate: GateSet) -> _Faces:
    return _Faces(gate=gate, names=tuple(f"face {index}" for index in range(len(gate.faces))))


def _stored_names(bundle: Bundle) -> tuple[str, ...]:
    """Names of the stored faces whose fp32 result is stored too."""
    known = set(stored_names(bundle, "fp32"))
    return tuple(name for name in stored_names(bundle, "lq") if name in known)


def _stored_faces(
    bundle: Bundle, names: Sequence[str], run: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> _Faces:
    low, expected = (read_stored(bundle, part, names) for part in ("lq", "fp32"))
    known = set(names) <= set(stored_names(bundle, "hq"))
    gate = GateSet(
        faces=low,
        expected=expected,
        truth=read_stored(bundle, "hq", names) if known else low[:0],
        solids=run(solid_frames(bundle.manifest.restorer.side)),
        origin=f"its {len(names)} stored faces{', whose truth is known' if known else ''}",
    )
    return _Faces(gate=gate, names=tuple(names), base_psnr_db=round(psnr(run(low), expected), 2))


def _check_engine(bundle: Bundle, entry: EngineEntry, held: _Faces) -> EngineCheck:
    check = EngineCheck(name=entry.name, parity=None)
    try:
        engine = open_entry(bundle, entry)
    except (BackendUnavailableError, EngineMisfitError) as exc:
        return replace(check, reason=str(exc))
    except (ModelFileError, InferenceError) as exc:
        return replace(check, broken=f"it does not open: {exc}")
    with engine:
        try:
            drop = measure_drop(lambda frames: run_batches(engine, frames), held.gate)
            found = compare_frames(run_batches(engine, held.gate.faces), held.gate.expected)
        except (InferenceError, ShapeError) as exc:
            return replace(check, runs=engine.info.describe(), broken=f"it fails: {exc}")
        return replace(
            check,
            parity=found,
            runs=engine.info.describe(),
            drop=drop,
            worst_image=held.names[drop.worst_image],
        )
