"""Rounding to integers, each column making good what the columns before it lost.

    z_j = round(t_j / (r · s_j)),    t_j = ((W L)_j − Σ_{k>j} ŵ_k L_kj) / L_jj,    L Lᵀ = A + δI

Columns are taken one after another in the factor of A (`smidgen.numerics.cancellation`), at the scales of
`smidgen.methods._stepped`. Paper: GPTQ, arXiv:2210.17323.

Differs from the paper: the given column order. Descending A_jj, its ``act_order``, is there in
`smidgen.numerics.cancellation`.

Helps: every target of integers, most where inputs are correlated and bits are few: what a column loses is given to the
columns that the same inputs drive. It is the default.

Does not help: without data (A is diagonal then, and it is rounding to the nearest), and hardly at eight bits, where
there is little to make good.

Records: archive, widths.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from smidgen.methods._stepped import Settings, Stepped
from smidgen.numerics.cancellation import Factor
from smidgen.numerics.rounding import Rounded, round_gptq


@dataclass(frozen=True)
class Gptq(Stepped):
    """Rounding with error feedback.

    >>> import torch
    >>> from smidgen.numerics.cancellation import factorise
    >>> form = ROUNDING.rounded(torch.eye(3)[None], [factorise(torch.eye(3))], torch.ones(1, 3), 0.01)
    >>> form.integers.diagonal().tolist()
    [108, 108, 108]
    >>> form = ROUNDING.fixed(torch.tensor([[[7.0, -2.0]]]), [factorise(torch.eye(2))], 4)
    >>> form.integers.tolist(), form.row.tolist()
    ([[7, -2]], [0])
    """

    def _one(
        self, weight: Tensor, factor: Factor, rows: Tensor, step: float, row_scale: Tensor, column_scale: Tensor
    ) -> Rounded:
        return round_gptq(weight, factor, row_scale, column_scale)


ROUNDING = Gptq("gptq", Settings())
