"""Rounding a product of two factors, each under the curvature it inherits from the layer.

    minimise ½ tr(G ΔW A ΔWᵀ) + μ · bits,    ΔW = W − Û V̂
    V sees A on its columns and UᵀGU on its rows;  U sees V̂ A V̂ᵀ on its columns and G on its rows

(Derived: put ΔW = U ΔV, then ΔW = ΔU V̂, into the loss.) V is rounded first, U is then refitted to W by least squares on
the rounded V,

    U = W A V̂ᵀ (V̂ A V̂ᵀ)⁻¹

and rounded under the second metric, so that it makes good what V lost. Only the diagonals of UᵀGU and G are used; for
factors from the SVD in the metric UᵀGU *is* diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from smidgen.numerics.cancellation import Factor, factorise
from smidgen.numerics.rate_aware import round_rate_aware
from smidgen.numerics.rounding import Rounded, round_gptq, step_constant, waterfilling_steps

RIDGE = 1e-6  # of the mean diagonal of V A Vᵀ, for components that rounding emptied


@dataclass(frozen=True, eq=False)
class RoundedProduct:
    """Ŵ = Û V̂."""

    u: Rounded
    v: Rounded

    def dense(self) -> Float32[Tensor, "out n"]:
        """The product, in float32; how a runtime sums it is its own."""
        return self.u.dense() @ self.v.dense()

    def rate(self) -> float:
        """Bits of both factors' integers."""
        return self.u.rate() + self.v.rate()


def round_waterfilled(
    weight: Float[Tensor, "out n"],
    factor: Factor,
    row_curvature: Float[Tensor, " out"],
    price: float,
    *,
    coarse: float = 1.0,
    rate_aware: bool = True,
    per_octave: int | None = 4,
    passes: int = 3,
) -> Rounded:
    """A matrix rounded at a price, steps and all.

    Args:
        weight: W.
        factor: of A.
        row_curvature: g.
        price: μ, nats a bit.
        coarse: κ, the step as a share of √(12 μ / ln 2).
        rate_aware: count bits while choosing; otherwise every column goes to its nearest step in turn.
        per_octave: grid of the scales; None for none.
        passes: how often the rate is learned.

    >>> import torch
    >>> result = round_waterfilled(torch.eye(3), factorise(torch.eye(3)), torch.ones(3), 1e-4)
    >>> bool((result.dense() - torch.eye(3)).abs().max() < 0.03)
    True
    """
    steps = waterfilling_steps(factor, row_curvature, coarse * step_constant(price), per_octave=per_octave)
    if rate_aware:
        return round_rate_aware(weight, factor, row_curvature, *steps, price, passes=passes)
    return round_gptq(weight, factor, *steps)


def round_low_rank(
    weight: Float[Tensor, "out n"],
    u: Float[Tensor, "out rank"],
    v: Float[Tensor, "rank n"],
    factor: Factor,
    moment: Float[Tensor, "n n"],
    outputs: Float[Tensor, "out out"],
    price: float,
    *,
    damp: float = 0.01,
    coarse: float = 1.0,
    rate_aware: bool = True,
    per_octave: int | None = 4,
    passes: int = 3,
) -> RoundedProduct:
    """Both factors of W ≈ U V as integers.

    Args:
        weight: W, which the refit of U aims at.
        u, v: its factors.
        factor, moment: A, factorised and plain.
        outputs: G; a diagonal one will do.
        price: μ, nats a bit.
        damp: of V̂ A V̂ᵀ.
        coarse, rate_aware, per_octave, passes: see `round_waterfilled`.

    >>> import torch
    >>> u, v = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 1.0]])
    >>> a, g = torch.eye(2), torch.eye(2)
    >>> result = round_low_rank(u @ v, u, v, factorise(a), a, g, 1e-4)
    >>> bool((result.dense() - u @ v).abs().max() < 0.1)
    True
    """
    wide_w, wide_u, wide_v, a, g = (each.detach().to(torch.float64) for each in (weight, u, v, moment, outputs))
    inherited = ((g @ wide_u) * wide_u).sum(0)

    def rounded(matrix: Tensor, metric: Factor, rows: Tensor) -> Rounded:
        return round_waterfilled(
            matrix, metric, rows, price, coarse=coarse, rate_aware=rate_aware, per_octave=per_octave, passes=passes
        )

    first = rounded(wide_v, factor, inherited)
    seen = first.dense().to(torch.float64)
    inner = seen @ a @ seen.T
    refitted = refit_left(wide_w, seen, a)
    return RoundedProduct(rounded(refitted, factorise(inner, damp=damp), g.diagonal()), first)


def refit_left(
    weight: Float[Tensor, "out n"], v: Float[Tensor, "rank n"], moment: Float[Tensor, "n n"]
) -> Float[Tensor, "out rank"]:
    """The U that brings U V nearest to W in the metric A: W A Vᵀ (V A Vᵀ)⁻¹.

    >>> import torch
    >>> refit_left(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 2.0]]), torch.eye(2)).round(decimals=4).tolist()
    [[2.0]]
    """
    wide, a = v.detach().to(torch.float64), moment.detach().to(torch.float64)
    inner = wide @ a @ wide.T
    # An emptied component has a zero row and column: the ridge gives it weight zero.
    inner.diagonal().add_(RIDGE * inner.diagonal().mean() + torch.finfo(torch.float64).tiny)
    return torch.linalg.solve(inner, weight.detach().to(torch.float64) @ a @ wide.T, left=False)
