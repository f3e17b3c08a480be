"""A report on a prior: how well it knows noise, what it makes of faces, and whether they stay the same people."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge import __version__
from ufr_edge.adaptation.faces import FaceSet, load_faces
from ufr_edge.adaptation.pictures import sheet
from ufr_edge.adaptation.prior_figures import (
    Figures,
    epsilon_losses,
    frechet_figures,
    identity_figures,
    target_figures,
    unconditional,
    variance_choices,
)
from ufr_edge.adaptation.prior_pages import FRECHET_FACES, write_pages
from ufr_edge.adaptation.restorer_task import restore_batch
from ufr_edge.adaptation.targets import image_seed, sample_batch, target_name
from ufr_edge.adaptation.training import pick_device, place, resolve_precision
from ufr_edge.config import to_json
from ufr_edge.degradations.presets import degrade, get_preset
from ufr_edge.errors import ConfigError
from ufr_edge.files import check_replaceable, read_json, sha256_file, write_json
from ufr_edge.priors.features import PriorFeatures
from ufr_edge.priors.files import load_prior, prior_digest
from ufr_edge.priors.sampler import LIGHT_TOUCH, PAPER_CODEFORMER, Denoiser, SamplerConfig
from ufr_edge.progress import progress_bar
from ufr_edge.restorers.loading import find_restorer, load_any_restorer
from ufr_edge.runtime.faces.detect import FaceDetector
from ufr_edge.runtime.images import read_image, write_image

Images = NDArray[np.uint8]
RECORD = "report.json"
SETTINGS = "settings.json"
SHEET_WIDTH = 8
"""Faces side by side on a sheet."""

_CHAIN = ("fast_steps",)
_DEPENDS = {"epsilon": (), "samples": ("sample_calls",), "frechet": ("fast_steps", "sample_calls")}


@dataclass(frozen=True, kw_only=True)
class PriorReportConfig:
    """What is reported on, and how many faces.

    `count` held-out faces are drawn by `seed`, and as many others to compare sets with. `restorer` and `degrade` (a
    preset) add what the sampler makes of that restorer's output. `fast_steps`: so many calls of the prior a face in
    place of all of a chain's; `sample_calls`: those of an unconditional sample. `variances`: compare the targets under
    each variance the sampler can have (posterior, beta, and learned where the prior predicts one).
    """

    prior: str = "prior-256"
    count: int = 64
    seed: int = 0
    restorer: str | None = None
    degrade: str | None = None
    fast_steps: int | None = None
    sample_calls: int = 50
    variances: bool = False
    batch: int = 8
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError for what does not go together."""
        if (self.restorer is None) != (self.degrade is None):
            msg = "A restorer's output needs both: --restorer edge-m-256 --degrade raw-iso3000-x4."
            raise ConfigError(msg)
        if self.variances and self.restorer is None:
            msg = "Variances are compared on a restorer's output: --restorer edge-m-256 --degrade raw-iso3000-x4."
            raise ConfigError(msg)
        if min(self.count, self.batch, self.sample_calls, self.fast_steps or 1) < 1:
            msg = "count, batch, sample_calls and fast_steps must be at least 1."
            raise ConfigError(msg)

    def samplers(self, precision: str) -> dict[str, SamplerConfig]:
        """The paper's chain at its N = 8, and our light touch."""
        return {
            name: dataclasses.replace(
                base,
                precision=precision,  # type: ignore[arg-type]
                fast_steps=self.fast_steps and min(self.fast_steps, base.start),
            )
            for name, base in (("paper", PAPER_CODEFORMER), ("light", LIGHT_TOUCH))
        }

    def named(self) -> PriorReportConfig:
        """The same with models by their names alone, without the folders of this machine."""
        restorer = self.restorer and Path(self.restorer).name
        return dataclasses.replace(self, prior=Path(self.prior).name, restorer=restorer)

    def command(self) -> str:
        """The command that makes the report, with VAL and REPORT for the folders."""
        words = ["ufr-edge", "prior-report", self.prior, "--faces", "VAL", "-o", "REPORT"]
        words += ["--count", str(self.count), "--seed", str(self.seed), "--sample-steps", str(self.sample_calls)]
        if self.fast_steps:
            words += ["--fast-steps", str(self.fast_steps)]
        if self.restorer and self.degrade:
            words += ["--restorer", self.restorer, "--degrade", self.degrade]
        words += ["--variances"] if self.variances else []
        return shlex.join(words)


@dataclass(frozen=True, kw_only=True)
class PriorReport:
    """Where the report lies, its `figures` by part, and how many parts were there before."""

    out: Path
    figures: Mapping[str, Figures]
    reused: int
    skipped: tuple[tuple[str, str], ...]


