"""Small networks as bytes, and a simple rounding of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from smidgen.export.archive import Packed
from smidgen.forms import Codebook, Quantized, nearest_exponents

Rounded = tuple[bytes, dict[str, Packed]]


def serialised(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A graph without sense that holds these initializers."""
    nodes = [helper.make_node("Identity", [name], [f"{name}.out"]) for name in arrays]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8).SerializeToString()


def nearest(weight: np.ndarray, largest: int = 4, per_octave: int = 4) -> Quantized:
    """Nearest rounding: a scale a row from its largest weight, a column from its mean size where it is a kernel."""
    rows = np.abs(weight.reshape(len(weight), -1)).astype(np.float64)
    columns = np.zeros(1, np.int32)
    if weight.ndim > 2:
        means = rows.reshape(len(weight), weight.shape[1], -1).mean((0, 2)) + 1e-9
        columns = nearest_exponents(means / means.mean(), per_octave)
    elif weight.ndim == 1:
        step = nearest_exponents(np.array([np.abs(weight).max() / 100]), per_octave)
        integers = np.rint(weight / 2.0 ** (step / per_octave))
        return Quantized(integers.astype(np.int32), np.zeros(len(weight), np.int32), step, per_octave)
    spread = np.repeat(2.0 ** (columns / per_octave), rows.shape[1] // len(columns))
    exponents = nearest_exponents((rows / spread).max(1) / largest, per_octave)
    integers = np.rint(weight.reshape(rows.shape) / spread / (2.0 ** (exponents / per_octave))[:, None])
    return Quantized(integers.astype(np.int32).reshape(weight.shape), exponents, columns, per_octave)


def rounded(model: bytes) -> Rounded:
    """The model with its float weights and biases rounded, and the integers they then are."""
    proto = onnx.ModelProto.FromString(model)
    right = {node.input[1] for node in proto.graph.node if node.op_type == "MatMul"}
    packed = {}
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or not tensor.raw_data or not tensor.dims:
            continue
        weight = numpy_helper.to_array(tensor)
        turned = tensor.name in right and weight.ndim == 2
        packed[tensor.name] = Packed(nearest(weight.T if turned else weight), turned)
        tensor.raw_data = packed[tensor.name].values.tobytes()
    return proto.SerializeToString(), packed


def drawn(source: np.random.Generator, shape: tuple[int, ...], count: int) -> Codebook:
    """Weights that share so many values."""
    values = np.unique(source.normal(size=count).astype("f4"))
    return Codebook(source.integers(0, len(values), shape).astype(np.uint8), values)


@pytest.fixture(scope="session")
def as_model() -> Callable[[Mapping[str, np.ndarray]], bytes]:
    return serialised


@pytest.fixture(scope="session")
def round_all() -> Callable[[bytes], Rounded]:
    return rounded


@pytest.fixture(scope="session")
def round_one() -> Callable[..., Quantized]:
    return nearest


@pytest.fixture(scope="session")
def small() -> Rounded:
    """One of everything: weights of three kinds, two shared, biases, floats of three dtypes, what stays."""
    source = np.random.default_rng(0)
    quantized = {
        "conv.weight": source.normal(size=(6, 3, 3, 3)),
        "conv.bias": source.normal(size=6),
        "fc.weight": source.normal(size=(5, 12)),
        "fc.bias": source.normal(size=5),
    }
    model, packed = rounded(serialised({name: array.astype("f4") for name, array in quantized.items()}))
    proto = onnx.ModelProto.FromString(model)
    others = {
        "half": source.normal(size=(4, 4)).astype("f2"),
        "single": source.normal(size=20).astype("f4"),
        "double": source.normal(size=7),
        "shape": np.array([1, -1]),
        "one": np.array(6.0, np.float32),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in others.items())
    proto.graph.node.append(helper.make_node("MatMul", ["half", "mul.weight"], ["product"]))
    turned = Packed(nearest(source.normal(size=(7, 4)).astype("f4")), transposed=True)
    proto.graph.initializer.append(numpy_helper.from_array(turned.values, "mul.weight"))
    shared = {
        "shared.weight": Packed(drawn(source, (4, 3, 2, 2), 5)),
        "turned.weight": Packed(drawn(source, (5, 6), 30), transposed=True),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(each.values, name) for name, each in shared.items())
    return proto.SerializeToString(), {**packed, "mul.weight": turned, **shared}
