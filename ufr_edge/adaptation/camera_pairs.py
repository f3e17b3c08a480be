"""The camera, estimated from its unlabelled faces, and clean faces degraded by the estimate for extra pairs.

For small sets: few faces show few faces' worth of detail, but they show the camera well. For cameras whose fault is
blur or compression: the restorer copes with them halfway, so that targets made of its output show little that is new.
The estimate is a plain model (Gaussian and motion blur, fewer pixels, noise by brightness, JPEG), fitted so that the
targets degraded by it have the fingerprint (runtime/fingerprint.py) of the faces they were made for, and are blurred
along one direction as much as they are. The contents are the same, so that what differs is the camera.
It knows no colour change and no codec but JPEG; what it leaves unexplained is told (`distance`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.restorer_task import PairSource
from ufr_edge.degradations import ops
from ufr_edge.degradations.ops import FloatImage, Frame
from ufr_edge.errors import ConfigError, ShapeError
from ufr_edge.runtime.fingerprint import (
    DEGRADATIONS,
    NOISE_EDGES,
    Fingerprint,
    fingerprint,
    fingerprint_distance,
)

Images = NDArray[np.uint8]
Advance = Callable[..., None]

SHRINKS = (1.0, 1.5, 2.0, 3.0, 4.0)
QUALITIES = (80, 50, 30, 15)
MOTIONS = (1 / 64, 1 / 32, 3 / 64, 1 / 16, 3 / 32)
"""Lengths that are tried, as shares of the face's side."""
MOTION = "motion"
_CENTRES = tuple((low + high) / 2 for low, high in itertools.pairwise(NOISE_EDGES))
_ROUNDS, _CODED_ROUNDS, _MOVED_ROUNDS = 4, 2, 3
_LUMA = 0.668  # sigma of luma when red, green and blue have independent noise of sigma 1
_MOST_BLUR = 12.0
_SENSORS = 3  # of the sensor sizes that fit best, on so many JPEG and motion are tried
_ANISOTROPY = 0.08  # difference too small to matter
LOOKS = len(SHRINKS) * _ROUNDS + _SENSORS * (len(QUALITIES) * _CODED_ROUNDS + len(MOTIONS) * _MOVED_ROUNDS)
"""How often `estimate_camera` calls `advance`."""


@dataclass(frozen=True, kw_only=True)
class CameraModel:
    """Blur, a sensor of fewer pixels, noise, JPEG; then back to the size of the face. A `Degradation`.

    blur: sigma in pixels of the face. motion: length in pixels of the face of a straight motion, its direction drawn.
    shrink: pixels of the face per pixel of the sensor, across. noise: sigma of luma in levels at the brightnesses in
    the middle of `NOISE_EDGES`, on the sensor. chroma: sigma of red less green. quality: of JPEG, None for none. Raises ConfigError when out of range.
    """

    blur: float = 0.0
    shrink: float = 1.0
    noise: tuple[float, ...] = (0.0,) * len(_CENTRES)
    chroma: float = 0.0
    quality: int | None = None
    motion: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if (
            len(self.noise) != len(_CENTRES)
            or min(*self.noise, self.chroma, self.blur, self.motion) < 0
            or self.shrink < 1
        ):
            msg = f"A camera has {len(_CENTRES)} noise levels, none below 0, and shrinks by 1 or more; got {self}."
            raise ConfigError(msg)

    def __call__(self, image: Frame, rng: np.random.Generator) -> Frame:
        """Degrade uint8 (H, W, 3) RGB, same size out. Raises ShapeError on anything else."""
        height, width = ops.check_frame(image).shape[:2]
        face = ops.to_float(image)
        if self.motion > 0.5:
            face = ops.motion_blur(face, self.motion, float(rng.uniform(0, math.pi)))
        if self.blur > 0.05:
            face = np.asarray(cv2.GaussianBlur(face, (0, 0), self.blur), np.float32)
        face = ops.resize(face, round(height / self.shrink), round(width / self.shrink), area=True)
        face = self._noisy(face, rng)
        if self.quality is not None:
            face = ops.jpeg(face, self.quality)
        return ops.to_uint8(ops.resize(face, height, width))

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"kind": "camera-estimate", **dataclasses.asdict(self)}

    def _noisy(self, face: FloatImage, rng: np.random.Generator) -> FloatImage:
        luma = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY) * 255
        own = self.chroma / math.sqrt(2)  # of each channel alone
        shared = [math.sqrt(max(0.0, sigma**2 - (_LUMA * own) ** 2)) for sigma in self.noise]
        level = np.interp(luma, _CENTRES, shared).astype(np.float32)[..., None]
        # Noise of the channels follows the curve of luma, so that dark parts and bright ones differ in both.
        shape = np.interp(luma, _CENTRES, np.array(self.noise) / max(max(self.noise), 1e-6))
        noise = level * rng.standard_normal((*luma.shape, 1), dtype=np.float32)
        noise = noise + (own * shape).astype(np.float32)[..., None] * rng.standard_normal(
            face.shape, dtype=np.float32
        )
        return np.asarray(np.clip(face + noise / 255, 0, 1), np.float32)


