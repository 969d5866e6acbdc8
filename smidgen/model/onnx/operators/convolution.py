"""Convolutions and transposed convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from ..call import Call
from ..registry import operator
from ..values import Malformed, Value
from .windows import Windows, pad_list, windows

_CONV: dict[int, tuple[type[nn.Module], Any]] = {
    1: (nn.Conv1d, torch.conv1d),
    2: (nn.Conv2d, torch.conv2d),
    3: (nn.Conv3d, torch.conv3d),
}
_TRANSPOSED: dict[int, tuple[type[nn.Module], Any]] = {
    1: (nn.ConvTranspose1d, torch.conv_transpose1d),
    2: (nn.ConvTranspose2d, torch.conv_transpose2d),
    3: (nn.ConvTranspose3d, torch.conv_transpose3d),
}


@operator("Conv")
def conv(call: Call) -> Value:
    """Conv: a layer where weight and bias are known; uneven padding is a step of its own before it."""
    x, weight, bias = call.x(0), call.x(1), call.optional(2)
    _check_shapes(call, x, weight)
    at = windows(call, x, list(call.static_shape(weight)[2:]))
    if not _known(x, weight, bias):
        return conv_call(call, x, weight, bias)
    padding, groups = at.begin, _groups(call, weight)
    if not at.symmetric:
        x, padding = call.emit(F.pad, x, pad_list(at.begin, at.end)), (0,) * len(at.begin)
    assert isinstance(weight, Tensor)
    layer = _CONV[len(padding)][0](
        weight.shape[1] * groups,
        weight.shape[0],
        at.kernel,
        stride=at.stride,
        padding=padding,
        dilation=at.dilation,
        groups=groups,
        bias=bias is not None,
        device="meta",
        dtype=weight.dtype,
    )
    return call.layer(layer, {"weight": weight, "bias": _bias(bias, weight.shape[0])}, x)


def conv_call(call: Call, x: Tensor | Node, weight: Tensor | Node, bias: Tensor | Node | None) -> Value:
    """A convolution that is no layer: of integers, or with a weight the network computes."""
    _check_shapes(call, x, weight)
    shape = call.static_shape(weight)
    if bias is not None and call.shape(bias) != shape[:1]:
        raise Malformed(f"bias {list(call.shape(bias))} does not fit {shape[0]} channels")
    at = windows(call, x, list(shape[2:]))
    x = call.emit(F.pad, x, pad_list(at.begin, at.end)) if any(at.begin + at.end) else x
    groups = _groups(call, weight)
    return call.emit(_CONV[len(at.kernel)][1], x, weight, bias, at.stride, (0,) * len(at.kernel), at.dilation, groups)


@operator("ConvTranspose")
def conv_transpose(call: Call) -> Value:
    """ConvTranspose: as Conv; uneven cropping is a step of its own behind it."""
    x, weight, bias = call.x(0), call.x(1), call.optional(2)
    _check_shapes(call, x, weight)
    shape, groups = call.static_shape(weight), _groups(call, weight)
    if bias is not None and call.shape(bias) != (shape[1] * groups,):
        raise Malformed(f"bias {list(call.shape(bias))} does not fit {shape[1] * groups} channels")
    if shape[0] % groups or call.shape(x)[1] != shape[0]:
        raise Malformed(f"a weight of {list(shape)} in {groups} groups does not fit {call.shape(x)[1]} channels")
    at, padding, extra, crop = _transposed_windows(call, x, list(shape[2:]))
    if not _known(x, weight, bias):
        target = _TRANSPOSED[len(padding)][1]
        y = call.emit(target, x, weight, bias, at.stride, padding, extra, groups, at.dilation)
    else:
        assert isinstance(weight, Tensor)
        layer = _TRANSPOSED[len(padding)][0](
            shape[0],
            shape[1] * groups,
            at.kernel,
            stride=at.stride,
            padding=padding,
            output_padding=extra,
            groups=groups,
            bias=bias is not None,
            dilation=at.dilation,
            device="meta",
            dtype=weight.dtype,
        )
        y = call.layer(layer, {"weight": weight, "bias": _bias(bias, shape[1] * groups)}, x)
    return call.emit(F.pad, y, [-value for value in crop]) if any(crop) else y


def _check_shapes(call: Call, x: Tensor | Node, weight: Tensor | Node) -> None:
    rank = call.rank(x)
    if rank not in (3, 4, 5) or call.rank(weight) != rank:
        raise Malformed(f"operands of rank {rank} and {call.rank(weight)}; it takes both of rank 3, 4 or 5")
    if not all(call.static_shape(weight)):
        raise Malformed(f"the weight is empty: {list(call.shape(weight))}")


def _groups(call: Call, weight: Tensor | Node) -> int:
    groups, outputs = call.attr("group", 1), call.shape(weight)[0]
    if not 1 <= groups < 1 << 31 or outputs is None or outputs % groups:
        raise Malformed(f"group {groups} does not divide the weight's {outputs}")
    return groups


def _known(x: Tensor | Node, weight: Tensor | Node, bias: Tensor | Node | None) -> bool:
    return isinstance(x, Node) and isinstance(weight, Tensor) and not isinstance(bias, Node)


def _bias(bias: Tensor | Node | None, channels: int) -> Tensor | None:
    if isinstance(bias, Tensor) and tuple(bias.shape) != (channels,):
        raise Malformed(f"bias {list(bias.shape)} does not fit {channels} channels")
    return bias if isinstance(bias, Tensor) else None


def _transposed_windows(
    call: Call, x: Tensor | Node, kernel: list[int]
) -> tuple[Windows, tuple[int, ...], tuple[int, ...], list[int]]:
    """Windows, and torch's padding, output padding and what is cropped afterwards (last axis first)."""
    at, spatial = windows(call, x, kernel), len(kernel)
    extra = call.attr_ints("output_padding", spatial, 0)
    begin, end = list(at.begin), list(at.end)
    mode, wanted = call.attr("auto_pad", "NOTSET"), call.attr("output_shape")
    same = mode in ("SAME_UPPER", "SAME_LOWER")
    if wanted is not None and len(wanted) != spatial:
        raise Malformed(f"output_shape {wanted} must have {spatial} entries")
    for axis in range(spatial if wanted is not None or same else 0):
        n, s, q = at.length[axis], at.stride[axis], extra[axis]
        if n is None and wanted is not None:
            raise Malformed("output_shape needs a static height and width")
        # Wanted length n·s cancels n, so SAME also works where the length is dynamic.
        total = at.span[axis] - s + q if wanted is None or n is None else s * (n - 1) + q + at.span[axis] - wanted[axis]
        begin[axis] = total // 2 if mode == "SAME_UPPER" else total - total // 2
        end[axis] = total - begin[axis]
    padding, output_padding, crop = [], [], []
    for b, e, q, s, d in zip(begin, end, extra, at.stride, at.dilation, strict=True):
        p, grow, cuts = _as_torch(b, e - q, max(s, d))
        padding.append(p)
        output_padding.append(grow)
        crop.append(cuts)
    return at, tuple(padding), tuple(output_padding), [value for cuts in reversed(crop) for value in cuts]


def _as_torch(begin: int, end: int, limit: int) -> tuple[int, int, tuple[int, int]]:
    """Torch's padding p and output padding q, which crop p before and p − q after, and what is left to crop."""
    if begin >= 0 and end >= begin:
        return begin, 0, (0, end - begin)
    if begin >= 0 and begin - end < limit:
        return begin, begin - end, (0, 0)
    if begin >= 0 and -end < limit:
        return 0, max(0, -end), (begin, max(0, end))
    raise Malformed(f"it pads its result by {-begin} before and {-end} after, which is not supported")
