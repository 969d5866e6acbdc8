"""Weights in sixteen bits: stored as IEEE binary16, widened by an operator that runtimes compute once, on opening.

    ŵ = w (1 + ε),  |ε| ≤ 2⁻¹¹    for 6.1e-5 ≤ |w| ≤ 65,504

Activations stay in floats, so the file is half as large and runs as the one of floats does. A weight beyond what
sixteen bits hold stays as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from smidgen.runtimes.tflite_file import constant, end_names, number_of, packed, parse, schema, serialise, strip

LEAST = 64  # values from which half the bytes pay for the operator that widens them
WIDENING = 3  # version of TFLite's DEQUANTIZE that takes sixteen bits


def fits(values: np.ndarray) -> bool:
    """Whether values are worth, and able, to be held in sixteen bits.

    >>> fits(np.ones(64, np.float32)), fits(np.ones(8, np.float32)), fits(np.full(64, 1e5, np.float32))
    (True, False, False)
    """
    largest = float(np.abs(values).max(initial=0))
    return values.dtype == np.float32 and values.size >= LEAST and largest <= float(np.finfo(np.float16).max)


def half_weight(graph: onnx.GraphProto, values: np.ndarray, name: str) -> list[onnx.NodeProto]:
    """Add a weight in sixteen bits to a graph.

    Args:
        graph: to add to.
        values: float32, as the layer reads them.
        name: of the initializer.

    Returns:
        The node that widens it; none, and nothing added, where it does not fit.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not fits(values):
        return []
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), name))
    return [helper.make_node("Cast", [name], [f"{len(graph.initializer)}~w"], to=TensorProto.FLOAT)]


def halved(content: bytes) -> bytes:
    """A TFLite file of floats with its weights in sixteen bits.

    Args:
        content: from `smidgen.export.tflite.to_tflite`.
    """
    model = parse(content)
    (graph,) = model.subgraphs
    description, names = model.description, end_names(model)
    widened: dict[int, int] = {}
    before: list[Any] = []
    code = schema().OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = number_of("BuiltinOperator", "DEQUANTIZE")
    code.version = WIDENING
    ends = {int(i) for i in graph.outputs}
    for i, tensor in enumerate(list(graph.tensors)):
        values = constant(model, tensor)
        if values is None or i in ends or not fits(values):
            continue
        half, buffer = schema().TensorT(), schema().BufferT()
        buffer.data = packed(values.astype(np.float16), "FLOAT16")
        model.buffers.append(buffer)
        half.shape, half.type = list(values.shape), number_of("TensorType", "FLOAT16")
        half.buffer = len(model.buffers) - 1
        tensor.buffer = 0
        graph.tensors.append(half)
        widened[i] = len(graph.tensors) - 1
    model.operatorCodes.append(code)
    for whole, held in widened.items():
        operator = schema().OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = len(model.operatorCodes) - 1, [held], [whole]
        before.append(operator)
    graph.operators = [*before, *graph.operators]
    strip(model, *names)
    model.description = description
    return serialise(model)
