"""How labels pass through each operator. What is not here pins whatever reaches it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto

from smidgen.model.channels.following import Array, Edit, Follow, Kept, Multiply, attributes

Rule = Callable[[Follow, NodeProto], None]
RULES: dict[str, Rule] = {}

POINTWISE = frozenset({
    "Relu", "LeakyRelu", "Elu", "Celu", "Selu", "Gelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Mish", "Swish",
    "Softplus", "Softsign", "Clip", "Identity", "Cast", "Dropout", "Abs", "Neg", "Exp", "Log", "Sqrt", "Erf", "Floor",
    "Ceil", "Round", "Sign", "Sin", "Cos", "Reciprocal", "ThresholdedRelu", "Not", "IsNaN",
})  # fmt: skip
TOGETHER = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "PRelu", "Where", "Mod", "And", "Or", "Xor",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal",
})  # fmt: skip
WINDOWS = frozenset({
    "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
})  # fmt: skip
REDUCTIONS = frozenset({
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare",
    "ReduceLogSumExp",
})  # fmt: skip
SOFTMAXES = ("Softmax", "LogSoftmax", "Hardmax")


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Registers a rule."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


@rule(*POINTWISE)
def _pointwise(f: Follow, node: NodeProto) -> None:
    for name in node.output:
        f.values[name] = f.values.get(node.input[0])


@rule(*WINDOWS)
def _window(f: Follow, node: NodeProto) -> None:
    if f.varies(node.input[0]) not in (None, 1) or len(node.output) > 1:
        return f.stop(node, f"{node.op_type} runs over them")
    return _pointwise(f, node)


@rule("Resize", "Upsample")
def _resize(f: Follow, node: NodeProto) -> None:
    name, varies = node.input[0], f.varies(node.input[0])
    before, after = f.shapes.get(name), f.shapes.get(node.output[0])
    if before is None or after is None or varies not in (None, 1) or before[1] != after[1]:
        return f.stop(node, f"{node.op_type} runs over them")
    if len(node.input) > 3 and node.input[3] and varies == 1:
        sizes, labels = f.constants.get(node.input[3]), f.along(name, 1)
        if sizes is None or len(sizes) != len(before):
            return f.stop(node, f"{node.op_type} has sizes that are computed")
        f.edits.append(Edit(f.place, 3, lambda kept: _replaced(sizes, 1, kept(labels).sum())))
    return _pointwise(f, node)


@rule(*TOGETHER)
def _together(f: Follow, node: NodeProto) -> None:
    """Operands element by element: their labels become the same where they vary, not where they are broadcast."""
    out = f.shapes.get(node.output[0])
    given = [name for name in node.input if name]
    if out is None or any(name not in f.shapes for name in given):
        return f.stop(node, f"{node.op_type} works on shapes that are not known")
    shapes = {name: (1,) * (len(out) - len(f.shapes[name])) + f.shapes[name] for name in given}
    moving = [name for name in given if name not in f.constants]
    axes = {axis + len(out) - len(f.shapes[n]) for n in moving if (axis := f.varies(n)) is not None}
    if len(axes) > 1:
        return f.stop(node, f"{node.op_type} joins channels of different axes")
    if not axes:
        # An axis that a stored tensor alone has is none of channels.
        return f.plain(node.output[0], f"{node.op_type} joins what is never cut")
    (axis,) = axes
    joined: Array | None = None
    for name in given:
        if shapes[name][axis] == 1:
            continue
        own = axis - (len(out) - len(f.shapes[name]))
        labels = f.axis(name, own) if name in f.constants else f.along(name, own)
        if joined is not None:
            f.labels.join(joined, labels)
        joined = labels if joined is None else joined
    assert joined is not None  # one of them varies
    f.set(node.output[0], joined, axis)
    return None


@rule("Conv")
def _conv(f: Follow, node: NodeProto) -> None:
    weight = node.input[1]
    if weight not in f.constants or node.input[0] not in f.shapes or node.output[0] not in f.shapes:
        return f.stop(node, "a convolution has a weight that is computed")
    outputs, inside, *kernel = f.constants[weight].shape
    inputs, groups = f.along(node.input[0], 1), int(attributes(node).get("group", 1))
    made = f.axis(weight, 0)
    if groups > 1 and inside == 1:
        f.labels.join(made, np.repeat(inputs, outputs // groups))
        f.edits.append(Edit(f.place, "group", lambda kept: kept(inputs).sum()))
    else:
        # Of several groups each loses the same places, or they would not stay of one size.
        for part in inputs.reshape(groups, inside):
            f.labels.join(f.axis(weight, 1, "it reads one channel"), part)
        for part in made.reshape(groups, -1):
            f.labels.join(made[: outputs // groups], part)
    _bias(f, node, 2, made)
    f.set(node.output[0], made, 1)
    positions = prod(f.shapes[node.output[0]][2:])
    f.layers.append(Multiply(_layer(weight), inputs, made, groups, prod(kernel), positions))
    return None


@rule("ConvTranspose")
def _transposed(f: Follow, node: NodeProto) -> None:
    weight = node.input[1]
    groups = int(attributes(node).get("group", 1))
    if weight not in f.constants or node.input[0] not in f.shapes or node.output[0] not in f.shapes:
        return f.stop(node, "a transposed convolution has a weight that is computed")
    inside, outputs, *kernel = f.constants[weight].shape
    inputs = f.along(node.input[0], 1)
    if groups > 1 and (outputs > 1 or inside != groups):
        return f.stop(node, "a transposed convolution has groups")
    f.labels.join(f.axis(weight, 0), inputs)
    made = f.axis(weight, 0) if groups > 1 else f.axis(weight, 1)
    if groups > 1:
        f.edits.append(Edit(f.place, "group", lambda kept: kept(inputs).sum()))
    _bias(f, node, 2, made)
    f.set(node.output[0], made, 1)
    positions = prod(f.shapes[node.input[0]][2:])
    f.layers.append(Multiply(_layer(weight), inputs, made, groups, prod(kernel), positions))
    return None


@rule("Gemm", "MatMul")
def _dense(f: Follow, node: NodeProto) -> None:
    weight, given = node.input[1], attributes(node)
    known = node.input[0] in f.shapes and node.output[0] in f.shapes and node.input[0] not in f.constants
    if weight not in f.constants or f.constants[weight].ndim != 2 or given.get("transA", 0) or not known:
        return f.stop(node, f"{node.op_type} multiplies values with each other")
    rank = len(f.shapes[node.input[0]])
    inputs = f.along(node.input[0], rank - 1)
    read, made = (1, 0) if given.get("transB", 0) else (0, 1)
    f.labels.join(f.axis(weight, read, "it is read alone"), inputs)
    outputs = f.axis(weight, made)
    if node.op_type == "Gemm" and len(node.input) > 2:
        _bias(f, node, 2, outputs)
    f.set(node.output[0], outputs, rank - 1)
    f.layers.append(Multiply(_layer(weight), inputs, outputs, 1, 1, prod(f.shapes[node.output[0]][:-1])))
    return None


def _bias(f: Follow, node: NodeProto, place: int, outputs: Array) -> None:
    if len(node.input) <= place or not node.input[place]:
        return
    name = node.input[place]
    if name not in f.constants:
        f.labels.pin(outputs, "a bias is computed")
    elif f.constants[name].size > 1:
        f.labels.join(f.axis(name, f.constants[name].ndim - 1), outputs)


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")


@rule("BatchNormalization", "InstanceNormalization")
def _norm(f: Follow, node: NodeProto) -> None:
    if any(name not in f.constants for name in node.input[1:]) or node.input[0] not in f.shapes:
        return f.stop(node, f"{node.op_type} has computed parameters")
    labels = f.along(node.input[0], 1)
    for name in node.input[1:]:
        f.labels.join(f.axis(name, 0), labels)
    return f.set(node.output[0], labels, 1)


@rule(*SOFTMAXES, "LayerNormalization", "RMSNormalization", "CumSum")
def _over_one_axis(f: Follow, node: NodeProto) -> None:
    rank, varies = len(f.shapes.get(node.input[0], ())), f.varies(node.input[0])
    axis = int(attributes(node).get("axis", -1)) % max(rank, 1)
    simple = node.op_type in SOFTMAXES
    if varies is not None and (not simple or axis == varies):
        return f.stop(node, f"{node.op_type} runs over them")
    return _pointwise(f, node)


@rule(*REDUCTIONS)
def _reduce(f: Follow, node: NodeProto) -> None:
    name, given = node.input[0], attributes(node)
    shape, out, varies = f.shapes.get(name), f.shapes.get(node.output[0]), f.varies(name)
    axes = given.get("axes")
    if len(node.input) > 1 and node.input[1]:
        axes = f.constants.get(node.input[1])
    if shape is None or out is None or axes is None or varies is None:
        return f.stop(node, f"{node.op_type} runs over them")
    over = {int(axis) % len(shape) for axis in np.atleast_1d(axes)}
    if varies in over:
        return f.stop(node, f"{node.op_type} runs over them")
    gone = 0 if given.get("keepdims", 1) else sum(axis < varies for axis in over)
    return f.set(node.output[0], f.along(name, varies), varies - gone)


@rule("Transpose")
def _transpose(f: Follow, node: NodeProto) -> None:
    labels = f.values.get(node.input[0])
    if labels is None or node.input[0] in f.constants:
        return f.stop(node, "Transpose works on what is not known")
    turned = attributes(node).get("perm", list(reversed(range(labels.ndim))))
    f.values[node.output[0]] = labels.transpose(turned)
    return None


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(f: Follow, node: NodeProto) -> None:
    name, varies = node.input[0], f.varies(node.input[0])
    before, after, labels = f.shapes.get(name), f.shapes.get(node.output[0]), f.values.get(name)
    if before is None or after is None or labels is None or prod(before) != prod(after):
        return f.stop(node, f"{node.op_type} works on shapes that are not known")
    if varies is None:
        return f.plain(node.output[0], _why(f, labels))
    spread = np.broadcast_to(f.labels.roots(labels), before).reshape(after)
    for axis in range(len(after)):
        first = spread.take([0], axis)
        if (spread == first).all():
            spread = first
    sides = [axis for axis, side in enumerate(spread.shape) if side > 1]
    if len(sides) != 1:
        return f.stop(node, f"{node.op_type} puts them on several axes")
    if node.op_type == "Reshape":
        target, flat = f.constants.get(node.input[1]), spread.ravel()
        if target is None:
            return f.stop(node, "Reshape has a shape that is computed")
        if target[sides[0]] > 0:
            f.edits.append(Edit(f.place, 1, lambda kept: _replaced(target, sides[0], kept(flat).sum())))
    f.values[node.output[0]] = spread
    return None


def _why(f: Follow, labels: Array) -> str:
    return f.labels.reason(labels.ravel()[:1])[0] or "it is the only channel"


def _replaced(values: Array, place: int, value: Any) -> Array:
    values = values.copy()
    values[place] = value
    return values


@rule("Concat")
def _concat(f: Follow, node: NodeProto) -> None:
    names = list(node.input)
    if any(name not in f.shapes for name in [*names, node.output[0]]):
        return f.stop(node, "Concat joins shapes that are not known")
    rank = len(f.shapes[node.output[0]])
    axis = int(attributes(node)["axis"]) % rank
    moving = {varies for name in names if (varies := f.varies(name)) is not None}
    if not moving:
        return f.plain(node.output[0], "Concat joins what is never cut")
    if len(moving) > 1 or any(name in f.constants for name in names):
        return f.stop(node, "Concat joins channels of different axes, or constants")
    (varies,) = moving
    parts = [f.along(name, varies) for name in names]
    if varies == axis:
        return f.set(node.output[0], np.concatenate(parts), axis)
    for part in parts[1:]:
        f.labels.join(parts[0], part)
    return f.set(node.output[0], parts[0], varies)


@rule("Split")
def _split(f: Follow, node: NodeProto) -> None:
    name, given = node.input[0], attributes(node)
    shapes = [f.shapes.get(each) for each in node.output]
    if name not in f.shapes or any(shape is None for shape in shapes):
        return f.stop(node, "Split makes shapes that are not known")
    axis = int(given.get("axis", 0)) % len(f.shapes[name])
    varies = f.varies(name)
    if varies != axis:
        for each in node.output:
            f.values[each] = f.values[name]
        return None
    labels = f.along(name, axis)
    ends = np.cumsum([shape[axis] for shape in shapes if shape is not None])
    parts = np.split(labels, ends[:-1])
    for each, part in zip(node.output, parts, strict=True):
        f.set(each, part, axis)
    f.edits.append(Edit(f.place, 1, lambda kept: np.array([kept(part).sum() for part in parts], dtype=np.int64)))
    return None


@rule("Slice")
def _slice(f: Follow, node: NodeProto) -> None:
    name, varies = node.input[0], f.varies(node.input[0])
    operands = [f.constants.get(each) if each else None for each in [*node.input[1:], "", ""][:4]]
    starts, ends, axes, steps = operands
    computed = any(each and each not in f.constants for each in node.input[1:])
    if starts is None or ends is None or computed or name not in f.shapes or node.output[0] not in f.shapes:
        return f.stop(node, "Slice has places that are computed")
    rank = len(f.shapes[name])
    over = [int(a) % rank for a in (range(len(starts)) if axes is None else axes)]
    if varies is None or varies not in over:
        return _pointwise(f, node)
    place, labels = over.index(varies), f.along(name, varies)
    if steps is not None and steps[place] != 1:
        return f.stop(node, "Slice takes channels with a step")
    first, last, _ = slice(int(starts[place]), int(ends[place])).indices(len(labels))
    # All starts and ends become counts of what is kept before them.
    f.edits.append(Edit(f.place, 1, lambda kept: _replaced(starts, place, kept(labels[:first]).sum())))
    f.edits.append(Edit(f.place, 2, lambda kept: _replaced(ends, place, kept(labels[:last]).sum())))
    return f.set(node.output[0], labels[first:last], varies)


@rule("Gather")
def _gather(f: Follow, node: NodeProto) -> None:
    name, varies = node.input[0], f.varies(node.input[0])
    indices, shape = f.constants.get(node.input[1]), f.shapes.get(name)
    if shape is None or node.output[0] not in f.shapes or name in f.constants:
        return f.stop(node, "Gather works on what is not known")
    axis = int(attributes(node).get("axis", 0)) % len(shape)
    if varies is None:
        return f.plain(node.output[0], "Gather takes what is never cut")
    if indices is None or indices.ndim != 1 or axis != varies:
        return f.stop(node, "Gather takes single channels, or computed ones")
    labels = f.along(name, axis)
    whole = indices % len(labels)

    def renumbered(kept: Kept) -> Array:
        left = kept(labels)
        return (np.cumsum(left) - 1)[whole[left[whole]]].astype(np.int64)

    f.edits.append(Edit(f.place, 1, renumbered))
    return f.set(node.output[0], labels[whole], axis)


@rule("Pad")
def _pad(f: Follow, node: NodeProto) -> None:
    """Padded channels are channels of their own: cut with what they are added to, by padding less."""
    name, varies = node.input[0], f.varies(node.input[0])
    pads, given = f.constants.get(node.input[1]) if len(node.input) > 1 else None, attributes(node)
    if pads is None or name not in f.shapes or node.output[0] not in f.shapes:
        return f.stop(node, "Pad has sizes that are computed")
    axes = f.constants.get(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    over = [int(a) % len(f.shapes[name]) for a in (range(len(pads) // 2) if axes is None else axes)]
    if varies is None or varies not in over:
        return _pointwise(f, node)
    place, half = over.index(varies), len(pads) // 2
    before, after = int(pads[place]), int(pads[place + half])
    if before or after:
        if min(before, after) < 0 or given.get("mode", b"constant") != b"constant":
            return f.stop(node, "Pad repeats channels, or takes some away")
        head, tail = f.labels.fresh(before), f.labels.fresh(after)

        def fewer(kept: Kept) -> Array:
            return _replaced(_replaced(pads, place, kept(head).sum()), place + half, kept(tail).sum())

        f.edits.append(Edit(f.place, 1, fewer))
        return f.set(node.output[0], np.concatenate([head, f.along(name, varies), tail]), varies)
    return _pointwise(f, node)


@rule("Constant")
def _constant(f: Follow, node: NodeProto) -> None:
    return None
