"""Is a target fit to learn from? Scores of each target, and limits by which it is kept, weighed down or rejected.

| score | unit | what it is |
|---|---|---|
| drift | 8-bit levels | rms difference between target and restorer's output on an 8 x 8 grid |
| drift_input | 8-bit levels | the target's such difference from the input, beyond that of the restorer's output |
| colour | 8-bit levels | largest shift of a channel's mean against the restorer's output |
| landmark_px512 | px at 512 px | mean displacement of the five points against the restorer's output |
| noise | 8-bit levels | sigma of luma noise on flat parts (runtime/fingerprint.py) |
| noise_chroma | 8-bit levels | the same of red less green |
| high_frequency_energy | levels squared | above 0.25 cycles per pixel (metrics/spectrum.py); told, not judged |
| clipped | share | pixels at 0 or 255 that were not so in the restorer's output |
| identity | cosine | of the embeddings of target and restorer's output, where a network for them is given |

Each judged score has two limits, good and bad. At good or better the target counts fully; from there to bad its weight
falls linearly to `LEAST`; beyond bad it is rejected. Weights of several scores multiply. The limits of noise are multiples
of what clean faces have (132 held-out ones at 256 px: luma noise 0.5 to 5.7, chroma 0.3 to 2.5 levels, 5th to 95th percentile).
A score that could not be taken is not judged; a face whose points are lost by sampling is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import ConfigError, ModelFileError
from ufr_edge.metrics.landmarks import find_landmarks, landmark_shift
from ufr_edge.metrics.spectrum import high_frequency_energy
from ufr_edge.runtime.engines.opening import open_session
from ufr_edge.runtime.faces.align import TEMPLATE_512, similarity
from ufr_edge.runtime.faces.detect import Detects
from ufr_edge.runtime.faces.warp import warp
from ufr_edge.runtime.fingerprint import measure_face

Images = NDArray[np.uint8]
Scores = dict[str, float]
Pair = tuple[float, float]
Verdict = Literal["kept", "down-weighted", "rejected"]

LEAST = 0.25
"""Weight of a target just at the bad limit of one score."""
GRID = 8
"""On so few cells noise and invented detail mean out; what is left is colour and light in the wrong place."""
CLEAN_NOISE_CHROMA = 2.5
"""95th percentile of `noise_chroma` over clean faces at 256 px; see the module."""
CLEAN_NOISE = 5.7
_LOST = "landmarks_lost"
# Five points at 112 px that recognition networks of the ArcFace kind are trained on (Deng et al. 2019).
_ARCFACE_112 = np.array(
    [[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]], dtype=np.float64
)


@dataclass(frozen=True, kw_only=True)
class QaConfig:
    """(good, bad) of each judged score; bad may lie below good (identity). Raises ConfigError when both are equal.

    `judge` false: scores are taken and written, every target keeps its full weight. `embedder`: ONNX file of a face
    recognition network (1, 3, S, S), for `identity`.
    """

    judge: bool = True
    drift: Pair = (4.0, 10.0)
    drift_input: Pair = (2.5, 7.0)
    colour: Pair = (4.0, 12.0)
    landmark_px512: Pair = (8.0, 24.0)
    noise: Pair = (1.5 * CLEAN_NOISE, 4 * CLEAN_NOISE)
    noise_chroma: Pair = (2 * CLEAN_NOISE_CHROMA, 8 * CLEAN_NOISE_CHROMA)
    clipped: Pair = (0.05, 0.20)
    identity: Pair = (0.5, 0.2)
    embedder: Path | None = None

    def __post_init__(self) -> None:
        """Check the limits."""
        for name, (good, bad) in self.limits().items():
            if good == bad:
                msg = f"The limits of {name} are the same ({good:g}): give (good, bad), such as {getattr(QaConfig, name)}."
                raise ConfigError(msg)

    def limits(self) -> dict[str, Pair]:
        """Return (good, bad) by the name of the score."""
        names = ("drift", "drift_input", "colour", "landmark_px512", "noise", "noise_chroma", "clipped", "identity")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What became of a target: its weight in training (0 for a rejected one) and why it is below 1."""

    weight: float
    verdict: Verdict
    reasons: tuple[str, ...] = ()


def judge(scores: Mapping[str, float | None], config: QaConfig) -> Judgement:
    """Weigh a target by its scores (missing or None: not taken, not judged). See the module for the rule."""
    if not config.judge:
        return Judgement(weight=1.0, verdict="kept")
    if scores.get(_LOST):
        return Judgement(weight=0.0, verdict="rejected", reasons=("no face is found in it any more",))
    weight, reasons = 1.0, []
    for name, (good, bad) in config.limits().items():
        value = scores.get(name)
        share = 1.0 if value is None else weight_of(value, good, bad)
        if share < 1:
            limit = bad if share == 0 else good
            reasons.append(f"{name} {value:.3g} (limit {limit:.3g})")
        weight *= share
    verdict: Verdict = "rejected" if weight == 0 else "down-weighted" if weight < 1 else "kept"
    return Judgement(weight=round(weight, 4), verdict=verdict, reasons=tuple(reasons))


def weight_of(value: float, good: float, bad: float) -> float:
    """1 at `good` or better, linear to `LEAST` at `bad`, 0 beyond it or when it is no number."""
    if not math.isfinite(value):
        return 0.0
    position = (value - good) / (bad - good)
    return 0.0 if position > 1 else 1 - (1 - LEAST) * max(0.0, position)


