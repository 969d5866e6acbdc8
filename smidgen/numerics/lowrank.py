"""Truncated SVDs, and roots of second moments, for low-rank methods.

    M ≈ U diag(s) Vᵀ,   ‖M − U diag(s) Vᵀ‖² = Σ_{k>r} s_k²                     (Eckart–Young; `svd_truncated`)
    A + δI = R R,       R = Q diag(√(a + δ)) Qᵀ,   A = Q diag(a) Qᵀ             (`spectral_factor`)
    A + δI = L Lᵀ                                                              (`cholesky_damped`)

The randomized SVD is that of Halko, Martinsson and Tropp, "Finding structure with randomness", arXiv:0909.4061: a basis
of the range from power iterations on a Gaussian sample (algorithm 4.4), then a small SVD in that basis (algorithm 5.1).
There is no path through eigenvectors of a Gram matrix: in the float64 that it needs to keep small singular values it
was no faster than LAPACK's SVD for any shape tried, 512x256 to 100000x9.

Differs from the paper: the Gaussian matrix is drawn on the CPU from a seed, so that every device starts alike.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal

Method = Literal["auto", "full", "randomized"]

# Sampling pays for small ranks of large matrices: 4 to 8 times faster on one core, 512 to 2048 square.
RANDOMIZED_BELOW = 0.2
RANDOMIZED_SIZE = 512
# The first non-zero damping tried on a matrix that asks for none, relative to its mean diagonal.
LEAST_DAMP = 1e-10
# Ten-fold steps from LEAST_DAMP to 1e10: a matrix not positive definite by then is not a second moment.
DAMP_STEPS = 20


def svd_truncated(
    matrix: Float[Tensor, "m n"],
    rank: int | None = None,
    *,
    method: Method = "auto",
    oversample: int = 10,
    power_iterations: int = 2,
    seed: int = 0,
) -> tuple[Float[Tensor, "m rank"], Float[Tensor, " rank"], Float[Tensor, "rank n"]]:
    """Leading singular triples: M ≈ U diag(s) Vᵀ with U, V orthonormal and s falling.

    Args:
        matrix: M, m × n, float32 or float64 (narrower types are computed in float32).
        rank: triples to keep; None, or more than min(m, n), keeps all.
        method: `full` is LAPACK's, `randomized` samples the range; `auto` samples where the rank is below a fifth of a
            shorter side of more than 512.
        oversample: extra samples of the range in `randomized`.
        power_iterations: products with MMᵀ that sharpen the sampled range.
        seed: of the sample.

    Returns:
        U [m, rank], s [rank], Vᵀ [rank, n]; the largest entry of each column of U is positive.

    Raises:
        Refusal: the matrix holds nan or inf.
        ValueError: the rank is not positive.

    Paper: arXiv:0909.4061.

    >>> import torch
    >>> u, s, vh = svd_truncated(torch.tensor([[3.0, 0.0], [0.0, -2.0]]), 1)
    >>> u.flatten().tolist(), s.tolist(), vh.flatten().tolist()
    ([1.0, 0.0], [3.0], [1.0, 0.0])
    """
    if rank is not None and rank < 1:
        raise ValueError(f"svd: rank={rank} must be at least 1")
    if not bool(torch.isfinite(matrix).all()):
        raise Refusal("svd: the matrix holds nan or inf")
    work = matrix.detach().to(torch.float64 if matrix.dtype == torch.float64 else torch.float32)
    keep = min(matrix.shape) if rank is None else min(rank, *matrix.shape)
    chosen = _choose(matrix.shape[0], matrix.shape[1], keep, oversample) if method == "auto" else method
    if chosen == "randomized":
        triples = _randomized(work, keep, oversample, power_iterations, seed)
    else:
        triples = _full(work, keep)
    u, s, vh = _sign_fixed(*triples)
    return u.to(work.dtype), s.to(work.dtype), vh.to(work.dtype)


def spectral_factor(
    moment: Float[Tensor, "n n"], damp: float = 0.01
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """Symmetric root R and its inverse of a damped second moment: R R = A + δI, δ = damp · mean diag A.

    Args:
        moment: A, symmetric positive semi-definite up to rounding; eigenvalues below zero count as zero.
        damp: relative to the mean diagonal, at least 0.

    Returns:
        R and R⁻¹ in the moment's dtype, computed in float64. A moment of zeros (dead inputs only) gives the identity
        twice; with damp = 0, directions that A does not see are zero in both (R⁻¹ is then the pseudo-inverse of R).

    Raises:
        Refusal: the moment holds nan or inf.
        ValueError: damp is negative.

    >>> import torch
    >>> root, inverse = spectral_factor(torch.diag(torch.tensor([4.0, 9.0])), damp=0.0)
    >>> root.diagonal().tolist(), [round(each, 4) for each in inverse.diagonal().tolist()]
    ([2.0, 3.0], [0.5, 0.3333])
    """
    wide, mean = _symmetric(moment, damp)
    if mean == 0.0:
        unit = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
        return unit, unit.clone()
    values, vectors = torch.linalg.eigh(wide)
    # Eigenvalues below this are rounding of the largest.
    floor = torch.finfo(wide.dtype).eps * len(values) * values[-1]
    damped = torch.where(values > floor, values, 0.0) + damp * mean
    root = damped.sqrt()
    inverse = torch.where(damped > 0, damped.clamp(min=torch.finfo(wide.dtype).tiny).rsqrt(), 0.0)
    return ((vectors * root) @ vectors.T).to(moment.dtype), ((vectors * inverse) @ vectors.T).to(moment.dtype)


def cholesky_damped(moment: Float[Tensor, "n n"], damp: float = 0.01) -> Float[Tensor, "n n"]:
    """Lower Cholesky factor of a damped second moment: L Lᵀ = A + δI, δ = damp · mean diag A.

    Args:
        moment: A, symmetric positive semi-definite up to rounding.
        damp: relative to the mean diagonal, at least 0; raised tenfold (from 1e-10 for 0) until a factor exists.

    Returns:
        L in the moment's dtype, computed in float64; the identity for a moment of zeros or of numbers near the least.

    Raises:
        Refusal: the moment holds nan or inf, or is far from positive semi-definite.
        ValueError: damp is negative.

    >>> import torch
    >>> cholesky_damped(torch.tensor([[4.0, 2.0], [2.0, 10.0]]), damp=0.0)
    tensor([[2., 0.],
            [1., 3.]])
    """
    wide, mean = _symmetric(moment, damp)
    if mean == 0.0:
        return torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    unit = torch.eye(len(moment), dtype=wide.dtype, device=wide.device)
    for _ in range(DAMP_STEPS):
        lower, failed = torch.linalg.cholesky_ex(wide + damp * mean * unit)
        if not int(failed):
            return lower.to(moment.dtype)
        damp = max(10 * damp, LEAST_DAMP)
    raise Refusal(f"cholesky: a moment {list(moment.shape)} is far from positive semi-definite")


def _symmetric(moment: Tensor, damp: float) -> tuple[Tensor, float]:
    """The moment's symmetric part in float64 and its mean diagonal, zero where that has no reciprocal."""
    if damp < 0:
        raise ValueError(f"moment: damp={damp} must not be negative")
    if not bool(torch.isfinite(moment).all()):
        raise Refusal("moment: it holds nan or inf")
    wide = moment.detach().to(_wide_dtype(moment))
    wide = (wide + wide.T) / 2
    mean = float(wide.diagonal().abs().mean()) if wide.numel() else 0.0
    return wide, mean if mean >= torch.finfo(wide.dtype).tiny else 0.0


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    """Float64 wherever the device has it (Apple's GPU does not)."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _choose(rows: int, columns: int, keep: int, oversample: int) -> Method:
    short = min(rows, columns)
    return "randomized" if short > RANDOMIZED_SIZE and keep + oversample < RANDOMIZED_BELOW * short else "full"


def _full(matrix: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]  # its documented name
        # gesdd may fail to converge in float32; a failure in float64 too is the caller's to hear.
        u, s, vh = torch.linalg.svd(matrix.to(_wide_dtype(matrix)), full_matrices=False)
    return u[:, :keep], s[:keep], vh[:keep]


def _randomized(
    matrix: Tensor, keep: int, oversample: int, power_iterations: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    width = min(keep + oversample, *matrix.shape)
    sample = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = torch.linalg.qr(matrix @ sample.to(matrix)).Q
    for _ in range(power_iterations):  # algorithm 4.4: orthonormal between products, or small directions drown
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    u, s, vh = _full(basis.T @ matrix, keep)  # algorithm 5.1
    return basis @ u, s, vh


def _sign_fixed(u: Tensor, s: Tensor, vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make the largest entry of each left vector positive: the SVD leaves the sign of a pair open."""
    largest = u.gather(0, u.abs().argmax(dim=0, keepdim=True))[0]
    sign = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
    return u * sign, s, vh * sign[:, None]
