"""Choose the columns of a matrix one after another, each making good what the ones before it lost.

    ‖(W − Ŵ) L‖² = Σ_j L_jj² ‖t_j − ŵ_j‖²,    t_j = (Y_j − Σ_{k>j} ŵ_k L_kj) / L_jj,    Y = W L,    L Lᵀ = A + δI

L is lower triangular, so column j of the sum depends on ŵ_j and on columns after it alone: taking j = n … 1, the best
real value of column j given those is its target t_j, whatever the columns before j will be. Any rounding may choose
ŵ_j near t_j. This is Babai's nearest plane, which GPTQ (arXiv:2210.17323) and WaterSIC (arXiv:2603.04956) both are
(arXiv:2507.18553): GPTQ walks U = chol(A⁻¹) from the first column, this walks L from the last, with the same numbers.

Differs from the papers: no inverse of A is formed; a matrix too wide for one factor is cut into blocks of columns that
do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.lowrank import cholesky_damped

Order = Literal["given", "descending"]
# (column, target) → the value chosen for that column
Choose = Callable[[int, Tensor], Tensor]

BLOCK = 128  # columns updated one by one before one product updates the rest; 64 to 256 take the same time
DEAD = 1e-12  # of the mean diagonal: an input below it was never seen


@dataclass(frozen=True, eq=False)
class Factor:
    """A second moment made ready for `cancel`.

    Args:
        columns: which columns each block holds, in the order of its factor.
        lowers: lower Cholesky factor of each block, float64.
        diagonal: L_jj of each column, in the matrix's own order.
        alive: columns whose input was ever different from zero.
    """

    columns: tuple[Int[Tensor, " _"], ...]  # blocks differ in size
    lowers: tuple[Float[Tensor, "_ _"], ...]
    diagonal: Float[Tensor, " n"]
    alive: Bool[Tensor, " n"]


def factorise(moment: Float[Tensor, "n n"], *, damp: float = 0.01, order: Order = "given") -> Factor:
    """The factor of a whole second moment.

    Args:
        moment: A, symmetric positive semi-definite; may be singular.
        damp: added to the diagonal, as a share of its mean; raised where no factor exists.
        order: `descending` chooses the column with the largest A_jj first, so that all others can make it good.

    Raises:
        Refusal: the moment holds nan or inf, or is far from positive semi-definite.

    >>> import torch
    >>> factorise(torch.tensor([[4.0, 2.0], [2.0, 10.0]]), damp=0.0).diagonal.tolist()
    [2.0, 3.0]
    """
    wide = moment.detach().to(torch.float64)
    energy = wide.diagonal()
    # The last is chosen first.
    columns = torch.argsort(energy, stable=True) if order == "descending" else torch.arange(len(wide)).to(wide.device)
    lower = cholesky_damped(wide[columns][:, columns], damp)
    return _joined([columns], [lower], energy)


def factorise_rows(
    rows: Float[Tensor, "k n"], diagonal: Float[Tensor, " n"] | None = None, *, damp: float = 0.01, width: int = 2048
) -> Factor:
    """The factor of A = BᵀB + diag(d) from B, where A is too large: columns in blocks that do not see each other.

    Args:
        rows: B.
        diagonal: d; zero when None.
        damp: added to the diagonal, as a share of its mean.
        width: columns a block.

    >>> import torch
    >>> factorise_rows(torch.diag(torch.tensor([2.0, 3.0])), damp=0.0).diagonal.tolist()
    [2.0, 3.0]
    """
    wide = rows.detach().to(torch.float64)
    columns = list(torch.arange(wide.shape[1], device=wide.device).split(width))
    energy = wide.square().sum(0)
    own = torch.zeros_like(energy) if diagonal is None else diagonal.to(wide)
    mean = (energy + own).mean()
    lowers = []
    for block in columns:
        part = wide[:, block]
        gram = part.T @ part
        # The damping is a share of the whole matrix's mean, not of the block's.
        gram.diagonal().add_(damp * mean + own[block])
        lowers.append(cholesky_damped(gram, 0.0))
    return _joined(columns, lowers, energy + own)


def unit_factor(columns: int, like: Tensor) -> Factor:
    """The factor of the identity: every column for itself.

    >>> import torch
    >>> unit_factor(2, torch.zeros(1)).diagonal.tolist()
    [1.0, 1.0]
    """
    return factorise(torch.eye(columns, dtype=torch.float64, device=like.device), damp=0.0)


def _joined(columns: list[Tensor], lowers: list[Tensor], energy: Tensor) -> Factor:
    diagonal = torch.empty_like(energy)
    for block, lower in zip(columns, lowers, strict=True):
        diagonal[block] = lower.diagonal()
    mean = energy.mean()
    # A moment of zeros tells nothing of any input: then all count alike.
    alive = energy > DEAD * mean if float(mean) > 0 else torch.ones_like(energy, dtype=torch.bool)
    return Factor(tuple(columns), tuple(lowers), diagonal, alive)


def cancel(weight: Float[Tensor, "out n"], factor: Factor, choose: Choose) -> None:
    """Choose every column in turn, from the last of each block to its first.

    What was chosen is the caller's to keep: a copy of a wide layer in float64 would be twice the layer.

    Args:
        weight: W.
        factor: of A.
        choose: given a column's number and its target t_j (float64), answers with its value ŵ_j.

    Raises:
        Refusal: the weight holds nan or inf.

    >>> import torch
    >>> factor = factorise(torch.tensor([[1.0, 0.9], [0.9, 1.0]]), damp=0.0)
    >>> chosen = {}
    >>> cancel(torch.tensor([[0.4, 0.4]]), factor, lambda j, target: chosen.setdefault(j, target.round()))
    >>> chosen[0].tolist(), chosen[1].tolist()
    ([1.0], [0.0])
    """
    if not bool(torch.isfinite(weight).all()):
        raise Refusal("rounding: the weight holds nan or inf")
    for columns, lower in zip(factor.columns, factor.lowers, strict=True):
        _cancel_block(weight.detach()[:, columns].to(torch.float64), columns.tolist(), lower, choose)


def _cancel_block(weight: Tensor, names: list[int], lower: Tensor, choose: Choose) -> None:
    # Transposed: one column of the weight is one contiguous row here.
    left = lower.T @ weight.T
    values = torch.zeros_like(left)
    diagonal = lower.diagonal()
    for end in range(len(names), 0, -BLOCK):
        start = max(0, end - BLOCK)
        for j in range(end - 1, start - 1, -1):
            value = choose(names[j], left[j] / diagonal[j])
            values[j] = value
            left[start:j].addr_(lower[j, start:j], value, alpha=-1)
        left[:start].addmm_(lower[start:end, :start].T, values[start:end], alpha=-1)


def row_costs(change: Float[Tensor, "out n"], factor: Factor) -> Float[Tensor, " out"]:
    """‖Δw L‖² of each row: what `cancel` makes small.

    >>> import torch
    >>> row_costs(torch.ones(1, 2), factorise(torch.eye(2) * 4, damp=0.0)).tolist()
    [8.0]
    """
    wide = change.to(torch.float64)
    parts = [
        (wide[:, block] @ lower).square().sum(1) for block, lower in zip(factor.columns, factor.lowers, strict=True)
    ]
    return torch.stack(parts).sum(0)


def error(
    change: Float[Tensor, "out n"], moment: Float[Tensor, "n n"], row_curvature: Float[Tensor, " out"] | None = None
) -> float:
    """½ Σ_i g_i (ΔW A ΔWᵀ)_ii: the predicted loss of a change with a diagonal G.

    >>> import torch
    >>> error(torch.ones(1, 2), torch.eye(2))
    1.0
    """
    wide = change.to(torch.float64)
    rows = ((wide @ moment.to(wide)) * wide).sum(1)
    return 0.5 * float((rows if row_curvature is None else rows * row_curvature.to(rows)).sum())
