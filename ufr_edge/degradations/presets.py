"""Named degradations, and one call that applies them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from ufr_edge.degradations.base import Degradation
from ufr_edge.degradations.classic import Classic
from ufr_edge.degradations.compose import Compose, Defocus, Jpeg, MotionBlur, Noise, Shrink
from ufr_edge.degradations.ops import Frame
from ufr_edge.degradations.raw import RawSensor
from ufr_edge.errors import ConfigError

PRESETS: Mapping[str, Degradation] = MappingProxyType(
    {
        "classic": Classic(),
        "classic-light": Classic(sigma=(0.1, 6.0), scale=(0.8, 10.0), noise=(0.0, 12.0), quality=(50, 100)),
        "classic-heavy": Classic(sigma=(4.0, 15.0), scale=(8.0, 32.0), noise=(5.0, 20.0), quality=(30, 80)),
        "raw-iso1500-x4": RawSensor(iso=1500, scale=4),
        "raw-iso3000-x4": RawSensor(iso=3000, scale=4),
        "raw-iso1500-x2": RawSensor(iso=1500, scale=2),
        "raw-iso3000-x2": RawSensor(iso=3000, scale=2),
        "codec-motion": Compose((MotionBlur((12, 36)), Shrink((4, 8)), Noise((0, 3)), Jpeg((10, 30)))),
        "defocus": Compose((Defocus((6, 14)), Shrink((3, 6)), Noise((2, 8)), Jpeg((70, 95)))),
    }
)
"""By name; side 512 and side 256 give the face the same treatment. `PRESET_NOTES` says what each is."""

PRESET_NOTES: Mapping[str, str] = MappingProxyType(
    {
        "classic": "the paper's blind pipeline, full ranges: blur, down, noise, JPEG, up",
        "classic-light": "the milder part of classic",
        "classic-heavy": "the harder part of classic",
        "raw-iso1500-x4": "raw sensor, ISO 1500, 128 px on the face (the paper's moderate set)",
        "raw-iso3000-x4": "raw sensor, ISO 3000, 128 px on the face (the paper's severe set)",
        "raw-iso1500-x2": "raw sensor, ISO 1500, 256 px on the face",
        "raw-iso3000-x2": "raw sensor, ISO 3000, 256 px on the face",
        "codec-motion": "a moving face in a starved video codec",
        "defocus": "a lens out of focus, a little noise",
    }
)


def get_preset(name: str) -> Degradation:
    """Look a preset up. Raises ConfigError naming the known ones."""
    try:
        return PRESETS[name]
    except KeyError as exc:
        msg = f"Unknown degradation {name!r}. Known: {', '.join(PRESETS)}."
        raise ConfigError(msg) from exc


def degrade(image: Frame, preset: str | Degradation, *, seed: int) -> Frame:
    """Degrade uint8 (H, W, 3) RGB, same size out; the same seed gives the same picture.

    Raises ConfigError for an unknown preset and ShapeError for another shape or dtype.
    """
    camera = get_preset(preset) if isinstance(preset, str) else preset
    return camera(image, np.random.default_rng(seed))
