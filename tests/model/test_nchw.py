"""Cleaning a channels-last graph: each mend keeps the answers, and leaves alone what it cannot prove."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from smidgen.model.nchw import TO_NCHW, TO_NHWC, scalars_as_vectors, to_nchw

RANDOM = np.random.default_rng(0)


def build(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    outputs: dict[str, list[int | str]],
    x: tuple[int | str, ...] = ("n", 3, 4, 5),
) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    start = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x))]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", start, ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype("f4")


def answers(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, {"x": x})]


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def turn(source: str, target: str, perm: tuple[int, ...] = TO_NHWC) -> onnx.NodeProto:
    return node("Transpose", source, target, perm=perm)


@pytest.mark.parametrize("gemm", [False, True])
def test_flatten_before_a_dense_layer_needs_no_transpose(gemm: bool) -> None:
    dense = node("Gemm", "f w", "y", transB=1) if gemm else node("MatMul", "f w", "y")
    constants = {"w": normal(7, 60) if gemm else normal(60, 7), "s": np.array([-1, 60])}
    model = build([turn("x", "h"), node("Reshape", "h s", "f"), dense], constants, {"y": ["n", 7]})
    clean, x = to_nchw(model), normal(2, 3, 4, 5)
    assert kinds(clean) == Counter({"Flatten": 1, dense.op_type: 1})
    np.testing.assert_allclose(answers(clean, x)[0], answers(model, x)[0], rtol=1e-5, atol=1e-5)


def test_two_dense_layers_may_share_their_weight_with_a_third() -> None:
    nodes = [
        turn("x", "h"),
        node("Reshape", "h s", "f"),
        node("MatMul", "f w", "a"),
        node("MatMul", "f w", "b"),
        node("Flatten", "x", "g"),
        node("MatMul", "g w", "c"),
    ]
    constants = {"w": normal(60, 2), "s": np.array([-1, 60])}
    model = build(nodes, constants, {each: ["n", 2] for each in "abc"})
    clean, x = to_nchw(model), normal(2, 3, 4, 5)
    assert "Transpose" not in kinds(clean)
    for found, expected in zip(answers(clean, x), answers(model, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "after",
    [
        [node("Relu", "f", "y")],  # no Dense layer to take the order
        [node("MatMul", "v f", "y")],  # the features are not the left operand
    ],
)
def test_flatten_before_anything_else_keeps_its_transpose(after: list[onnx.NodeProto]) -> None:
    constants = {"v": normal(60, 60), "s": np.array([-1, 60])}
    model = build([turn("x", "h"), node("Reshape", "h s", "f"), *after], constants, {"y": ["n", 60]})
    clean, x = to_nchw(model), normal(60, 3, 4, 5)
    assert kinds(clean)["Transpose"] == 1
    np.testing.assert_allclose(answers(clean, x)[0], answers(model, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4, 1, 1), (), (1,)])
@pytest.mark.parametrize("bias", [False, True])
def test_constants_after_a_convolution_fold_into_it(shape: tuple[int, ...], bias: bool) -> None:
    constants = {"w": normal(4, 3, 3, 3), "b": normal(4), "m": normal(*shape), "a": normal(*shape)}
    nodes = [node("Conv", "x w b" if bias else "x w", "h"), node("Mul", "m h", "i"), node("Add", "i a", "y")]
    model = build(nodes, constants, {"y": ["n", 4, 2, 3]})
    clean, x = to_nchw(model, channels_last=False), normal(2, 3, 4, 5)
    assert kinds(clean) == Counter({"Conv": 1})
    assert len(clean.graph.initializer) == 2
    np.testing.assert_allclose(answers(clean, x)[0], answers(model, x)[0], rtol=1e-4, atol=1e-5)


def test_constants_along_another_axis_stay() -> None:
    constants = {"w": normal(4, 3, 3, 3), "m": normal(1, 1, 1, 3)}
    model = build([node("Conv", "x w", "h"), node("Mul", "h m", "y")], constants, {"y": ["n", 4, 2, 3]})
    assert kinds(to_nchw(model, channels_last=False)) == kinds(model)


def test_a_convolution_read_twice_is_not_scaled() -> None:
    constants = {"w": normal(4, 3, 3, 3), "m": normal(1, 4, 1, 1)}
    nodes = [node("Conv", "x w", "h"), node("Mul", "h m", "i"), node("Add", "h i", "y")]
    model = build(nodes, constants, {"y": ["n", 4, 2, 3]})
    clean, x = to_nchw(model, channels_last=False), normal(2, 3, 4, 5)
    np.testing.assert_allclose(answers(clean, x)[0], answers(model, x)[0], rtol=1e-5)


def test_four_axis_outputs_become_nchw() -> None:
    nodes = [
        node("Relu", "x", "h"),
        turn("h", "y"),  # a turned output that is read again inside
        node("Neg", "y", "z"),  # an NHWC output without a Transpose of its own
        node("GlobalAveragePool", "h", "p"),
        node("Flatten", "p", "q"),
    ]
    model = build(nodes, {}, {"y": ["n", 4, 5, 3], "z": ["n", 4, 5, 3], "q": ["n", 3]})
    clean, x = to_nchw(model), normal(2, 3, 4, 5)
    before, after = answers(model, x), answers(clean, x)
    np.testing.assert_array_equal(after[0], before[0].transpose(TO_NCHW))
    np.testing.assert_array_equal(after[1], before[1].transpose(TO_NCHW))
    np.testing.assert_array_equal(after[2], before[2])
    sizes = [[axis.dim_value for axis in each.type.tensor_type.shape.dim[1:]] for each in clean.graph.output]
    assert sizes == [[3, 4, 5], [3, 4, 5], [3]]
    assert kinds(to_nchw(model, channels_last=False)) == kinds(model)


def test_what_nothing_needs_is_gone_and_the_source_is_unchanged() -> None:
    model = build([node("Relu", "x", "y"), node("Neg", "x", "spare")], {"u": normal(2)}, {"y": ["n", 3, 4, 5]})
    model.graph.input.append(helper.make_tensor_value_info("u", TensorProto.FLOAT, [2]))
    model.graph.input.append(helper.make_tensor_value_info("captured", TensorProto.FLOAT, []))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    before = model.SerializeToString(deterministic=True)
    clean = to_nchw(model, channels_last=False)
    assert model.SerializeToString(deterministic=True) == before
    assert [each.name for each in clean.graph.input] == ["x"]
    assert kinds(clean) == Counter({"Relu": 1})
    assert not clean.graph.initializer
    assert [each.domain for each in clean.opset_import] == [""]
    assert clean.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_scalars_get_an_axis_where_only_arithmetic_reads_them() -> None:
    constants = {"a": np.array(2.0, "f4"), "low": np.array(0.0, "f4")}
    model = build([node("Add", "x a", "h"), node("Clip", "h low", "y")], constants, {"y": ["n", 3, 4, 5]})
    changed, x = scalars_as_vectors(model), normal(2, 3, 4, 5)
    assert {each.name: list(each.dims) for each in changed.graph.initializer} == {"a": [1], "low": []}
    np.testing.assert_array_equal(answers(changed, x)[0], answers(model, x)[0])
