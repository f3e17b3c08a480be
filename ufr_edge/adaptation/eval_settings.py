"""What the names of the figures of `ufr-edge eval` mean, stated beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ufr_edge.adaptation.evaluate import Meters, Truth
from ufr_edge.metrics.artefacts import FLAT_SHARE, PERIOD, TILE
from ufr_edge.metrics.fid_inception import FEATURES, INCEPTION
from ufr_edge.metrics.fid_inception import SIDE as FID_SIDE
from ufr_edge.metrics.lpips_net import NETS


def metric_settings(meters: Meters, truth: Truth, *, prior: str | None, lpips: str, source: str) -> dict[str, Any]:
    """Return JSON values by figure, of those that are measured. `prior`, `lpips`: as asked for; `source`: of the truth."""
    settings: dict[str, Any] = {"psnr_ssim": meters.quality.describe()}
    if meters.features:
        note = f"features of {prior} at timestep {meters.features.timestep}; not LPIPS, not FID"
        settings["prior_feature_distance"] = note
        settings["prior_frechet_distance"] = f"{note}; compare at {len(truth.images)} faces only"
    if meters.lpips:
        digest = NETS[lpips].backbone.file.sha256
        settings["lpips"] = f"v0.1, {lpips}, at {truth.images.shape[1]} px (SHA-256 {digest})"
    if meters.inception:
        settings["fid"] = _fid(len(truth.images), source)
    if truth.landmarks is not None:
        settings["landmark_px512"] = (
            "mean distance of CenterFace's five points from those in the truth, in pixels at 512 px, over the faces "
            "in which it found them; landmark_none counts the others"
        )
        settings["landmark_truth_none"] = int(np.isnan(truth.landmarks).any((1, 2)).sum())
    return settings | _artefacts(meters, truth)


def _fid(count: int, source: str) -> str:
    """Count and network of the FID; both sets have one count."""
    network = f"Inception 2015-12-05 as pytorch-fid: bilinear to {FID_SIDE} (SHA-256 {INCEPTION.file.sha256})"
    few = f"; {count} faces are no more than its {FEATURES} features: compare at equal counts only"
    return f"{count} images against the {count} of {source}, {network}{few if count <= FEATURES else ''}"


def _artefacts(meters: Meters, truth: Truth) -> dict[str, Any]:
    """Colour cast, grid, flat areas (with what the clean faces have of them) and whose face is nearest."""
    if truth.flat is None:
        return {}
    where = f"in the {100 * FLAT_SHARE:.0f} % of {TILE} px tiles in which the truth varies least, median face"
    settings: dict[str, Any] = {
        "colour_cast": (
            "length of a face's mean (a*, b*) shift from the truth, in CIELAB units; colour_cast_common is that of the "
            "shift which all faces share"
        ),
        "grid_levels": (
            f"root mean square, in 8-bit levels, of what repeats every 2, 4 or {PERIOD} px in all tiles alike, {where}; "
            "grid_truth_levels is the clean faces' own"
        ),
        "grid_truth_levels": round(truth.flat.grid, 4),
        "flat_energy_ratio": (
            f"energy finer than about {TILE} px (noise, ringing, texture) {where}, as a share of the clean faces' "
            f"({truth.flat.energy:.3g} levels squared)"
        ),
    }
    if meters.features and len(truth.images) > 1:
        settings["own_is_nearest"] = (
            "share of the faces whose nearest of all the truths is their own, by the prior-feature distance of the "
            "inner face (half the side); the features are no face recogniser's"
        )
    return settings
