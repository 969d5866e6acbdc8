"""The walk over a graph that gives every tensor its labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx import numpy_helper

from smidgen.model.channels.labels import Labels

Kept = Callable[[np.ndarray], np.ndarray]  # labels → whether each is kept
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Edit:
    """A constant of a node that counts channels, or points at them.

    Args:
        node: its place in the graph.
        operand: which input holds it, or the name of an attribute.
        value: what it becomes for the channels that are kept.
    """

    node: int
    operand: int | str
    value: Callable[[Kept], Array]


@dataclass(frozen=True, eq=False)
class Multiply:
    """A layer as met on the way; labels instead of channels. See `smidgen.site.ChannelLayer`."""

    name: str
    inputs: Array
    outputs: Array
    groups: int = 1
    taps: int = 1
    positions: int = 1


@dataclass(eq=False)
class Follow:
    """What is known while walking.

    Args:
        shapes: of every tensor that has one, for one input.
        constants: stored tensors.
        labels: of all.
        values: label of each element of a tensor, with a length of one along every axis but the one it varies on; None
            where the shape is not known.
        axes: labels along the axes of stored tensors.
        edits: constants that change with the channels.
        layers: in running order.
        place: of the node at hand.
    """

    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, Array]
    labels: Labels = field(default_factory=Labels)
    values: dict[str, Array | None] = field(default_factory=dict)
    axes: dict[tuple[str, int], Array] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    layers: list[Multiply] = field(default_factory=list)
    place: int = 0

    def axis(self, tensor: str, axis: int, reason: str | None = None) -> Array:
        """Labels along an axis of a stored tensor; the same ones wherever it is read.

        A single channel cannot be cut: nothing would be left.
        """
        if (tensor, axis) not in self.axes:
            length = self.constants[tensor].shape[axis]
            self.axes[tensor, axis] = self.labels.fresh(length)
            if length == 1:
                self.labels.pin(self.axes[tensor, axis], reason or "it is the only channel")
        return self.axes[tensor, axis]

    def varies(self, name: str) -> int | None:
        """The axis along which labels differ, None where there is none."""
        labels = self.values.get(name)
        return None if labels is None else next((i for i, side in enumerate(labels.shape) if side > 1), None)

    def along(self, name: str, axis: int) -> Array:
        """Labels of a tensor along an axis, one an element; what varies elsewhere is pinned."""
        labels, varies = self.values.get(name), self.varies(name)
        if labels is not None and varies is not None and varies != axis % labels.ndim:
            self.labels.pin(labels, "its channels are no axis of their own further on")
            labels = labels.ravel()[:1]
        if labels is None:
            labels = self.labels.fixed("a shape further on is not known")
        return np.broadcast_to(labels.ravel(), self.shapes[name][axis] if name in self.shapes else labels.size)

    def set(self, name: str, labels: Array, axis: int) -> None:
        """Give a tensor labels along one axis."""
        shape = [1] * len(self.shapes[name])
        shape[axis] = labels.size
        self.values[name] = labels.reshape(shape)

    def plain(self, name: str, reason: str) -> None:
        """Give a tensor one label that stays."""
        self.values[name] = (
            self.labels.fixed(reason).reshape([1] * len(self.shapes[name])) if name in self.shapes else None
        )

    def stop(self, node: onnx.NodeProto, reason: str) -> None:
        """Pin everything that a node reads, and give out what stays."""
        for name in node.input:
            labels = self.values.get(name)
            if labels is not None:
                self.labels.pin(labels, reason)
            # A stored tensor that has labels by another reader is read whole here.
            for key in [key for key in self.axes if key[0] == name]:
                self.labels.pin(self.axes[key], reason)
        for name in node.output:
            self.plain(name, reason)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {given.name: onnx.helper.get_attribute_value(given) for given in node.attribute}


def one_input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor for one input, of those that can be known."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    stored = {tensor.name: tuple(tensor.dims) for tensor in fixed.graph.initializer}
    for value in fixed.graph.input:
        axes = value.type.tensor_type.shape.dim
        if value.name not in stored and axes:
            axes[0].dim_value = 1
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    found = {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in [*graph.value_info, *graph.input, *graph.output]
        if value.type.tensor_type.HasField("shape")
        and all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim)
    }
    return found | stored


def begin(model: onnx.ModelProto) -> Follow:
    """The state before the first node: inputs have channels that stay."""
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and "value" in attributes(node):
            constants[node.output[0]] = numpy_helper.to_array(attributes(node)["value"])
    follow = Follow(one_input_shapes(model), constants)
    for value in graph.input:
        if value.name not in constants:
            follow.plain(value.name, "they read the network's input")
    return follow