@dataclass(frozen=True, kw_only=True)
class CameraEstimate:
    """The fitted model; `distance` between the fingerprints of its faces and the camera's, `before` without it.

    A distance is the root mean square over noise, correlation, blur, blocks and, where the faces are at hand, motion, in
    units of their uncertainty.
    """

    model: CameraModel
    distance: float
    before: float
    faces: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        plain = {
            "distance": round(self.distance, 3),
            "distance_before": round(self.before, 3),
            "faces": self.faces,
        }
        return {**plain, "model": self.model.describe()}


def estimate_camera(
    lq: Images, clean: Images, *, seed: int = 0, probe: int = 48, advance: Advance | None = None
) -> CameraEstimate:
    """Fit a camera to faces uint8 (N, S, S, 3), S >= 64, and their targets, of the same shape; looks at `probe` pairs.

    For each number of sensor pixels, noise and blur are fitted by a few rounds of measuring and correcting; for
    those that fit best JPEG's quality, then the length of a motion, are tried. The model nearest to the camera's
    fingerprint is kept. advance: called after each round, `LOOKS` times. Raises ShapeError when the shapes differ.
    """
    if lq.shape != clean.shape or len(lq) == 0:
        msg = f"Faces {lq.shape} and targets {clean.shape} must have one shape, and there must be some."
        raise ShapeError(msg)
    at = np.linspace(0, len(lq) - 1, min(probe, len(lq))).round().astype(int)
    return _estimate(_Fit(fingerprint(lq[at]), clean[at], seed, advance or (lambda *_: None), lq=lq[at]))


def estimate_from_fingerprint(
    seen: Fingerprint, clean: Images, *, seed: int = 0, probe: int = 48
) -> CameraEstimate:
    """As `estimate_camera` where the camera's faces are gone and their fingerprint is left; clean: any clean faces of
    its side. Rougher: what differs is not the camera alone.
    """
    at = np.linspace(0, len(clean) - 1, min(probe, len(clean))).round().astype(int)
    return _estimate(_Fit(seen, clean[at], seed, lambda *_: None))


def _estimate(fit: _Fit) -> CameraEstimate:
    plain = sorted((fit.refine(CameraModel(shrink=shrink)) for shrink in SHRINKS), key=_misfit)
    tried = list(plain)
    for sensor, misfit in plain[:_SENSORS]:
        coded = [fit.refine(dataclasses.replace(sensor, quality=q), rounds=_CODED_ROUNDS) for q in QUALITIES]
        tried += coded
        if fit.anisotropy is not None:
            best = min(((sensor, misfit), *coded), key=_misfit)[0]
            moved = [_moving(best, share * fit.clean.shape[1]) for share in MOTIONS]
            tried += [fit.refine(model, rounds=_MOVED_ROUNDS) for model in moved]
    model, distance = min(tried, key=_misfit)
    return CameraEstimate(
        model=model, distance=distance, before=fit.distance(fit.clean), faces=len(fit.clean)
    )


