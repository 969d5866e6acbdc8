"""Pruned weights in an ONNX file: a bit a weight and the survivors, put into place by operators that a runtime folds.

    bytes [m, 1] ─ bits, as in `smidgen.export.onnx_shared` ─ CumSum · bit ─ Reshape ─ places: a survivor's number, or 0
    [0, survivors] ─ Gather at places ─ the weight, float32
    packed indices [none, survivors'] ─ Gather at places ─ Gather of a codebook ─ the weight, float32

A weight that is gone takes one bit, one that stays its value and a bit; the weight has the bits of the dense file, and
all of it depends on constants alone: ONNX Runtime computes it once, when the file is opened, and runs what the dense
file runs. No operator is newer than opset 13.

ONNX has sparse initializers too, which are not written: an index of 8 bytes stands beside each value, so they are
smaller than this only where fewer than one weight in 64 is left (LeNet's dense layer with 90 % removed: 943 kB, this
412, dense 3,136); ONNX Runtime opens them and answers the same, but the shape inference of the standard's own checker
refuses what reads them.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from smidgen.export.onnx_shared import constant, packed_bits, unpacked_bits, unpacked_indices
from smidgen.forms import Codebook, Form, masked_pays

_AXIS = "~x"


def masked_weight(
    graph: onnx.GraphProto, leaf: Form, values: np.ndarray, name: str, *, turned: bool
) -> list[onnx.NodeProto]:
    """Add a weight's mask and survivors to a graph, where that takes fewer bytes than its floats.

    Args:
        graph: to add to.
        leaf: a codebook's indices are kept as such, the values of others.
        values: of the weight as its layer stores it, rows first.
        name: of the initializer of survivors.
        turned: stored with rows and columns swapped, as MatMul takes it.

    Returns:
        The nodes that make floats of them, to be read under the name of the last one's output; none where the dense
        weight is as small.
    """
    values = np.ascontiguousarray(values.T if turned else values, dtype=np.float32)
    there = values != 0
    book = leaf if isinstance(leaf, Codebook) and not leaf.values[leaf.centre] else None
    if not masked_pays(values.size, int(there.sum()), None if book is None else book.bits):
        return []
    tag = f"{len(graph.initializer)}~"
    nodes, places = _places(graph, there, f"{name.rpartition('.')[0]}.mask", tag)
    if book is None:
        survivors = np.concatenate([np.zeros(1, np.float32), values[there]])
        graph.initializer.append(numpy_helper.from_array(survivors, name))
        return [*nodes, helper.make_node("Gather", [name, places], [f"{tag}w"])]
    indices = book.indices.reshape(values.T.shape if turned else values.shape)
    indices = np.ascontiguousarray(indices.T if turned else indices)
    kept = np.concatenate([np.array([book.centre], np.uint8), indices[there]])
    graph.initializer.append(numpy_helper.from_array(book.values.astype(np.float32), f"{tag}c"))
    unpacked, which = unpacked_indices(graph, kept, book.bits, name, f"{tag}k")
    return [
        *nodes,
        *unpacked,
        helper.make_node("Gather", [which, places], [f"{tag}g"]),
        helper.make_node("Gather", [f"{tag}c", f"{tag}g"], [f"{tag}w"]),
    ]


def _places(graph: onnx.GraphProto, there: np.ndarray, name: str, tag: str) -> tuple[list[onnx.NodeProto], str]:
    """The nodes that number the survivors from 1, in the weight's own shape, and the value that holds that."""
    bits = there.astype(np.uint8).ravel()
    graph.initializer.append(numpy_helper.from_array(packed_bits(bits, 1)[:, None], name))
    graph.initializer.append(numpy_helper.from_array(np.array(there.shape, np.int64), f"{tag}s"))
    axis = constant(graph, _AXIS, np.array(0, np.int32))
    nodes, row = unpacked_bits(graph, name, bits.size, f"{tag}m", flat=True)
    return [
        *nodes,
        helper.make_node("Cast", [row], [f"{tag}t"], to=TensorProto.INT32),
        helper.make_node("CumSum", [f"{tag}t", axis], [f"{tag}n"]),
        helper.make_node("Mul", [f"{tag}t", f"{tag}n"], [f"{tag}p"]),
        helper.make_node("Reshape", [f"{tag}p", f"{tag}s"], [f"{tag}q"]),
    ], f"{tag}q"
