"""Parameters and multiply-accumulates of a written ONNX file, counted from the file itself.

    Conv            out elements · (in/groups) · kernel
    ConvTranspose   in elements · (out/groups) · kernel     (the products before cropping)
    Gemm, MatMul    out elements · inner length

for one sample; their quantized siblings (QLinearConv, ConvInteger, QLinearMatMul, MatMulInteger, MatMulNBits) alike.
What depends on constants alone is computed once, on opening: it costs nothing a sample, and weights that are gathered
from a codebook count as the weights that they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from smidgen.measure.files import read_onnx

_FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
)
# Where an operator keeps its data and its weight among its inputs; the quantized ones have scales in between.
_CONV = {"Conv": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
_MATMUL = {"MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
# Inputs of an operator that say how to read another one: scales and zero points, not parameters.
_SCALES = {
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "MatMulNBits": (2, 3, 4),
}
# Inputs that hold quantized weights as integers.
_INTEGER_WEIGHTS = {
    "DequantizeLinear": (0,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
    "ConvInteger": (1,),
    "MatMulInteger": (0, 1),
}
# Operators that multiply.
COUNTED = frozenset({*_CONV, *_MATMUL, "ConvTranspose", "Gemm", "MatMulNBits"})

# Shapes, pads and slices are a few numbers an axis; anything larger is data, and folding it would only cost time.
_SHAPE_ARITHMETIC = 64
# The domain ONNX's reference implementation knows, under both its names.
_ONNX = frozenset({"", "ai.onnx"})

Shape = tuple[int, ...]


def file_cost(path: str | Path) -> tuple[int | None, int | None]:
    """Parameters and multiply-accumulates of an ONNX or a TFLite file; see `onnx_cost`.

    None for both of an ExecuTorch program, whose layers are compiled for XNNPACK.
    """
    if Path(path).suffix == ".pte":
        return None, None
    if Path(path).suffix == ".tflite":
        from smidgen.measure.tflite_cost import tflite_cost  # LiteRT's schema is optional

        return tflite_cost(path)
    return onnx_cost(path)


def onnx_cost(path: str | Path) -> tuple[int, int | None]:
    """Parameters and multiply-accumulates of the ONNX file at ``path`` for one sample.

    Parameters are the elements of stored floating-point tensors and of the integer tensors that hold quantized
    weights, and weights gathered from a codebook; codebooks, scales, zero points, shape constants and lone numbers of
    Constant nodes are none. MACs come from shape inference on a copy whose batch is 1, and are None where a shape
    cannot be known before running. LoadError when the file cannot be read.

    >>> import tempfile, onnx.helper as h
    >>> weight = h.make_tensor("w", onnx.TensorProto.FLOAT, [8, 3, 3, 3], [0.0] * 216)
    >>> x = h.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 12, 12])
    >>> y = h.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8, 10, 10])
    >>> graph = h.make_graph([h.make_node("Conv", ["x", "w"], ["y"])], "one", [x], [y], [weight])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     onnx.save(h.make_model(graph), folder + "/one.onnx")
    ...     onnx_cost(folder + "/one.onnx")
    (216, 21600)
    """
    model = read_onnx(path)
    shapes, constant = _shapes(model), _constant(model.graph)
    return _params(model.graph, shapes, constant), _macs(model, shapes, constant)


def _constant(graph: onnx.GraphProto) -> set[str]:
    """Names of the values that depend on no input."""
    known = set(_stored(graph))
    for node in graph.node:
        if node.op_type == "Constant" or (node.input and all(name in known or not name for name in node.input)):
            known.update(node.output)
    return known


def _params(graph: onnx.GraphProto, shapes: dict[str, Shape], constant: set[str]) -> int:
    """Elements of stored weights, each stored tensor once."""
    stored, scales = _stored(graph), _named(graph, _SCALES)
    integers = _named(graph, _INTEGER_WEIGHTS)
    total = 0
    for node in (node for node in graph.node if node.output[0] in constant):
        if node.op_type == "Gather" and node.input[0] in stored and node.input[1] not in stored:
            book = stored[node.input[0]]
            if book.data_type in _FLOATS and len(book.dims) == 1 and node.output[0] in shapes:
                total += math.prod(shapes[node.output[0]])
                scales.add(node.input[0])
        elif node.op_type == "MatMulInteger":
            scales.update(node.input)
    for name, tensor in stored.items():
        weighs = tensor.data_type in _FLOATS or name in integers
        if weighs and name not in scales:
            total += math.prod(tensor.dims)
    packed = (node for node in graph.node if node.op_type == "MatMulNBits")
    return total + sum(_attribute(node, "K", 0) * _attribute(node, "N", 0) for node in packed)


def _stored(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers, and the Constant nodes that hold more than a lone number."""
    stored = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for given in node.attribute:
                if given.name == "value" and given.t.dims:
                    stored[node.output[0]] = given.t
    return stored


def _named(graph: onnx.GraphProto, places: dict[str, tuple[int, ...]]) -> set[str]:
    """Names of the tensors at the given input places of the given operators."""
    return {
        node.input[place]
        for node in graph.node
        for place in places.get(node.op_type, ())
        if place < len(node.input) and node.input[place]
    }


