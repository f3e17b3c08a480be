"""Building engines of a bundle again from the ONNX inside it, on the machine that will run them. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ufr_edge.calibration.compare import compare_frames, run_batches
from ufr_edge.calibration.frames import CalibrationSet, load_calibration
from ufr_edge.calibration.gate import Drop, GateConfig, GateSet, measure_drop, over_limits
from ufr_edge.calibration.ptq_openvino import NncfConfig
from ufr_edge.errors import (
    BackendUnavailableError,
    BuildError,
    BundleError,
    CalibrationError,
    ConfigError,
    EngineMisfitError,
    GateFailedError,
)
from ufr_edge.export.lock import build_lock
from ufr_edge.export.openvino_export import export_openvino
from ufr_edge.export.rebuild_evidence import gate_faces, kept_layers, kept_nodes, update_record
from ufr_edge.export.tensorrt_export import Building, BuildLimits, export_tensorrt
from ufr_edge.files import atomic_folder, check_free, check_replaceable, sha256_file
from ufr_edge.optional import require
from ufr_edge.runtime.bundle import (
    Bundle,
    Wanted,
    copy_files,
    open_entry,
    rank_engines,
    read_bundle,
    write_manifest,
)
from ufr_edge.runtime.bundle_archive import SUFFIX
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.engines import installed_backends, open_engine_file
from ufr_edge.runtime.manifest import MANIFEST, CalibrationInfo, EngineEntry, Manifest, ParityInfo

if TYPE_CHECKING:
    from ufr_edge.export.rebuild_add import Addition

Advance = Callable[..., None]


def _no_progress(n: int = 1, note: str = "") -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class RebuiltEngine:
    """One engine built again: its parity before and now, and its drop (None when not measured, `note` saying why)."""

    name: str
    before: ParityInfo | None
    parity: ParityInfo | None
    drop: Drop | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class RebuildReport:
    """The bundle written, the engines built again, and (name, reason) of misfits that building cannot mend.

    measured_on: the faces, in words; "" when nothing was built.
    """

    path: Path
    engines: tuple[RebuiltEngine, ...]
    left: tuple[tuple[str, str], ...]
    measured_on: str = ""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a rebuild works from; `out` is the folder being written, not yet the bundle."""

    bundle: Bundle
    out: Path
    gate: GateSet
    limits: GateConfig | None
    calibration: CalibrationSet | None
    additions: tuple[Addition, ...] = ()
    building: Building = field(default_factory=Building)


