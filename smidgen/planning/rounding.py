"""Round a form's leaves to integers, each leaf under the curvature it inherits.

    Dense W:          A on the columns, G on the rows
    LowRank W = U V:  V sees A and UᵀGU; then U, refitted to W on the rounded V, sees V̂ A V̂ᵀ and G

(Derived: put ΔW = U ΔV, then ΔW = ΔU V̂, into ½ tr(G ΔW A ΔWᵀ).) The same function serves the estimate, under the
original's moments, and the realisation, under those that the compressed layers before it produce.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.forms import Dense, Form, Geometry, LowRank, Quantized, dense, nearest_exponents, scales
from smidgen.numerics.cancellation import Factor, factorise, factorise_rows
from smidgen.numerics.rounding_groups import factorise_groups
from smidgen.site import Curvature, Moment, Site, grouped

DAMP = 0.01  # of A's mean diagonal; 0.1 to 3 % measure alike on ResNet-20
# Share of G's diagonal that is replaced by its mean before it sets the steps: a row that few inputs excite must not be
# rounded away. None, half and all measure alike on ResNet-20.
ROW_SHRINK = 0.5
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
            return [factorise(matrix[0], damp=DAMP)] if len(matrix) == 1 else factorise_groups(matrix, damp=DAMP)
        if rows is not None:
            if len(rows) > 1:
                raise Refusal("rounding: a grouped layer this wide has no whole second moment")
            diagonal = self.inputs.diagonal
            return [factorise_rows(rows[0], None if diagonal is None else diagonal[0], damp=DAMP)]
        raise Refusal("rounding: no second moment")


def metric_of(site: Site, curvature: Curvature) -> Metric:
    """The metric at a site; identities where there was no data."""
    g = site.geometry
    inputs = curvature.inputs
    if inputs.matrix is None and inputs.rows is None:
        n = site.weight.size // site.weight.shape[0]
        inputs = Moment(matrix=torch.eye(n, dtype=torch.float64).expand(g.groups, n, n))
    return Metric(inputs, curvature.outputs.matrix, curvature.scale)


# (weight [groups, out, n], factors of A, rows' shares g, columns of one input channel) → integers
RoundLeaf = Callable[[Tensor, "list[Factor] | Tensor", Tensor, int], Quantized]
# (V̂, U₀) → V̂ A V̂ᵀ and the U that makes good what V̂ lost
Refit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def round_form(
    form: Form,
    target: Float[Tensor, "groups out n"],
    geometry: Geometry,
    metric: Metric,
    leaf: RoundLeaf,
    refit: Refit | None = None,
) -> Form:
    """A form with integers in its leaves.

    Args:
        form: `Dense`, or `LowRank` in two factors.
        target: the weight it shall stand for, im2col rows of each group.
        geometry: the layer.
        metric: A and G.
        leaf: how one leaf becomes integers.
        refit: how a last factor is fitted to the rounded first one; to the target under A when None.

    Raises:
        Refusal: for a form whose leaves have no rounding yet.
    """
    match form:
        case Dense(values):
            window = int(np.prod(geometry.kernel, dtype=int))
            rounded = leaf(target, metric.factors, metric.rows(*target.shape[:2]), window)
            return replace(rounded, integers=rounded.integers.reshape(values.shape))
        case LowRank(_, _, None, _):
            return _low_rank(form, target, geometry, metric, leaf, refit)
        case _:
            raise Refusal("rounding: only dense layers and two factors have one yet")


def _low_rank(
    form: LowRank, target: Tensor, geometry: Geometry, metric: Metric, leaf: RoundLeaf, refit: Refit | None
) -> LowRank:
    groups, window = form.groups, int(np.prod(geometry.kernel, dtype=int))
    v, u = (torch.as_tensor(grouped(dense(each), groups)).to(target) for each in (form.v, form.u))
    rounded_v = leaf(v, metric.factors, metric.through(u), window)
    seen = torch.as_tensor(grouped(dense(rounded_v), groups)).to(target)
    inner, refitted = fit_left(target, seen, metric.inputs) if refit is None else refit(seen, u)
    factors = [factorise(inner[0], damp=DAMP)] if groups == 1 else factorise_groups(inner, damp=DAMP)
    rounded_u = leaf(refitted, factors, metric.rows(*target.shape[:2]), 1)
    shape = dense(form.v).shape
    return replace(form, v=replace(rounded_v, integers=rounded_v.integers.reshape(shape)), u=rounded_u)


def fit_left(
    target: Float[Tensor, "groups out n"], v: Float[Tensor, "groups rank n"], inputs: Moment
) -> tuple[Float[Tensor, "groups rank rank"], Float[Tensor, "groups out rank"]]:
    """V A Vᵀ, and the U that brings U V nearest to the target: W A Vᵀ (V A Vᵀ)⁻¹."""
    inner = inputs.between(v, v)
    ridge = RIDGE * inner.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(torch.float64).tiny
    eye = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)
    u = torch.linalg.solve(inner + ridge[:, None, None] * eye, inputs.between(target, v), left=False)
    return inner, u


def round_bias(bias: np.ndarray, rows: Float[Tensor, "groups out"], positions: int, step: float) -> Quantized:
    """A bias as integers: one more column, whose input is one at every position.

    Its step is c / (√g · positions): gradients at the positions of one sample mostly point the same way, so what shifts
    them all together costs up to positions², not the positions that independent ones would. (MobileNetV2 at 2.0 MB:
    KL 0.037 with the root, 0.015 with no rounding of biases at all.)

    >>> round_bias(np.array([0.5, -0.25]), torch.ones(1, 2), 4, 1.0).integers.tolist()
    [2, -1]
    """
    mean = float(rows.double().mean().clamp_min(1e-300))
    exponent = nearest_exponents(np.array([step / (mean**0.5 * positions)]), 4)
    integers = np.round(bias.astype(np.float64) / float(scales(exponent, 4)[0]))
    return Quantized(
        np.clip(integers, -(1 << 23), 1 << 23).astype(np.int32), np.zeros(len(bias), np.int32), exponent, 4
    )
