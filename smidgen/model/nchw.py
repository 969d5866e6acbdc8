"""Clean an ONNX graph that came from a channels-last framework: NCHW in, NCHW out, no Transpose left in a plain CNN.

A converter leaves three marks on such a graph, and each has an exact mend:

- before a Dense layer the features are turned back to NHWC and flattened, and the Dense rows are in that order:
  y = W vec(x_nhwc) = W P vec(x_nchw), so the rows are permuted once and the Transpose goes;
- a batch normalization that it could not fold stays behind the convolution as a Mul or an Add of a constant:
  a·(w ∗ x + b) + c = (a·w) ∗ x + (a·b + c);
- four-axis outputs end in a Transpose to NHWC.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)


@dataclass
class _Graph:
    """The graph's nodes in order, and its constants by name."""

    nodes: list[onnx.NodeProto]
    constants: dict[str, np.ndarray]
    outputs: list[str]
    shapes: dict[str, tuple[int | None, ...]]
    made: int = field(default=0)

    def producer(self, name: str) -> onnx.NodeProto | None:
        return next((node for node in self.nodes if name in node.output), None)

    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in set(node.input):
                found[name].append(node)
        return found

    def constant(self, value: np.ndarray, base: str) -> str:
        """A new constant; others may still read the one that it came from."""
        self.made += 1
        name = f"{base}_nchw{self.made}"
        self.constants[name] = value
        return name


def to_nchw(model: onnx.ModelProto, *, channels_last: bool = True) -> onnx.ModelProto:
    """The same network without the marks of its channels-last origin.

    Args:
        model: one whose inputs are NCHW already (tf2onnx's `inputs_as_nchw`); not changed.
        channels_last: whether its four-axis outputs are NHWC, to be made NCHW.

    Returns:
        A new model: free first axes are named ``batch``, constants are not listed as inputs, and inputs, nodes,
        constants and operator sets that nothing needs are gone.

    >>> ends = [helper.make_tensor_value_info(*each) for each in (("x", 1, [1, 2, 3, 3]), ("y", 1, [1, 3, 3, 2]))]
    >>> nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Transpose", ["h"], ["y"], perm=TO_NHWC)]
    >>> clean = to_nchw(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])))
    >>> [node.op_type for node in clean.graph.node]
    ['Relu']
    >>> [axis.dim_value for axis in clean.graph.output[0].type.tensor_type.shape.dim]
    [1, 2, 3, 3]
    """
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    graph = _opened(clean)
    _fold_affine(graph)
    _flatten_in_place(graph)
    if channels_last:
        _turn_outputs(clean, graph)
    _closed(clean, graph)
    return clean


def scalars_as_vectors(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with constants of no axis given one of length 1, which broadcasts alike beside any operand with axes.

    tf2onnx 1.17's removal of Transposes stops at the first scalar added to a convolution and leaves all in place.

    Args:
        model: not changed.

    Returns:
        A new model; a constant that anything but elementwise arithmetic reads is left alone.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    other = {name for node in changed.graph.node if node.op_type not in _ELEMENTWISE for name in node.input}
    for tensor in changed.graph.initializer:
        if not tensor.dims and tensor.name not in other:
            tensor.dims.append(1)
    return changed


_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})


def _opened(model: onnx.ModelProto) -> _Graph:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        each.name: tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in _axes(each))
        for each in [*inferred.input, *inferred.value_info, *inferred.output]
        if each.type.tensor_type.HasField("shape")
    }
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return _Graph(list(model.graph.node), constants, [each.name for each in model.graph.output], shapes)


def _axes(info: onnx.ValueInfoProto) -> Any:
    return info.type.tensor_type.shape.dim


def _fold_affine(graph: _Graph) -> None:
    """Move a Mul or Add of a constant for each channel into the convolution before it."""
    for node in list(graph.nodes):
        if node.op_type not in ("Mul", "Add") or len(node.input) != 2:
            continue
        value, name = next(((i, j) for i, j in (node.input, node.input[::-1]) if j in graph.constants), ("", ""))
        conv = graph.producer(value)
        if not name or conv is None or conv.op_type != "Conv" or conv.input[1] not in graph.constants:
            continue
        if len(graph.readers()[value]) > 1 or value in graph.outputs:
            continue
        weight = graph.constants[conv.input[1]]
        each = _for_each_channel(graph.constants[name], weight.shape)
        if each is None or (len(conv.input) > 2 and conv.input[2] not in graph.constants):
            continue
        bias = graph.constants[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(weight), weight.dtype)
        if node.op_type == "Mul":
            conv.input[1] = graph.constant(weight * each.reshape(-1, *[1] * (weight.ndim - 1)), conv.input[1])
            bias = bias * each
        else:
            bias = bias + each
        del conv.input[2:]
        conv.input.append(graph.constant(bias.astype(weight.dtype), f"{conv.input[1]}_bias"))
        conv.output[0] = node.output[0]
        graph.nodes.remove(node)


