"""A camera's fingerprint: what its faces have in common as degradations, as a small vector with uncertainty.

Each face is measured alone (`measure_face`, about 2 ms at 256 px); a `Fingerprint` is the mean over faces, their
spread, and how many independent looks there were. Faces of one person (one track) resemble each other, so they
count as few looks however many there are.

| name | unit | what it is |
|---|---|---|
| noise_0 ... noise_4 | ln levels | noise sigma of luma in five brightness ranges, on flat parts |
| noise_chroma | ln levels | the same of red less green, over all brightnesses |
| correlation | 0 to 1 | of the noise of neighbouring pixels: 0 from a bare sensor, high when demosaicked or upsampled |
| blur | ln px | sigma of the Gaussian that the steepest edges look blurred by |
| slope | ln | energy of octaves 1-2 px against 4-8 px |
| blocks | ln | periodic steps at 6 to 64 px of the aligned face against those in between |
| blocks_frame | ln | the same at the 8 px grid of the frame, where the frame was at hand |
| mean, dark, bright | levels | of luma: mean, 5th and 95th percentile |
| red, blue | ln | mean red, blue against green |

What it cannot see: noise in ranges a face has no pixels of (left out, not guessed); grids in a face turned by more
than some 5 degrees, or enlarged so that 8 px become more than 64 (blocks; blocks_frame sees both); a change of the
lens that a change of the face's size in the frame would hide, as both are measured on the aligned face, which is
what the restorer gets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np

from ufr_edge.errors import ConfigError, InputFileError, ShapeError
from ufr_edge.runtime.frame import FloatArray, Frame, check_frame

VERSION = 1
LEAST_SIDE = 64
NOISE_EDGES = (32, 72, 112, 152, 192, 256)
"""Levels of luma between which noise is measured; darker than the first it is crushed by gamma and clipping."""
LOOKS_PER_TRACK = 4.0
"""A track never counts for more independent looks than this (1 / the correlation between its faces)."""

_BLOCK = 8
_CLIPPED = 250
_FLAT = 0.35  # share of blocks taken as flat
_FEWEST = 6  # flat blocks in a brightness range, below which nothing is said of it
_MAD = math.sqrt(math.pi / 3)  # mean |d| to sigma, d = a pixel less the mean of two others, Gaussian
_NEAR, _FAR = 1, 4  # px between the pixels that are compared
_EDGES = (1.5, 3.0)  # scales, px, between which the steepness of edges is compared
_PERIODS = (6, 64)
_STEEPEST = 12.0
_NO_EDGE = 0.5  # gradient (Sobel, levels) below which the steepest edge of a face is none

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "noise": (*(f"noise_{i}" for i in range(len(NOISE_EDGES) - 1)), "noise_chroma"),
        "correlation": ("correlation",),
        "blur": ("blur", "slope"),
        "blocks": ("blocks", "blocks_frame"),
        "exposure": ("mean", "dark", "bright"),
        "colour": ("red", "blue"),
    }
)
DEGRADATIONS = ("noise", "correlation", "blur", "blocks")
"""The groups a restorer is adapted to. Light changes over a day: exposure and colour are told, not counted."""
NAMES = tuple(name for names in GROUPS.values() for name in names)

_TOLERANCE: Mapping[str, float] = MappingProxyType(
    {"noise": 0.12, "correlation": 0.04, "blur": 0.08, "blocks": 0.12, "exposure": 8.0, "colour": 0.05}
)
"""Differences too small to matter to a restorer: added to the uncertainty, so that many faces do not make them big."""
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}

Measures = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Value:
    """mean over faces, spread: their standard deviation, looks: independent ones (at most the faces)."""

    mean: float
    spread: float
    looks: float

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.spread / math.sqrt(max(self.looks, 1e-9))


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """values: by name of NAMES; a name is missing where no face showed it. side: of the faces measured, px."""

    values: Mapping[str, Value]
    faces: int
    side: int
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """The fingerprint as plain JSON values."""
        values = {
            name: {"mean": round(v.mean, 5), "spread": round(v.spread, 5), "looks": round(v.looks, 2)}
            for name, v in self.values.items()
        }
        return {"version": self.version, "side": self.side, "faces": self.faces, "values": values}

    @classmethod
    def from_json(cls, value: Any, *, where: str = "The fingerprint") -> Fingerprint:
        """Read what `to_json` wrote; names this version does not know are left out. Raises InputFileError."""
        try:
            version = int(value["version"])
            values = {
                str(name): Value(mean=float(v["mean"]), spread=float(v["spread"]), looks=float(v["looks"]))
                for name, v in value["values"].items()
                if name in NAMES
            }
            out = cls(values=values, faces=int(value["faces"]), side=int(value["side"]), version=version)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            msg = f"{where} is damaged ({exc}). Export the bundle again with its camera's faces."
            raise InputFileError(msg) from exc
        sound = all(math.isfinite(v.mean) and v.spread >= 0 and v.looks > 0 for v in values.values())
        if version != VERSION or not sound:
            msg = f"{where} has version {version}, this ufr-edge reads {VERSION}. Export the bundle again."
            raise InputFileError(msg)
        return out


@dataclass(frozen=True, kw_only=True)
class Distance:
    """value: the largest of `parts` over DEGRADATIONS. parts: by group, root mean square of its names' differences
    in units of their uncertainty; a group neither side could measure is missing.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def cause(self) -> str | None:
        """The group of degradations that differs most."""
        known = {name: self.parts[name] for name in DEGRADATIONS if name in self.parts}
        return max(known, key=lambda name: known[name]) if known else None


