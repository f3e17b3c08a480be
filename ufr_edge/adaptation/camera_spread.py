"""The camera of each face: what its pictures went through differs from one to the next, and pairs must differ as much.

One model for all faces (camera_pairs.py) is the average of a moving scene, a codec's changing rate and faces of many
sizes. Here every face gets settings of its own, by semi-automatic approximate Bayesian computation (Fearnhead &
Prangle, "Constructing summary statistics for approximate Bayesian computation", JRSS B 2012; not in the paper):

1. clean faces go through cameras drawn at random, and through the restorer;
2. a small regression learns each camera's settings from the degraded face beside what the restorer makes of it;
3. the camera's own faces are measured the same way, and each takes the settings of the simulated faces that the
   regression finds most like it;
4. a second round draws around these.

What a face looked like before is not needed: the restorer's output stands for it on both sides, so that what the
restorer leaves blurred is not taken for sharpness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ufr_edge.adaptation.camera_features import Measure
from ufr_edge.adaptation.camera_pairs import CameraEstimate, CameraModel, flat_noise
from ufr_edge.config import load_config, save_config
from ufr_edge.errors import ConfigError, InputFileError, ShapeError

Images = NDArray[np.uint8]
Restore = Callable[[Images], Images]
Advance = Callable[..., None]
Matrix = NDArray[np.float32]

SETTINGS = ("shrink", "quality", "motion", "blur", "noise", "chroma")
_BEST = 100  # quality that stands for none
_FLOOR = 0.5  # added before the logarithm: px of blur, levels of noise
_HIDDEN, _EPOCHS, _BATCH = 192, 60, 64
_TOGETHER = 64  # faces that are degraded and restored in one go


@dataclass(frozen=True, kw_only=True)
class CameraSpread:
    """`models`: settings that the camera's pictures went through, about as often as they are listed. faces: looked at."""

    models: tuple[CameraModel, ...]
    faces: int

    def to_json(self) -> dict[str, Any]:
        """Quantiles of each setting as JSON values; lengths in px of the face."""
        table = np.array([_plain(model) for model in self.models])
        cuts = (5, 25, 50, 75, 95)
        found = np.percentile(table, cuts, axis=0).T.round(2).tolist()
        return {"faces": self.faces, "percentiles": list(cuts), **dict(zip(SETTINGS, found, strict=True))}


@dataclass(frozen=True, kw_only=True)
class SpreadConfig:
    """rounds: of simulation. count: faces simulated in each. near: of them, taken for each face of the camera.
    probe: faces of the camera that are looked at. Raises ConfigError unless all are 1 or more, and `count` 256.
    """

    rounds: int = 2
    count: int = 1536
    near: int = 4
    probe: int = 200

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.rounds, self.near, self.probe) < 1 or self.count < 256:
            msg = f"A camera is estimated in 1 round or more, of 256 faces or more; got {self}."
            raise ConfigError(msg)

    def looks(self, faces: int) -> int:
        """How often `estimate_spread` calls `advance` for so many faces of the camera."""
        batches = math.ceil(min(self.probe, faces) / _TOGETHER)
        return batches + self.rounds * math.ceil(self.count / _TOGETHER)


def estimate_spread(
    lq: Images,
    clean: Images,
    restore: Restore,
    config: SpreadConfig | None = None,
    *,
    seed: int = 0,
    advance: Advance | None = None,
) -> CameraSpread:
    """Estimate what each of faces uint8 (N, S, S, 3), S >= 64, went through.

    clean: clean faces of anyone, uint8 (M, S, S, 3). restore: what a restorer makes of uint8 (B, S, S, 3), the same shape
    out. advance: called after each batch, `config.looks` times. Fixed by `seed` on one machine. Raises ShapeError
    when sides differ.
    """
    config = config or SpreadConfig()
    if not len(lq) or not len(clean) or lq.shape[1:] != clean.shape[1:]:
        msg = f"Faces {lq.shape} and clean faces {clean.shape} must have one side, and there must be some of both."
        raise ShapeError(msg)
    at = np.linspace(0, len(lq) - 1, min(config.probe, len(lq))).round().astype(int)
    rng = np.random.default_rng(seed)
    simulator = _Simulator(clean, restore, rng, advance or (lambda *_: None))
    seen = simulator.measured(lq[at])
    found: list[CameraModel] = []
    for _ in range(config.rounds):
        drawn = [simulator.drawn(found) for _ in range(config.count)]
        made = simulator.simulated(drawn)
        near = _nearest(made, np.array([_settings(model) for model in drawn], np.float32), seen, config.near, seed)
        found = [drawn[i] for i in near.ravel()]
    return CameraSpread(models=tuple(found), faces=len(at))


@dataclass(frozen=True, kw_only=True)
class KeptCamera:
    """An estimate as a training keeps it, unrounded. origin: digest of what is trained on what."""

    origin: str
    estimate: CameraEstimate | CameraSpread


def keep_camera(path: Path, estimate: CameraEstimate | CameraSpread, *, origin: str) -> None:
    """Write an estimate for `kept_camera`. Raises OutputError on a full disk."""
    save_config(KeptCamera(origin=origin, estimate=estimate), path)


