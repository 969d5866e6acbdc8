"""Resize and Upsample: torch's interpolation where it means the same, else one known matrix an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ..call import Call
from ..limits import MAX_FOLDED, MAX_RESIZED
from ..registry import operator
from ..values import Malformed, Size, Value

_TORCH_MODES = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
_NEAREST = {
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}


@dataclass(frozen=True)
class Style:
    """How entries between the operand's are found; names and defaults as in ONNX."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0


@dataclass(frozen=True)
class Axis:
    """One resized axis: its lengths before and after, the scale that ONNX computes with, and the part kept."""

    index: int
    length: int
    result: int
    scale: float
    crop: tuple[float, float] = (0.0, 1.0)


@operator("Upsample", until=9)
def upsample(call: Call) -> Value:
    """Upsample: scales are an attribute in opset 7 and an operand in 9."""
    scales = _floats(call, 1) if call.opset >= 9 else list(call.required("scales"))
    return _resize(call, Style(call.attr("mode", "nearest"), "asymmetric", "floor"), scales, None)


@operator("Resize", since=10, until=10)
def resize_10(call: Call) -> Value:
    """Resize as it was in opset 10."""
    return _resize(call, Style(call.attr("mode", "nearest"), "asymmetric", "floor"), _floats(call, 1), None)


@operator("Resize", since=11)
def resize(call: Call) -> Value:
    """Resize."""
    style = Style(
        call.attr("mode", "nearest"),
        call.attr("coordinate_transformation_mode", "half_pixel"),
        call.attr("nearest_mode", "round_prefer_floor"),
        call.attr("cubic_coeff_a", -0.75),
        call.flag("exclude_outside", 0),
        call.flag("antialias", 0),
        call.attr("extrapolation_value", 0.0),
    )
    sizes = call.lengths(3) if call.has(3) and call.opset >= 11 else []
    scales = _floats(call, 2) if call.has(2) else []
    if bool(sizes) == bool(scales):
        raise Malformed("exactly one of scales and sizes must be given")
    return _resize(call, style, scales or None, sizes or None)


def _floats(call: Call, index: int) -> list[float]:
    scales = [float(value) for value in call.constant(index).reshape(-1).tolist()]
    if any(not 0 < scale < 1 << 24 for scale in scales):
        raise Malformed(f"scales {scales} are out of range")
    return scales


def _resize(call: Call, style: Style, scales: list[float] | None, sizes: list[Size] | None) -> Value:
    x = call.x()
    rank = call.rank(x)
    axes = [call.axis(axis, rank) for axis in call.attr("axes") or range(rank)]
    given = scales if scales is not None else sizes or []
    if len(given) != len(axes) or len(set(axes)) != len(axes):
        raise Malformed(f"{len(given)} scales or sizes for axes {axes}")
    if 0 in call.shape(x):
        raise Malformed(f"an operand without entries, {list(call.shape(x))}")
    touched = [i for i, axis in enumerate(axes) if _changes(call, x, axis, given[i], style, scales is not None)]
    if not touched:
        return x
    plain = call.attr("keep_aspect_ratio_policy", "stretch") == "stretch" or scales is not None
    native = _native_mode(call, style, rank, scales)
    if native is not None and plain and min(axes[i] for i in touched) >= 2:
        return _interpolate(call, x, native, style, axes, given, scales is not None)
    for axis in _static_axes(call, x, axes, touched, scales, sizes):
        if style.mode == "nearest":
            x = call.emit(torch.index_select, x, axis.index, torch.tensor(nearest_places(axis, style)))
        else:
            if axis.length * axis.result > MAX_FOLDED:
                raise Malformed(f"an axis of {axis.length} resized to {axis.result} is too long")
            weights, outside = interpolation(axis, style)
            matrix = torch.tensor(weights, dtype=torch.float32)
            fill = torch.tensor(outside) if style.coordinates == "tf_crop_and_resize" and any(outside) else None
            x = call.emit(apply_matrix, x, axis.index, matrix, fill, style.extrapolation)
    return x


def _changes(call: Call, x: Tensor | Node, axis: int, given: Any, style: Style, scaled: bool) -> bool:
    if style.coordinates == "tf_crop_and_resize":
        return True
    if scaled:
        return given != 1
    length = call.shape(x)[axis]
    if isinstance(given, Node):  # a dynamic batch is handed through; another dynamic axis may change
        return axis >= 2
    return length is None or given != length


def _native_mode(call: Call, style: Style, rank: int, scales: list[float] | None) -> str | None:
    """Torch's name for the mode where its result is ONNX's."""
    if style.antialias or style.exclude_outside or rank not in (3, 4, 5):
        return None
    if style.mode == "nearest":
        whole = scales is not None and all(scale == int(scale) for scale in scales)
        floor = style.coordinates == "asymmetric" and style.rounding == "floor"
        centred = style.coordinates in ("half_pixel", "pytorch_half_pixel") and style.rounding.startswith("round")
        return "nearest" if whole and (floor or centred) else None
    if style.coordinates not in ("half_pixel", "align_corners") or (style.mode == "cubic" and style.cubic_a != -0.75):
        return None
    return _TORCH_MODES.get((style.mode, rank))


def _interpolate(
    call: Call, x: Tensor | Node, mode: str, style: Style, axes: list[int], given: Sequence[Any], scaled: bool
) -> Value:
    by_axis = dict(zip(axes, given, strict=True))
    corners = None if mode == "nearest" else style.coordinates == "align_corners"
    if scaled:
        factors = [float(by_axis.get(axis, 1.0)) for axis in range(2, call.rank(x))]
        return call.emit(F.interpolate, x, None, factors, mode, corners, False)
    lengths = [by_axis.get(axis, call.builder.size(x, axis)) for axis in range(2, call.rank(x))]
    return call.emit(F.interpolate, x, lengths, None, mode, corners)


