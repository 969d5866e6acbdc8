"""The sweeps of `cp`: alternating least squares on the unit-norm kernel, unfolded once on its outputs.

    U ← M (Γ + ρ diag Γ)⁻¹,   M = K₍ₙ₎ (⊙_{m≠n} U_m),   Γ = ⊛_{m≠n} U_mᵀ U_m,   ρ = η ‖K − K̂‖²                 (3)

one factor n after another, ⊙ the column-wise Kronecker (Khatri–Rao) and ⊛ the entrywise product. The kernel is read
twice a sweep: for the outputs' M, and contracted with the new outputs, from which all other M follow at a small part of
the cost.
With ρ from the last error, no sweep raises ln ‖K − K̂‖² + η Σ_r ‖K̂_r‖²: it lowers ‖K − K̂‖² + ρ Σ_r ‖K̂_r‖², and
ln x ≤ x − 1 for x the ratio of the new squared error to the old. Sweeps stop where that objective stands still.

Lists of factors run outputs, inputs, kernel axes. Objective and papers: see `cp`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# Noise on the starting terms, relative to their norm: the orthogonal series can be a saddle that ALS never leaves
# (it is for a⊗a⊗b + a⊗b⊗a + b⊗a⊗a); on trained layers 0.01 … 1 end alike.
JITTER = 0.1


def alternate(
    matrix: Tensor, start: list[Tensor], iterations: int, tolerance: float, ridge: float
) -> tuple[list[Tensor], int]:
    """Sweeps over all factors of the unit-norm kernel until the error stands still."""
    factors, squared, last = start, 1.0, math.inf
    lowest = torch.finfo(matrix.dtype).eps
    for sweep in range(1, iterations + 1):
        factors, squared, size = _sweep(matrix, factors, ridge * max(squared, lowest))  # (3)
        # In float32 the squared error is a difference of numbers near 1: below eps it is rounding.
        if squared <= lowest:
            return factors, sweep
        objective = math.log(squared) + ridge * size
        if last - objective <= 2 * tolerance:
            return factors, sweep
        last = objective
    return factors, iterations


def _sweep(matrix: Tensor, factors: list[Tensor], rho: float) -> tuple[list[Tensor], float, float]:
    """One update of every factor, with ‖K − K̂‖² and Σ_r ‖K̂_r‖² after it; `matrix` is read twice."""
    factors = list(factors)
    rank = factors[0].shape[1]
    grams = [_gram(factor) for factor in factors]

    def update(axis: int, mttkrp: Tensor) -> None:
        others = math.prod(grams[:axis] + grams[axis + 1 :], start=torch.ones_like(grams[0]))
        factors[axis] = _ridged(mttkrp, others, rho)
        grams[axis] = _gram(factors[axis])

    update(0, matrix @ khatri_rao(factors[1:]))
    partial = factors[0].T @ matrix  # K contracted with each term's factors so far: [rank, what is left]
    for axis in range(1, len(factors)):
        view = partial.reshape(rank, factors[axis].shape[0], -1)
        tail = khatri_rao(factors[axis + 1 :]) if axis + 1 < len(factors) else matrix.new_ones(1, rank)
        update(axis, torch.bmm(view, tail.T.unsqueeze(-1)).squeeze(-1).T)
        partial = torch.bmm(factors[axis].T.unsqueeze(1), view).squeeze(1)
    model = math.prod(grams[1:], start=grams[0])
    squared = 1.0 - 2.0 * float(partial.to(model.dtype).sum()) + float(model.sum())  # ‖K‖ = 1
    return balanced(factors), squared, float(model.diagonal().sum())


def _ridged(mttkrp: Tensor, gram: Tensor, rho: float) -> Tensor:
    """Minimiser over one factor of ‖K − K̂‖² + ρ Σ_r ‖K̂_r‖²: U = M (Γ + ρ diag Γ)⁻¹, Γ scaled to a unit diagonal."""
    size = gram.diagonal().sqrt()
    scale = torch.where(size > 0, 1 / size.clamp(min=torch.finfo(gram.dtype).tiny), 0.0)
    scaled = gram * scale[:, None] * scale
    target = (mttkrp.to(gram.dtype) * scale).T
    while True:
        scaled.diagonal().fill_(1.0 + rho)
        lower, failed = torch.linalg.cholesky_ex(scaled)
        if not int(failed):
            return (torch.cholesky_solve(target, lower).T * scale).to(mttkrp.dtype)
        rho = max(10 * rho, torch.finfo(gram.dtype).eps)


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Column-wise Kronecker product, the last factor's row running fastest: [Π lengths, rank]."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product.unsqueeze(1) * factor).reshape(-1, factor.shape[1])
    return product


def solve_dtype(tensor: Tensor) -> torch.dtype:
    """Small solves run in float64 wherever the device has it (Apple's GPU does not)."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _gram(factor: Tensor) -> Tensor:
    wide = factor.to(solve_dtype(factor))
    return wide.T @ wide


def balanced(factors: list[Tensor]) -> list[Tensor]:
    """Share every term's norm evenly: each column gets (Π_m ‖u_r^(m)‖)^(1/N)."""
    norms = torch.stack([torch.linalg.vector_norm(factor, dim=0) for factor in factors])
    tiny = torch.finfo(norms.dtype).tiny
    # In logarithms: the product of many small norms would underflow.
    even = norms.clamp(min=tiny).log().mean(dim=0).exp()
    scale = torch.where((norms > tiny).all(dim=0), even / norms.clamp(min=tiny), 0.0)
    return [factor * each for factor, each in zip(factors, scale, strict=True)]


def extended(
    matrix: Tensor, shape: list[int], known: list[Tensor] | None, rank: int, seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The known terms and the leading TTr1 terms of what they leave; the same with noise on the new ones."""
    rest = matrix if known is None else matrix - known[0] @ khatri_rao(known[1:]).T
    old = [matrix.new_zeros(length, 0) for length in shape] if known is None else known
    new = _series(rest, shape, rank - old[0].shape[1])
    missing = rank - old[0].shape[1] - new[0].shape[1]
    new = [torch.cat([factor, factor.new_zeros(len(factor), missing)], dim=1) for factor in new]
    # Random terms, where the series ends early, are together about as large as what is to be explained.
    size = (float(torch.linalg.vector_norm(rest)) / math.sqrt(rank)) ** (1 / len(shape))
    generator = torch.Generator().manual_seed(seed)
    noisy = []
    for factor in new:
        norms = torch.linalg.vector_norm(factor, dim=0)
        noise = torch.randn(factor.shape, generator=generator, dtype=torch.float64).to(factor)
        noisy.append(factor + noise * torch.where(norms > 0, JITTER * norms, size) / math.sqrt(len(factor)))
    return (
        [torch.cat(pair, dim=1) for pair in zip(old, new, strict=True)],
        balanced([torch.cat(pair, dim=1) for pair in zip(old, noisy, strict=True)]),
    )


def _series(matrix: Tensor, shape: list[int], count: int) -> list[Tensor]:
    """The `count` largest terms of the TTr1 series (arXiv:1407.1593): an SVD, then SVDs of its right vectors, …."""
    rest, lefts = matrix.reshape(1, -1), []
    for length in shape[:-1]:
        left, right = _split(rest.reshape(rest.shape[0], length, -1))
        lefts.append((left.reshape(-1, length), right.shape[1]))
        rest = right.reshape(-1, right.shape[2])
    weight = torch.linalg.vector_norm(rest, dim=1)
    index = torch.argsort(weight, descending=True, stable=True)[:count]
    index = index[weight[index] > torch.finfo(matrix.dtype).eps]  # of a unit-norm kernel: less is rounding
    columns = [rest[index].T]
    for left, width in reversed(lefts):
        columns.append(left[index].T)
        index = index // width
    return balanced(columns[::-1])


def _split(batch: Float[Tensor, "b n m"]) -> tuple[Float[Tensor, "b k n"], Float[Tensor, "b k m"]]:
    """SVD of each matrix through the eigenvectors of its smaller Gram: unit left rows, weighted right rows."""
    wide = batch.to(solve_dtype(batch))
    if batch.shape[1] <= batch.shape[2]:
        left = torch.linalg.eigh(wide @ wide.mT).eigenvectors.mT
        return left.to(batch.dtype), (left @ wide).to(batch.dtype)
    right = torch.linalg.eigh(wide.mT @ wide).eigenvectors.mT
    left = right @ wide.mT
    size = torch.linalg.vector_norm(left, dim=2, keepdim=True)
    unit = left / size.clamp(min=torch.finfo(left.dtype).tiny)
    return unit.to(batch.dtype), (right * size).to(batch.dtype)