def measure_face(face: Frame, *, native: Frame | None = None) -> dict[str, float]:
    """Measure one aligned face, uint8 (S, S, 3) RGB, S >= LEAST_SIDE: values by name of NAMES; those it cannot tell are left out.

    native: the part of the frame it was cut from, as it came (a view will do), beginning at a multiple of 8 px
    from the frame's corner in both directions. Raises ShapeError.
    """
    check_frame(face)
    if face.shape[0] != face.shape[1] or face.shape[0] < LEAST_SIDE:
        msg = f"A fingerprint is taken of square aligned faces of {LEAST_SIDE} px or more, not {face.shape[1]}x{face.shape[0]}."
        raise ShapeError(msg)
    luma, chroma = _planes(face)
    fine, coarse = _steepness(luma)
    out = _noise(luma, chroma, coarse) | _blur(luma, fine, coarse)
    blocks = _blocks(luma)
    out |= {} if blocks is None else {"blocks": blocks}
    if native is not None and min(native.shape[:2]) >= 4 * _BLOCK:
        out["blocks_frame"] = _blocks_frame(native)
    return out | _light(face, luma)


def fingerprint(faces: Sequence[Frame] | Frame, *, tracks: Sequence[Hashable] | None = None) -> Fingerprint:
    """The fingerprint of aligned faces, uint8 (N, S, S, 3), N >= 1. tracks: whose face each is; None: all different.

    Raises ShapeError, ConfigError when there are no faces.
    """
    measured = [measure_face(face) for face in faces]
    return combine(measured, tracks=tracks, side=0 if not measured else int(faces[0].shape[0]))


def combine(
    measured: Sequence[Measures], *, tracks: Sequence[Hashable] | None = None, side: int
) -> Fingerprint:
    """The fingerprint of faces that were measured. Raises ConfigError when there are none."""
    if not measured:
        msg = "A fingerprint needs at least one face."
        raise ConfigError(msg)
    whose = list(range(len(measured))) if tracks is None else list(tracks)
    values: dict[str, Value] = {}
    for name in NAMES:
        known = [(m[name], t) for m, t in zip(measured, whose, strict=True) if name in m]
        if known:
            values[name] = _value([v for v, _ in known], [t for _, t in known])
    return Fingerprint(values=values, faces=len(measured), side=side)


def fingerprint_distance(seen: Fingerprint, reference: Fingerprint) -> Distance:
    """How far `seen` lies from `reference`, in units of their combined uncertainty.

    The question asked is whether `seen` may be faces of the reference's camera, so the reference's spread holds for
    both. Uncertainty: both standard errors and the difference that would not matter, as root of squares.
    Raises ConfigError when the faces were measured at different sides.
    """
    if seen.side != reference.side:
        msg = f"Fingerprints of faces of {seen.side} px and {reference.side} px cannot be compared."
        raise ConfigError(msg)
    parts: dict[str, float] = {}
    for group, names in GROUPS.items():
        shared = [
            _standard(seen.values[n], reference.values[n], group)
            for n in names
            if n in seen.values and n in reference.values
        ]
        if shared:
            parts[group] = math.sqrt(sum(z * z for z in shared) / len(shared))
    return Distance(value=max((parts[g] for g in DEGRADATIONS if g in parts), default=0.0), parts=parts)


def _standard(seen: Value, reference: Value, group: str) -> float:
    # With few reference faces their spread is not well known: it is taken a little larger (1 + 1/n).
    spread = reference.spread * (1 + 1 / max(reference.looks, 1.0))
    variance = spread**2 / max(seen.looks, 1e-9) + spread**2 / max(reference.looks, 1e-9)
    return (seen.mean - reference.mean) / math.sqrt(variance + _TOLERANCE[group] ** 2)


