"""Joining, cutting and padding."""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ..call import Call
from ..limits import MAX_FOLDED
from ..registry import operator
from ..values import Malformed, Size, Value
from .shaping import axes_of

_FAR = 1 << 31
"""Exporters write ends such as 2⁶³−1 or −2⁶³ for 'up to the end'; no axis is this long."""


@operator("Concat")
def concat(call: Call) -> Value:
    """Concat."""
    parts = call.all()
    axis = call.axis(call.required("axis"), call.rank(parts[0]))
    if len({call.rank(part) for part in parts}) > 1:
        raise Malformed("operands of different ranks")
    return call.emit(torch.cat, parts, axis) if len(parts) > 1 else parts[0]


@operator("Split")
def split(call: Call) -> tuple[Value, ...]:
    """Split into the lengths given, or into as many parts as there are outputs."""
    x, count = call.x(), len(call.outputs)
    axis = call.axis(call.attr("axis", 0), call.rank(x))
    lengths = call.attributes["split"] if "split" in call.attributes else call.ints(1) if call.has(1) else None
    total = call.shape(x)[axis]
    if lengths is None:
        if total is None:
            raise Malformed("splitting a dynamic axis needs the lengths")
        if call.attr("num_outputs", count) != count:
            raise Malformed(f"num_outputs does not fit {count} outputs")
        each = -(-total // count)
        lengths = [each] * (count - 1) + [total - each * (count - 1)]
    if len(lengths) != count or min(lengths) < 0 or (total is not None and sum(lengths) != total):
        raise Malformed(f"lengths {lengths} do not fit {count} outputs and an axis of {total}")
    return call.builder.parts(call.emit(torch.split, x, list(lengths), axis), count)


@operator("Slice", until=9)
def slice_attributes(call: Call) -> Value:
    """Slice whose bounds are attributes."""
    starts, ends = call.required("starts"), call.required("ends")
    axes = call.attr("axes", list(range(len(starts))))
    return _sliced(call, list(starts), list(ends), list(axes), [1] * len(starts))


@operator("Slice", since=10)
def slice_operands(call: Call) -> Value:
    """Slice whose bounds are operands, which may be sizes of the input."""
    starts, ends = call.lengths(1), call.lengths(2)
    axes = call.ints(3) if call.has(3) else list(range(len(starts)))
    return _sliced(call, starts, ends, axes, call.ints(4) if call.has(4) else [1] * len(starts))


def _sliced(call: Call, starts: list[Size], ends: list[Size], axes: list[int], steps: list[int]) -> Value:
    x = call.x()
    rank = call.rank(x)
    chosen = [call.axis(axis, rank) for axis in axes]
    if not len(starts) == len(ends) == len(axes) == len(steps) or len(set(chosen)) != len(chosen) or 0 in steps:
        raise Malformed(f"starts {starts}, ends {ends}, axes {axes} and steps {steps} do not fit")
    cuts: list[slice] = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, chosen, steps, strict=True):
        if step > 0:
            cuts[axis] = _cut(call.shape(x)[axis], start, end, step)
        else:
            x = _backwards(call, x, start, end, axis, step)
    return x if all(cut == slice(None) for cut in cuts) else call.emit(getitem, x, tuple(cuts))


def _cut(length: int | None, start: Size, end: Size, step: int) -> slice:
    if length is not None and isinstance(start, int) and isinstance(end, int):
        first, last, _ = slice(start, end, step).indices(length)
        whole = first == 0 and last == length
        return slice(None) if whole and step == 1 else slice(first, max(first, last), min(step, max(length, 1)))
    if isinstance(start, int) and abs(start) >= _FAR:
        start = 0 if start < 0 else start
    first = None if isinstance(start, int) and start == 0 else start
    last = None if isinstance(end, int) and end >= _FAR else end
    return slice(first, last, None if step == 1 else step)


def _backwards(call: Call, x: Tensor | Node, start: Size, end: Size, axis: int, step: int) -> Tensor | Node:
    length = call.shape(x)[axis]
    if not isinstance(start, int) or not isinstance(end, int):
        raise Malformed("a negative step needs static bounds")
    if length is None:
        if start < -1 or 0 <= start < _FAR or end > -_FAR:
            raise Malformed("a negative step over a part of a dynamic axis is not supported")
        x = call.emit(torch.flip, x, [axis])
        cuts = [slice(None)] * axis + [slice(None, None, -step)]
        return call.emit(getitem, x, tuple(cuts))
    taken = range(*slice(start, end, step).indices(length))
    x = call.emit(torch.flip, x, [axis])
    first = length - 1 - taken.start
    cut = slice(first, first + (len(taken) - 1) * -step + 1, -step) if len(taken) else slice(0, 0)
    return call.emit(getitem, x, (*[slice(None)] * axis, cut))


