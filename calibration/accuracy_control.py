"""NNCF's own accuracy control for OpenVINO: quantize, then put back what costs most until the drop fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.gate import NOMINAL_DB, GateSet, face_drops
from ufr_edge.calibration.ptq_openvino import (
    WITHOUT_BIAS,
    NncfConfig,
    advanced_parameters,
    common_arguments,
    frames_dataset,
)
from ufr_edge.calibration.quiet import quiet
from ufr_edge.errors import BuildError, GateFailedError
from ufr_edge.optional import require

METHOD = "NNCF's accuracy control"


@dataclass(frozen=True, kw_only=True)
class AccuracyControl:
    """What NNCF may lose, and for how long it may look.

    gate: the faces; the metric is their mean drop (see gate.face_drops). max_drop_db: of that mean, absolute.
    time_s: seconds, calibration included. most: operations put back at most.
    """

    gate: GateSet
    max_drop_db: float
    time_s: float
    most: int
    clock: Callable[[], float] = time.monotonic


class _TimeOverError(Exception):
    """Leaves NNCF's search from within its validation."""


def quantize_controlled(
    model: Any, frames: NDArray[np.uint8], control: AccuracyControl, *, config: NncfConfig | None = None
) -> Any:
    """Return `model` (openvino.Model, uint8 NHWC in and out) quantized by nncf.quantize_with_accuracy_control.

    frames: uint8 RGB (N, S, S, 3), N >= 1, to calibrate on. The drop may still be over the limit where NNCF ran
    out of operations. Raises GateFailedError when the time is over, BuildError when NNCF fails, BackendUnavailableError
    without it.
    """
    nncf = require("nncf", extra="nncf")
    chosen = config or NncfConfig()
    with quiet("nncf"):
        try:
            return nncf.quantize_with_accuracy_control(
                model,
                calibration_dataset=frames_dataset(nncf, frames),
                validation_dataset=nncf.Dataset(range(len(control.gate.faces))),
                validation_fn=_validation(control),
                max_drop=control.max_drop_db,
                drop_type=nncf.DropType.ABSOLUTE,
                subset_size=len(frames),
                advanced_quantization_parameters=advanced_parameters(nncf, chosen),
                advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                    max_num_iterations=control.most,
                    ranking_subset_size=len(control.gate.faces),
                    num_ranking_workers=1,  # two at once would share the cores, and our clock
                ),
                **common_arguments(nncf, model, chosen),
            )
        except _TimeOverError as exc:
            msg = (
                f"NNCF's accuracy control did not reach a drop of {control.max_drop_db:g} dB in "
                f"{control.time_s:.0f} s. Give more --gate-time, a higher --max-drop or --retreat measured."
            )
            raise GateFailedError(msg) from exc
        except Exception as exc:  # the border: NNCF raises its own and built-in errors alike
            msg = f"NNCF's accuracy control failed: {type(exc).__name__}: {exc}"
            raise BuildError(msg) from exc


def float_layers(model: Any, names: Collection[str]) -> tuple[str, ...]:
    """Which of the convolutions `names` (nodes of the ONNX) a quantized openvino.Model computes in float."""
    found = {
        op.get_friendly_name().removesuffix(WITHOUT_BIAS): op
        for op in model.get_ops()
        if op.get_type_name() in ("Convolution", "GroupConvolution")
    }
    return tuple(name for name in names if name in found and not _quantized_weights(found[name]))


def _validation(control: AccuracyControl) -> Callable[[Any, Iterable[int]], tuple[float, list[float]]]:
    """NNCF's validation_fn: the mean and each face's PSNR in dB were fp32's NOMINAL_DB (NNCF divides by that of the
    float model, which must not be 0).

    NNCF computes floats in fp32 here; where the device takes bf16 for them, the final file loses a little more.
    """
    until = control.clock() + control.time_s

    def validate(compiled: Any, indices: Iterable[int]) -> tuple[float, list[float]]:
        if control.clock() >= until:
            raise _TimeOverError
        levels = [NOMINAL_DB - drop for drop in _drops(compiled, control.gate, indices)]
        return float(np.mean(levels)), levels

    return validate


def _drops(compiled: Any, gate: GateSet, indices: Iterable[int]) -> Iterator[float]:
    for index in indices:
        one = slice(index, index + 1)
        part = replace(gate, faces=gate.faces[one], expected=gate.expected[one], truth=gate.truth[one])
        yield face_drops(np.asarray(compiled(part.faces)[0]), part)[0]


def _quantized_weights(convolution: Any) -> bool:
    """Whether a FakeQuantize or 8-bit integers stand between the weights and the convolution."""
    node = convolution.input_value(1).get_node()
    while node.get_type_name() != "Constant" and node.get_input_size():
        if node.get_type_name() == "FakeQuantize":
            return True
        node = node.input_value(0).get_node()
    return bool(node.get_element_type().get_type_name() in ("i8", "u8"))
