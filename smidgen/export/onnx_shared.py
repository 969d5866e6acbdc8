"""Shared weights in an ONNX file: a codebook and packed indices, unpacked by operators that a runtime folds.

    bytes [m, 1] ─ BitShift left by 0 … 7 ─ BitShift right by 7 ─ bits [m, 8]
    bits ─ (Slice, where bits are left over) ─ Reshape [*shape, b] ─ MatMulInteger 2^(b−1) … 1 ─ indices, int32
    codebook ─ Gather ─ the weight, float32

Indices of b bits lie one after another, most significant bit first, so a weight takes b/8 bytes and nothing is computed
in floats: the weight has the bits of the file of floats. All of it depends on constants alone; ONNX Runtime computes it
once, when the file is opened, and runs what the file of floats runs. Indices of eight bits are bytes as they are. No
operator is newer than opset 13.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from smidgen.forms import Codebook

BYTE = 8
# Constants that all layers of a file read; like no name of a module, a value or an output.
_LEFT, _RIGHT, _POWERS, _START, _AXIS = "~l", "~r", "~p", "~0", "~a"


def shared_weight(
    graph: onnx.GraphProto, leaf: Codebook, shape: tuple[int, ...], name: str, *, turned: bool
) -> list[onnx.NodeProto]:
    """Add a weight's codebook and indices to a graph.

    Args:
        graph: to add to.
        leaf: indices and values.
        shape: of the weight as its layer stores it, rows first.
        name: of the initializer of indices.
        turned: stored with rows and columns swapped, as MatMul takes it.

    Returns:
        The nodes that make floats of them, to be read under the name of the last one's output.
    """
    indices, bits = leaf.indices.reshape(shape), leaf.bits
    indices = np.ascontiguousarray(indices.T if turned else indices)
    # Short, and like no name of a module, a value or an output.
    tag = f"{len(graph.initializer)}~"
    book, value = f"{tag}c", f"{tag}w"
    graph.initializer.append(numpy_helper.from_array(leaf.values.astype(np.float32), book))
    nodes, which = unpacked_indices(graph, indices, bits, name, tag)
    return [*nodes, helper.make_node("Gather", [book, which], [value])]


def unpacked_indices(
    graph: onnx.GraphProto, indices: np.ndarray, bits: int, name: str, tag: str
) -> tuple[list[onnx.NodeProto], str]:
    """Add packed indices to a graph.

    Args:
        graph: to add to.
        indices: uint8, of the shape they shall have.
        bits: of each.
        name: of the initializer.
        tag: what the names of values in between begin with.

    Returns:
        The nodes that unpack them, and the value that holds them as int32.
    """
    if bits == BYTE:
        graph.initializer.append(numpy_helper.from_array(indices, name))
        return [helper.make_node("Cast", [name], [f"{tag}i"], to=TensorProto.INT32)], f"{tag}i"
    graph.initializer.append(numpy_helper.from_array(packed_bits(indices, bits)[:, None], name))
    graph.initializer.append(numpy_helper.from_array(np.array([*indices.shape, bits], np.int64), f"{tag}d"))
    nodes, row = unpacked_bits(graph, name, indices.size * bits, tag)
    powers = constant(graph, f"{_POWERS}{bits}", 2 ** np.arange(bits - 1, -1, -1, dtype=np.uint8))
    return [
        *nodes,
        helper.make_node("Reshape", [row, f"{tag}d"], [f"{tag}f"]),
        helper.make_node("MatMulInteger", [f"{tag}f", powers], [f"{tag}i"]),
    ], f"{tag}i"


def unpacked_bits(
    graph: onnx.GraphProto, name: str, count: int, tag: str, *, flat: bool = False
) -> tuple[list[onnx.NodeProto], str]:
    """The nodes that unpack the bytes of an initializer to bits, and the value that holds those.

    Args:
        graph: to add constants to.
        name: of the initializer, bytes ``[m, 1]``.
        count: of bits; those that fill up the last byte are left out.
        tag: what the names of values in between begin with.
        flat: one row of bits, also where the last byte is full.
    """
    constant(graph, _LEFT, np.arange(BYTE, dtype=np.uint8))
    constant(graph, _RIGHT, np.array(BYTE - 1, np.uint8))
    nodes = [
        helper.make_node("BitShift", [name, _LEFT], [f"{tag}a"], direction="LEFT"),
        helper.make_node("BitShift", [f"{tag}a", _RIGHT], [f"{tag}b"], direction="RIGHT"),
    ]
    if count % BYTE == 0 and not flat:
        return nodes, f"{tag}b"
    row = constant(graph, _AXIS, np.array([-1], np.int64))
    nodes.append(helper.make_node("Reshape", [f"{tag}b", row], [f"{tag}r"]))
    if count % BYTE == 0:
        return nodes, f"{tag}r"
    start = constant(graph, _START, np.array([0], np.int64))
    graph.initializer.append(numpy_helper.from_array(np.array([count], np.int64), f"{tag}n"))
    return [*nodes, helper.make_node("Slice", [f"{tag}r", start, f"{tag}n"], [f"{tag}e"])], f"{tag}e"


def constant(graph: onnx.GraphProto, name: str, values: np.ndarray) -> str:
    """A tensor that several layers read, once."""
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def packed_bits(indices: np.ndarray, bits: int) -> np.ndarray:
    """Indices of so many bits one after another, the most significant bit first; zeros fill up the last byte.

    >>> packed_bits(np.array([1, 2, 3]), 3).tolist()
    [41, 128]
    """
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint8)
    return np.packbits((indices.astype(np.uint8).reshape(-1, 1) >> shifts) & 1)
