"""The shared solver of kernel decompositions in the curvature metric: an inner factor and what stands before it.

    W[t,c,k] ≈ Σ_a P[t,a,k] F[a,c],    minimise ℓ = ½ tr(G ΔW A ΔWᵀ),    rank of P as [out, a·k] at most ρ          (1)

c is the axis that F narrows and k the one it passes on. Tucker-2 has c = input channels, k = all kernel taps and
P = O·C of the output rank ρ; a spatial SVD has c = (input channel, one kernel axis), k = the other one, and P free.

P for a given F is in closed form. With E the map from (c, k) to (a, k), Q = E A Eᵀ = L Lᵀ and H = G^½ W A Eᵀ L⁻ᵀ

    H Hᵀ = U Λ Uᵀ,   P = G^-½ U_ρ U_ρᵀ G^½ W A Eᵀ Q⁻¹,   ℓ = ½ tr(G W A Wᵀ) − ½ Σ_{i≤ρ} Λ_i                      (2)

(the reduced-rank regression that the SVD of G^½ W A^½ is for dense layers; arXiv:1505.06798 for G = I). F for a given P
solves N(F) = R with, k and k' over taps,

    N(F) = Σ_kk' M_kk' F A_k'k,     M_kk'[a,a'] = Σ_tt' P[t,a,k] G[t,t'] P[t',a',k']                              (3)
    R[a,c] = Σ_tk P[t,a,k] (G W A)[t,c,k]

by conjugate gradients that never form its (a·c)² matrix, preconditioned by a Kronecker product X ⊗ Y near N (after Van
Loan and Pitsianos 1993). Each step lowers ℓ, so sweeps cannot raise it; the best is kept all the same, for rounding.

Only the span of F's rows matters to (2), so F is kept orthonormal under the channels' share of A.

On 3x3 and 5x5 layers of ResNet-20, LeNet, SqueezeNet and a cats-and-dogs net the start under a product of shares near
A has 0.06 to 0.7 of the plain decomposition's loss, and sweeps take up to 43 % off that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.conjugate import conjugate_gradients
from smidgen.numerics.lowrank import cholesky_damped, spectral_factor

# Sweeps at most by default: on 3x3 and 5x5 layers of four trained networks eight come within 2 % of a standstill.
SWEEPS = 8
# Damping of matrices that are inverted, as a share of their mean diagonal: above rounding, below anything that shows.
LEAST = 1e-10
# Widest layer whose conjugate gradients run in float64. At n = 2304 those in float32 take 0.75 to 0.87 of the time of a
# whole curve, and its losses agree to eight digits.
FLOAT64_UP_TO = 1200


@dataclass(frozen=True, eq=False)
class Problem:
    """A kernel and its metric, laid out for (1).

    Args:
        weight: W.
        blocks: A[(c',k'), (c,k)] as rows c' and columns (k', k, c); None for the identity.
        outputs: G, or None for the identity.
        seen: W A.
        root, inverse: G^½ and G^-½, None for the identity.
        channels, channels_inverse: root of the channels' share of A, and its inverse.
        taps: root of the taps' share of A.
        energy: tr(G W A Wᵀ).
    """

    weight: Float[Tensor, "out c k"]
    blocks: Float[Tensor, "c kkc"] | None
    outputs: Float[Tensor, "out out"] | None
    seen: Float[Tensor, "out c k"]
    root: Float[Tensor, "out out"] | None
    inverse: Float[Tensor, "out out"] | None
    channels: Float[Tensor, "c c"] | None
    channels_inverse: Float[Tensor, "c c"] | None
    taps: Float[Tensor, "k k"] | None
    energy: float


@dataclass(frozen=True, eq=False)
class Split:
    """A solution of (1).

    Args:
        inner: F.
        core: C of P = O·C, or P itself where no output rank was asked.
        outer: O, or None.
        loss: ½ tr(G ΔW A ΔWᵀ).
        sweeps: updates of F spent on it.
        converged: whether the last sweep gained less than the tolerance.
    """

    inner: Float[Tensor, "a c"]
    core: Float[Tensor, "b a k"]
    outer: Float[Tensor, "out b"] | None
    loss: float
    sweeps: int = 0
    converged: bool = True


def metric_loss(
    change: Float[Tensor, "out n"],
    inputs: Float[Tensor, "n n"] | None = None,
    outputs: Float[Tensor, "out out"] | None = None,
) -> float:
    """½ tr(G ΔW A ΔWᵀ) in float64.

    Args:
        change: ΔW as im2col rows.
        inputs: A; the identity when None.
        outputs: G; the identity when None.

    >>> import torch
    >>> metric_loss(torch.ones(2, 3)), metric_loss(torch.ones(2, 3), torch.ones(3, 3), 2 * torch.eye(2))
    (3.0, 18.0)
    """
    wide = change.to(torch.float64)
    right = wide if inputs is None else wide @ inputs.to(wide)
    left = wide if outputs is None else outputs.to(wide) @ wide
    return 0.5 * max(float((left * right).sum()), 0.0)


def check(
    name: str,
    weight: Float[Tensor, "out inp *kernel"],
    inputs: Float[Tensor, "n n"] | None,
    outputs: Float[Tensor, "m m"] | None,
) -> None:
    """Refuse what no decomposition can start from.

    Args:
        name: of the method, for the message.
        weight: kernel, [out, inp, *kernel].
        inputs: A, [inp·kernel, inp·kernel], or None.
        outputs: G, [out, out], or None.

    Raises:
        Refusal: the kernel is empty, or one of the three holds nan or inf.
        ValueError: A or G does not fit the kernel.
    """
    out = weight.shape[0]
    if weight.numel() == 0:
        raise Refusal(f"{name}: a kernel {list(weight.shape)} is empty")
    for what, tensor in (("kernel", weight), ("inputs' moment", inputs), ("outputs' moment", outputs)):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise Refusal(f"{name}: the {what} holds nan or inf")
    for what, tensor, side in (("inputs", inputs, weight.numel() // out), ("outputs", outputs, out)):
        if tensor is not None and tensor.shape != (side, side):
            raise ValueError(f"{name}: {what} {list(tensor.shape)} must be [{side}, {side}] for {list(weight.shape)}")


def posed(
    weight: Float[Tensor, "out c k"],
    inputs: Float[Tensor, "c k c k"] | None,
    outputs: Float[Tensor, "out out"] | None,
) -> Problem:
    """Lay a kernel and its metric out for (1).

    Args:
        weight: W with its axes put together as narrowed, c, and passed on, k.
        inputs: A in the same axes, or None.
        outputs: G, or None.

    >>> import torch
    >>> posed(torch.ones(2, 3, 4), None, None).energy
    24.0
    """
    wide = weight.detach().to(torch.float64)
    out, c, k = wide.shape
    blocks = channels = channels_inverse = taps = root = inverse = None
    seen = wide
    if inputs is not None:
        moment = inputs.detach().to(wide)
        seen = (wide.reshape(out, c * k) @ moment.reshape(c * k, c * k)).reshape(out, c, k)
        blocks = moment.permute(0, 1, 3, 2).reshape(c, k * k * c)
        units = torch.eye(k * k).to(wide).reshape(k * k, k, k)  # M_k'k of A itself
        tap_share, channel_share = _near_product(units, blocks)
        channels, channels_inverse = spectral_factor(channel_share, LEAST)
        taps = spectral_factor(tap_share, LEAST)[0]
    if outputs is not None:
        root, inverse = spectral_factor(outputs.detach().to(wide), LEAST)
    felt = seen if outputs is None else torch.tensordot(outputs.to(wide), seen, 1)
    energy = float((wide * felt).sum())
    given = None if outputs is None else outputs.detach().to(wide)
    return Problem(wide, blocks, given, seen, root, inverse, channels, channels_inverse, taps, energy)


def whitened(problem: Problem) -> Float[Tensor, "out c k"]:
    """G^½ W with the channels' and taps' shares of A^½ applied: where A is their product, ℓ is a plain distance here.

    Args:
        problem: from `posed`.
    """
    tensor = problem.weight
    if problem.root is not None:
        tensor = torch.tensordot(problem.root, tensor, 1)
    if problem.channels is not None and problem.taps is not None:
        tensor = problem.channels @ tensor @ problem.taps
    return tensor


def solve_outer(problem: Problem, inner: Float[Tensor, "a c"], rank: int | None) -> Split:
    """Equation (2): the best P for a given F.

    Args:
        problem: from `posed`.
        inner: F.
        rank: ρ; None leaves P free.
    """
    if problem.blocks is None:
        inner = torch.linalg.qr(inner.T).Q.T  # then Q of (2) is the identity
    target = torch.einsum("tck,ac->tak", problem.seen, inner)
    out, a, k = target.shape
    free = target.reshape(out, a * k)
    half = free if problem.root is None else problem.root @ free
    if problem.blocks is not None:
        spread = (inner @ problem.blocks).reshape(a, k, k, -1) @ inner.T  # [a', k', k, a]
        lower = cholesky_damped(spread.permute(3, 2, 0, 1).reshape(a * k, a * k), LEAST)
        free = torch.cholesky_solve(free.T, lower).T
        half = torch.linalg.solve_triangular(lower, half.T, upper=False).T
    if rank is None:
        loss = 0.5 * max(problem.energy - float(half.square().sum()), 0.0)
        return Split(inner, free.reshape(out, a, k), None, loss)
    values, vectors = torch.linalg.eigh(half @ half.T)
    basis = vectors[:, -rank:].flip(1)
    core = basis.T @ (free if problem.root is None else problem.root @ free)
    outer = basis if problem.inverse is None else problem.inverse @ basis
    loss = 0.5 * max(problem.energy - float(values[-rank:].sum()), 0.0)
    return Split(inner, core.reshape(-1, a, k), outer, loss)


def solve_inner(problem: Problem, split: Split) -> Float[Tensor, "a c"]:
    """Equation (3): a better F for a given P, by conjugate gradients from the F at hand.

    Args:
        problem: from `posed`, with A given.
        split: P and the F to start from.
    """
    assert problem.blocks is not None
    core, inner = split.core, split.inner
    a, c = inner.shape
    k = core.shape[2]
    whole = core if split.outer is None else torch.tensordot(split.outer, core, 1)
    felt = whole if problem.outputs is None else torch.tensordot(problem.outputs, whole, 1)
    right = torch.einsum("tak,tck->ac", felt, problem.seen)
    pairs = torch.einsum("tak,tbl->akbl", felt, whole)  # M[a,k,a',k']
    by_taps = pairs.permute(3, 1, 0, 2).reshape(k * k, a, a)
    factors = [cholesky_damped(each, LEAST) for each in _near_product(by_taps, problem.blocks)]
    # What F lacks is solved for, so that its residual alone needs float64.
    dtype = torch.float64 if c * k <= FLOAT64_UP_TO else torch.float32
    narrow, wide = (each.to(dtype) for each in factors)

    def normal(factor: Tensor, arranged: Tensor, blocks: Tensor) -> Tensor:
        return arranged @ (factor @ blocks).reshape(a * k * k, c)

    def precondition(residual: Tensor) -> Tensor:
        return torch.cholesky_solve(torch.cholesky_solve(residual, narrow).T, wide).T

    given = pairs.permute(0, 2, 3, 1).reshape(a, a * k * k), problem.blocks
    quick = [each.to(dtype) for each in given]
    lacking = (right - normal(inner, *given)).to(dtype)
    step = conjugate_gradients(lambda x: normal(x, *quick), lacking, torch.zeros_like(lacking), precondition)
    return inner + step.to(inner.dtype)


def swept(problem: Problem, start: Split, rank: int | None, sweeps: int, tolerance: float) -> Split:
    """Sweeps of (3) and (2) until one gains less than a part of the loss; the best split met.

    Args:
        problem: from `posed`.
        start: a split of (2).
        rank: ρ, or None.
        sweeps: most of them.
        tolerance: the least relative fall of the loss that goes on.
    """
    best, used, converged = start, 0, problem.blocks is None
    # Below this a loss is the rounding of a difference of numbers as large as the energy.
    floor = 1e-13 * problem.energy
    while not converged and used < sweeps:
        used += 1
        split = solve_outer(problem, orthonormal(problem, solve_inner(problem, best)), rank)
        converged = split.loss > (1 - tolerance) * best.loss or split.loss <= floor
        best = split if split.loss < best.loss else best
    return Split(best.inner, best.core, best.outer, best.loss, used, converged)


def orthonormal(problem: Problem, inner: Float[Tensor, "a c"]) -> Float[Tensor, "a c"]:
    """The same row span, orthonormal under the channels' share of A.

    Args:
        problem: from `posed`.
        inner: F.
    """
    if problem.channels is None or problem.channels_inverse is None:
        return torch.linalg.qr(inner.T).Q.T
    return torch.linalg.qr(problem.channels @ inner.T).Q.T @ problem.channels_inverse


def leading(problem: Problem, gram: Float[Tensor, "c c"], rank: int) -> Float[Tensor, "a c"]:
    """The F that is best where A is the product of its shares and P is free.

    Args:
        problem: from `posed`.
        gram: of `whitened`, over its other axes.
        rank: rows of F.
    """
    basis = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank].T
    return basis if problem.channels_inverse is None else basis @ problem.channels_inverse


def extended(problem: Problem, gram: Float[Tensor, "c c"], inner: Float[Tensor, "a c"], rank: int) -> Tensor:
    """F with the leading directions of what it leaves added, [rank, c].

    Args:
        problem: from `posed`.
        gram: of `whitened`, over its other axes.
        inner: F.
        rank: rows wanted, at least those of F.
    """
    known = torch.linalg.qr(inner.T if problem.channels is None else problem.channels @ inner.T).Q
    left = gram - known @ (known.T @ gram)
    left = left - (left @ known) @ known.T
    return torch.cat([inner, leading(problem, (left + left.T) / 2, rank - len(inner))])


def falling_rotation(problem: Problem, split: Split) -> Float[Tensor, "a a"]:
    """The rotation of the inner axis that puts what carries most first.

    Args:
        problem: from `posed`.
        split: with F orthonormal as `orthonormal` makes it.
    """
    core = split.core
    felt = core if problem.outputs is None or split.outer is not None else torch.tensordot(problem.outputs, core, 1)
    carried = torch.einsum("tak,tbk->ab", felt, core)
    return torch.linalg.eigh((carried + carried.T) / 2).eigenvectors.flip(1)


def _near_product(
    pairs: Float[Tensor, "kk x x"], blocks: Float[Tensor, "c kkc"]
) -> tuple[Float[Tensor, "x x"], Float[Tensor, "c c"]]:
    """X ⊗ Y near Σ_k'k M_k'k ⊗ A_k'k, the M given in that order; both stay positive where M and A are.

    Of the alternation that ends at the nearest such product this is one round, from the sum of A_kk: on trained layers
    more rounds came nearer, and gave starts up to 2 % worse and the same ends.
    """
    c = blocks.shape[0]
    each = blocks.reshape(c, len(pairs), c)
    taps = round(len(pairs) ** 0.5)
    wide = each.reshape(c, taps, taps, c).diagonal(dim1=1, dim2=2).sum(-1)
    # Batched over c', as A lies in memory: einsum would copy all of it.
    weights = torch.bmm(each, wide.unsqueeze(2)).sum(dim=(0, 2)) / _squares(wide)
    narrow = torch.tensordot(weights, pairs, 1)
    shares = (pairs.flatten(1) @ narrow.flatten()) / _squares(narrow)
    wide = torch.matmul(shares, each)
    return (narrow + narrow.T) / 2, (wide + wide.T) / 2


def _squares(matrix: Tensor) -> Tensor:
    return matrix.square().sum().clamp(min=torch.finfo(matrix.dtype).tiny)
