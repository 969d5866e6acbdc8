"""Error-preserving correction of a CP fit: the smallest rank-1 terms among fits that are no worse than a bound.

    minimise Σ_r ‖K̂_r‖²   subject to   ‖K − K̂‖ ≤ δ ‖K‖                                                          (1)

Phan et al., "Stable low-rank tensor decomposition for compression of convolutional neural network", arXiv:2008.05441,
and "Error preserving correction: a method for CP decomposition at a target error bound", arXiv:1709.08349. Terms that
grow and cancel make a fit that rounding or training destroys; here they are brought down at no larger error.

One factor after another, the others fixed: with d_r the others' squared norms in term r, (1) is

    minimise Σ_r d_r ‖u_r‖²   subject to   ‖K₍ₙ₎ − U Zᵀ‖ ≤ δ ‖K‖,   U = M (Γ + ρ diag d)⁻¹                        (2)

with M = K₍ₙ₎ Z, Γ = ZᵀZ and the largest ρ that the bound allows: the error rises with ρ, so it is found by bisection in
the eigenvectors of d^-½ Γ d^-½. Every step keeps the bound and lowers (1).

Differs from the paper: arXiv:2008.05441 minimises the sensitivity, whose weights also hold the axes' lengths. With each
term's norm shared evenly among its factors, as here, both fall together.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.cp import CPFactors, CPFit, described
from smidgen.numerics.cp_sweeps import balanced, khatri_rao

BISECTIONS = 60  # of ln ρ: its whole range over 2^60 is rounding
SLACK = 1e-6  # of the squared bound, left for rounding: terms a hundred times the kernel cancel to a few 1e-10 of it


def cp_corrected(
    weight: Float[Tensor, "out inp *kernel"],
    factors: CPFactors,
    bound: float,
    *,
    sweeps: int = 200,
    tolerance: float = 1e-4,
) -> CPFit:
    """Bring the terms of a fit down as far as a bound of the error allows.

    Args:
        weight: K, [out, inp, *kernel].
        factors: a fit with a relative error of at most the bound.
        bound: δ, the relative error allowed, below 1.
        sweeps: most of them over all factors.
        tolerance: stop once a sweep lowers Σ_r ‖K̂_r‖² by less than this part of it.

    Returns:
        The corrected fit, in the weight's dtype; its error is at most the bound (up to that dtype's rounding).

    Raises:
        Refusal: the kernel holds nan or inf.
        ValueError: the bound is not in (0, 1), or the factors' error is above it.

    Paper: arXiv:2008.05441, arXiv:1709.08349.

    >>> import torch
    >>> apart = CPFactors(torch.tensor([[9.0, -8.0]]), torch.tensor([[1.0, 1.0]]), (torch.tensor([[1.0, 1.0]]),))
    >>> fit = cp_corrected(torch.ones(1, 1, 1), apart, 0.01)  # 1 = 9 − 8 becomes 0.99 = 0.495 + 0.495
    >>> round(fit.degeneracy, 2), round(fit.relative_error, 3)
    (0.99, 0.01)
    """
    if not 0 < bound < 1:
        raise ValueError(f"cp: bound={bound} must lie between 0 and 1")
    if not bool(torch.isfinite(weight).all()):
        raise Refusal("cp: the kernel holds nan or inf")
    tensor = weight.detach().to(torch.float64)
    norm = float(torch.linalg.vector_norm(tensor))
    every = [each.to(torch.float64) for each in (factors.out, factors.inp, *factors.kernel)]
    if norm == 0.0:
        return described([torch.zeros_like(each).to(weight.dtype) for each in every], 0.0, 0, 1.0)
    every = [each / norm ** (1 / len(every)) for each in every]
    unfolded = [(tensor / norm).movedim(axis, 0).reshape(len(each), -1) for axis, each in enumerate(every)]
    error = _error(unfolded[0], every)
    if error > bound:
        raise ValueError(f"cp: the fit's relative error {error:.6g} is above bound={bound}")
    every, used = _swept(unfolded, every, bound, sweeps, tolerance)
    kept = [each.to(weight.dtype) for each in every]
    return described(kept, _error(unfolded[0].to(weight.dtype), kept), used, norm)


def _swept(
    unfolded: list[Tensor], every: list[Tensor], bound: float, sweeps: int, tolerance: float
) -> tuple[list[Tensor], int]:
    size = _size(every)
    for sweep in range(1, sweeps + 1):
        for axis in range(len(every)):
            every = [*every[:axis], _smaller(unfolded[axis], every, axis, bound), *every[axis + 1 :]]
        every = balanced(every)
        last, size = size, _size(every)
        if last - size <= tolerance * last:
            return every, sweep
    return every, sweeps


def _smaller(matrix: Tensor, every: list[Tensor], axis: int, bound: float) -> Tensor:
    """Equation (2), or the factor as it is where rounding leaves no room below the bound."""
    others = [*every[:axis], *every[axis + 1 :]]
    basis = khatri_rao(others)
    weights = torch.stack([each.square().sum(dim=0) for each in others]).prod(dim=0).sqrt()
    tiny = torch.finfo(weights.dtype).tiny
    scale = torch.where(weights > 0, 1 / weights.clamp(min=tiny), 0.0)
    scaled = basis * scale
    values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    values, target = values.clamp(min=0), matrix @ scaled @ vectors
    energy = target.square().sum(dim=0)

    def answer(rho: float) -> Tensor:
        return (target / (values + rho).clamp(min=tiny)) @ vectors.T * scale

    def error(rho: float) -> float:
        below = (values + rho).clamp(min=tiny)
        return 1.0 - float((energy * (2 / below - values / below.square())).sum())

    # Below the first ρ is rounding of Γ, whose diagonal is 1; above the second nothing is left of the fit.
    low, high = 1e-15, 1e15
    target_error = bound**2 * (1 - SLACK)
    if error(low) > target_error:
        return every[axis]
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if error(middle) <= target_error else (low, middle)
    found = answer(low)
    trial = [*every[:axis], found, *every[axis + 1 :]]
    return found if _size(trial) <= _size(every) and _fits(matrix, found, basis, bound) else every[axis]


def _fits(matrix: Tensor, factor: Tensor, basis: Tensor, bound: float) -> bool:
    return float(torch.linalg.vector_norm(matrix - factor @ basis.T)) <= bound


def _size(every: list[Tensor]) -> float:
    return float(torch.stack([each.square().sum(dim=0) for each in every]).prod(dim=0).sum())


def _error(matrix: Tensor, every: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(matrix - every[0] @ khatri_rao(every[1:]).T))
