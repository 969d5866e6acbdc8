"""The memory that a written file's activations take at once, by what its graph says.

    peak = max over nodes of the bytes of all values that are live while the node runs

for one sample. A value is live from the node that writes it (an input from the start) to the last one that reads it (an
output to the end). A node that computes element by element, or only looks at its operand in another shape, writes over
it where nothing else reads that any more, as runtimes do. Not counted: weights, a runtime's own buffers (im2col, packed
weights) and how well it packs values into memory. Nodes run in the file's order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner

from smidgen.errors import LoadError
from smidgen.measure.cost import tensor_types

# One operand of the result's size and type, each element of which is read once.
_IN_PLACE = frozenset({
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu",
    "Softplus", "Softsign", "Mish", "ThresholdedRelu", "Abs", "Neg", "Exp", "Log", "Sqrt", "Erf", "Floor", "Ceil",
    "Reciprocal", "BatchNormalization", "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum",
})  # fmt: skip
_VIEWS = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout"})


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
    try:
        model = onnx.load(str(path))
    except Exception as fault:  # protobuf and the file system each raise their own
        raise LoadError(f"measure: '{path}' is not an ONNX file: {' '.join(str(fault).split())[:200]}") from None
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
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
    return max(sum(sizes[name] for name, (first, last) in live.items() if first <= t <= last) for t in times)


def _lives(graph: onnx.GraphProto, types: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """From which node to which a buffer is live, by the name of the value that it was made for."""
    stored = {each.name for each in graph.initializer}
    constant = stored | {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    inputs = [each.name for each in graph.input if each.name not in stored]
    last = {name: number for number, node in enumerate(graph.node) for name in node.input if name}
    last |= {each.name: len(graph.node) for each in graph.output}
    live = {name: (0, last.get(name, 0)) for name in inputs}
    buffers = {name: name for name in inputs}

    def reused(node: onnx.NodeProto, number: int) -> str | None:
        """The buffer that a node's result can lie in; what the caller gave is not written over."""
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
            buffer = buffers[name] = taken if taken is not None and place == 0 else name
            first, until = live.get(buffer, (number, number))
            live[buffer] = first, max(until, last.get(name, number))
    return live
