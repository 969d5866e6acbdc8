"""Quantized operators, computed in floats on real integers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from ..call import Call
from ..registry import operator
from ..tensors import dtype_of
from ..values import Malformed, Value
from .convolution import conv_call

EVERYWHERE = -1
"""In place of an axis: every entry has a scale of its own."""


def _along(call: Call, x: Tensor | Node, scale: Tensor | Node) -> int | None:
    """The axis scales lie along, None for one scale."""
    if call.rank(scale) == 0 or (call.shape(scale) == (1,) and call.rank(x) != 1):
        return None
    if call.rank(scale) != 1:
        raise Malformed("scales must be one number or one per entry of an axis")
    return call.axis(call.attr("axis", 1), call.rank(x))


def _scales(
    call: Call, x: Tensor | Node, scale: Tensor | Node, zero: Tensor | Node | None
) -> tuple[Tensor | Node, Tensor | Node | None, int | None]:
    """Scale and zero point as they broadcast; those of blocks are repeated along the blocks' axis."""
    block = call.attr("block_size", 0)
    if not block:
        return scale, zero, _along(call, x, scale)
    axis = call.axis(call.attr("axis", 1), call.rank(x))
    length, count = call.shape(x)[axis], call.shape(scale)[axis] if call.rank(scale) == call.rank(x) else None
    if length is None or count is None or not 0 < block <= length or count != -(-length // block):
        raise Malformed(f"block_size {block} does not fit an axis of {length} with scales {list(call.shape(scale))}")
    scale = call.emit(repeated, scale, block, axis, length)
    return scale, None if zero is None else call.emit(repeated, zero, block, axis, length), EVERYWHERE


def repeated(x: Tensor, times: int, axis: int, length: int) -> Tensor:
    """Each entry of an axis `times` times, `length` in all.

    >>> repeated(torch.tensor([1, 2]), 2, 0, 3)
    tensor([1, 1, 2])
    """
    return torch.repeat_interleave(x, times, axis).narrow(axis, 0, length)


@operator("QuantizeLinear", since=10)
def quantize_linear(call: Call) -> Value:
    """QuantizeLinear."""
    x, scale, zero = call.x(0), call.x(1), call.optional(2)
    dtype = torch.uint8 if zero is None else call.dtype(zero)
    if call.attr("output_dtype", 0):
        dtype = dtype_of(call.attr("output_dtype"))
    if dtype not in (torch.uint8, torch.int8, torch.int16):
        raise Malformed(f"quantizing to {dtype} is not supported")
    scale, zero, axis = _scales(call, x, scale, zero)
    return call.emit(quantized, x, scale, zero, axis, dtype)


def quantized(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int | None, dtype: torch.dtype) -> Tensor:
    """round(x / scale) + zero, held within the type.

    >>> quantized(torch.tensor([1.0, 999.0]), torch.tensor(0.5), None, None, torch.uint8)
    tensor([  2, 255], dtype=torch.uint8)
    """
    limits, wide = torch.iinfo(dtype), torch.float32 if x.dtype != torch.float64 else torch.float64
    steps = torch.round(x.to(wide) / _spread(scale.to(wide), x, axis))
    if zero is not None:
        steps = steps + _spread(zero.to(wide), x, axis)
    return steps.clamp(limits.min, limits.max).to(dtype)


def _spread(vector: Tensor, x: Tensor, axis: int | None) -> Tensor:
    if axis == EVERYWHERE:
        return vector
    if axis is None or vector.ndim == 0:
        return vector.reshape(())
    return vector.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


@operator("DequantizeLinear", since=10)
def dequantize_linear(call: Call) -> Value:
    """DequantizeLinear: known integers become float weights here."""
    x, scale, zero = call.x(0), call.x(1), call.optional(2)
    scale, zero, axis = _scales(call, x, scale, zero)
    return call.emit(dequantized, x, scale, zero, axis)


def dequantized(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int | None) -> Tensor:
    """(x − zero) · scale.

    >>> dequantized(torch.tensor([3]), torch.tensor(0.5), torch.tensor(1), None)
    tensor([1.])
    """
    wide = x.to(torch.float32)
    if zero is not None:
        wide = wide - _spread(zero.to(torch.float32), x, axis)
    return (wide * _spread(scale.to(torch.float32), x, axis)).to(scale.dtype)


@operator("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(call: Call) -> tuple[Value, ...]:
    """DynamicQuantizeLinear."""
    return call.builder.parts(call.emit(quantized_to_range, call.x()), 3)


def quantized_to_range(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x in 8 bits over its own range, with scale and zero point.

    >>> quantized_to_range(torch.tensor([0.0, 255.0]))[0]
    tensor([  0, 255], dtype=torch.uint8)
    """
    low, high = torch.clamp(x.amin(), max=0), torch.clamp(x.amax(), min=0)
    scale = (high - low) / 255
    zero = torch.round(torch.clamp(-low / scale, 0, 255)).to(torch.uint8)
    return quantized(x, scale, zero, None, torch.uint8), scale, zero


def centred(x: Tensor, zero: Tensor | None, axis: int | None) -> Tensor:
    """x − zero as floats that hold 8-bit products exactly.

    >>> centred(torch.tensor([3]), torch.tensor(1), None)
    tensor([2.], dtype=torch.float64)
    """
    wide = x.to(torch.float64)
    return wide if zero is None else wide - _spread(zero.to(torch.float64), x, axis)


@operator("MatMulInteger", since=10)
def matmul_integer(call: Call) -> Value:
    """MatMulInteger."""
    a = call.emit(centred, call.x(0), call.optional(2), _row_axis(call, 0, 2))
    b = call.emit(centred, call.x(1), call.optional(3), _column_axis(call, 1, 3))
    return call.emit(torch.Tensor.to, call.emit(torch.matmul, a, b), torch.int32)


def _row_axis(call: Call, operand: int, zero: int) -> int | None:
    return call.rank(call.x(operand)) - 2 if call.has(zero) and call.rank(call.x(zero)) == 1 else None


def _column_axis(call: Call, operand: int, zero: int) -> int | None:
    return call.rank(call.x(operand)) - 1 if call.has(zero) and call.rank(call.x(zero)) == 1 else None


@operator("QLinearMatMul", since=10)
def qlinear_matmul(call: Call) -> Value:
    """QLinearMatMul."""
    if any(call.rank(call.x(index)) > 1 for index in (1, 2, 4, 5, 6, 7)):
        raise Malformed("scales of more than one axis are not supported")
    a = call.emit(centred, call.x(0), call.x(2), _row_axis(call, 0, 2))
    b = call.emit(centred, call.x(3), call.x(5), _column_axis(call, 3, 5))
    product = call.emit(torch.matmul, a, b)
    return call.emit(requantized, product, call.x(1), call.x(4), call.x(6), call.x(7), call.rank(product) - 1)


def requantized(x: Tensor, scale_a: Tensor, scale_b: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    """Integer products as integers of another scale; `scale_b` may lie along `axis`.

    >>> one = torch.tensor(1.0)
    >>> requantized(torch.tensor([7.0]), one, one, torch.tensor(2.0), torch.tensor(0, dtype=torch.uint8), 0)
    tensor([4], dtype=torch.uint8)
    """
    factor = _spread(scale_b.double() * scale_a.double() / scale.double(), x, axis if scale_b.numel() > 1 else None)
    limits = torch.iinfo(zero.dtype)
    steps = torch.round(x * factor) + zero.double().reshape(())
    return steps.clamp(limits.min, limits.max).to(zero.dtype)


@operator("ConvInteger", since=10)
def conv_integer(call: Call) -> Value:
    """ConvInteger."""
    x = call.emit(centred, call.x(0), call.optional(2), None)
    weight = call.emit(centred, call.x(1), call.optional(3), 0)
    return call.emit(torch.Tensor.to, conv_call(call, x, weight, None), torch.int32)


@operator("QLinearConv", since=10)
def qlinear_conv(call: Call) -> Value:
    """QLinearConv."""
    x = call.emit(centred, call.x(0), call.x(2), None)
    weight = call.emit(centred, call.x(3), call.x(5), 0)
    bias = call.emit(torch.Tensor.to, call.x(8), torch.float64) if call.has(8) else None
    y = conv_call(call, x, weight, bias)
    return call.emit(requantized, y, call.x(1), call.x(4), call.x(6), call.x(7), 1)