@operator("Pad", until=10)
def pad_attributes(call: Call) -> Value:
    """Pad whose lengths are an attribute."""
    x = call.x()
    return _padded(call, x, list(call.required("pads")), list(range(call.rank(x))), call.attr("value", 0.0))


@operator("Pad", since=11)
def pad(call: Call) -> Value:
    """Pad whose lengths are an operand, which may be sizes of the input."""
    x = call.x()
    axes = [call.axis(axis, call.rank(x)) for axis in call.ints(3)] if call.has(3) else list(range(call.rank(x)))
    return _padded(call, x, call.lengths(1), axes, call.number(2) if call.has(2) else 0)


def _padded(call: Call, x: Tensor | Node, pads: list[Size], axes: list[int], value: int | float | bool) -> Value:
    rank, mode, count = call.rank(x), call.attr("mode", "constant"), len(axes)
    if len(pads) != 2 * count or len(set(axes)) != count:
        raise Malformed(f"pads {pads} do not fit axes {axes}")
    before, after = dict(zip(axes, pads[:count], strict=True)), dict(zip(axes, pads[count:], strict=True))
    if not any(isinstance(p, Node) or p for p in pads):
        return x
    touched = [axis for axis in sorted(axes) if before[axis] != 0 or after[axis] != 0]
    if mode == "constant":
        order = [
            size for axis in reversed(range(min(touched), rank)) for size in (before.get(axis, 0), after.get(axis, 0))
        ]
        return call.emit(F.pad, x, order, "constant", value)
    if any(isinstance(p, Node) for p in pads):
        raise Malformed(f"mode {mode!r} needs static pads")
    plain = mode in ("reflect", "edge") and call.dtype(x).is_floating_point and min(call_ints(pads)) >= 0
    if plain and touched[0] >= 2 and rank in (3, 4, 5):
        order = [size for axis in reversed(range(2, rank)) for size in (before.get(axis, 0), after.get(axis, 0))]
        return call.emit(F.pad, x, order, {"reflect": "reflect", "edge": "replicate"}[mode])
    for axis in touched:
        length = call.shape(x)[axis]
        if length is None or length == 0:
            raise Malformed(f"mode {mode!r} needs a static axis {axis} that is not empty")
        x = call.emit(torch.index_select, x, axis, _places(mode, length, before[axis], after[axis]))
    return x


def call_ints(pads: Sequence[Size]) -> list[int]:
    """The known ones among sizes."""
    return [size for size in pads if isinstance(size, int)]


def _places(mode: str, length: int, before: Size, after: Size) -> Tensor:
    """Which entry of the axis each padded entry repeats."""
    assert isinstance(before, int)
    assert isinstance(after, int)
    if max(abs(before), abs(after)) > MAX_FOLDED or not 0 <= length + before + after <= MAX_FOLDED:
        raise Malformed(f"pads {before} and {after} are out of range")
    places = torch.arange(-before, length + after)
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    if mode == "reflect":
        period = max(2 * (length - 1), 1)
        places = places % period
        return torch.where(places < length, places, period - places)
    raise Malformed(f"mode {mode!r} is unknown")


@operator("CenterCropPad", since=18)
def center_crop_pad(call: Call) -> Value:
    """CenterCropPad."""
    x, target = call.x(), call.ints(1)
    axes = [call.axis(axis, call.rank(x)) for axis in axes_of(call, 9) or range(call.rank(x))]
    if len(target) != len(axes):
        raise Malformed(f"shape {target} does not fit axes {axes}")
    pads = [0] * (2 * call.rank(x))
    for axis, wanted in zip(axes, target, strict=True):
        length = call.shape(x)[axis]
        if length is None:
            raise Malformed(f"axis {axis} must be static")
        missing = wanted - length
        before = missing // 2 if missing >= 0 else -(-missing // 2)
        place = 2 * (call.rank(x) - 1 - axis)
        pads[place : place + 2] = [before, missing - before]
    return call.emit(F.pad, x, pads) if any(pads) else x