def _value(values: list[float], tracks: list[Hashable]) -> Value:
    """Mean over tracks of their means, weighted by looks; the spread over all faces."""
    per: dict[Hashable, list[float]] = {}
    for value, track in zip(values, tracks, strict=True):
        per.setdefault(track, []).append(value)
    looks = {t: looks_of(len(v)) for t, v in per.items()}
    total = sum(looks.values())
    mean = sum(looks[t] * sum(v) / len(v) for t, v in per.items()) / total
    spread = math.sqrt(
        sum(looks[t] / len(v) * sum((x - mean) ** 2 for x in v) for t, v in per.items()) / total
    )
    return Value(mean=mean, spread=spread, looks=total)


def looks_of(faces: int) -> float:
    """Independent looks in `faces` faces of one track: n / (1 + (n - 1) rho), rho = 1 / LOOKS_PER_TRACK."""
    return faces / (1 + (faces - 1) / LOOKS_PER_TRACK)


def _noise(luma: FloatArray, chroma: FloatArray, coarse: FloatArray) -> dict[str, float]:
    """Noise by brightness from the flattest blocks of each range, in two distances."""
    near, far, over = (_difference(*of) for of in ((luma, _NEAR), (luma, _FAR), (chroma, _FAR)))
    ranges = _flat_blocks(luma, coarse)
    out = {f"noise_{index}": _log_level(float(np.median(far[flat]))) for index, flat in ranges.items()}
    if ranges:
        flat = np.logical_or.reduce(list(ranges.values()))
        out["noise_chroma"] = _log_level(float(np.median(over[flat])))
        # Var(bend at k) = sigma^2 (1.5 - 2 rho_k + rho_2k / 2), and rho at the far distance is next to nothing.
        share = (float(np.median(near[flat])) / max(float(np.median(far[flat])), 0.05)) ** 2
        out["correlation"] = float(np.clip(1 - share, -0.5, 1.0))
    return out


def _flat_blocks(luma: FloatArray, coarse: FloatArray) -> dict[int, np.typing.NDArray[np.bool_]]:
    """By brightness range, the blocks of 8 x 8 px with the least structure once noise is smoothed away.

    Chosen within each range: what is left of the noise would favour the ranges that have less of it.
    """
    level, structure = _per_block(luma[:-_BLOCK, :-_BLOCK]), _per_block(coarse[:-_BLOCK, :-_BLOCK])
    out = {}
    for index, (low, high) in enumerate(itertools.pairwise(NOISE_EDGES)):
        inside = (level >= low) & (level < min(high, _CLIPPED))
        if int(inside.sum()) * _FLAT >= _FEWEST:
            out[index] = inside & (structure <= np.quantile(structure[inside], _FLAT))
    return out


def _difference(plane: FloatArray, apart: int) -> FloatArray:
    """Per block, sigma of the noise from pixels against the mean of both neighbours `apart` px off: slopes fall out."""
    height, width = plane.shape[0] - _BLOCK, plane.shape[1] - _BLOCK

    def bend(first: Any, middle: Any, last: Any) -> Any:
        return cv2.absdiff(cv2.addWeighted(first, 0.5, last, 0.5, 0.0), middle)

    across = bend(*(plane[:height, i * apart : width + i * apart] for i in range(3)))
    down = bend(*(plane[i * apart : height + i * apart, :width] for i in range(3)))
    return _MAD * _per_block(cv2.addWeighted(across, 0.5, down, 0.5, 0.0))


