"""The manifest of a bundle: what is in it, where it came from, what it was measured at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ufr_edge import __version__
from ufr_edge.errors import BundleError

SCHEMA = 1
NEEDS = "0.1.0"
"""The oldest ufr-edge that reads SCHEMA. Raise both together."""

MANIFEST = "manifest.json"
CALIBRATION, GATE = "calibration.json", "gate.json"
"""Records beside it: the calibration faces chosen, and what the gate measured."""
REFERENCE = "reference"
"""Folder with `lq/`, `fp32/` and, where the truth is known, `hq/`: faces to measure engines on again."""
FORMATS = ("onnx", "openvino", "tensorrt", "tensorrt-rtx")
SHA256 = "[0-9a-f]{64}"
_SHA256 = re.compile(SHA256)
_VERSION = re.compile(r"\d+(\.\d+){0,3}")
_NAME_BYTES = 200  # with room for a suffix, below what any file system takes


@dataclass(frozen=True, kw_only=True)
class RestorerInfo:
    """The network: architecture name, face side in pixels, weights and their licences."""

    arch: str
    side: int
    weights_sha256: str
    code_licence: str
    weights_licence: str


@dataclass(frozen=True, kw_only=True)
class CalibrationInfo:
    """The frames an int8 engine was calibrated on: sha256 over the frames, their count, the method."""

    set_id: str
    count: int
    method: str


@dataclass(frozen=True, kw_only=True)
class ParityInfo:
    """The engine against torch on `images` faces; `max_abs` and `mean_abs` in uint8 levels."""

    psnr_db: float
    max_abs: float
    mean_abs: float
    images: int


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """One engine of the bundle. `files[0]` is the one to open.

    `device_fingerprint` holds the fields that must be equal on the machine that runs it (a value may be a
    comma-separated list of which one must be equal); it is empty for portable files (onnx, openvino).
    """

    name: str
    backend: str
    backend_version: str
    format: str
    precision: str
    device: str
    files: tuple[str, ...]
    onnx_sha256: str
    device_fingerprint: Mapping[str, str] = field(default_factory=dict)
    calibration: CalibrationInfo | None = None
    parity: ParityInfo | None = None
    quality: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that manifest.json says. `onnx` is the fp32 base file, `files` maps each file to its sha256.

    `lineage` may hold parent, run_id, camera, prior and teacher with their licences. `needs_ufr_edge` is the oldest ufr-edge that reads this
    schema: it and `schema` keep their place in every later schema, so that an old reader can say what it needs.
    Construction raises BundleError when the parts do not fit together or a file name leaves the bundle.
    """

    name: str
    created: str
    restorer: RestorerInfo
    onnx: str
    engines: tuple[EngineEntry, ...]
    files: Mapping[str, str]
    lineage: Mapping[str, str] = field(default_factory=dict)
    needs_ufr_edge: str = NEEDS
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _check_manifest(self)

    def engine(self, name: str) -> EngineEntry:
        """Return the engine of that name. Raises BundleError when there is none."""
        for entry in self.engines:
            if entry.name == name:
                return entry
        msg = f"The bundle {self.name} has no engine {name!r}; it has: {', '.join(e.name for e in self.engines)}."
        raise BundleError(msg)

    @property
    def shows_people(self) -> bool:
        """Whether reference faces, pictures of people, are among the files."""
        return any(name.startswith(f"{REFERENCE}/") for name in self.files)

    def to_json(self) -> dict[str, Any]:
        """Return a value for json.dumps."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Read what to_json wrote. Raises BundleError naming the first field that is wrong."""
        top = _Fields(value, "manifest")
        needs = _check_schema(top)
        return cls(
            name=top.text("name"),
            created=top.text("created"),
            restorer=_restorer(top.part("restorer")),
            onnx=top.text("onnx"),
            engines=tuple(_engine(part) for part in top.parts("engines")),
            files=top.texts("files"),
            lineage=top.texts("lineage"),
            needs_ufr_edge=needs,
        )


class _Fields:
    """Typed access to a JSON object; every complaint names the field."""

    def __init__(self, value: Any, where: str) -> None:
        self._where = where
        self._value: dict[str, Any] = self._checked(value, dict, where)

    def text(self, key: str) -> str:
        return str(self._get(key, str))

    def integer(self, key: str) -> int:
        return int(self._get(key, int))

    def number(self, key: str) -> float:
        value = self._value.get(key)
        return float(self._get(key, int if isinstance(value, int) else float))

    def names(self, key: str) -> tuple[str, ...]:
        return tuple(
            self._checked(item, str, f"{self._where}.{key}[{index}]")
            for index, item in enumerate(self._get(key, list))
        )

    def texts(self, key: str) -> dict[str, str]:
        part = self.part(key)
        return {name: part.text(name) for name in part._value}

    def numbers(self, key: str) -> dict[str, float]:
        part = self.part(key)
        return {name: part.number(name) for name in part._value}

    def part(self, key: str) -> _Fields:
        return _Fields(self._get(key, dict), f"{self._where}.{key}")

    def has(self, key: str) -> bool:
        return key in self._value

    def optional(self, key: str) -> _Fields | None:
        return None if self._value.get(key) is None else self.part(key)

    def parts(self, key: str) -> tuple[_Fields, ...]:
        items = self._get(key, list)
        return tuple(_Fields(item, f"{self._where}.{key}[{index}]") for index, item in enumerate(items))

    def _get(self, key: str, kind: type) -> Any:
        return self._checked(self._value.get(key), kind, f"{self._where}.{key}")

    @staticmethod
    def _checked(value: Any, kind: type, where: str) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = "missing" if value is None else f"{type(value).__name__}"
            msg = f"The bundle's {where} is {found}, it must be {kind.__name__}. Export the bundle again."
            raise BundleError(msg)
        return value


