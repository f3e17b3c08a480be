"""What a training step sees: faces and degraded pairs, drawn anew for each step and fixed by (seed, step) alone.

So a resumed run sees what it would have seen, and each of several processes draws its own rows only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.faces import FaceSet, source_weights
from ufr_edge.adaptation.restorer_task import HeldOut, ImageSource, PairSource
from ufr_edge.degradations.presets import degrade, get_preset
from ufr_edge.errors import ConfigError

Images = NDArray[np.uint8]


class Mixed(Protocol):
    """The settings of `mixed_source`; see `PretrainRestorer`."""

    @property
    def batch(self) -> int: ...
    @property
    def degradations(self) -> Mapping[str, float]: ...
    @property
    def crop_share(self) -> float: ...
    @property
    def crop(self) -> int: ...
    @property
    def crops_per_face(self) -> int: ...
    @property
    def crop_degradations(self) -> Mapping[str, float]: ...
    @property
    def seed(self) -> int: ...


def check_mixture(mixture: Mapping[str, float]) -> None:
    """Raise ConfigError unless the mixture names known presets, with shares that are positive somewhere."""
    for name in mixture:
        get_preset(name)
    if not mixture or min(mixture.values()) < 0 or sum(mixture.values()) <= 0:
        msg = (
            f"Degradations are presets with shares of at least 0, one of them above it; got {dict(mixture)}."
        )
        raise ConfigError(msg)


def face_source(faces: FaceSet, batch: int, seed: int, *, flip: bool = True) -> ImageSource:
    """Return (step, rows) -> uint8 (rows, S, S, 3): by the set's weights, flipped at random unless `flip` is off."""
    weights = source_weights(faces.names) if faces.weights is None else faces.weights

    def draw(step: int, rows: slice) -> Images:
        rng = np.random.default_rng((seed, step))
        chosen = rng.choice(len(faces), batch, p=weights)[rows]
        turned = (rng.random(batch) < 0.5)[rows] & flip
        images = faces.images[chosen]
        images[turned] = images[turned, :, ::-1]
        return images

    return draw


def degrading_source(faces: FaceSet, mixture: Mapping[str, float], batch: int, seed: int) -> PairSource:
    """Return (step, rows) -> (degraded, clean) faces of `face_source`; each by a preset drawn by its share."""
    check_mixture(mixture)
    clean_of = face_source(faces, batch, seed)
    cameras = [get_preset(name) for name in mixture]
    shares = np.array(list(mixture.values())) / sum(mixture.values())

    def pairs(step: int, rows: slice) -> tuple[Images, Images]:
        clean = clean_of(step, rows)
        drawn = np.random.default_rng((seed, step, 1)).choice(len(cameras), batch, p=shares)
        numbered = zip(clean, range(batch)[rows], strict=True)
        bad = [cameras[drawn[i]](face, np.random.default_rng((seed, step, 1, i))) for face, i in numbered]
        return np.stack(bad), clean

    return pairs


def mixed_source(faces: FaceSet, config: Mixed) -> PairSource:
    """Return (step, rows) -> (degraded, clean): whole faces, or crops of them in a `crop_share` of the steps."""
    whole = degrading_source(faces, config.degradations, config.batch, config.seed)
    other = config.crop_degradations or config.degradations
    cropped = cropping_source(
        degrading_source(faces, other, config.batch, config.seed),
        batch=config.batch,
        crop=config.crop,
        count=config.crops_per_face,
        seed=config.seed,
    )

    def pairs(step: int, rows: slice) -> tuple[Images, Images]:
        crops = np.random.default_rng((config.seed, step, 5)).random() < config.crop_share
        return (cropped if crops else whole)(step, rows)

    return pairs


def cropping_source(pairs: PairSource, *, batch: int, crop: int, count: int, seed: int) -> PairSource:
    """Return (step, rows) -> `count` random crops of `crop` px out of each pair: uint8 (rows x count, crop, crop, 3)."""

    def crops(step: int, rows: slice) -> tuple[Images, Images]:
        stacks = pairs(step, rows)
        room = stacks[0].shape[1] - crop
        corners = np.random.default_rng((seed, step, 6)).integers(0, room + 1, (batch, count, 2))[rows]
        lq, clean = (_cut(images, corners, crop) for images in stacks)
        return lq, clean

    return crops


def drawn_ahead(pairs: PairSource, *, steps: int, threads: int) -> PairSource:
    """Return the same source, with the `steps` steps after the one asked for drawn meanwhile by `threads` threads.

    What is drawn depends on the step alone, so nothing changes but the time: a GPU does not wait for degradations.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pairs")
    drawn: dict[tuple[int, int, int], Future[tuple[Images, Images]]] = {}

    def ahead(step: int, rows: slice) -> tuple[Images, Images]:
        for key in [key for key in drawn if not step <= key[0] <= step + steps]:
            drawn.pop(key).cancel()
        for later in range(step, step + steps + 1):
            key = (later, rows.start, rows.stop)
            if key not in drawn:
                drawn[key] = pool.submit(pairs, later, rows)
        return drawn.pop((step, rows.start, rows.stop)).result()

    return ahead


def degraded_pairs(faces: FaceSet, presets: Sequence[str], *, seed: int) -> HeldOut:
    """Degrade every face once by each preset, face i with seed `seed` + i: held-out pairs that stay the same."""
    bad = [degrade(image, name, seed=seed + i) for name in presets for i, image in enumerate(faces.images)]
    groups = tuple(name for name in presets for _ in range(len(faces))) if len(presets) > 1 else ()
    return HeldOut(lq=np.stack(bad), truth=np.concatenate([faces.images] * len(presets)), groups=groups)


def _cut(images: Images, corners: NDArray[np.int64], crop: int) -> Images:
    found = [
        image[top : top + crop, left : left + crop]
        for image, pairs in zip(images, corners, strict=True)
        for top, left in pairs
    ]
    return np.stack(found)
