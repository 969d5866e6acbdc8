"""The ONNX importer on graphs as exporters write them: what becomes a layer, what is folded, which axes are dynamic."""

from __future__ import annotations

import io

import numpy as np
import torch
from onnx import helper
from torch import nn

from smidgen.model.onnx import import_model
from tests.model.against_onnxruntime import assert_agrees, exported
from tests.model.onnx_graphs import model_of, random, stored, value


def test_same_padding_is_a_step_before_the_layer():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])]
    model = model_of(nodes, [value("x", ["N", 3, 8, 8])], [value("y", None)], [stored("w", random(4, 3, 3, 3))])
    loaded = assert_agrees(model, random(2, 3, 8, 8))
    assert isinstance(loaded.module.conv, nn.Conv2d)
    assert loaded.module.conv.padding == (0, 0)


def test_matmul_and_bias_are_one_linear_layer():
    nodes = [helper.make_node("MatMul", ["x", "fc.weight"], ["h"]), helper.make_node("Add", ["b", "h"], ["y"])]
    initializers = [stored("fc.weight", random(6, 4)), stored("b", random(4))]
    loaded = assert_agrees(model_of(nodes, [value("x", ["N", 6])], [value("y", None)], initializers), random(3, 6))
    assert loaded.module.fc.bias is not None
    assert [node.op for node in loaded.module.graph.nodes] == ["placeholder", "call_module", "output"]


def test_bias_is_not_absorbed_where_the_product_is_used_twice():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["a"]),
        helper.make_node("Mul", ["a", "h"], ["y"]),
    ]
    initializers = [stored("w", random(6, 4)), stored("b", random(4))]
    assert_agrees(model_of(nodes, [value("x", ["N", 6])], [value("y", None)], initializers), random(3, 6))


def test_weights_used_twice_are_one_parameter():
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Gemm", ["h", "w", "b"], ["k"], transB=1),
        helper.make_node("Gemm", ["k", "w", "c"], ["y"], transB=1),
    ]
    initializers = [stored("w", random(4, 4)), stored("b", random(4)), stored("c", random(4, seed=1))]
    model = model_of(nodes, [value("x", ["N", 4])], [value("y", None)], initializers)
    loaded = assert_agrees(model, random(2, 4))
    assert len(list(loaded.module.parameters())) == 3


def test_computed_shapes_follow_the_batch():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zero"], ["n1"]),
        helper.make_node("Concat", ["n1", "two", "minus"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["r"]),
        helper.make_node("Mul", ["n", "three"], ["n3"]),
        helper.make_node("Range", ["z", "n3", "one"], ["steps"]),
        helper.make_node("Cast", ["steps"], ["f"], to=1),
        helper.make_node("ReduceMax", ["f"], ["top"], keepdims=0),
        helper.make_node("ConstantOfShape", ["t2"], ["ones"], value=stored("v", np.array([2.0], np.float32))),
        helper.make_node("Concat", ["n1", "two"], ["t2"], axis=0),
    ]
    nodes = [*nodes[:9], nodes[10], nodes[9]]
    nodes += [
        helper.make_node("Add", ["r", "top"], ["a"]),
        helper.make_node("ReduceSum", ["a", "last"], ["m"], keepdims=0),
        helper.make_node("Mul", ["m", "ones"], ["y"]),
    ]
    initializers = [
        stored("zero", np.array([0])),
        stored("two", np.array([2])),
        stored("minus", np.array([-1])),
        stored("three", np.array([3])),
        stored("z", np.array(0)),
        stored("one", np.array(1)),
        stored("last", np.array([2])),
    ]
    nodes[1] = helper.make_node("Gather", ["s", "z"], ["n"])
    nodes[5] = helper.make_node("Mul", ["n", "onethree"], ["n3"])
    initializers.append(stored("onethree", np.array(3)))
    model = model_of(nodes, [value("x", ["N", 4, 3])], [value("y", None)], initializers)
    for batch in (1, 2, 5):
        loaded = assert_agrees(model, random(batch, 4, 3))
    x = torch.from_numpy(random(3, 4, 3))
    assert torch.equal(exported(loaded, x).module()(x), loaded.module(x))


