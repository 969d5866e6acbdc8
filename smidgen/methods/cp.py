"""Canonical polyadic decomposition: one convolution as four thin ones (Lebedev et al. 2015, arXiv:1412.6553).

    W[t, s, y, x] ≈ Σ_r T[t, r] · S[s, r] · Y[y, r] · X[x, r],    minimise ½ tr(G ΔW A ΔWᵀ) + ρ Σ_r ‖Ŵ_r‖²

The four layers are 1x1, d x 1 depthwise, 1 x d depthwise and 1x1: R·(C_in + 2d + C_out) weights for rank R. Factors
come from regularised alternating least squares; with calibration all of them are then swept in the full metric
(`smidgen.numerics.cp_metric`). Terms of a fit may grow and cancel each other, which no later rounding survives (Phan et
al. 2020, arXiv:2008.05441): the ridge ρ holds them down, a fit that degenerates all the same is corrected at hardly
more error, and one that stays so is dropped.

Differs from the papers: no fine-tuning afterwards, alternating instead of non-linear least squares; the correction
brings down Σ‖Ŵ_r‖² instead of the sensitivity.

Helps: bytes of convolutions: it has the fewest weights of all forms at the same error, and won the bytes of ResNet-20
over the whole dial.

Does not help: speed at mild ranks, since two of its four layers are depthwise and cost their call (ResNet-20 ran at two
thirds of its speed); grouped convolutions and dense layers, which it does not take; and patience: alternating sweeps at
every rank take the most time of all methods.

Records: frontier, data_aware.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.forms import CP, Form
from smidgen.methods import Family, falling
from smidgen.methods._kernels import Kernels, leaf, residual_loss
from smidgen.methods._ranks import RankSettings
from smidgen.numerics.cp import CPFactors, cp_full, cp_ranks_by_error, exact_rank
from smidgen.numerics.cp_correction import cp_corrected
from smidgen.numerics.cp_metric import CPMetricFit, cp_metric_curve
from smidgen.site import Curvature, Site

# Terms tried at most: a sweep solves systems of their number, whose work grows with its cube, and holds such columns.
# The wide kernels that it binds (31×31 from 32 to 32 channels could have 5,461) have better forms beyond.
MOST_TERMS = 1024
CORRECTED = 1.02  # largest error after a correction, in those before it


@dataclass(frozen=True)
class Settings(RankSettings):
    """Settings of `Cp`.

    Args:
        points: number of ranks tried, spaced evenly in the logarithm.
        iterations: sweeps of alternating least squares at each rank.
        max_share: largest rank offered, as a share of the dense layer's weights.
        sweeps: over all factors in the full metric, at each rank.
        damp: added to the diagonals of A and G, as a share of their means.
    """

    points: int = 10
    iterations: int = 30
    max_share: float = 0.7
    sweeps: int = 4
    damp: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = all(type(value) is int for value in (self.points, self.iterations))
        if self.sweeps < 0 or not self.damp >= 0:
            raise ValueError(f"sweeps={self.sweeps!r} and damp={self.damp!r} must be at least 0")
        if not whole or not 1 <= self.points <= 1000 or self.iterations < 1 or not 0 < self.max_share <= 1:
            raise ValueError(
                f"points={self.points!r} must be a whole number from 1 to 1000, iterations={self.iterations!r} one "
                f"from 1 on, max_share={self.max_share!r} above 0 and at most 1"
            )


@dataclass(frozen=True)
class Cp:
    """A sum of rank-1 kernels.

    >>> import numpy as np
    >>> from smidgen.forms import Geometry
    >>> geometry = Geometry("conv", 8, 12, (3, 3), (1, 1), (1, 1), (1, 1), in_size=(6, 6), out_size=(6, 6))
    >>> site = Site("conv", geometry, np.random.default_rng(0).normal(size=(12, 8, 3, 3)).astype("f4"))
    >>> len(METHOD.with_settings(points=3, iterations=5).family(site, Curvature()).ranks)
    3
    """

    name: str = "cp"
    settings: Settings = Settings()

    def with_settings(self, **settings: Any) -> Cp:
        """The same method with other settings."""
        return replace(self, settings=Settings(**{**asdict(self.settings), **settings}))

    def family(self, site: Site, curvature: Curvature, *, device: str = "cpu", seed: int = 0) -> Family:
        """A few ranks from one term up to `Settings.max_share` of the layer's weights, or to 1,024 terms.

        Args:
            site: the layer.
            curvature: its A and G, or identities.
            device: where to compute.
            seed: of the random part of the starting factors.

        Raises:
            Refusal: for a layer that is no ungrouped convolution with a window, or that every rank would grow.
        """
        ranks = self._ranks(site)
        (weight, a, g), *_ = Kernels.of(self.name, site, curvature, device).each(self.settings.damp)
        fits = cp_metric_curve(
            weight, ranks, inputs=a, outputs=g, seed=seed, iterations=self.settings.iterations,
            sweeps=self.settings.sweeps,
        )  # fmt: skip
        sound = {
            rank: fit for rank, found in zip(ranks, fits, strict=True) if (fit := _sound(weight, found)) is not None
        }
        if not sound:
            raise Refusal("cp: every fit degenerated into cancelling terms")
        forms = [_form(factors) for factors in sound.values()]
        losses = [residual_loss(site, curvature, form) for form in forms]
        best = _best_so_far(losses)
        table = {rank: forms[i] for rank, i in zip(sound, best, strict=True)}
        return Family(self.name, tuple(sound), tuple(falling(losses).tolist()), table.__getitem__, table.__getitem__)

    def _ranks(self, site: Site) -> list[int]:
        g = site.geometry
        if g.kind != "conv":
            raise Refusal("cp: only convolutions have the four-factor form")
        if g.groups > 1:
            raise Refusal(f"cp: grouped convolutions are not split ({g.groups} groups)")
        if prod(g.kernel) == 1:
            raise Refusal("cp: a 1x1 window is a matrix; use svd")
        each = g.in_channels + g.out_channels + sum(g.kernel)
        most = int(self.settings.max_share * site.weight.size / each)
        if most < 1:
            raise Refusal(f"cp: every rank would grow this layer ({site.weight.size} weights)")
        picked = self.settings.picked(
            self.name, most, there=exact_rank(site.weight.shape), vbmf=None,
            energy=lambda share: self._by_energy(torch.as_tensor(site.weight), share, most),
        )  # fmt: skip
        return list(self.settings.grid(min(most, MOST_TERMS), self.settings.points)) if picked is None else [picked]

    def _by_energy(self, weight: Tensor, share: float, most: int) -> int:
        """The smallest rank whose fit keeps a share of the energy; one more than ``most`` where none does."""
        if share >= 1:
            return most + 1
        found = cp_ranks_by_error(
            weight, float((1 - share) ** 0.5), max_rank=most, iterations=self.settings.iterations
        )  # fmt: skip
        return found.fit.factors.rank if found.reached else most + 1


def _sound(weight: Tensor, fit: CPMetricFit) -> CPFactors | None:
    """The fit; with its terms brought down where they cancel, None where they still do."""
    if not fit.degenerate:
        return fit.factors
    bound = CORRECTED * float((weight - cp_full(fit.factors)).norm() / weight.norm())
    if not bound < 1:
        return None
    corrected = cp_corrected(weight, fit.factors, bound)
    return None if corrected.degenerate else corrected.factors


def _best_so_far(losses: list[float]) -> list[int]:
    best, index = [], 0
    for i, loss in enumerate(losses):
        index = i if loss <= losses[index] else index
        best.append(index)
    return best


def _form(factors: CPFactors) -> Form:
    return CP(inp=leaf(factors.inp.T), kernel=tuple(leaf(k.T) for k in factors.kernel), out=leaf(factors.out))


METHOD = Cp()
