"""Reading a bundle: checking it, choosing the engine that fits this machine, opening it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ufr_edge.errors import (
    BackendUnavailableError,
    BundleError,
    ConfigError,
    EngineMisfitError,
    InputFileError,
    UfrEdgeError,
)
from ufr_edge.files import read_json, sha256_file, write_json
from ufr_edge.runtime.bundle_archive import SUFFIX
from ufr_edge.runtime.bundle_cache import open_archive
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.engines import Engine, installed_backends, open_engine_file
from ufr_edge.runtime.manifest import MANIFEST, EngineEntry, Manifest, check_name
from ufr_edge.runtime.version_link import CURRENT, VERSIONS, linked_version

DEVICES = {
    "onnxruntime": ("cpu", "cuda"),
    "openvino": ("cpu", "gpu", "npu"),
    "tensorrt": ("cuda",),
    "tensorrt-rtx": ("cuda",),
}
"""Backend -> the kinds of device it can run on, best backend last."""

PRECISION_ORDER = ("int8", "bf16", "fp16", "fp32")
INSTALL = {
    "onnxruntime": "onnxruntime",
    "openvino": '"ufr-edge[openvino]"',
    "tensorrt": '"ufr-edge[tensorrt]"',
    "tensorrt-rtx": '"ufr-edge[tensorrt-rtx]"',
}
FLOAT_FEATURES = {"bf16": ("bf16", "amx"), "fp16": ("fp16",)}
"""Precision -> CPU features of which OpenVINO needs one; without them it would run another precision."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the caller asks of the engine; None (and device "auto") leave it open."""

    name: str | None = None
    backend: str | None = None
    precision: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Choice:
    """The engine chosen, and (name, reason) for each one that was not."""

    entry: EngineEntry
    turned_down: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Bundle:
    """A bundle folder whose manifest has been read and is sound. Files are checked when they are used."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle.

        Raises BundleError when the name leads out of the folder (also by a link) or the file is missing.
        """
        path = self.path / check_name(name)
        steps = [path, *path.parents]
        if any(step.is_symlink() for step in steps[: len(Path(name).parts)]):
            msg = f"{path} is a link; a bundle holds its files itself. Copy the bundle again."
            raise BundleError(msg)
        if not path.is_file():
            msg = f"{path} is missing. Copy the bundle again, or export it again."
            raise BundleError(msg)
        return path

    def verify(self, names: Iterable[str]) -> None:
        """Raise BundleError unless each named file has the checksum the manifest gives it."""
        for name in dict.fromkeys(names):
            path = self.file(name)
            wanted, found = self.manifest.files[name], sha256_file(path)
            if found != wanted:
                msg = (
                    f"{path} is damaged: its sha256 is {found[:12]}…, the manifest says {wanted[:12]}…. "
                    "Copy the bundle again, or export it again with: ufr-edge export"
                )
                raise BundleError(msg)

    def check(self) -> None:
        """Verify every file of the bundle. Raises BundleError naming the first that is wrong."""
        self.verify(self.manifest.files)


def read_bundle(path: Path) -> Bundle:
    """Read the manifest of a bundle: a folder NAME.ufr, an archive NAME.ufrz, or a folder of installed versions.

    An archive is unpacked into the user's cache; of a folder of versions the current one is read. `Bundle.path` is
    the folder that was read. Raises InputFileError when there is no bundle, BundleError when it is damaged.
    """
    path = _bundle_folder(path)
    if not (path / MANIFEST).is_file():
        what = "is not a bundle (it has no manifest.json)" if path.exists() else "does not exist"
        msg = f"{path} {what}. Make one with: ufr-edge export RUN -o NAME.ufr"
        raise InputFileError(msg)
    try:
        value = read_json(path / MANIFEST)
    except (InputFileError, RecursionError) as exc:
        msg = f"{path / MANIFEST} is damaged. Copy the bundle again, or export it again. ({exc})"
        raise BundleError(msg) from exc
    return Bundle(path, Manifest.from_json(value))


def _bundle_folder(path: Path) -> Path:
    if path.suffix == SUFFIX and path.is_file():
        return open_archive(path)
    installed = None if (path / MANIFEST).is_file() else linked_version(path)
    return path if installed is None else installed


