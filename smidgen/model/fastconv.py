"""Convolutions with kernels that are stored transformed: Winograd's and Fourier's, as modules beside ``nn.Conv2d``.

    fast = WinogradConv2d(conv, size=(28, 28), outputs=4)      # the same answers, up to rounding

What is stored, and trained, is the transformed kernel U of `smidgen.numerics.fastconv`: F(2, 3) stores 1.78 numbers
for each tap of a 3×3 kernel, F(4, 3) 4. Trained so, it is a layer of its own (arXiv:1611.01597): U need not stay the
transform of any 3×3 kernel. The module exports to ONNX as matrix products, reshapes and transpositions.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smidgen.budget import format_size
from smidgen.errors import Refusal, UserError
from smidgen.forms import DIRECT, Geometry
from smidgen.forms.fastconv import ALGORITHMS, plan_fft, plan_layer, plan_winograd
from smidgen.model.replace import put
from smidgen.model.sites import contained, find_sites
from smidgen.numerics.fastconv import Bilinear, convolve, matrices, transform_kernel
from smidgen.site import Site

LARGEST_NBYTES = 512 << 20  # of a kernel; a file of more than 2 GB no ONNX reader takes


@dataclass(frozen=True)
class Choice:
    """How a layer computes.

    Args:
        layer: its dotted name.
        algorithm: ``direct`` or one of `ALGORITHMS`.
        reason: why it is not what was asked for, or None.
    """

    layer: str
    algorithm: str
    reason: str | None = None


class FastConv2d(nn.Module):
    """A convolution of stride 1 through a plan of `smidgen.numerics.fastconv`, for maps of one size.

    Args:
        conv: the layer it is made from; its weight is transformed, not shared.
        plan: for its kernel, its padding and the size of its input.
    """

    kernel: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, plan: Bilinear) -> None:
        super().__init__()
        self.plan = plan
        self.kernel = nn.Parameter(transform_kernel(plan, conv.weight.detach()))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.names = ("left", "right", "right_out", "left_out")
        for name, matrix in zip(self.names, matrices(plan, conv.weight), strict=True):
            self.register_buffer(name, matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of a batch [n, inp, h, w]."""
        rows, cols = self.plan.rows, self.plan.cols
        if tuple(x.shape[2:]) != (rows.size, cols.size):
            raise ValueError(
                f"fast convolution: it was made for maps of {rows.size}×{cols.size}, got {list(x.shape)}; "
                "make another from the plain layer for this size"
            )
        left, right, right_out, left_out = (getattr(self, name) for name in self.names)
        y = convolve(x, self.kernel, self.plan, (left, right, right_out, left_out))
        return y if self.bias is None else y + self.bias[:, None, None]

    def extra_repr(self) -> str:
        """What stands in the brackets when it is printed."""
        inp, out = self.kernel.shape[1], self.kernel.shape[2] // self.plan.parts
        return f"{inp}, {out}, map={self.plan.rows.size}x{self.plan.cols.size}, points={self.plan.points}"


class WinogradConv2d(FastConv2d):
    """A convolution as Winograd computes it.

    Args:
        conv: of stride 1, no dilation, one group, a small kernel.
        size: rows and columns of its input.
        outputs: m of F(m × m, r × r): 2 or 4.

    Raises:
        Refusal: the layer is not covered.

    >>> conv = nn.Conv2d(3, 8, 3, padding=1)
    >>> WinogradConv2d(conv, (14, 14))
    WinogradConv2d(3, 8, map=14x14, points=36)
    """

    def __init__(self, conv: nn.Conv2d, size: tuple[int, int], outputs: int = 4) -> None:
        super().__init__(conv, plan_winograd(geometry_of(conv, size), outputs))


class FFTConv2d(FastConv2d):
    """A convolution through Fourier transforms.

    Args:
        conv: of stride 1, no dilation, one group.
        size: rows and columns of its input.

    Raises:
        Refusal: the layer is not covered.

    >>> FFTConv2d(nn.Conv2d(3, 8, 31, padding=15), (14, 14))
    FFTConv2d(3, 8, map=14x14, points=378)
    """

    def __init__(self, conv: nn.Conv2d, size: tuple[int, int]) -> None:
        super().__init__(conv, plan_fft(geometry_of(conv, size)))


