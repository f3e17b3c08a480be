"""`ufr-edge eval`: restorers side by side on degraded or given faces, with every setting stated in the result."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ufr_edge import __version__
from ufr_edge.adaptation.eval_settings import metric_settings
from ufr_edge.adaptation.evaluate import Figures, Meters, Truth, measure_faces
from ufr_edge.adaptation.faces import load_faces, source_of
from ufr_edge.adaptation.pictures import sheet
from ufr_edge.adaptation.restorer_task import restore_batch
from ufr_edge.adaptation.training import pick_device
from ufr_edge.degradations.presets import degrade, get_preset
from ufr_edge.errors import BackendUnavailableError, ConfigError, InputFileError
from ufr_edge.files import atomic_file, check_free, write_json
from ufr_edge.metrics.fid_inception import load_inception
from ufr_edge.metrics.lpips_net import load_lpips
from ufr_edge.metrics.pairs import pair_by_name
from ufr_edge.metrics.quality import PLAIN, QualitySettings
from ufr_edge.priors.features import load_features
from ufr_edge.progress import progress_bar
from ufr_edge.restorers.loading import WEIGHTS_NAME, AnyRestorer, load_any_restorer
from ufr_edge.runtime.faces.detect import FaceDetector
from ufr_edge.runtime.images import check_picture_name, write_image

Images = NDArray[np.uint8]
T = TypeVar("T")
GIVEN = "given"
"""Name of the faces of `faces`, as the presets name those degraded on the fly."""
SHEET_FACES = 64
_SHEET_QUALITY = 92
_DEFAULT_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is measured: the faces of `faces`, or those of `truth` degraded by each preset of `degrade`.

    Face i (by name) is degraded with `seed` + i. `side`: the faces' side (None: the restorers' own). LPIPS on
    the backbone `lpips` and FID are measured when their weights are here, or can be fetched with `download`;
    a file given by path must be right.
    """

    truth: Path | None = None
    faces: Path | None = None
    degrade: tuple[str, ...] = ()
    seed: int = 0
    restorers: tuple[str, ...] = ()
    prior: str | None = None
    side: int | None = None
    quality: QualitySettings = PLAIN
    lpips: str = "alex"
    lpips_backbone: Path | None = None
    fid_backbone: Path | None = None
    download: bool = False
    landmarks: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError when nothing says what to measure, or two things do."""
        for preset in self.degrade:
            get_preset(preset)
        if self.faces is None and not (self.truth and self.degrade):
            msg = "Nothing to measure: give -i FOLDER, or --truth FOLDER with --degrade PRESET."
            raise ConfigError(msg)
        if self.faces is not None and self.degrade:
            msg = "The faces of -i are measured as they are: give either -i or --degrade."
            raise ConfigError(msg)
        if self.side is not None and (self.side < 64 or self.side % 32):
            msg = f"The side must be a multiple of 32 from 64 on, such as 256; got {self.side}."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class EvalOutputs:
    """Files to write: the report as JSON, a CSV of every face, a contact sheet (one per preset)."""

    report: Path | None = None
    per_image: Path | None = None
    sheet: Path | None = None


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """Figures by preset and column ("input", then each restorer), their means by source, and the settings.

    `not_measured`: metric -> why, and what mends it. `faces`: rows of the CSV. `shown`: by preset, the faces of
    its contact sheet.
    """

    settings: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, Mapping[str, float]]]
    by_source: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
    not_measured: Mapping[str, str]
    faces: tuple[Mapping[str, Any], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    shown: Mapping[str, Mapping[str, Images]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; a figure that is not finite (PSNR of equal pictures) is null."""
        report = {
            "settings": self.settings,
            "figures": self.figures,
            "by_source": self.by_source,
            "not_measured": self.not_measured,
            "skipped": [{"file": name, "reason": reason} for name, reason in self.skipped],
        }
        return {name: _finite(value) for name, value in report.items()}


@dataclass(frozen=True, kw_only=True)
class _Faces:
    """Faces given, or clean ones to be degraded, and their clean versions; uint8 (N, S, S, 3), in one order."""

    names: tuple[str, ...]
    images: Images
    clean: Images | None
    skipped: tuple[tuple[str, str], ...]

    def low_quality(self, preset: str, seed: int) -> Images:
        """Return the faces given as they are, the clean ones degraded, face i with `seed` + i."""
        if preset == GIVEN:
            return self.images
        return np.stack([degrade(face, preset, seed=seed + i) for i, face in enumerate(self.images)])


