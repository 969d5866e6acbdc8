"""Activations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from ..call import Call
from ..registry import operator
from ..values import Malformed, Value
from .linear import flat


@operator("Relu")
def relu(call: Call) -> Value:
    """Relu."""
    return call.emit(F.relu, call.x())


@operator("LeakyRelu")
def leaky_relu(call: Call) -> Value:
    """LeakyRelu."""
    return call.emit(F.leaky_relu, call.x(), call.attr("alpha", 0.01))


@operator("PRelu")
def prelu(call: Call) -> Value:
    """PRelu: a layer where the known slope is one number or one per channel."""
    x, slope = call.x(0), call.x(1)
    rank = call.rank(x)
    if isinstance(x, Node) and isinstance(slope, Tensor) and slope.is_floating_point():
        aligned = (1,) * (rank - slope.ndim) + tuple(slope.shape)
        per_channel = rank >= 2 and len(aligned) == rank and all(n == 1 for a, n in enumerate(aligned) if a != 1)
        if per_channel and aligned[1] in (1, call.shape(x)[1]):
            weight = flat(call, slope)
            return call.layer(nn.PReLU(weight.numel(), device="meta", dtype=slope.dtype), {"weight": weight}, x)
    return call.emit(parametric_relu, x, slope)


def parametric_relu(x: Tensor, slope: Tensor) -> Tensor:
    """x where it is not negative, else slope · x; the slope broadcasts.

    >>> parametric_relu(torch.tensor([-2.0, 2.0]), torch.tensor(0.5))
    tensor([-1.,  2.])
    """
    return torch.where(x >= 0, x, slope * x)


@operator("Elu")
def elu(call: Call) -> Value:
    """Elu."""
    return call.emit(F.elu, call.x(), call.attr("alpha", 1.0))


@operator("Celu")
def celu(call: Call) -> Value:
    """Celu."""
    return call.emit(F.celu, call.x(), call.attr("alpha", 1.0))


@operator("Selu")
def selu(call: Call) -> Value:
    """Selu: any alpha and gamma, so not torch's, which fixes them."""
    alpha, gamma = call.attr("alpha", 1.67326319217681884765625), call.attr("gamma", 1.05070102214813232421875)
    return call.emit(scaled_elu, call.x(), alpha, gamma)


def scaled_elu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """gamma · elu(x, alpha).

    >>> scaled_elu(torch.tensor([2.0]), 1.0, 3.0)
    tensor([6.])
    """
    return gamma * F.elu(x, alpha)


@operator("Gelu", since=20)
def gelu(call: Call) -> Value:
    """Gelu."""
    return call.emit(F.gelu, call.x(), approximate=call.attr("approximate", "none"))


@operator("Sigmoid")
def sigmoid(call: Call) -> Value:
    """Sigmoid."""
    return call.emit(torch.sigmoid, call.x())


@operator("Tanh")
def tanh(call: Call) -> Value:
    """Tanh."""
    return call.emit(torch.tanh, call.x())


