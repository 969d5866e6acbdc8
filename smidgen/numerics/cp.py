"""Canonical polyadic (CP) decomposition of a convolution kernel by ridged alternating least squares.

    K[t,s,y,x] ≈ Σ_r U_t[t,r] U_s[s,r] U_y[y,r] U_x[x,r]                                                      (1)
    minimise ln ‖K − K̂‖² + η Σ_r ‖K̂_r‖² / ‖K‖²,   K̂_r the r-th rank-1 term, η a small ridge                   (2)

(1) is the kernel's form in Lebedev, Ganin, Rakhuba, Oseledets and Lempitsky, "Speeding-up convolutional neural networks
using fine-tuned CP-decomposition", arXiv:1412.6553. A CP fit can degenerate: terms grow without bound and cancel each
other, which no later stage (rounding, training, float32 itself) survives. The penalty of (2) holds the terms down, and
each fit reports how far it went, after Phan et al., "Stable low-rank tensor decomposition for compression of
convolutional neural network", arXiv:2008.05441. Starting terms: the TTr1 series, an orthogonal sum of rank-1 terms from
nested SVDs, of Batselier, Liu and Wong, arXiv:1407.1593; ranks beyond the series' length are filled with seeded noise.

Differs from the paper:
- Lebedev et al. use non-linear least squares; here it is ALS, whose cost is two matrix products a sweep (`cp_sweeps`).
- Phan et al. minimise the sensitivity under an error bound after the fit; here (2) holds Σ‖K̂_r‖² down during the fit,
  and a fit whose terms still cancel is flagged. A stationary point of (2) is one of ‖K − K̂‖² + ρ Σ_r ‖K̂_r‖² with
  ρ = η ‖K − K̂‖²/‖K‖², so each sweep solves ridged least squares with the ρ of the last sweep's error (3). The ridge
  thus falls with the error, an exact fit is not biased, and η means the same for every kernel. On trained 3x3 layers
  (ResNet-20, SqueezeNet, a cats-and-dogs net; ranks 32 and 96, run to a standstill) η = 1e-2 came within 0.5 % of the
  error without a ridge, with Σ‖K̂_r‖ two to seven times smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.cp_sweeps import alternate, extended, khatri_rao, solve_dtype

# Σ‖K̂_r‖ ≤ √R ‖K̂‖ for orthogonal terms (Cauchy–Schwarz). Fits of trained layers by (2) stay below twice that.
DEGENERATE_ABOVE = 3.0


@dataclass(frozen=True)
class CPFactors:
    """The factors of (1), the weight of each term shared evenly: all factors' r-th columns have the same norm.

    Args:
        out: output channels × rank.
        inp: input channels × rank.
        kernel: one factor a kernel axis, axis length × rank.

    >>> import torch
    >>> CPFactors(torch.ones(4, 2), torch.ones(3, 2), (torch.ones(5, 2),)).rank
    2
    """

    out: Float[Tensor, "out rank"]
    inp: Float[Tensor, "inp rank"]
    kernel: tuple[Float[Tensor, "_ rank"], ...]

    @property
    def rank(self) -> int:
        """Number of rank-1 terms."""
        return self.out.shape[1]

    @property
    def nparams(self) -> int:
        """Numbers stored: R·(T + S + Σ d)."""
        return sum(factor.numel() for factor in (self.out, self.inp, *self.kernel))


@dataclass(frozen=True)
class CPFit:
    """A decomposition and what is known of it.

    Args:
        factors: the factors of (1).
        relative_error: ‖K − K̂‖ / ‖K‖.
        iterations: sweeps spent on this fit.
        sensitivity: Σ_n I_n Σ_r Π_{m≠n} ‖u_r^(m)‖² of K/‖K‖: expected squared error, to first order, for each unit of
            variance of independent noise on all factor entries (Phan et al.).
        degeneracy: Σ_r ‖K̂_r‖ / ‖K‖; at most √R where no terms cancel.
    """

    factors: CPFactors
    relative_error: float
    iterations: int
    sensitivity: float
    degeneracy: float

    @property
    def degenerate(self) -> bool:
        """Whether terms diverge and cancel: Σ‖K̂_r‖/‖K‖ > 3·√R."""
        return self.degeneracy > DEGENERATE_ABOVE * math.sqrt(max(self.factors.rank, 1))


@dataclass(frozen=True)
class CPRankSearch:
    """The smallest rank found for an error, and the curve walked to it.

    Args:
        fit: the fit at that rank, or at the largest rank allowed when none is good enough.
        reached: whether the fit's relative error is within the target.
        curve: (rank, relative error), rank rising, error never rising.
    """

    fit: CPFit
    reached: bool
    curve: tuple[tuple[int, float], ...]


def cp_full(factors: CPFactors) -> Float[Tensor, "out inp *kernel"]:
    """Rebuild the kernel: K̂[t,s,…] = Σ_r U_t[t,r] U_s[s,r] ….

    Args:
        factors: the factors of (1).

    Returns:
        The kernel, [out, inp, *kernel].

    >>> import torch
    >>> cp_full(CPFactors(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]]), (torch.tensor([[1.0], [10.0]]),)))
    tensor([[[ 3., 30.]],
    <BLANKLINE>
            [[ 6., 60.]]])
    """
    every = [factors.out, factors.inp, *factors.kernel]
    return (factors.out @ khatri_rao(every[1:]).T).reshape([factor.shape[0] for factor in every])


def cp_als(
    weight: Float[Tensor, "out inp *kernel"],
    rank: int,
    *,
    seed: int = 0,
    iterations: int = 200,
    tolerance: float = 1e-4,
    ridge: float = 1e-2,
    initial: CPFactors | None = None,
) -> CPFit:
    """Fit (1) at one rank by minimising ln ‖K − K̂‖² + η Σ_r ‖K̂_r‖²/‖K‖², one factor after another.

    Args:
        weight: kernel, [out, inp, *kernel], one kernel axis or more; computed in float64 if it is, else in float32.
        rank: number of rank-1 terms, at least 1.
        seed: of the noise on the starting terms, and of the random ones where their series is shorter than the rank.
        iterations: most sweeps over all factors.
        tolerance: stop once a sweep lowers (2) by less than twice this: where the error falls by this part of it.
        ridge: η of (2), at least 0.
        initial: factors to start from, of this rank or less; terms are added from what they leave.

    Returns:
        The fit; never worse than its start.

    Raises:
        Refusal: the kernel holds nan or inf, or has no kernel axis.
        ValueError: the rank is not positive, or less than that of `initial`.

    Paper: arXiv:1412.6553, arXiv:2008.05441.

    >>> import torch
    >>> one = cp_full(CPFactors(torch.ones(4, 1), torch.ones(3, 1), (torch.ones(3, 1), torch.ones(3, 1))))
    >>> fit = cp_als(one, 1)
    >>> fit.factors.kernel[0].shape, fit.relative_error < 1e-5, fit.degenerate
    (torch.Size([3, 1]), True, False)
    """
    _check(weight, rank)
    work = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    # Scaled by the largest entry first, so that squares neither overflow nor underflow.
    peak = float(work.abs().max())
    norm = peak * float(torch.linalg.vector_norm(work / peak)) if peak > 0 else 0.0
    if norm == 0.0:
        return CPFit(_factors([work.new_zeros(length, rank) for length in weight.shape]), 0.0, 0, 0.0, 0.0)
    matrix = (work / peak * (peak / norm)).reshape(weight.shape[0], -1)
    known = _known(initial, work, norm, rank)
    start, noisy = extended(matrix, list(weight.shape), known, rank, seed)
    found, sweeps = alternate(matrix, noisy, iterations, tolerance, ridge)
    error, kept = min((_error(matrix, each), place) for place, each in enumerate((found, start)))
    return described((found, start)[kept], error, sweeps, norm)


def cp_curve(
    weight: Float[Tensor, "out inp *kernel"],
    ranks: Sequence[int],
    *,
    seed: int = 0,
    iterations: int = 50,
    tolerance: float = 1e-4,
    ridge: float = 1e-2,
) -> list[CPFit]:
    """Fit (1) along rising ranks, each from the last plus the leading rank-1 terms of what it leaves.

    Args:
        weight: kernel, [out, inp, *kernel].
        ranks: strictly rising, at least 1.
        seed: as in `cp_als`.
        iterations: most sweeps a rank.
        tolerance: as in `cp_als`.
        ridge: as in `cp_als`.

    Returns:
        One fit a rank. The errors never rise: where sweeps gain nothing the last fit is kept, padded with zero terms.

    Raises:
        Refusal: the kernel holds nan or inf, or has no kernel axis.
        ValueError: the ranks are not strictly rising from 1 or more.

    >>> import torch
    >>> fits = cp_curve(torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0)), [1, 4, 9])
    >>> [fit.factors.rank for fit in fits], fits[0].relative_error > fits[1].relative_error > fits[2].relative_error
    ([1, 4, 9], True)
    """
    if any(low >= high for low, high in pairwise(ranks)):
        raise ValueError(f"cp: ranks {list(ranks)} must rise strictly")
    fits: list[CPFit] = []
    for rank in ranks:
        best = fits[-1] if fits else None
        fits.append(_next_fit(weight, rank, best, seed, iterations, tolerance, ridge))
    return fits


def cp_ranks_by_error(
    weight: Float[Tensor, "out inp *kernel"],
    target_relative_error: float,
    *,
    max_rank: int | None = None,
    growth: float = 1.5,
    seed: int = 0,
    iterations: int = 50,
    tolerance: float = 1e-4,
    ridge: float = 1e-2,
) -> CPRankSearch:
    """Find the smallest rank with ‖K − K̂‖ ≤ target·‖K‖: a geometric grid, then bisection of its last step.

    Args:
        weight: kernel, [out, inp, *kernel].
        target_relative_error: in (0, 1).
        max_rank: largest rank to try; default the smaller of `exact_rank` and the one storing as much as the kernel.
        growth: ratio of neighbouring ranks on the grid.
        seed: as in `cp_als`.
        iterations: most sweeps a rank.
        tolerance: as in `cp_als`.
        ridge: as in `cp_als`.

    Returns:
        The fit, whether it reached the target, and the error curve walked.

    Raises:
        Refusal: the kernel holds nan or inf, or has no kernel axis.
        ValueError: the target is not in (0, 1), or a rank is not positive.

    >>> import torch
    >>> kernel = torch.zeros(4, 4, 3, 3)
    >>> kernel[0, 0, 0, 0], kernel[1, 1, 1, 1] = 2.0, 1.0
    >>> search = cp_ranks_by_error(kernel, 0.1)
    >>> search.fit.factors.rank, search.reached
    (2, True)
    """
    if not 0 < target_relative_error < 1:
        raise ValueError(f"cp: target_relative_error={target_relative_error} must lie between 0 and 1")
    top = max_rank if max_rank is not None else min(exact_rank(weight.shape), _even_rank(weight.shape))
    fits: dict[int, CPFit] = {}

    def walk(rank: int, below: CPFit | None) -> CPFit:
        fits[rank] = _next_fit(weight, rank, below, seed, iterations, tolerance, ridge)
        return fits[rank]

    return _search(walk, fits, target_relative_error, top, growth)


def exact_rank(shape: Sequence[int]) -> int:
    """Length of the full TTr1 series, an upper bound of the rank at which (1) is exact: Π_n min(I_n, Π_{m>n} I_m).

    Args:
        shape: of the kernel, [out, inp, *kernel].

    Returns:
        The bound.

    Paper: arXiv:1407.1593.

    >>> exact_rank((4, 3, 2, 2)), exact_rank((64, 64, 3, 3))
    (24, 1728)
    """
    return math.prod(min(length, math.prod(shape[place + 1 :])) for place, length in enumerate(shape[:-1]))


def refit_out(
    weight: Float[Tensor, "out cols"],
    basis: Float[Tensor, "rank cols"],
    moment: Float[Tensor, "cols cols"] | None = None,
) -> Float[Tensor, "out rank"]:
    """Best output factor for a given basis: U minimising tr((W − U Z) A (W − U Z)ᵀ), U = W A Zᵀ (Z A Zᵀ)⁺.

    Args:
        weight: W, kernel as a matrix of im2col columns.
        basis: Z, one rank-1 input-and-kernel term a row.
        moment: A, second moment of the inputs; identity where None.

    Returns:
        U in the weight's dtype, solved in float64. Of the many answers of a rank-deficient basis, the one of least norm
        after its rows are scaled to unit length under A; rows that A does not see get zero.

    >>> import torch
    >>> refit_out(torch.tensor([[2.0, 6.0]]), torch.tensor([[1.0, 3.0], [1.0, 3.0]]))
    tensor([[1., 1.]])
    """
    wide = solve_dtype(weight)
    rows = basis.to(wide)
    seen = rows if moment is None else rows @ moment.to(wide)
    gram = seen @ rows.T
    length = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.where(length > 0, 1 / length.clamp(min=torch.finfo(wide).tiny), 0.0)
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2 * scale[:, None] * scale)
    # Below this an eigenvalue of a unit-diagonal Gram is rounding: eps·R, times 10 for the products it came from.
    floor = 10 * torch.finfo(wide).eps * max(len(values), 1) * values.abs().max() if len(values) else 0.0
    inverse = torch.where(values > floor, 1 / values.clamp(min=torch.finfo(wide).tiny), 0.0)
    target = weight.to(wide) @ seen.T * scale
    return ((target @ vectors * inverse) @ vectors.T * scale).to(weight.dtype)


def _check(weight: Tensor, rank: int) -> None:
    if rank < 1:
        raise ValueError(f"cp: rank={rank} must be at least 1")
    if weight.ndim < 3 or weight.numel() == 0:
        raise Refusal(f"cp: a kernel {list(weight.shape)} has no kernel axis; use a matrix method")
    if not bool(torch.isfinite(weight).all()):
        raise Refusal("cp: the kernel holds nan or inf")


def _even_rank(shape: Sequence[int]) -> int:
    """Largest rank that stores no more numbers than the kernel itself."""
    return max(1, math.prod(shape) // sum(shape))


def _next_fit(
    weight: Tensor, rank: int, below: CPFit | None, seed: int, iterations: int, tolerance: float, ridge: float
) -> CPFit:
    """A fit never worse than the smaller one it starts from."""
    initial = None if below is None else below.factors
    fit = cp_als(weight, rank, seed=seed, iterations=iterations, tolerance=tolerance, ridge=ridge, initial=initial)
    if below is None or fit.relative_error <= below.relative_error:
        return fit
    pad = rank - below.factors.rank
    every = [below.factors.out, below.factors.inp, *below.factors.kernel]
    padded = _factors([torch.cat([factor, factor.new_zeros(len(factor), pad)], dim=1) for factor in every])
    return replace(below, factors=padded, iterations=fit.iterations)


def _search(
    walk: Callable[[int, CPFit | None], CPFit], fits: dict[int, CPFit], target: float, top: int, growth: float
) -> CPRankSearch:
    rank, below = 1, None
    while walk(rank, below).relative_error > target and rank < top:
        below, rank = fits[rank], min(top, max(rank + 1, round(rank * growth)))
    high, low = rank, max((each for each in fits if each < rank), default=0)
    while fits[high].relative_error <= target and high - low > 1:
        middle = (low + high) // 2
        good = walk(middle, fits.get(low)).relative_error <= target
        low, high = (low, middle) if good else (middle, high)
    curve: list[tuple[int, float]] = []
    for each in sorted(fits):
        lowest = min(fits[each].relative_error, curve[-1][1]) if curve else fits[each].relative_error
        curve.append((each, lowest))
    return CPRankSearch(fits[high], fits[high].relative_error <= target, tuple(curve))


def _known(initial: CPFactors | None, like: Tensor, norm: float, rank: int) -> list[Tensor] | None:
    """Starting terms for the unit-norm kernel, zero ones left out."""
    if initial is None:
        return None
    if initial.rank > rank:
        raise ValueError(f"cp: rank={rank} is less than the {initial.rank} terms it starts from")
    every = [factor.to(like) for factor in (initial.out, initial.inp, *initial.kernel)]
    alive = torch.stack([factor.abs().amax(dim=0) > 0 for factor in every]).all(dim=0)
    return [factor[:, alive] / norm ** (1 / len(every)) for factor in every] if bool(alive.any()) else None


def _error(matrix: Tensor, factors: list[Tensor]) -> float:
    error = float(torch.linalg.vector_norm(matrix - factors[0] @ khatri_rao(factors[1:]).T))
    return error if math.isfinite(error) else math.inf


def _factors(every: list[Tensor]) -> CPFactors:
    return CPFactors(every[0], every[1], tuple(every[2:]))


def described(factors: list[Tensor], error: float, sweeps: int, norm: float) -> CPFit:
    """The fit of K, of this norm and relative error, from factors of K/‖K‖: outputs, inputs, kernel axes."""
    squares = torch.stack([factor.to(solve_dtype(factor)).square().sum(dim=0) for factor in factors])
    others = [squares[:place].prod(dim=0) * squares[place + 1 :].prod(dim=0) for place in range(len(factors))]
    sensitivity = sum(len(factor) * float(other.sum()) for factor, other in zip(factors, others, strict=True))
    degeneracy = float(squares.prod(dim=0).sqrt().sum())
    scaled = [factor * norm ** (1 / len(factors)) for factor in factors]
    return CPFit(_factors(scaled), error, sweeps, sensitivity, degeneracy)
