"""Trellis-coded (dependent) rounding: which integers a weight may take depends on the parities of the ones before.

Two quantizers share one grid of step Δ: Q0 reaches the even multiples, 2k, and Q1 the odd ones and zero, 2k − sgn k. A
state machine driven by the parity of each index k says which is in use, so each index costs the bits of a step of 2Δ
while paths through the trellis lie closer together. In theory this recovers up to 1 dB of the 1.53 that rounding one by
one loses to the bound; measured, 0.5 dB at two bits and 3 to 5 % of ResNet-20's bytes at equal KL, nothing below a
bit.

    minimise over paths  Σ_j ½ g_i L_jj² (t_j − r_i s_j z_j)² + μ · bits(k_j)

(Fischer and Wang 1992, doi:10.1109/18.119699; as in H.266 and ISO/IEC 15938-17.) The targets t_j depend on the path, as
each column makes good what those before lost (`smidgen.numerics.cancellation`), so every survivor of the Viterbi
search carries its own remainder.

Differs from the standards: the path runs along a row of the weight in the order of rounding, and survivors are cut to
the best at the end of each block of columns, which bounds memory.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int, Int32
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.cancellation import Factor
from smidgen.numerics.rate_aware import Rate
from smidgen.numerics.rounding import LARGEST, Rounded, as_rounded

# state, parity of the index → next state; odd states use Q1 (the 8-state machine of ISO/IEC 15938-17, by memory:
# that it gains what it should is tested).
NEXT = ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))
BLOCK = 64  # columns between cuts of the survivors


def indices(
    integers: Int[Tensor, "out n"], order: Int[Tensor, " n"]
) -> tuple[Int32[Tensor, "out n"], Int32[Tensor, "out n"]]:
    """The indices k that a coder writes, and the state that the decoder is in before each.

    Args:
        integers: from `round_trellis`.
        order: columns in the order of rounding, from `rounding_order`.

    >>> import torch
    >>> k, state = indices(torch.tensor([[-2, 2, 1]]), torch.tensor([0, 1, 2]))
    >>> k.tolist(), state.tolist()
    ([[-1, 1, 1]], [[0, 2, 3]])
    """
    table = torch.tensor(NEXT, device=integers.device)
    k, states = torch.zeros_like(integers, dtype=torch.int32), torch.zeros_like(integers, dtype=torch.int32)
    state = torch.zeros(len(integers), dtype=torch.int64, device=integers.device)
    for j in order.tolist():
        z = integers[:, j]
        # Q0: z = 2k. Q1: z = 2k − sgn k, so k = (z + sgn z) / 2. Both are exact.
        index = torch.div(z + z.sign() * (state % 2), 2, rounding_mode="trunc")
        k[:, j], states[:, j] = index.to(torch.int32), state.to(torch.int32)
        state = table[state, (index % 2).long()]
    return k, states


def rounding_order(factor: Factor) -> Int[Tensor, " n"]:
    """Columns in the order in which they are rounded.

    >>> import torch
    >>> from smidgen.numerics.cancellation import factorise
    >>> rounding_order(factorise(torch.eye(3))).tolist()
    [2, 1, 0]
    """
    return torch.cat([columns.flip(0) for columns in factor.columns])


def round_trellis(
    weight: Float[Tensor, "out n"],
    factor: Factor,
    row_curvature: Float[Tensor, " out"],
    row_scale: Float32[Tensor, " out"],
    column_scale: Float32[Tensor, " n"],
    price: float = 0.0,
    rate: Rate | None = None,
) -> Rounded:
    """Integers along the best path of the trellis.

    Args:
        weight: W.
        factor: of A.
        row_curvature: g.
        row_scale, column_scale: whose products are Δ, half the step of either quantizer.
        price: μ, nats a bit.
        rate: bits of candidate indices k ``[out, candidates]`` of a column; None counts none.

    >>> import torch
    >>> from smidgen.numerics.cancellation import factorise
    >>> factor, one = factorise(torch.eye(2), damp=0.0), torch.ones(1)
    >>> round_trellis(torch.tensor([[0.9, 2.2]]), factor, one, one, torch.ones(2)).integers.tolist()
    [[0, 2]]
    """
    if not bool(torch.isfinite(weight).all()):
        raise Refusal("rounding: the weight holds nan or inf")
    wide = weight.detach().to(torch.float64)
    g, rows, scale = (each.to(torch.float64) for each in (row_curvature, row_scale, column_scale))
    search = _Search(len(wide), g, rows, price, rate)
    integers = torch.zeros_like(wide)
    alive = factor.alive & (column_scale > 0)
    for columns, lower in zip(factor.columns, factor.lowers, strict=True):
        left = wide[:, columns] @ lower
        for end in range(len(columns), 0, -BLOCK):
            start = max(0, end - BLOCK)
            chosen = search.block(left[:, start:end], lower[start:end, start:end], columns[start:end], scale, alive)
            integers[:, columns[start:end]] = chosen
            values = chosen * rows[:, None] * scale[columns[start:end]]
            left[:, :start] -= values @ lower[start:end, :start]
    return as_rounded(integers, row_scale, column_scale)


class _Search:
    """Viterbi over one block of columns at a time, all rows at once; the state is kept from block to block."""

    def __init__(self, out: int, g: Tensor, rows: Tensor, price: float, rate: Rate | None) -> None:
        device = g.device
        self.rows, self.rate, self.price = rows, rate, price
        self.worth = (0.5 * g * rows.square())[:, None, None]
        self.state = torch.zeros(out, dtype=torch.int64, device=device)
        self.odd = torch.arange(8, device=device) % 2
        arrivals = [[(s, p) for s in range(8) for p in range(2) if NEXT[s][p] == t] for t in range(8)]
        self.arrivals = torch.tensor([[2 * s + p for s, p in pairs] for pairs in arrivals], device=device)

    def block(self, left: Tensor, lower: Tensor, columns: Tensor, scale: Tensor, alive: Tensor) -> Tensor:
        out, width = left.shape
        cost = torch.full((out, 8), torch.inf, dtype=left.dtype, device=left.device)
        cost[torch.arange(out), self.state] = 0.0
        left = left[:, None, :].expand(-1, 8, -1).clone()
        path = torch.zeros(out, 8, width, dtype=left.dtype, device=left.device)
        for j in range(width - 1, -1, -1):
            name = int(columns[j])
            delta = float(scale[name]) * self.rows
            if bool(alive[name]):
                target = left[:, :, j] / lower[j, j] / delta[:, None]
                index, value = self._candidates(target)
            else:
                target = torch.zeros_like(left[:, :, j])
                index = value = torch.stack([target, target + torch.inf], 2)
            spent = self.worth * (float(scale[name]) * lower[j, j]) ** 2 * (target[:, :, None] - value).square()
            if self.rate is not None:
                finite = index.nan_to_num(posinf=0.0)
                spent = spent + self.price * self.rate(name, finite.flatten(1)).reshape(index.shape)
            total = (cost[:, :, None] + spent).nan_to_num(nan=torch.inf).flatten(1)
            cost, taken = total[:, self.arrivals].min(2)
            taken = self.arrivals.expand(out, -1, -1).gather(2, taken[:, :, None])[:, :, 0]
            picked = value.flatten(1).gather(1, taken).nan_to_num(posinf=0.0)
            before = (taken // 2)[:, :, None].expand(-1, -1, width)
            left, path = left.gather(1, before), path.gather(1, before)
            path[:, :, j] = picked
            left[:, :, :j] -= (picked * delta[:, None])[:, :, None] * lower[j, :j]
        self.state = cost.argmin(1)
        return path[torch.arange(out), self.state]

    def _candidates(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """For each survivor the best index of each parity, and its value in steps Δ."""
        sign = torch.where(target < 0, -1.0, 1.0)
        size, odd = target.abs(), self.odd
        # Q0: values 4i (even k) and 4i + 2 (odd k). Q1: 0, ±3, ±7, … (even k) and ±1, ±5, … (odd k).
        even0, odd0 = 4 * (size / 4).round(), 4 * ((size - 2) / 4).round() + 2
        even1 = 4 * ((size + 1) / 4).round() - 1
        even1 = torch.where((even1 < 0) | (size < 1.5), 0.0, even1)
        odd1 = (4 * ((size - 1) / 4).round() + 1).clamp_min(1)
        even, uneven = torch.where(odd == 1, even1, even0), torch.where(odd == 1, odd1, odd0)
        value = torch.stack([even, uneven], 2).clamp_max(LARGEST - 4) * sign[:, :, None]
        shifted = value + value.sign() * odd[:, None]
        return shifted / 2, value
