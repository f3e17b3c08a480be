"""Post-training INT8 quantization of an OpenVINO model with NNCF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.quiet import quiet
from ufr_edge.errors import BuildError
from ufr_edge.optional import require


@dataclass(frozen=True, kw_only=True)
class NncfConfig:
    """What to hand to `nncf.quantize`.

    ignored: names of operations to leave in float (as they stand in the ONNX); none by default.
    fast_bias_correction: NNCF's fast variant; the other one is slower and slightly more exact.
    mean_ranges: average activation ranges over the images (NNCF's own default), which clips the bright and the
    contrasty ones: a restorer loses up to 3 dB by it. False = the range that holds them all.
    """

    ignored: tuple[str, ...] = ()
    fast_bias_correction: bool = True
    mean_ranges: bool = False

    @property
    def method(self) -> str:
        """The method in words, as the manifest records it."""
        kept = f", {len(self.ignored)} operations in float" if self.ignored else ""
        ranges = "mean min-max" if self.mean_ranges else "min-max"
        return f"NNCF post-training, mixed preset, {ranges}{kept}"


def quantize_openvino(model: Any, frames: NDArray[np.uint8], *, config: NncfConfig | None = None) -> Any:
    """Return `model` (openvino.Model, uint8 NHWC in and out) quantized to INT8, ranges from `frames`.

    frames: uint8 RGB (N, S, S, 3), N >= 1. The mixed preset: symmetric weights, asymmetric activations.
    Raises BuildError when NNCF fails, BackendUnavailableError when it is not installed.
    """
    nncf = require("nncf", extra="nncf")
    chosen = config or NncfConfig()
    data = nncf.Dataset([frames[i : i + 1] for i in range(len(frames))])
    scope = nncf.IgnoredScope(names=list(chosen.ignored)) if chosen.ignored else None
    # NNCF draws bars of its own on standard output
    with quiet("nncf"):
        try:
            return nncf.quantize(
                model,
                data,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(frames),
                fast_bias_correction=chosen.fast_bias_correction,
                ignored_scope=scope,
                advanced_parameters=_advanced(nncf, chosen),
            )
        except Exception as exc:  # the border: NNCF raises its own and built-in errors alike
            msg = f"NNCF could not quantize the model: {type(exc).__name__}: {exc}"
            raise BuildError(msg) from exc


def _advanced(nncf: Any, config: NncfConfig) -> Any:
    if config.mean_ranges:
        return None
    sets = require("nncf.quantization.range_estimator", extra="nncf").RangeEstimatorParametersSet
    return nncf.AdvancedQuantizationParameters(activations_range_estimator_params=sets.MINMAX)