def test_height_and_width_may_be_dynamic():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "two", "four"], ["hw"]),
        helper.make_node("Shape", ["c"], ["sc"]),
        helper.make_node("Slice", ["sc", "zero", "two"], ["nc"]),
        helper.make_node("Concat", ["nc", "hw"], ["t"], axis=0),
        helper.make_node("Resize", ["c", "", "", "t"], ["y"], mode="linear"),
    ]
    initializers = [stored("w", random(2, 3, 3, 3))]
    initializers += [stored(name, np.array([n])) for name, n in (("zero", 0), ("two", 2), ("four", 4))]
    model = model_of(nodes, [value("x", ["N", 3, "H", "W"])], [value("y", None)], initializers)
    assert_agrees(model, random(2, 3, 12, 20))
    assert import_model(model).inputs[0].shape == (None, 3, None, None)


def test_a_fixed_batch_becomes_dynamic_where_every_step_follows():
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    model = model_of(nodes, [value("x", [1, 2, 6])], [value("y", None)], [stored("shape", np.array([1, 3, -1]))])
    loaded = import_model(model)
    assert loaded.inputs[0].shape == (None, 2, 6)
    x = torch.from_numpy(random(5, 2, 6))
    assert torch.equal(loaded.module(x), x.reshape(5, 3, 4))


def test_a_fixed_batch_stays_where_a_step_does_not_follow():
    nodes = [helper.make_node("Squeeze", ["x", "axis"], ["y"])]
    model = model_of(nodes, [value("x", [1, 2, 6])], [value("y", None)], [stored("axis", np.array([0]))])
    assert import_model(model).inputs[0].shape == (1, 2, 6)
    assert_agrees(model, random(1, 2, 6))


def test_several_inputs_and_outputs_keep_their_order_and_names():
    nodes = [helper.make_node("Sub", ["in/a", "class"], ["d"]), helper.make_node("Neg", ["d"], ["e"])]
    model = model_of(nodes, [value("in/a", ["N", 2]), value("class", ["N", 2])], [value("e", None), value("d", None)])
    loaded = assert_agrees(model, random(2, 2), random(2, 2, seed=1))
    assert loaded.output_names == ("e", "d")
    assert loaded.module(in_a=torch.ones(1, 2), class_=torch.zeros(1, 2))[1].tolist() == [[1, 1]]


def test_known_expressions_are_folded_and_identities_removed():
    nodes = [
        helper.make_node("Constant", [], ["c"], value=stored("v", random(2))),
        helper.make_node("Exp", ["c"], ["e"]),
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Dropout", ["i"], ["d"]),
        helper.make_node("Mul", ["d", "e"], ["y"]),
    ]
    loaded = assert_agrees(model_of(nodes, [value("x", ["N", 2])], [value("y", None)]), random(3, 2))
    assert [node.op for node in loaded.module.graph.nodes] == ["placeholder", "get_attr", "call_function", "output"]
    assert len(dict(loaded.module.named_buffers())) == 1


def test_masks_may_hold_minus_infinity():
    nodes = [helper.make_node("Add", ["x", "mask"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])]
    mask = stored("mask", np.array([[0, -np.inf], [0, 0]], np.float32))
    assert_agrees(model_of(nodes, [value("x", ["N", 2, 2])], [value("y", None)], [mask]), random(3, 2, 2))


def test_chains_of_large_constants_are_not_folded_without_end():
    nodes = [helper.make_node("Expand", ["one", "shape"], ["c0"])]
    nodes += [helper.make_node("Tanh", [f"c{i}"], [f"c{i + 1}"]) for i in range(400)]
    nodes += [helper.make_node("ReduceSum", ["c400"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["y"])]
    initializers = [stored("one", np.float32(0)), stored("shape", np.array([1 << 24]))]
    loaded = import_model(model_of(nodes, [value("x", ["N"])], [value("y", None)], initializers))
    content = io.BytesIO()
    torch.save(loaded.module.state_dict(), content)
    assert content.tell() < 1 << 27