def evaluate(
    config: EvalConfig, outputs: EvalOutputs | None = None, *, overwrite: bool = False, show: bool = True
) -> EvalReport:
    """Measure restorers side by side and write what `outputs` asks for.

    Raises InputFileError naming faces that do not pair up, ConfigError for settings that do not fit, ModelFileError
    for damaged weights, OutputError before anything is measured when a file exists and `overwrite` is not set.
    """
    outputs = outputs or EvalOutputs()
    sheets = _check_outputs(config, outputs, overwrite=overwrite)
    if config.faces and config.truth:
        pair_by_name(config.faces, config.truth)
    models = {label: load_any_restorer(source) for label, source in _labels(config.restorers).items()}
    faces = _read(config, _side(config, models), show=show)
    with ExitStack() as stack:
        meters, missing = _meters(config, stack)
        report = _evaluate(config, models, faces, meters, missing, show=show)
    if outputs.report:
        write_json(outputs.report, report.to_json())
    if outputs.per_image:
        _write_csv(outputs.per_image, report.faces)
    for preset, path in sheets.items():
        write_image(path, sheet(report.shown[preset]), quality=_SHEET_QUALITY)
    return report


def _evaluate(
    config: EvalConfig,
    models: Mapping[str, AnyRestorer],
    faces: _Faces,
    meters: Meters,
    missing: Mapping[str, str],
    *,
    show: bool,
) -> EvalReport:
    device = pick_device(config.device)
    names = faces.names
    truth = Truth.of(faces.clean, meters) if faces.clean is not None else None
    figures: dict[str, dict[str, Figures]] = {}
    shown: dict[str, dict[str, Images]] = {}
    picked = np.linspace(0, len(names) - 1, min(SHEET_FACES, len(names))).round().astype(np.intp)
    presets = config.degrade or (GIVEN,)
    with progress_bar("measuring", len(presets) * (1 + len(models)), show=show) as advance:
        for preset in presets:
            lq = faces.low_quality(preset, config.seed)
            figures[preset], shown[preset] = {}, {}
            for label, images in _columns(lq, models, device):
                figures[preset][label] = measure_faces(images, lq, truth, meters)
                shown[preset][label] = images[picked]
                advance(note=f"{preset} {label}")
            if truth:
                shown[preset]["truth"] = truth.images[picked]
    return EvalReport(
        settings=_settings(config, faces, meters, truth),
        figures={preset: {k: v.means() for k, v in columns.items()} for preset, columns in figures.items()},
        by_source={preset: _by_source(columns, names) for preset, columns in figures.items()},
        not_measured=missing,
        faces=tuple(_rows(figures, names)),
        skipped=faces.skipped,
        shown=shown,
    )


def _columns(
    lq: Images, models: Mapping[str, AnyRestorer], device: torch.device
) -> Iterator[tuple[str, Images]]:
    yield "input", lq
    for label, loaded in models.items():
        yield label, restore_batch(loaded.model.to(device), lq, device)


def _read(config: EvalConfig, side: int, *, show: bool) -> _Faces:
    """Read the faces given and the clean ones, in one order; an unusable file takes its partner out with it."""
    folders = [folder for folder in (config.faces, config.truth) if folder]
    stacks = [load_faces(folder, side, minimum=1, show=show) for folder in folders]
    skipped = tuple(entry for stack in stacks for entry in stack.skipped)
    shared = set.intersection(*({Path(name).stem for name in stack.names} for stack in stacks))
    if not shared:
        msg = f"No pair of {config.faces} and {config.truth} is usable. First problem: {skipped[0][1]}"
        raise InputFileError(msg)
    kept = [
        stack.subset([i for i, name in enumerate(stack.names) if Path(name).stem in shared])
        for stack in stacks
    ]
    return _Faces(
        names=kept[0].names,
        images=kept[0].images,
        clean=kept[-1].images if config.truth else None,
        skipped=skipped,
    )


def _labels(sources: tuple[str, ...]) -> dict[str, str]:
    """Short column labels, the whole source where two would be the same."""
    short = {source: _label(source) for source in dict.fromkeys(sources)}
    taken = [*short.values(), "input", "truth"]
    return {label if taken.count(label) == 1 else source: source for source, label in short.items()}


def _label(source: str) -> str:
    path = Path(source)
    if path.name == WEIGHTS_NAME:
        return path.resolve().parent.name
    return path.stem if path.suffix == ".safetensors" else path.resolve().name


