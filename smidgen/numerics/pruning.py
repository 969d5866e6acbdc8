"""Which weights of a matrix to remove, and what the others become: optimal brain surgery in the metric A.

    least over Ŵ    ½ Σ_i g_i ‖(w_i − ŵ_i) L‖²,    L Lᵀ = A + δI,    ŵ_ij = 0 where (i, j) is removed

Columns are taken as in `smidgen.numerics.cancellation`, which leaves to each weight a target t, in which it makes good
what was removed before it, and a cost of its own, so that

    remove (i, j)  iff  ½ g_i L_jj² t_ij² < τ

with one price τ, in nats a weight, for all layers of a network: the sum of what was paid is the loss exactly (for a
diagonal G). That is the saliency w²/[A⁻¹]_jj of optimal brain surgery (Hassibi and Stork 1992, in the form of OBC,
arXiv:2208.11580) with A⁻¹ of the columns still to come (SparseGPT, arXiv:2301.00774). The survivors are then solved
for, each row by itself:

    w_S = w A_:S A_SS⁻¹        or, with few removed,        w − w_P (A⁻¹_PP)⁻¹ A⁻¹_P:

Differs from the papers: the price instead of a share a block (SparseGPT) or of one weight at a time a row (OBC), and
the least squares of the mask instead of SparseGPT's step, in which only later columns make good.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from smidgen.numerics.cancellation import Factor, cancel
from smidgen.numerics.lowrank import cholesky_damped

CHUNK_NBYTES = 256 << 20  # of the systems of several rows that are solved together


def magnitude(weight: Float[Tensor, "groups out n"]) -> Float[Tensor, "groups out n"]:
    """|w|: of a single weight the L1 norm, and in the same order the L2.

    >>> magnitude(torch.tensor([[[-2.0, 1.0]]])).tolist()
    [[[2.0, 1.0]]]
    """
    return weight.detach().abs().to(torch.float64)


def activity(
    weight: Float[Tensor, "groups out n"], factors: list[Factor] | Float[Tensor, "groups n n"]
) -> Float[Tensor, "groups out n"]:
    """|w_ij| · √A_jj: the weight times the norm of its input (Wanda, Sun et al. 2023, arXiv:2306.11695).

    >>> from smidgen.numerics.cancellation import factorise
    >>> lower = factorise(torch.diag(torch.tensor([9.0, 4.0])), damp=0.0)
    >>> activity(torch.tensor([[[-2.0, 1.0]]]), [lower]).tolist()
    [[[6.0, 2.0]]]
    """
    return magnitude(weight) * energies(factors).to(weight.device).sqrt()[:, None]


def energies(factors: list[Factor] | Float[Tensor, "groups n n"]) -> Float[Tensor, "groups n"]:
    """A_jj of every column, from its factors."""
    if isinstance(factors, Tensor):
        return factors.square().sum(2)
    energy = torch.empty_like(factors[0].diagonal)
    for columns, lower in zip(factors[0].columns, factors[0].lowers, strict=True):
        energy[columns] = lower.square().sum(1)
    return energy[None]


def surgery(
    weight: Float[Tensor, "groups out n"],
    factors: list[Factor] | Float[Tensor, "groups n n"],
    rows: Float[Tensor, "groups out"],
    price: float,
) -> Float[Tensor, "groups out n"]:
    """½ g_i L_jj² t_ij²: what removing each weight costs in nats, once those below the price before it are removed.

    Args:
        weight: im2col rows of each group.
        factors: of A: one `Factor`, or the lower factors of several groups.
        rows: g, each row's share of the loss.
        price: τ.

    >>> from smidgen.numerics.cancellation import factorise
    >>> lower = factorise(torch.tensor([[4.0, 2.0], [2.0, 10.0]]), damp=0.0)
    >>> surgery(torch.tensor([[[1.0, 0.5]]]), [lower], torch.ones(1, 1), 2.0).tolist()
    [[[3.125, 1.125]]]
    """
    costs = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
    half = 0.5 * rows.to(costs)
    if isinstance(factors, Tensor):
        lower, left = factors.to(costs), weight.detach().to(torch.float64) @ factors.to(costs)
        for j in range(left.shape[2] - 1, -1, -1):
            costs[:, :, j] = half * left[:, :, j].square()
            target = left[:, :, j] / lower[:, j, j, None]
            left -= torch.where(costs[:, :, j] < price, 0.0, target)[:, :, None] * lower[:, j, None, :]
        return costs
    own = (factors[0].diagonal.square() * factors[0].alive).to(costs).tolist()

    def choose(j: int, target: Tensor) -> Tensor:
        costs[0, :, j] = half[0] * own[j] * target.square()
        return torch.where(costs[0, :, j] < price, 0.0, target)

    cancel(weight[0], factors[0], choose)
    return costs


def survivors(
    weight: Float[Tensor, "out n"], moment: Float[Tensor, "n n"], kept: Bool[Tensor, "out n"]
) -> Float[Tensor, "out n"]:
    """The survivors of each row at their least squares: w_S = w A_:S A_SS⁻¹, zero elsewhere.

    Args:
        weight: W.
        moment: A; damped as far as it must be to have a factor.
        kept: which weights survive.

    Returns:
        Ŵ in float64.

    >>> moment = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    >>> survivors(torch.tensor([[2.0, 1.0]]), moment, torch.tensor([[True, False]])).tolist()
    [[2.5, 0.0]]
    """
    # Inputs that a sparse network has lost are all but zero; least squares over them would have no answer.
    lower = cholesky_damped(moment.to(torch.float64), 0.0)
    wide, a = weight.detach().to(torch.float64), lower @ lower.mT
    product, result = wide @ a, torch.zeros_like(wide)
    few = kept.sum(1) * 2 > kept.shape[1]  # removed: the smaller system is solved
    if bool((~few).any()):
        result[~few] = _solved(a, product[~few], kept[~few])
    if bool(few.any()):
        inverse = torch.cholesky_inverse(lower)
        gone = ~kept[few]
        forces = _solved(inverse, wide[few] * gone, gone)
        result[few] = torch.where(gone, 0.0, wide[few] - forces @ inverse)
    return result


def _solved(matrix: Tensor, right: Tensor, chosen: Tensor) -> Tensor:
    """x_C = right_C · matrix_CC⁻¹ of each row's chosen columns C, zero elsewhere; rows of like size together."""
    counts, result = chosen.sum(1), torch.zeros_like(right)
    order = torch.argsort(counts, stable=True)
    order = order[counts[order] > 0]
    at = 0
    while at < len(order):
        # Rows rise in size, so a chunk is sized for the last it could have.
        size = int(counts[order[at]])
        most = max(1, CHUNK_NBYTES // (8 * (size + 16) ** 2))
        rows = order[at : at + most]
        rows = rows[counts[rows] <= size + max(16, size // 8)]
        width = int(counts[rows].max())
        # Places of the chosen columns first; what fills a shorter row up solves to zero by itself.
        places = torch.argsort(chosen[rows].to(torch.int8), dim=1, descending=True, stable=True)[:, :width]
        there = torch.arange(width, device=places.device) < counts[rows][:, None]
        system = matrix[places[:, :, None], places[:, None, :]] * (there[:, :, None] & there[:, None, :])
        torch.diagonal(system, dim1=1, dim2=2).masked_fill_(~there, 1.0)
        values = right[rows].gather(1, places) * there
        solved = torch.cholesky_solve(values[:, :, None], torch.linalg.cholesky(system))[:, :, 0]
        result[rows] = torch.zeros_like(right[rows]).scatter_(1, places, solved)
        at += len(rows)
    return result
