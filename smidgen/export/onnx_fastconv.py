"""Fast convolutions as ONNX nodes: those that `smidgen.numerics.fastconv.convolve` runs, one for one.

Pad, Slice, Concat (where a map is cut) · MatMul, MatMul · Transpose · MatMul with U · Transpose · MatMul, MatMul · Add
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from smidgen.numerics.fastconv import Bilinear, Line, transform_kernel

Shared = dict[tuple[Any, ...], onnx.TensorProto]  # constants by shape, type and content


class _Writer:
    """Nodes one after the other, and the tensors they read; equal tensors are stored once."""

    def __init__(self, tensors: Shared) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors = tensors

    def constant(self, values: Any) -> str:
        array = np.ascontiguousarray(values)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        key = array.shape, array.dtype.str, array.tobytes()
        if key not in self.tensors:
            self.tensors[key] = numpy_helper.from_array(array, f"smidgen.fast.{len(self.tensors)}")
        return self.tensors[key].name

    def add(self, kind: str, inputs: list[str], result: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [result], **attributes))
        return result

    def reshape(self, value: str, *shape: int) -> str:
        return self.add("Reshape", [value, self.constant(shape)], f"{value}r")


def fast_nodes(
    plan: Bilinear, weight: np.ndarray, bias: np.ndarray | None, value: str, result: str, name: str,
    shared: Shared,
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:  # fmt: skip
    """The nodes of a fast convolution.

    Args:
        plan: for the layer.
        weight: its kernel, [out, inp, y, x].
        bias: [out] or None.
        value, result: names of its input and its output.
        name: of the layer; what is stored for it begins so.
        shared: tensors that other layers of the file may read too; what is new is added, and the caller stores them.

    Returns:
        Nodes, and the tensors of this layer alone.
    """
    write = _Writer(shared)
    rows, cols, parts, skip = plan.rows, plan.cols, plan.parts, plan.plain
    out, inp = weight.shape[:2]
    kernel = transform_kernel(plan, torch.from_numpy(weight)).numpy()
    tensors = [numpy_helper.from_array(kernel, f"{name}.kernel")]

    def product(left: str, right: str, suffix: str) -> str:
        return write.add("MatMul", [left, right], f"{result}.{suffix}")

    v = _windows(write, plan, value, result, inp)
    v = v if skip[0] else product(write.constant(plan.left), v, "l")
    if parts > 1 or not skip[1]:
        v = write.reshape(v, -1, inp, plan.windows, rows.points * rows.tiles, parts * cols.window)
        v = v if skip[1] else product(v, write.constant(plan.right), "r")
    v = write.reshape(v, -1, inp, plan.windows, rows.points, rows.tiles, parts, cols.points, cols.tiles)
    v = write.add("Transpose", [v], f"{result}.v", perm=[3, 6, 1, 5, 0, 2, 4, 7])
    m = product(f"{name}.kernel", write.reshape(v, plan.points, inp, -1), "m")
    m = write.reshape(m, rows.points, cols.points, parts, out, parts, -1, plan.windows, rows.tiles, cols.tiles)
    y = write.add("Transpose", [m], f"{result}.t", perm=[5, 3, 6, 2, 4, 0, 7, 1, 8])
    y = write.reshape(y, -1, out, plan.windows, parts**2 * rows.points * rows.tiles, cols.points * cols.tiles)
    y = y if skip[2] else product(write.constant(plan.left_out), y, "a")
    if parts > 1:
        y = write.reshape(y, -1, out, plan.windows, rows.step, parts * cols.points * cols.tiles)
    y = y if skip[3] else product(y, write.constant(plan.right_out), "b")
    y = _joined(write, plan, y, result, out)
    if bias is not None:
        tensors.append(numpy_helper.from_array(bias.astype(np.float32)[:, None, None], f"{name}.bias"))
        y = write.add("Add", [y, f"{name}.bias"], f"{result}.y")
    write.nodes[-1].output[0] = result
    return write.nodes, tensors


def _windows(write: _Writer, plan: Bilinear, value: str, result: str, inp: int) -> str:
    """[n, inp, windows, rows, columns]"""
    rows, cols = plan.rows, plan.cols
    if plan.windows > 1:
        before, after = zip(rows.zeros, cols.zeros, strict=True)
        value = write.add("Pad", [value, write.constant([0, 0, *before, 0, 0, *after])], f"{result}.p")
        value = _cut(write, value, rows, 2)
        value = write.reshape(value, -1, inp, rows.blocks, rows.window, cols.size + sum(cols.zeros))
        # Side by side along the rows: what comes out is [.., columns' windows · rows, columns] without moving anything.
        value = _cut(write, value, cols, 4, along=3)
    shape = write.constant((-1, inp, plan.windows, rows.window, cols.window))
    return write.add("Reshape", [value, shape], f"{result}.x")


def _cut(write: _Writer, value: str, line: Line, axis: int, along: int | None = None) -> str:
    """The windows of an axis, one after the other."""
    if line.blocks == 1:
        return value
    cut = []
    for start in line.starts:
        ends = [write.constant([place]) for place in (start, start + line.window, axis)]
        cut.append(write.add("Slice", [value, *ends], f"{value}.{start}"))
    return write.add("Concat", cut, f"{value}w", axis=axis if along is None else along)


def _joined(write: _Writer, plan: Bilinear, value: str, result: str, out: int) -> str:
    """The windows' outputs as one map."""
    rows, cols = plan.rows, plan.cols
    if plan.windows > 1:
        value = write.reshape(value, -1, out, rows.blocks, cols.blocks, rows.step, cols.step)
        value = write.add("Transpose", [value], f"{result}.j", perm=[0, 1, 2, 4, 3, 5])
    value = write.reshape(value, -1, out, rows.blocks * rows.step, cols.blocks * cols.step)
    if (rows.blocks * rows.step, cols.blocks * cols.step) == (rows.out, cols.out):
        return value
    ends = [write.constant(place) for place in ([0, 0], [rows.out, cols.out], [2, 3])]
    return write.add("Slice", [value, *ends], f"{result}.c")
