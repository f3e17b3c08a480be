"""How wide an activation's range is made: from smallest to largest, or clipped to a percentile."""

from __future__ import annotations

from ufr_edge.errors import ConfigError


def check_percentile(percentile: float | None) -> None:
    """Raise ConfigError for a percentile outside (50, 100]; None means min-max."""
    if percentile is not None and not 50 < percentile <= 100:
        msg = f"The calibration percentile must lie in (50, 100]; got {percentile}."
        raise ConfigError(msg)


def ranges_name(percentile: float | None) -> str:
    """The choice in words, as the manifest records it."""
    return "min-max" if percentile is None else f"percentile {percentile:g}"