def _misfit(found: tuple[CameraModel, float]) -> float:
    return found[1]


def _moving(model: CameraModel, length: float) -> CameraModel:
    """The same blur on average over all directions, some of it by motion: a line's variance along it is length^2 / 12."""
    return dataclasses.replace(model, motion=length, blur=math.sqrt(max(0.0, model.blur**2 - length**2 / 24)))


class _Fit:
    """The camera's fingerprint, and the clean faces that models are tried on. `lq`: what the camera made of them."""

    def __init__(
        self, seen: Fingerprint, clean: Images, seed: int, advance: Advance, *, lq: Images | None = None
    ) -> None:
        self.seen, self.clean, self.seed, self.advance = seen, clean, seed, advance
        self.anisotropy = None if lq is None else blur_anisotropy(lq, clean)
        self.wanted = {name: value.mean for name, value in seen.values.items()}

    def distance(self, faces: Images) -> float:
        return self._distance(fingerprint(faces), faces)

    def _distance(self, made: Fingerprint, faces: Images) -> float:
        parts = dict(fingerprint_distance(made, self.seen).parts)
        if self.anisotropy is not None:
            own = blur_anisotropy(faces, self.clean)
            error2 = (self.anisotropy.var() + own.var()) / len(own) + _ANISOTROPY**2
            parts[MOTION] = float(own.mean() - self.anisotropy.mean()) / math.sqrt(error2)
        return total_distance(parts, of=(*DEGRADATIONS, MOTION))

    def refine(self, model: CameraModel, *, rounds: int = _ROUNDS) -> tuple[CameraModel, float]:
        """Correct noise and blur by what the fingerprint of the degraded faces lacks; the best of all rounds."""
        tried: list[tuple[CameraModel, float]] = []
        for _ in range(rounds):
            made = degrade_all(self.clean, model, seed=self.seed)
            print_ = fingerprint(made)
            tried.append((model, self._distance(print_, made)))
            self.advance()
            model = self._corrected(model, {name: value.mean for name, value in print_.values.items()})
        return min(tried, key=lambda found: found[1])

    def _corrected(self, model: CameraModel, made: dict[str, float]) -> CameraModel:
        names = [f"noise_{i}" for i in range(len(_CENTRES))]
        known = [i for i, name in enumerate(names) if name in made and name in self.wanted]
        noise = model.noise
        if known:
            fixed = [_step(noise[i], made[names[i]], self.wanted[names[i]], model.shrink) for i in known]
            noise = tuple(np.interp(range(len(names)), known, fixed).tolist())
        chroma = _step(
            model.chroma, made.get("noise_chroma", 0), self.wanted.get("noise_chroma", 0), model.shrink
        )
        square = model.blur**2 + _square(self.wanted["blur"]) - _square(made["blur"])
        blur = min(math.sqrt(max(square, 0.0)), _MOST_BLUR)
        return dataclasses.replace(model, noise=noise, chroma=chroma, blur=blur)


def _step(sigma: float, made: float, wanted: float, shrink: float) -> float:
    """Correct a level so that noise measured as exp(made) comes to exp(wanted), both in ln levels of the face."""
    missing = math.exp(2 * wanted) - math.exp(2 * made)
    # Interpolating up takes noise away; about the fourth root of the pixels' ratio is a start, rounds do the rest.
    return math.sqrt(max(0.0, sigma**2 + missing * math.sqrt(shrink)))


def _square(ln_blur: float) -> float:
    return max(0.0, math.exp(2 * ln_blur) - 0.25)