def _macs(model: onnx.ModelProto, shapes: dict[str, Shape], constant: set[str]) -> int | None:
    """Sum over the nodes, or None where one cannot be counted."""
    if any(given.type == onnx.AttributeProto.GRAPH for node in model.graph.node for given in node.attribute):
        # What a loop or a branch costs depends on the data.
        return None
    total = 0
    for node in model.graph.node:
        if node.op_type in COUNTED and node.output[0] not in constant:
            macs = node_macs(node, shapes)
            if macs is None:
                return None
            total += macs
    return total


def node_macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """Multiply-accumulates of a node that multiplies, None where a shape is missing."""
    kind = node.op_type
    given = [shapes.get(name) for name in node.input]
    out = shapes.get(node.output[0])
    if kind == "ConvTranspose":
        factors = (given[0], given[1])
    elif kind in _CONV:
        factors = (out, given[_CONV[kind][1]])
    else:
        inner = _inner_length(node, given)
        return None if out is None or inner is None else math.prod(out) * inner
    positions, weight = factors
    return None if positions is None or weight is None else math.prod(positions) * math.prod(weight[1:])


def _inner_length(node: onnx.NodeProto, given: list[Shape | None]) -> int | None:
    """Length of the axis a matrix product sums over."""
    if node.op_type == "MatMulNBits":
        return _attribute(node, "K", 0)
    left = given[_MATMUL[node.op_type][0] if node.op_type in _MATMUL else 0]
    if not left:
        return None
    return left[0] if node.op_type == "Gemm" and _attribute(node, "transA", 0) else left[-1]


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Every tensor's shape at batch 1, of those that can be known."""
    return {name: shape for name, (shape, _) in tensor_types(model).items()}


def tensor_types(model: onnx.ModelProto) -> dict[str, tuple[Shape, int]]:
    """Every tensor's shape at batch 1 and its ONNX type, of those that can be known.

    >>> import onnx.helper as h
    >>> x, y = (h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "xy")
    >>> tensor_types(h.make_model(h.make_graph([h.make_node("Relu", ["x"], ["y"])], "one", [x], [y])))["y"]
    ((1, 3), 1)
    """
    fixed = _without_weights(model)
    stored = {each.name: (tuple(each.dims), each.data_type) for each in fixed.graph.initializer}
    # Old exports write batch and sizes found for another batch beside the graph: infer them afresh.
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        axes = value.type.tensor_type.shape.dim
        if value.name not in stored and axes:
            axes[0].dim_value = 1
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    _open_up_packed(fixed)
    try:
        _fold_shape_arithmetic(fixed)
        stored = {each.name: (tuple(each.dims), each.data_type) for each in fixed.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    except Exception:  # a damaged graph: its parameters are still worth telling
        return stored
    found = {
        value.name: (
            tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim),
            value.type.tensor_type.elem_type,
        )
        for value in [*inferred.value_info, *inferred.input, *inferred.output]
        if value.type.tensor_type.HasField("shape")
        and all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim)
    }
    return found | stored


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large tensors have shape and type alone, which is all that shape inference asks of them."""
    graph = model.graph
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    copy.graph.name = graph.name
    for part in ("node", "input", "output", "sparse_initializer"):
        getattr(copy.graph, part).extend(getattr(graph, part))
    for tensor in graph.initializer:
        small = math.prod(tensor.dims) <= _SHAPE_ARITHMETIC
        bare = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        copy.graph.initializer.append(tensor if small else bare)
    return copy


def _open_up_packed(model: onnx.ModelProto) -> None:
    """Show shape inference a plain MatMul for each MatMulNBits, whose shapes it does not know."""
    for place, node in enumerate(model.graph.node):
        if node.op_type == "MatMulNBits":
            weight = f"smidgen_packed_{place}"
            shape = [_attribute(node, "K", 0), _attribute(node, "N", 0)]
            model.graph.input.append(onnx.helper.make_tensor_value_info(weight, onnx.TensorProto.FLOAT, shape))
            node.CopyFrom(onnx.helper.make_node("MatMul", [node.input[0], weight], [node.output[0]]))


def _fold_shape_arithmetic(model: onnx.ModelProto) -> None:
    """Replace small computations on constants alone by their result: shape inference follows only the simplest ones."""
    known = {
        name: numpy_helper.to_array(tensor)
        for name, tensor in _stored(model.graph).items()
        if math.prod(tensor.dims) <= _SHAPE_ARITHMETIC
    }
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] not in known:
            known |= _evaluated(model, node, {})
        elif node.domain in _ONNX and node.input and all(name in known or not name for name in node.input):
            found = _evaluated(model, node, known)
            if all(value.size <= _SHAPE_ARITHMETIC for value in found.values()):
                known |= found
    given = {each.name for each in model.graph.initializer}
    left = [node for node in model.graph.node if not all(name in known for name in node.output)]
    del model.graph.node[:]
    model.graph.node.extend(left)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in known.items() if name not in given
    )


def _evaluated(model: onnx.ModelProto, node: onnx.NodeProto, known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What one node gives for known inputs, by ONNX's reference implementation."""
    fed = {name: known[name] for name in node.input if name}
    evaluator = ReferenceEvaluator(node, opsets={each.domain: each.version for each in model.opset_import})
    values = evaluator.run(None, fed)
    return {name: np.asarray(value) for name, value in zip(node.output, values, strict=True) if name}


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of the node."""
    return next((int(given.i) for given in node.attribute if given.name == name), default)