@operator("HardSigmoid")
def hard_sigmoid(call: Call) -> Value:
    """HardSigmoid: torch's has slope 1/6."""
    alpha, beta = call.attr("alpha", 0.2), call.attr("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return call.emit(F.hardsigmoid, call.x())
    return call.emit(ramp, call.x(), alpha, beta)


def ramp(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha · x + beta, held between 0 and 1.

    >>> ramp(torch.tensor([0.0, 9.0]), 0.2, 0.5)
    tensor([0.5000, 1.0000])
    """
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("HardSwish", since=14)
def hard_swish(call: Call) -> Value:
    """HardSwish."""
    return call.emit(F.hardswish, call.x())


@operator("Swish", since=24)
def swish(call: Call) -> Value:
    """Swish: x · sigmoid(alpha · x)."""
    alpha = call.attr("alpha", 1.0)
    return call.emit(F.silu, call.x()) if alpha == 1 else call.emit(scaled_silu, call.x(), alpha)


def scaled_silu(x: Tensor, alpha: float) -> Tensor:
    """x · sigmoid(alpha · x).

    >>> scaled_silu(torch.tensor([0.0]), 2.0)
    tensor([0.])
    """
    return x * torch.sigmoid(alpha * x)


@operator("Mish", since=18)
def mish(call: Call) -> Value:
    """Mish."""
    return call.emit(F.mish, call.x())


@operator("Softplus")
def softplus(call: Call) -> Value:
    """Softplus."""
    return call.emit(F.softplus, call.x())


@operator("Softsign")
def softsign(call: Call) -> Value:
    """Softsign."""
    return call.emit(F.softsign, call.x())


@operator("ThresholdedRelu", since=10)
def thresholded_relu(call: Call) -> Value:
    """ThresholdedRelu."""
    return call.emit(F.threshold, call.x(), call.attr("alpha", 1.0), 0.0)


@operator("Shrink", since=9)
def shrink(call: Call) -> Value:
    """Shrink."""
    return call.emit(shrunk, call.x(), call.attr("lambd", 0.5), call.attr("bias", 0.0))


def shrunk(x: Tensor, lambd: float, bias: float) -> Tensor:
    """x moved towards zero by bias, and 0 within lambd of it.

    >>> shrunk(torch.tensor([-2.0, 0.1, 2.0]), 0.5, 1.0)
    tensor([-1.,  0.,  1.])
    """
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


@operator("Clip", until=10)
def clip_attributes(call: Call) -> Value:
    """Clip whose bounds are attributes."""
    low, high = call.attr("min"), call.attr("max")
    return call.x() if low is None and high is None else call.emit(torch.clamp, call.x(), low, high)


@operator("Clip", since=11)
def clip(call: Call) -> Value:
    """Clip whose bounds are operands; known ones become numbers."""
    bounds: list[Tensor | Node | int | float | None] = []
    for index in (1, 2):
        bound = call.optional(index)
        if bound is not None and call.rank(bound) != 0 and call.shape(bound) != (1,):
            raise Malformed(f"bound {index} must be a scalar")
        bounds.append(call.number(index) if isinstance(bound, Tensor) else bound)
    if bounds == [None, None]:
        return call.x()
    if any(isinstance(bound, Node) for bound in bounds):  # torch.clamp takes two tensors or two numbers
        bounds = [torch.tensor(b, dtype=call.dtype(call.x())) if isinstance(b, (int, float)) else b for b in bounds]
    return call.emit(torch.clamp, call.x(), *bounds)


@operator("Softmax", "LogSoftmax", "Hardmax", since=13)
def softmax(call: Call) -> Value:
    """Along one axis."""
    x = call.x()
    return call.emit(_ALONG_AXIS[call.op], x, call.axis(call.attr("axis", -1), call.rank(x)))


@operator("Softmax", "LogSoftmax", "Hardmax", until=12)
def softmax_flattened(call: Call) -> Value:
    """Before opset 13 every axis from `axis` on is one."""
    x = call.x()
    rank = call.rank(x)
    axis = call.axis(call.attr("axis", 1), rank)
    if all(length == 1 for length in call.shape(x)[axis + 1 :]):
        return call.emit(_ALONG_AXIS[call.op], x, axis)
    return call.emit(_ALONG_REST[call.op], x, axis)


def hardmax(x: Tensor, axis: int) -> Tensor:
    """1 at the first largest entry along the axis, else 0.

    >>> hardmax(torch.tensor([1.0, 3.0, 3.0]), 0)
    tensor([0., 1., 0.])
    """
    return torch.zeros_like(x).scatter(axis, torch.argmax(x, axis, keepdim=True), 1)


def softmax_rest(x: Tensor, axis: int) -> Tensor:
    """Softmax over all axes from `axis` on.

    >>> softmax_rest(torch.zeros(1, 2, 2), 1)
    tensor([[[0.2500, 0.2500],
             [0.2500, 0.2500]]])
    """
    return torch.softmax(x.flatten(axis), -1).reshape(x.shape)


def log_softmax_rest(x: Tensor, axis: int) -> Tensor:
    """Logarithm of `softmax_rest`."""
    return torch.log_softmax(x.flatten(axis), -1).reshape(x.shape)


def hardmax_rest(x: Tensor, axis: int) -> Tensor:
    """`hardmax` over all axes from `axis` on."""
    return hardmax(x.flatten(axis), -1).reshape(x.shape)


_ALONG_AXIS = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax, "Hardmax": hardmax}
_ALONG_REST = {"Softmax": softmax_rest, "LogSoftmax": log_softmax_rest, "Hardmax": hardmax_rest}