def blur_anisotropy(lq: Images, clean: Images) -> NDArray[np.float64]:
    """How much more each of uint8 (N, S, S, 3) is blurred along one direction than across it, in ln, 0 or more: (N,).

    The gradients' 2x2 covariance of a face against that of the same face clean: the ratio of both generalised
    eigenvalues, halved, which a round blur leaves near 0 whatever the face.
    """
    found = []
    for bad, good in zip(lq, clean, strict=True):
        values = np.linalg.eigvals(np.linalg.solve(_gradients(good), _gradients(bad))).real
        found.append(0.5 * math.log(max(values.max(), 1e-9) / max(values.min(), 1e-9)))
    return np.array(found)


def _gradients(face: Frame) -> NDArray[np.float64]:
    """The gradients' covariance (2, 2) of luma smoothed by a pixel, away from the borders."""
    luma = cv2.GaussianBlur(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0)
    across, down = (cv2.Sobel(luma, cv2.CV_32F, *of)[4:-4, 4:-4].ravel() for of in ((1, 0), (0, 1)))
    both = np.stack((across, down)).astype(np.float64)
    return np.asarray(both @ both.T / both.shape[1] + 1e-3 * np.eye(2), np.float64)


def total_distance(parts: Mapping[str, float], *, of: Sequence[str] = DEGRADATIONS) -> float:
    """Parts of a `fingerprint_distance` as one number: root mean square over noise, correlation, blur and blocks."""
    known = [parts[name] for name in of if name in parts]
    return math.sqrt(sum(value**2 for value in known) / max(1, len(known)))


def degrade_all(clean: Images, model: CameraModel, *, seed: int) -> Images:
    """Degrade each of uint8 (N, S, S, 3) with a seed of its own."""
    return np.stack([model(face, np.random.default_rng((seed, i))) for i, face in enumerate(clean)])


def camera_source(
    clean: Images,
    model: CameraModel | Sequence[CameraModel],
    count: int,
    seed: int,
    weights: NDArray[np.float64] | None = None,
) -> PairSource:
    """Return (step, rows) -> those rows of `count` pairs (degraded, clean), drawn anew each step, mirrored at random.

    Strength varies as one camera's pictures do: by `varied` around one model, by drawing one of several for each face.
    `weights`: how often each clean face is drawn, float64 (N,) summing to 1. Fixed by (seed, step).
    """
    drawn = partial(varied, model) if isinstance(model, CameraModel) else partial(_one_of, model)

    def draw(step: int, rows: slice) -> tuple[Images, Images]:
        rng = np.random.default_rng((seed, step))
        index = rng.choice(len(clean), count, replace=len(clean) < count, p=weights)
        goal = clean[index]
        goal = np.stack([face[:, ::-1] if rng.random() < 0.5 else face for face in goal])
        # One stream for all: those before `rows` are drawn too, those after it are not.
        lq = np.stack([drawn(rng)(face, rng) for face in goal[: rows.indices(count)[1]]])
        return lq[rows], np.ascontiguousarray(goal[rows])

    return draw


def _one_of(models: Sequence[CameraModel], rng: np.random.Generator) -> CameraModel:
    return models[int(rng.integers(len(models)))]


def varied(model: CameraModel, rng: np.random.Generator) -> CameraModel:
    """The camera on another day: noise, blur and JPEG's quality 0.7 to 1.4 times theirs, the motion 0.5 to 1.5 times."""
    noise, blur = np.exp(rng.uniform(math.log(0.7), math.log(1.4), 2))
    if model.quality is not None:
        model = dataclasses.replace(
            model, quality=int(np.clip(round(model.quality * rng.uniform(0.7, 1.4)), 1, 100))
        )
    if model.motion > 0:
        model = dataclasses.replace(model, motion=model.motion * float(rng.uniform(0.5, 1.5)))
    return dataclasses.replace(
        model,
        noise=_times(model.noise, noise),
        chroma=model.chroma * float(noise),
        blur=model.blur * float(blur),
    )


def flat_noise(sigma: float) -> tuple[float, ...]:
    """Noise of `sigma` levels of luma at every brightness."""
    return (sigma,) * len(_CENTRES)


def _times(values: Iterable[float], factor: float) -> tuple[float, ...]:
    return tuple(float(value * factor) for value in values)
