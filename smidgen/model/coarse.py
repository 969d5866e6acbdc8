"""Layers for a smaller map: a convolution that takes a pooling in, one that runs on blocks, a dense layer's head.

Along one axis a kernel is a row of taps, and each of these is a matrix from old taps to new ones:

    mean of q neighbouring outputs     S[t, k] = 1/q · #{a < q: s·a + d·k = t}               stride s·f
    input constant on blocks of f      F[m, k] = 1/q · #{a < q: ⌊(s·a + d·k − p) / f⌋ = m}

(s stride, d dilation, p padding of the convolution). The first is the convolution and an average pooling in one, to the
bit of rounding. The second, with q = f, is what averages over blocks of f outputs become where every input stands for a
block of f alike ones: upsample, convolve and average in one, zero padding included, for ⌊·⌋ keeps what lies outside
outside. With q = 1 its outputs are those of the original's own grid, f times fewer to skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smidgen.errors import Refusal

Pair = tuple[int, int]


def smear(kernel: int, dilation: int, stride: int, window: int) -> Float[Tensor, "taps kernel"]:
    """S: the mean of ``window`` neighbouring outputs as one kernel.

    >>> smear(2, 1, 1, 2).tolist()
    [[0.5, 0.0], [0.5, 0.5], [0.0, 0.5]]
    """
    matrix = torch.zeros(stride * (window - 1) + dilation * (kernel - 1) + 1, kernel, dtype=torch.float64)
    for a in range(window):
        for k in range(kernel):
            matrix[stride * a + dilation * k, k] += 1 / window
    return matrix


def fold(
    kernel: int, dilation: int, stride: int, padding: int, factor: int, outputs: int
) -> tuple[Float[Tensor, "taps kernel"], int]:
    """F: means of ``outputs`` neighbouring outputs on an input of blocks, and the taps that lie before the output.

    >>> matrix, before = fold(3, 1, 1, 1, 2, 2)
    >>> matrix.tolist(), before
    ([[0.5, 0.0, 0.0], [0.5, 1.0, 0.5], [0.0, 0.0, 0.5]], 1)
    """
    before = -(-padding // factor)
    last = (stride * (outputs - 1) + dilation * (kernel - 1) - padding) // factor
    matrix = torch.zeros(last + before + 1, kernel, dtype=torch.float64)
    for a in range(outputs):
        for k in range(kernel):
            matrix[(stride * a + dilation * k - padding) // factor + before, k] += 1 / outputs
    return matrix, before


def pooled_conv(conv: nn.Conv2d, window: Pair, factor: int, padding: Pair) -> nn.Conv2d:
    """A convolution and the average pooling behind it as one.

    Args:
        conv: not changed.
        window, factor, padding: kernel, stride and padding of the pooling.

    >>> conv, x = nn.Conv2d(1, 1, 3), torch.randn(1, 1, 8, 8)
    >>> both = pooled_conv(conv, (2, 2), 2, (0, 0))
    >>> both.kernel_size, bool(torch.allclose(both(x), torch.nn.functional.avg_pool2d(conv(x), 2), atol=1e-5))
    ((4, 4), True)
    """
    maps = [smear(conv.kernel_size[i], conv.dilation[i], conv.stride[i], window[i]) for i in (0, 1)]
    stride = (conv.stride[0] * factor, conv.stride[1] * factor)
    before = _padding(conv)
    outside = (before[0] + conv.stride[0] * padding[0], before[1] + conv.stride[1] * padding[1])
    return _mapped(conv, maps, stride, outside)


def narrow_conv(
    conv: nn.Conv2d, window: Pair, factor: int, padding: Pair, size: Sequence[int], wanted: Sequence[int]
) -> nn.Conv2d:
    """The convolution itself at one place of each window, the one nearest its middle that gives the size wanted.

    Args:
        conv: not changed.
        window, factor, padding: kernel, stride and padding of the pooling it takes in.
        size, wanted: height and width of its input, and those of its output.

    Raises:
        Refusal: no place gives that size.

    >>> narrow_conv(nn.Conv2d(1, 1, 3, padding=1), (2, 2), 2, (0, 0), (8, 8), (4, 4))
    Conv2d(1, 1, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    """
    stride, outside = [conv.stride[i] * factor for i in (0, 1)], []
    for i in (0, 1):
        span = conv.dilation[i] * (conv.kernel_size[i] - 1) + 1
        places = [_padding(conv)[i] + conv.stride[i] * (padding[i] - t) for t in range(window[i])]
        middle = _padding(conv)[i] + conv.stride[i] * (padding[i] - (window[i] - 1) / 2)
        fits = [p for p in places if p >= 0 and (size[i] + 2 * p - span) // stride[i] + 1 == wanted[i]]
        if not fits:
            raise Refusal(f"its kernel with stride {stride[i]} gives no map of {_sides(wanted)}")
        outside.append(min(fits, key=lambda p: abs(p - middle)))
    maps = [torch.eye(k, dtype=torch.float64) for k in conv.kernel_size]
    return _mapped(conv, maps, (stride[0], stride[1]), (outside[0], outside[1]), conv.dilation)


def coarse_conv(
    conv: nn.Conv2d, factor: int, size: Sequence[int], wanted: Sequence[Sequence[int]], *, rejoining: bool = False
) -> nn.Conv2d:
    """The convolution on a map each of whose entries stands for a block.

    Args:
        conv: not changed.
        factor: side of a block.
        size: height and width of its input.
        wanted: heights and widths that its output may have, the best first.
        rejoining: outputs are those of the original's grid, by a smaller stride, not averages over blocks.

    Raises:
        Refusal: no kernel gives any of those sizes.

    >>> conv, x = nn.Conv2d(2, 3, 5, padding=2), torch.randn(1, 2, 8, 8)
    >>> coarse = coarse_conv(conv, 2, (8, 8), [(8, 8)])
    >>> fine = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    >>> coarse.kernel_size, bool(torch.allclose(coarse(x), torch.nn.functional.avg_pool2d(fine, 2), atol=1e-5))
    ((3, 3), True)
    """
    maps, outside = [], []
    stride = [s // factor if rejoining else s for s in conv.stride]
    for i in (0, 1):
        matrix, before = fold(
            conv.kernel_size[i], conv.dilation[i], conv.stride[i], _padding(conv)[i], factor, 1 if rejoining else factor
        )
        taps = _taps(len(matrix), size[i] + 2 * before, stride[i], [sides[i] for sides in wanted])
        if taps is None:
            raise Refusal(f"on a map of {_sides(size)} no kernel of it gives {_sides(wanted[0])}")
        maps.append(nn.functional.pad(matrix, (0, 0, 0, taps - len(matrix))))
        outside.append(before)
    return _mapped(conv, maps, (stride[0], stride[1]), (outside[0], outside[1]))


def folded_dense(layer: nn.Linear, before: Sequence[int], after: Sequence[int]) -> nn.Linear:
    """The dense layer behind a smaller map, which stands for its nearest-neighbour upsampling.

    Args:
        layer: on a flattened ``[channels, height, width]`` map; not changed.
        before, after: that map's height and width, and those of the smaller one.

    >>> layer, x = nn.Linear(2 * 5 * 4, 3), torch.randn(1, 2, 3, 2)
    >>> large = nn.functional.interpolate(x, (5, 4))
    >>> small = folded_dense(layer, (5, 4), (3, 2))
    >>> small.in_features, bool(torch.allclose(small(x.flatten(1)), layer(large.flatten(1)), atol=1e-5))
    (12, True)
    """
    weight = layer.weight.detach().double().reshape(layer.out_features, -1, *before)
    summed = torch.zeros(*weight.shape[:2], *after, dtype=torch.float64, device=weight.device)
    rows, columns = ([i * small // large for i in range(large)] for large, small in zip(before, after, strict=True))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            summed[:, :, row, column] += weight[:, :, i, j]
    result = nn.Linear(summed[0].numel(), layer.out_features, bias=layer.bias is not None)
    return _filled(result, layer, summed.flatten(1))


def _taps(least: int, padded: int, stride: int, wanted: Sequence[int]) -> int | None:
    """The shortest kernel that gives one of the lengths wanted."""
    lengths = range(least, min(least + stride, padded) + 1)
    return next((n for out in wanted for n in lengths if (padded - n) // stride + 1 == out), None)


def _mapped(
    conv: nn.Conv2d, maps: Sequence[Tensor], stride: Pair, padding: Pair, dilation: tuple[int, ...] = (1, 1)
) -> nn.Conv2d:
    """A convolution with each axis's taps mapped; always with a bias, which a refit can use."""
    weight = torch.einsum("oiyx,py,qx->oipq", conv.weight.detach().double().cpu(), maps[0], maps[1])
    result = nn.Conv2d(
        conv.in_channels, conv.out_channels, (len(maps[0]), len(maps[1])), stride, padding,
        (dilation[0], dilation[1]), conv.groups,
    )  # fmt: skip
    return _filled(result, conv, weight)


def _filled(layer: Any, old: Any, weight: Tensor) -> Any:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.zero_() if old.bias is None else layer.bias.copy_(old.bias)
    return layer.to(old.weight.device, old.weight.dtype).train(old.training)


def _padding(conv: nn.Conv2d) -> Pair:
    if isinstance(conv.padding, str):
        raise Refusal(f"padding {conv.padding!r} is not told in numbers")
    return conv.padding[0], conv.padding[1]


def _sides(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
