"""What a refit computes from the moments it gathered: the last layer of a form in floats, or all of it in integers."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.forms import Codebook, Dense, Geometry, Masked, Quantized, dense, leaves, replace_last
from smidgen.numerics.pruning import survivors
from smidgen.planning.metric import Metric
from smidgen.planning.precision import Precision
from smidgen.planning.rounding import round_bias, round_form
from smidgen.site import Moment, Stored, grouped

RIDGE = 0.01  # share of the variance of z; keeps a refit on few samples near the calibrated start
WIDE = 256  # columns past which products are taken in float32: four times as fast, and summed in float64 all the same


class Moments:
    """Running sums of y, z, y zᵀ and z zᵀ, one of each a group.

    While there are fewer rows than columns the rows themselves are kept: z zᵀ of a dense layer 18,816 wide would take
    2.8 GB, 512 rows of it take 39 MB.

    Args:
        products: sum y zᵀ and z zᵀ too; a wide layer on few samples needs the means alone.
    """

    def __init__(self, *, products: bool = True) -> None:
        self.products, self.count = products, 0
        self.y = self.z = self.yz = self.zz = torch.zeros(())
        self.rows: list[tuple[Tensor, Tensor]] | None = [] if products else None

    def add(self, y: Float[Tensor, "groups k out"], z: Float[Tensor, "groups k n"]) -> None:
        """Add rows."""
        if not self.count:
            self.y, self.z = (torch.zeros_like(each[:, 0], dtype=torch.float64) for each in (y, z))
        self.y += y.sum(1, dtype=torch.float64)
        self.z += z.sum(1, dtype=torch.float64)
        self.count += y.shape[1]
        if self.rows is not None:
            self.rows.append((y, z))
            if self.count >= z.shape[2]:
                self._sum_up(self.rows)
        elif self.products:
            self._multiply(y, z)

    def _sum_up(self, rows: list[tuple[Tensor, Tensor]]) -> None:
        """From here on sums: the rows would take more."""
        y, z = rows[0]
        self.yz, self.zz = (y.new_zeros(len(y), k, z.shape[2], dtype=torch.float64) for k in (y.shape[2], z.shape[2]))
        for each in rows:
            self._multiply(*each)
        self.rows = None

    def _multiply(self, y: Tensor, z: Tensor) -> None:
        kind = torch.float32 if z.shape[2] > WIDE else torch.float64
        y, z = y.to(kind), z.to(kind)
        self.yz += y.mT @ z
        self.zz += z.mT @ z

    @property
    def means(self) -> tuple[Float[Tensor, "groups out"], Float[Tensor, "groups n"]]:
        """ȳ and z̄."""
        return self.y / self.count, self.z / self.count

    def centred(
        self, *, intercept: bool
    ) -> tuple[Float[Tensor, "groups out n"], Float[Tensor, "groups n n"], Float[Tensor, "groups n"]]:
        """E[y zᵀ] and E[z zᵀ], about the means where an intercept takes those; and E[z²] about zero."""
        if self.rows:
            self._sum_up(self.rows)
        return self._about(self.yz, self.zz, self.z, intercept=intercept)

    def through(
        self, v: Float[Tensor, "groups rank n"], *, intercept: bool
    ) -> tuple[Float[Tensor, "groups out rank"], Float[Tensor, "groups rank rank"], Float[Tensor, "groups rank"]]:
        """The same of V z in the place of z."""
        turn = v.mT
        if not self.rows:
            return self._about(self.yz @ turn, v @ self.zz @ turn, self.z[:, None] @ turn, intercept=intercept)
        seen = [(y, z.to(v) @ turn) for y, z in self.rows]
        yz = torch.stack([y.to(v).mT @ inner for y, inner in seen]).sum(0)
        zz = torch.stack([inner.mT @ inner for _, inner in seen]).sum(0)
        return self._about(yz, zz, self.z[:, None] @ turn, intercept=intercept)

    def _about(self, yz: Tensor, zz: Tensor, z: Tensor, *, intercept: bool) -> tuple[Tensor, Tensor, Tensor]:
        yz, zz = yz / self.count, zz / self.count
        size = torch.diagonal(zz, dim1=1, dim2=2)
        if intercept:
            y, z = self.y / self.count, z.reshape(len(z), -1) / self.count
            yz, zz = yz - y[:, :, None] * z[:, None, :], zz - z[:, :, None] * z[:, None, :]
        return yz, zz, size

    def solve(self, start: Float[Tensor, "groups out n"], *, intercept: bool) -> Float[Tensor, "groups out n"]:
        """The weight of least error, pulled toward ``start``."""
        return ridge_solve(*self.centred(intercept=intercept), start)

    def solve_kept(self, start: Float[Tensor, "groups out n"], *, intercept: bool) -> Float[Tensor, "groups out n"]:
        """The same with zeros where ``start`` has them: the survivors of each row solved for by themselves."""
        right, matrix = ridged(*self.centred(intercept=intercept), start)
        free = torch.linalg.solve(matrix, right, left=False)
        return torch.stack([survivors(*each) for each in zip(free, matrix, start != 0, strict=True)])

    def intercept(self, weight: Float[Tensor, "groups out n"]) -> Float[Tensor, "groups out"]:
        """b = ȳ − W z̄."""
        y, z = self.means
        return y - (weight @ z[:, :, None])[:, :, 0]


def ridge_solve(
    yz: Float[Tensor, "groups out n"], zz: Float[Tensor, "groups n n"], size: Float[Tensor, "groups n"],
    start: Float[Tensor, "groups out n"],
) -> Float[Tensor, "groups out n"]:  # fmt: skip
    """(E[y zᵀ] + ρ U₀) (E[z zᵀ] + ρ)⁻¹."""
    right, matrix = ridged(yz, zz, size, start)
    return torch.linalg.solve(matrix, right, left=False)


def ridged(
    yz: Float[Tensor, "groups out n"], zz: Float[Tensor, "groups n n"], size: Float[Tensor, "groups n"],
    start: Float[Tensor, "groups out n"],
) -> tuple[Float[Tensor, "groups out n"], Float[Tensor, "groups n n"]]:  # fmt: skip
    """E[y zᵀ] + ρ U₀ and E[z zᵀ] + ρ."""
    scale = torch.diagonal(zz, dim1=1, dim2=2).clamp(min=0.0)
    # Each inner channel has its own size: the ridge is relative to it, with a floor for dead ones, and for those that
    # hardly vary about their mean: of a channel held at a bound of its activation rounding alone is left.
    floor = scale.mean(1, keepdim=True) + size
    ridge = torch.diag_embed(RIDGE * scale + 1e-6 * floor + 1e-30)
    return yz + start @ ridge, zz + ridge


def refitted(stored: Stored, last: Geometry, sums: Moments) -> Stored:
    """The form with its last layer refitted, in floats.

    Args:
        stored: the form before.
        last: geometry of its last layer.
        sums: of the original's outputs and the last layer's inputs.
    """
    leaf = list(leaves(stored.form))[-1]
    start = torch.as_tensor(dense(leaf), dtype=torch.float64, device=sums.z.device)
    before, intercept = start.reshape(last.groups, -1, last.columns), stored.bias is not None
    if isinstance(leaf, Masked):
        u = sums.solve_kept(before, intercept=intercept) if sums.products else before
    else:
        u = sums.solve(before, intercept=intercept)
    bias = None if stored.bias is None else _floats(sums.intercept(u).flatten())
    return Stored(replace_last(stored.form, _floats(u.reshape(start.shape))), bias)


def rounded(
    stored: Stored, precision: Precision, step: float | None, sums: Moments, *, determined: bool,
    bits: int | None = None,
) -> Stored:  # fmt: skip
    """The form in integers, aimed at the original's outputs on the inputs that the compressed network gives it.

    Args:
        stored: the form in floats; in integers already where the sample does not determine a dense layer.
        precision: of the site.
        step: c.
        sums: of the original's outputs and the site's own inputs.
        determined: whether the sample has many more rows than the layer has columns; else only the last factor and
            the bias are refitted, and the metric is that of calibration.
        bits: width of the integers, where they have one; the bias stays in floats then.
    """
    g, form, intercept = precision.site.geometry, stored.form, stored.bias is not None
    metric, target = precision.metric, precision.weight.to(sums.z.device)
    if determined:
        _, zz, _ = sums.centred(intercept=intercept)
        if isinstance(form, Masked):
            start = torch.as_tensor(grouped(form.values, g.groups)).to(target)
            form = Masked(_floats(sums.solve_kept(start, intercept=intercept).reshape(form.values.shape)))
        else:
            target = sums.solve(target, intercept=intercept)
        metric = Metric(Moment(matrix=g.positions * zz), metric.outputs, metric.scale)

    def refit(v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        yz, inner, size = sums.through(v, intercept=intercept)
        return g.positions * inner, ridge_solve(yz, inner, size, u)

    if determined or not isinstance(form, Dense | Quantized | Codebook):
        form = round_form(form, target, g, metric, precision.leaf(step, bits), refit, equal=precision.static)
    if not intercept:
        return Stored(form)
    weight = torch.as_tensor(grouped(dense(form), g.groups), dtype=torch.float64, device=sums.z.device)
    return with_bias(Stored(form, _floats(sums.intercept(weight).flatten())), precision, step)


def with_bias(stored: Stored, precision: Precision, step: float | None) -> Stored:
    """The same form with its bias in integers too, where a step says how fine."""
    if stored.bias is None or step is None:
        return stored
    g = precision.site.geometry
    rows = precision.metric.rows(g.groups, g.out_channels // g.groups)
    bias_form = round_bias(stored.bias, rows, g.positions, step)
    return Stored(stored.form, dense(bias_form), bias_form)


def _floats(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
