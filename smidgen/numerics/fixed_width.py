"""Integers of a fixed width: the scale of each row, and the integers at it.

    least over s, z of ‖(w − s z) L‖²,    |z_j| ≤ m = 2^(bits−1) − 1,    L Lᵀ = A + δI,    for each row w

A scale that takes the largest weight of a row to m wastes steps on it where few weights are large: a smaller one clips
those few and rounds all others finer. Which is best is first searched with every weight to its nearest step,

    Σ_j L_jj² (w_j − s · clamp(round(w_j / s), ±m))²

L_jj² being what an error in column j costs once the others have made it good, and then, where steps are few, with the
error feedback itself at some scales around it. Clipping after Banner et al., arXiv:1810.05723 (there from a
distribution, here from the row's own weights); feedback after GPTQ, arXiv:2210.17323.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.rounding import largest_scales

# Scales [tries, rows] → integers [tries, rows, n]; changes [tries, rows, n] → costs [tries, rows]; exponents → scales
Round = Callable[[Tensor], Tensor]
Cost = Callable[[Tensor], Tensor]
Grid = Callable[[Tensor], Tensor]

SHARES = 32  # scales tried below the one that clips nothing
TRIED = 16  # of them an octave, where the grid has as many
# Scales tried with feedback around the best without, in such steps. Rows of LeNet and ResNet-20 at 4 bits: the
# error is 5 % above that of all scales tried with feedback; 16 % with the best without alone, 44 % with no clipping.
AROUND = (0, -4, -2, 2, 4)
FEW = 15  # levels up to which the scales around are worth their time; at 8 bits they gain 1 %
CACHED = 2**15  # weights of a piece whose 32 scales are tried in turn: 256 kB
AT_ONCE = 2**22  # weights whose tries are rounded together; feedback goes column by column, whatever the rows


def largest_exponents(weight: Float[Tensor, "rows n"], bits: int, per_octave: int) -> Int[Tensor, " rows"]:
    """k of the least scale 2^(k / per_octave) that clips nothing.

    >>> import torch
    >>> largest_exponents(torch.tensor([[14.0, -1.0], [0.0, 0.0]]), 4, 2).tolist()
    [2, 0]
    """
    return torch.ceil(per_octave * largest_scales(weight, bits).double().log2()).to(torch.int64)


def clamped_nearest(
    weight: Float[Tensor, "rows n"], scale: Float[Tensor, "*tries rows"], levels: int
) -> Int[Tensor, "*tries rows n"]:
    """Every weight to its nearest step of at most so many, at one scale a row or at several.

    >>> import torch
    >>> clamped_nearest(torch.tensor([[0.6, -30.0]]), torch.ones(1), 7).tolist()
    [[1, -7]]
    """
    return (weight.double() / scale.double()[..., None]).round().clamp(-levels, levels).to(torch.int32)


def round_fixed(
    weight: Float[Tensor, "rows n"],
    importance: Float[Tensor, "#rows n"],
    bits: int,
    per_octave: int,
    grid: Grid,
    cost: Cost,
    feedback: Round | None,
    *,
    shared: bool = False,
) -> tuple[Int[Tensor, "rows n"], Int[Tensor, " rows"]]:
    """Integers of a width and the exponents of their row scales.

    A row that rounding to the nearest serves better than feedback, at any scale tried, is rounded to the nearest.

    Args:
        weight: W.
        importance: L_jj².
        bits: width.
        per_octave: scales an octave.
        grid: scales of exponents k, as the file will hold them.
        cost: of each row's change, ‖ΔW L‖².
        feedback: integers at given row scales, none beyond the width; None rounds to the nearest alone.
        shared: all rows have one scale, that of the least cost altogether.

    Raises:
        Refusal: the weight holds nan or inf.

    >>> import torch
    >>> weight, ones = torch.tensor([[1.0, 7.0, -3.0]]), torch.ones(1, 3)
    >>> z, k = round_fixed(weight, ones, 4, 1, lambda k: 2.0**k.double(), lambda c: c.square().sum(2), None)
    >>> z.tolist(), k.tolist()
    ([[1, 7, -3]], [0])
    """
    if not bool(torch.isfinite(weight).all()):
        raise Refusal("rounding: the weight holds nan or inf")
    wide, levels = weight.detach().to(torch.float64), 2 ** (bits - 1) - 1
    most = largest_exponents(wide, bits, per_octave)
    most = most.max().expand_as(most) if shared else most

    def nearest(scale: Tensor) -> Tensor:
        return clamped_nearest(wide, scale, levels)

    def around(first: Tensor, steps: Sequence[int]) -> Tensor:
        return torch.stack([torch.minimum(first + step * offset, most) for offset in steps])

    step = max(1, per_octave // TRIED)
    start = _best_by_nearest(wide, importance, around(most, range(0, -SHARES, -1)), levels, grid, shared)
    best = _Best(wide, cost, shared)
    tries = around(start, AROUND if levels <= FEW else AROUND[:1])
    for way in (nearest, feedback):
        if way is not None:
            best.offer(tries, grid, way)
    return best.integers, best.exponents


def _best_by_nearest(
    weight: Float[Tensor, "rows n"],
    importance: Float[Tensor, "#rows n"],
    exponents: Int[Tensor, "tries rows"],
    levels: int,
    grid: Grid,
    shared: bool,
) -> Int[Tensor, " rows"]:
    """Of some exponents those that cost least with every weight to its nearest step; in pieces that a cache holds."""
    scale = grid(exponents).double()
    costs = torch.empty_like(scale)
    # A card has no use for pieces: each would be calls of its own.
    most = CACHED // max(1, weight.shape[1]) if weight.device.type == "cpu" else len(weight)
    pieces = [each.split(max(1, most)) for each in (weight, importance.expand_as(weight), scale.T, costs.T)]
    for piece, counts, steps, found in zip(*pieces, strict=True):
        for place, step in enumerate(steps.T[:, :, None]):
            change = (piece / step).round_().clamp_(-levels, levels).mul_(step).sub_(piece)
            found[:, place] = change.square_().mul_(counts).sum(1)
    least = costs.sum(1, keepdim=True).expand_as(costs) if shared else costs
    return exponents.gather(0, least.argmin(0)[None])[0]


class _Best:
    """The cheapest integers so far of every row, or of all rows together."""

    def __init__(self, weight: Tensor, cost: Cost, shared: bool) -> None:
        rows = {"device": weight.device, "dtype": torch.int64}
        self.weight, self.cost, self.shared = weight, cost, shared
        self.costs = torch.full((len(weight),), torch.inf, dtype=torch.float64, device=weight.device)
        self.integers = torch.zeros(weight.shape, device=weight.device, dtype=torch.int32)
        self.exponents = torch.zeros(len(weight), **rows)

    def offer(self, exponents: Int[Tensor, "tries rows"], grid: Grid, way: Round) -> None:
        for part in exponents.split(max(1, AT_ONCE // max(1, self.weight.numel()))):
            scale = grid(part)
            integers = way(scale)
            costs = self.cost(self.weight - integers * scale.double()[..., None])
            for found in zip(part, integers, costs, strict=True):
                self._take(*found)

    def _take(self, exponents: Tensor, integers: Tensor, costs: Tensor) -> None:
        if self.shared:
            costs = costs.sum().expand_as(costs)
        better = costs < self.costs
        self.costs = torch.where(better, costs, self.costs)
        self.integers = torch.where(better[:, None], integers, self.integers)
        self.exponents = torch.where(better, exponents, self.exponents)
