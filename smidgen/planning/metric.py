"""The metric that integers are found in: A on the columns, a share of the loss for each row.

A last factor U of a chain sees what the rounded factors before it pass on: V A Vᵀ, and is fitted to the weight under A.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.forms import Codebook, Quantized
from smidgen.numerics.cancellation import Factor, factorise, factorise_rows
from smidgen.numerics.rounding_groups import factorise_groups
from smidgen.site import Curvature, Moment, Site

DAMP = 0.01  # of A's mean diagonal; 0.1 to 3 % measure alike on ResNet-20
# Share of G's diagonal that is replaced by its mean before it sets the steps: a row that few inputs excite must not be
# rounded away. None, half and all measure alike on ResNet-20.
ROW_SHRINK = 0.5
WHOLE = 4096  # columns; of more the identity is not written out: 18,816 of them would take 2.8 GB
WIDE_BLOCK = 2048  # columns of one block of a wider layer's factor
RIDGE = 1e-6  # of the mean diagonal of V A Vᵀ, for components that rounding emptied


@dataclass(frozen=True, eq=False)
class Metric:
    """What a layer's rounding is measured in.

    Args:
        inputs: A.
        outputs: G, ``[groups, out, out]``; identities when None.
        scale: factor on the loss.
    """

    inputs: Moment
    outputs: Float[Tensor, "groups out out"] | None = None
    scale: float = 1.0

    def rows(self, groups: int, out: int) -> Float[Tensor, "groups out"]:
        """g: each row's share of the loss, shrunk toward the mean."""
        if self.outputs is None:
            return torch.full((groups, out), self.scale, dtype=torch.float64)
        g = self.scale * self.outputs.double().diagonal(dim1=1, dim2=2)
        # Of all groups: one that no gradient ever reached (MobileNetV2 has such a channel) must keep a finite step.
        return (1 - ROW_SHRINK) * g + ROW_SHRINK * g.mean().clamp_min(torch.finfo(torch.float64).tiny)

    def through(self, u: Float[Tensor, "groups out rank"]) -> Float[Tensor, "groups rank"]:
        """The diagonal of UᵀGU."""
        wide = u.double()
        product = wide if self.outputs is None else self.outputs.to(wide) @ wide
        return self.scale * (product * wide).sum(1)

    @cached_property
    def factors(self) -> list[Factor] | Tensor:
        """A made ready for rounding; the identity's when A is not known."""
        matrix, rows = self.inputs.matrix, self.inputs.rows
        if matrix is not None:
            return factors_of(matrix)
        if rows is not None:
            if len(rows) > 1:
                raise Refusal("rounding: a grouped layer this wide has no whole second moment")
            diagonal = self.inputs.diagonal
            own = None if diagonal is None else diagonal[0]
            # Columns that have little to do with each other need no wide blocks, which take an eighth of the memory.
            width = WIDE_BLOCK if rows.shape[1] > 1 else WIDE_BLOCK // 8
            return [factorise_rows(rows[0], own, damp=DAMP, width=width)]
        raise Refusal("rounding: no second moment")


def factors_of(moment: Float[Tensor, "groups n n"]) -> list[Factor] | Tensor:
    """A second moment made ready for rounding."""
    return [factorise(moment[0], damp=DAMP)] if len(moment) == 1 else factorise_groups(moment, damp=DAMP)


def metric_of(site: Site, curvature: Curvature) -> Metric:
    """The metric at a site; identities where there was no data."""
    g = site.geometry
    inputs = curvature.inputs
    if inputs.matrix is None and inputs.rows is None:
        n = g.in_channels // g.groups if g.kind == "conv_transpose" else site.weight.size // site.weight.shape[0]
        if g.groups == 1 and n > WHOLE:
            one = torch.ones(1, n, dtype=torch.float64)
            inputs = Moment(rows=torch.zeros(1, 0, n, dtype=torch.float64), diagonal=one)
        else:
            inputs = Moment(matrix=torch.eye(n, dtype=torch.float64).expand(g.groups, n, n))
    return Metric(inputs, curvature.outputs.matrix, curvature.scale)


# (weight [groups, out, n], factors of A, rows' shares g, columns of one input channel; of a pruned weight also what is
# kept) → integers or indices
RoundLeaf = Callable[..., Quantized | Codebook]
# (V̂, U₀) → V̂ A V̂ᵀ and the U that makes good what V̂ lost
Refit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def fit_left(
    target: Float[Tensor, "groups out n"], v: Float[Tensor, "groups rank n"], inputs: Moment
) -> tuple[Float[Tensor, "groups rank rank"], Float[Tensor, "groups out rank"]]:
    """V A Vᵀ, and the U that brings U V nearest to the target: W A Vᵀ (V A Vᵀ)⁻¹."""
    inner = inputs.between(v, v)
    ridge = RIDGE * inner.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(torch.float64).tiny
    eye = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)
    u = torch.linalg.solve(inner + ridge[:, None, None] * eye, inputs.between(target, v), left=False)
    return inner, u
