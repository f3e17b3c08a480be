"""A restorer to a bundle: the fp32 ONNX, the engines asked for, and a manifest with what each was measured at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.compare import pattern_frames
from ufr_edge.calibration.frames import (
    CalibrationConfig,
    CalibrationSet,
    load_calibration,
    load_faces,
    read_face,
)
from ufr_edge.calibration.gate import GateConfig, GateSet, make_gate_set
from ufr_edge.errors import CalibrationError, ConfigError, InputFileError
from ufr_edge.export.engine_build import ParitySet, make_entry
from ufr_edge.export.evidence import write_calibration, write_camera, write_gate, write_reference
from ufr_edge.export.gated_build import GatedEngine, GateRun, Retreat, build_gated
from ufr_edge.export.lock import build_lock
from ufr_edge.export.onnx_export import restore_frames
from ufr_edge.export.qat import QatConfig, QatResult, finetune_quantized
from ufr_edge.export.requests import BASE, TUNED, EngineRequest
from ufr_edge.export.sources import OnnxSources
from ufr_edge.export.stored_weights import write_weights
from ufr_edge.export.tensorrt_export import Building, BuildLimits, module_name
from ufr_edge.files import atomic_folder, check_free, check_replaceable, sha256_file
from ufr_edge.optional import require
from ufr_edge.restorers.loading import AnyRestorer
from ufr_edge.runtime.bundle import write_manifest
from ufr_edge.runtime.images import list_images
from ufr_edge.runtime.manifest import EngineEntry, Manifest, RestorerInfo

SUFFIX = ".ufr"
LINEAGE = ("parent", "run_id", "prior", "prior_licence", "teacher", "teacher_licence", "camera")
PARITY_IMAGES = 8
GATE_FACES = 64
QAT_FACES = 512
PATTERN = "test pattern"
Advance = Callable[..., None]


def _no_progress(n: int = 1, note: str = "") -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is rarely changed.

    gate: what engines may lose, None = measure and refuse nothing. gate_faces: folder of aligned faces
    (or with `lq/` and `hq/` pairs) to measure the drop on; None = the references, else the faces held out of the
    calibration set. calibration: how frames are chosen and ranges made. store_faces: put the first 8 gate faces
    into the bundle, for `ufr-edge verify`; they are pictures of people. retreat: see GateRun. qat: folder of aligned
    faces to fine-tune the int8 engines' weights on first, by qat_config. store_weights: put the weights in as fp16, to
    adapt again from (`ufr-edge readapt`). tensorrt: what its builds may take. wait_s: for another build of the bundle.
    """

    gate: GateConfig | None = field(default_factory=GateConfig)
    gate_faces: Path | None = None
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    store_faces: bool = True
    retreat: Retreat = "measured"
    qat: Path | None = None
    qat_config: QatConfig = field(default_factory=QatConfig)
    store_weights: bool = True
    tensorrt: BuildLimits = field(default_factory=BuildLimits)
    wait_s: float = 3600.0


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The bundle written, its manifest, a line for each engine that could not be measured here, the gate's findings
    by engine name, and what fine-tuning did where it was asked for."""

    path: Path
    manifest: Manifest
    notes: tuple[str, ...]
    gated: Mapping[str, GatedEngine] = field(default_factory=dict)
    tuning: QatResult | None = None


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """All that is read before anything is built. training: what to fine-tune int8 weights on."""

    side: int
    calibration: CalibrationSet | None
    training: CalibrationSet | None
    parity: ParitySet
    origin: str


def export_bundle(
    restorer: AnyRestorer,
    out: Path,
    *,
    formats: Sequence[EngineRequest],
    side: int | None = None,
    calibration: Path | None = None,
    parity_faces: Path | None = None,
    reference: Path | None = None,
    overwrite: bool = False,
    lineage: Mapping[str, str] | None = None,
    options: ExportOptions | None = None,
    advance: Advance = _no_progress,
) -> ExportReport:
    """Write the bundle `out` (NAME.ufr), whole or not at all; each engine is measured by running its file.

    side: face side in pixels, None = the restorer's own. calibration: folder of the camera's aligned faces,
    needed for int8. parity_faces: folder of aligned faces to compare engines on, None = frames held out of the
    calibration set, or a test pattern without one. reference: folder with `lq/` and `hq/`, aligned faces of the
    same names, to measure each engine against the truth. lineage: parent, run_id, prior, camera, over what the
    weights file says. advance: called as advance(1, name) after each engine.
    Waits when another process builds the same bundle.
    Raises ConfigError (name, side, nothing asked for), CalibrationError (int8 without calibration, unfit frames),
    BackendUnavailableError (a format's package is missing), InputFileError, OutputError: all before anything is
    built; BuildError; GateFailedError when an engine loses too much and putting layers back did not mend it.
    """
    chosen = options or ExportOptions()
    size = _check(restorer, out, formats, side)
    check_free(out, overwrite=overwrite)
    check_replaceable(out, "manifest.json")
    _check_int8(formats, calibration, chosen)
    inputs = _read_inputs(restorer, size, calibration, parity_faces, reference, chosen)
    with (
        build_lock(out, wait_s=chosen.wait_s, on_wait=lambda holder: advance(0, f"waiting for {holder}")),
        atomic_folder(out, overwrite=overwrite) as folder,
    ):
        tuning = _fine_tune(restorer, inputs, chosen, advance)
        sources = OnnxSources(
            restorer.model,
            folder,
            side=size,
            faces=inputs.parity.faces,
            calibration=inputs.calibration,
            tuned=tuning.model if tuning is not None and tuning.used else None,
            tuning=tuning.method if tuning is not None else "",
        )
        sources.get("onnx", "fp32")
        run = GateRun(
            folder=folder,
            sources=sources,
            parity=inputs.parity,
            config=chosen.gate,
            retreat=chosen.retreat,
            building=Building(limits=chosen.tensorrt, logs=out),
        )
        gated, entries = _build_engines(formats, run, advance)
        stored = write_weights(folder, restorer) if chosen.store_weights else ()
        evidence = _write_evidence(folder, inputs, gated, chosen, tuning)
        files = _checksums(folder, [*_used(folder, entries), *stored, *evidence])
        _prune(folder, files)
        manifest = _manifest(restorer, out, inputs, entries, files, lineage or {})
        write_manifest(folder, manifest)
    return ExportReport(
        path=out, manifest=manifest, notes=_notes(restorer, size, gated), gated=gated, tuning=tuning
    )


def _notes(restorer: AnyRestorer, side: int, gated: Mapping[str, GatedEngine]) -> tuple[str, ...]:
    far = (
        f"the weights were trained on faces of {restorer.side} px: at {side} px heavily damaged ones come out broken "
        "(docs/quality.md). Leave --side out unless the input is good."
    )
    own = [built.measured.note for built in gated.values() if built.measured.note]
    return (far, *own) if side > restorer.side else tuple(own)


def _read_inputs(
    restorer: AnyRestorer,
    side: int,
    calibration: Path | None,
    parity_faces: Path | None,
    reference: Path | None,
    options: ExportOptions,
) -> _Inputs:
    frames = None if calibration is None else load_calibration(calibration, side, config=options.calibration)
    training = None if options.qat is None else load_calibration(options.qat, side, config=_training(options))
    faces, origin = _parity_faces(parity_faces, frames, side)
    gate = _gate_set(restorer, options.gate_faces, reference, frames, side, (faces, origin))
    parity = ParitySet(faces=faces, expected=restore_frames(restorer.model, faces), gate=gate)
    return _Inputs(side=side, calibration=frames, training=training, parity=parity, origin=origin)


def _training(options: ExportOptions) -> CalibrationConfig:
    """How fine-tuning faces are chosen: as calibration's, and more of them."""
    return replace(options.calibration, limit=max(QAT_FACES, options.calibration.limit))


def _fine_tune(
    restorer: AnyRestorer, inputs: _Inputs, options: ExportOptions, advance: Advance
) -> QatResult | None:
    if inputs.training is None or inputs.calibration is None:
        return None
    return finetune_quantized(
        restorer.model,
        inputs.training,
        inputs.calibration.frames,
        percentile=options.calibration.percentile,
        config=options.qat_config,
        note=lambda text: advance(0, text),
    )


def _gate_set(
    restorer: AnyRestorer,
    gate_faces: Path | None,
    reference: Path | None,
    calibration: CalibrationSet | None,
    side: int,
    otherwise: tuple[NDArray[np.uint8], str],
) -> GateSet:
    """What the drop is measured on: given faces, else the references, else held-out faces, else `otherwise`."""

    def run(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return restore_frames(restorer.model, frames)

    pairs = reference if gate_faces is None else gate_faces
    if pairs is not None and (pairs == reference or (pairs / "lq").is_dir()):
        low, high = load_pairs(pairs, side)
        return make_gate_set(run, low, truth=high, origin=f"{len(low)} faces whose truth is known")
    if gate_faces is not None:
        given = load_faces(gate_faces, side, limit=GATE_FACES)
        return make_gate_set(run, given, origin=f"{len(given)} given faces")
    if calibration is not None and len(calibration.held_out):
        held = calibration.held_out
        return make_gate_set(run, held, origin=f"{len(held)} held-out calibration faces")
    faces, origin = otherwise
    return make_gate_set(run, faces, origin=origin)


def _build_engines(
    requests: Sequence[EngineRequest], run: GateRun, advance: Advance
) -> tuple[dict[str, GatedEngine], tuple[EngineEntry, ...]]:
    gated: dict[str, GatedEngine] = {}
    entries: list[EngineEntry] = []
    for request in requests:
        advance(0, request.name)

        def note(text: str, name: str = request.name) -> None:
            advance(0, f"{name}: {text}")

        built = build_gated(request, replace(run, note=note))
        gated[request.name] = built
        entries.append(
            make_entry(
                request,
                run.folder,
                built.files,
                sources=run.sources,
                measured=built.measured,
                kept=built.kept,
                by=built.by,
            )
        )
        advance(1, request.name)
    return gated, tuple(entries)


def _manifest(
    restorer: AnyRestorer,
    out: Path,
    inputs: _Inputs,
    entries: tuple[EngineEntry, ...],
    files: Mapping[str, str],
    lineage: Mapping[str, str],
) -> Manifest:
    known = {key: restorer.meta[key] for key in LINEAGE if restorer.meta.get(key)}
    return Manifest(
        name=out.stem,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        restorer=_restorer_info(restorer, inputs.side),
        onnx=BASE,
        engines=entries,
        files=files,
        lineage={**known, **lineage, "parity_faces": inputs.origin},
    )


def _write_evidence(
    folder: Path,
    inputs: _Inputs,
    gated: Mapping[str, GatedEngine],
    options: ExportOptions,
    tuning: QatResult | None,
) -> tuple[str, ...]:
    """Write the bundle's evidence; return the names of the files."""
    gate = inputs.parity.gate
    record = None if tuning is None else tuning.record()
    names = [write_gate(folder, gate, options.gate, gated, tuning=record)]
    if inputs.calibration is not None:
        names += [write_calibration(folder, inputs.calibration), *write_camera(folder, inputs.calibration)]
    if options.store_faces and gate.origin != PATTERN:
        names += write_reference(folder, gate)
    return tuple(names)


def _used(folder: Path, entries: Sequence[EngineEntry]) -> list[str]:
    """Files of engines, and the fp32 graphs to build OpenVINO's again from."""
    files = [BASE, *(name for entry in entries for name in entry.files)]
    if (folder / TUNED).exists() and any(e.format == "openvino" and e.precision == "int8" for e in entries):
        files.append(TUNED)
    return list(dict.fromkeys(files))


def _checksums(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: sha256_file(folder / name) for name in names}


def _prune(folder: Path, files: Mapping[str, str]) -> None:
    """Remove what no engine uses any more, such as an int8 graph that did not pass."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            path.unlink()


def _check(restorer: AnyRestorer, out: Path, requests: Sequence[EngineRequest], side: int | None) -> int:
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


def _check_int8(requests: Sequence[EngineRequest], calibration: Path | None, options: ExportOptions) -> None:
    int8 = [request for request in requests if request.precision == "int8"]
    if options.qat is not None and not int8:
        msg = "Quantization-aware fine-tuning is for int8 engines, and none was asked for. Give --precision int8."
        raise ConfigError(msg)
    if options.retreat == "nncf" and not any(request.format == "openvino" for request in int8):
        msg = (
            "NNCF's accuracy control is for OpenVINO's int8 engine. Give --format openvino --precision int8."
        )
        raise ConfigError(msg)
    if calibration is None and int8:
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
        return pattern_frames(PARITY_IMAGES // 2, side), PATTERN
    if len(calibration.held_out):
        return calibration.held_out[:PARITY_IMAGES], "held-out calibration faces"
    return calibration.frames[:PARITY_IMAGES], "calibration faces"


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


def _restorer_info(restorer: AnyRestorer, side: int) -> RestorerInfo:
    return RestorerInfo(
        arch=restorer.arch,
        side=side,
        weights_sha256=sha256_file(restorer.path),
        code_licence=restorer.meta.get("code_licence", "Apache-2.0"),
        weights_licence=restorer.meta.get("weights_licence", "unknown"),
    )