def check_name(name: str) -> str:
    """Return a file name of a bundle, or raise BundleError when it could lead out of the folder."""
    path = PurePosixPath(name)
    size = len(name.encode("utf-8", "replace"))
    plain = path.as_posix() == name and name not in (".", MANIFEST) and 0 < size <= _NAME_BYTES
    # Windows reads `a:b` as a drive or a stream; control characters, NUL above all, end names early.
    foreign = PureWindowsPath(name).drive or "\\" in name or ":" in name or not name.isprintable()
    if not plain or path.is_absolute() or ".." in path.parts or foreign:
        msg = f"The bundle names the file {name!r}, which is not a plain path inside it. Do not use this bundle."
        raise BundleError(msg)
    return name


def _check_schema(top: _Fields) -> str:
    """Return needs_ufr_edge, or refuse a schema this version does not read."""
    schema = top.integer("schema")
    needs = top.text("needs_ufr_edge") if top.has("needs_ufr_edge") else None
    if needs is not None and not _VERSION.fullmatch(needs):
        msg = f"The bundle's manifest.needs_ufr_edge is {needs!r}, which is no version. Export the bundle again."
        raise BundleError(msg)
    if schema > SCHEMA:
        known = needs is not None and needs != __version__
        wanted = f"ufr-edge {needs} or newer" if known else "a newer ufr-edge"
        package = f'"ufr-edge>={needs}"' if known else "ufr-edge"
        msg = (
            f"The bundle has manifest schema {schema}, this ufr-edge {__version__} reads up to {SCHEMA}. "
            f"It needs {wanted}. Run: pip install --upgrade {package}"
        )
        raise BundleError(msg)
    if schema < 1:
        msg = f"The bundle has manifest schema {schema}, which never was. Export the bundle again."
        raise BundleError(msg)
    return needs or NEEDS


def _restorer(part: _Fields) -> RestorerInfo:
    return RestorerInfo(
        arch=part.text("arch"),
        side=part.integer("side"),
        weights_sha256=part.text("weights_sha256"),
        code_licence=part.text("code_licence"),
        weights_licence=part.text("weights_licence"),
    )


def _engine(part: _Fields) -> EngineEntry:
    calibration, parity = part.optional("calibration"), part.optional("parity")
    return EngineEntry(
        name=part.text("name"),
        backend=part.text("backend"),
        backend_version=part.text("backend_version"),
        format=part.text("format"),
        precision=part.text("precision"),
        device=part.text("device"),
        device_fingerprint=part.texts("device_fingerprint"),
        files=part.names("files"),
        onnx_sha256=part.text("onnx_sha256"),
        calibration=None if calibration is None else _calibration(calibration),
        parity=None if parity is None else _parity(parity),
        quality=part.numbers("quality"),
    )


def _calibration(part: _Fields) -> CalibrationInfo:
    return CalibrationInfo(
        set_id=part.text("set_id"), count=part.integer("count"), method=part.text("method")
    )


def _parity(part: _Fields) -> ParityInfo:
    return ParityInfo(
        psnr_db=part.number("psnr_db"),
        max_abs=part.number("max_abs"),
        mean_abs=part.number("mean_abs"),
        images=part.integer("images"),
    )


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _check_manifest(manifest: Manifest) -> None:
    for name, digest in manifest.files.items():
        check_name(name)
        _check_sha256(f"checksum of {name}", digest)
    _check_sha256("restorer.weights_sha256", manifest.restorer.weights_sha256)
    if manifest.restorer.side < 1:
        msg = f"The bundle's manifest.restorer.side is {manifest.restorer.side}, no side. Export the bundle again."
        raise BundleError(msg)
    _check_engines(manifest)


def _check_sha256(what: str, digest: str) -> None:
    if not _SHA256.fullmatch(digest):
        msg = f"The {what} in the manifest is no sha256. Export the bundle again."
        raise BundleError(msg)


def _check_engines(manifest: Manifest) -> None:
    names = [entry.name for entry in manifest.engines]
    if len(set(names)) != len(names):
        msg = f"The bundle {manifest.name} names two engines alike: {', '.join(names)}. Export it again."
        raise BundleError(msg)
    used = [manifest.onnx, *(name for entry in manifest.engines for name in entry.files)]
    for name in used:
        if name not in manifest.files:
            msg = f"The bundle {manifest.name} uses {name} but gives no checksum for it. Export it again."
            raise BundleError(msg)
    for entry in manifest.engines:
        _check_sha256(f"onnx_sha256 of engine {entry.name}", entry.onnx_sha256)
        # OpenVINO opens the .bin beside an .xml by itself, so it must be among the files that are checked.
        missing = {name[:-4] + ".bin" for name in entry.files if name.endswith(".xml")} - set(entry.files)
        if missing:
            msg = f"Engine {entry.name} does not list {missing.pop()} among its files. Export it again."
            raise BundleError(msg)
        if not entry.files or entry.format not in FORMATS:
            msg = f"Engine {entry.name} has no files or an unknown format {entry.format!r}. Export it again."
            raise BundleError(msg)
