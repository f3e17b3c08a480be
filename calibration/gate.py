"""The quality gate: how much worse than fp32 an engine's final file is, and whether that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.compare import mean_psnr, psnr
from ufr_edge.calibration.faults import face_faults, solid_faults, solid_frames
from ufr_edge.calibration.perceptual import mean_gmsd
from ufr_edge.errors import ConfigError

Frames = NDArray[np.uint8]
Run = Callable[[Frames], Frames]

NOMINAL_DB = 30.0
"""Where the truth is unknown, the drop is that of a restoration this many dB away from it; real ones lie lower
(24 to 28 dB), where the same deviation costs less."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What an engine may lose against fp32.

    max_drop_db: mean over the faces. max_worst_db: the worst face. max_gmsd: mean perceptual distance to fp32's
    output (see perceptual.gmsd). time_s: for putting layers back to higher precision, per engine.
    max_kept: share of the layers that may be kept in higher precision; beyond it the engine is int8 by name only.
    """

    max_drop_db: float = 0.3
    max_worst_db: float = 1.0
    max_gmsd: float = 0.05
    time_s: float = 120.0
    max_kept: float = 0.5

    def __post_init__(self) -> None:
        """Raise ConfigError for a limit that is negative or not finite."""
        for name, value in asdict(self).items():
            if not (np.isfinite(value) and value >= 0):
                msg = f"The gate's {name} must be a number of at least 0; got {value}."
                raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class GateSet:
    """What an engine is held against, uint8 (N, S, S, 3).

    faces: inputs. expected: what fp32 makes of them. truth: the clean faces, N or 0 of them.
    solids: what fp32 makes of solid_frames(S). origin: where the faces come from, in words.
    """

    faces: Frames
    expected: Frames
    truth: Frames
    solids: Frames
    origin: str


@dataclass(frozen=True, kw_only=True)
class Drop:
    """What an engine loses against fp32 on `images` faces.

    mean_db, worst_db: drop in dB of the PSNR against the truth; when `implied`, the truth is unknown and the drop
    follows from the deviation from fp32 (see implied_drop). worst_image: index of the worst face.
    psnr_db: mean PSNR between the two outputs. gmsd: mean perceptual distance between them. faults: in words.
    truth_psnr_db, truth_fp32_psnr_db: mean PSNR of the engine and of fp32 against the truth, None without one.
    """

    mean_db: float
    worst_db: float
    worst_image: int
    psnr_db: float
    gmsd: float
    implied: bool
    images: int
    faults: tuple[str, ...] = ()
    truth_psnr_db: float | None = None
    truth_fp32_psnr_db: float | None = None

    def quality(self) -> dict[str, float]:
        """The figures by the names the manifest has for them: an implied drop never passes for a measured one."""
        figures = {"fp32_psnr_db": self.psnr_db, "fp32_gmsd": self.gmsd}
        if self.truth_psnr_db is None or self.truth_fp32_psnr_db is None:
            return {"implied_drop_db": self.mean_db, "implied_worst_drop_db": self.worst_db, **figures}
        return {
            "reference_psnr_db": self.truth_psnr_db,
            "reference_fp32_psnr_db": self.truth_fp32_psnr_db,
            "reference_drop_db": self.mean_db,
            "reference_worst_drop_db": self.worst_db,
            **figures,
        }

    def to_json(self) -> dict[str, Any]:
        """Return a value for json.dumps."""
        return {**asdict(self), "faults": list(self.faults)}

    def describe(self) -> str:
        """One line for a person."""
        how = (
            f", implied by {self.psnr_db:.1f} dB between the outputs"
            if self.implied
            else " against the truth"
        )
        return f"{self.mean_db:.3f} dB drop on {self.images} faces{how}, worst {self.worst_db:.3f} dB"


def make_gate_set(run: Run, faces: Frames, *, truth: Frames | None = None, origin: str) -> GateSet:
    """A gate set with what `run` (fp32: uint8 (N, S, S, 3) in and out) makes of N >= 1 faces."""
    return GateSet(
        faces=faces,
        expected=run(faces),
        truth=faces[:0] if truth is None else truth,
        solids=run(solid_frames(faces.shape[1])),
        origin=origin,
    )


def measure_drop(run: Run, gate: GateSet) -> Drop:
    """Run an engine on a gate set. run: uint8 (N, S, S, 3) in and out, any N."""
    got = run(gate.faces)
    faults = [
        *solid_faults(run(solid_frames(gate.faces.shape[1])), gate.solids),
        *face_faults(got, gate.expected),
    ]
    drops = face_drops(got, gate)
    known = len(gate.truth) > 0
    return Drop(
        mean_db=round(float(np.mean(drops)), 4),
        worst_db=round(max(drops), 4),
        worst_image=int(np.argmax(drops)),
        psnr_db=round(mean_psnr(got, gate.expected), 3),
        gmsd=round(mean_gmsd(got, gate.expected), 5),
        implied=not known,
        images=len(got),
        faults=tuple(faults),
        truth_psnr_db=round(mean_psnr(got, gate.truth), 4) if known else None,
        truth_fp32_psnr_db=round(mean_psnr(gate.expected, gate.truth), 4) if known else None,
    )


def over_limits(drop: Drop, config: GateConfig) -> tuple[str, ...]:
    """What of a measured drop is over the limits, in words; empty when it passes."""
    checks = (
        (drop.mean_db, config.max_drop_db, "the mean drop is {:.3f} dB (limit {:g} dB)"),
        (drop.worst_db, config.max_worst_db, "the worst face loses {:.3f} dB (limit {:g} dB)"),
        (drop.gmsd, config.max_gmsd, "the perceptual distance is {:.3f} (limit {:g})"),
    )
    return (*(words.format(value, limit) for value, limit, words in checks if value > limit), *drop.faults)


def implied_drop(psnr_db: float, *, at: float = NOMINAL_DB) -> float:
    """Drop in dB of a restoration `at` dB from the truth, by an independent deviation of `psnr_db` from it.

    Squared errors of independent deviations add: 10 log10(1 + 10^((at - psnr) / 10)).
    """
    return 10 * float(np.log10(1 + 10 ** ((at - psnr_db) / 10)))


def face_drops(got: Frames, gate: GateSet) -> list[float]:
    """The drop in dB of each face, implied where the truth is unknown. got: what an engine makes of gate.faces."""
    if not len(gate.truth):
        return [implied_drop(psnr(a, b)) for a, b in zip(got, gate.expected, strict=True)]
    pairs = zip(got, gate.expected, gate.truth, strict=True)
    return [psnr(fp32, truth) - psnr(own, truth) for own, fp32, truth in pairs]
