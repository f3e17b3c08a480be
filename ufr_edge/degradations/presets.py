"""Named degradations, and one call that applies them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from ufr_edge.degradations.base import Degradation
from ufr_edge.degradations.classic import Classic
from ufr_edge.degradations.ops import Frame
from ufr_edge.errors import ConfigError

PRESETS: Mapping[str, Degradation] = MappingProxyType(
    {
        "classic": Classic(),
        "classic-light": Classic(sigma=(0.1, 6.0), scale=(0.8, 10.0), noise=(0.0, 12.0), quality=(50, 100)),
        "classic-heavy": Classic(sigma=(4.0, 15.0), scale=(8.0, 32.0), noise=(5.0, 20.0), quality=(30, 80)),
    }
)
"""`classic`: the paper's full ranges. `classic-light`, `classic-heavy`: its milder and its harder part."""


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
