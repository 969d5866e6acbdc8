"""Shape arithmetic: operators on arrays of which some entries are sizes of the input.

Each handler returns a value, or None where the operator must run on a real tensor.
"""

from __future__ import annotations

import math
import operator as op
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from ..call import Call
from ..limits import MAX_SIZES
from ..registry import on_sizes
from ..tensors import dtype_of
from ..values import Malformed, Sizes, Value
from .shaping import axes_of

Entry = int | float | bool | Node


def _array(call: Call, index: int) -> np.ndarray:
    value = call.raw(index)
    if isinstance(value, Sizes):
        return value.entries
    assert isinstance(value, Tensor)
    if value.numel() > MAX_SIZES:
        raise Malformed(f"operand {index} is too long for shape arithmetic")
    array = np.empty(tuple(value.shape), dtype=object)
    array.reshape(-1)[:] = value.reshape(-1).tolist()
    return array


def _wrap(call: Call, entries: Any, dtype: torch.dtype | None = None) -> Value:
    if not isinstance(entries, np.ndarray):
        scalar = np.empty((), dtype=object)
        scalar[()] = entries
        entries = scalar
    if entries.size > MAX_SIZES:
        raise Malformed(f"{entries.size} entries are too many for shape arithmetic")
    sizes = Sizes(entries, dtype or _kind(call))
    return call.tensor(sizes) if sizes.known else sizes


def _kind(call: Call) -> torch.dtype:
    value = call.raw(0)
    return call.dtype(value) if isinstance(value, Node) else value.dtype


def _probes(entry: Any) -> tuple[Any, Any]:
    return entry.meta["probes"] if isinstance(entry, Node) else (entry, entry)


def truncated(first: int | torch.SymInt, second: int | torch.SymInt) -> int | torch.SymInt:
    """first / second towards zero, of sizes that are not negative.

    >>> truncated(7, 2)
    3
    """
    return first // second


def _divided(call: Call, first: Entry, second: Entry) -> Entry:
    floats = any(isinstance(p, float) for e in (first, second) for p in _probes(e))
    if floats:
        return call.emit(op.truediv, first, second)
    if any(p == 0 for p in _probes(second)):
        raise Malformed("it divides a size by zero")
    if any(p < 0 for e in (first, second) for p in _probes(e)):
        raise Malformed("it divides a negative size")
    return call.emit(op.floordiv, first, second)


_BINARY: dict[str, Callable[[Call, Entry, Entry], Entry]] = {
    "Add": lambda call, a, b: call.emit(op.add, a, b),
    "Sub": lambda call, a, b: call.emit(op.sub, a, b),
    "Mul": lambda call, a, b: call.emit(op.mul, a, b),
    "Div": _divided,
    "Mod": lambda call, a, b: call.emit(op.mod, a, b),
    "Max": lambda call, a, b: call.emit(torch.sym_max, a, b),
    "Min": lambda call, a, b: call.emit(torch.sym_min, a, b),
}


@on_sizes(*_BINARY)
def binary(call: Call) -> Value | None:
    """Arithmetic of two operands."""
    if len(call.operands) != 2 or (call.op == "Mod" and call.flag("fmod", 0)):
        return None
    first, second = np.broadcast_arrays(_array(call, 0), _array(call, 1))
    result = np.empty(first.shape, dtype=object)
    for place in np.ndindex(first.shape):
        result[place] = _BINARY[call.op](call, first.item(*place), second.item(*place))
    return _wrap(call, result)


@on_sizes("Equal")
def equal(call: Call) -> Value | None:
    """Equal: a size differs from a number that it equals under neither probe."""
    first, second = np.broadcast_arrays(_array(call, 0), _array(call, 1))
    result = np.empty(first.shape, dtype=bool)
    for place in np.ndindex(first.shape):
        pairs = list(zip(_probes(first[place]), _probes(second[place]), strict=True))
        same = [a == b for a, b in pairs]
        if any(same) and not all(same):
            return None
        result[place] = all(same)
    return torch.from_numpy(result)


@on_sizes("Where")
def where(call: Call) -> Value | None:
    """Where, of a known condition."""
    if not isinstance(call.raw(0), Tensor):
        return None
    condition, first, second = np.broadcast_arrays(*(_array(call, index) for index in range(3)))
    result = np.empty(condition.shape, dtype=object)
    for place in np.ndindex(condition.shape):
        result[place] = first[place] if condition[place] else second[place]
    return _wrap(call, result, torch.int64)


@on_sizes("Gather")
def gather(call: Call) -> Value | None:
    """Gather, by known indices."""
    places = call.raw(1)
    if not isinstance(places, Tensor):
        return None
    array = _array(call, 0)
    axis = call.axis(call.attr("axis", 0), array.ndim)
    return _wrap(call, np.take(array, places.numpy(), axis=axis))


