"""Four small models that hold, between them, the kinds of nodes exporters write: what the fuzz damages."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.model.onnx_graphs import model_of, random, stored, value


def convolutional():
    """Convolutions, pools, batch normalization, a residual and a classifier."""
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], strides=[1, 1], kernel_shape=[3, 3], group=1),
        make("BatchNormalization", ["c1", "s", "b1", "m", "v"], ["n1"], epsilon=1e-5),
        make("Relu", ["n1"], ["r1"]),
        make("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=0),
        make("Conv", ["p1", "w2"], ["c2"], auto_pad="SAME_UPPER", dilations=[1, 1], group=2),
        make("Add", ["c2", "p1"], ["a"]),
        make("AveragePool", ["a"], ["q"], kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[2, 2]),
        make("Flatten", ["q"], ["f"], axis=1),
        make("Gemm", ["f", "w3", "b3"], ["y"], alpha=1.0, beta=1.0, transB=1),
    ]
    initializers = [
        stored("w1", random(4, 3, 3, 3, seed=1)),
        stored("b1", random(4, seed=2)),
        stored("s", np.ones(4, np.float32)),
        stored("m", random(4, seed=3)),
        stored("v", np.ones(4, np.float32)),
        stored("w2", random(4, 2, 3, 3, seed=4)),
        stored("w3", random(5, 16, seed=5)),
        stored("b3", random(5, seed=6)),
    ]
    return model_of(nodes, [value("x", ["N", 3, 8, 8])], [value("y", ["N", 5])], initializers)


def attentive():
    """Matrix products, softmax, and a shape that is computed."""
    make = helper.make_node
    nodes = [
        make("MatMul", ["x", "w"], ["h"]),
        make("Add", ["h", "b"], ["hb"]),
        make("Shape", ["x"], ["s"]),
        make("Gather", ["s", "zero"], ["n"], axis=0),
        make("Concat", ["n", "rest"], ["t"], axis=0),
        make("Reshape", ["hb", "t"], ["heads"]),
        make("Transpose", ["heads"], ["k"], perm=[0, 2, 3, 1]),
        make("Transpose", ["heads"], ["q"], perm=[0, 2, 1, 3]),
        make("MatMul", ["q", "k"], ["qk"]),
        make("Softmax", ["qk"], ["p"], axis=-1),
        make("ReduceMean", ["p"], ["r"], axes=[3], keepdims=0),
        make("Clip", ["r", "low"], ["y"]),
    ]
    initializers = [
        stored("w", random(6, 8, seed=1)),
        stored("b", random(8, seed=2)),
        stored("zero", np.array([0])),
        stored("rest", np.array([-1, 2, 4])),
        stored("low", np.float32(0.1)),
    ]
    return model_of(nodes, [value("x", ["N", 5, 6])], [value("y", None)], initializers)


def reshaping():
    """Padding, slices, resizing, splits, concatenation, a transposed convolution, a fixed batch."""
    make = helper.make_node
    nodes = [
        make("Pad", ["x", "pads"], ["p"], mode="reflect"),
        make("Slice", ["p", "from", "to", "axes", "steps"], ["s"]),
        make("Resize", ["s", "", "scales"], ["u"], mode="linear", coordinate_transformation_mode="half_pixel"),
        make("ConvTranspose", ["u", "w"], ["t"], strides=[2, 2], pads=[0, 0, 1, 1], output_padding=[1, 1]),
        make("Split", ["t"], ["t1", "t2"], axis=1),
        make("Tile", ["t1", "repeats"], ["tt"]),
        make("Concat", ["tt", "t2"], ["c"], axis=1),
        make("Unsqueeze", ["c", "axes1"], ["c1"]),
        make("Squeeze", ["c1", "axes1"], ["c2"]),
        make("Reshape", ["c2", "shape"], ["y"]),
    ]
    initializers = [
        stored("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1])),
        stored("from", np.array([0, 5])),
        stored("to", np.array([1 << 62, -(1 << 62)])),
        stored("axes", np.array([2, 3])),
        stored("steps", np.array([2, -1])),
        stored("scales", np.array([1, 1, 2, 2], np.float32)),
        stored("w", random(2, 2, 3, 3, seed=1)),
        stored("repeats", np.array([1, 2, 1, 1])),
        stored("axes1", np.array([1])),
        stored("shape", np.array([1, -1])),
    ]
    return model_of(nodes, [value("x", [1, 2, 4, 4])], [value("y", None)], initializers)


def sequential():
    """A recurrent layer, layer normalization, quantized weights, indexing."""
    make = helper.make_node
    nodes = [
        make("LSTM", ["x", "lw", "lr", "lb"], ["seq", "last"], hidden_size=3, direction="forward"),
        make("Squeeze", ["seq", "one"], ["flat"]),
        make("LayerNormalization", ["flat", "s", "b"], ["n"], axis=-1, epsilon=1e-5),
        make("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=1),
        make("MatMul", ["n", "w"], ["m"]),
        make("TopK", ["m", "k"], ["top", "place"], axis=-1, largest=1),
        make("Gather", ["m", "places"], ["g"], axis=2),
        make("Where", ["cond", "top", "g"], ["c"]),
        make("CumSum", ["c", "last_axis"], ["cs"], exclusive=0, reverse=1),
        make("Einsum", ["cs", "top"], ["y"], equation="tbi,tbj->bij"),
    ]
    initializers = [
        stored("lw", random(1, 12, 4, seed=1)),
        stored("lr", random(1, 12, 3, seed=2)),
        stored("lb", random(1, 24, seed=3)),
        stored("one", np.array([1])),
        stored("s", np.ones(3, np.float32)),
        stored("b", random(3, seed=4)),
        stored("q", np.arange(-9, 9, dtype=np.int8).reshape(3, 6)),
        stored("scale", np.full(6, 0.1, np.float32)),
        stored("zero", np.zeros(6, np.int8)),
        stored("k", np.array([2])),
        stored("places", np.array([0, -1])),
        stored("cond", np.array([True, False])),
        stored("last_axis", np.array(2)),
    ]
    return model_of(nodes, [value("x", [5, "N", 4])], [value("y", None)], initializers)


MODELS = (convolutional, attentive, reshaping, sequential)
OPS = sorted({node.op_type for make in MODELS for node in make().graph.node} | {"Expand", "Where", "Loop", "Bogus"})
