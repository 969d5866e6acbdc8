"""Which channels of a network may be scaled: what one layer gives and others take, with nothing between that minds.

    f(s x) = s f(x) for s > 0        ReLU, PReLU, leaky ReLU, poolings, sums, concatenation, zeros around the image

A channel of a layer's output is followed to the layers that read it. Where a sum adds two channels they are one; what
else happens to a channel holds it in place: a bound that clips, a sigmoid, a constant added, an end of the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from smidgen.export.onnx import DOMAIN
from smidgen.forms import Geometry

# Operators through which every channel passes by itself, scaled as it came.
PASSING = frozenset({
    "AveragePool", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "PRelu", "Relu",
})  # fmt: skip
# Those that also choose among axes, whose numbers are their second input.
OVER_AXES = frozenset({"ReduceMean", "ReduceMax", "Squeeze", "Unsqueeze"})
HELD = 0  # the one that all channels are tied to which keep their scale


@dataclass(frozen=True, eq=False)
class Ties:
    """Channels that may be scaled, by number; `HELD` stands for all that may not.

    Args:
        made: layer → the number of each of its output channels.
        read: layer → the number of each of its input channels, or columns where it is dense.
        count: of numbers.
    """

    made: Mapping[str, np.ndarray]
    read: Mapping[str, np.ndarray]
    count: int

    @property
    def free(self) -> np.ndarray:
        """Numbers of the channels that a layer gives and a layer reads, in order."""
        given = np.concatenate([np.zeros(0, int), *self.made.values()])
        taken = np.concatenate([np.zeros(0, int), *self.read.values()])
        found = np.intersect1d(given, taken)
        return found[found != HELD]


def channel_ties(graph: onnx.GraphProto, geometries: Mapping[str, Geometry]) -> Ties:
    """Follow every channel of a graph.

    Args:
        graph: of `smidgen.export.onnx.Base`, the layers as placeholders.
        geometries: of the layers, by name.

    >>> from onnx.parser import parse_model
    >>> net = parse_model('''<ir_version: 8, opset_import: ["": 17, "smidgen": 1]>
    ...     g (float[n, 2] x) => (float[n, 1] y)
    ...     { a = smidgen.Site<flat = 1>(x)  b = Relu(a)  y = smidgen.Site<flat = 1>(b) }''')
    >>> for node, name in zip((n for n in net.graph.node if n.domain), ("first", "second")): node.name = name
    >>> ties = channel_ties(net.graph, {"first": Geometry("linear", 2, 3), "second": Geometry("linear", 3, 1)})
    >>> ties.made["first"].tolist() == ties.read["second"].tolist() == ties.free.tolist()
    True
    """
    return _Search(graph, geometries).found()


class _Search:
    """Channels by number, with those that are one tied together."""

    def __init__(self, graph: onnx.GraphProto, geometries: Mapping[str, Geometry]) -> None:
        self.graph, self.geometries = graph, geometries
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.parent = [HELD]
        self.of: dict[str, np.ndarray | None] = {}  # the channels of a value; None where they cannot be told
        self.flat: set[str] = set()  # values in which each channel has several columns
        self.made: dict[str, np.ndarray] = {}
        self.read: dict[str, np.ndarray] = {}

    def found(self) -> Ties:
        for node in self.graph.node:
            if node.domain == DOMAIN:
                self._layer(node)
            elif not self._passes(node):
                self._hold(node)
        for output in self.graph.output:
            self._tie(self.of.get(output.name), HELD)
        roots = np.array([self._root(i) for i in range(len(self.parent))])
        return Ties(
            {name: roots[ids] for name, ids in self.made.items()},
            {name: roots[ids] for name, ids in self.read.items()}, len(roots),
        )  # fmt: skip

    def _layer(self, node: onnx.NodeProto) -> None:
        geometry, ids = self.geometries[node.name], self.of.get(node.input[0])
        apart = all(a.i for a in node.attribute if a.name == "flat") and geometry.kind != "conv_transpose"
        inputs = geometry.in_channels
        if ids is None or not apart or inputs % max(len(ids), 1):
            self._tie(ids, HELD)
            ids = np.full(inputs, HELD)
        self.read[node.name] = np.repeat(ids, inputs // len(ids))
        made = self._fresh(geometry.out_channels)
        if not apart:
            self._tie(made, HELD)
        self.made[node.name] = self.of[node.output[0]] = made

    def _passes(self, node: onnx.NodeProto) -> bool:
        """Follow the channels through a node; False where it minds their scale."""
        ids, given = self.of.get(node.input[0]) if node.input else None, node.input[0] if node.input else ""
        if node.op_type in ("Add", "Concat"):
            return self._joins(node)
        if ids is None or len(node.output) > 1:
            return False
        flat = given in self.flat
        match node.op_type:
            case kind if kind in PASSING:
                pass
            case kind if kind in OVER_AXES:
                if not self._spatial(node) or flat:
                    return False
            case "Flatten":
                if any(a.i != 1 for a in node.attribute if a.name == "axis"):
                    return False
                flat = True
            case "Reshape":
                shape = self.constants.get(node.input[1])
                if shape is None or shape.size != 2 or shape[0] > 1:
                    return False
                flat = True
            case "Pad":
                padded = self._padded(node, ids)
                if padded is None or flat:
                    return False
                ids = padded
            case "Slice":
                axes = self.constants.get(node.input[3]) if len(node.input) > 3 else None
                if axes is None or (axes < 2).any() or flat:
                    return False
            case _:
                return False
        self.of[node.output[0]] = ids
        if flat:
            self.flat.add(node.output[0])
        return True

    def _joins(self, node: onnx.NodeProto) -> bool:
        parts = [self.of.get(name) for name in node.input]
        known = [part for part in parts if part is not None]
        flat = [name in self.flat for name in node.input]
        if len(known) < len(parts) or len(set(flat)) > 1:
            return False
        if node.op_type == "Add":
            if len(known[0]) != len(known[1]):
                return False
            for one, other in zip(*known, strict=True):
                self._tie(np.array([one]), int(other))
            self.of[node.output[0]] = known[0]
            self.flat.update(node.output if flat[0] else ())
            return True
        if flat[0] or any(a.i != 1 for a in node.attribute if a.name == "axis"):
            return False
        self.of[node.output[0]] = np.concatenate(known)
        return True

    def _spatial(self, node: onnx.NodeProto) -> bool:
        """Whether an operator works on axes of the image alone, behind samples and channels."""
        axes = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        return axes is not None and bool(np.isin(axes, (2, 3, 4)).all() or np.array_equal(np.sort(axes), (-2, -1)))

    def _padded(self, node: onnx.NodeProto, ids: np.ndarray) -> np.ndarray | None:
        """The channels of a value with zeros around it; zeros have any scale."""
        amounts = self.constants.get(node.input[1])
        value = self.constants.get(node.input[2], np.ones(1)) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        zeros = next((a.s for a in node.attribute if a.name == "mode"), b"constant") == b"constant"
        if amounts is None or len(node.input) > 3 or amounts.size < 4 or not zeros or value.any():
            return None
        (samples, before, *_), (more, after, *_) = amounts.reshape(2, -1)
        if samples or more or before < 0 or after < 0:
            return None
        return np.concatenate([self._fresh(int(before)), ids, self._fresh(int(after))])

    def _hold(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            self._tie(self.of.get(name), HELD)
        for attribute in node.attribute:  # a branch reads what is around it
            if attribute.type == onnx.AttributeProto.GRAPH:
                for inner in attribute.g.node:
                    self._hold(inner)

    def _fresh(self, count: int) -> np.ndarray:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def _root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def _tie(self, ids: np.ndarray | None, other: int) -> None:
        for i in () if ids is None else ids.tolist():
            low, high = sorted((self._root(i), self._root(other)))
            self.parent[high] = low  # the lowest: HELD stays the root of all that are held
