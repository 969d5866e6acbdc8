"""A graph with the weights that its layers have in the torch network read from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from smidgen.model.onnx.naming import identifier
from smidgen.site import ChannelLayer


def refilled(model: onnx.ModelProto, before: nn.Module, after: nn.Module, layers: Iterable[str]) -> onnx.ModelProto:
    """The graph with new weights and biases.

    Args:
        model: the graph; the weight of a layer is called ``<layer>.weight``.
        before: read from it.
        after: the same with other weights, and perhaps biases where there were none.
        layers: names in the graph.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input if name in stored}
    old, new = (dict[str, Any](each.named_modules()) for each in (before, after))
    for layer in layers:
        name, weight = identifier(layer), f"{layer}.weight"
        if name not in new or weight not in stored or new[name].weight is old[name].weight:
            continue
        values = _array(new[name].weight)
        if values.shape != tuple(stored[weight].dims):
            values = values.T  # a MatMul's
        elif readers[weight].op_type == "MatMul":
            values = values.T
        stored[weight].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), weight))
        if new[name].bias is not None:
            had = None if old[name].bias is None else _array(old[name].bias)
            _set_bias(graph, stored, readers[weight], layer, _array(new[name].bias), had)
    return result


def _set_bias(
    graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto], node: onnx.NodeProto, layer: str, bias: np.ndarray,
    had: np.ndarray | None,
) -> None:  # fmt: skip
    name = node.input[2] if len(node.input) > 2 else ""
    if not name and node.op_type == "MatMul" and had is not None:
        name = f"{layer}.bias"  # of the Add behind it, read as part of the layer
    if name in stored:
        stored[name].CopyFrom(numpy_helper.from_array(bias.reshape(tuple(stored[name].dims)), name))
        return
    name = f"{layer}.bias.refitted"
    graph.initializer.append(numpy_helper.from_array(bias, name))
    if node.op_type != "MatMul":
        node.input.extend([""] * (2 - len(node.input)))
        node.input.append(name)
        return
    product, place = f"{node.output[0]}.product", list(graph.node).index(node)
    result, node.output[0] = node.output[0], product
    graph.node.insert(place + 1, helper.make_node("Add", [product, name], [result]))


def _array(parameter: nn.Parameter) -> np.ndarray:
    return parameter.detach().cpu().numpy()


def refill(
    module: nn.Module, layer: ChannelLayer, keep: np.ndarray, weight: np.ndarray, bias: np.ndarray | None
) -> None:
    """Set a layer of a cut network, in place, to what is left of the original layer's weight and bias.

    Args:
        module: read from a graph without some channels.
        layer: of the original.
        keep: whether each channel is left.
        weight, bias: of the original's shapes.
    """
    target: Any = dict(module.named_modules()).get(identifier(layer.name))
    if target is None:
        return
    inputs, outputs = (np.append(keep, True)[each] for each in (layer.inputs, layer.outputs))
    first, second = (outputs, inputs[: len(inputs) // layer.groups])
    if isinstance(target, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        first, second = inputs, outputs[: len(outputs) // layer.groups]
    target.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(weight[first][:, second])))
    if bias is not None:
        target.bias = nn.Parameter(torch.from_numpy(bias[outputs]))
