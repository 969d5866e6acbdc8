"""Which parts of an ONNX graph with integer weights are computed in integers, and which values need a range for it.

Three kinds of operators:

    computed   layers with integer weights, and the few without weights that runtimes have integer forms of
    moved      what only moves or compares values: it works on the integers themselves, in the range they came with
    the rest   floats

An activation function directly after a computed operator is absorbed: the range of what comes out of it ends where the
function clips.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

HEAVY = frozenset({"Conv", "Gemm", "MatMul"})
LIGHT = frozenset({"Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "LeakyRelu", "Sigmoid"})
MOVES = frozenset({
    "DepthToSpace", "Flatten", "MaxPool", "Pad", "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
CLAMPS = frozenset({"Relu", "Clip"})


@dataclass(frozen=True, eq=False)
class Layout:
    """What of a graph is computed in integers; values go by their names.

    Args:
        heavy: outputs of the layers with integer weights, in running order.
        computed: outputs of all computed operators, those layers among them.
        clamped: output of a computed operator → output of the activation function that is absorbed.
        moved: outputs of the moved ones.
        roots: value → the value whose range it shares, for all that become integers.
    """

    heavy: tuple[str, ...]
    computed: frozenset[str]
    clamped: Mapping[str, str]
    moved: frozenset[str]
    roots: Mapping[str, str]

    @property
    def ranged(self) -> tuple[str, ...]:
        """The values that need a range of their own."""
        return tuple(dict.fromkeys(self.roots.values()))

    @property
    def made(self) -> frozenset[str]:
        """Values that come out of integers as integers."""
        given = {self.clamped.get(name, name) for name in self.computed}
        return frozenset(name for name in given | self.moved if name in self.roots)


def layout(model: onnx.ModelProto, floats: Collection[str] = ()) -> Layout:
    """What of a graph is computed in integers.

    Args:
        model: from `smidgen.export.onnx.fill`, its weights int8 behind DequantizeLinear.
        floats: values that shall stay floats; what reads or makes one computes in floats.

    >>> from onnx.parser import parse_model
    >>> net = parse_model('''<ir_version: 8, opset_import: ["": 17]> g (float[n, 1, 4, 4] x) => (float[n, 1, 4, 4] y)
    ...     <int8[1, 1, 1, 1] w = {3}, float[1] s = {0.5}>
    ...     { f = DequantizeLinear<axis = 0>(w, s)  c = Conv(x, f)  y = Relu(c) }''')
    >>> found = layout(net)
    >>> found.heavy, dict(found.clamped), found.ranged
    (('c',), {'c': 'y'}, ('x', 'y'))
    """
    return _Search(model.graph, frozenset(floats)).found()


class _Search:
    def __init__(self, graph: onnx.GraphProto, floats: frozenset[str]) -> None:
        self.graph, self.floats = graph, set(floats)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.unpacked = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        self.outputs = {output.name for output in graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.heavy: list[str] = []
        self.computed: dict[str, onnx.NodeProto] = {}
        self.clamped: dict[str, str] = {}
        self.moved: set[str] = set()
        self.made: set[str] = set()
        self.roots: dict[str, str] = {}

    def found(self) -> Layout:
        for node in self.graph.node:
            if self._stays(node):
                continue
            if self._is_heavy(node):
                self.heavy.append(node.output[0])
                self._compute(node)
            elif self._is_light(node):
                self._compute(node)
            elif self._is_move(node):
                self._move(node)
        self._free_ends()
        return Layout(
            tuple(self.heavy), frozenset(self.computed), self.clamped, frozenset(self.moved), dict(self.roots)
        )

    def _stays(self, node: onnx.NodeProto) -> bool:
        """Whether a node touches a value that stays floats; what is moved from one does too."""
        if self.floats.isdisjoint((*node.input, *node.output, *map(self._end, node.output))):
            return False
        if node.op_type in MOVES and node.input[0] in self.floats:
            self.floats.add(node.output[0])
        return True

    def _end(self, result: str) -> str:
        """What an operator gives after the activation function that its range would absorb."""
        readers = self.readers.get(result, [])
        absorbs = len(readers) == 1 and readers[0].op_type in CLAMPS and result not in self.outputs
        return readers[0].output[0] if absorbs else result

    def _is_heavy(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in HEAVY or node.input[1] not in self.unpacked:
            return False
        return node.input[0] not in self.constants and all(name in self.constants for name in node.input[2:])

    def _is_light(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in LIGHT:
            return False
        constant = self.unpacked | self.constants.keys()
        return any(name in self.made for name in node.input) and not any(name in constant for name in node.input)

    def _is_move(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in MOVES or node.input[0] not in self.made or len(node.output) > 1:
            return False
        return node.op_type != "Pad" or _pads_zeros(node, self.constants)

    def _compute(self, node: onnx.NodeProto) -> None:
        self.computed[node.output[0]] = node
        result = self._end(node.output[0])
        if result != node.output[0]:
            self.clamped[node.output[0]] = result
        for name in (*(node.input[:1] if node.op_type in HEAVY else node.input), result):
            self.roots.setdefault(name, name)
        self.made.add(result)

    def _move(self, node: onnx.NodeProto) -> None:
        result = node.output[0]
        self.roots[result] = self.roots[node.input[0]]
        self.moved.add(result)
        self.made.add(result)

    def _free_ends(self) -> None:
        """What no integers are made from stays in floats: steps would only coarsen the answer.

        A convolution needs a Q to be fused; the product of matrices gives floats as it is; others compute in floats.
        """
        for name, node in reversed(list(self.computed.items())):
            if node.op_type != "Conv" and name not in self.clamped and not self._needed(name):
                self._release(name)
                if node.op_type in LIGHT:
                    del self.computed[name]

    def _needed(self, name: str) -> bool:
        readers = self.readers.get(name, [])
        return any(
            node.output[0] in self.computed or (node.output[0] in self.moved and self._needed(node.output[0]))
            for node in readers
        )

    def _release(self, name: str) -> None:
        self.roots.pop(name, None)
        self.moved.discard(name)
        for node in self.readers.get(name, []):
            if node.output[0] in self.moved:
                self._release(node.output[0])


def _pads_zeros(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    if next((a.s for a in node.attribute if a.name == "mode"), b"constant") != b"constant":
        return True  # repeats values that are there
    if len(node.input) < 3 or not node.input[2]:
        return True
    value = constants.get(node.input[2])
    return value is not None and not numpy_helper.to_array(value).any()


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in operators that runtimes have integer forms of.

    Zeros padded around the image become the padding of the only convolution that reads them; the mean over all
    positions becomes GlobalAveragePool.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if _is_small(tensor)}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    nodes = []
    for node in list(graph.node):
        after = readers.get(node.output[0], [])
        if (
            node.op_type == "Pad"
            and len(after) == 1
            and node.output[0] not in outputs
            and _fold(node, after[0], constants)
        ):
            continue
        nodes.extend(_pooled(node, constants))
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _is_small(tensor: onnx.TensorProto) -> bool:
    return int(np.prod(tensor.dims)) <= 64


def _fold(pad: onnx.NodeProto, conv: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    """Make a convolution pad for itself; False where it cannot."""
    if conv.op_type != "Conv" or conv.input[0] != pad.output[0] or len(pad.input) > 3 or pad.input[1] not in constants:
        return False
    mode = next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
    value = constants.get(pad.input[2], np.ones(1)) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
    amounts = constants[pad.input[1]].reshape(2, -1)
    named = {a.name: a for a in conv.attribute}
    if mode != b"constant" or value.any() or amounts[:, :2].any() or (amounts < 0).any() or "auto_pad" in named:
        return False
    own = np.asarray(named["pads"].ints if "pads" in named else [0] * amounts[:, 2:].size).reshape(2, -1)
    if "pads" in named:
        conv.attribute.remove(named["pads"])
    conv.attribute.append(helper.make_attribute("pads", (own + amounts[:, 2:]).reshape(-1).tolist()))
    conv.input[0] = pad.input[0]
    return True


def _pooled(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> list[onnx.NodeProto]:
    """A mean over the two image axes as a pooling."""
    named = {a.name: a for a in node.attribute}
    if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
        return [node]
    axes = sorted(int(axis) for axis in constants[node.input[1]].reshape(-1))
    if axes not in ([2, 3], [-2, -1]):  # of four axes; of any other number the exporter says so by other numbers
        return [node]
    if "keepdims" in named and not named["keepdims"].i:
        pooled = f"{node.output[0]}~p"
        return [
            helper.make_node("GlobalAveragePool", node.input[:1], [pooled]),
            helper.make_node("Flatten", [pooled], node.output),
        ]
    return [helper.make_node("GlobalAveragePool", node.input[:1], node.output)]
