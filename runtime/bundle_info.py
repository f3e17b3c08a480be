"""What a bundle holds, which engine this machine would run and why, and everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ufr_edge.errors import BackendUnavailableError, BundleError, ConfigError, EngineMisfitError
from ufr_edge.runtime.bundle import (
    Bundle,
    Wanted,
    choose_engine,
    rank_engines,
    read_bundle,
)
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.engines import installed_backends
from ufr_edge.runtime.manifest import MANIFEST, EngineEntry, Manifest


@dataclass(frozen=True, kw_only=True)
class EngineSummary:
    """One engine: its manifest entry, the bytes of its files, and why this machine would not choose it ("" = it would)."""

    entry: EngineEntry
    size: int
    turned_down: str

    @property
    def drop_db(self) -> float | None:
        """The quality lost against fp32 in dB PSNR as it was measured at export, None when it was not."""
        quality = self.entry.quality.items()
        drops = [value for key, value in quality if key.endswith("drop_db") and "worst" not in key]
        return drops[0] if drops else None


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """A bundle and this machine: `chosen` is the engine it would run, None when none fits."""

    path: Path
    manifest: Manifest
    size: int
    chosen: str | None
    engines: tuple[EngineSummary, ...]
    machine: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return a value for json.dumps."""
        plain = self.manifest.to_json()
        engines = [
            entry | {"size": item.size, "drop_db": item.drop_db, "turned_down": item.turned_down or None}
            for entry, item in zip(plain["engines"], self.engines, strict=True)
        ]
        return plain | {
            "path": str(self.path),
            "shows_people": self.manifest.shows_people,
            "size": self.size,
            "chosen": self.chosen,
            "engines": engines,
            "machine": dict(self.machine),
        }


def describe_bundle(path: Path, *, wanted: Wanted | None = None) -> BundleInfo:
    """Read a bundle and choose for this machine, without opening an engine or a checksum.

    Raises InputFileError, BundleError (a file is missing).
    """
    bundle = read_bundle(path)
    here = device_fingerprint()
    chosen, reasons = _choice(bundle.manifest, here, wanted)
    sizes = {name: bundle.file(name).stat().st_size for name in bundle.manifest.files}
    return BundleInfo(
        path=bundle.path,
        manifest=bundle.manifest,
        size=sum(sizes.values()),
        chosen=chosen,
        engines=tuple(
            EngineSummary(
                entry=entry,
                size=sum(sizes[name] for name in dict.fromkeys(entry.files)),
                turned_down=reasons.get(entry.name, ""),
            )
            for entry in bundle.manifest.engines
        ),
        machine=here,
    )


def bundle_problems(bundle: Bundle) -> tuple[str, ...]:
    """Return everything wrong with a bundle's files, each with the file's name; empty when it is whole.

    Checked: every checksum, that each engine's ONNX is among the files, and that nothing else lies in the folder.
    (What is wrong in the manifest itself, read_bundle has raised already.)
    """
    found: list[str] = []
    for name in bundle.manifest.files:
        try:
            bundle.verify([name])
        except BundleError as exc:
            found.append(str(exc))
    known = set(bundle.manifest.files.values())
    found += [
        f"Engine {entry.name} was built from an ONNX that is not in the bundle ({entry.onnx_sha256[:12]}…)."
        for entry in bundle.manifest.engines
        if entry.onnx_sha256 not in known
    ]
    listed = {*bundle.manifest.files, MANIFEST}
    found += [
        f"{bundle.path / name} is not in the manifest. Remove it, or export the bundle again."
        for name in _names_inside(bundle.path)
        if name not in listed
    ]
    return tuple(found)


def _choice(
    manifest: Manifest, here: Mapping[str, str], wanted: Wanted | None
) -> tuple[str | None, dict[str, str]]:
    backends = installed_backends()
    try:
        choice = choose_engine(manifest, fingerprint=here, backends=backends, wanted=wanted)
    except (ConfigError, EngineMisfitError, BackendUnavailableError):
        _, refusals = rank_engines(manifest, fingerprint=here, backends=backends, wanted=wanted)
        return None, {name: str(error) for name, error in refusals}
    return choice.entry.name, dict(choice.turned_down)


def _names_inside(folder: Path) -> list[str]:
    """Names of all files and links in a folder, at any depth, by `/`; links are not followed."""
    found = []
    for top, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(top) / name).is_symlink()]
        found += [(Path(top) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)
