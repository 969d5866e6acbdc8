"""Constants, ranges, windows, and casts between types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..call import Call
from ..registry import operator
from ..tensors import dtype_of, element_count
from ..values import Malformed, Size, Value


@operator("Constant")
def constant(call: Call) -> Value:
    """Constant: one of its attributes holds the value."""
    if len(call.attributes) != 1:
        raise Malformed("exactly one of its attributes must be given")
    ((name, value),) = call.attributes.items()
    if name == "value":
        return value
    if name in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    if name in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    raise Malformed(f"constants given as {name!r} are not supported")


@operator("ConstantOfShape", since=9)
def constant_of_shape(call: Call) -> Value:
    """ConstantOfShape."""
    fill = call.attr("value", torch.zeros(1))
    if fill.numel() != 1:
        raise Malformed("value must hold one number")
    return _filled(call, call.lengths(0), fill.reshape(()).item(), fill.dtype)


def _filled(call: Call, shape: list[Size], value: Any, dtype: torch.dtype) -> Value:
    known = [size for size in shape if isinstance(size, int)]
    if any(size < 0 for size in known):
        raise Malformed(f"a negative length in {known}")
    if len(known) == len(shape):
        element_count(known)
        return call.emit(torch.full, known, value, dtype=dtype)
    # On the device of the input, so that the network can be moved.
    return call.emit(torch.Tensor.new_full, _anchor(call), shape, value, dtype=dtype)


def _anchor(call: Call) -> Node:
    if not call.builder.inputs:
        raise Malformed("the network has no input")
    return call.builder.inputs[0]


@operator("Range", since=11)
def range_of(call: Call) -> Value:
    """Range; its bounds are known or made of the input's sizes."""
    bounds = [call.lengths(index)[0] if _integer(call, index) else call.number(index) for index in range(3)]
    dtype = call.dtype(call.x(0))
    if isinstance(bounds[2], (int, float)) and bounds[2] == 0:
        raise Malformed("delta is 0")
    if not any(isinstance(bound, Node) for bound in bounds):
        start, stop, step = (bound for bound in bounds if not isinstance(bound, Node))
        count = max(math.ceil((stop - start) / step), 0)
        element_count([count])
        return call.emit(counted, count, start, step, dtype)
    return call.emit(steps_between, _anchor(call), *bounds, dtype)


def _integer(call: Call, index: int) -> bool:
    value = call.raw(index)
    return not (call.dtype(value) if isinstance(value, Node) else value.dtype).is_floating_point


def counted(count: int, start: int | float, step: int | float, dtype: torch.dtype) -> Tensor:
    """start, start + step, …

    >>> counted(3, 1, 2, torch.int64)
    tensor([1, 3, 5])
    """
    return (torch.arange(count, dtype=dtype) * step + start).to(dtype)


def steps_between(
    anchor: Tensor, start: int | torch.SymInt, stop: int | torch.SymInt, step: int | torch.SymInt, dtype: torch.dtype
) -> Tensor:
    """start, start + step, … below stop, on the device of `anchor`.

    >>> steps_between(torch.zeros(1), 0, 5, 2, torch.int64)
    tensor([0, 2, 4])
    """
    bounds: Any = (start, stop, step)  # torch's stubs do not know that sizes are numbers
    return torch.arange(*bounds, dtype=dtype, device=anchor.device)


@operator("EyeLike", since=9)
def eye_like(call: Call) -> Value:
    """EyeLike."""
    x = call.x()
    if call.rank(x) != 2:
        raise Malformed("its operand must be a matrix")
    dtype = dtype_of(call.attributes["dtype"]) if "dtype" in call.attributes else call.dtype(x)
    diagonal = call.attr("k", 0)
    if abs(diagonal) > 1 << 30:
        raise Malformed(f"k {diagonal} is out of range")
    return call.emit(eye, x, diagonal, dtype)


def eye(x: Tensor, diagonal: int, dtype: torch.dtype) -> Tensor:
    """Ones on one diagonal of a matrix of x's shape.

    >>> eye(torch.zeros(2, 2), 1, torch.int64)
    tensor([[0, 1],
            [0, 0]])
    """
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return (torch.arange(x.shape[1], device=x.device)[None, :] - rows == diagonal).to(dtype)


@operator("Cast", since=7)
def cast(call: Call) -> Value:
    """Cast."""
    return _cast(call, dtype_of(call.required("to")))


@operator("CastLike", since=15)
def cast_like(call: Call) -> Value:
    """CastLike."""
    return _cast(call, call.dtype(call.x(1)))


def _cast(call: Call, dtype: torch.dtype) -> Value:
    x = call.x()
    return x if call.dtype(x) == dtype else call.emit(torch.Tensor.to, x, dtype)


_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@operator("HannWindow", "HammingWindow", "BlackmanWindow", since=17)
def window(call: Call) -> Value:
    """Window functions of a known length."""
    length, dtype = int(call.number(0)), dtype_of(call.attr("output_datatype", 1))
    element_count([length])
    return call.emit(cosine_window, length, call.flag("periodic", 1), _WINDOWS[call.op]).to(dtype)


def cosine_window(length: int, periodic: bool, terms: Sequence[float]) -> Tensor:
    """a − b cos(2πn/N) + c cos(4πn/N), N one less where the window is not periodic.

    >>> cosine_window(4, True, (0.5, 0.5, 0.0))
    tensor([0.0000, 0.5000, 1.0000, 0.5000], dtype=torch.float64)
    """
    turn = torch.arange(length, dtype=torch.float64) * (2 * math.pi / (length if periodic else max(length - 1, 1)))
    a, b, c = terms
    return a - b * torch.cos(turn) + c * torch.cos(2 * turn)
