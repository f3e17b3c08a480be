"""Post-training INT8 quantization of an OpenVINO model with NNCF."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.quiet import quiet
from ufr_edge.calibration.ranges import check_percentile, ranges_name
from ufr_edge.errors import BuildError
from ufr_edge.optional import require

WITHOUT_BIAS = "/WithoutBiases"  # what OpenVINO's reader appends to the convolution of a node with a bias


@dataclass(frozen=True, kw_only=True)
class NncfConfig:
    """What to hand to `nncf.quantize`.

    ignored: names of nodes of the ONNX to leave in float; none by default. Those the model lacks are passed over.
    fast_bias_correction: NNCF's fast variant; the other one is slower and slightly more exact.
    mean_ranges: average activation ranges over the images (NNCF's own default), which clips the bright and the
    contrasty ones: a restorer loses up to 3 dB by it. False = the range that holds them all.
    percentile: clip activation ranges to it (such as 99.99) in each image; None = min-max.
    """

    ignored: tuple[str, ...] = ()
    fast_bias_correction: bool = True
    mean_ranges: bool = False
    percentile: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a percentile outside (50, 100]."""
        check_percentile(self.percentile)

    @property
    def method(self) -> str:
        """The method in words, as the manifest records it."""
        kept = f", {len(self.ignored)} operations in float" if self.ignored else ""
        ranges = "mean min-max" if self.mean_ranges else ranges_name(self.percentile)
        return f"NNCF post-training, mixed preset, {ranges}{kept}"


def quantize_openvino(model: Any, frames: NDArray[np.uint8], *, config: NncfConfig | None = None) -> Any:
    """Return `model` (openvino.Model, uint8 NHWC in and out) quantized to INT8, ranges from `frames`.

    frames: uint8 RGB (N, S, S, 3), N >= 1. The mixed preset: symmetric weights, asymmetric activations.
    Raises BuildError when NNCF fails, BackendUnavailableError when it is not installed.
    """
    nncf = require("nncf", extra="nncf")
    chosen = config or NncfConfig()
    # NNCF draws bars of its own on standard output
    with quiet("nncf"):
        try:
            return nncf.quantize(
                model,
                frames_dataset(nncf, frames),
                subset_size=len(frames),
                advanced_parameters=advanced_parameters(nncf, chosen),
                **common_arguments(nncf, model, chosen),
            )
        except Exception as exc:  # the border: NNCF raises its own and built-in errors alike
            msg = f"NNCF could not quantize the model: {type(exc).__name__}: {exc}"
            raise BuildError(msg) from exc


def frames_dataset(nncf: Any, frames: NDArray[np.uint8]) -> Any:
    """Frames, uint8 (N, S, S, 3), as the nncf.Dataset of N batches of one."""
    return nncf.Dataset([frames[i : i + 1] for i in range(len(frames))])


def common_arguments(nncf: Any, model: Any, config: NncfConfig) -> dict[str, Any]:
    """What nncf.quantize and nncf.quantize_with_accuracy_control both take, by the same names."""
    names = _operations(model, config.ignored)
    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "fast_bias_correction": config.fast_bias_correction,
        "ignored_scope": nncf.IgnoredScope(names=names) if names else None,
    }


def _operations(model: Any, nodes: Collection[str]) -> list[str]:
    """The model's operations that came from nodes of the ONNX: a convolution with a bias became two of them."""
    wanted = {*nodes, *(name + WITHOUT_BIAS for name in nodes)}
    return sorted({op.get_friendly_name() for op in model.get_ops()} & wanted)


def advanced_parameters(nncf: Any, config: NncfConfig) -> Any:
    """The nncf.AdvancedQuantizationParameters of a config, None for NNCF's own."""
    if config.mean_ranges:
        return None
    estimator = require("nncf.quantization.range_estimator", extra="nncf")
    ranges = estimator.RangeEstimatorParametersSet.MINMAX
    if config.percentile is not None:
        ranges = _percentile(estimator, 1 - config.percentile / 100)
    return nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges)


def _percentile(estimator: Any, tail: float) -> Any:
    """A range without its tails, the widest over the images."""
    statistics, aggregator = estimator.StatisticsType, estimator.AggregatorType

    def one(how: Any) -> Any:
        return estimator.StatisticsCollectorParameters(
            statistics_type=statistics.QUANTILE, aggregator_type=how, quantile_outlier_prob=tail
        )

    return estimator.RangeEstimatorParameters(min=one(aggregator.MIN), max=one(aggregator.MAX))
