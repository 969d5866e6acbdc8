"""Peak activations of graphs whose peak can be counted by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from smidgen.errors import LoadError
from smidgen.measure.activations import peak_activation_bytes, peak_activations

FLOAT = onnx.TensorProto.FLOAT


def written(folder, nodes, shape=("n", 4, 8, 8), out=("n", 4, 8, 8), weights=()):
    graph = helper.make_graph(
        nodes, "hand", [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, out)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )  # fmt: skip
    path = folder / "hand.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


MAP = 4 * 8 * 8 * 4  # bytes of the input


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def test_a_chain_holds_one_input_and_one_output_at_a_time(tmp_path):
    kernel = ("w", np.zeros((16, 4, 3, 3), np.float32))
    nodes = [node("Conv", "x w", "a", pads=[1] * 4), node("MaxPool", "a", "y", kernel_shape=[2, 2], strides=[2, 2])]
    path = written(tmp_path, nodes, out=("n", 16, 4, 4), weights=[kernel])
    # conv: 4 maps in, 16 out; pool: 16 maps in, 16 of a quarter out: 20 at once, and not the weights
    assert peak_activation_bytes(path) == 5 * MAP


def test_an_activation_writes_over_its_operand(tmp_path):
    nodes = [node("Softmax", "x", "a"), node("Relu", "a", "b"), node("Softmax", "b", "y")]
    assert peak_activation_bytes(written(tmp_path, nodes)) == 2 * MAP


def test_but_not_over_the_callers_input(tmp_path):
    assert peak_activation_bytes(written(tmp_path, [node("Relu", "x", "y")])) == 2 * MAP


def test_nor_over_what_is_read_again(tmp_path):
    nodes = [
        node("Softmax", "x", "a"), node("Relu", "a", "b"), node("Softmax", "b", "c"), node("Add", "a c", "y"),
    ]  # fmt: skip
    # while c is made from b, the shortcut a waits: three maps
    assert peak_activation_bytes(written(tmp_path, nodes)) == 3 * MAP


def test_a_look_in_another_shape_takes_nothing(tmp_path):
    nodes = [node("Flatten", "x", "a"), node("Relu", "a", "y")]
    assert peak_activation_bytes(written(tmp_path, nodes, out=("n", 256))) == 2 * MAP
    only = [node("Flatten", "x", "y")]
    assert peak_activation_bytes(written(tmp_path, only, out=("n", 256))) == MAP


def test_a_smaller_operand_cannot_hold_the_sum(tmp_path):
    nodes = [
        node("GlobalAveragePool", "x", "a"), node("Sigmoid", "a", "b"), node("Softmax", "x", "c"),
        node("Mul", "b c", "y"),
    ]  # fmt: skip
    # the gate b (16 bytes) waits while x becomes c; the product is written over c, not over b
    assert peak_activation_bytes(written(tmp_path, nodes)) == 2 * MAP + 16


def test_the_size_of_what_is_held(tmp_path):
    nodes = [node("Cast", "x", "a", to=onnx.TensorProto.UINT8), node("Cast", "a", "y", to=FLOAT)]
    assert peak_activation_bytes(written(tmp_path, nodes)) == MAP + MAP // 4


def test_an_unknown_size_is_told_as_unknown(tmp_path):
    path = written(tmp_path, [node("Relu", "x", "y")], shape=("n", 4, "height", "width"), out=("n", 4, None, None))
    assert peak_activation_bytes(path) is None


def test_what_is_no_onnx_file(tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"no")
    with pytest.raises(LoadError, match="not an ONNX file"):
        peak_activation_bytes(tmp_path / "no.onnx")


def test_integer_weights_are_no_activations(tmp_path):
    weights = [("q", np.zeros((256, 256), np.int8)), ("s", np.float32(0.1)), ("z", np.int8(0))]
    nodes = [
        node("Flatten", "x", "a"), node("DequantizeLinear", "q s z", "w"), node("MatMul", "a w", "b"),
        node("Relu", "b", "y"),
    ]  # fmt: skip
    assert peak_activation_bytes(written(tmp_path, nodes, out=("n", 256), weights=weights)) == 2 * MAP


def test_activations_of_integers_count_as_integers(tmp_path):
    weights = [("k", np.zeros((8, 4, 1, 1), np.float32)), ("s", np.float32(0.1)), ("z", np.uint8(0))]
    nodes = [
        node("QuantizeLinear", "x s z", "x8"), node("DequantizeLinear", "x8 s z", "x_"),
        node("Conv", "x_ k", "a"), node("Relu", "a", "b"), node("QuantizeLinear", "b s z", "b8"),
        node("DequantizeLinear", "b8 s z", "b_"),
        node("MaxPool", "b_", "c", kernel_shape=[2, 2], strides=[2, 2]), node("QuantizeLinear", "c s z", "c8"),
        node("DequantizeLinear", "c8 s z", "y"),
    ]  # fmt: skip
    path = written(tmp_path, nodes, out=("n", 8, 4, 4), weights=weights)
    peak = peak_activations(path)
    # the float input beside its integers at first; later two integer maps, then the float result (half a map) alone
    assert peak.nbytes == MAP + MAP // 4
    assert peak.node == "QuantizeLinear 'x8'"
    assert peak.tensors == (("x", MAP), ("x8", MAP // 4))


def test_the_peak_names_its_tensors(tmp_path):
    kernel = ("w", np.zeros((16, 4, 3, 3), np.float32))
    nodes = [node("Conv", "x w", "a", pads=[1] * 4), node("MaxPool", "a", "y", kernel_shape=[2, 2], strides=[2, 2])]
    peak = peak_activations(written(tmp_path, nodes, out=("n", 16, 4, 4), weights=[kernel]))
    assert (peak.node, peak.tensors) == ("Conv 'a'", (("a", 4 * MAP), ("x", MAP)))
