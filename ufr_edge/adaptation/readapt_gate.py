"""Whether a re-adapted bundle may take the old one's place, from faces without ground truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.camera_pairs import total_distance
from ufr_edge.adaptation.evaluate import no_reference_figures
from ufr_edge.errors import ConfigError, GateFailedError
from ufr_edge.metrics.landmarks import find_landmarks, landmark_shift
from ufr_edge.metrics.quality import psnr
from ufr_edge.runtime.faces.detect import Detects
from ufr_edge.runtime.fingerprint import LEAST_SIDE, fingerprint, fingerprint_distance

Images = NDArray[np.uint8]
Embeds = Callable[[Images], NDArray[np.float32]]
"""Faces uint8 (N, S, S, 3) to one vector each, (N, D): a face recognition network, where there is one."""

_GAINS = {"noise_sigma": "noise left in levels", "clean_look": "distance from the look of clean faces"}
_EARLIER = "earlier_camera_"
_WHITE = 0.8  # share of white noise's energy above a quarter of the sampling frequency


@dataclass(frozen=True, kw_only=True)
class ReadaptLimits:
    """New against old, means over held-out faces of the camera.

    consistency_db: may agree so much less with the input at 1/8 of its size, where that is below consistency_floor_db: a
    noisy camera moves low frequencies too, so that even the truth agrees with raw ISO 3000 to 23.7 dB only, and what
    leaves the noise in agrees best. noise, noise_levels: may leave so many
    times the noise, or so many levels more. better: noise left, or the distance from the look of clean faces, must fall
    by this share (0: neither need). least_sharpness, most_sharpness: detail beyond the noise, against the
    old's. landmark_px: points may lie so much further from the input's, in px at 512, where that is more than
    landmark_floor_px: found in such an input they lie 9.4 px from the truth's (docs/quality.md). lost: share of faces more in
    which none is found. identity: mean cosine with the input may fall by so much. skill_db: PSNR that may be lost on
    what the old one was trained for, and on what each earlier camera of its lineage makes of clean faces.
    """

    consistency_db: float = 1.0
    consistency_floor_db: float = 24.0
    noise: float = 1.1
    noise_levels: float = 0.3
    better: float = 0.05
    least_sharpness: float = 0.5
    most_sharpness: float = 3.0
    landmark_px: float = 1.5
    landmark_floor_px: float = 12.0
    lost: float = 0.05
    identity: float = 0.02
    skill_db: float = 0.3

    def __post_init__(self) -> None:
        """Raise ConfigError for a limit that is negative or not finite."""
        for name, value in asdict(self).items():
            if not (np.isfinite(value) and value >= 0):
                msg = f"The limit {name} must be a number of at least 0; got {value}."
                raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """Figures of "old" and "new" by name, and what of them is over the limits, in words; none: it passes."""

    figures: Mapping[str, Mapping[str, float]]
    reasons: tuple[str, ...]
    faces: int
    limits: ReadaptLimits = field(default_factory=ReadaptLimits)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        figures = {name: dict(values) for name, values in self.figures.items()}
        return {
            "figures": figures,
            "reasons": list(self.reasons),
            "faces": self.faces,
            "limits": asdict(self.limits),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GateReport:
        """Read what `to_json` wrote."""
        return cls(
            figures=value["figures"],
            reasons=tuple(value["reasons"]),
            faces=int(value["faces"]),
            limits=ReadaptLimits(**value["limits"]),
        )

    def raise_if_refused(self) -> None:
        """Raise GateFailedError with the reasons, if there are any."""
        if self.reasons:
            msg = f"The new bundle is not better, and the old one stays: {'; '.join(self.reasons)}."
            raise GateFailedError(msg)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a bundle makes of the camera's faces, of those of its first training, and of clean faces degraded as by each
    earlier camera (all uint8 (N, S, S, 3)).
    """

    camera: Images
    skill: Images
    earlier: tuple[Images, ...] = ()


def judge(
    old: Outputs,
    new: Outputs,
    *,
    lq: Images,
    truth: Images,
    clean: Images | None = None,
    limits: ReadaptLimits | None = None,
    detector: Detects | None = None,
    embed: Embeds | None = None,
) -> GateReport:
    """Compare two bundles on held-out faces `lq`; truth: the clean versions of what `skill` was made from,
    clean: of what each of `earlier` was.

    detector, embed: measure landmarks and identity, where given.
    """
    chosen = limits or ReadaptLimits()
    figures = {
        name: measure_side(side, lq, truth, detector=detector, embed=embed) | _on_earlier(side, clean)
        for name, side in (("old", old), ("new", new))
    }
    reasons = compare(figures["old"], figures["new"], chosen)
    return GateReport(figures=figures, reasons=reasons, faces=len(lq), limits=chosen)