def report_prior(
    faces: Path, out: Path, config: PriorReportConfig, *, overwrite: bool = False, show: bool = True
) -> PriorReport:
    """Measure a prior on held-out clean faces into `out`: report.json, index.html, sheets and every picture.

    Goes on where an earlier call with the same settings stopped. Raises ConfigError when `out` holds parts made with
    other settings (give `overwrite`), InputFileError with fewer than 8 good faces, OutputError when `out` is not ours.
    """
    check_replaceable(out, SETTINGS)
    if config.degrade:
        get_preset(config.degrade)
    work = _Work(faces, out, config, overwrite=overwrite, show=show)
    write_json(out / SETTINGS, to_json(config))
    parts: dict[str, Callable[[], Figures]] = {"epsilon": work.epsilon, "identity": work.identity}
    if config.restorer:
        parts["targets"] = work.targets
    if config.variances:
        parts["variances"] = work.variances
    parts["frechet"] = work.frechet
    figures = {name: work.part(name, make) for name, make in parts.items()}
    record = _record(work, figures)
    write_json(out / RECORD, record)
    write_pages(out, record)
    return PriorReport(out=out, figures=figures, reused=work.reused, skipped=work.skipped)


def _record(work: _Work, figures: Mapping[str, Figures]) -> dict[str, Any]:
    """What report.json holds, without this machine's folders."""
    config = work.config.named()
    return {
        "kind": "prior-report",
        "program": f"ufr-edge {__version__}",
        "command": config.command(),
        "config": to_json(config),
        "prior_sha256": work.made_by["prior"],
        "parameters": sum(p.numel() for p in work.prior.parameters()),
        "faces": len(work.faces),
        "figures": figures,
    }


