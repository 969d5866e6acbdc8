"""Operators whose ways ONNX's own node tests (test_onnx_backend.py) do not cover, against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from smidgen.model.onnx import supported_operators
from tests.model.against_onnxruntime import assert_agrees
from tests.model.onnx_graphs import model_of, random, stored, value


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(opset):
    scales = [1.0, 1.0, 2.0, 3.0]
    if opset == 7:
        node, initializers = helper.make_node("Upsample", ["x"], ["y"], scales=scales), []
    else:
        node = helper.make_node("Upsample", ["x", "s"], ["y"])
        initializers = [stored("s", np.array(scales, np.float32))]
    assert_agrees(
        model_of([node], [value("x", ["N", 2, 3, 3])], [value("y", None)], initializers, opset), random(1, 2, 3, 3)
    )


@pytest.mark.parametrize(
    ("op", "attributes", "opset"),
    [
        ("Softmax", {}, 11),
        ("LogSoftmax", {"axis": 2}, 9),
        ("Clip", {"min": -0.5, "max": 0.5}, 9),
        ("Squeeze", {"axes": [1]}, 11),
        ("Unsqueeze", {"axes": [0, 4]}, 11),
        ("ReduceSum", {"axes": [1, -1], "keepdims": 0}, 11),
        ("ReduceMean", {"axes": [2]}, 13),
        ("Slice", {"starts": [1], "ends": [99], "axes": [2]}, 9),
        ("Split", {"split": [1, 4], "axis": 2}, 11),
        ("Pad", {"pads": [0, 0, 1, 0, 0, 2], "mode": "reflect"}, 9),
        ("Pad", {"pads": [0, 0, 1, 0, 0, 2], "value": 3.0}, 9),
        ("Dropout", {}, 9),
        ("Flatten", {"axis": 2}, 9),
    ],
)
def test_attributes_that_later_became_operands(op, attributes, opset):
    outputs = ["y", "z"] if op == "Split" else ["y"]
    node = helper.make_node(op, ["x"], outputs, **attributes)
    model = model_of([node], [value("x", ["N", 1, 5])], [value(name, None) for name in outputs], opset=opset)
    assert_agrees(model, random(3, 1, 5))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_gru(direction):
    count = 2 if direction == "bidirectional" else 1
    initializers = [stored("w", random(count, 9, 4)), stored("r", random(count, 9, 3)), stored("b", random(count, 18))]
    node = helper.make_node(
        "GRU", ["x", "w", "r", "b"], ["y", "h"], direction=direction, hidden_size=3, linear_before_reset=1
    )
    model = model_of([node], [value("x", [5, "N", 4])], [value("y", None), value("h", None)], initializers)
    assert_agrees(model, random(5, 2, 4))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_lp_pool(p):
    node = helper.make_node("GlobalLpPool", ["x"], ["y"], p=p)
    assert_agrees(model_of([node], [value("x", ["N", 2, 3, 3])], [value("y", None)]), random(2, 2, 3, 3))


@pytest.mark.parametrize(("start", "end", "step"), [(-1, -99, -1), (3, 0, -2), (1, 1, -1), (-2, -5, -3), (4, 1, -3)])
def test_slices_backwards(start, end, step):
    node = helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"])
    entries = {"s": start, "e": end, "a": 1, "t": step}
    initializers = [stored(name, np.array([entry])) for name, entry in entries.items()]
    assert_agrees(model_of([node], [value("x", ["N", 5])], [value("y", None)], initializers), random(2, 5))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("factor", [2.0, 0.5, 1.5])
def test_resizing(mode, coordinates, factor):
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], **attributes)
    scales = stored("scales", np.array([1, 1, factor, factor], np.float32))
    model = model_of([node], [value("x", ["N", 2, 6, 8])], [value("y", None)], [scales])
    assert_agrees(model, random(2, 2, 6, 8))


def test_supported_operators_name_their_opsets():
    supported = supported_operators()
    assert len(supported) >= 110
    assert supported["Conv"][0] <= 9
    assert supported["Upsample"] == (7, 9)
    assert supported["Conv"][1] >= 21
