"""What every degradation offers: an image and a generator in, a degraded image of the same size out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ufr_edge.degradations.ops import Frame


class Degradation(Protocol):
    """A camera model. Frozen, holds no state: the same generator state gives the same result."""

    def __call__(self, image: Frame, rng: np.random.Generator) -> Frame:
        """Degrade uint8 (H, W, 3) RGB, same size out. Raises ShapeError on anything else."""
        ...

    def describe(self) -> dict[str, Any]:
        """Every setting, as JSON values, with the kind under "kind"."""
        ...