@on_sizes("Slice")
def sliced(call: Call) -> Value | None:
    """Slice, by known bounds."""
    array = _array(call, 0)
    if call.opset < 10:
        starts, ends = call.required("starts"), call.required("ends")
        axes, steps = call.attr("axes", list(range(len(starts)))), [1] * len(starts)
    elif all(isinstance(call.raw(i), Tensor) for i in range(1, len(call.operands)) if call.has(i)):
        starts, ends = call.ints(1), call.ints(2)
        axes = call.ints(3) if call.has(3) else list(range(len(starts)))
        steps = call.ints(4) if call.has(4) else [1] * len(starts)
    else:
        return None
    cuts = [slice(None)] * array.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cuts[call.axis(axis, array.ndim)] = slice(start, end if step > 0 or end >= -(1 << 31) else None, step)
    return _wrap(call, array[tuple(cuts)])


@on_sizes("Concat")
def concat(call: Call) -> Value:
    """Concat."""
    arrays = [_array(call, index) for index in range(len(call.operands))]
    return _wrap(call, np.concatenate(arrays, axis=call.required("axis")))


@on_sizes("Unsqueeze")
def unsqueeze(call: Call) -> Value:
    """Unsqueeze."""
    return _wrap(call, np.expand_dims(_array(call, 0), tuple(axes_of(call) or ())))


@on_sizes("Squeeze")
def squeeze(call: Call) -> Value:
    """Squeeze."""
    axes = axes_of(call)
    return _wrap(call, np.squeeze(_array(call, 0), None if axes is None else tuple(axes)))


@on_sizes("Reshape")
def reshape(call: Call) -> Value | None:
    """Reshape, to a known shape."""
    if not isinstance(call.raw(1), Tensor):
        return None
    return _wrap(call, _array(call, 0).reshape(call.ints(1)))


@on_sizes("Expand")
def expand(call: Call) -> Value | None:
    """Expand, to a known shape."""
    if not isinstance(call.raw(1), Tensor):
        return None
    array, target = _array(call, 0), tuple(call.ints(1))
    if any(length < 0 for length in target) or math.prod(target) > MAX_SIZES:
        raise Malformed(f"shape {target} is out of range")
    return _wrap(call, np.broadcast_to(array, np.broadcast_shapes(array.shape, target)).copy())


@on_sizes("Split")
def split(call: Call) -> Any:
    """Split, by known lengths."""
    array, count = _array(call, 0), len(call.outputs)
    lengths = call.attributes.get("split") or (call.ints(1) if call.has(1) else [len(array) // count] * count)
    if array.ndim != 1 or len(lengths) != count or sum(lengths) != len(array):
        raise Malformed(f"lengths {lengths} do not fit")
    bounds = [0, *accumulate(lengths)]
    return tuple(_wrap(call, array[a:b]) for a, b in pairwise(bounds))


@on_sizes("ReduceProd", "ReduceSum")
def reduced(call: Call) -> Value | None:
    """Product or sum of a vector."""
    array, axes = _array(call, 0), axes_of(call)
    if array.ndim != 1 or (not axes and call.flag("noop_with_empty_axes", 0)):
        return None
    total: Entry = 1 if call.op == "ReduceProd" else 0
    for entry in array:
        total = call.emit(op.mul if call.op == "ReduceProd" else op.add, total, entry)
    result = _array_of(total)
    return _wrap(call, result.reshape(1) if call.flag("keepdims", 1) else result)


def _array_of(entry: Entry) -> np.ndarray:
    array = np.empty((), dtype=object)
    array[()] = entry
    return array


@on_sizes("Cast")
def cast(call: Call) -> Value | None:
    """Cast between integers and floats."""
    dtype = dtype_of(call.required("to"))
    if dtype is torch.bool:
        return None
    array = _array(call, 0)
    change = torch.sym_float if dtype.is_floating_point else torch.sym_int
    result = np.empty(array.shape, dtype=object)
    for place in np.ndindex(array.shape):
        changes = isinstance(_probes(array[place])[0], float) != dtype.is_floating_point
        result[place] = call.emit(change, array[place]) if changes else array[place]
    return _wrap(call, result, dtype)


@on_sizes("Floor", "Ceil")
def rounded(call: Call) -> Value | None:
    """Floor and Ceil of sizes that were scaled."""
    array, target = _array(call, 0), math.floor if call.op == "Floor" else math.ceil
    result = np.empty(array.shape, dtype=object)
    for place in np.ndindex(array.shape):
        result[place] = call.emit(torch.sym_float, call.emit(target, array[place]))
    return _wrap(call, result)


@on_sizes("Neg")
def negative(call: Call) -> Value:
    """Neg."""
    array = _array(call, 0)
    result = np.empty(array.shape, dtype=object)
    for place in np.ndindex(array.shape):
        result[place] = call.emit(op.neg, array[place])
    return _wrap(call, result)
