"""A restorer to a bundle: the fp32 ONNX, the engines asked for, and a manifest with what each was measured at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.compare import pattern_frames
from ufr_edge.calibration.frames import CalibrationSet, load_calibration, load_faces, read_face
from ufr_edge.errors import CalibrationError, ConfigError, InputFileError
from ufr_edge.export.engine_build import ParitySet, build_engine_files, make_entry, measure_engine
from ufr_edge.export.onnx_export import restore_frames
from ufr_edge.export.requests import EngineRequest
from ufr_edge.export.sources import BASE, OnnxSources
from ufr_edge.export.tensorrt_export import module_name
from ufr_edge.files import atomic_folder, check_free, check_replaceable, sha256_file
from ufr_edge.optional import require
from ufr_edge.restorers.files import LoadedRestorer
from ufr_edge.runtime.bundle import write_manifest
from ufr_edge.runtime.images import list_images
from ufr_edge.runtime.manifest import EngineEntry, Manifest, RestorerInfo

SUFFIX = ".ufr"
LINEAGE = ("parent", "run_id", "prior", "camera")
PARITY_IMAGES = 8
Advance = Callable[..., None]


def _no_progress(n: int = 1, note: str = "") -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The bundle written, its manifest, and a line for each engine that could not be measured here."""

    path: Path
    manifest: Manifest
    notes: tuple[str, ...]


def export_bundle(
    restorer: LoadedRestorer,
    out: Path,
    *,
    formats: Sequence[EngineRequest],
    side: int | None = None,
    calibration: Path | None = None,
    parity_faces: Path | None = None,
    reference: Path | None = None,
    overwrite: bool = False,
    lineage: Mapping[str, str] | None = None,
    advance: Advance = _no_progress,
) -> ExportReport:
    """Write the bundle `out` (NAME.ufr), whole or not at all; each engine is measured by running its file.

    side: face side in pixels, None = the restorer's own. calibration: folder of the camera's aligned faces,
    needed for int8. parity_faces: folder of aligned faces to compare engines on, None = frames held out of the
    calibration set, or a test pattern without one. reference: folder with `lq/` and `hq/`, aligned faces of the
    same names, to measure each engine against the truth. lineage: parent, run_id, prior, camera, over what the
    weights file says. advance: called as advance(1, name) after each engine.
    Raises ConfigError (name, side, nothing asked for), CalibrationError (int8 without calibration, unfit frames),
    BackendUnavailableError (a format's package is missing), InputFileError, OutputError: all before anything is
    built; BuildError.
    """
    size = _check(restorer, out, formats, side)
    check_free(out, overwrite=overwrite)
    check_replaceable(out, "manifest.json")
    _check_calibration(formats, calibration)
    frames = None if calibration is None else load_calibration(calibration, size)
    faces, origin = _parity_faces(parity_faces, frames, size)
    parity = _parity_set(restorer, faces, reference, size)
    known = {key: restorer.meta[key] for key in LINEAGE if restorer.meta.get(key)}
    with atomic_folder(out, overwrite=overwrite) as folder:
        sources = OnnxSources(restorer.model, folder, side=size, faces=faces, calibration=frames)
        sources.get("onnx", "fp32")
        entries, notes = _build_engines(formats, folder, sources, parity, advance)
        manifest = Manifest(
            name=out.stem,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            restorer=_restorer_info(restorer, size),
            onnx=BASE,
            engines=entries,
            files=_checksums(folder, entries),
            lineage={**known, **(lineage or {}), "parity_faces": origin},
        )
        write_manifest(folder, manifest)
    return ExportReport(path=out, manifest=manifest, notes=notes)


def _build_engines(
    requests: Sequence[EngineRequest], folder: Path, sources: OnnxSources, parity: ParitySet, advance: Advance
) -> tuple[tuple[EngineEntry, ...], tuple[str, ...]]:
    entries: list[EngineEntry] = []
    notes: list[str] = []
    for request in requests:
        advance(0, request.name)
        files = build_engine_files(request, folder, sources=sources)
        measured = measure_engine(folder / files[0], request, parity)
        notes += [measured.note] if measured.note else []
        entries.append(make_entry(request, folder, files, sources=sources, measured=measured))
        advance(1, request.name)
    return tuple(entries), tuple(notes)


