"""Fourier transforms and sampling on a grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ..call import Call
from ..limits import MAX_FOLDED
from ..registry import operator
from ..tensors import dtype_of, element_count
from ..values import Malformed, Value

_MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}


@operator("DFT", since=17)
def dft(call: Call) -> Value:
    """DFT: real and imaginary parts lie on the last axis."""
    x = call.x()
    rank = call.rank(x)
    given = call.attr("axis", 1) if call.opset < 20 else int(call.number(2)) if call.has(2) else -2
    axis, last = call.axis(given, rank), call.shape(x)[-1]
    if rank < 2 or axis == rank - 1 or last not in (1, 2):
        raise Malformed(f"axis {given} of {list(call.shape(x))}, whose last axis must hold 1 or 2 parts")
    length = int(call.number(1)) if call.has(1) else None
    if length is not None:
        if length < 1:
            raise Malformed(f"a length of {length}")
        element_count([length])
    if length is None and call.shape(x)[axis] == 0:
        raise Malformed("its axis is empty")
    inverse, one_sided = call.flag("inverse", 0), call.flag("onesided", 0)
    if inverse and one_sided:
        return call.emit(real_inverse, x, length, axis)
    return call.emit(fourier, x, length, axis, inverse, one_sided)


def fourier(x: Tensor, length: int | None, axis: int, inverse: bool, one_sided: bool) -> Tensor:
    """Discrete Fourier transform along an axis; parts on the last axis.

    >>> fourier(torch.tensor([[1.0], [1.0]]), None, 0, False, False)
    tensor([[2., 0.],
            [0., 0.]])
    """
    wide = x if x.shape[-1] == 2 else torch.cat([x, torch.zeros_like(x)], -1)
    signal = torch.complex(wide[..., 0], wide[..., 1])
    result = torch.fft.ifft(signal, length, axis) if inverse else torch.fft.fft(signal, length, axis)
    if one_sided:
        result = result.narrow(axis, 0, result.shape[axis] // 2 + 1)
    return torch.stack([result.real, result.imag], -1)


def real_inverse(x: Tensor, length: int | None, axis: int) -> Tensor:
    """The real signal of a spectrum of which only the first half is given.

    >>> real_inverse(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), None, 0)
    tensor([[1.],
            [1.]])
    """
    return torch.fft.irfft(torch.complex(x[..., 0], x[..., 1]), length, axis)[..., None]


@operator("STFT", since=17)
def stft(call: Call) -> Value:
    """STFT of frames that lie wholly in the signal."""
    x, window, step = call.x(0), call.optional(2), int(call.number(1))
    if call.rank(x) == 2:
        x = call.emit(torch.unsqueeze, x, -1)
    length = int(call.number(3)) if call.has(3) else None if window is None else call.shape(window)[0]
    total = call.shape(x)[1]
    if length is None or call.rank(x) != 3 or call.shape(x)[2] not in (1, 2) or (total is not None and length > total):
        raise Malformed(f"frames of {length} in a signal of {list(call.shape(x))}")
    if step < 1 or length < 1 or (window is not None and call.shape(window) != (length,)):
        raise Malformed(f"frames of {length} every {step} with a window of another length")
    return call.emit(short_time_fourier, x, step, window, length, call.flag("onesided", 1))


def short_time_fourier(x: Tensor, step: int, window: Tensor | None, length: int, one_sided: bool) -> Tensor:
    """Fourier transforms of windowed frames: (batch, frames, frequencies, parts).

    >>> short_time_fourier(torch.ones(1, 4, 1), 2, None, 2, True).shape
    torch.Size([1, 2, 2, 2])
    """
    frames = x.unfold(1, length, step).movedim(2, -1)
    if window is not None:
        frames = frames * window[:, None]
    return fourier(frames, None, 2, False, one_sided)


@operator("MelWeightMatrix", since=17)
def mel_weight_matrix(call: Call) -> Value:
    """MelWeightMatrix: known at import."""
    bins, length, rate = (int(call.number(index)) for index in range(3))
    low, high = float(call.number(3)), float(call.number(4))
    if min(bins, length, rate) < 1 or not 0 <= low < high:
        raise Malformed(f"{bins} mel bins of {length} frequencies at {rate} Hz from {low} to {high} Hz")
    if bins * length > MAX_FOLDED:
        raise Malformed(f"{bins} mel bins of {length} frequencies are too many")
    return mel_filters(bins, length, rate, low, high).to(dtype_of(call.attr("output_datatype", 1)))


def mel_filters(bins: int, length: int, rate: int, low: float, high: float) -> Tensor:
    """Triangular filters (frequencies × bins), equally wide in mel.

    >>> mel_filters(2, 8, 8000, 0.0, 4000.0).shape
    torch.Size([5, 2])
    """
    ends = 2595 * torch.log10(1 + torch.tensor([low, high], dtype=torch.float64) / 700)
    step = (ends[1] - ends[0]) / (bins + 2)
    hertz = 700 * (10 ** ((torch.arange(bins + 2) * step + ends[0]) / 2595) - 1)
    edges = ((length + 1) * hertz / rate).floor()
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    place = torch.arange(length // 2 + 1, dtype=torch.float64)[:, None]
    rising = torch.where(centre > left, (place - left) / (centre - left).clamp(min=1), (place == centre).double())
    falling = (right - place) / (right - centre).clamp(min=1)
    inside_left, inside_right = (place >= left) & (place <= centre), (place > centre) & (place < right)
    return torch.where(inside_left, rising, torch.where(inside_right, falling, 0.0))


@operator("GridSample", since=16)
def grid_sample(call: Call) -> Value:
    """GridSample."""
    x, grid = call.x(0), call.x(1)
    mode = _MODES.get(call.attr("mode", "bilinear" if call.opset < 20 else "linear"))
    padding = call.attr("padding_mode", "zeros")
    if mode is None or padding not in ("zeros", "border", "reflection") or call.rank(x) not in (4, 5):
        raise Malformed(f"mode {call.attr('mode')!r}, padding {padding!r} or an operand of rank {call.rank(x)}")
    return call.emit(F.grid_sample, x, grid, mode, padding, call.flag("align_corners", 0))


@operator("AffineGrid", since=20)
def affine_grid(call: Call) -> Value:
    """AffineGrid of a known size."""
    theta: Tensor | Node = call.x(0)
    size = call.ints(1)
    if len(size) not in (4, 5) or min(size) < 1:
        raise Malformed(f"size {size} must have 4 or 5 positive entries")
    element_count(size)
    return call.emit(F.affine_grid, theta, size, call.flag("align_corners", 0))
