"""From labels to channels, and the graph without some of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from smidgen.errors import LoadError
from smidgen.model.channels.following import Follow, Kept, begin
from smidgen.model.channels.operators import RULES
from smidgen.site import ChannelLayer, Channels

ALONE = "it is the only channel"


@dataclass(frozen=True, eq=False)
class Found:
    """A graph's channels.

    Args:
        model: the graph.
        channels: what can be cut of it.
        follow: the labels behind them.
        numbers: the channel of each label that stands for others, by label.
    """

    model: onnx.ModelProto
    channels: Channels
    follow: Follow
    numbers: dict[int, int]

    def of(self, labels: np.ndarray) -> np.ndarray:
        """The channel of each label, −1 where it is never cut."""
        roots = self.follow.labels.roots(labels)
        return np.array([self.numbers.get(root, -1) for root in roots.ravel().tolist()], dtype=np.int64)


def find_channels(model: onnx.ModelProto, protected: frozenset[str] = frozenset()) -> Found:
    """The channels of a graph.

    Args:
        model: with plain layers; weights are called after their layers, as in ``conv1.weight``.
        protected: names of layers whose outputs stay.

    Raises:
        LoadError: the graph holds graphs of its own (branches, loops).
    """
    follow = begin(model)
    for place, node in enumerate(model.graph.node):
        if any(given.type == onnx.AttributeProto.GRAPH for given in node.attribute):
            raise LoadError(f"prune: the network holds {node.op_type}, whose channels cannot be followed")
        follow.place = place
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            follow.stop(node, f"they reach the operator {node.op_type}, which is not followed")
        else:
            rule(follow, node)
    for value in model.graph.output:
        labels = follow.values.get(value.name)
        if labels is not None:
            follow.labels.pin(labels, "they are the network's outputs")
    for layer in follow.layers:
        if layer.name in protected:
            follow.labels.pin(layer.outputs, "it is protected")
    return _numbered(model, follow)


def _numbered(model: onnx.ModelProto, follow: Follow) -> Found:
    labels, numbers = follow.labels, dict[int, int]()
    members: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
    for key, along in follow.axes.items():
        free = labels.reason(along) == None  # noqa: E711 - element by element
        for root in labels.roots(along)[free].tolist():
            numbers.setdefault(root, len(numbers))
            members[numbers[root]].append(key)
    found = Found(model, Channels(0, (), (), (), {}), follow, numbers)
    layers = tuple(
        ChannelLayer(layer.name, found.of(layer.inputs), found.of(layer.outputs), layer.groups, layer.taps,
                     layer.positions)
        for layer in follow.layers
    )  # fmt: skip
    left = {
        layer.name: str(labels.reason(multiply.outputs)[0])
        for layer, multiply in zip(layers, follow.layers, strict=True)
        if (layer.outputs < 0).all()
    }
    alike: defaultdict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
    for number in range(len(numbers)):
        alike[tuple(sorted(members[number]))].append(number)
    classes = tuple(np.array(units) for units in alike.values())
    channels = Channels(len(numbers), layers, classes, _grouped([set(key) for key in alike]), left)
    return Found(model, channels, follow, numbers)


def _grouped(places: list[set[tuple[str, int]]]) -> tuple[tuple[int, ...], ...]:
    """Classes that share a tensor's axis, directly or through others."""
    groups: list[tuple[set[tuple[str, int]], list[int]]] = []
    for number, own in enumerate(places):
        touched = [group for group in groups if group[0] & own]
        merged = (own.union(*(g[0] for g in touched)), [n for g in touched for n in g[1]] + [number])
        groups = [group for group in groups if group not in touched] + [merged]
    return tuple(tuple(sorted(numbers)) for _, numbers in groups)


def cut(found: Found, keep: np.ndarray) -> onnx.ModelProto:
    """The graph without some channels.

    Args:
        found: from `find_channels`.
        keep: whether each channel stays, ``[count]``.

    Returns:
        The same graph with fewer rows and columns in its weights; what is left computes as if the layers behind did
        not read what is cut.
    """
    follow, model = found.follow, onnx.ModelProto()
    model.CopyFrom(found.model)
    graph = model.graph

    def kept(labels: np.ndarray) -> np.ndarray:
        return np.append(keep, True)[found.of(labels)]

    for tensor in graph.initializer:
        values = before = follow.constants[tensor.name]
        for axis in range(values.ndim):
            if (tensor.name, axis) in follow.axes:
                values = np.compress(kept(follow.axes[tensor.name, axis]), values, axis)
        if values.shape != before.shape:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    _edit(graph, follow, kept)
    del graph.value_info[:]
    return model


def _edit(graph: onnx.GraphProto, follow: Follow, kept: Kept) -> None:
    for number, edit in enumerate(follow.edits):
        node, value = graph.node[edit.node], edit.value(kept)
        if isinstance(edit.operand, str):
            others = [given for given in node.attribute if given.name != edit.operand]
            del node.attribute[:]
            node.attribute.extend([*others, helper.make_attribute(edit.operand, int(value))])
            continue
        name = node.input[edit.operand] if len(node.input) > edit.operand else ""
        before = follow.constants.get(name)
        if before is not None and np.array_equal(before, value):
            continue
        if node.op_type == "Split":
            others = [given for given in node.attribute if given.name != "num_outputs"]
            del node.attribute[:]
            node.attribute.extend(others)
        while len(node.input) <= edit.operand:
            node.input.append("")
        node.input[edit.operand] = f"channels.{number}"
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.int64), f"channels.{number}"))