def copy_files(bundle: Bundle, folder: Path, names: Iterable[str]) -> None:
    """Copy files of a bundle into `folder`, manifest.json aside. Raises BundleError when one is missing or a link."""
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(name), target)


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write manifest.json once every file it lists is in `folder` with its checksum. Raises BundleError."""
    Bundle(folder, manifest).check()
    path = folder / MANIFEST
    write_json(path, manifest.to_json())
    return path


def choose_engine(
    manifest: Manifest,
    *,
    fingerprint: Mapping[str, str],
    backends: Mapping[str, str],
    wanted: Wanted | None = None,
    path: Path | None = None,
) -> Choice:
    """Choose the fastest kind of engine that fits; the same arguments always give the same choice.

    `fingerprint` is device_fingerprint() and `backends` installed_backends() of the machine in question.
    Order: TensorRT, OpenVINO, ONNX Runtime; within one int8, bf16, fp16, fp32; then the manifest's order.
    path: of the bundle, for the message.
    Raises ConfigError when no engine is what is wanted, EngineMisfitError when those wanted do not fit the
    machine (naming the field), BackendUnavailableError when only their backend is missing.
    """
    fitting, refusals = rank_engines(manifest, fingerprint=fingerprint, backends=backends, wanted=wanted)
    if not fitting:
        _check_name(manifest, wanted)
        raise _none_fits(manifest, _of_named(refusals, wanted), path)
    best = fitting[0]
    outrun = [(entry.name, _why_behind(entry, best)) for entry in fitting[1:]]
    return Choice(best, (*outrun, *((name, str(error)) for name, error in refusals)))


def rank_engines(
    manifest: Manifest,
    *,
    fingerprint: Mapping[str, str],
    backends: Mapping[str, str],
    wanted: Wanted | None = None,
) -> tuple[tuple[EngineEntry, ...], tuple[tuple[str, UfrEdgeError], ...]]:
    """Return the engines that fit, in choose_engine's order, and (name, error) for those that do not."""
    asked = wanted or Wanted()
    refusals = {entry.name: _refusal(entry, fingerprint, backends, asked) for entry in manifest.engines}
    fitting = sorted((entry for entry in manifest.engines if refusals[entry.name] is None), key=_rank)
    return tuple(fitting), tuple((name, error) for name, error in refusals.items() if error is not None)


def open_bundle_engine(
    path: Path,
    *,
    engine: str | None = None,
    backend: str | None = None,
    precision: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    cache_dir: Path | None = None,
) -> Engine:
    """Open the engine of a bundle that was asked for by name, backend or precision, else the fastest that fits.

    Its files are verified first. Raises InputFileError, BundleError, ConfigError, EngineMisfitError,
    BackendUnavailableError; never opens another engine than the one chosen.
    """
    bundle = read_bundle(path)
    wanted = Wanted(name=engine, backend=backend, precision=precision, device=device)
    choice = choose_engine(
        bundle.manifest,
        fingerprint=device_fingerprint(),
        backends=installed_backends(),
        wanted=wanted,
        path=path,
    )
    return open_entry(bundle, choice.entry, device=device, threads=threads, cache_dir=cache_dir)


def open_entry(
    bundle: Bundle,
    entry: EngineEntry,
    *,
    device: str = "auto",
    threads: int | None = None,
    cache_dir: Path | None = None,
) -> Engine:
    """Verify and open one engine of a bundle. Raises as open_bundle_engine."""
    bundle.verify(entry.files)
    engine = open_engine_file(
        bundle.file(entry.files[0]),
        backend=entry.backend,
        device=device,
        precision=entry.precision,
        threads=threads,
        cache_dir=cache_dir,
    )
    side = bundle.manifest.restorer.side
    if engine.info.side not in (None, side):
        engine.close()
        msg = f"Engine {entry.name} takes {engine.info.side} px faces, the manifest says {side}. Export it again."
        raise BundleError(msg)
    return engine


def _rank(entry: EngineEntry) -> tuple[int, int]:
    precisions = PRECISION_ORDER
    place = precisions.index(entry.precision) if entry.precision in precisions else len(precisions)
    return -list(DEVICES).index(entry.backend), place


def _why_behind(entry: EngineEntry, best: EngineEntry) -> str:
    """Say why an engine that fits is not the one: the first thing _rank tells the two apart by."""
    for field in ("backend", "precision"):
        mine, its = getattr(entry, field), getattr(best, field)
        if mine != its:
            return f"{best.name} goes before it: {its} before {mine}"
    return f"{best.name} goes before it: it comes first in the manifest"


