"""Operators that a converted graph can do without, taken out in place; the answers stay the same.

    TRANSPOSE, PAD, TRANSPOSE back     PAD with its paddings in the other order
    TRANSPOSE, TRANSPOSE back          nothing
    TRANSPOSE, MEAN                    MEAN over the axes as they were
    TRANSPOSE, RESHAPE, dense layer    RESHAPE, dense layer with its columns in the other order
    layer, MINIMUM                     layer, where its integers end at the limit anyway

The first four come of networks that keep their channels first; each costs a copy of an activation.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from smidgen.runtimes.tflite_file import constant, names_of, operator_name, packed, schema


class Graph:
    """Who makes and who reads the tensors of a model's one graph.

    Args:
        model: as `smidgen.runtimes.tflite_file.parse` gives it; changed in place.
    """

    def __init__(self, model: Any) -> None:
        self.model, (self.graph,) = model, model.subgraphs

    def name(self, operator: Any) -> str:
        return operator_name(self.model, operator)

    def value(self, i: int) -> np.ndarray | None:
        return constant(self.model, self.graph.tensors[i])

    def shape(self, i: int) -> tuple[int, ...]:
        shape = self.graph.tensors[i].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def readers(self, i: int) -> list[Any]:
        return [operator for operator in self.graph.operators if i in [int(k) for k in operator.inputs]]

    def returned(self, i: int) -> bool:
        return i in [int(k) for k in self.graph.outputs]

    def all(self, kind: str) -> list[Any]:
        return [operator for operator in self.graph.operators if self.name(operator) == kind]

    def order(self, operator: Any) -> tuple[int, ...] | None:
        """Axes of a TRANSPOSE; None where they are computed."""
        axes = self.value(int(operator.inputs[1]))
        return None if axes is None else tuple(int(axis) for axis in axes)

    def read_instead(self, old: int, new: int) -> None:
        """Every reader of a tensor reads another."""
        for operator in self.readers(old):
            operator.inputs = [new if int(i) == old else int(i) for i in operator.inputs]

    def with_values(self, i: int, values: np.ndarray) -> int:
        """A constant like another, of other values; a new one, since others may read that."""
        old, tensor, buffer = self.graph.tensors[i], schema().TensorT(), schema().BufferT()
        buffer.data = packed(values, names_of("TensorType")[old.type])
        self.model.buffers.append(buffer)
        vars(tensor).update({**vars(old), "shape": list(values.shape), "buffer": len(self.model.buffers) - 1})
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def drop_unread(self) -> None:
        """Take out operators whose outputs nothing reads."""
        needed = {int(i) for i in self.graph.outputs}
        kept = []
        for operator in reversed(list(self.graph.operators)):
            if needed.intersection(map(int, operator.outputs)):
                needed.update(map(int, operator.inputs))
                kept.append(operator)
        self.graph.operators = kept[::-1]


def drop_transposes(model: Any) -> None:
    """Take out what only turns channels to the front and back; see the module."""
    graph = Graph(model)
    for operator in graph.all("TRANSPOSE"):
        order = graph.order(operator)
        if order is not None:
            _pads(graph, operator, order)
            _back(graph, operator, order)
            _means(graph, operator, order)
    graph.drop_unread()


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.argsort(order))


def _pads(graph: Graph, first: Any, order: tuple[int, ...]) -> None:
    """PADs of the turned value that are turned back at once pad the value as it was."""
    for pad in graph.readers(int(first.outputs[0])):
        result = int(pad.outputs[0])
        sizes = graph.value(int(pad.inputs[1])) if graph.name(pad) == "PAD" else None
        after = graph.readers(result)
        turned = all(graph.name(r) == "TRANSPOSE" and graph.order(r) == _inverse(order) for r in after)
        if sizes is None or not after or not turned or graph.returned(result):
            continue
        pad.inputs = [int(first.inputs[0]), graph.with_values(int(pad.inputs[1]), sizes[list(_inverse(order))])]
        ends = [int(r.outputs[0]) for r in after]
        if any(graph.returned(end) for end in ends[1:]):
            continue
        pad.outputs = ends[:1]
        for end in ends[1:]:
            graph.read_instead(end, ends[0])
        graph.graph.operators = [o for o in graph.graph.operators if not any(o is r for r in after)]


def _back(graph: Graph, first: Any, order: tuple[int, ...]) -> None:
    for second in graph.readers(int(first.outputs[0])):
        back = graph.name(second) == "TRANSPOSE" and graph.order(second) == _inverse(order)
        if back and not graph.returned(int(second.outputs[0])):
            graph.read_instead(int(second.outputs[0]), int(first.inputs[0]))


def _means(graph: Graph, first: Any, order: tuple[int, ...]) -> None:
    for mean in graph.readers(int(first.outputs[0])):
        axes = graph.value(int(mean.inputs[1])) if graph.name(mean) == "MEAN" else None
        if axes is None or mean.builtinOptions is None or mean.builtinOptions.keepDims:
            continue
        before = sorted(order[int(axis)] for axis in axes)
        left = [axis for n, axis in enumerate(order) if n not in {int(a) % len(order) for a in axes}]
        if left == sorted(left):
            mean.inputs = [int(first.inputs[0]), graph.with_values(int(mean.inputs[1]), np.array(before, axes.dtype))]


def drop_flattening(model: Any) -> None:
    """Dense layers take flattened activations in the order they lie in; their columns change places instead.

    Args:
        model: of floats or of integers.
    """
    graph = Graph(model)
    for first in graph.all("TRANSPOSE"):
        order, shapes = graph.order(first), graph.readers(int(first.outputs[0]))
        if order is None or order[0] != 0 or graph.returned(int(first.outputs[0])):
            continue
        for reshape in shapes:
            flat = int(reshape.outputs[0])
            layers = graph.readers(flat)
            dense = all(graph.name(o) == "FULLY_CONNECTED" and int(o.inputs[0]) == flat for o in layers)
            if graph.name(reshape) != "RESHAPE" or len(graph.shape(flat)) != 2 or graph.returned(flat) or not dense:
                continue
            weights = [graph.value(int(o.inputs[1])) for o in layers]
            inner = [graph.shape(int(first.inputs[0]))[axis] for axis in order[1:]]
            if any(w is None or w.shape[1] != np.prod(inner) for w in weights):
                continue
            turn = [0, *(axis for axis in _inverse(order) if axis != 0)]
            for layer, weight in zip(layers, weights, strict=True):
                assert weight is not None  # tested above
                turned = weight.reshape(len(weight), *inner).transpose(turn).reshape(weight.shape)
                layer.inputs = [flat, graph.with_values(int(layer.inputs[1]), turned), *map(int, layer.inputs[2:])]
            reshape.inputs = [int(first.inputs[0]), *map(int, reshape.inputs[1:])]
    graph.drop_unread()


def drop_clamps(model: Any, layers: Collection[str], floats: Collection[int]) -> None:
    """Take out every MINIMUM with one number after a layer: its integers of eight bits end where their range does.

    Args:
        model: of floats, about to be given integers.
        layers: names of the operators after which it may go.
        floats: numbers of operators that stay in floats.
    """
    graph = Graph(model)
    operators = list(graph.graph.operators)
    makers = {int(operator.outputs[0]): n for n, operator in enumerate(operators)}
    for n, operator in enumerate(operators):
        if graph.name(operator) != "MINIMUM" or n in floats:
            continue
        data, limit = int(operator.inputs[0]), graph.value(int(operator.inputs[1]))
        maker = makers.get(data, -1)
        if maker < 0 or maker in floats or graph.name(operators[maker]) not in layers:
            continue
        alone = len(graph.readers(data)) == 1 and not graph.returned(data)
        if alone and limit is not None and limit.size and limit.min() == limit.max() > 0:
            operators[maker].outputs, operator.outputs = [int(operator.outputs[0])], [data]
            # What it makes now is read by nothing.
            makers[int(operators[maker].outputs[0])] = maker
    graph.drop_unread()
