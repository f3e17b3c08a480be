"""Restorer to ONNX: uint8 NHWC RGB in and out, with conversion, scaling, clamp and rounding inside the graph."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ufr_edge.calibration.compare import compare_frames, run_batches
from ufr_edge.errors import BuildError
from ufr_edge.export.onnx_check import check_border
from ufr_edge.files import atomic_file, sha256_file
from ufr_edge.restorers.loading import AnyModel
from ufr_edge.runtime.engines import open_engine_file
from ufr_edge.runtime.manifest import ParityInfo

OPSET = 20
"""Read by TensorRT 10 (JetPack 6), TensorRT for RTX, OpenVINO and ONNX Runtime alike."""
INPUT, OUTPUT = "frames", "restored"


@dataclass(frozen=True, kw_only=True)
class OnnxReport:
    """A written ONNX file and how far ONNX Runtime is from torch on it."""

    path: Path
    sha256: str
    opset: int
    parity: ParityInfo


class Uint8Restorer(nn.Module):
    """A restorer with the engine's border: uint8 (B, S, S, 3) RGB in and out.

    TensorRT takes uint8 only at the border, so the casts come first and last, outside of the transposes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        """Restore; rounds half to even, as ONNX does."""
        image = frames.to(torch.float32).permute(0, 3, 1, 2) * (1 / 255)
        restored: Tensor = self.model(image)
        return (restored * 255).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)


@torch.inference_mode()
def restore_frames(model: AnyModel, frames: NDArray[np.uint8], *, batch: int = 4) -> NDArray[np.uint8]:
    """Run the restorer in torch: uint8 (N, S, S, 3) in and out. The reference every engine is held against."""
    border = Uint8Restorer(model).eval()
    parts = [border(torch.from_numpy(frames[i : i + batch])).numpy() for i in range(0, len(frames), batch)]
    return np.concatenate(parts)


def export_onnx(model: AnyModel, path: Path, *, side: int, faces: NDArray[np.uint8]) -> OnnxReport:
    """Write `model` (fp32, eval mode) for side x side faces, batch dynamic. `half.write_half` makes fp16 of it.

    faces: uint8 (N, side, side, 3) on which the file is run and compared with torch.
    Raises ShapeError for a side the network does not take, BuildError when the exporter fails or the graph is
    not what the engines need.
    """
    model.input_spec.check(side, side)
    proto = _trace(model, side=side)
    check_border(proto)
    with atomic_file(path) as beside:
        onnx.save(proto, beside)
    with open_engine_file(path, backend="onnxruntime", device="cpu") as engine:
        parity = compare_frames(run_batches(engine, faces), restore_frames(model, faces))
    return OnnxReport(path=path, sha256=sha256_file(path), opset=OPSET, parity=parity)


def _trace(model: AnyModel, *, side: int) -> Any:
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                Uint8Restorer(model).eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"frames": {0: torch.export.Dim("batch", min=1)}},
                external_data=False,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as exc:
            msg = f"torch.onnx could not export the restorer at side {side}: {exc}"
            raise BuildError(msg) from exc
    if program is None:
        msg = "torch.onnx returned no program."
        raise BuildError(msg)
    return _without_traces(_shapes_behind_cast(program.model_proto))


def _shapes_behind_cast(proto: Any) -> Any:
    """Let what asks for the input's shape ask the cast instead: the cast alone reads the border."""
    graph = proto.graph
    frames = graph.input[0].name
    cast = next((n for n in graph.node if n.op_type == "Cast" and frames in n.input), None)
    asking = [n for n in graph.node if n.op_type == "Shape" and frames in n.input]
    if cast is None or not asking:
        return proto
    for node in asking:
        node.input[0] = cast.output[0]
    # A stable sort: the cast comes first.
    nodes = sorted(graph.node, key=lambda node: node.output[0] != cast.output[0])
    copies = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return proto


def _without_traces(proto: Any) -> Any:
    """Drop the per-node stack traces: they carry file paths of the exporting machine."""
    for item in (
        proto.graph,
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
    ):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return proto


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter logs missing torchvision operators and trips over its own deprecations; neither concerns us."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)


__all__ = [
    "INPUT",
    "OPSET",
    "OUTPUT",
    "OnnxReport",
    "Uint8Restorer",
    "check_border",
    "export_onnx",
    "restore_frames",
]
