"""A layer's inputs and output gradients as rows of a matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smidgen.forms import Geometry


def choose_positions(geometry: Geometry, most: int, generator: torch.Generator) -> Tensor | None:
    """Indices of at most ``most`` output positions of a convolution, or None for all of them."""
    if geometry.positions <= most:
        return None
    return torch.randperm(geometry.positions, generator=generator)[:most]


def input_rows(x: Tensor, geometry: Geometry, positions: Tensor | None = None) -> Tensor:
    """A layer's inputs as im2col rows.

    Args:
        x: the layer's input, ``[n, channels, *size]`` or ``[n, …, features]``.
        geometry: the layer.
        positions: flat indices of the output positions wanted; all when None.

    Returns:
        ``[groups, n · positions, columns]``.

    >>> g = Geometry("conv", 2, 1, (3,), (1,), (1,), (1,), in_size=(5,), out_size=(5,))
    >>> input_rows(torch.ones(4, 2, 5), g).shape
    torch.Size([1, 20, 6])
    """
    if geometry.kind == "linear":
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        rows = rows if positions is None else rows[:, positions.to(rows.device)]
        return rows.reshape(1, -1, x.shape[-1])
    if geometry.kind == "conv_transpose":  # acts on single input positions
        rows = x.flatten(2).mT.reshape(-1, geometry.groups, geometry.in_channels // geometry.groups)
        return rows.transpose(0, 1)
    g = geometry
    if len(g.kernel) == 1:  # one axis: give it a second of size one
        x = x[:, :, None]
        g = g.with_(**{k: (v, *getattr(g, k)) for k, v in _SECOND_AXIS.items()})
    x = F.pad(x, (g.padding[1], g.padding[1], g.padding[0], g.padding[0]))
    flat = torch.arange(g.positions, device=x.device) if positions is None else positions.to(x.device)
    rows, cols = flat // g.out_size[1] * g.stride[0], flat % g.out_size[1] * g.stride[1]
    dy = torch.arange(g.kernel[0], device=x.device) * g.dilation[0]
    dx = torch.arange(g.kernel[1], device=x.device) * g.dilation[1]
    windows = x[:, :, rows[:, None, None] + dy[:, None], cols[:, None, None] + dx]  # n, channels, position, y, x
    windows = windows.reshape(x.shape[0], g.groups, g.in_channels // g.groups, len(flat), -1)
    return windows.permute(1, 0, 3, 2, 4).reshape(g.groups, x.shape[0] * len(flat), g.columns)


_SECOND_AXIS = {"kernel": 1, "stride": 1, "padding": 0, "dilation": 1, "in_size": 1, "out_size": 1}


def output_rows(y: Tensor, geometry: Geometry) -> Tensor:
    """A layer's outputs, or the gradients there, as rows.

    Args:
        y: ``[n, channels, *size]`` or ``[n, …, features]``.
        geometry: the layer.

    Returns:
        ``[groups, n · positions, channels / groups]``.
    """
    if geometry.kind == "linear":
        return y.reshape(1, -1, y.shape[-1])
    rows = y.flatten(2).mT.reshape(-1, geometry.groups, geometry.out_channels // geometry.groups)
    return rows.transpose(0, 1)