def _refusal(
    entry: EngineEntry, fingerprint: Mapping[str, str], backends: Mapping[str, str], wanted: Wanted
) -> UfrEdgeError | None:
    """Return why an engine is turned down, as the error to raise if nothing else is left; None when it fits."""
    asked = {"name": wanted.name, "backend": wanted.backend, "precision": wanted.precision}
    for field, value in asked.items():
        if value is not None and value != (found := getattr(entry, field)):
            return ConfigError(f"{field} {value} was asked for, it is {found}")
    kinds = DEVICES.get(entry.backend, ())
    if wanted.device != "auto" and wanted.device.lower().split(":")[0].split(".")[0] not in kinds:
        return ConfigError(
            f"device {wanted.device} was asked for, {entry.backend} runs on {', '.join(kinds)}"
        )
    if not kinds:
        return EngineMisfitError(f"this version does not know the backend {entry.backend}")
    if entry.backend not in backends:
        return BackendUnavailableError(
            f"{entry.backend} is not installed. Run: pip install {INSTALL[entry.backend]}"
        )
    field_misfit = _misfit(entry, fingerprint, backends[entry.backend], wanted)
    return None if field_misfit is None else EngineMisfitError(field_misfit)


def _misfit(entry: EngineEntry, fingerprint: Mapping[str, str], version: str, wanted: Wanted) -> str | None:
    for field, value in entry.device_fingerprint.items():
        here = fingerprint.get(field, "none")
        if here not in {part.strip() for part in value.split(",")}:
            return f"{field} is {here} here, the engine was built for {value}"
    if entry.format.startswith("tensorrt"):
        if "gpu_compute" not in fingerprint:
            return "gpu: there is no NVIDIA GPU here"
        if version != entry.backend_version:
            return f"backend_version is {version} here, the engine was built with {entry.backend_version}"
    on_cpu = entry.backend == "openvino" and wanted.device.lower() in ("auto", "cpu")
    needs = FLOAT_FEATURES.get(entry.precision, ()) if on_cpu else ()
    if needs and not set(needs) & set(fingerprint.get("cpu_flags", "").split(",")):
        return f"cpu_flags has none of {', '.join(needs)} here, which {entry.precision} needs"
    return None


def _of_named(
    refusals: Sequence[tuple[str, UfrEdgeError]], wanted: Wanted | None
) -> Sequence[tuple[str, UfrEdgeError]]:
    """What is wrong with the engine named, where the bundle has it: that the others are called otherwise says nothing."""
    named = [item for item in refusals if wanted is not None and item[0] == wanted.name]
    return named or refusals


def _check_name(manifest: Manifest, wanted: Wanted | None) -> None:
    """Raise ConfigError when an engine is wanted by a name that the bundle does not have."""
    names = [entry.name for entry in manifest.engines]
    if names and wanted is not None and wanted.name is not None and wanted.name not in names:
        msg = f"The bundle {manifest.name} has no engine {wanted.name!r}; it has: {', '.join(names)}."
        raise ConfigError(msg)


def _none_fits(
    manifest: Manifest, refusals: Sequence[tuple[str, UfrEdgeError]], path: Path | None
) -> UfrEdgeError:
    """Build the error to raise: that of the engines that come closest to what was asked."""
    asked_for = [item for item in refusals if not isinstance(item[1], ConfigError)]
    listing = "; ".join(f"{name}: {error}" for name, error in asked_for or refusals)
    if not asked_for:
        return ConfigError(f"No engine of {manifest.name} is what was asked for: {listing or 'it has none'}.")
    if any(isinstance(error, EngineMisfitError) for _, error in asked_for):
        if path is not None and path.parent.name == VERSIONS and (path.parents[1] / CURRENT).exists():
            path = path.parents[1]  # a version never changes; how another is made, `rebuild` says
        msg = (
            f"No engine of {manifest.name} fits this machine: {listing}. "
            "Choose another with --engine-name NAME, or build it here: give --rebuild, or run: "
            f"ufr-edge bundle rebuild {path or 'BUNDLE'} --all-misfits"
        )
        return EngineMisfitError(msg)
    return BackendUnavailableError(f"No engine of {manifest.name} can run here: {listing}")