def _side(config: EvalConfig, models: Mapping[str, AnyRestorer]) -> int:
    if config.side is not None:
        return config.side
    sides = {loaded.side for loaded in models.values()} or {_DEFAULT_SIDE}
    if len(sides) > 1:
        own = ", ".join(f"{label} {loaded.side} px" for label, loaded in models.items())
        msg = f"The restorers work at different sides ({own}): give --side, or measure them apart."
        raise ConfigError(msg)
    return sides.pop()


def _meters(config: EvalConfig, stack: ExitStack) -> tuple[Meters, dict[str, str]]:
    """Load what can be loaded; for the rest, say why not. Files given by path must be right."""
    device = pick_device(config.device)
    missing: dict[str, str] = {}
    if config.truth is None:
        return Meters(), {"psnr_db": "no clean faces were given. Give --truth FOLDER."}
    if config.prior is None:
        why = "no prior was given. Give --prior prior-256."
        missing |= dict.fromkeys(("prior_feature_distance", "prior_frechet_distance", "own_is_nearest"), why)
    features = load_features(config.prior, device) if config.prior else None
    fetch = config.download
    lpips = _if_here(
        "lpips", lambda: load_lpips(config.lpips, path=config.lpips_backbone, download=fetch).to(device), missing
    )
    inception = _if_here(
        "fid", lambda: load_inception(path=config.fid_backbone, download=fetch).to(device), missing
    )
    detector = None
    if config.landmarks:
        detector = _if_here("landmark_px512", lambda: stack.enter_context(FaceDetector()), missing)
    meters = Meters(
        quality=config.quality, features=features, lpips=lpips, inception=inception, detector=detector, artefacts=True
    )
    return meters, missing


def _if_here(name: str, load: Callable[[], T], missing: dict[str, str]) -> T | None:
    """Load what a figure needs; where it is not here, `missing` says why."""
    try:
        return load()
    except BackendUnavailableError as exc:
        missing[name] = str(exc)
        return None


def _settings(config: EvalConfig, faces: _Faces, meters: Meters, truth: Truth | None) -> dict[str, Any]:
    """Everything the figures depend on, and what their names mean."""
    settings: dict[str, Any] = {
        "ufr_edge": __version__,
        "faces": len(faces.names),
        "side": faces.images.shape[1],
        "input": str(config.faces) if config.faces else None,
        "truth": str(config.truth) if config.truth else None,
        "degrade": list(config.degrade),
        "restorers": dict(_labels(config.restorers)),
    }
    if config.degrade:
        settings["seed"] = f"face i, by name, has {config.seed} + i"
    if truth is None:
        return settings
    return settings | metric_settings(meters, truth, prior=config.prior, lpips=config.lpips, source=str(config.truth))


def _by_source(
    columns: Mapping[str, Figures], names: tuple[str, ...]
) -> dict[str, dict[str, dict[str, float]]]:
    """Means of each source's faces (`source_of`), by column; "faces" counts them."""
    sources = np.array([source_of(name) for name in names])
    result: dict[str, dict[str, dict[str, float]]] = {}
    for source in sorted(set(sources.tolist())):
        index = np.flatnonzero(sources == source)
        result[source] = {k: {"faces": len(index), **v.means(index)} for k, v in columns.items()}
    return result


def _rows(figures: Mapping[str, Mapping[str, Figures]], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for preset, columns in figures.items():
        for label, found in columns.items():
            for i, name in enumerate(names):
                head = {"degradation": preset, "restorer": label, "face": name, "source": source_of(name)}
                yield {**head, **{key: float(values[i]) for key, values in found.each.items()}}


def _write_csv(path: Path, rows: tuple[Mapping[str, Any], ...]) -> None:
    """One line per degradation, restorer and face; what was not measured is empty."""
    with atomic_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({k: "" if _is_nan(v) else v for k, v in row.items()} for row in rows)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _check_outputs(config: EvalConfig, outputs: EvalOutputs, *, overwrite: bool) -> dict[str, Path]:
    """Return the contact sheet of each preset. Raises OutputError before any work is done."""
    sheets: dict[str, Path] = {}
    if outputs.sheet:
        check_picture_name(outputs.sheet)
        path, presets = outputs.sheet, config.degrade or (GIVEN,)
        several = {preset: path.with_name(f"{path.stem}-{preset}{path.suffix}") for preset in presets}
        sheets = several if len(presets) > 1 else {presets[0]: path}
    wanted = [outputs.report, outputs.per_image, *sheets.values()]
    for file in filter(None, wanted):
        check_free(file, overwrite=overwrite)
    return sheets


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
