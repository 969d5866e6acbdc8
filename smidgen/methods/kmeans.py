"""Weight sharing: every weight of a layer is one of k values, which lie where the loss says they matter.

    least over c_1 < … < c_k and ŵ ∈ {c}    ½ Σ_i g_i ‖(w_i − ŵ_i) L‖²,    L Lᵀ = A + δI

Columns are taken one after another, each weight to the value nearest to its target t_ij, which makes good what the
columns before it lost (`smidgen.numerics.cancellation`). The cost is then a k-means on a line,

    Σ_ij g_i L_jj² (t_ij − ŵ_ij)²,

whose optimum for t = W is where the values begin (`smidgen.numerics.kmeans`). With the targets that a pass found they
are moved to the mean of those that took them, and the pass is made again; the best pass is kept. Sharing by k-means:
Han et al. 2016, arXiv:1510.00149.

Differs from the paper: the optimum instead of Lloyd's steps from equal spacing; weighted by the curvature; each weight
makes good what others lost; no training. Measured: ResNet-20 at 3 bits, nothing refitted, has a KL of 0.47 with the
optimum for t = W and each weight at its nearest value, 0.066 with feedback in one pass, 0.047 in three, 0.044 in eight.

Helps: weights in few values for a runtime of floats: `onnx-shared` runs everywhere without an option and at the speed
of floats; three to five bits a weight; weights whose distribution has lumps (those of networks that were quantized
before).

Does not help: small layers, where the codebook and its unpacking outweigh what is saved; speed; and archives at strong
compression, where evenly spaced integers are coded in less.

Records: sharing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from smidgen.forms import Codebook
from smidgen.numerics.cancellation import Factor, cancel, row_costs
from smidgen.numerics.kmeans import POINTS, kmeans, nearest, rounded_values

MOST_BITS = 8


@dataclass(frozen=True)
class Settings:
    """Settings of `KMeans`.

    Args:
        bits: of every index, 1 to 8; 0 lets the price choose them for each layer.
        feedback: whether later columns make good what earlier ones lost.
        passes: how often the values are moved to the targets that took them.
        points: different values that are clustered as they are; more are put into bins.
    """

    bits: int = 0
    feedback: bool = True
    passes: int = 3
    points: int = POINTS

    def __post_init__(self) -> None:
        whole = all(type(each) is int for each in (self.bits, self.passes, self.points))
        if not whole or not 0 <= self.bits <= MOST_BITS:
            raise ValueError(f"bits={self.bits!r} must be 1 to {MOST_BITS}, or 0 for the price to choose")
        if not 1 <= self.passes <= 20 or not 256 <= self.points <= 1 << 16:
            raise ValueError(f"passes={self.passes!r} must be in 1 … 20, points={self.points!r} in 256 … 65536")


@dataclass(frozen=True)
class KMeans:
    """Weight sharing by weighted k-means.

    >>> import torch
    >>> from smidgen.numerics.cancellation import factorise
    >>> weight = torch.tensor([[[0.1, 0.9, 1.1, 0.0]]])
    >>> form = SHARING.shared(weight, [factorise(torch.eye(4))], torch.ones(1, 1), 1)
    >>> form.indices.tolist(), form.values.round(2).tolist()
    ([[0, 1, 1, 0]], [0.05000000074505806, 1.0])
    """

    name: str
    settings: Settings

    def with_settings(self, **settings: Any) -> KMeans:
        """The same with other settings."""
        return replace(self, settings=replace(self.settings, **settings))

    def shared(
        self,
        weight: Float[Tensor, "groups out n"],
        factors: list[Factor] | Float[Tensor, "groups n n"],
        rows: Float[Tensor, "groups out"],
        bits: int,
        kept: Bool[Tensor, "groups out n"] | None = None,
    ) -> Codebook:
        """The weight as 2^bits values, or fewer where it has no more.

        Args:
            weight: im2col rows of each group.
            factors: of A: one `Factor`, or the lower factors of several groups.
            rows: g, each row's share of the loss.
            bits: of an index.
            kept: of a pruned weight, what is not zero: all others keep the value 0, which is in the codebook then.

        Returns:
            Indices ``[groups · out, n]`` and their values.
        """
        wide = weight.detach().to(torch.float64)
        metric = _Metric(wide, factors, rows.to(wide), kept)
        importance = metric.importance(feedback=self.settings.feedback)
        importance = importance if kept is None else importance * kept
        values = kmeans(wide, 2**bits - (kept is not None), importance, points=self.settings.points)
        values = values if kept is None else torch.cat([values, values.new_zeros(1)])
        if not self.settings.feedback:
            values = _short(values)
            return _codebook(nearest(wide, values), values)
        best, least = None, torch.inf
        for _ in range(self.settings.passes):
            values = _short(values)
            indices, targets = metric.walk(values)
            cost = metric.cost(values[indices])
            if best is None or cost < least:
                best, least = _codebook(indices, values), cost
            values = metric.moved(values, indices, targets)
        assert best is not None  # there is one pass at least
        return best


class _Metric:
    """A weight and what a change of it costs."""

    def __init__(
        self, weight: Tensor, factors: list[Factor] | Tensor, rows: Tensor, kept: Tensor | None = None
    ) -> None:
        self.weight, self.factors, self.rows, self.kept = weight, factors, rows, kept
        several = isinstance(factors, Tensor)
        diagonal = factors.diagonal(dim1=1, dim2=2) if several else factors[0].diagonal[None]
        self.paid = rows[:, :, None] * diagonal.to(weight).square()[:, None]

    def importance(self, *, feedback: bool) -> Tensor:
        """What an error of each weight costs: once others have made it good, or by itself."""
        if feedback:
            return self.paid
        if isinstance(self.factors, Tensor):
            energy = self.factors.square().sum(2)
        else:
            factor = self.factors[0]
            energy = torch.empty_like(factor.diagonal)[None]
            for columns, lower in zip(factor.columns, factor.lowers, strict=True):
                energy[0, columns] = lower.square().sum(1)
        return self.rows[:, :, None] * energy.to(self.weight)[:, None]

    def cost(self, chosen: Tensor) -> Tensor:
        """Σ_i g_i ‖Δw_i L‖² of each row, summed."""
        change = self.weight - chosen
        if isinstance(self.factors, Tensor):
            return ((change @ self.factors).square().sum(2) * self.rows).sum()
        return (row_costs(change[0], self.factors[0]) * self.rows[0]).sum()

    def walk(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The index of each weight and the target it was chosen for."""
        indices, targets = torch.zeros_like(self.weight, dtype=torch.int64), self.weight.clone()
        if isinstance(self.factors, Tensor):
            lower = self.factors
            left = self.weight @ lower
            for j in range(left.shape[2] - 1, -1, -1):
                targets[:, :, j] = left[:, :, j] / lower[:, j, j, None]
                indices[:, :, j] = self._nearest(targets[:, :, j], values, j)
                left -= values[indices[:, :, j]][:, :, None] * lower[:, j, None, :]
            return indices, targets
        alive = self.factors[0].alive.tolist()

        def choose(j: int, target: Tensor) -> Tensor:
            # An input that was never seen may come yet: its weights stay near what they were.
            if alive[j]:
                targets[0, :, j] = target
            indices[0, :, j] = self._nearest(targets[:, :, j], values, j)[0]
            return values[indices[0, :, j]]

        cancel(self.weight[0], self.factors[0], choose)
        return indices, targets

    def _nearest(self, targets: Tensor, values: Tensor, j: int) -> Tensor:
        """The value of each target in column j; 0 of what was removed."""
        found = nearest(targets, values)
        return found if self.kept is None else torch.where(self.kept[:, :, j], found, int(values.abs().argmin()))

    def moved(self, values: Tensor, indices: Tensor, targets: Tensor) -> Tensor:
        """Each value at the weighted mean of the targets that took it."""
        flat, zero = indices.flatten(), torch.zeros_like(values)
        mass = zero.index_add(0, flat, self.paid.flatten())
        total = zero.index_add(0, flat, (self.paid * targets).flatten())
        means = torch.where(mass > 0, total / mass.clamp_min(torch.finfo(torch.float64).tiny), values)
        if self.kept is not None:
            means[values.abs().argmin()] = 0.0
        return means.sort().values


def _short(values: Tensor) -> Tensor:
    """As the file will hold them, each once."""
    return torch.from_numpy(np.unique(rounded_values(values.cpu().numpy())).astype(np.float64)).to(values.device)


def _codebook(indices: Tensor, values: Tensor) -> Codebook:
    return Codebook(indices.flatten(0, 1).to(torch.uint8).cpu().numpy(), values.float().cpu().numpy())


SHARING = KMeans("kmeans", Settings())
