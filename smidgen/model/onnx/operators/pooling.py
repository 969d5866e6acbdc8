"""Pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ..call import Call
from ..registry import operator
from ..values import Malformed, Value
from .windows import Windows, pad_list, windows

_MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV: dict[int, Any] = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def _windows(call: Call, x: Tensor | Node) -> Windows:
    if call.rank(x) not in (3, 4, 5):
        raise Malformed(f"an operand of rank {call.rank(x)}; it takes rank 3, 4 or 5")
    kernel = call.required("kernel_shape")
    if any(not 1 <= k < 1 << 24 for k in kernel):
        raise Malformed(f"kernel_shape {kernel} is out of range")
    return windows(call, x, kernel)


def _fits_torch(at: Windows) -> bool:
    return at.symmetric and all(2 * b <= span for b, span in zip(at.begin, at.span, strict=True))


@operator("MaxPool")
def max_pool(call: Call) -> Value | tuple[Value, Value]:
    """MaxPool, with the places of the maxima as second output."""
    x = call.x()
    at, ceil, dtype = _windows(call, x), call.flag("ceil_mode", 0), call.dtype(x)
    if len(call.outputs) > 1 and call.outputs[1]:
        return _max_with_places(call, x, at, ceil)
    if not dtype.is_floating_point:  # torch pools floats; float32 holds every 8-bit integer
        x = call.emit(torch.Tensor.to, x, torch.float32)
    if not _fits_torch(at):
        end = at.ceil_end() if ceil else at.end
        x = call.emit(F.pad, x, pad_list(at.begin, end), "constant", -math.inf)
        at, ceil = Windows(at.length, at.kernel, at.stride, at.dilation, *((0,) * len(end),) * 2), False
    y = call.emit(_MAX[len(at.kernel)], x, at.kernel, at.stride, at.begin, at.dilation, ceil)
    return y if dtype.is_floating_point else call.emit(torch.Tensor.to, y, dtype)


def _max_with_places(call: Call, x: Tensor | Node, at: Windows, ceil: bool) -> tuple[Value, Value]:
    if not _fits_torch(at):
        raise Malformed("the places of maxima are not supported with uneven padding")
    pool = _MAX[len(at.kernel)]
    pair = call.emit(pool, x, at.kernel, at.stride, at.begin, at.dilation, ceil, return_indices=True)
    values, places = call.builder.parts(pair, 2)
    return values, call.emit(places_in_tensor, places, x, call.flag("storage_order", 0))


def places_in_tensor(places: Tensor, x: Tensor, column_major: bool) -> Tensor:
    """Places within each plane (torch) as places within the whole tensor (ONNX).

    >>> places_in_tensor(torch.tensor([[[0]], [[1]]]), torch.zeros(2, 1, 3), False).flatten()
    tensor([0, 4])
    """
    plane, spatial = math.prod(x.shape[2:]), x.shape[2:]
    if column_major:
        flat = torch.zeros_like(places)
        rest, factor = places, plane
        for n in reversed(spatial):
            factor //= n
            flat, rest = flat + (rest % n) * factor, rest // n
        places = flat
    first = torch.arange(x.shape[0] * x.shape[1], device=x.device) * plane
    return places + first.reshape(x.shape[0], x.shape[1], *[1] * len(spatial))


@operator("MaxUnpool", since=9)
def max_unpool(call: Call) -> Value:
    """MaxUnpool."""
    x, places = call.x(0), call.x(1)
    at = _windows(call, x)
    known = call.static_shape(x)[2:]
    spatial = [
        (n - 1) * s + k - b - e for n, s, k, b, e in zip(known, at.stride, at.kernel, at.begin, at.end, strict=True)
    ]
    y = call.emit(unpooled, x, places, spatial)
    if not call.has(2):
        return y
    # Places count in the shape without output_shape, which then adds room behind.
    wanted = call.ints(2)[2:]
    return call.emit(
        F.pad, y, pad_list((0,) * len(spatial), tuple(w - n for w, n in zip(wanted, spatial, strict=True)))
    )


def unpooled(x: Tensor, places: Tensor, spatial: Sequence[int]) -> Tensor:
    """Entries of `x` put where `places` says, zeros elsewhere.

    >>> unpooled(torch.ones(1, 1, 1), torch.tensor([[[1]]]), [3])
    tensor([[[0., 1., 0.]]])
    """
    flat = x.new_zeros([x.shape[0], x.shape[1], math.prod(spatial)])
    within = places.flatten(2) % math.prod(spatial)
    return flat.scatter(2, within, x.flatten(2)).reshape(x.shape[0], x.shape[1], *spatial)


@operator("AveragePool")
def average_pool(call: Call) -> Value:
    """AveragePool."""
    x = call.x()
    at, ceil = _windows(call, x), call.flag("ceil_mode", 0)
    counted = call.flag("count_include_pad", 0)
    if _fits_torch(at) and all(d == 1 for d in at.dilation) and (not ceil or not any(at.begin)):
        return call.emit(_AVERAGE[len(at.kernel)], x, at.kernel, at.stride, at.begin, ceil, counted)
    end = at.ceil_end() if ceil else at.end
    return call.emit(
        window_means, x, at.kernel, at.stride, at.dilation, pad_list(at.begin, at.end), pad_list(at.begin, end), counted
    )


def window_sums(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], pads: Sequence[int]
) -> Tensor:
    """Sum over each window of each channel; `pads` last axis first.

    >>> window_sums(torch.ones(1, 1, 4), [2], [2], [1], [0, 0])
    tensor([[[2., 2.]]])
    """
    padded = F.pad(x, list(pads))
    planes = padded.reshape(x.shape[0] * x.shape[1], 1, *padded.shape[2:])
    ones = torch.ones([1, 1, *kernel], dtype=x.dtype, device=x.device)
    sums = _CONV[len(kernel)](planes, ones, None, list(stride), 0, list(dilation))
    return sums.reshape(x.shape[0], x.shape[1], *sums.shape[2:])


def window_means(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    declared: Sequence[int],
    pads: Sequence[int],
    counted: bool,
) -> Tensor:
    """Mean over each window; the declared padding counts as entries or not, what `pads` adds to it never does.

    >>> window_means(torch.ones(1, 1, 4), [2], [2], [1], [1, 1], [1, 1], True)
    tensor([[[0.5000, 1.0000, 0.5000]]])
    """
    ones = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype, device=x.device)
    rest = list(pads)
    if counted:
        ones = F.pad(ones, list(declared), value=1.0)
        rest = [p - q for p, q in zip(pads, declared, strict=True)]
    counts = window_sums(ones, kernel, stride, dilation, rest)
    return window_sums(x, kernel, stride, dilation, pads) / counts


@operator("LpPool")
def lp_pool(call: Call) -> Value:
    """LpPool."""
    x = call.x()
    at = _windows(call, x)
    end = at.ceil_end() if call.flag("ceil_mode", 0) else at.end
    return call.emit(
        window_norms, x, float(call.attr("p", 2)), at.kernel, at.stride, at.dilation, pad_list(at.begin, end)
    )


def window_norms(
    x: Tensor,
    p: float,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[int],
) -> Tensor:
    """p-norm over each window.

    >>> window_norms(torch.tensor([[[3.0, 4.0]]]), 2.0, [2], [1], [1], [0, 0])
    tensor([[[5.]]])
    """
    return window_sums(x.abs() ** p, kernel, stride, dilation, pads) ** (1 / p)


@operator("GlobalAveragePool")
def global_average_pool(call: Call) -> Value:
    """GlobalAveragePool."""
    return call.emit(torch.mean, call.x(), _spatial(call), True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call) -> Value:
    """GlobalMaxPool."""
    return call.emit(torch.amax, call.x(), _spatial(call), True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call) -> Value:
    """GlobalLpPool."""
    return call.emit(torch.linalg.vector_norm, call.x(), float(call.attr("p", 2)), _spatial(call), True)


def _spatial(call: Call) -> list[int]:
    rank = call.rank(call.x())
    if rank < 3:
        raise Malformed(f"an operand of rank {rank} has no spatial axes")
    return list(range(2, rank))