def kept_camera(path: Path, *, origin: str) -> CameraEstimate | CameraSpread | None:
    """The estimate that `keep_camera` wrote, to the last bit; None where there is none, or another training's.

    Raises InputFileError when the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        kept = load_config(KeptCamera, path)
    except (InputFileError, ConfigError) as exc:
        msg = f"{exc} Remove {path}: the camera is then estimated again."
        raise InputFileError(msg) from exc
    return kept.estimate if kept.origin == origin else None


class _Simulator:
    """Clean faces through cameras and the restorer, measured."""

    def __init__(self, clean: Images, restore: Restore, rng: np.random.Generator, advance: Advance) -> None:
        self.clean, self.restore, self.rng, self.advance = clean, restore, rng, advance
        self.scale = clean.shape[1] / 256
        self.measure = Measure(clean.shape[1])

    def drawn(self, around: Sequence[CameraModel]) -> CameraModel:
        """A camera near one of `around`; any at all where there is none, and one time in ten."""
        if around and self.rng.random() < 0.9:
            return _jittered(around[int(self.rng.integers(len(around)))], self.rng)
        return _any_camera(self.rng, self.scale)

    def simulated(self, models: Sequence[CameraModel]) -> Matrix:
        """Measures (N, F) of clean faces, one drawn for each camera."""
        parts = []
        for start in range(0, len(models), _TOGETHER):
            some = models[start : start + _TOGETHER]
            faces = self.clean[self.rng.integers(len(self.clean), size=len(some))]
            parts.append(
                self.measured(np.stack([m(f, self.rng) for m, f in zip(some, faces, strict=True)]))
            )
        return np.concatenate(parts)

    def measured(self, faces: Images) -> Matrix:
        """Measures (N, F) of degraded faces beside what the restorer makes of them."""
        out = []
        for start in range(0, len(faces), _TOGETHER):
            some = faces[start : start + _TOGETHER]
            out += [self.measure(bad, good) for bad, good in zip(some, self.restore(some), strict=True)]
            self.advance()
        return np.stack(out)


def _any_camera(rng: np.random.Generator, scale: float) -> CameraModel:
    """All that is likely: a sensor of a fifth of the face's pixels or more, motion up to a ninth of the face."""
    noise = _or_none(rng, 0.15, 0.5, 25.0)
    return CameraModel(
        shrink=max(1.0, math.exp(rng.uniform(0, math.log(5))) * scale),
        quality=None if rng.random() < 0.25 else round(math.exp(rng.uniform(math.log(6), math.log(95)))),
        motion=0.0 if rng.random() < 0.3 else rng.uniform(1, 28) * scale,
        blur=_or_none(rng, 0.2, 0.3, 8.0) * scale,
        noise=flat_noise(noise),
        chroma=noise * rng.uniform(0.3, 2.1),
    )


def _or_none(rng: np.random.Generator, none: float, low: float, high: float) -> float:
    """0 with the chance `none`, else log-uniform."""
    return 0.0 if rng.random() < none else math.exp(rng.uniform(math.log(low), math.log(high)))


def _jittered(model: CameraModel, rng: np.random.Generator) -> CameraModel:
    """The same camera, but for a sixth or so of each setting."""
    near = np.exp(rng.normal(0.0, 0.16, len(SETTINGS)))
    quality = model.quality
    return CameraModel(
        shrink=max(1.0, model.shrink * near[0]),
        quality=None if quality is None else int(np.clip(round(quality * near[1]), 1, _BEST)),
        motion=model.motion * near[2],
        blur=model.blur * near[3],
        noise=tuple(level * near[4] for level in model.noise),
        chroma=model.chroma * near[5],
    )


def _plain(model: CameraModel) -> list[float]:
    quality = _BEST if model.quality is None else model.quality
    level = float(np.mean(model.noise))
    return [model.shrink, quality, model.motion, model.blur, level, model.chroma]


def _settings(model: CameraModel) -> list[float]:
    """What the regression learns: ratios matter, but for motion, and but for next to nothing."""
    shrink, quality, motion, blur, noise, chroma = _plain(model)
    logs = (math.log(level + _FLOOR) for level in (blur, noise, chroma))
    return [math.log(shrink), math.log(quality), motion / 10, *logs]


def _nearest(made: Matrix, settings: Matrix, seen: Matrix, near: int, seed: int) -> NDArray[np.int64]:
    """For each row of `seen`, those of `made` whose regressed settings are nearest, in units of the regression's error."""
    regress = _regression(made, settings, seed)
    own, wanted = regress(made), regress(seen)
    error = (own - settings).std(axis=0) + 1e-6
    distance = (((wanted[:, None] - own[None]) / error) ** 2).sum(axis=-1)
    return np.argsort(distance, axis=1)[:, :near].astype(np.int64)


def _regression(inputs: Matrix, goals: Matrix, seed: int) -> Callable[[Matrix], Matrix]:
    """Least squares by a network of one hidden layer twice, from (N, F) to (N, K)."""
    middle, width = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
    level, reach = goals.mean(axis=0), goals.std(axis=0) + 1e-6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _trained(
            torch.from_numpy((inputs - middle) / width), torch.from_numpy((goals - level) / reach)
        )

    def regress(rows: Matrix) -> Matrix:
        with torch.no_grad():
            out = net(torch.from_numpy((rows - middle) / width)).numpy()
        return np.asarray(out * reach + level, np.float32)

    return regress


def _trained(inputs: torch.Tensor, goals: torch.Tensor) -> nn.Module:
    net = nn.Sequential(
        nn.Linear(inputs.shape[1], _HIDDEN),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.GELU(),
        nn.Linear(_HIDDEN, goals.shape[1]),
    )
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    batches = max(1, len(inputs) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS * batches)
    for _ in range(_EPOCHS):
        order = torch.randperm(len(inputs))
        for start in range(0, batches * _BATCH, _BATCH):
            rows = order[start : start + _BATCH]
            blurred = inputs[rows] + 0.05 * torch.randn(len(rows), inputs.shape[1])
            loss = nn.functional.mse_loss(net(blurred), goals[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return net.eval()
