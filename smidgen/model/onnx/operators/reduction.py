"""Reductions and running sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..call import Call
from ..registry import operator
from ..values import Malformed, Value
from .shaping import axes_of


def product(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Product over axes.

    >>> product(torch.tensor([[2, 3]]), [0, 1], False)
    tensor(6)
    """
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def total(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Sum over axes in the operand's type.

    >>> total(torch.tensor([[2, 3]]), [1], False)
    tensor([5])
    """
    return torch.sum(x, list(axes), keep, dtype=x.dtype)


def largest(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Maximum over axes; of nothing it is the type's least value."""
    return _extreme(x, axes, keep, True)


def smallest(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Minimum over axes; of nothing it is the type's largest value."""
    return _extreme(x, axes, keep, False)


def _extreme(x: Tensor, axes: Sequence[int], keep: bool, upper: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        lengths = [1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes]
        if x.dtype.is_floating_point:
            value = -math.inf if upper else math.inf
        elif x.dtype is torch.bool:
            value = not upper
        else:
            value = torch.iinfo(x.dtype).min if upper else torch.iinfo(x.dtype).max
        return x.new_full(lengths, value)
    return (torch.amax if upper else torch.amin)(x, list(axes), keep)


def mean(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Mean over axes; integers are truncated."""
    return (
        torch.mean(x, list(axes), keep)
        if x.dtype.is_floating_point
        else torch.mean(x.double(), list(axes), keep).to(x.dtype)
    )


def norm1(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Sum of absolute values."""
    return total(x.abs(), axes, keep)


def norm2(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Root of the sum of squares."""
    return torch.sqrt(total(x * x, axes, keep)).to(x.dtype)


def sum_square(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Sum of squares."""
    return total(x * x, axes, keep)


def log_sum(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Logarithm of the sum."""
    return torch.log(total(x, axes, keep))


def log_sum_exp(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Logarithm of the sum of exponentials."""
    return torch.logsumexp(x, list(axes), keep)


_REDUCE: dict[str, Callable[..., Tensor]] = {
    "ReduceSum": total,
    "ReduceMean": mean,
    "ReduceMax": largest,
    "ReduceMin": smallest,
    "ReduceProd": product,
    "ReduceL1": norm1,
    "ReduceL2": norm2,
    "ReduceLogSum": log_sum,
    "ReduceLogSumExp": log_sum_exp,
    "ReduceSumSquare": sum_square,
}
# What exporters and other tools read best, where the operand is float and no axis is empty.
_PLAIN = {"ReduceSum": torch.sum, "ReduceMean": torch.mean, "ReduceMax": torch.amax, "ReduceMin": torch.amin}


@operator(*_REDUCE)
def reduce(call: Call) -> Value:
    """The operators of the table above; no axes means all, unless noop_with_empty_axes."""
    x, axes = call.x(), axes_of(call)
    rank = call.rank(x)
    keep = call.flag("keepdims", 1)
    if not axes and call.flag("noop_with_empty_axes", 0):
        chosen: list[int] = []
        if call.op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
            return x
        return call.emit(_ON_ONE[call.op], x) if call.op in _ON_ONE else x
    chosen = [call.axis(axis, rank) for axis in axes] if axes else list(range(rank))
    if len(set(chosen)) != len(chosen):
        raise Malformed(f"axes {axes} are doubled")
    empty = any(length == 0 for length in call.shape(x))
    plain = call.op in _PLAIN and call.dtype(x).is_floating_point and chosen and not empty
    return call.emit(_PLAIN[call.op] if plain else _REDUCE[call.op], x, chosen, keep)


# A reduction over no axis still applies the function to each entry alone.
_ON_ONE: dict[str, Callable[..., Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceLogSum": torch.log,
    "ReduceSumSquare": torch.square,
}


@operator("CumSum", since=11)
@operator("CumProd", since=26)
def running(call: Call) -> Value:
    """CumSum and CumProd, forwards or backwards, with or without the entry itself."""
    x = call.x()
    axis = call.axis(int(call.number(1)), call.rank(x))
    multiply = call.op == "CumProd"
    return call.emit(accumulated, x, axis, call.flag("exclusive", 0), call.flag("reverse", 0), multiply)


def accumulated(x: Tensor, axis: int, exclusive: bool, backwards: bool, multiply: bool) -> Tensor:
    """Running sum or product along an axis.

    >>> accumulated(torch.tensor([1, 2, 3]), 0, True, False, False)
    tensor([0, 1, 3])
    """
    x = torch.flip(x, [axis]) if backwards else x
    if exclusive:
        first = torch.full_like(x.narrow(axis, 0, 1), 1 if multiply else 0)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    x = torch.cumprod(x, axis, dtype=x.dtype) if multiply else torch.cumsum(x, axis, dtype=x.dtype)
    return torch.flip(x, [axis]) if backwards else x
