"""Seeded, composable, named degradations (numpy and OpenCV only)."""

from ufr_edge.degradations.base import Degradation
from ufr_edge.degradations.classic import Classic, ClassicParams, grey_pair
from ufr_edge.degradations.compose import Compose
from ufr_edge.degradations.presets import PRESET_NOTES, PRESETS, degrade, get_preset
from ufr_edge.degradations.raw import RawParams, RawSensor

__all__ = [
    "PRESETS",
    "PRESET_NOTES",
    "Classic",
    "ClassicParams",
    "Compose",
    "Degradation",
    "RawParams",
    "RawSensor",
    "degrade",
    "get_preset",
    "grey_pair",
]
