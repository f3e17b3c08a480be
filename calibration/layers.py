"""The layers of a Q/DQ graph, and the same graph with some of them put back to float.

A layer is a convolution with its weights and the activations between it and the next convolutions. Every quantizer
of the graph belongs to exactly one layer, so what layers cost can be measured one by one and adds up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ufr_edge.errors import BuildError
from ufr_edge.optional import require

_AFTER = "__dequantized"


@dataclass(frozen=True)
class _Input:
    """A quantized input of a node: the tensor (or weight) of the base graph, and its DequantizeLinear."""

    tensor: str
    dequantize: Any


@dataclass
class QuantizedLayers:
    """An fp32 graph and its Q/DQ form (as quantize_onnx writes it), side by side.

    base, quantized: onnx.ModelProto. names: the convolutions' node names in the order they run.
    """

    base: Any
    quantized: Any
    names: tuple[str, ...] = ()
    _owners: dict[str, str] = field(default_factory=dict)
    _inputs: dict[tuple[str, int], _Input] = field(default_factory=dict)
    _quantizers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the layers. Raises BuildError when the two graphs are not of one network."""
        self.names = tuple(n.name for n in self.base.graph.node if n.op_type == "Conv")
        self._owners = tensor_owners(self.base.graph)
        known = {node.name for node in self.base.graph.node}
        own = [
            n for n in self.quantized.graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")
        ]
        if not self.names or any(node.name not in known for node in own):
            msg = "The quantized graph is not one of the fp32 graph given. Export the bundle again."
            raise BuildError(msg)
        self._read_quantizers()

    def label(self, name: str) -> str:
        """The layer's name in the network, such as encoder.0.0.conv1; the node's name where it has none."""
        node = next(n for n in self.base.graph.node if n.name == name)
        weight = str(node.input[1])
        return weight.removeprefix("model.").removesuffix(".weight") if weight.endswith(".weight") else name

    def with_float(self, kept: Collection[str]) -> Any:
        """Return the Q/DQ model (onnx.ModelProto) with the layers `kept` in float.

        A convolution of which only the weights or only the input would stay quantized is put to float as a whole:
        it could not run in integers.
        """
        return self._rebuild(kept, halves=False)

    def with_only(self, name: str) -> Any:
        """Return the model (onnx.ModelProto) with the quantizers of one layer and no others, for measuring it."""
        return self._rebuild([other for other in self.names if other != name], halves=True)

    def _rebuild(self, kept: Collection[str], *, halves: bool) -> Any:
        onnx = require("onnx", extra="export")
        model = onnx.ModelProto()
        model.CopyFrom(self.base)
        if not any(opset.domain == "" for opset in model.opset_import):
            model.opset_import.extend(self.quantized.opset_import)
        nodes: list[Any] = []
        written: set[str] = set()
        needed: set[str] = set()
        for original in self.base.graph.node:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            for index, source in self._quantized_inputs(original, kept, halves=halves):
                after = source.tensor + _AFTER
                node.input[index] = after
                if after not in written:
                    written.add(after)
                    pair = self._pair(onnx, source, after)
                    nodes += pair
                    needed.update(name for item in pair for name in item.input)
            nodes.append(node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        self._set_initializers(model, needed)
        return model

    def openvino_names(self, kept: Collection[str]) -> set[str]:
        """Names of the nodes NNCF must leave alone so that the layers `kept` run in float.

        NNCF places a quantizer where a tensor is read; so the readers of a layer's activations stay in float too.
        """
        names = set(kept)
        for node in self.base.graph.node:
            if any(self._owners.get(tensor) in kept for tensor in (*node.input, *node.output)):
                names.add(node.name)
        return names

    def _read_quantizers(self) -> None:
        graph = self.quantized.graph
        writers = {output: node for node in graph.node for output in node.output}
        originals = {node.name: node for node in self.base.graph.node}
        for node in graph.node:
            for index, name in enumerate(node.input):
                dequantize = writers.get(name)
                if (
                    node.op_type == "QuantizeLinear"
                    or dequantize is None
                    or dequantize.op_type != "DequantizeLinear"
                ):
                    continue
                quantize = writers.get(dequantize.input[0])
                # Weights and biases have no QuantizeLinear: they lie in the file as integers.
                tensor = (
                    str(quantize.input[0]) if quantize is not None else str(originals[node.name].input[index])
                )
                if quantize is not None:
                    self._quantizers[tensor] = quantize
                self._inputs[(node.name, index)] = _Input(tensor, dequantize)

    def _quantized_inputs(
        self, node: Any, kept: Collection[str], *, halves: bool
    ) -> Iterator[tuple[int, _Input]]:
        """The inputs of a base node that stay quantized; halves: also one alone of a convolution's."""
        found = [(index, self._inputs.get((node.name, index))) for index in range(len(node.input))]
        inputs = [(index, source) for index, source in found if source is not None]
        live = [(index, source) for index, source in inputs if not self._is_kept(node, source, kept)]
        if not halves and node.op_type == "Conv" and {0, 1} - {index for index, _ in live}:
            return
        yield from live

    def _is_kept(self, node: Any, source: _Input, kept: Collection[str]) -> bool:
        if source.tensor in self._quantizers:
            return self._owners.get(source.tensor) in kept
        return node.name in kept

    def _pair(self, onnx: Any, source: _Input, after: str) -> list[Any]:
        dequantize = onnx.NodeProto()
        dequantize.CopyFrom(source.dequantize)
        dequantize.output[0] = after
        if source.tensor not in self._quantizers:
            return [dequantize]
        quantize = onnx.NodeProto()
        quantize.CopyFrom(self._quantizers[source.tensor])
        quantize.input[0] = source.tensor
        return [quantize, dequantize]

    def _set_initializers(self, model: Any, needed: set[str]) -> None:
        used = {name for node in model.graph.node for name in node.input}
        own = [i for i in self.base.graph.initializer if i.name in used]
        names = {i.name for i in own}
        added = [i for i in self.quantized.graph.initializer if i.name in needed and i.name not in names]
        del model.graph.initializer[:]
        model.graph.initializer.extend([*own, *added])


def load_layers(base: Path, quantized: Path) -> QuantizedLayers:
    """Read both files. Raises BuildError as QuantizedLayers does, BackendUnavailableError without onnx."""
    onnx = require("onnx", extra="export")
    return QuantizedLayers(onnx.load(base), onnx.load(quantized))


def tensor_owners(graph: Any) -> dict[str, str]:
    """Tensor -> the convolution it belongs to: the last one before it, or (for the input) the first of all."""
    order = [node.name for node in graph.node if node.op_type == "Conv"]
    place = {name: index for index, name in enumerate(order)}
    owners: dict[str, str] = {}
    for node in graph.node:
        before = [owners[name] for name in node.input if name in owners]
        owner = node.name if node.op_type == "Conv" else max(before, key=place.__getitem__, default=None)
        if owner is not None:
            owners.update(dict.fromkeys(node.output, owner))
    first = next((node for node in graph.node if node.op_type == "Conv"), None)
    if first is not None:
        owners.setdefault(first.input[0], first.name)
    return owners
