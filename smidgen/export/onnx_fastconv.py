"""Fast convolutions as ONNX nodes: those that `smidgen.numerics.fastconv.convolve` runs, one for one.

Transpose · MatMul, MatMul · Transpose · MatMul with U · Transpose · MatMul, MatMul · Transpose · Add

and Pad, Slice, Concat where a map is cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from smidgen.numerics.fastconv import Bilinear, Line, transform_kernel

# Where the other order of the product wins in ONNX Runtime 1.31: rows of V_p, and numbers of U_p. 91 products of 8 rows
# with 256×512 take 15.4 ms one way and 9.3 the other (two threads 8.1 and 5.0); 200 of 16 rows with 64×128 2.1 and 1.8
# (1.2 and 1.3); 2,552 of 4 rows with 16×32 1.4 and 2.0 (0.9 and 3.4: two threads move small matrices slowly).
FEW_ROWS, LARGE = 16, 1 << 15
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


def kernel_first(plan: Bilinear, inp: int, out: int) -> bool:
    """Whether the product is written as (UᵀVᵀ)ᵀ: a runtime packs what stands on the right anew at every call.

    Args:
        plan: of the layer.
        inp, out: channels.

    >>> from smidgen.numerics.fastconv import fourier, winograd
    >>> kernel_first(fourier((14, 14), (7, 7), (3, 3), (256, 256)), 256, 256)
    True
    >>> kernel_first(winograd((56, 56), (3, 3), (1, 1), 4), 256, 256)
    False
    """
    rows = plan.windows * plan.rows.tiles * plan.cols.tiles * plan.parts
    return rows <= FEW_ROWS and plan.parts * inp * out >= LARGE


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
    kernel, first = transform_kernel(plan, torch.from_numpy(weight)).numpy(), kernel_first(plan, inp, out)
    stored = np.ascontiguousarray(kernel.swapaxes(1, 2)) if first else kernel
    tensors = [numpy_helper.from_array(stored, f"{name}.kernel")]

    def product(left: str, right: str, suffix: str) -> str:
        return write.add("MatMul", [left, right], f"{result}.{suffix}")

    def moved(value: str, suffix: str, *perm: int) -> str:
        return write.add("Transpose", [value], f"{result}.{suffix}", perm=list(perm))

    width = cols.size + sum(cols.zeros)
    v = _cut(write, _last(write, plan, value, result), rows, 1)
    v = write.reshape(v, -1, rows.window, width * inp)
    v = v if skip[0] else product(write.constant(plan.left), v, "l")
    v = _cut(write, write.reshape(v, -1, parts, width, inp), cols, 2)
    v = write.reshape(v, -1, parts * cols.window, inp)
    v = v if skip[1] else product(write.constant(plan.right), v, "r")
    v = write.reshape(v, -1, rows.points, rows.tiles * cols.blocks, cols.points, cols.tiles * parts * inp)
    v = write.reshape(moved(v, "v", 1, 3, 0, 2, 4), plan.points, -1, inp)
    if first:
        m = moved(product(f"{name}.kernel", moved(v, "s", 0, 2, 1), "n"), "m", 0, 2, 1)
    else:
        m = product(v, f"{name}.kernel", "m")
    m = write.reshape(m, rows.points, cols.points, -1, rows.tiles, cols.blocks, cols.tiles * parts**2 * out)
    y = write.reshape(moved(m, "t", 2, 4, 0, 3, 1, 5), -1, cols.points * cols.tiles * parts**2, out)
    y = y if skip[2] else product(write.constant(plan.right_out), y, "a")
    y = write.reshape(y, -1, rows.points * rows.tiles * parts, cols.step * out)
    y = y if skip[3] else product(write.constant(plan.left_out), y, "b")
    if cols.blocks > 1:
        y = moved(write.reshape(y, -1, cols.blocks, rows.step, cols.step * out), "w", 0, 2, 1, 3)
    y = moved(write.reshape(y, -1, rows.blocks * rows.step, cols.blocks * cols.step, out), "j", 0, 3, 1, 2)
    if (rows.blocks * rows.step, cols.blocks * cols.step) != (rows.out, cols.out):
        ends = [write.constant(place) for place in ([0, 0], [rows.out, cols.out], [2, 3])]
        y = write.add("Slice", [y, *ends], f"{result}.c")
    if bias is not None:
        tensors.append(numpy_helper.from_array(bias.astype(np.float32)[:, None, None], f"{name}.bias"))
        y = write.add("Add", [y, f"{name}.bias"], f"{result}.y")
    write.nodes[-1].output[0] = result
    return write.nodes, tensors


def _last(write: _Writer, plan: Bilinear, value: str, result: str) -> str:
    """[n, rows, columns, inp] with the zeros that windows need."""
    before, after = zip(plan.rows.zeros, plan.cols.zeros, strict=True)
    if any((*before, *after)):
        value = write.add("Pad", [value, write.constant([0, 0, *before, 0, 0, *after])], f"{result}.p")
    return write.add("Transpose", [value], f"{result}.x", perm=[0, 2, 3, 1])


def _cut(write: _Writer, value: str, line: Line, axis: int) -> str:
    """The windows of an axis, side by side along the first one after the batch."""
    if line.blocks == 1:
        return value
    cut = []
    for start in line.starts:
        ends = [write.constant([place]) for place in (start, start + line.window, axis)]
        cut.append(write.add("Slice", [value, *ends], f"{value}.{start}"))
    return write.add("Concat", cut, f"{value}w", axis=1)