class Examiner:
    """Takes the scores. `detector` and `config.embedder` may be None: then those scores are not taken."""

    def __init__(self, config: QaConfig, detector: Detects | None) -> None:
        self.config, self.detector = config, detector
        self.embed = Embedder(config.embedder) if config.embedder else None

    def scores(self, targets: Images, references: Images, inputs: Images) -> list[Scores]:
        """Score targets against the restorer's outputs and the inputs; all uint8 (N, S, S, 3)."""
        stacks = zip(targets, references, inputs, strict=True)
        found = [{**picture_scores(*faces), **noise_scores(faces[0])} for faces in stacks]
        if self.detector is not None:
            shifts = _shifts(targets, references, self.detector)
            found = [{**scores, **shift} for scores, shift in zip(found, shifts, strict=True)]
        if self.embed is not None:
            for scores, target, reference in zip(found, targets, references, strict=True):
                scores["identity"] = cosine(self.embed(target), self.embed(reference))
        return [{name: round(value, 4) for name, value in scores.items()} for scores in found]


def picture_scores(target: Images, reference: Images, face: Images) -> Scores:
    """Scores of pixels alone, uint8 (S, S, 3) each."""
    return {
        "drift": drift(target, reference),
        "drift_input": max(0.0, drift(target, face) - drift(reference, face)),
        "colour": colour_shift(target, reference),
        "high_frequency_energy": high_frequency_energy(target),
        "clipped": max(0.0, _clipped(target) - _clipped(reference)),
    }


def noise_scores(face: Images) -> Scores:
    """Noise on flat parts, in levels: the median over the brightness ranges it was found in, and that of red less green."""
    if face.shape[0] < 64:
        return {}
    measured = measure_face(face)
    luma = [math.exp(v) - 0.3 for k, v in measured.items() if k.startswith("noise_") and k[6:].isdigit()]
    found = {"noise": float(np.median(luma))} if luma else {}
    if "noise_chroma" in measured:
        found["noise_chroma"] = math.exp(measured["noise_chroma"]) - 0.3
    return found


def drift(a: Images, b: Images, *, grid: int = GRID) -> float:
    """Root mean square difference in levels of two faces shrunk to `grid` x `grid` by averaging."""
    one, other = (cv2.resize(x.astype(np.float32), (grid, grid), interpolation=cv2.INTER_AREA) for x in (a, b))
    return float(np.sqrt(np.mean((one - other) ** 2)))


def colour_shift(a: Images, b: Images) -> float:
    """Largest difference between the means of a channel, in levels."""
    return float(np.abs(a.mean((0, 1)) - b.mean((0, 1))).max())


def _clipped(face: Images) -> float:
    return float(((face == 0) | (face == 255)).any(-1).mean())


def _shifts(targets: Images, references: Images, detector: Detects) -> list[Scores]:
    """Displacement of the points; nothing where the reference shows none, `_LOST` where only the target does not."""
    new, old = find_landmarks(targets, detector), find_landmarks(references, detector)
    shifts: list[Scores] = []
    for here, there in zip(new, old, strict=True):
        if np.isnan(there).any():
            shifts.append({})
        elif np.isnan(here).any():
            shifts.append({_LOST: 1.0})
        else:
            shifts.append({"landmark_px512": landmark_shift(here, there, side=targets.shape[1])})
    return shifts


class Embedder:
    """A face recognition network: RGB uint8 (S, S, 3) aligned as ours, to a vector.

    The ONNX takes float (1, 3, S, S) or (1, S, S, 3), RGB in [-1, 1], aligned as ArcFace's. Raises ModelFileError for
    another input, InputFileError without the file, BackendUnavailableError without ONNX Runtime.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_session(path)
        (spec, *_), shape = self._session.inputs, self._session.inputs[0].shape
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            msg = f"{path}: an embedding network takes (1, 3, S, S) or (1, S, S, 3); this one takes {shape}."
            raise ModelFileError(msg)
        self._name, self._first = spec.name, shape[1] == 3
        self._side = (shape[2] if self._first else shape[1]) or 112

    def __call__(self, face: Images) -> NDArray[np.float64]:
        """Return the embedding, of length 1."""
        matrix = similarity(TEMPLATE_512 * (face.shape[0] / 512), _ARCFACE_112 * (self._side / 112))
        cut = warp(face, matrix, (self._side, self._side)).astype(np.float32) / 127.5 - 1
        feed = (cut.transpose(2, 0, 1) if self._first else cut)[None]
        (out, *_) = self._session.run({self._name: np.ascontiguousarray(feed)}).values()
        vector = np.asarray(out, dtype=np.float64).ravel()
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12))


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Cosine of two vectors of length 1."""
    return float(a @ b)


def counts(entries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many targets were kept, weighed down and rejected."""
    verdicts = [entry.get("verdict", "kept") for entry in entries]
    return {name: verdicts.count(name) for name in ("kept", "down-weighted", "rejected")}


def worst(entries: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The targets of least weight, then of largest drift."""
    return sorted(entries, key=lambda e: (e.get("weight", 1.0), -(e.get("scores") or {}).get("drift", 0.0)))[:count]
