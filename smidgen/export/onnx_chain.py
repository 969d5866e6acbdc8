"""A chain of plain layers as a file of its own, of the very nodes that `smidgen.export.onnx` writes for it.

For timing: what a layer costs depends on its shapes, so the weights are noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from smidgen.export.onnx import layer_nodes
from smidgen.export.onnx_fastconv import Shared, fast_nodes
from smidgen.forms import Geometry, Stage
from smidgen.forms.fastconv import fast_plan

OPSET, IR_VERSION = 17, 8  # any that has these nodes; ONNX Runtime reads them since 1.12
_NOISE = np.random.default_rng(0).normal(size=4099).astype(np.float32)  # a prime length, so that rows differ


def chain_file(chain: Sequence[Stage]) -> bytes:
    """An ONNX file that runs a chain on one sample, float32, with a bias at its end.

    Args:
        chain: from `smidgen.forms.stages`; only its shapes and algorithms are read.

    >>> from smidgen.forms import Dense, Geometry, hollow, stages
    >>> model = onnx.load_from_string(chain_file(stages(Dense(hollow(20, 30)), Geometry("linear", 30, 20))))
    >>> [node.op_type for node in model.graph.node]
    ['Gemm']
    """
    nodes, tensors, value, shared = [], [], "x", Shared()
    for i, stage in enumerate(chain):
        last = i == len(chain) - 1
        result, plan = "y" if last else f"v{i}", fast_plan(stage)
        if plan is not None:
            bias = noise(stage.geometry.out_channels) if last else None
            made, stored = fast_nodes(plan, noise(*stage.shape), bias, value, result, f"w{i}", shared)
            nodes, tensors, value = [*nodes, *made], [*tensors, *stored], result
            continue
        # A dense layer over several positions is a MatMul, which takes its weight turned.
        flat = not stage.geometry.in_size
        shape = stage.shape[::-1] if stage.geometry.kind == "linear" and not flat else stage.shape
        names = [value, f"w{i}", "b"] if last else [value, f"w{i}"]
        tensors.append(numpy_helper.from_array(noise(*shape), f"w{i}"))
        if last:
            tensors.append(numpy_helper.from_array(noise(stage.geometry.out_channels), "b"))
        nodes += layer_nodes(stage.geometry, names, result, flat=flat)
        value = result
    ends = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, input_shape(chain)),
        helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, _shape(chain[-1].geometry, out=True)),
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [*tensors, *shared.values()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return model.SerializeToString()


def noise(*shape: int) -> np.ndarray:
    """Weights to time a layer with, float32, always the same.

    Args:
        shape: of the weight.
    """
    return np.resize(_NOISE, shape)


def input_shape(chain: Sequence[Stage]) -> tuple[int, ...]:
    """Shape of one sample that a chain takes, the batch axis first.

    >>> from smidgen.forms import Dense, Geometry, hollow, stages
    >>> input_shape(stages(Dense(hollow(20, 30)), Geometry("linear", 30, 20, in_size=(7,), out_size=(7,))))
    (1, 7, 30)
    """
    return _shape(chain[0].geometry, out=False)


def _shape(g: Geometry, *, out: bool) -> tuple[int, ...]:
    channels, size = (g.out_channels, g.out_size) if out else (g.in_channels, g.in_size)
    return (1, *size, channels) if g.kind == "linear" else (1, channels, *size)
