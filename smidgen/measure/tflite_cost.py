"""Parameters and multiply-accumulates of a written TFLite file, counted from the file itself.

    CONV_2D, CONV_3D     out elements · (in/groups) · kernel
    DEPTHWISE_CONV_2D    out elements · kernel
    TRANSPOSE_CONV       in elements · out · kernel            (the products before cropping)
    FULLY_CONNECTED, BATCH_MATMUL    out elements · inner length

for the file's batch of one sample, as `smidgen.measure.cost` counts an ONNX file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from smidgen.measure.files import read_tflite
from smidgen.runtimes.tflite_file import names_of, operator_name, stored_bytes

# Where an operator keeps its data and its weight among its inputs, by name.
_CONVS = {"CONV_2D": (0, 1), "CONV_3D": (0, 1), "DEPTHWISE_CONV_2D": (0, 1), "TRANSPOSE_CONV": (2, 1)}
_DENSE = ("FULLY_CONNECTED", "BATCH_MATMUL")
# Constants of these types that an operator computes with are parameters; others say how: shapes, axes.
_NUMBERS = frozenset({"FLOAT32", "FLOAT16", "INT8", "INT4", "INT16"})
_BIAS = 2  # place of a bias, which is int32 where weights are integers
_BIASED = frozenset({"CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})


def tflite_cost(path: str | Path) -> tuple[int, int | None]:
    """Parameters and multiply-accumulates of the TFLite file at ``path`` for one sample.

    Raises:
        LoadError: the file cannot be read.
    """
    model = read_tflite(path)
    graph = model.subgraphs[0]
    stored: set[int] = set()
    macs = 0
    for operator in graph.operators:
        name = operator_name(model, operator)
        inputs = [int(i) for i in operator.inputs]
        for place, i in enumerate(inputs):
            if i >= 0 and _parameter(model, graph.tensors[i], place, name):
                stored.add(i)
        macs += _macs(name, [None if i < 0 else graph.tensors[i] for i in inputs], graph.tensors[operator.outputs[0]])
    return sum(math.prod(_shape(graph.tensors[i])) for i in stored), macs


def _parameter(model: Any, tensor: Any, place: int, name: str) -> bool:
    if stored_bytes(model, tensor) is None:
        return False
    kind = names_of("TensorType")[tensor.type]
    return kind in _NUMBERS or (place == _BIAS and name in _BIASED)


def _shape(tensor: Any) -> list[int]:
    return [] if tensor.shape is None else [int(size) for size in tensor.shape]


def _macs(name: str, inputs: list[Any], output: Any) -> int:
    if name in _CONVS:
        data, weight = (_shape(inputs[place]) for place in _CONVS[name])
        elements = math.prod(_shape(output))
        if name == "TRANSPOSE_CONV":  # [out, h, w, in], and every input meets every tap
            return math.prod(data) * math.prod(weight[:-1])
        # [out, h, w, in / groups]; depthwise [1, h, w, out]; three axes [d, h, w, in, out]
        return elements * math.prod({"DEPTHWISE_CONV_2D": weight[:-1], "CONV_3D": weight[:-1]}.get(name, weight[1:]))
    if name in _DENSE:
        return math.prod(_shape(output)) * _shape(inputs[0])[-1]
    return 0