def rebuild_bundle(
    path: Path,
    *,
    engines: Sequence[str] | None = None,
    add: Sequence[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
    calibration: Path | None = None,
    faces: Path | None = None,
    max_drop: float | None = 0.3,
    tensorrt: BuildLimits | None = None,
    advance: Advance | None = None,
) -> RebuildReport:
    """Build engines of the bundle folder `path` again and put the new bundle in its place, whole or not at all.

    engines: names, None = every one that does not fit this machine and would after a build. add: engines that the
    bundle lacks, such as tensorrt-rtx-fp16. out: write the new bundle there and leave the old alone. calibration: folder of the camera's faces, needed for OpenVINO int8 (the
    other int8 engines carry their ranges in their ONNX). faces: folder of aligned faces to measure on, None = those
    the bundle carries, else held-out calibration faces, else a test pattern. max_drop: dB against the bundle's fp32
    ONNX beyond which an engine is refused, None = never. tensorrt: what its builds may take. advance(1, name) after
    each engine, advance(0, words) within a TensorRT build. Waits when another
    process builds the same bundle.
    Raises ConfigError (name, nothing to build from), CalibrationError, BackendUnavailableError, EngineMisfitError,
    BundleError, InputFileError, OutputError: before anything is built; BuildError, GateFailedError.
    """
    target = path if out is None else out
    say = advance or _no_progress
    if not path.parent.is_dir():
        read_bundle(path)  # raises: there is none, and the lock would make its folder
    with build_lock(target, on_wait=lambda holder: say(0, f"waiting for {holder}")):
        bundle = _checked_bundle(path, target, overwrite or out is None)
        names, left = _misfits(bundle.manifest) if engines is None else (tuple(engines), ())
        entries = [_buildable(bundle, name) for name in dict.fromkeys(names)]
        additions = _additions(bundle, add)
        if not entries and not additions:
            return RebuildReport(path=path, engines=(), left=left)
        data = _calibration(entries, additions, calibration, bundle.manifest.restorer.side)
        limits = None if max_drop is None else GateConfig(max_drop_db=max_drop)
        with open_engine_file(bundle.file(bundle.manifest.onnx)) as base:
            gate = gate_faces(bundle, lambda f: run_batches(base, f), faces=faces, calibration=data)
        with atomic_folder(target, overwrite=True) as folder:
            building = Building(limits=tensorrt or BuildLimits(), note=lambda text: say(0, text), logs=target)
            job = _Job(
                bundle=bundle,
                out=folder,
                gate=gate,
                limits=limits,
                calibration=data,
                additions=additions,
                building=building,
            )
            built = _build_all(job, entries, say)
            # Read back what was written before it takes the old one's place.
            read_bundle(folder).check()
    return RebuildReport(path=target, engines=built, left=left, measured_on=gate.origin)


def _checked_bundle(path: Path, target: Path, overwrite: bool) -> Bundle:
    if path.suffix == SUFFIX and path.is_file():
        msg = f"{path} is an archive. Unpack it first: ufr-edge bundle unpack {path} -o NAME.ufr"
        raise ConfigError(msg)
    bundle = read_bundle(path)
    if bundle.path != path and target == path:
        msg = f"{path} holds installed versions, which never change. Give -o NEW.ufr, then: ufr-edge bundle install"
        raise ConfigError(msg)
    check_free(target, overwrite=overwrite)
    check_replaceable(target, MANIFEST)
    bundle.check()
    return bundle


def _misfits(manifest: Manifest) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the engines that a build here would make fit, and (name, reason) of those it would not."""
    here, backends = device_fingerprint(), installed_backends()
    _, refusals = rank_engines(manifest, fingerprint=here, backends=backends)
    mendable, left = [], []
    for name, error in refusals:
        entry = manifest.engine(name)
        after = _for_here(entry, here, backends) if isinstance(error, EngineMisfitError) else entry
        one = replace(manifest, engines=(after,))
        fits, still = rank_engines(one, fingerprint=here, backends=backends, wanted=Wanted())
        if fits and entry.format != "onnx":
            mendable.append(name)
        else:
            left.append((name, str(still[0][1] if still else error)))
    return tuple(mendable), tuple(left)


def _for_here(entry: EngineEntry, here: Mapping[str, str], backends: Mapping[str, str]) -> EngineEntry:
    """The entry as it would read once built on this machine."""
    return replace(
        entry,
        backend_version=backends.get(entry.backend, entry.backend_version),
        device_fingerprint={key: here.get(key, value) for key, value in entry.device_fingerprint.items()},
    )


def _buildable(bundle: Bundle, name: str) -> EngineEntry:
    """Return the engine, or say why it cannot be built again here."""
    entry = bundle.manifest.engine(name)
    if entry.format == "onnx":
        msg = f"Engine {name} is an ONNX file, which fits every machine; there is nothing to build. Leave it out."
        raise ConfigError(msg)
    if entry.backend not in installed_backends():
        msg = f'Engine {name} needs {entry.backend}, which is not installed. Run: pip install "ufr-edge[{entry.backend}]"'
        raise BackendUnavailableError(msg)
    gone = [key for key in entry.device_fingerprint if key not in device_fingerprint()]
    if gone:
        msg = f"Engine {name} is for a machine with {', '.join(gone)}, which this one lacks. Build it on the device."
        raise EngineMisfitError(msg)
    _source(bundle.manifest, entry)
    return entry


def _additions(bundle: Bundle, names: Sequence[str]) -> tuple[Addition, ...]:
    if not names:
        return ()
    require(
        "onnx", extra="build"
    )  # only to add: a device that builds again what is there needs no more than engines
    from ufr_edge.export.rebuild_add import plan_addition

    here, backends = device_fingerprint(), installed_backends()
    return tuple(plan_addition(bundle, name, here=here, backends=backends) for name in dict.fromkeys(names))


def _source(manifest: Manifest, entry: EngineEntry) -> str:
    """The name of the ONNX that an engine was built from."""
    for name in (*entry.files, manifest.onnx, *manifest.files):
        if name.endswith(".onnx") and manifest.files.get(name) == entry.onnx_sha256:
            return name
    msg = f"The ONNX that engine {entry.name} was built from is not in the bundle. Export it again."
    raise BundleError(msg)


def _calibration(
    entries: Sequence[EngineEntry], additions: Sequence[Addition], folder: Path | None, side: int
) -> CalibrationSet | None:
    needy = [e.name for e in entries if e.format == "openvino" and e.precision == "int8"]
    needy += [item.request.name for item in additions if item.needs_calibration]
    if not needy:
        return None
    if folder is None:
        msg = (
            f"Engine {needy[0]} is int8: its ranges come from faces of the camera, which a bundle does not carry. "
            "Give --calibration FOLDER; collect them with: ufr-edge collect SOURCE -o FOLDER"
        )
        raise CalibrationError(msg)
    return load_calibration(folder, side)


def _build_all(job: _Job, entries: Sequence[EngineEntry], advance: Advance) -> tuple[RebuiltEngine, ...]:
    old = job.bundle.manifest
    stale = {name for entry in entries for name in entry.files if not name.endswith(".onnx")}
    copy_files(job.bundle, job.out, [name for name in old.files if name not in stale])
    manifest, labels, built = old, dict[str, tuple[str, ...]](), []
    for addition in job.additions:
        manifest, entry, labels[addition.request.name] = _prepare(job, manifest, addition)
        entries = (*entries, entry)
    for entry in entries:
        manifest, done = _build_one(job, manifest, entry)
        built.append(done)
        advance(1, entry.name)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    lineage = {**old.lineage, "rebuilt_from": sha256_file(job.bundle.path / MANIFEST)}
    files = update_record(
        job.out, manifest.files, {item.name: _as_record(job, manifest, item, labels) for item in built}
    )
    write_manifest(job.out, replace(manifest, created=created, lineage=lineage, files=files))
    return tuple(built)


def _prepare(
    job: _Job, manifest: Manifest, addition: Addition
) -> tuple[Manifest, EngineEntry, tuple[str, ...]]:
    """Put the ONNX of an engine to be added into the manifest; return it, the engine's entry, and what stays fp32."""
    from ufr_edge.export.rebuild_add import prepare_addition

    entry, words = prepare_addition(
        addition,
        job.bundle,
        job.out,
        frames=job.gate.faces,
        calibration=job.calibration,
        here=device_fingerprint(),
    )
    files = {**manifest.files, addition.source: entry.onnx_sha256}
    return replace(manifest, files=files), entry, words


def _as_record(
    job: _Job, manifest: Manifest, item: RebuiltEngine, labels: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """The engine's part of gate.json. labels: of the engines added."""
    entry = manifest.engine(item.name)
    kept = labels[item.name] if item.name in labels else kept_layers(job.bundle, item.name)
    return {
        "drop": None if item.drop is None else item.drop.to_json(),
        "faces": job.gate.origin,
        "measured_on": entry.files[0] if item.drop is not None else "",
        "kept_layers": list(kept),
        "rebuilt": True,
    }


def _build_one(job: _Job, manifest: Manifest, entry: EngineEntry) -> tuple[Manifest, RebuiltEngine]:
    files = _write_engine(job, manifest, entry)
    digests = {key: value for key, value in manifest.files.items() if key not in entry.files}
    digests |= {name: sha256_file(job.out / name) for name in files}
    fresh = replace(
        _for_here(entry, device_fingerprint(), installed_backends()),
        files=files,
        calibration=_calibration_info(job, entry),
        parity=None,
        quality={},
    )
    others = {item.name: item for item in manifest.engines} | {entry.name: fresh}
    manifest = replace(manifest, engines=tuple(others.values()), files=digests)
    parity, drop, note = _measure(job, manifest, fresh)
    others[entry.name] = replace(fresh, parity=parity, quality=drop.quality() if drop is not None else {})
    done = RebuiltEngine(name=entry.name, before=entry.parity, parity=parity, drop=drop, note=note)
    return replace(manifest, engines=tuple(others.values())), done


def _write_engine(job: _Job, manifest: Manifest, entry: EngineEntry) -> tuple[str, ...]:
    """Build into the files that the engine had before; return their names, the one to open first."""
    source = _source(manifest, entry)
    target = job.out / entry.files[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.format == "openvino":
        config, frames = None, None
        if job.calibration is not None and entry.precision == "int8":
            config, frames = _nncf_config(job, entry), job.calibration.frames
        paths = export_openvino(
            job.out / source, target, precision=entry.precision, frames=frames, config=config
        )
        return tuple(path.relative_to(job.out).as_posix() for path in paths)
    side = job.bundle.manifest.restorer.side
    how = job.building
    export_tensorrt(
        job.out / source,
        target,
        backend=entry.format,
        config=how.limits.at(side),
        note=lambda text: how.note(f"{entry.name}: {text}"),
        log=how.log(entry.name),
    )
    return entry.files[0], source


def _nncf_config(job: _Job, entry: EngineEntry) -> NncfConfig:
    """As at export, with the layers the gate left in float still left in float."""
    labels = kept_layers(job.bundle, entry.name)
    return NncfConfig(ignored=kept_nodes(job.out / job.bundle.manifest.onnx, labels))


def _calibration_info(job: _Job, entry: EngineEntry) -> CalibrationInfo | None:
    if job.calibration is None or entry.format != "openvino" or entry.precision != "int8":
        return entry.calibration
    data, method = job.calibration, _nncf_config(job, entry).method
    if _source(job.bundle.manifest, entry) != job.bundle.manifest.onnx and entry.calibration is not None:
        # Fine-tuned for int8 at export: how, its record says first.
        method = f"{entry.calibration.method.split(';')[0]}; {method}"
    return CalibrationInfo(set_id=data.set_id, count=len(data.frames), method=method)


def _measure(job: _Job, manifest: Manifest, entry: EngineEntry) -> tuple[ParityInfo | None, Drop | None, str]:
    """Run the file that was written: parity, drop, a note. One that cannot run here is noted, not refused."""
    try:
        engine = open_entry(Bundle(job.out, manifest), entry)
    except (BackendUnavailableError, EngineMisfitError) as exc:
        fits, _ = rank_engines(
            replace(manifest, engines=(entry,)),
            fingerprint=device_fingerprint(),
            backends=installed_backends(),
        )
        if fits and isinstance(exc, EngineMisfitError):  # it should run here: what was built is wrong
            msg = (
                f"Engine {entry.name}, built again, is not what was asked for: {exc} The bundle is as it was."
            )
            raise BuildError(msg) from exc
        return None, None, f"{entry.name} was not measured: {exc}"
    with engine:
        parity = compare_frames(run_batches(engine, job.gate.faces), job.gate.expected)
        drop = measure_drop(lambda frames: run_batches(engine, frames), job.gate)
    reasons = () if job.limits is None else over_limits(drop, job.limits)
    if reasons:
        msg = (
            f"Engine {entry.name}, built again, fails the gate on {job.gate.origin}: {'; '.join(reasons)}. "
            "The bundle is as it was. Give more faces to --calibration, or a higher --max-drop."
        )
        raise GateFailedError(msg)
    return parity, drop, ""
