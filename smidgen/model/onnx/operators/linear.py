"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Node

from ..call import Call
from ..registry import operator
from ..values import Malformed, Value


@operator("MatMul", since=7)
def matmul(call: Call) -> Value:
    """MatMul: a linear layer where the right operand is a known matrix."""
    x, weight = call.x(0), call.x(1)
    if isinstance(x, Node) and isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point():
        return linear(call, x, _transposed(call, weight), None)
    return call.emit(torch.matmul, x, weight)


def flat(call: Call, tensor: Tensor) -> Tensor:
    """A known tensor as a vector; the same vector each time."""
    return tensor if tensor.ndim == 1 else call.builder.derived_once(tensor, "flat", lambda t: t.reshape(-1))


def _transposed(call: Call, weight: Tensor) -> Tensor:
    return call.builder.derived_once(weight, "t", lambda w: w.t().contiguous())


def linear(call: Call, x: Node, weight: Tensor, bias: Tensor | None) -> Value:
    """nn.Linear with a known weight (out × in)."""
    outputs, inputs = weight.shape
    if not inputs or not outputs:
        raise Malformed(f"the weight is empty: {list(weight.shape)}")
    module = nn.Linear(inputs, outputs, bias=bias is not None, device="meta", dtype=weight.dtype)
    return call.layer(module, {"weight": weight, "bias": bias}, x)


@operator("Gemm")
def gemm(call: Call) -> Value:
    """Gemm: alpha · A B + beta · C; a linear layer where B and C are known."""
    a, b, c = call.x(0), call.x(1), call.optional(2)
    if call.rank(a) != 2 or call.rank(b) != 2:
        raise Malformed("its operands must be matrices")
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    if call.flag("transA", 0):
        a = call.emit(torch.t, a)
    if isinstance(a, Node) and isinstance(b, Tensor) and b.is_floating_point() and _fits_bias(c, b, call):
        weight = b if call.flag("transB", 0) else _transposed(call, b)
        bias = _scaled(call, flat(call, c), beta) if isinstance(c, Tensor) else None
        return linear(call, a, _scaled(call, weight, alpha), bias)
    if call.flag("transB", 0):
        b = call.emit(torch.t, b)
    product = call.emit(torch.matmul, a, b)
    if alpha != 1:
        product = call.emit(torch.mul, product, _number(call, alpha))
    if c is None:
        return product
    if beta != 1:
        c = call.emit(torch.mul, c, _number(call, beta))
    if call.rank(c) > 2:
        raise Malformed("C must broadcast to a matrix")
    result = call.emit(torch.add, product, c)
    if call.shape(result) != call.shape(product):
        raise Malformed("C must broadcast to the product")
    return result


def _number(call: Call, value: float) -> int | float:
    # Integer matrices come with the default 1.0 or another whole number.
    return value if call.dtype(call.x(0)).is_floating_point else int(value)


def _fits_bias(c: Tensor | Node | None, b: Tensor, call: Call) -> bool:
    outputs = b.shape[0] if call.flag("transB", 0) else b.shape[1]
    return c is None or (isinstance(c, Tensor) and tuple(c.shape) in ((outputs,), (1, outputs)))


def _scaled(call: Call, tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else call.builder.derived(tensor, torch.mul, factor)


@operator("Einsum", since=12)
def einsum(call: Call) -> Value:
    """Einsum."""
    return call.emit(torch.einsum, call.required("equation").replace(" ", ""), *call.all())
