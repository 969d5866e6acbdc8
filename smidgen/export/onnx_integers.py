"""Weights as integers in an ONNX file: an initializer of int8 or int4, its row scales, and a DequantizeLinear.

    w[i, …] = z[i, …] · scale[i]

One float32 product, the very one that `smidgen.forms.dense` takes where the column's exponent is 0, as it is at fixed
widths: the file then computes with the same bits as the file of floats. (Another exponent may cost the last bit.)
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from smidgen.forms import Quantized, scales

INT4_OPSET, INT4_IR = 21, 10  # the first with int4 and a DequantizeLinear that takes it (ONNX 1.16)
# Operators whose meaning changed on the way to that opset, so that they have to be converted (ONNX's Changelog.md):
# modes of GridSample were renamed, DFT's axis became an input, GroupNormalization's scale has a number a channel.
CONVERTED = frozenset({"GridSample", "DFT", "GroupNormalization"})


def integer_weight(
    graph: onnx.GraphProto, leaf: Quantized, shape: tuple[int, ...], bits: int, name: str, *, turned: bool
) -> onnx.NodeProto:
    """Add a weight's integers and scales to a graph.

    Args:
        graph: to add to.
        leaf: integers of at most that width, and one column scale.
        shape: of the weight as its layer stores it, rows first.
        bits: 8, or 4 for two in a byte.
        name: of the initializer.
        turned: stored with rows and columns swapped, as MatMul takes it.

    Returns:
        The node that makes floats of them, to be read under the name of its output.
    """
    z = leaf.integers.reshape(shape)
    # The grid is one: exponents add up, and one float32 is the scale.
    row = scales(leaf.row.astype(np.int64) + int(leaf.column[0]), leaf.per_octave)
    # Short, and like no name of a module, a value or an output.
    scale, value = (f"{len(graph.initializer)}~{kind}" for kind in "sw")
    graph.initializer.extend([_integers(z.T if turned else z, bits, name), onnx.numpy_helper.from_array(row, scale)])
    if turned:  # rows are on axis 1, which is the operator's default
        return helper.make_node("DequantizeLinear", [name, scale], [value])
    return helper.make_node("DequantizeLinear", [name, scale], [value], axis=0)


def _integers(values: np.ndarray, bits: int, name: str) -> TensorProto:
    tensor = TensorProto()
    tensor.dims.extend(values.shape)
    tensor.data_type = TensorProto.INT4 if bits == 4 else TensorProto.INT8
    tensor.name = name
    tensor.raw_data = packed_nibbles(values) if bits == 4 else values.astype(np.int8).tobytes()
    return tensor


def packed_nibbles(values: np.ndarray) -> bytes:
    """Integers of four bits, two in a byte, the first in its lower half; an odd one ends with a zero.

    >>> packed_nibbles(np.array([1, -1, 7])).hex()
    'f107'
    """
    halves = np.zeros(values.size + values.size % 2, np.uint8)
    halves[: values.size] = values.ravel().astype(np.int8).view(np.uint8) & 15
    return (halves[1::2] << 4 | halves[0::2]).tobytes()


def with_int4(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in an opset that knows int4, where it holds such.

    Between opset 18, the exporter's oldest, and 21 nearly all operators only learned new types.
    """
    graph = proto.graph
    (opset,) = (entry for entry in proto.opset_import if entry.domain == "")
    if opset.version >= INT4_OPSET or all(tensor.data_type != TensorProto.INT4 for tensor in graph.initializer):
        return proto
    if any(node.op_type in CONVERTED for node in graph.node):
        return version_converter.convert_version(proto, INT4_OPSET)
    opset.version = INT4_OPSET
    proto.ir_version = max(proto.ir_version, INT4_IR)
    return proto
