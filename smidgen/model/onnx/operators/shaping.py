"""Shape: reading it, and changing it without changing an entry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..call import Call
from ..limits import BATCH_PROBES
from ..registry import operator
from ..values import Malformed, Size, Value


@operator("Identity")
def identity(call: Call) -> Value:
    """Identity: nothing is left of it."""
    return call.raw(0)


@operator("Dropout", until=11)
def dropout_attribute(call: Call) -> Value:
    """Dropout does nothing in inference."""
    if len(call.outputs) > 1 and call.outputs[1]:
        raise Malformed("the mask of dropout is not supported; export the network in eval mode")
    return call.raw(0)


@operator("Dropout", since=12)
def dropout(call: Call) -> Value | tuple[Value, Value]:
    """Dropout does nothing in inference; its mask is all true."""
    if call.has(2) and call.number(2) and not (call.is_constant(1) and call.number(1) == 0):
        raise Malformed("training mode is not supported; export the network in eval mode")
    if len(call.outputs) > 1 and call.outputs[1]:
        return call.raw(0), call.emit(torch.ones_like, call.x(), dtype=torch.bool)
    return call.raw(0)


@operator("Shape")
def shape(call: Call) -> Value:
    """Shape, or from opset 15 a part of it."""
    sizes = call.sizes(call.x())
    return call.as_sizes(sizes[slice(call.attr("start", 0), call.attr("end"))])


@operator("Size")
def size(call: Call) -> Value:
    """Size."""
    return call.as_sizes(product(call, call.sizes(call.x())))


def product(call: Call, sizes: Sequence[Size]) -> Size:
    """Product of sizes."""
    total: Size = math.prod(size for size in sizes if isinstance(size, int))
    for size_node in (size for size in sizes if not isinstance(size, int)):
        total = call.emit(mul, total, size_node)
    return total


@operator("Reshape")
def reshape(call: Call) -> Value:
    """Reshape: 0 keeps a length, −1 is what is left."""
    x, target = call.x(), call.lengths(1)
    if not call.flag("allowzero", 0):
        target = [_kept(call, x, axis) if _is(size, 0) else size for axis, size in enumerate(target)]
    if sum(_is(size, -1) for size in target) > 1 or any(isinstance(size, int) and size < -1 for size in target):
        raise Malformed(f"shape {target} is not one")
    return call.emit(torch.reshape, x, _known_rest(call, x, _freed_batch(call, x, target)))


def _is(size: Size, number: int) -> bool:
    return isinstance(size, int) and size == number


def _kept(call: Call, x: Tensor | Node, axis: int) -> Size:
    if axis >= call.rank(x):
        raise Malformed(f"shape holds 0 at axis {axis}, which the operand does not have")
    return call.builder.size(x, axis)


def _freed_batch(call: Call, x: Tensor | Node, target: list[Size]) -> list[Size]:
    """Where a file's fixed batch was made dynamic, a target that begins with that batch follows it."""
    batch = call.builder.fixed_batch
    if batch is None or not target or not _is(target[0], batch) or not isinstance(x, Node):
        return target
    counts = [probe.numel() for probe in x.meta["probes"]]
    each = {count // probe for count, probe in zip(counts, BATCH_PROBES, strict=True)}
    fixed = math.prod(size for size in target[1:] if isinstance(size, int) and size != -1)
    if len(each) != 1 or any(count % probe for count, probe in zip(counts, BATCH_PROBES, strict=True)):
        return target
    has_rest = any(_is(size, -1) for size in target[1:])
    if not fixed or (each.pop() % fixed if has_rest else each.pop() != fixed):
        return target
    if not has_rest and all(isinstance(size, int) for size in target[1:]):
        return [-1, *target[1:]]
    return [call.builder.size(x, 0) if call.builder.is_batch(x, 0) else call.builder.batch_size(), *target[1:]]


def _known_rest(call: Call, x: Tensor | Node, target: list[Size]) -> list[Size]:
    """−1 replaced by its number where that is static, which torch needs beside a length of 0."""
    lengths = call.shape(x)
    others = [size for size in target if not _is(size, -1)]
    if None in lengths or any(isinstance(size, Node) for size in others) or len(others) == len(target):
        return target
    total, fixed = math.prod(n for n in lengths if n is not None), math.prod(n for n in others if isinstance(n, int))
    rest = total // fixed if fixed else 0
    return [rest if _is(size, -1) else size for size in target]


@operator("Flatten")
def flatten(call: Call) -> Value:
    """Flatten to a matrix."""
    x = call.x()
    rank, axis = call.rank(x), call.attr("axis", 1)
    if not -rank <= axis <= rank:
        raise Malformed(f"axis {axis} does not exist in a tensor of rank {rank}")
    axis = axis + rank if axis < 0 else axis
    if axis == 1 and rank > 1:
        return call.emit(torch.flatten, x, 1)
    if axis == 0 or rank == axis == 1:
        return call.emit(torch.reshape, x, [1, -1] if axis == 0 else [-1, 1])
    if axis == rank:
        return call.emit(torch.reshape, x, [-1, 1])
    return call.emit(torch.flatten, call.emit(torch.flatten, x, axis), 0, axis - 1)


def axes_of(call: Call, index: int = 1) -> list[int] | None:
    """Axes from the attribute (older opsets) or the operand, None where they are left out."""
    if "axes" in call.attributes:
        return list(call.attributes["axes"])
    return call.ints(index) if call.has(index) else None


@operator("Squeeze")
def squeeze(call: Call) -> Value:
    """Squeeze."""
    x, axes = call.x(), axes_of(call)
    lengths = call.shape(x)
    if axes is None:
        chosen = [axis for axis, length in enumerate(lengths) if length == 1]
    else:
        chosen = sorted({call.axis(axis, len(lengths)) for axis in axes})
    if any(lengths[axis] != 1 for axis in chosen):
        raise Malformed(f"axes {chosen} of {list(lengths)} are not all of length 1")
    for axis in reversed(chosen):
        x = call.emit(torch.squeeze, x, axis)
    return x


@operator("Unsqueeze")
def unsqueeze(call: Call) -> Value:
    """Unsqueeze."""
    x, axes = call.x(), axes_of(call)
    if axes is None:
        raise Malformed("axes are missing")
    rank = call.rank(x) + len(axes)
    chosen = sorted({call.axis(axis, rank) for axis in axes})
    if len(chosen) != len(axes):
        raise Malformed(f"axes {axes} are doubled")
    for axis in chosen:
        x = call.emit(torch.unsqueeze, x, axis)
    return x


@operator("Transpose")
def transpose(call: Call) -> Value:
    """Transpose."""
    x = call.x()
    order = call.attr("perm", list(reversed(range(call.rank(x)))))
    if sorted(order) != list(range(call.rank(x))):
        raise Malformed(f"perm {order} is no permutation of {call.rank(x)} axes")
    return call.emit(torch.permute, x, order)


@operator("Expand", since=8)
def expand(call: Call) -> Value:
    """Expand: broadcasts both ways, so a target length of 1 keeps the operand's."""
    x, target = call.x(), call.lengths(1)
    lengths = list(call.shape(x))
    grown = max(len(lengths) - len(target), 0)
    target = [1] * grown + target
    lengths = [1] * (len(target) - len(lengths)) + lengths
    new = len(target) - call.rank(x)
    sizes: list[Any] = []
    for axis, (length, wanted) in enumerate(zip(lengths, target, strict=True)):
        if length == 1 or axis < new:
            sizes.append(wanted)
        elif isinstance(wanted, int) and wanted != 1 and length is not None and wanted != length:
            raise Malformed(f"an axis of {length} does not expand to {wanted}")
        else:
            sizes.append(-1)
    return call.emit(torch.Tensor.expand, x, sizes)


@operator("Tile")
def tile(call: Call) -> Value:
    """Tile."""
    x, repeats = call.x(), call.lengths(1)
    if len(repeats) != call.rank(x) or any(isinstance(n, int) and n < 0 for n in repeats):
        raise Malformed(f"repeats {repeats} do not fit an operand of rank {call.rank(x)}")
    return call.emit(torch.tile, x, repeats)


@operator("DepthToSpace")
def depth_to_space(call: Call) -> Value:
    """DepthToSpace."""
    x, block = call.x(), _block(call)
    if call.attr("mode", "DCR") == "CRD":
        return call.emit(torch.pixel_shuffle, x, block)
    return call.emit(depth_first, x, block)


def depth_first(x: Tensor, block: int) -> Tensor:
    """Channels to blocks of pixels, the block's place counting slower than the channel.

    >>> depth_first(torch.arange(4.0).reshape(1, 4, 1, 1), 2).flatten()
    tensor([0., 1., 2., 3.])
    """
    n, c, h, w = x.shape
    split = x.reshape(n, block, block, c // (block * block), h, w)
    return split.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (block * block), h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call) -> Value:
    """SpaceToDepth."""
    if call.attr("mode", "DCR") == "CRD":
        return call.emit(torch.pixel_unshuffle, call.x(), _block(call))
    return call.emit(blocks_first, call.x(), _block(call))


def blocks_first(x: Tensor, block: int) -> Tensor:
    """Blocks of pixels to channels, the block's place counting slower than the channel.

    >>> blocks_first(torch.arange(4.0).reshape(1, 1, 2, 2), 2).flatten()
    tensor([0., 1., 2., 3.])
    """
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // block, block, w // block, block)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block * block, h // block, w // block)


def _block(call: Call) -> int:
    block = call.required("blocksize")
    if not 1 <= block <= 1 << 12 or call.rank(call.x()) != 4:
        raise Malformed(f"blocksize {block} or an operand of rank {call.rank(call.x())}")
    return block
