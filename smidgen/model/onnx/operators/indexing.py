"""Taking and putting entries by index."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from ..call import Call
from ..registry import operator
from ..values import Malformed, Value

_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Gather")
def gather(call: Call) -> Value:
    """Gather: a lookup in a known matrix is an embedding."""
    x, places = call.x(0), call.x(1)
    axis = call.axis(call.attr("axis", 0), call.rank(x))
    length = call.shape(x)[axis] if call.rank(x) else None
    if isinstance(places, Tensor):
        if length is not None and places.numel() and not bool(((places >= -length) & (places < length)).all()):
            raise Malformed(f"an index lies outside an axis of {length}")
        if places.ndim == 0:
            return call.emit(torch.select, x, axis, int(places.item()))
        if length is not None:
            places = torch.where(places < 0, places + length, places)
        if places.ndim == 1:
            return call.emit(torch.index_select, x, axis, places)
    elif isinstance(x, Tensor) and x.ndim == 2 and axis == 0 and x.is_floating_point():
        layer = nn.Embedding(x.shape[0], x.shape[1], device="meta", dtype=x.dtype)
        places = call.emit(nonnegative, places, x.shape[0])
        return call.layer(layer, {"weight": x}, places)
    return call.emit(take, x, places, axis)


def nonnegative(places: Tensor, length: int | torch.SymInt) -> Tensor:
    """Indices counted from the front.

    >>> nonnegative(torch.tensor([-1, 1]), 4)
    tensor([3, 1])
    """
    wrapped: Any = places + length  # torch's stubs do not know that sizes are numbers
    return torch.where(places < 0, wrapped, places)


def take(x: Tensor, places: Tensor, axis: int) -> Tensor:
    """Entries of `x` along an axis, by an array of indices of any shape.

    >>> take(torch.tensor([5, 6, 7]), torch.tensor([[-1, 0]]), 0)
    tensor([[7, 5]])
    """
    flat = nonnegative(places, x.shape[axis]).reshape(-1).long()
    taken = torch.index_select(x, axis, flat)
    return taken.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


@operator("GatherElements", since=11)
def gather_elements(call: Call) -> Value:
    """GatherElements."""
    x, places = call.x(0), call.x(1)
    axis = call.axis(call.attr("axis", 0), call.rank(x))
    return call.emit(torch.gather, x, axis, _front(call, x, places, axis))


def _front(call: Call, x: Tensor | Node, places: Tensor | Node, axis: int) -> Tensor | Node:
    length = call.builder.size(x, axis)
    if call.dtype(places) != torch.int64:
        places = call.emit(torch.Tensor.to, places, torch.int64)
    return call.emit(nonnegative, places, length)


@operator("GatherND", since=11)
def gather_nd(call: Call) -> Value:
    """GatherND."""
    return call.emit(take_nd, call.x(0), call.x(1), call.attr("batch_dims", 0))


def take_nd(x: Tensor, places: Tensor, batch_axes: int) -> Tensor:
    """Slices of `x` by index vectors, the last axis of `places`.

    >>> take_nd(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 0]]), 0)
    tensor([3])
    """
    batch = list(places.shape[:batch_axes])
    flat_x = x.reshape([math.prod(batch), *x.shape[batch_axes:]])
    flat = places.reshape([math.prod(batch), -1, places.shape[-1]])
    first = torch.arange(flat.shape[0], device=x.device)[:, None]
    vectors = [nonnegative(flat[..., i], flat_x.shape[i + 1]) for i in range(places.shape[-1])]
    taken = flat_x[(first, *vectors)]
    return taken.reshape([*places.shape[:-1], *x.shape[batch_axes + places.shape[-1] :]])


@operator("ScatterElements", since=11)
@operator("Scatter", since=9, until=10)
def scatter_elements(call: Call) -> Value:
    """ScatterElements, called Scatter before opset 11."""
    x, places, updates = call.x(0), call.x(1), call.x(2)
    axis, how = call.axis(call.attr("axis", 0), call.rank(x)), call.attr("reduction", "none")
    places = _front(call, x, places, axis)
    if how == "none":
        return call.emit(torch.scatter, x, axis, places, updates)
    if how not in _SCATTER:
        raise Malformed(f"reduction {how!r} is unknown")
    return call.emit(torch.scatter_reduce, x, axis, places, updates, _SCATTER[how])


@operator("ScatterND", since=11)
def scatter_nd(call: Call) -> Value:
    """ScatterND."""
    how = call.attr("reduction", "none")
    if how != "none" and how not in _SCATTER:
        raise Malformed(f"reduction {how!r} is unknown")
    return call.emit(put_nd, call.x(0), call.x(1), call.x(2), _SCATTER.get(how))


def put_nd(x: Tensor, places: Tensor, updates: Tensor, reduction: str | None) -> Tensor:
    """`x` with slices replaced, or reduced with, by index vectors, the last axis of `places`.

    >>> put_nd(torch.zeros(3), torch.tensor([[1]]), torch.tensor([5.0]), None)
    tensor([0., 5., 0.])
    """
    depth = places.shape[-1]
    rest = x.shape[depth:]
    flat = x.reshape([math.prod(x.shape[:depth]), math.prod(rest)])
    row = torch.zeros_like(places[..., 0])
    for axis in range(depth):
        row = row * x.shape[axis] + nonnegative(places[..., axis], x.shape[axis])
    rows = row.reshape(-1, 1).expand(-1, flat.shape[1])
    new = updates.reshape(rows.shape)
    if reduction is None:
        return flat.scatter(0, rows, new).reshape(x.shape)
    return flat.scatter_reduce(0, rows, new, reduction).reshape(x.shape)


@operator("OneHot", since=9)
def one_hot(call: Call) -> Value:
    """OneHot: off and on values by index."""
    depth, axis = int(call.number(1)), call.attr("axis", -1)
    places, values = call.x(0), call.x(2)
    if not 1 <= depth < 1 << 31:
        raise Malformed(f"depth {depth} is out of range")
    return call.emit(one_hot_of, places, depth, values, call.axis(axis, call.rank(places) + 1))


def one_hot_of(places: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
    """values[1] where the index along the new axis is the entry of `places`, else values[0].

    >>> one_hot_of(torch.tensor([1]), 2, torch.tensor([0, 9]), 1)
    tensor([[0, 9]])
    """
    steps = torch.arange(depth, device=places.device)
    inside = (places >= -depth) & (places < depth)
    hot = ((places % depth)[..., None] == steps) & inside[..., None]
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


@operator("NonZero", since=9)
def non_zero(call: Call) -> Value:
    """NonZero: how many there are is known only when the network runs."""
    x = call.x()
    if call.rank(x) == 0:
        x = call.emit(torch.reshape, x, [1])
    rank = call.rank(x)
    if isinstance(x, Tensor):
        return call.emit(places_of_nonzero, x)
    # Any two lengths that differ mark the axis as dynamic.
    probes = tuple(torch.empty(rank, count, dtype=torch.int64, device="meta") for count in (5, 7))
    return call.emit(places_of_nonzero, x, probes=probes)


def places_of_nonzero(x: Tensor) -> Tensor:
    """Indices of the entries that are not zero, one column each.

    >>> places_of_nonzero(torch.tensor([0, 3]))
    tensor([[1]])
    """
    return torch.nonzero(x).t()


@operator("Compress", since=9)
def compress(call: Call) -> Value:
    """Compress by a known condition."""
    x, keep = call.x(0), call.constant(1).reshape(-1)
    if "axis" not in call.attributes:
        x = call.emit(torch.reshape, x, [-1])
    axis = call.axis(call.attr("axis", 0), call.rank(x))
    return call.emit(torch.index_select, x, axis, torch.nonzero(keep).reshape(-1))


@operator("ReverseSequence", since=10)
def reverse_sequence(call: Call) -> Value:
    """ReverseSequence."""
    x, lengths = call.x(0), call.x(1)
    time, batch = call.attr("time_axis", 0), call.attr("batch_axis", 1)
    if call.rank(x) < 2 or sorted((time, batch)) != [0, 1]:
        raise Malformed("time_axis and batch_axis must be 0 and 1")
    return call.emit(reversed_steps, x, lengths, time)


def reversed_steps(x: Tensor, lengths: Tensor, time: int) -> Tensor:
    """The first `lengths` steps of each sequence backwards; time is axis 0 or 1, the batch the other.

    >>> reversed_steps(torch.tensor([[1, 2, 3]]), torch.tensor([2]), 1)
    tensor([[2, 1, 3]])
    """
    steps = torch.arange(x.shape[time], device=x.device)
    places = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    places = places if time == 1 else places.t()
    wide = places.reshape([*places.shape, *[1] * (x.ndim - 2)]).expand(x.shape)
    return torch.gather(x, time, wide)


@operator("TopK", since=10)
def top_k(call: Call) -> tuple[Value, ...]:
    """TopK; of equal entries the first comes first."""
    x, count = call.x(0), call.lengths(1)
    axis = call.axis(call.attr("axis", -1), call.rank(x))
    if len(count) != 1 or (isinstance(count[0], int) and count[0] < 0):
        raise Malformed(f"k {count} must be one number that is not negative")
    length = call.shape(x)[axis]
    if isinstance(count[0], int) and length is not None and count[0] > length:
        raise Malformed(f"k {count[0]} is more than the axis of {length} has")
    return call.builder.parts(call.emit(first_k, x, count[0], axis, call.flag("largest", 1)), 2)


def first_k(x: Tensor, count: int | torch.SymInt, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The `count` largest or smallest entries and their places, in order.

    >>> first_k(torch.tensor([1, 3, 3]), 2, 0, True)[1]
    tensor([1, 2])
    """
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@operator("ArgMax", "ArgMin")
def arg_extreme(call: Call) -> Value:
    """ArgMax, ArgMin."""
    x = call.x()
    axis, keep = call.axis(call.attr("axis", 0), call.rank(x)), call.flag("keepdims", 1)
    target = torch.argmax if call.op == "ArgMax" else torch.argmin
    if call.flag("select_last_index", 0):
        return call.emit(last_place, x, axis, keep, call.op == "ArgMax")
    return call.emit(target, x, axis, keep)


def last_place(x: Tensor, axis: int, keep: bool, largest: bool) -> Tensor:
    """Place of the last of the largest (or smallest) entries.

    >>> last_place(torch.tensor([2, 2]), 0, False, True)
    tensor(1)
    """
    backwards = torch.flip(x, [axis])
    place = torch.argmax(backwards, axis, keep) if largest else torch.argmin(backwards, axis, keep)
    return x.shape[axis] - 1 - place


@operator("Trilu", since=14)
def trilu(call: Call) -> Value:
    """Trilu."""
    x, diagonal = call.x(), int(call.number(1)) if call.has(1) else 0
    if call.rank(x) < 2:
        raise Malformed("its operand must have rank 2 or more")
    diagonal = max(-(1 << 30), min(diagonal, 1 << 30))
    return call.emit(torch.triu if call.flag("upper", 1) else torch.tril, x, diagonal)
