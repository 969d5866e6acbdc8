"""Static int8 in ONNX: activations as 8-bit integers too, written with QuantizeLinear and DequantizeLinear (QDQ).

    weights      int8, one scale a row, as `smidgen.export.onnx_integers` writes them
    activations  uint8, one range a value (`smidgen.calibrate.ranges`): u8s8 is what x86 and ARM multiply fastest
    biases       int32 at the scale of the products, s_x · s_w

A runtime computes an operator in integers where it finds it between DequantizeLinear and QuantizeLinear: so a Q follows
each computed operator and its activation function (`smidgen.export.onnx_layout`), and a D stands before the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from smidgen.calibrate.ranges import Range
from smidgen.export.onnx_layout import HEAVY, Layout

LARGEST_BIAS = 2**31 - 1


def static(
    model: onnx.ModelProto,
    parts: Layout,
    ranges: Mapping[str, Range],
) -> onnx.ModelProto:
    """The graph with activations as integers.

    Args:
        model: with integer weights, as given to `smidgen.export.onnx_layout.layout`.
        parts: from there.
        ranges: of every one of its ``ranged``.

    Returns:
        A new graph. The output of a computed operator is named as before where something is absorbed after it, and
        has ``~r`` added where a Q follows at once.
    """
    return _Writer(model, parts, ranges).written()


class _Writer:
    """Writes the nodes anew: a value is floats under its own name, or integers, ``name~q``, read as ``name~d``."""

    def __init__(self, model: onnx.ModelProto, parts: Layout, ranges: Mapping[str, Range]) -> None:
        self.before, self.parts = model.graph, parts
        self.ranges = {name: ranges[root] for name, root in parts.roots.items()}
        self.result = onnx.ModelProto()
        self.result.CopyFrom(model)
        self.graph = self.result.graph
        del self.graph.node[:]
        self.tensors = {tensor.name: tensor for tensor in self.before.initializer}
        self.unpacked = {n.output[0]: n for n in self.before.node if n.op_type == "DequantizeLinear"}
        self.outputs = {output.name for output in self.before.output}
        self.absorbed, self.made = set(parts.clamped.values()), parts.made
        self.written_values: set[str] = set()  # names of what was added once for all who read it

    def written(self) -> onnx.ModelProto:
        for node in self.before.node:
            result = node.output[0] if node.output else ""
            if result in self.parts.moved:
                self._move(node)
            elif result in self.parts.computed:
                self._compute(node)
            elif result in self.absorbed:
                self._place(node, node.input)
            else:
                self._place(node, [self._floats(name) for name in node.input])
        return self.result

    def _compute(self, node: onnx.NodeProto) -> None:
        if node.op_type in HEAVY:
            inputs = [self._read(node.input[0]), self._weight(node), *self._bias(node)]
        else:
            inputs = [self._read(name) for name in node.input]
        self._place(node, inputs)

    def _place(self, node: onnx.NodeProto, inputs: Sequence[str]) -> None:
        """Write a node; a Q follows where its value becomes integers."""
        result, copy = node.output[0], self.graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        if result in self.made:
            copy.output[0] = f"{result}~r"
            self._quantize(f"{result}~r", result)
            self._give(result)

    def _move(self, node: onnx.NodeProto) -> None:
        result, copy = node.output[0], self.graph.node.add()
        copy.CopyFrom(node)
        copy.input[0] = self._integers(node.input[0])
        copy.output[0] = f"{result}~q"
        if node.op_type == "Pad":
            copy.input[:] = [*copy.input[:2], self._scale(result)[1], *copy.input[3:]]
        self._give(result)

    def _give(self, name: str) -> None:
        """The network's outputs are floats, under their names."""
        if name in self.outputs:
            self._dequantize(name, name)

    def _floats(self, name: str) -> str:
        """What an operator in floats reads."""
        if name not in self.made:
            return name
        return name if name in self.outputs else self._read(name)

    def _read(self, name: str) -> str:
        """What a computed operator reads: a value's integers, as floats."""
        integers = self._integers(name)
        if self._once(f"{name}~d"):
            self._dequantize(name, f"{name}~d", integers)
        return f"{name}~d"

    def _integers(self, name: str) -> str:
        if name not in self.made and self._once(f"{name}~q"):  # made in floats: the input, what has no integer form
            self._quantize(name, name)
        return f"{name}~q"

    def _once(self, name: str) -> bool:
        fresh = name not in self.written_values
        self.written_values.add(name)
        return fresh

    def _quantize(self, floats: str, name: str) -> None:
        self.graph.node.append(helper.make_node("QuantizeLinear", [floats, *self._scale(name)], [f"{name}~q"]))

    def _dequantize(self, name: str, result: str, integers: str | None = None) -> None:
        node = helper.make_node("DequantizeLinear", [integers or f"{name}~q", *self._scale(name)], [result])
        self.graph.node.append(node)

    def _scale(self, name: str) -> tuple[str, str]:
        """Names of a value's scale and zero point; one of each for all values that share the range."""
        root, range_ = self.parts.roots[name], self.ranges[name]
        if self._once(f"{root}~s"):
            self._add(np.array(range_.scale, np.float32), f"{root}~s")
            self._add(np.array(range_.zero, np.uint8), f"{root}~z")
        return f"{root}~s", f"{root}~z"

    def _weight(self, node: onnx.NodeProto) -> str:
        """ONNX Runtime fuses a product of matrices only where the weight has zero points, which it adds to a Conv's."""
        unpacked = self.unpacked[node.input[1]]
        if node.op_type != "Conv" and len(unpacked.input) == 2 and self._once(f"{node.input[1]}~z"):
            rows = numpy_helper.to_array(self.tensors[unpacked.input[1]]).shape
            self._add(np.zeros(rows, np.int8), f"{node.input[1]}~z")
            written = next(n for n in self.graph.node if n.output[0] == node.input[1])
            written.input.append(f"{node.input[1]}~z")
        return node.input[1]

    def _bias(self, node: onnx.NodeProto) -> list[str]:
        if len(node.input) < 3:
            return []
        values = numpy_helper.to_array(self.tensors[node.input[2]]).astype(np.float64)
        weight = numpy_helper.to_array(self.tensors[self.unpacked[node.input[1]].input[1]])
        scale = (weight * self.ranges[node.input[0]].scale).astype(np.float32)
        # A row of zeros may have a scale too fine for its bias: it is held as nearly as it can be.
        integers = np.clip(np.rint(values / scale), -LARGEST_BIAS, LARGEST_BIAS).astype(np.int32)
        name = f"{node.output[0]}~b"
        self._add(integers, name)
        self._add(scale, f"{name}s")
        self.graph.node.append(helper.make_node("DequantizeLinear", [name, f"{name}s"], [f"{name}f"], axis=0))
        return [f"{name}f"]

    def _add(self, values: np.ndarray, name: str) -> None:
        self.graph.initializer.append(numpy_helper.from_array(values, name))