def geometry_of(conv: nn.Conv2d, size: tuple[int, int]) -> Geometry:
    """The geometry of a layer on a map.

    Args:
        conv: the layer.
        size: rows and columns of its input.

    Raises:
        Refusal: the map is smaller than the kernel.
    """
    example = torch.zeros(1, conv.in_channels, *size, device=conv.weight.device, dtype=conv.weight.dtype)
    if conv.padding != "same" and any(
        s + 2 * p < d * (k - 1) + 1
        for s, p, d, k in zip(size, _numbers(conv), conv.dilation, conv.kernel_size, strict=True)
    ):
        raise Refusal(f"a map of {size[0]}×{size[1]} is smaller than the kernel")
    site = find_sites(contained(conv), example)[0]
    if site.refusal is not None:
        raise Refusal(site.refusal)
    return site.geometry


def with_fast_convs(
    model: nn.Module, example: Tensor, algorithms: Mapping[str, str]
) -> tuple[nn.Module, tuple[Choice, ...]]:
    """A copy of a network in which some convolutions compute otherwise.

    Args:
        model: not changed.
        example: one batch of inputs; the modules are for maps of the sizes it gives.
        algorithms: ``winograd2``, ``winograd4``, ``fft`` or ``direct`` by layer name.

    Returns:
        The network, and one choice for each name: what an algorithm does not cover stays direct, with the reason.

    Raises:
        UserError: there is no such layer or algorithm.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2))
    >>> _, told = with_fast_convs(model, torch.zeros(1, 1, 8, 8), {"0": "winograd4", "2": "fft"})
    >>> told
    (Choice(layer='0', algorithm='winograd4', reason=None), Choice(layer='2', algorithm='direct', reason='stride 2×2'))
    """
    result = copy.deepcopy(model)
    sites = {site.name: site for site in find_sites(model, example)}
    told = []
    for name, algorithm in algorithms.items():
        if name not in sites:
            raise UserError(f"fastconv: the network runs no layer '{name}'; there are: {', '.join(sites)}")
        check_algorithm(algorithm)
        try:
            if algorithm != DIRECT:
                plan = plan_site(sites[name], algorithm)
                put(result, name, _fast(result.get_submodule(name), plan, algorithm))
            told.append(Choice(name, algorithm))
        except Refusal as reason:
            told.append(Choice(name, DIRECT, str(reason)))
    return result, tuple(told)


def check_algorithm(name: str) -> None:
    """UserError where there is no such algorithm, with the nearest name.

    Args:
        name: as it was given.

    >>> check_algorithm("winograd3")
    Traceback (most recent call last):
    smidgen.errors.UserError: fastconv: there is no algorithm 'winograd3'; did you mean winograd4 or winograd2? \
There are: winograd2, winograd4, fft, direct
    """
    known = (*ALGORITHMS, DIRECT)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
        meant = f"; did you mean {' or '.join(near)}?" if near else "."
        raise UserError(f"fastconv: there is no algorithm '{name}'{meant} There are: {', '.join(known)}")


def plan_site(site: Site, algorithm: str) -> Bilinear:
    """How an algorithm computes a site of a network; see `smidgen.forms.fastconv.plan_layer`.

    Args:
        site: the layer.
        algorithm: one of `ALGORITHMS`.

    Raises:
        Refusal: it does not cover the layer, or needs a kernel larger than a file can hold.
    """
    if site.refusal is not None:
        raise Refusal(site.refusal)
    plan = plan_layer(site.geometry, algorithm)
    if plan.growth * site.weight.nbytes > LARGEST_NBYTES:
        raise Refusal(f"its kernel would take more than {format_size(LARGEST_NBYTES)}")
    return plan


def _fast(layer: nn.Module, plan: Bilinear, algorithm: str) -> FastConv2d:
    assert isinstance(layer, nn.Conv2d)  # what has two axes and is no transposed convolution
    kind = FFTConv2d if ALGORITHMS[algorithm] is None else WinogradConv2d
    made = kind.__new__(kind)
    FastConv2d.__init__(made, layer, plan)
    return made.train(layer.training)


def _numbers(conv: nn.Conv2d) -> tuple[int, ...]:
    return (0, 0) if isinstance(conv.padding, str) else tuple(conv.padding)
