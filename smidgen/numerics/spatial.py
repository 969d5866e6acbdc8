"""Spatial SVD of a two-dimensional kernel: d×1 filters, then 1×d filters (or the other way round).

    W[t,s,y,x] ≈ Σ_r U[t,r,x] V[r,s,y],    minimise ½ tr(G ΔW A ΔWᵀ)                                             (1)

Jaderberg, Vedaldi and Zisserman, "Speeding up convolutional neural networks with low rank expansions", arXiv:1405.3866,
scheme 2. In the plain norm it is the SVD of the (s,y) × (t,x) matrix; with G alone, the SVD of it after G^½. A mixes x
with (s,y), so there is no closed form with it: the start is the SVD under a product of a share of A on (s,y) and one
on x, or the plain one if that is lower; then U in closed form and V by conjugate gradients take turns
(`multilinear`).

Differs from the paper: its filters come from gradient descent or from reconstruction of responses; here from (1), with
A and G the second moments of the layer's inputs and output gradients, as arXiv:1505.06798 does for 1×1 output factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.multilinear import (
    SWEEPS,
    Problem,
    Split,
    check,
    extended,
    falling_rotation,
    leading,
    metric_loss,
    posed,
    solve_outer,
    swept,
    whitened,
)


@dataclass(frozen=True, eq=False)
class SpatialFit:
    """A pair of one-dimensional convolutions.

    Args:
        first: V, [rank, inp, d of its axis].
        second: U, [out, rank, d of the other axis].
        vertical_first: whether V runs along the first kernel axis (d×1 first).
        loss: ½ tr(G ΔW A ΔWᵀ).
        sweeps: updates of V spent on it.
        converged: whether they stood still.
    """

    first: Float[Tensor, "rank inp d1"]
    second: Float[Tensor, "out rank d2"]
    vertical_first: bool
    loss: float
    sweeps: int
    converged: bool

    @property
    def rank(self) -> int:
        """Filters of the first convolution."""
        return self.first.shape[0]

    def full(self) -> Float[Tensor, "out inp y x"]:
        """The kernel that the pair amounts to."""
        across = torch.einsum("trx,rsy->tsyx", self.second, self.first)
        return across if self.vertical_first else across.transpose(2, 3)


def spatial_curve(
    weight: Float[Tensor, "out inp *kernel"],
    ranks: Sequence[int],
    *,
    inputs: Float[Tensor, "n n"] | None = None,
    outputs: Float[Tensor, "m m"] | None = None,
    vertical_first: bool = True,
    sweeps: int = SWEEPS,
    tolerance: float = 1e-3,
) -> list[SpatialFit]:
    """Fit (1) along rising ranks, each from the better of its own start and the last fit with new directions added.

    Args:
        weight: kernel, [out, inp, y, x].
        ranks: strictly rising, from 1 to the most `spatial_rank` allows.
        inputs: A, [inp·y·x, inp·y·x], its axes in the order inp, y, x; the identity when None. Damp it first.
        outputs: G, [out, out]; the identity when None. Damp it first.
        vertical_first: d×1 before 1×d.
        sweeps: most updates of V a rank; none are needed without A.
        tolerance: stop once a sweep lowers the loss by less than this part of it.

    Returns:
        One fit a rank, in the weight's dtype; the losses never rise.

    Raises:
        Refusal: the kernel is empty or has not two axes; it, A or G holds nan or inf.
        ValueError: the ranks are not strictly rising within the limits, or A or G does not fit the kernel.

    Paper: arXiv:1405.3866.

    >>> import torch
    >>> kernel = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    >>> fits = spatial_curve(kernel, [2, 15])
    >>> fits[0].first.shape, fits[0].second.shape, fits[1].loss < 1e-9
    (torch.Size([2, 5, 3]), torch.Size([6, 2, 3]), True)
    """
    if weight.ndim != 4:
        raise Refusal(f"spatial: a kernel {list(weight.shape)} has not two axes to split")
    check("spatial", weight, inputs, outputs)
    most = spatial_rank(weight.shape, vertical_first=vertical_first)
    if any(low >= high for low, high in pairwise(ranks)) or any(not 1 <= rank <= most for rank in ranks):
        raise ValueError(f"spatial: ranks {list(ranks)} must rise strictly within 1 … {most} for {list(weight.shape)}")
    problem = _posed(weight, inputs, outputs, vertical_first)
    tensor = whitened(problem)
    gram = torch.einsum("tck,tdk->cd", tensor, tensor)
    starts = [leading(problem, gram, most)]
    if problem.blocks is not None:  # the plain one too, so that no fit is ever worse than that
        starts.append(torch.linalg.svd(problem.weight.transpose(0, 1).flatten(1), full_matrices=False).U.T)
    fits: list[SpatialFit] = []
    below: Split | None = None
    for rank in ranks:
        tried = [each[:rank] for each in starts]
        if below is not None and problem.blocks is not None:
            tried.append(extended(problem, gram, below.inner, rank))
        start = min((solve_outer(problem, each, None) for each in tried), key=lambda each: each.loss)
        below = swept(problem, start, None, sweeps, tolerance)
        fit = _fit(problem, below, weight, inputs, outputs, vertical_first)
        fits.append(fit if not fits or fit.loss <= fits[-1].loss else _padded(fits[-1], rank))
    return fits


def spatial_rank(shape: Sequence[int], *, vertical_first: bool = True) -> int:
    """The rank at which (1) is exact: the smaller of inp·d of the first filters and out·d of the second.

    Args:
        shape: of the kernel, [out, inp, y, x].
        vertical_first: d×1 before 1×d.

    >>> spatial_rank((64, 3, 5, 7)), spatial_rank((64, 3, 5, 7), vertical_first=False)
    (15, 21)
    """
    out, inp, y, x = shape
    first, second = (y, x) if vertical_first else (x, y)
    return min(inp * first, out * second)


def _posed(weight: Tensor, inputs: Tensor | None, outputs: Tensor | None, vertical_first: bool) -> Problem:
    """The kernel with (inp, first axis) narrowed and the second axis passed on."""
    out, inp, y, x = weight.shape
    turned = weight if vertical_first else weight.transpose(2, 3)
    first, second = turned.shape[2:]
    moment = None
    if inputs is not None:
        moment = inputs.reshape(inp, y, x, inp, y, x)
        moment = moment if vertical_first else moment.permute(0, 2, 1, 3, 5, 4)
        moment = moment.reshape(inp * first, second, inp * first, second)
    return posed(turned.reshape(out, inp * first, second), moment, outputs)


def _fit(
    problem: Problem, split: Split, weight: Tensor, inputs: Tensor | None, outputs: Tensor | None, vertical_first: bool
) -> SpatialFit:
    """Filters in falling order of what they carry, each pair of equal norms."""
    rotation = falling_rotation(problem, split)
    inner, core = rotation.T @ split.inner, torch.einsum("tak,ab->tbk", split.core, rotation)
    norms = [torch.linalg.vector_norm(inner, dim=1), torch.linalg.vector_norm(core, dim=(0, 2))]
    tiny = torch.finfo(inner.dtype).tiny
    share = (norms[1] / norms[0].clamp(min=tiny)).sqrt()
    first = (inner * share[:, None]).reshape(len(inner), weight.shape[1], -1).to(weight.dtype)
    second = (core / share.clamp(min=tiny)[:, None]).to(weight.dtype)
    fit = SpatialFit(first, second, vertical_first, 0.0, split.sweeps, split.converged)
    change = (weight.to(torch.float64) - fit.full().to(torch.float64)).flatten(1)
    return replace(fit, loss=metric_loss(change, inputs, outputs))


def _padded(fit: SpatialFit, rank: int) -> SpatialFit:
    """The same pair with filters of zeros added."""
    more = rank - fit.rank
    first = torch.cat([fit.first, fit.first.new_zeros(more, *fit.first.shape[1:])])
    second = torch.cat([fit.second, fit.second.new_zeros(len(fit.second), more, fit.second.shape[2])], dim=1)
    return replace(fit, first=first, second=second)