def _static_axes(
    call: Call,
    x: Tensor | Node,
    axes: list[int],
    touched: list[int],
    scales: list[float] | None,
    sizes: list[Size] | None,
) -> list[Axis]:
    lengths = [call.shape(x)[axis] for axis in axes]
    policy = call.attr("keep_aspect_ratio_policy", "stretch")
    roi = _region(call, len(axes))
    found = []
    for i in touched:
        n, size = lengths[i], None if sizes is None else sizes[i]
        if n is None or n < 1 or isinstance(size, Node):
            raise Malformed("this kind of resizing needs static lengths")
        if scales is not None:
            scale, result = scales[i], math.floor(n * scales[i])
        else:
            assert size is not None
            scale, result = size / n, size
        if policy != "stretch" and sizes is not None:
            pairs = [(s, m) for s, m in zip(sizes, lengths, strict=True) if isinstance(s, int) and m]
            scale = (min if policy == "not_larger" else max)(s / m for s, m in pairs)
            result = math.floor(scale * n + 0.5)
        if result < 1:
            raise Malformed(f"an axis of {n} resized to {result}")
        if result > MAX_RESIZED:
            raise Malformed(f"an axis of {n} resized to {result} in this mode is too long")
        found.append(Axis(axes[i], n, result, scale, roi[i]))
    return found


def _region(call: Call, count: int) -> list[tuple[float, float]]:
    if call.attr("coordinate_transformation_mode") != "tf_crop_and_resize":
        return [(0.0, 1.0)] * count
    values = [float(value) for value in call.constant(1).reshape(-1).tolist()]
    if len(values) != 2 * count:
        raise Malformed(f"roi must have {2 * count} entries")
    return list(zip(values[:count], values[count:], strict=True))


def coordinate(i: int, axis: Axis, mode: str) -> float:
    """Where entry `i` of the result lies in the operand.

    >>> coordinate(1, Axis(0, 4, 8, 2.0), "half_pixel")
    0.25
    """
    n, out, scale = axis.length, axis.result, axis.scale
    if mode == "half_pixel":
        return (i + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (i + 0.5) / scale - 0.5 if out > 1 else 0.0
    if mode == "align_corners":
        return i * (n - 1) / (out - 1) if out > 1 else 0.0
    if mode == "asymmetric":
        return i / scale
    if mode == "half_pixel_symmetric":
        return n / 2 * (1 - out / (scale * n)) + (i + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        start, end = axis.crop
        if out > 1:
            return start * (n - 1) + i * (end - start) * (n - 1) / (out - 1)
        return 0.5 * (start + end) * (n - 1)
    raise Malformed(f"coordinate_transformation_mode {mode!r} is unknown")


def nearest_places(axis: Axis, style: Style) -> list[int]:
    """Which entry of the operand each entry of the result repeats.

    >>> nearest_places(Axis(0, 2, 4, 2.0), Style())
    [0, 0, 1, 1]
    """
    if style.rounding not in _NEAREST:
        raise Malformed(f"nearest_mode {style.rounding!r} is unknown")
    rounded = _NEAREST[style.rounding]
    places = (rounded(coordinate(i, axis, style.coordinates)) for i in range(axis.result))
    return [min(max(place, 0), axis.length - 1) for place in places]


def interpolation(axis: Axis, style: Style) -> tuple[np.ndarray, list[bool]]:
    """The matrix (result × operand) that interpolates, and which entries lie outside the operand.

    >>> interpolation(Axis(0, 2, 3, 1.5), Style("linear", "align_corners"))[0].tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    if style.mode not in ("linear", "cubic"):
        raise Malformed(f"mode {style.mode!r} is unknown")
    weights, outside = np.zeros((axis.result, axis.length)), []
    squeeze = min(axis.scale, 1.0) if style.antialias else 1.0
    reach = (1 if style.mode == "linear" else 2) / squeeze
    if reach > 2 * axis.length + 4:
        raise Malformed(f"scale {axis.scale} is too small")
    for i in range(axis.result):
        x = coordinate(i, axis, style.coordinates)
        outside.append(not 0 <= x <= axis.length - 1)
        first = math.floor(x)
        start = math.floor(-reach) + 1
        taps = np.arange(start, 2 - start if style.antialias else start + math.ceil(2 * reach))
        values = _kernel((taps - (x - first)) * squeeze, style)
        places = taps + first
        if style.exclude_outside:
            inside = (places >= 0) & (places < axis.length)
            values = values * inside
        if values.sum() == 0:
            raise Malformed("no entry lies near an interpolated one")
        np.add.at(weights[i], np.clip(places, 0, axis.length - 1), values / values.sum())
    return weights, outside


def _kernel(distance: np.ndarray, style: Style) -> np.ndarray:
    t = np.abs(distance)
    if style.mode == "linear":
        return np.clip(1 - t, 0, 1)
    a = style.cubic_a
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def apply_matrix(x: Tensor, axis: int, matrix: Tensor, outside: Tensor | None, fill: float) -> Tensor:
    """`matrix` (result × operand) along one axis; entries `outside` become `fill`.

    >>> apply_matrix(torch.tensor([[1.0, 3.0]]), 1, torch.tensor([[0.5, 0.5]]), None, 0.0)
    tensor([[2.]])
    """
    wide = x.to(matrix.dtype) if x.dtype != torch.float64 else x
    y = torch.matmul(wide.movedim(axis, -1), matrix.to(wide.dtype).t())
    if outside is not None:
        y = torch.where(outside, fill, y)
    return y.movedim(-1, axis).to(x.dtype)
