"""Round a form's leaves to integers, or to the values of a codebook, each leaf under the curvature it inherits.

    Dense W:          A on the columns, G on the rows
    LowRank W = U V:  V sees A and UᵀGU; then U, refitted to W on the rounded V, sees V̂ A V̂ᵀ and G

(Derived: put ΔW = U ΔV, then ΔW = ΔU V̂, into ½ tr(G ΔW A ΔWᵀ).) Longer chains are in
`smidgen.planning.rounding_chains`. The same function serves the estimate, under the original's moments, and the
realisation, under those that the compressed layers before it produce.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.forms import (
    CP,
    Codebook,
    Dense,
    Form,
    Geometry,
    LowRank,
    Masked,
    Quantized,
    Spatial,
    Tucker2,
    dense,
    nearest_exponents,
    reshaped,
    scales,
)
from smidgen.planning.metric import Metric, Refit, RoundLeaf, factors_of, fit_left
from smidgen.planning.rounding_chains import Chain
from smidgen.site import grouped


def round_form(
    form: Form,
    target: Float[Tensor, "groups out n"],
    geometry: Geometry,
    metric: Metric,
    leaf: RoundLeaf,
    refit: Refit | None = None,
    *,
    equal: bool = False,
) -> Form:
    """A form with integers, or indices, in its leaves.

    Args:
        form: `Dense`, `Masked` (whose zeros stay zeros), `LowRank` in two factors, `Spatial`, `Tucker2` or `CP`.
        target: the weight it shall stand for, im2col rows of each group.
        geometry: the layer.
        metric: A and G.
        leaf: how one leaf becomes integers.
        refit: how a last factor is fitted to the rounded first one; to the target under A when None.
        equal: bring the values between two factors to equal energy, for one scale of activations to serve them all.

    Raises:
        Refusal: for three factors of a dense layer, and for a chain whose A is not known whole.
    """
    match form:
        case Dense(values):
            window = int(np.prod(geometry.kernel, dtype=int))
            rounded = leaf(target, metric.factors, metric.rows(*target.shape[:2]), window)
            return reshaped(rounded, values.shape)
        case Masked(values):
            window = int(np.prod(geometry.kernel, dtype=int))
            pruned = torch.as_tensor(grouped(values, geometry.groups)).to(target)
            rows = metric.rows(*target.shape[:2])
            return reshaped(leaf(pruned, metric.factors, rows, window, pruned != 0), values.shape)
        case LowRank(_, _, None, _):
            return _low_rank(form, target, geometry, metric, leaf, refit, equal)
        case Spatial():
            return Chain(target, geometry, metric, leaf, refit).spatial(form)
        case Tucker2():
            return Chain(target, geometry, metric, leaf, refit).tucker2(form)
        case CP():
            return Chain(target, geometry, metric, leaf, refit).cp(form)
        case LowRank() | Quantized() | Codebook():
            raise Refusal("rounding: three factors of a dense layer have none; use svd with factors=2")


def _low_rank(
    form: LowRank,
    target: Tensor,
    geometry: Geometry,
    metric: Metric,
    leaf: RoundLeaf,
    refit: Refit | None,
    equal: bool,
) -> LowRank:
    groups, window = form.groups, int(np.prod(geometry.kernel, dtype=int))
    v, u = (torch.as_tensor(grouped(dense(each), groups)).to(target) for each in (form.v, form.u))
    rounded_v = leaf(v, metric.factors, metric.through(u), window)
    if equal and isinstance(rounded_v, Quantized):
        rounded_v = _of_equal_energy(rounded_v, metric, groups)
        u = fit_left(target, torch.as_tensor(grouped(dense(rounded_v), groups)).to(target), metric.inputs)[1]
    seen = torch.as_tensor(grouped(dense(rounded_v), groups)).to(target)
    inner, refitted = fit_left(target, seen, metric.inputs) if refit is None else refit(seen, u)
    rounded_u = leaf(refitted, factors_of(inner), metric.rows(*target.shape[:2]), 1)
    return replace(form, v=reshaped(rounded_v, dense(form.v).shape), u=rounded_u)


def _of_equal_energy(v: Quantized, metric: Metric, groups: int) -> Quantized:
    """The same integers with row scales at which E[(v_j x)²] is nearly one for every row j (but for empty ones)."""
    rows = torch.as_tensor(grouped(dense(v), groups), dtype=torch.float64)
    energy = metric.inputs.between(rows, rows).diagonal(dim1=1, dim2=2).flatten().numpy()
    change = nearest_exponents(np.where(energy > 0, energy, 1.0) ** -0.5, v.per_octave)
    return replace(v, row=v.row + change)


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
