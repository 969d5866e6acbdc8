"""Functions of one operand, entry by entry, that torch has under the same meaning."""

from __future__ import annotations

import torch
from torch import Tensor

from ..call import Call
from ..registry import operator
from ..values import Value

_SAME = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,  # both round halves to even
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}


@operator(*_SAME)
def elementwise(call: Call) -> Value:
    """The operators of the table above."""
    return call.emit(_SAME[call.op], call.x())


@operator("IsInf")
def is_inf(call: Call) -> Value:
    """IsInf: either sign can be left out."""
    negative, positive = call.flag("detect_negative", 1), call.flag("detect_positive", 1)
    return call.emit(infinite, call.x(), negative, positive)


def infinite(x: Tensor, negative: bool, positive: bool) -> Tensor:
    """Where `x` is infinite with a sign that counts.

    >>> infinite(torch.tensor([float("-inf"), 1.0]), True, False)
    tensor([ True, False])
    """
    if negative and positive:
        return torch.isinf(x)
    if negative:
        return torch.isneginf(x)
    return torch.isposinf(x) if positive else torch.zeros_like(x, dtype=torch.bool)