class _Work:
    """The faces, the prior and the output folder of one report; each part is measured once."""

    def __init__(self, faces: Path, out: Path, config: PriorReportConfig, *, overwrite: bool, show: bool) -> None:
        self.out, self.config, self.overwrite, self.show = out, config, overwrite, show
        self.device = pick_device(config.device)
        self.precision = resolve_precision(self.device, config.precision)
        self.prior = place(load_prior(config.prior), self.device).eval()
        every = load_faces(faces, self.prior.side, show=show)
        order = np.random.default_rng(config.seed).permutation(len(every))
        self.numbers = order[: config.count].tolist()  # face i by name is degraded with seed + i, as `eval` does it
        self.faces = every.subset(self.numbers)
        self.others = every.subset(order[config.count : 2 * config.count])
        self.skipped, self.reused = every.skipped, 0
        self.samplers = config.samplers(self.precision)
        self.made_by = self._made_by(every)

    def _made_by(self, every: FaceSet) -> dict[str, Any]:
        """What every finished part must agree in to be taken over."""
        return {
            "prior": prior_digest(self.config.prior),
            "faces": hashlib.sha256(every.images.tobytes()).hexdigest(),
            "count": self.config.count,
            "seed": self.config.seed,
            "precision": self.precision,
        }

    @cached_property
    def features(self) -> PriorFeatures:
        return PriorFeatures(self.prior).to(self.device)

    def part(self, name: str, make: Callable[[], Figures]) -> Figures:
        """Return the figures of a part, measured now unless they lie in NAME.json."""
        path, made_by = self.out / f"{name}.json", self._settings_of(name)
        if self._may_reuse(path, made_by):
            self.reused += 1
            return dict(read_json(path)["figures"])
        figures = make()
        write_json(path, {"made_by": made_by, "figures": figures})
        return figures

    def _settings_of(self, name: str) -> dict[str, Any]:
        """What the part or stack NAME depends on, beside the code."""
        settings = {**self.made_by, **{key: getattr(self.config, key) for key in _DEPENDS.get(name, _CHAIN)}}
        if name.startswith(("targets", "variances")):
            settings["restorer"] = sha256_file(find_restorer(self.config.restorer or ""))
            settings["degrade"] = self.config.degrade
        return settings

    def _may_reuse(self, path: Path, made_by: dict[str, Any]) -> bool:
        if not path.exists() or self.overwrite:
            return False
        if read_json(path).get("made_by") != made_by:
            msg = f"{path} was made with other settings. Give --overwrite, or choose another folder."
            raise ConfigError(msg)
        return True

    def stack(self, name: str, make: Callable[[list[int]], Images]) -> Images:
        """Return one picture per face out of the folder NAME; those missing there are made, `batch` at a time."""
        folder, made_by = self.out / name, self._settings_of(name)
        if not self._may_reuse(folder / SETTINGS, made_by):
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / SETTINGS, {"made_by": made_by})
        paths = [folder / target_name(face) for face in self.faces.names]
        wanted = [i for i, path in enumerate(paths) if not path.exists()]
        with progress_bar(name, len(paths), done=len(paths) - len(wanted), show=self.show) as advance:
            for start in range(0, len(wanted), self.config.batch):
                chosen = wanted[start : start + self.config.batch]
                for i, image in zip(chosen, make(chosen), strict=True):
                    write_image(paths[i], image)
                advance(len(chosen))
        return np.stack([read_image(path) for path in paths])

    def seeds(self, chosen: Sequence[int], purpose: str) -> list[int]:
        """One seed per face and purpose, whatever the batch."""
        return [image_seed(self.config.seed, f"{purpose}:{self.faces.names[i]}") for i in chosen]

    def resample(
        self, name: str, references: Images, sampler: SamplerConfig, prior: Denoiser | None = None
    ) -> Images:
        """Run the sampler over `references`, once each."""

        def make(chosen: list[int]) -> Images:
            seeds = self.seeds(chosen, "chain")
            return sample_batch(prior or self.prior, references[chosen], sampler, seeds, self.device)

        return self.stack(name, make)

    def epsilon(self) -> Figures:
        """Epsilon loss by noise level."""
        seeds = self.seeds(range(len(self.faces)), "epsilon")
        with progress_bar("epsilon", len(self.faces), show=self.show) as advance:
            return epsilon_losses(
                self.prior,
                self.faces.images,
                seeds,
                precision=self.precision,
                batch=self.config.batch,
                advance=advance,
            )

    @cached_property
    def resampled(self) -> Images:
        return self.resample("resampled", self.faces.images, self.samplers["paper"])

    def identity(self) -> Figures:
        """Clean faces through the paper's sampler, beside themselves."""
        clean, new = self.faces.images, self.resampled
        self.sheet("resampled", {"clean": clean, "resampled": new})
        with FaceDetector(backend="onnxruntime") as detector:
            return identity_figures(new, clean, self.features, detector)

    @cached_property
    def restored(self) -> tuple[Images, Images]:
        """The degraded faces, and what the restorer makes of them."""
        preset, seed = self.config.degrade or "", self.config.seed
        clean = zip(self.faces.images, self.numbers, strict=True)
        lq = np.stack([degrade(face, preset, seed=seed + n) for face, n in clean])
        model = place(load_any_restorer(self.config.restorer or "").model, self.device)
        return lq, restore_batch(model, lq, self.device, batch=self.config.batch)

    def targets(self) -> Figures:
        """A restorer's output through the sampler, as adaptation does it."""
        truth, (lq, restored) = self.faces.images, self.restored
        drawn = {
            name: self.resample(f"targets-{name}", restored, sampler) for name, sampler in self.samplers.items()
        }
        for name, stack in drawn.items():
            columns = {"degraded": lq, "restored": restored, f"resampled ({name})": stack, "truth": truth}
            self.sheet(f"targets-{name}", columns)
        return {name: target_figures(stack, restored, truth) for name, stack in drawn.items()}

    def variances(self) -> Figures:
        """The same targets, from the same noise, under each variance that the sampler can have."""
        found = {}
        for name, sampler in self.samplers.items():
            for variance, prior in variance_choices(self.prior).items():
                drawn = self._drawn_with(variance, prior, name, sampler)
                found[f"{name}, {variance}"] = target_figures(drawn, self.restored[1], self.faces.images)
        return found

    def _drawn_with(self, variance: str, prior: Denoiser, name: str, sampler: SamplerConfig) -> Images:
        own = "learned" if self.prior.learns_variance else sampler.fixed_variance
        if variance == own:  # those of `targets`, drawn once
            return self.resample(f"targets-{name}", self.restored[1], sampler)
        fixed = dataclasses.replace(sampler, variance=variance)  # type: ignore[arg-type]
        return self.resample(f"variances-{name}-{variance}", self.restored[1], fixed, prior)

    @cached_property
    def samples(self) -> Images:
        def make(chosen: list[int]) -> Images:
            seeds, calls = self.seeds(chosen, "sample"), self.config.sample_calls
            return unconditional(self.prior, self.prior.side, seeds, calls=calls, precision=self.precision)

        return self.stack("samples", make)

    def frechet(self) -> Figures:
        """Unconditional samples, and how far each set lies from other held-out faces, where those are enough."""
        self.sheet("samples", {"": self.samples})
        count = len(self.others)
        if count < FRECHET_FACES:
            return {"count": count}
        stacks = {"samples": self.samples, "resampled": self.resampled, "floor": self.faces.images}
        equal = {name: stack[:count] for name, stack in stacks.items()}
        return {"count": count, **frechet_figures(equal, self.others.images, self.features)}

    def sheet(self, name: str, columns: Mapping[str, Images]) -> None:
        """Write NAME.jpg."""
        write_image(self.out / f"{name}.jpg", sheet(columns, across=SHEET_WIDTH // len(columns)))