def _per_block(plane: Any) -> FloatArray:
    """Means over blocks of 8 x 8; what is left over at the far borders is left out."""
    rows, columns = plane.shape[0] // _BLOCK, plane.shape[1] // _BLOCK
    cut = plane[: rows * _BLOCK, : columns * _BLOCK]
    return np.asarray(cv2.resize(cut, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def _log_level(sigma: float) -> float:
    return math.log(sigma + 0.3)  # what 8 bits round away


def _blur(luma: FloatArray, fine: FloatArray, coarse: FloatArray) -> dict[str, float]:
    """Steepness of the steepest edges at two scales: an edge blurred by b has 1 / sqrt(b^2 + s^2) at scale s."""
    limit = float(np.quantile(coarse[::2, ::2], 0.97))
    if limit < _NO_EDGE:
        return {}
    at = coarse >= limit
    ratio = float(np.median(fine[at] / np.maximum(coarse[at], 1e-6)))
    low, high = _EDGES
    square = min(max(ratio, 1.0005), high / low) ** 2
    sigma2 = (high**2 - square * low**2) / (square - 1)
    halves = [luma]
    for _ in range(4):
        halves.append(np.asarray(cv2.pyrDown(halves[-1]), np.float32))
    return {
        "blur": 0.5 * math.log(max(sigma2, 0.0) + 0.25),
        "slope": 0.5 * math.log((_octave(halves, 1) + 0.02) / (_octave(halves, 3) + 0.02)),
    }


def _octave(halves: Sequence[FloatArray], level: int) -> float:
    """Mean square of what one level of the pyramid has and the next has not."""
    size = (halves[level].shape[1], halves[level].shape[0])
    rest = cv2.subtract(halves[level], cv2.pyrUp(halves[level + 1], dstsize=size))
    return float(cv2.norm(rest, cv2.NORM_L2SQR) / rest.size)


def _steepness(luma: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Size of the gradient after Gaussian smoothing by each of _EDGES."""
    low, high = _EDGES
    fine = cv2.GaussianBlur(luma, (0, 0), low)
    coarse = cv2.GaussianBlur(fine, (0, 0), math.sqrt(high**2 - low**2))
    both = (
        cv2.magnitude(cv2.Sobel(s, cv2.CV_32F, 1, 0), cv2.Sobel(s, cv2.CV_32F, 0, 1)) for s in (fine, coarse)
    )
    first, second = (np.asarray(steep, np.float32) for steep in both)
    return first, second


def _blocks(luma: FloatArray) -> float | None:
    """The strongest period among the steps between neighbouring rows and columns, whatever its length and phase."""
    found = [_periodicity(profile) for profile in step_profiles(luma)]
    return None if not found else float(np.mean(found))


def step_profiles(luma: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Where along each axis pixels step more than the steps beside them, as means over the other axis."""
    out = []
    for axis in (0, 1):
        profile = _steps(luma, axis)
        smooth = cv2.blur(profile.reshape(1, -1), (9, 1)).ravel()
        out.append(np.asarray((profile - smooth) / (smooth + 0.3), np.float32))
    return out[0], out[1]


def _steps(luma: FloatArray, axis: int) -> FloatArray:
    """Mean step between each row (axis 0) or column and the next; edges of the face, being no blocks, count little."""
    step = cv2.absdiff(luma[1:], luma[:-1]) if axis == 0 else cv2.absdiff(luma[:, 1:], luma[:, :-1])
    step = cv2.min(step, _STEEPEST)
    return np.asarray(cv2.reduce(step, 1 - axis, cv2.REDUCE_AVG), np.float32).ravel()


def _periodicity(profile: FloatArray) -> float:
    """ln of the strongest period and its half, in amplitude, against the median of all periods."""
    n = len(profile)
    power = np.abs(np.fft.rfft((profile - profile.mean()) * np.hanning(n))) ** 2
    cells = np.arange(max(2, math.ceil(n / _PERIODS[1])), n // _PERIODS[0] + 1)
    peak = float((0.5 * (power[cells] + power[cells * 2])).max())
    return 0.5 * math.log((peak + 1e-3) / (float(np.median(power[1:])) + 1e-3))


def _blocks_frame(native: Frame) -> float:
    """Steps across the 8 px grid of the frame against those inside, in its own pixels."""
    luma = cv2.cvtColor(np.ascontiguousarray(native), cv2.COLOR_RGB2GRAY).astype(np.float32)
    logs = []
    for axis in (0, 1):
        step = _steps(luma, axis)
        phases = np.array([step[p::_BLOCK].mean() for p in range(_BLOCK)])
        # The step between pixels 7 and 8 is number 7.
        logs.append(math.log((float(phases[-1]) + 0.1) / (float(np.median(phases[:-1])) + 0.1)))
    return sum(logs) / 2


def _planes(face: Frame) -> tuple[FloatArray, FloatArray]:
    """Luma, and what red has over green; float32."""
    luma = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
    over = cv2.subtract(cv2.extractChannel(face, 0), cv2.extractChannel(face, 1), dtype=cv2.CV_32F)
    return luma, np.asarray(over, np.float32)


def _light(face: Frame, luma: FloatArray) -> dict[str, float]:
    dark, bright = (float(v) for v in np.percentile(luma[::2, ::2], (5, 95)))
    red, green, blue = (float(v) + 1.0 for v in cv2.mean(face)[:3])
    return {
        "mean": float(luma.mean()),
        "dark": dark,
        "bright": bright,
        "red": math.log(red / green),
        "blue": math.log(blue / green),
    }
