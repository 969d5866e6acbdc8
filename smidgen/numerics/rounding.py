"""Weights as integers times a scale a row and a scale a column.

    Ŵ_ij = r_i · z_ij · s_j        minimise ½ Σ_i g_i (ΔW A ΔWᵀ)_ii + μ · bits(z),    ΔW = W − Ŵ

**One step for all layers** (waterfilling; WaterSIC, arXiv:2603.04956). A weight whose error is seen as g_i·L_jj² and
is rounded with step Δ loses ½·g_i·L_jj²·Δ²/12 nats and takes h − log₂ Δ bits. At μ nats a bit the sum is least at

    Δ_ij = c / (√g_i · L_jj),    c = √(12 μ / ln 2)

so the price alone sets the step of every weight of a network, and bits fall out.

Three ways to the integers: to the nearest; GPTQ (arXiv:2210.17323), where columns rounded later make good what earlier
ones lost; WaterSIC, which does the same with waterfilling steps and shrinks what it decodes to. The fourth, with the
rate in the choice, is in `smidgen.numerics.rate_aware`.

Differs from the papers: integers are signed and have no zero point; GPTQ's column order and error feedback are those of
`smidgen.numerics.cancellation`, the same numbers from L instead of U = chol(A⁻¹); WaterSIC's row rescaling is here the
row's share of the loss, 1/√g_i; inputs that were never seen get zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int, Int32
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.cancellation import Factor, cancel

LARGEST = 1 << 23  # an integer this large is exact in float32; a scale that needs more is refused
SCALE_CLASS = 2  # classes an octave of column scale, in the estimate of the rate


@dataclass(frozen=True, eq=False)
class Rounded:
    """A matrix as integers, row scales and column scales.

    Args:
        integers: z.
        row_scale: r, float32.
        column_scale: s, float32; zero where the whole column is.
    """

    integers: Int32[Tensor, "out n"]
    row_scale: Float32[Tensor, " out"]
    column_scale: Float32[Tensor, " n"]

    def dense(self) -> Float32[Tensor, "out n"]:
        """Ŵ, the same bits on every machine: ``(float32(z) · s) · r``, two float32 products in this order.

        >>> import torch
        >>> Rounded(torch.tensor([[3]], dtype=torch.int32), torch.tensor([0.5]), torch.tensor([2.0])).dense().tolist()
        [[3.0]]
        """
        return (self.integers.to(torch.float32) * self.column_scale) * self.row_scale[:, None]

    def rate(self) -> float:
        """Bits by order-0 entropy of the integers, columns of like scale sharing a table; scales not counted.

        >>> import torch
        >>> two = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
        >>> Rounded(two, torch.ones(2), torch.ones(2)).rate()
        4.0
        """
        scale = self.column_scale.to(torch.float64).clamp_min(torch.finfo(torch.float32).tiny)
        octave = torch.floor(SCALE_CLASS * torch.log2(scale)).to(torch.int64)
        return entropy_bits(self.integers, octave.expand(self.integers.shape[0], -1))


def entropy_bits(integers: Int[Tensor, "out n"], contexts: Int[Tensor, "out n"]) -> float:
    """Bits to code integers when each context has its own ideal fixed table.

    Args:
        integers: what is coded.
        contexts: what the decoder knows beforehand of each, as numbers.

    >>> import torch
    >>> entropy_bits(torch.tensor([[0, 1, 5, 5]]), torch.tensor([[0, 0, 1, 1]]))
    2.0
    """
    pairs = torch.stack([contexts.flatten().to(torch.int64), integers.flatten().to(torch.int64)])
    pairs, counts = torch.unique(pairs, dim=1, return_counts=True)
    _, of_context = torch.unique(pairs[0], return_inverse=True)
    counts = counts.to(torch.float64)
    totals = torch.zeros(len(pairs[0]), dtype=torch.float64, device=counts.device).index_add_(0, of_context, counts)
    return float((counts * (totals[of_context] / counts).log2()).sum())


def step_constant(price: float) -> float:
    """c = √(12 μ / ln 2), the step of a weight of unit curvature at μ nats a bit.

    >>> round(step_constant(0.001), 4)
    0.1316
    """
    if not price > 0 or not math.isfinite(price):
        raise ValueError(f"rounding: price={price} must be positive")
    return math.sqrt(12 * price / math.log(2))


def waterfilling_steps(
    factor: Factor, row_curvature: Float[Tensor, " out"], constant: float
) -> tuple[Float32[Tensor, " out"], Float32[Tensor, " n"]]:
    """Row scales 1/√g_i and column scales c/L_jj, whose products are the steps of waterfilling.

    Args:
        factor: of A.
        row_curvature: g, the diagonal of G; shrink it toward its mean first. Rows of zeros count as the smallest other.
        constant: c, from `step_constant`.

    >>> import torch
    >>> from smidgen.numerics.cancellation import factorise
    >>> factor = factorise(torch.diag(torch.tensor([4.0, 1.0])), damp=0.0)
    >>> [scale.tolist() for scale in waterfilling_steps(factor, torch.tensor([1.0, 0.25]), 1.0)]
    [[1.0, 2.0], [0.5, 1.0]]
    """
    g = row_curvature.detach().to(torch.float64)
    if not bool(torch.isfinite(g).all()) or bool((g < 0).any()):
        raise Refusal("rounding: the row curvature holds nan, inf or a negative value")
    seen = g[g > 0]
    g = torch.where(g > 0, g, seen.min()) if len(seen) else torch.ones_like(g)
    rows, columns = g.rsqrt(), constant / factor.diagonal
    return rows.to(torch.float32), columns.to(torch.float32)


def largest_scales(weight: Float[Tensor, "out n"], bits: int) -> Float32[Tensor, " out"]:
    """Row scales that take the largest weight of each row to 2^(bits−1) − 1: integers of a fixed width.

    >>> import torch
    >>> largest_scales(torch.tensor([[1.0, -14.0]]), 4).tolist()
    [2.0]
    """
    largest = weight.detach().abs().amax(1).to(torch.float64) / (2 ** (bits - 1) - 1)
    return torch.where(largest > 0, largest, 1.0).to(torch.float32)


def round_nearest(
    weight: Float[Tensor, "out n"], row_scale: Float32[Tensor, " out"], column_scale: Float32[Tensor, " n"]
) -> Rounded:
    """Every weight to its nearest step.

    >>> import torch
    >>> round_nearest(torch.tensor([[0.9, -2.2]]), torch.tensor([1.0]), torch.tensor([1.0, 2.0])).integers.tolist()
    [[1, -1]]
    """
    step = row_scale.to(torch.float64)[:, None] * column_scale.to(torch.float64)
    if not bool(torch.isfinite(weight).all()):
        raise Refusal("rounding: the weight holds nan or inf")
    wide = weight.detach().to(torch.float64)
    return as_rounded(torch.where(step > 0, wide / step, 0.0).round(), row_scale, column_scale)


def round_gptq(
    weight: Float[Tensor, "out n"],
    factor: Factor,
    row_scale: Float32[Tensor, " out"],
    column_scale: Float32[Tensor, " n"] | None = None,
    *,
    levels: int | None = None,
    kept: Bool[Tensor, "out n"] | None = None,
) -> Rounded:
    """Every column to its nearest step in turn, later ones making good what earlier ones lost.

    Args:
        weight: W.
        factor: of A; its order is the order of rounding.
        row_scale, column_scale: whose products are the steps; columns all alike when None.
        levels: largest magnitude of an integer, for fixed widths; free when None.
        kept: of a pruned weight, what may be another integer than zero; anything when None.

    Paper: arXiv:2210.17323.

    >>> import torch
    >>> from smidgen.numerics.cancellation import factorise
    >>> factor = factorise(torch.tensor([[1.0, 0.9], [0.9, 1.0]]), damp=0.0)
    >>> round_gptq(torch.tensor([[0.4, 0.4]]), factor, torch.ones(1)).integers.tolist()
    [[1, 0]]
    """
    columns = torch.ones(weight.shape[1], device=weight.device) if column_scale is None else column_scale
    rows, wide = row_scale.to(torch.float64), columns.tolist()
    # Transposed: what is chosen together lies together.
    integers = torch.zeros(weight.shape[::-1], dtype=torch.int32, device=weight.device)
    alive = (factor.alive & (columns > 0)).tolist()
    most = LARGEST if levels is None else levels

    def choose(j: int, target: Tensor) -> Tensor:
        if not alive[j]:
            return torch.zeros_like(target)
        step = rows * wide[j]
        z = (target / step).round_().clamp_(-most, most)
        z = z if kept is None else torch.where(kept[:, j], z, 0.0)
        integers[j] = z
        return z.mul_(step)

    cancel(weight, factor, choose)
    return as_rounded(integers.T.contiguous(), row_scale, columns)


def round_watersic(
    weight: Float[Tensor, "out n"],
    factor: Factor,
    row_scale: Float32[Tensor, " out"],
    column_scale: Float32[Tensor, " n"],
    *,
    shrink: bool = True,
) -> Rounded:
    """GPTQ with a gain a column, so that coarse columns decode to smaller values.

    With row scales 1/√g_i and column scales α_j = c/L_jj (`waterfilling_steps`), for j = n … 1:

        z = round(Y_j / c),    γ_j = ⟨z, Y_j⟩ / (c ⟨z, z⟩),    Y ← Y − γ_j α_j z L_j,:

    and column j decodes to z · α_j γ_j; Y is here the target of `cancel`, Y_j = t_j L_jj / r.

    Args:
        weight: W.
        factor: of A.
        row_scale, column_scale: from `waterfilling_steps`.
        shrink: use the gains γ; each then costs a number of its own.

    Paper: arXiv:2603.04956.

    >>> import torch
    >>> from smidgen.numerics.cancellation import factorise
    >>> factor = factorise(torch.eye(1), damp=0.0)
    >>> round_watersic(torch.tensor([[0.75], [0.75]]), factor, torch.ones(2), torch.ones(1)).column_scale.tolist()
    [0.75]
    """
    rows, wide = row_scale.to(torch.float64), column_scale.to(torch.float64)
    integers = torch.zeros(weight.shape, dtype=torch.int32, device=weight.device)
    decoded = column_scale.clone()
    alive = factor.alive.tolist()

    def choose(j: int, target: Tensor) -> Tensor:
        if not alive[j]:
            return torch.zeros_like(target)
        y = target / rows
        z = (y / wide[j]).round().clamp(-LARGEST, LARGEST)
        energy = z.square().sum()
        gain = (z * y).sum() / (wide[j] * energy) if shrink and float(energy) > 0 else 1.0
        decoded[j] = wide[j] * gain
        integers[:, j] = z
        # The file's own float32 scale is what the later columns must make good.
        return rows * z * decoded[j].to(torch.float64)

    cancel(weight, factor, choose)
    return as_rounded(integers, row_scale, decoded)


def as_rounded(
    integers: Float[Tensor, "out n"] | Int32[Tensor, "out n"],
    row_scale: Float32[Tensor, " out"],
    column_scale: Float32[Tensor, " n"],
) -> Rounded:
    """Integers, which may come as floats, with their scales; a column of zeros needs no scale.

    Raises:
        Refusal: a step is so small that an integer no longer is exact in float32.
    """
    if bool((integers.abs() >= LARGEST).any()):
        raise Refusal(f"rounding: a step is too small: an integer exceeds {LARGEST}; raise the price")
    empty = (integers == 0).all(0)
    return Rounded(integers.to(torch.int32), row_scale.clone(), torch.where(empty, 0.0, column_scale))