def _check(restorer: LoadedRestorer, out: Path, requests: Sequence[EngineRequest], side: int | None) -> int:
    """Refuse what can be refused before work starts. Returns the side."""
    if out.suffix != SUFFIX:
        msg = f"A bundle's name ends in {SUFFIX}; got {out}. Give -o NAME{SUFFIX}"
        raise ConfigError(msg)
    if not requests:
        msg = "No engine was asked for. Give --format and --precision."
        raise ConfigError(msg)
    size = restorer.side if side is None else side
    spec = restorer.model.input_spec
    if size < spec.minimum or size % spec.multiple_of:
        msg = f"The side must be a multiple of {spec.multiple_of}, such as 256 or 512; got {size}."
        raise ConfigError(msg)
    for request in requests:
        _require_packages(request)
    return size


def _check_calibration(requests: Sequence[EngineRequest], calibration: Path | None) -> None:
    if calibration is None and any(request.precision == "int8" for request in requests):
        msg = (
            "An int8 engine needs faces of the camera it is for. Give --calibration FOLDER; "
            "collect them with: ufr-edge collect SOURCE -o FOLDER"
        )
        raise CalibrationError(msg)


def _require_packages(request: EngineRequest) -> None:
    if request.format == "openvino":
        require("openvino", extra="openvino")
        if request.precision == "int8":
            require("nncf", extra="nncf")
    elif request.format.startswith("tensorrt"):
        require(module_name(request.format), extra=request.format)


def _parity_faces(
    folder: Path | None, calibration: CalibrationSet | None, side: int
) -> tuple[NDArray[np.uint8], str]:
    """The faces engines are compared on, and what they are, for the manifest."""
    if folder is not None:
        return load_faces(folder, side, limit=PARITY_IMAGES), "given faces"
    if calibration is None:
        return pattern_frames(PARITY_IMAGES // 2, side), "test pattern"
    if len(calibration.held_out):
        return calibration.held_out[:PARITY_IMAGES], "held-out calibration faces"
    return calibration.frames[:PARITY_IMAGES], "calibration faces"


def _parity_set(
    restorer: LoadedRestorer, faces: NDArray[np.uint8], reference: Path | None, side: int
) -> ParitySet:
    low, high = (faces[:0], faces[:0]) if reference is None else load_pairs(reference, side)
    return ParitySet(
        faces=faces,
        expected=restore_frames(restorer.model, faces),
        reference_in=low,
        reference_expected=restore_frames(restorer.model, low) if len(low) else low,
        truth=high,
    )


def load_pairs(folder: Path, side: int, *, limit: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Load `lq/NAME` and `hq/NAME` (aligned faces): two uint8 (N, side, side, 3) arrays.

    Raises InputFileError when a folder or a partner is missing.
    """
    low = list_images(folder / "lq")[:limit]
    for path in low:
        if not (folder / "hq" / path.name).is_file():
            msg = f"{path} has no partner {folder / 'hq' / path.name}. References are pairs of one name."
            raise InputFileError(msg)
    high = [folder / "hq" / path.name for path in low]
    return np.stack([read_face(p, side) for p in low]), np.stack([read_face(p, side) for p in high])


def _restorer_info(restorer: LoadedRestorer, side: int) -> RestorerInfo:
    return RestorerInfo(
        arch=restorer.arch,
        side=side,
        weights_sha256=sha256_file(restorer.path),
        code_licence="Apache-2.0",
        weights_licence=restorer.meta.get("weights_licence", "unknown"),
    )


def _checksums(folder: Path, entries: Sequence[EngineEntry]) -> dict[str, str]:
    used = dict.fromkeys([BASE, *(name for entry in entries for name in entry.files)])
    return {name: sha256_file(folder / name) for name in used}