def measure_side(
    outputs: Outputs, lq: Images, truth: Images, *, detector: Detects | None, embed: Embeds | None
) -> dict[str, float]:
    """The figures of one bundle."""
    figures = no_reference_figures(outputs.camera, lq)
    noise = figures["noise_sigma"] ** 2 * _WHITE
    figures["sharpness"] = max(0.0, figures["high_frequency_energy"] - noise) ** 0.5
    if detector is not None:
        figures |= _landmarks(outputs.camera, lq, detector)
    if len(truth) and truth.shape[1] == lq.shape[1] >= LEAST_SIDE:
        seen = fingerprint_distance(fingerprint(outputs.camera), fingerprint(truth)).parts
        figures["clean_look"] = total_distance(seen)
    if embed is not None:
        figures["identity"] = float((_unit(embed(outputs.camera)) * _unit(embed(lq))).sum(1).mean())
    if len(truth):
        figures["skill_psnr_db"] = float(
            np.mean([psnr(a, b) for a, b in zip(outputs.skill, truth, strict=True)])
        )
    return figures


def _on_earlier(outputs: Outputs, clean: Images | None) -> dict[str, float]:
    """PSNR on each earlier camera; 1 is the oldest."""
    return {
        f"{_EARLIER}{number}_psnr_db": float(np.mean([psnr(a, b) for a, b in zip(made, clean, strict=True)]))
        for number, made in enumerate(outputs.earlier, 1)
        if clean is not None
    }


def compare(old: Mapping[str, float], new: Mapping[str, float], limits: ReadaptLimits) -> tuple[str, ...]:
    """What of the new figures is over the limits, or that nothing got better, in words. A figure that only one of them has is left out."""
    noise = max(limits.noise * old["noise_sigma"], old["noise_sigma"] + limits.noise_levels)
    agreement = min(old["input_consistency_db"] - limits.consistency_db, limits.consistency_floor_db)
    points = max(old.get("landmark_px512", np.inf) + limits.landmark_px, limits.landmark_floor_px)
    bounds = {
        "input_consistency_db": (agreement, np.inf, "agreement with the input in dB"),
        "noise_sigma": (-np.inf, noise, "noise left in levels"),
        "sharpness": (
            limits.least_sharpness * old["sharpness"],
            limits.most_sharpness * max(old["sharpness"], 1.0),
            "detail in levels",
        ),
        "landmark_px512": (-np.inf, points, "displacement of landmarks in px at 512"),
        "landmark_lost": (-np.inf, old.get("landmark_lost", np.inf) + limits.lost, "share of faces not found"),
        "identity": (old.get("identity", -np.inf) - limits.identity, np.inf, "likeness to the input"),
        "skill_psnr_db": (old.get("skill_psnr_db", -np.inf) - limits.skill_db, np.inf, "PSNR in dB on earlier degradations"),
    }  # fmt: skip
    for name in [name for name in old if name.startswith(_EARLIER)]:
        words = f"PSNR in dB on clean faces degraded as by earlier camera {name.split('_')[2]}"
        bounds[name] = (old[name] - limits.skill_db, np.inf, words)
    reasons = []
    for name, (least, most, words) in bounds.items():
        value = new.get(name)
        if value is None or name not in old or least <= value <= most:
            continue
        side, limit = ("at least", least) if not value >= least else ("at most", most)
        reasons.append(f"{words}: {value:.2f}, was {old[name]:.2f}, must be {side} {limit:.2f}")
    return (*reasons, *_not_better(old, new, limits.better))


def _not_better(old: Mapping[str, float], new: Mapping[str, float], share: float) -> tuple[str, ...]:
    """A reason unless noise left or the distance from the look of clean faces fell by the share."""
    known = {name: words for name, words in _GAINS.items() if name in old and name in new}
    if share == 0 or any(new[name] <= (1 - share) * old[name] and new[name] < old[name] for name in known):
        return ()
    seen = ", ".join(f"{words} {old[name]:.2f} to {new[name]:.2f}" for name, words in known.items())
    return (f"nothing got better by {100 * share:g} %: {seen}",)


def _landmarks(images: Images, lq: Images, detector: Detects) -> dict[str, float]:
    """Shift from the input's points, over faces found in both; and the share found in the input alone."""
    made, given = find_landmarks(images, detector), find_landmarks(lq, detector)
    shifts = np.array([landmark_shift(p, q, side=lq.shape[1]) for p, q in zip(made, given, strict=True)])
    seen, found = ~np.isnan(given).any((1, 2)), ~np.isnan(made).any((1, 2))
    if not (seen & found).any():
        return {"landmark_lost": float(seen.mean())}
    return {
        "landmark_px512": float(np.nanmean(shifts)),
        "landmark_lost": float((seen & ~found).mean()),
    }


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))
