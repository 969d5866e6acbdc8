"""Ranks from the data alone: empirical variational Bayes matrix factorization, in closed form.

    Y = B Aᵀ + E,   E_ij ~ N(0, σ²),   Gaussian priors on the columns of A and B whose widths are fitted too
    keep s_h > √(M σ² x̲),   x̲ = (1 + τ̲)(1 + α/τ̲),   α = L/M,   ln(1 + τ̲)/τ̲ + α ln(1 + τ̲/α)/τ̲ = 1            (1)
    ŝ = ½ s (1 − (L + M)σ²/s² + √((1 − (L + M)σ²/s²)² − 4 L M σ⁴/s⁴))                                        (2)
    2F/M = Σ_h [x_h + ln σ²] + Σ_{x_h > x̲} [ln(1 + τ_h) + α ln(1 + τ_h/α) − τ_h] + constant                  (3)
    x_h = s_h²/(M σ²),   τ_h = ½ (x_h − 1 − α + √((x_h − 1 − α)² − 4α))

for Y of L × M, L ≤ M, with singular values s_h. Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of
fully-observed variational Bayesian matrix factorization", JMLR 14 (2013): (1) and (2) are the global minimum of the
free energy F for a given noise variance σ², and where σ² is unknown it is the minimiser of (3), a function of one
variable. Kim et al., arXiv:1511.06530, take Tucker-2 ranks from the two channel unfoldings of a kernel this way.

The rank is what stands out of white noise of the matrix's own level. A trained layer is not low rank plus white noise,
so such ranks tell little of what a network bears; they are offered beside ranks chosen by price.

Differs from the paper: τ̲ is the root of (1), not its approximation 2.5129 √α; (3) may have several minima, so it is
searched on a grid that holds all its kinks before the lowest bracket is narrowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal

GRID = 400  # noise variances tried, evenly in the logarithm, beside the kinks of (3)
NARROWINGS = 80  # golden sections: 0.618^80 of a bracket is below rounding
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, eq=False)
class Vbmf:
    """What stands out of the noise.

    Args:
        rank: components kept; 0 where all is noise.
        u: left singular vectors kept, [m, rank].
        s: their shrunk singular values ŝ, falling.
        vh: right singular vectors kept, [rank, n].
        noise_variance: σ², given or found.
    """

    rank: int
    u: Float[Tensor, "m rank"]
    s: Float[Tensor, " rank"]
    vh: Float[Tensor, "rank n"]
    noise_variance: float


def evbmf(matrix: Float[Tensor, "m n"], noise_variance: float | None = None) -> Vbmf:
    """Low-rank part of a noisy matrix, its rank found from the noise.

    Args:
        matrix: Y, either side the longer; computed in float64.
        noise_variance: σ² of each entry; None finds it.

    Returns:
        The components kept, shrunk by (2), in the matrix's dtype.

    Raises:
        Refusal: the matrix is empty, or holds nan or inf.
        ValueError: the noise variance is negative or not finite.

    Paper: JMLR 14 (2013) 1-37.

    >>> import torch
    >>> noise = 0.01 * torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    >>> found = evbmf(torch.ones(20, 30) + noise)
    >>> found.rank, round(found.noise_variance**0.5, 3)
    (1, 0.01)
    """
    _check(matrix)
    if noise_variance is not None and not 0 <= noise_variance < math.inf:
        raise ValueError(f"vbmf: noise_variance={noise_variance} must be finite and at least 0")
    u, s, vh = torch.linalg.svd(matrix.detach().to(torch.float64), full_matrices=False)
    rank, variance = _selected(s, max(matrix.shape), noise_variance)
    shrunk = _shrunk(s[:rank], sum(matrix.shape), matrix.numel(), variance)
    return Vbmf(rank, u[:, :rank].to(matrix.dtype), shrunk.to(matrix.dtype), vh[:rank].to(matrix.dtype), variance)


def evbmf_rank(matrix: Float[Tensor, "m n"], noise_variance: float | None = None) -> int:
    """The rank that `evbmf` finds, from singular values only.

    Args:
        matrix: Y.
        noise_variance: σ² of each entry; None finds it.

    Raises:
        Refusal: the matrix is empty, or holds nan or inf.
        ValueError: the noise variance is negative or not finite.

    >>> import torch
    >>> evbmf_rank(torch.diag(torch.tensor([5.0, 4.0, 0.1, 0.1])), noise_variance=0.5)
    2
    """
    _check(matrix)
    if noise_variance is not None and not 0 <= noise_variance < math.inf:
        raise ValueError(f"vbmf: noise_variance={noise_variance} must be finite and at least 0")
    values = torch.linalg.svdvals(matrix.detach().to(torch.float64))
    return _selected(values, max(matrix.shape), noise_variance)[0]


def tucker2_ranks(weight: Float[Tensor, "out inp *kernel"]) -> tuple[int, int]:
    """Tucker-2 ranks of a kernel from the EVBMF of its two channel unfoldings.

    Args:
        weight: kernel, [out, inp, *kernel].

    Returns:
        Rank of the inputs, rank of the outputs; 0 where an unfolding is all noise.

    Raises:
        Refusal: the kernel is empty, or holds nan or inf.

    Paper: arXiv:1511.06530.

    >>> import torch
    >>> tucker2_ranks(torch.ones(8, 6, 3, 3))
    (1, 1)
    """
    inputs = weight.movedim(1, 0).reshape(weight.shape[1], -1)
    return evbmf_rank(inputs), evbmf_rank(weight.reshape(weight.shape[0], -1))


def energy_rank(singular_values: Float[Tensor, " k"], share: float) -> int:
    """Fewest leading components that hold a share of the energy: Σ_{h≤r} s_h² ≥ share · Σ s_h².

    Args:
        singular_values: s, falling.
        share: above 0 and at most 1.

    Returns:
        The rank; 0 for zeros.

    Raises:
        ValueError: the share is outside (0, 1].
        Refusal: a singular value is nan or inf.

    >>> import torch
    >>> energy_rank(torch.tensor([4.0, 1.0, 0.1]), 0.9)
    1
    """
    if not 0 < share <= 1:
        raise ValueError(f"energy: share={share} must be above 0 and at most 1")
    if not bool(torch.isfinite(singular_values).all()):
        raise Refusal("energy: the singular values hold nan or inf")
    peak = singular_values.abs().max() if singular_values.numel() else 0.0
    if not peak:
        return 0
    # From the smallest up: what is left out is a sum of small numbers, exact where a sum near the total is not.
    energy = (singular_values.to(torch.float64) / peak).square()
    left = energy.flip(0).cumsum(0).flip(0)
    return int((left > (1 - share) * left[0]).sum())


def free_energy(singular_values: Float[Tensor, " l"], longer: int, noise_variance: float) -> float:
    """Equation (3) without its constant: 2F/M as a function of the noise variance.

    Args:
        singular_values: all L of them.
        longer: M, the longer side of the matrix.
        noise_variance: σ², positive.

    >>> import torch
    >>> round(free_energy(torch.tensor([1.0]), 1, 1.0), 3)
    1.0
    """
    variance = torch.tensor([noise_variance], dtype=torch.float64)
    return float(_free_energies(singular_values.to(torch.float64).square(), longer, variance))


def _check(matrix: Tensor) -> None:
    if matrix.numel() == 0:
        raise Refusal(f"vbmf: a matrix {list(matrix.shape)} is empty")
    if not bool(torch.isfinite(matrix).all()):
        raise Refusal("vbmf: the matrix holds nan or inf")


def _selected(values: Tensor, longer: int, noise_variance: float | None) -> tuple[int, float]:
    """Rank and noise variance, computed on values scaled to a largest of 1."""
    peak = float(values[0])
    if peak == 0.0:
        return 0, noise_variance or 0.0
    squares = (values / peak).square()
    variance = _variance(squares, longer) if noise_variance is None else noise_variance / peak**2
    threshold = longer * variance * _bound(len(values) / longer)[1]  # (1)
    # Below the second a singular value is rounding of the largest, as for numpy's matrix_rank.
    rank = int((squares > max(threshold, (longer * torch.finfo(squares.dtype).eps) ** 2)).sum())
    return rank, variance * peak**2 if noise_variance is None else noise_variance


def _shrunk(values: Tensor, sides: int, entries: int, variance: float) -> Tensor:
    ratio = variance / values.square()
    first = 1 - sides * ratio
    return values / 2 * (first + (first.square() - 4 * entries * ratio.square()).clamp(min=0).sqrt())  # (2)


def _bound(alpha: float) -> tuple[float, float]:
    """τ̲ and x̲ of (1), by bisection: what is left of 1 falls with τ."""
    low, high = 0.0, 2.5129 * math.sqrt(alpha) * 4
    while high - low > 1e-14 * high:
        middle = (low + high) / 2
        kept = (math.log1p(middle) + alpha * math.log1p(middle / alpha)) / middle
        low, high = (middle, high) if kept > 1 else (low, middle)
    return high, (1 + high) * (1 + alpha / high)


def _free_energies(squares: Float[Tensor, " l"], longer: int, variances: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
    """(3) at several noise variances."""
    alpha = len(squares) / longer
    x = squares[:, None] / (longer * variances)
    excess = x - 1 - alpha
    tau = (excess + (excess.square() - 4 * alpha).clamp(min=0).sqrt()) / 2
    gain = torch.log1p(tau) + alpha * torch.log1p(tau / alpha) - tau
    return (x + variances.log() + torch.where(x > _bound(alpha)[1], gain, 0.0)).sum(dim=0)


def _variance(squares: Tensor, longer: int) -> float:
    """The noise variance with the lowest free energy, within the paper's bounds."""
    alpha = len(squares) / longer
    bound = _bound(alpha)[1]
    kept = max(math.ceil(len(squares) / (1 + alpha)) - 1, 0)
    upper = float(squares.mean()) / longer
    lower = max(float(squares[kept]) / (longer * bound), float(squares[kept:].mean()) / longer)
    # A matrix of exactly low rank would have its noise at zero: rounding is the least noise it can have.
    lower = min(max(lower, torch.finfo(squares.dtype).eps ** 2 / longer), upper)
    grid = torch.logspace(math.log10(lower), math.log10(upper), GRID, dtype=torch.float64, device=squares.device)
    kinks = squares / (longer * bound)
    grid = torch.cat([grid, kinks[(kinks > lower) & (kinks < upper)]]).sort().values.clamp(lower, upper)
    best = int(_free_energies(squares, longer, grid).argmin())
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    return _narrowed(squares, longer, low, float(grid[best]), high)


def _narrowed(squares: Tensor, longer: int, low: float, start: float, high: float) -> float:
    """Golden sections of a bracket, never ending above where they started."""
    inner, outer = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    for _ in range(NARROWINGS):
        pair = _free_energies(squares, longer, squares.new_tensor([inner, outer]))
        if pair[0] <= pair[1]:
            high = outer
        else:
            low = inner
        inner, outer = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    ends = squares.new_tensor([start, (low + high) / 2])
    return float(ends[_free_energies(squares, longer, ends).argmin()])
