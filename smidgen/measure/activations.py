"""The memory that a written file's activations take at once, by what its graph says.

    peak = max over nodes of the bytes of all values that are live while the node runs

for one sample. A value is live from the node that writes it (an input from the start) to the last one that reads it (an
output to the end). A node that computes element by element, or only looks at its operand in another shape, writes over
it where nothing else reads that any more, as runtimes do. Integers with a scale count as integers: what a
DequantizeLinear makes and what only a QuantizeLinear reads exist inside fused operators. Not counted: weights, nor
those that nodes compute from stored ones; a runtime's own buffers (im2col, packed weights); how well it packs values
into memory. Nodes run in the file's order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner

from smidgen.measure.cost import tensor_types
from smidgen.measure.files import read_onnx

# One operand of the result's size and type, each element of which is read once.
_IN_PLACE = frozenset({
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu",
    "Softplus", "Softsign", "Mish", "ThresholdedRelu", "Abs", "Neg", "Exp", "Log", "Sqrt", "Erf", "Floor", "Ceil",
    "Reciprocal", "BatchNormalization", "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum",
})  # fmt: skip
_FUSED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_DRAWN = frozenset({"RandomNormal", "RandomUniform"})  # no inputs, and no constants either
_VIEWS = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout"})


@dataclass(frozen=True)
class Peak:
    """Where the most activations are live.

    Args:
        nbytes: of all of them, for one sample.
        node: operator that runs then, and the name of its first output.
        tensors: live values and their bytes, the largest first.
    """

    nbytes: int
    node: str
    tensors: tuple[tuple[str, int], ...]


def peak_activation_bytes(path: str | Path) -> int | None:
    """Peak bytes of live activations for one sample; None where a size cannot be known before running.

    Args:
        path: an ONNX file.

    Raises:
        LoadError: when it cannot be read.

    >>> import tempfile, onnx.helper as h
    >>> x, y = (h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 100]) for name in "xy")
    >>> nodes = [h.make_node("Relu", ["x"], ["a"]), h.make_node("Softmax", ["a"], ["y"])]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     onnx.save(h.make_model(h.make_graph(nodes, "two", [x], [y])), folder + "/two.onnx")
    ...     peak_activation_bytes(folder + "/two.onnx")
    800
    """
    peak = peak_activations(path)
    return None if peak is None else peak.nbytes


def peak_activations(path: str | Path) -> Peak | None:
    """`peak_activation_bytes`, and which values they are.

    Args:
        path: an ONNX file.

    Raises:
        LoadError: when it cannot be read.
    """
    model = read_onnx(path)
    graph, types = model.graph, tensor_types(model)
    if any(given.type == onnx.AttributeProto.GRAPH for node in graph.node for given in node.attribute):
        return None
    live = _lives(graph, types)
    sizes: dict[str, int] = {}
    for name in live:
        shape, kind = types.get(name, (None, onnx.TensorProto.UNDEFINED))
        if shape is None or kind == onnx.TensorProto.UNDEFINED:
            return None
        sizes[name] = math.prod(shape) * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    times = range(max(1, len(graph.node)))
    held = [sum(sizes[name] for name, (first, last) in live.items() if first <= t <= last) for t in times]
    peak = max(times, key=held.__getitem__)
    there = [(name, sizes[name]) for name, (first, last) in live.items() if first <= peak <= last]
    node = f"{graph.node[peak].op_type} '{graph.node[peak].output[0]}'" if graph.node else "no node"
    return Peak(held[peak], node, tuple(sorted(there, key=lambda each: -each[1])))


def _lives(graph: onnx.GraphProto, types: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """From which node to which a buffer is live, by the name of the value that it was made for."""
    stored = {each.name for each in graph.initializer}
    constant = set(stored)
    for node in graph.node:  # constants, and what a runtime computes from them when it opens the file
        if all(name in constant for name in node.input if name) and node.op_type not in _DRAWN:
            constant.update(node.output)
    inputs = [each.name for each in graph.input if each.name not in stored]
    last = {name: number for number, node in enumerate(graph.node) for name in node.input if name}
    last |= {each.name: len(graph.node) for each in graph.output}
    live = {name: (0, last.get(name, 0)) for name in inputs}
    buffers = {name: name for name in inputs}
    inside, ends = _inside(graph), {each.name for each in graph.output}

    def reused(node: onnx.NodeProto, number: int) -> str | None:
        """The buffer that a node's result can lie in; what the caller gave is not written over."""
        if node.op_type == "QuantizeLinear":
            return node.output[0]
        if node.op_type == "DequantizeLinear":
            return None if node.output[0] in ends else buffers.get(node.input[0])
        for name in node.input:
            buffer = buffers.get(name)
            if buffer is None:
                continue
            alike = node.op_type in _IN_PLACE and types.get(name) == types.get(node.output[0])
            if node.op_type in _VIEWS or (alike and live[buffer][1] == number and buffer not in inputs):
                return buffer
        return None

    for number, node in enumerate(graph.node):
        taken = reused(node, number)
        for place, name in enumerate(node.output):
            if not name or name in constant:
                continue
            # A float that only a QuantizeLinear reads lies where its integers will.
            buffer = buffers[name] = taken if taken is not None and place == 0 else inside.get(name, name)
            first, until = live.get(buffer, (number, number))
            live[buffer] = first, max(until, last.get(name, number))
    return live


def _inside(graph: onnx.GraphProto) -> dict[str, str]:
    """Floats that only a QuantizeLinear reads, itself or behind an activation, with the integers it makes of them."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    kept = {each.name for each in graph.output}
    found: dict[str, str] = {}
    for node in reversed(graph.node):
        for name in node.output:
            after = readers.get(name, [])
            if len(after) != 1 or name in kept or node.op_type in _FUSED:
                continue
            if after[0].op_type == "QuantizeLinear":
                found[name] = after[0].output[0]
            elif after[0].op_type in _IN_PLACE and after[0].output[0] in found:
                found[name] = found[after[0].output[0]]
    return found
