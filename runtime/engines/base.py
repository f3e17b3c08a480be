"""The engine contract: a session over named arrays, and the uint8 face engine on top of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import InferenceError, InputFileError, ModelFileError, ShapeError, UfrEdgeError

Array = NDArray[Any]
Shape = tuple[int | None, ...]
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, its shape (None = any size) and its numpy dtype name."""

    name: str
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class EngineInfo:
    """What really runs. `precision` is that of the quantized or cast layers, `float_precision` of the rest.

    `side` is the face side in pixels for a face engine, None for other networks.
    """

    backend: str
    backend_version: str
    device: str
    precision: str
    side: int | None
    path: Path
    float_precision: str = "fp32"
    threads: int | None = None

    def describe(self) -> str:
        """Return one line such as `openvino 2026.4 · CPU (AMD EPYC) · int8 + bf16`."""
        rest = "" if self.float_precision == self.precision else f" + {self.float_precision}"
        return f"{self.backend} {self.backend_version} · {self.device} · {self.precision}{rest}"


@dataclass(frozen=True)
class LayerTime:
    """One layer of the graph that was executed: its kind and precision by the backend's names, ms of one run."""

    name: str
    kind: str
    precision: str
    ms: float


class Session(Protocol):
    """A loaded network. Not thread-safe: one session per thread."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs, in the network's order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs, in the network's order."""

    @property
    def info(self) -> EngineInfo:
        """What runs, where, in which precision."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; return fresh arrays by output name. Raises ShapeError, InferenceError."""

    def close(self) -> None:
        """Free the network. Calling it again does nothing."""


@final
class Engine:
    """A face restorer on a device: uint8 NHWC RGB in, uint8 NHWC RGB out.

    Raises ModelFileError when the session's network is not of that form.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._input, self._output = _face_tensors(session)
        self._info = replace(session.info, side=self._input.shape[1])

    @property
    def info(self) -> EngineInfo:
        """What runs, where, in which precision."""
        return self._info

    def infer(self, batch: Array) -> NDArray[np.uint8]:
        """Restore uint8 (B, S, S, 3) RGB faces; the result has the same shape and dtype.

        Raises ShapeError for another shape or dtype, InferenceError when the engine fails or is closed.
        """
        _check_batch(batch, self._input)
        result = self._session.run({self._input.name: np.ascontiguousarray(batch)})[self._output.name]
        if result.shape != batch.shape:
            msg = f"{self.info.path} returned {result.shape} for {batch.shape}. Export the restorer again."
            raise InferenceError(msg)
        return result

    def close(self) -> None:
        """Free the engine. Calling it again does nothing."""
        self._session.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def translate_errors(error: type[UfrEdgeError], what: str) -> Iterator[None]:
    """Turn whatever a backend raises into `error`, with `what` in front. The one border per backend."""
    try:
        yield
    except (UfrEdgeError, MemoryError):
        raise
    except Exception as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        reason = " ".join(lines)[:400] or type(exc).__name__
        msg = f"{what}: {reason}"
        raise error(msg) from exc


def closed_error(info: EngineInfo) -> InferenceError:
    """The error for a session that is used after `close`."""
    return InferenceError(f"The engine {info.path} is closed. Open it again.")


def check_model_file(path: Path) -> None:
    """Raise InputFileError when there is no file at `path`, ModelFileError when it is empty."""
    if not path.is_file():
        msg = f"{path} does not exist or is not a file. Export the restorer again, or give another path."
        raise InputFileError(msg)
    if path.stat().st_size == 0:
        msg = f"{path} is empty. Copy or export the file again."
        raise ModelFileError(msg)


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> None:
    """Raise ShapeError unless `feeds` holds exactly the arrays that `specs` ask for."""
    names = {spec.name for spec in specs}
    if names != set(feeds):
        msg = f"The network takes inputs {sorted(names)}, not {sorted(feeds)}."
        raise ShapeError(msg)
    for spec in specs:
        array = feeds[spec.name]
        if array.dtype.name != spec.dtype or not _fits(array.shape, spec.shape):
            msg = (
                f"Input {spec.name!r} must be {spec.dtype} {shape_text(spec.shape)}, "
                f"not {array.dtype.name} {shape_text(array.shape)}."
            )
            raise ShapeError(msg)


def shape_text(shape: Shape) -> str:
    """Return `(any, 256, 256, 3)` for (None, 256, 256, 3)."""
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    if len(shape) != len(wanted) or 0 in shape:
        return False
    return all(want is None or want == size for size, want in zip(shape, wanted, strict=True))


def _face_tensors(session: Session) -> tuple[TensorSpec, TensorSpec]:
    tensors = (*session.inputs, *session.outputs)
    fits = all(spec.dtype == "uint8" and len(spec.shape) == 4 for spec in tensors) and len(tensors) == 2
    if not fits or tensors[0].shape[3] != 3 or tensors[0].shape[1] != tensors[0].shape[2]:
        found = ", ".join(f"{spec.name}: {spec.dtype} {shape_text(spec.shape)}" for spec in tensors)
        msg = (
            f"{session.info.path} is no face engine: it must take and give uint8 (B, S, S, 3), it has {found}. "
            "Make one with: ufr-edge export"
        )
        raise ModelFileError(msg)
    return tensors[0], tensors[1]


def _check_batch(batch: Array, spec: TensorSpec) -> None:
    fits = batch.dtype.name == spec.dtype and _fits(batch.shape, spec.shape)
    if not fits or batch.shape[1] != batch.shape[2]:
        wanted = ("B" if spec.shape[0] is None else str(spec.shape[0]), spec.shape[1] or "S")
        msg = (
            f"The engine takes uint8 ({wanted[0]}, {wanted[1]}, {wanted[1]}, 3) RGB faces, "
            f"not {batch.dtype.name} {shape_text(batch.shape)}."
        )
        raise ShapeError(msg)
