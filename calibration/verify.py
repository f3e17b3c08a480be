"""Running every engine of a bundle against the fp32 ONNX it carries. Needs no torch: works on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.compare import compare_frames, pattern_frames, run_batches
from ufr_edge.calibration.frames import load_faces
from ufr_edge.errors import BackendUnavailableError, EngineMisfitError
from ufr_edge.runtime.bundle import Bundle, open_entry, read_bundle
from ufr_edge.runtime.engines import open_engine_file
from ufr_edge.runtime.manifest import EngineEntry, ParityInfo

IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class EngineCheck:
    """One engine: its parity and what it ran on, or the reason it does not run here."""

    name: str
    parity: ParityInfo | None
    runs: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """A bundle whose checksums hold. base: the ONNX compared with; origin: what faces were used."""

    files: int
    base: str
    origin: str
    engines: tuple[EngineCheck, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a value for json.dumps."""
        return asdict(self)


def verify_bundle(
    path: Path, *, faces: Path | None = None, advance: Callable[..., None] | None = None
) -> VerifyReport:
    """Check every checksum, then run each engine that can run here and compare it with the fp32 ONNX.

    faces: folder of aligned faces; None = a test pattern. `advance(1, name)` is called after each engine.
    Raises InputFileError, BundleError, CalibrationError (faces), InferenceError.
    """
    bundle = read_bundle(path)
    bundle.check()
    side = bundle.manifest.restorer.side
    frames = pattern_frames(IMAGES // 2, side) if faces is None else load_faces(faces, side, limit=IMAGES)
    with open_engine_file(bundle.file(bundle.manifest.onnx)) as base:
        expected = run_batches(base, frames)
    checks = []
    for entry in bundle.manifest.engines:
        checks.append(_check_engine(bundle, entry, frames, expected))
        if advance is not None:
            advance(1, entry.name)
    return VerifyReport(
        files=len(bundle.manifest.files),
        base=bundle.manifest.onnx,
        origin="a test pattern" if faces is None else f"{len(frames)} faces of {faces}",
        engines=tuple(checks),
    )


def failing(report: VerifyReport, min_psnr: float | None) -> tuple[str, ...]:
    """Names and figures of the engines below `min_psnr` dB; those that did not run are not judged.

    When none ran, that fails too: nothing was shown.
    """
    if min_psnr is None:
        return ()
    if all(check.parity is None for check in report.engines):
        return ("no engine of it runs here",)
    return tuple(
        f"{check.name} ({check.parity.psnr_db:.1f} dB)"
        for check in report.engines
        if check.parity is not None and check.parity.psnr_db < min_psnr
    )


def _check_engine(
    bundle: Bundle, entry: EngineEntry, frames: NDArray[np.uint8], expected: NDArray[np.uint8]
) -> EngineCheck:
    try:
        engine = open_entry(bundle, entry)
    except (BackendUnavailableError, EngineMisfitError) as exc:
        return EngineCheck(name=entry.name, parity=None, reason=str(exc))
    with engine:
        found = compare_frames(run_batches(engine, frames), expected)
        return EngineCheck(name=entry.name, parity=found, runs=engine.info.describe())
