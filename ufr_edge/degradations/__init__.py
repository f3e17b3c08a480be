"""Seeded, composable, named degradations (numpy and OpenCV only)."""

from ufr_edge.degradations.base import Degradation
from ufr_edge.degradations.classic import Classic, ClassicParams, grey_pair
from ufr_edge.degradations.presets import PRESETS, degrade, get_preset

__all__ = ["PRESETS", "Classic", "ClassicParams", "Degradation", "degrade", "get_preset", "grey_pair"]
