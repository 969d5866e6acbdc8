"""Arithmetic, comparison and logic of several operands, with numpy's broadcasting."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from ..call import Call
from ..registry import operator
from ..values import Malformed, Value
from .linear import flat

_TWO = {
    "Sub": torch.sub,
    "Mul": torch.mul,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
_MANY = {"Sum": torch.add, "Max": torch.maximum, "Min": torch.minimum}


@operator(*_TWO)
def two_operands(call: Call) -> Value:
    """The operators of the first table above."""
    return call.emit(_TWO[call.op], *plain_numbers(call))


def plain_numbers(call: Call) -> list[Any]:
    """The two operands; a known scalar beside a node of its type is a number, which every exporter reads best."""
    first, second = call.x(0), call.x(1)
    if isinstance(first, Node) and isinstance(second, Tensor) and second.ndim == 0 and call.rank(first):
        return [first, second.item()]
    return [first, second]


@operator("Add")
def add(call: Call) -> Value:
    """Add; behind a bias-free linear layer, a known vector is its bias."""
    for index in (0, 1):
        layer, vector = call.raw(index), call.raw(1 - index)
        if isinstance(layer, Node) and isinstance(vector, Tensor) and call.uses.get(index) == 1:
            absorbed = _as_bias(call, layer, vector)
            if absorbed:
                return layer
    return call.emit(torch.add, *plain_numbers(call))


def _as_bias(call: Call, node: Node, vector: Tensor) -> bool:
    if node.op != "call_module":
        return False
    linear = call.builder.root.get_submodule(str(node.target))
    if not isinstance(linear, nn.Linear) or linear.bias is not None or call.builder.calls(node) != 1:
        return False
    if vector.numel() != linear.out_features or not vector.ndim or vector.shape[-1] != linear.out_features:
        return False
    if vector.ndim > call.rank(node):
        return False
    linear.bias = call.builder.parameter(flat(call, vector))
    call.builder.settle(str(node.target))
    return True


@operator("Div")
def div(call: Call) -> Value:
    """Div; integers are truncated towards zero."""
    first, second = plain_numbers(call)
    if call.dtype(call.x(0)).is_floating_point:
        return call.emit(torch.div, first, second)
    _check_divisor(call.x(1))
    return call.emit(torch.div, first, second, rounding_mode="trunc")


def _check_divisor(divisor: Tensor | Node) -> None:
    if isinstance(divisor, Tensor) and not bool(divisor.all()):
        raise Malformed("it divides integers by zero")


@operator("Mod", since=10)
def mod(call: Call) -> Value:
    """Mod: the sign of the divisor, or with fmod=1 of the dividend."""
    if not call.dtype(call.x(1)).is_floating_point:
        _check_divisor(call.x(1))
    elif call.opset < 28 and not call.flag("fmod", 0):
        raise Malformed("floats need fmod=1")
    return call.emit(torch.fmod if call.flag("fmod", 0) else torch.remainder, *plain_numbers(call))


@operator("Pow")
def power(call: Call) -> Value:
    """Pow: the result has the base's type."""
    base, exponent = plain_numbers(call)
    if isinstance(exponent, (int, float)) and call.dtype(call.x(0)).is_floating_point:
        return call.emit(torch.pow, base, exponent)
    return call.emit(typed_power, call.x(0), call.x(1))


def typed_power(base: Tensor, exponent: Tensor) -> Tensor:
    """baseᵉ in the base's type.

    >>> typed_power(torch.tensor([2]), torch.tensor([3.0]))
    tensor([8])
    """
    return torch.pow(base, exponent).to(base.dtype)


@operator("BitShift", since=11)
def bit_shift(call: Call) -> Value:
    """BitShift."""
    left = call.required("direction") == "LEFT"
    return call.emit(torch.bitwise_left_shift if left else torch.bitwise_right_shift, call.x(0), call.x(1))


@operator(*_MANY)
def many_operands(call: Call) -> Value:
    """The operators of the second table above."""
    return reduce(lambda a, b: call.emit(_MANY[call.op], a, b), call.all())


@operator("Mean")
def mean(call: Call) -> Value:
    """Mean of the operands."""
    operands = call.all()
    total = reduce(lambda a, b: call.emit(torch.add, a, b), operands)
    return call.emit(torch.div, total, len(operands)) if len(operands) > 1 else total


@operator("Where", since=9)
def where(call: Call) -> Value:
    """Where."""
    return call.emit(torch.where, call.x(0), call.x(1), call.x(2))
