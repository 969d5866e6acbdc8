"""Normalization layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from ..call import Call
from ..registry import operator
from ..values import Malformed, Value

_BATCH: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE: dict[int, type[nn.Module]] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _weights(x: Tensor | Node, **operands: Tensor | Node | None) -> dict[str, Tensor | None] | None:
    """The operands by the names a layer gives them, where a layer can be made: all are known, x is computed."""
    known = {name: operand for name, operand in operands.items() if not isinstance(operand, Node)}
    return known if isinstance(x, Node) and len(known) == len(operands) else None


@operator("BatchNormalization")
def batch_normalization(call: Call) -> Value:
    """BatchNormalization in inference."""
    if call.flag("training_mode", 0) or sum(map(bool, call.outputs)) > 1 or not call.flag("spatial", 1):
        raise Malformed("training mode is not supported; export the network in eval mode")
    x, scale, bias, mean, variance = (call.x(index) for index in range(5))
    epsilon, rank = call.attr("epsilon", 1e-5), call.rank(x)
    channels = call.shape(x)[1] if rank > 1 else None
    if channels is None or any(call.shape(v) != (channels,) for v in (scale, bias, mean, variance)):
        raise Malformed("its four vectors must each have one entry a channel")
    weights = _weights(x, weight=scale, bias=bias, running_mean=mean, running_var=variance)
    if rank in _BATCH and weights is not None and call.dtype(x) == call.dtype(scale):
        momentum = 1 - call.attr("momentum", 0.9)
        layer: Any = _BATCH[rank](channels, eps=epsilon, momentum=momentum, device="meta", dtype=call.dtype(scale))
        return call.layer(layer, weights, x)
    return call.emit(F.batch_norm, x, mean, variance, scale, bias, False, 0.0, epsilon)


@operator("InstanceNormalization")
def instance_normalization(call: Call) -> Value:
    """InstanceNormalization."""
    x, scale, bias = call.x(0), call.x(1), call.x(2)
    rank, epsilon = call.rank(x), call.attr("epsilon", 1e-5)
    channels = call.shape(x)[1] if rank > 2 else None
    if channels is None or call.shape(scale) != (channels,) or call.shape(bias) != (channels,):
        raise Malformed("scale and bias must have one entry a channel")
    weights = _weights(x, weight=scale, bias=bias)
    if rank in _INSTANCE and weights is not None:
        layer: Any = _INSTANCE[rank](channels, eps=epsilon, affine=True, device="meta", dtype=call.dtype(scale))
        return call.layer(layer, weights, x)
    return call.emit(F.instance_norm, x, None, None, scale, bias, True, 0.0, epsilon)


@operator("GroupNormalization", since=18)
def group_normalization(call: Call) -> Value:
    """GroupNormalization; before opset 21 scale and bias have one entry a group."""
    x, scale, bias = call.x(0), call.x(1), call.x(2)
    groups, epsilon = call.required("num_groups"), call.attr("epsilon", 1e-5)
    channels = call.shape(x)[1] if call.rank(x) > 1 else None
    if channels is None or not 1 <= groups <= channels or channels % groups:
        raise Malformed(f"num_groups {groups} does not divide {channels} channels")
    if call.opset < 21:
        each = channels // groups
        scale, bias = (call.emit(torch.repeat_interleave, v, each) for v in (scale, bias))
    weights = _weights(x, weight=scale, bias=bias)
    if weights is not None and call.dtype(x) == call.dtype(scale):
        layer = nn.GroupNorm(groups, channels, eps=epsilon, device="meta", dtype=call.dtype(scale))
        return call.layer(layer, weights, x)
    return call.emit(F.group_norm, x, groups, scale, bias, epsilon)


@operator("LayerNormalization", since=17)
def layer_normalization(call: Call) -> tuple[Value, ...]:
    """LayerNormalization; mean and inverse deviation are further outputs."""
    x, scale, bias = call.x(0), call.x(1), call.optional(2)
    axis, epsilon = call.axis(call.attr("axis", -1), call.rank(x)), call.attr("epsilon", 1e-5)
    normalized = call.shape(x)[axis:]
    weights = _weights(x, weight=scale, bias=bias) or {}
    fits = all(weight is None or call.shape(weight) == normalized for weight in weights.values())
    if weights and fits and not any(call.outputs[1:]):
        lengths = [length for length in normalized if length is not None]
        layer = nn.LayerNorm(lengths, epsilon, bias=bias is not None, device="meta", dtype=call.dtype(scale))
        return (call.layer(layer, weights, x),)
    if call.attr("stash_type", 1) != 1:
        raise Malformed("stash_type must be 1 (float)")
    return call.builder.parts(call.emit(layer_norm_parts, x, scale, bias, axis, epsilon), 3)


def layer_norm_parts(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized over all axes from `axis` on, mean, and inverse standard deviation.

    >>> layer_norm_parts(torch.tensor([1.0, 3.0]), torch.ones(2), None, 0, 0.0)[0]
    tensor([-1.,  1.])
    """
    axes, wide = list(range(axis, x.ndim)), x.float() if x.dtype != torch.float64 else x
    mean = wide.mean(axes, keepdim=True)
    centred = wide - mean
    inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
    y = (centred * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


@operator("RMSNormalization", since=23)
def rms_normalization(call: Call) -> Value:
    """RMSNormalization."""
    x, scale = call.x(0), call.x(1)
    axis, epsilon = call.axis(call.attr("axis", -1), call.rank(x)), call.attr("epsilon", 1e-5)
    normalized = call.shape(x)[axis:]
    weights = _weights(x, weight=scale)
    if weights is not None and call.shape(scale) == normalized and call.dtype(x) == call.dtype(scale):
        lengths = [length for length in normalized if length is not None]
        layer = nn.RMSNorm(lengths, epsilon, device="meta", dtype=call.dtype(scale))
        return call.layer(layer, weights, x)
    return call.emit(rms_norm, x, scale, axis, epsilon)


def rms_norm(x: Tensor, scale: Tensor, axis: int, epsilon: float) -> Tensor:
    """x over its root mean square from `axis` on, times scale.

    >>> rms_norm(torch.tensor([2.0, -2.0]), torch.ones(2), 0, 0.0)
    tensor([ 1., -1.])
    """
    wide = x.float() if x.dtype != torch.float64 else x
    square = (wide * wide).mean(list(range(axis, x.ndim)), keepdim=True)
    return (wide * torch.rsqrt(square + epsilon)).to(x.dtype) * scale


@operator("LRN")
def local_response_normalization(call: Call) -> Value:
    """LRN; torch centres even windows elsewhere."""
    x, size = call.x(), call.required("size")
    alpha, beta, bias = call.attr("alpha", 1e-4), call.attr("beta", 0.75), call.attr("bias", 1.0)
    if not 1 <= size < 1 << 12 or call.rank(x) < 3:
        raise Malformed(f"size {size} or an operand of rank {call.rank(x)}")
    if size % 2:
        return call.emit(F.local_response_norm, x, size, alpha, beta, bias)
    return call.emit(lrn, x, size, alpha, beta, bias)


def lrn(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """x over (bias + alpha · mean square of `size` neighbouring channels)^beta.

    >>> lrn(torch.ones(1, 1, 1), 2, 2.0, 1.0, 0.0)
    tensor([[[1.]]])
    """
    before, after = (size - 1) // 2, size // 2
    squares = F.pad((x * x).movedim(1, -1), [before, after])
    return x / (bias + alpha / size * squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)) ** beta


@operator("MeanVarianceNormalization", since=9)
def mean_variance_normalization(call: Call) -> Value:
    """MeanVarianceNormalization."""
    x = call.x()
    axes = [call.axis(axis, call.rank(x)) for axis in call.attr("axes") or [0, 2, 3]]
    return call.emit(standardized, x, axes)


def standardized(x: Tensor, axes: Sequence[int]) -> Tensor:
    """x with mean 0 and deviation 1 over `axes`.

    >>> standardized(torch.tensor([1.0, 3.0]), [0])
    tensor([-1.,  1.])
    """
    centred = x - x.mean(list(axes), keepdim=True)
    return centred / ((centred * centred).mean(list(axes), keepdim=True).sqrt() + 1e-9)


@operator("LpNormalization")
def lp_normalization(call: Call) -> Value:
    """LpNormalization."""
    x, p = call.x(), call.attr("p", 2)
    if p not in (1, 2):
        raise Malformed(f"p {p} must be 1 or 2")
    return call.emit(unit_norm, x, float(p), call.axis(call.attr("axis", -1), call.rank(x)))


def unit_norm(x: Tensor, p: float, axis: int) -> Tensor:
    """x over its p-norm along the axis, 0 where that is 0.

    >>> unit_norm(torch.tensor([3.0, 4.0]), 2.0, 0)
    tensor([0.6000, 0.8000])
    """
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)
