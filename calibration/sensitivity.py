"""What each layer's quantization costs, measured, and how many layers to put back for a given limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ufr_edge.calibration.compare import run_batches
from ufr_edge.calibration.layers import QuantizedLayers
from ufr_edge.runtime.engines import open_engine_file

Clock = Callable[[], float]
FACES = 4
_MARGIN = 0.7  # aim below the limit: the sum of single layers is an estimate


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """A layer (its convolution's node name, and its label) and the mean squared error (levels squared) that
    quantizing it alone adds to the output."""

    name: str
    label: str
    mse: float


def measure_layers(
    layers: QuantizedLayers,
    faces: NDArray[np.uint8],
    expected: NDArray[np.uint8],
    *,
    time_s: float,
    clock: Clock = time.monotonic,
) -> tuple[LayerCost, ...]:
    """Quantize each layer alone, run it on (at most 4 of) the faces, and compare with fp32; the worst first.

    faces, expected: uint8 (N, S, S, 3), N >= 1: inputs and what fp32 makes of them. Runs on ONNX Runtime; ranges
    and weights are those of the Q/DQ graph. Layers that the time (seconds) did not suffice for are left out; the
    outermost ones are measured first. Raises BuildError, InferenceError.
    """
    until = clock() + time_s
    costs: list[LayerCost] = []
    with TemporaryDirectory(prefix="ufr-edge-layers-") as folder:
        for name in _outermost_first(layers.names):
            if costs and clock() >= until:
                break
            path = Path(folder) / "layer.onnx"
            path.write_bytes(layers.with_only(name).SerializeToString())
            with open_engine_file(path, backend="onnxruntime", device="cpu") as engine:
                got = run_batches(engine, faces[:FACES])
            gap = got.astype(np.float32) - expected[:FACES].astype(np.float32)
            mse = float(np.square(gap).mean(dtype=np.float64))
            costs.append(LayerCost(name=name, label=layers.label(name), mse=round(mse, 6)))
    return tuple(sorted(costs, key=lambda cost: -cost.mse))


def retreat_counts(
    costs: Sequence[LayerCost], *, drop_db: float, limit_db: float, most: int
) -> Iterator[int]:
    """How many of the worst layers to keep in float, from the smallest number that may do up to `most`.

    The drop grows with the squared error, and errors of layers add up: so the first is where what is left of the
    sum fits the limit. After it the number doubles.
    """
    if most < 1:
        return
    total = sum(cost.mse for cost in costs)
    allowed = total * min(_MARGIN * limit_db / drop_db, 1.0) if drop_db > 0 else total
    left, count = total, 0
    while count < min(most, len(costs)) and (left > allowed or count == 0):
        left -= costs[count].mse
        count += 1
    while count < min(most, len(costs)):
        yield count
        count *= 2
    yield min(most, len(costs))


def _outermost_first(names: Sequence[str]) -> list[str]:
    """First, last, second, last but one, ...: the layers next to the picture tend to be the worst."""
    half = (len(names) + 1) // 2
    pairs = zip(names[:half], reversed(names), strict=False)
    return list(dict.fromkeys(name for pair in pairs for name in pair))