def _for_each_channel(constant: np.ndarray, weight: tuple[int, ...]) -> np.ndarray | None:
    """The constant as one number an output channel, where it is that: [1, C, 1, 1], [C, 1, 1] or a single number."""
    if constant.size == 1 and constant.ndim <= len(weight):
        return np.full(weight[0], constant.reshape(()), constant.dtype)
    full = (1,) * (len(weight) - constant.ndim) + constant.shape
    wanted = (1, weight[0]) + (1,) * (len(weight) - 2)
    return constant.reshape(-1) if full == wanted else None


def _flatten_in_place(graph: _Graph) -> None:
    """Transpose to NHWC, flatten, Dense: flatten NCHW and permute the Dense layer's rows instead."""
    for node in [each for each in graph.nodes if each.op_type in ("Reshape", "Flatten")]:
        turn = graph.producer(node.input[0])
        if turn is None or turn.op_type != "Transpose" or _perm(turn) != TO_NHWC:
            continue
        features = graph.shapes.get(turn.input[0], ())[1:]
        if len(features) != 3 or None in features or len(graph.shapes.get(node.output[0], ())) != 2:
            continue
        channels, height, width = (int(each or 0) for each in features)
        size, readers = channels * height * width, graph.readers()[node.output[0]]
        if node.output[0] in graph.outputs or not all(_is_dense(each, node.output[0], size, graph) for each in readers):
            continue
        order = np.arange(size).reshape(height, width, channels).transpose(2, 0, 1).reshape(-1)
        for dense in readers:
            rows = graph.constants[dense.input[1]]
            turned = rows[:, order] if _flag(dense, "transB") else rows[order]
            dense.input[1] = graph.constant(np.ascontiguousarray(turned), dense.input[1])
        flat = helper.make_node("Flatten", [turn.input[0]], [node.output[0]], name=node.name, axis=1)
        graph.nodes[graph.nodes.index(node)] = flat


def _is_dense(node: onnx.NodeProto, data: str, size: int, graph: _Graph) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] != data or _flag(node, "transA"):
        return False
    weight = graph.constants.get(node.input[1])
    return weight is not None and weight.ndim == 2 and weight.shape[1 if _flag(node, "transB") else 0] == size


def _turn_outputs(model: onnx.ModelProto, graph: _Graph) -> None:
    for info in model.graph.output:
        axes = _axes(info)
        if len(axes) != 4:
            continue
        last = graph.producer(info.name)
        if last is None:
            continue
        source = graph.producer(last.input[0]) if last.op_type == "Transpose" and _perm(last) == TO_NHWC else None
        if source is not None and last.input[0] not in graph.outputs:
            inner = last.input[0]
            graph.nodes.remove(last)
            for node in graph.nodes:
                _rename(node, info.name, f"{info.name}_nhwc")  # who read the turned output reads it turned again
                _rename(node, inner, info.name)
            if graph.readers().get(f"{info.name}_nhwc"):
                turn = helper.make_node("Transpose", [info.name], [f"{info.name}_nhwc"], perm=TO_NHWC)
                graph.nodes.insert(graph.nodes.index(source) + 1, turn)
        else:
            for node in graph.nodes:
                _rename(node, info.name, f"{info.name}_nhwc")
            graph.nodes.append(helper.make_node("Transpose", [f"{info.name}_nhwc"], [info.name], perm=TO_NCHW))
        _replace(axes, [axes[axis] for axis in TO_NCHW])


def _rename(node: onnx.NodeProto, old: str, new: str) -> None:
    node.input[:] = [new if name == old else name for name in node.input]
    node.output[:] = [new if name == old else name for name in node.output]


def _perm(node: onnx.NodeProto) -> tuple[int, ...]:
    return next((tuple(each.ints) for each in node.attribute if each.name == "perm"), ())


def _flag(node: onnx.NodeProto, name: str) -> bool:
    return any(each.name == name and each.i for each in node.attribute)


def _closed(model: onnx.ModelProto, graph: _Graph) -> None:
    """Write nodes and constants back, without what no output needs."""
    needed, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            needed.update(name for each in node.attribute for inner in each.g.node for name in inner.input)
    # A constant may be listed as an input too; tf2onnx also lists TensorFlow's captured tensors that it folded away.
    inputs = [each for each in model.graph.input if each.name in needed and each.name not in graph.constants]
    tensors = [numpy_helper.from_array(value, name) for name, value in graph.constants.items() if name in needed]
    _replace(model.graph.node, kept[::-1])
    _replace(model.graph.initializer, tensors)
    _replace(model.graph.input, inputs)
    _replace(model.graph.value_info, [])
    domains = {node.domain for node in model.graph.node} | {""}
    _replace(model.opset_import, [each for each in model.opset_import if each.domain in domains])
    for info in [*model.graph.input, *model.graph.output]:
        axes = _axes(info)
        if axes and not axes[0].HasField("dim_value"):
            axes[0].dim_param = "batch"


def _replace(place: Any, new: list[Any]) -> None:
    """New members for a protobuf list, some of which may be its old ones: copied before they are deleted."""
    copies = [type(each).FromString(each.SerializeToString()) for each in new]
    del place[:]
    place.extend(copies)
