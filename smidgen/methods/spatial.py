"""Spatial SVD: a d × d convolution as d × 1, then 1 × d (Jaderberg et al. 2014, arXiv:1405.3866).

    W[t, s, y, x] ≈ Σ_r U[t, r, x] · V[r, s, y],    minimise ½ tr(G ΔW A ΔWᵀ)

R·d·(C_in + C_out) weights for rank R. Without data this is the SVD of the (s, y) × (t, x) matrix, closed form; with
calibration U and V are found in the full metric (`smidgen.numerics.spatial`; Zhang et al. 2015, arXiv:1505.06798, fit
the reconstruction of outputs too). Grouped convolutions are split group by group, all groups with the same rank.

Helps: convolutions with a window that have to become faster: both factors are plain convolutions, which runtimes
compute nearly as fast as their multiplications promise. Of the four decompositions it was the fastest at a mild loss on
ResNet-20.

Does not help: 1x1 convolutions, dense layers and windows over one axis, which leave nothing to split, and depthwise
ones, which have next to nothing to save. Where only bytes count, CP and Tucker-2 get below it.

Records: frontier, data_aware.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.forms import Dense, Form, Spatial, hollow
from smidgen.methods import Family, falling
from smidgen.methods._kernels import Kernels, leaf, residual_loss
from smidgen.methods._ranks import RankSettings
from smidgen.numerics.spatial import SpatialFit, spatial_curve, spatial_rank
from smidgen.numerics.vbmf import energy_rank, evbmf_rank
from smidgen.site import Curvature, Site


@dataclass(frozen=True)
class Settings(RankSettings):
    """Settings of `SpatialSvd`.

    Args:
        points: number of ranks tried where the price chooses.
        sweeps: of the two factors in the full metric, at each rank.
        damp: added to the diagonals of A and G, as a share of their means.
        first: which axis comes first: ``vertical`` for d × 1, then 1 × d.
    """

    points: int = 10
    sweeps: int = 3
    damp: float = 0.01
    first: Literal["vertical", "horizontal"] = "vertical"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.points <= 1000 or self.sweeps < 0 or not self.damp >= 0:
            raise ValueError(
                f"points={self.points!r} must be 1 to 1000, sweeps={self.sweeps!r}, damp={self.damp!r} from 0"
            )
        if self.first not in ("vertical", "horizontal"):
            raise ValueError(f"first={self.first!r} must be vertical or horizontal")


@dataclass(frozen=True)
class SpatialSvd:
    """Two one-sided windows.

    >>> import numpy as np
    >>> from smidgen.forms import Geometry
    >>> geometry = Geometry("conv", 8, 12, (3, 3), (1, 1), (1, 1), (1, 1), in_size=(6, 6), out_size=(6, 6))
    >>> site = Site("conv", geometry, np.random.default_rng(0).normal(size=(12, 8, 3, 3)).astype("f4"))
    >>> METHOD.with_settings(points=3).family(site, Curvature()).ranks
    (1, 4, 14)
    """

    name: str = "spatial"
    settings: Settings = Settings()

    def with_settings(self, **settings: Any) -> SpatialSvd:
        """The same method with other settings."""
        return replace(self, settings=Settings(**{**asdict(self.settings), **settings}))

    def family(self, site: Site, curvature: Curvature, *, device: str = "cpu", seed: int = 0) -> Family:
        """Ranks up to the largest that makes the layer smaller.

        Args:
            site: the layer.
            curvature: its A and G, or identities.
            device: where to compute.
            seed: unused, nothing is drawn.

        Raises:
            Refusal: for a layer whose window has not two axes, or that every rank would grow.
        """
        kernels = self._kernels(site, curvature, device)
        out, inp, y, x = kernels.weight.shape[1:]
        first, second = (y, x) if self.vertical else (x, y)
        most = min((out * inp * y * x - 1) // (inp * first + out * second), self._there(kernels))
        if most < 1:
            raise Refusal(f"spatial: every rank would grow this layer ({site.weight.size} weights)")
        picked = self.settings.picked(
            self.name, most, there=self._there(kernels),
            energy=lambda share: max(energy_rank(torch.linalg.svdvals(m), share) for m in self._matrices(kernels)),
            vbmf=lambda: max(evbmf_rank(m) for m in self._matrices(kernels)),
        )  # fmt: skip
        ranks = self.settings.grid(most, self.settings.points) if picked is None else (picked,)
        fits = [
            spatial_curve(w, ranks, inputs=a, outputs=g, vertical_first=self.vertical, sweeps=self.settings.sweeps)
            for w, a, g in kernels.each(self.settings.damp)
        ]
        forms = {rank: _form([curve[i] for curve in fits]) for i, rank in enumerate(ranks)}
        losses = falling([residual_loss(site, curvature, forms[rank]) for rank in ranks])
        return Family(
            self.name, ranks, tuple(losses.tolist()), build=forms.__getitem__,
            outline=lambda r: self._outline(r, site),
        )  # fmt: skip

    @property
    def vertical(self) -> bool:
        """Whether d × 1 comes first."""
        return self.settings.first == "vertical"

    def _kernels(self, site: Site, curvature: Curvature, device: str) -> Kernels:
        kernels = Kernels.of(self.name, site, curvature, device)
        if len(site.geometry.kernel) != 2:
            raise Refusal(f"spatial: a window over {len(site.geometry.kernel)} axes is not split, only one over two")
        if min(site.geometry.kernel) == 1:
            raise Refusal(f"spatial: a window {'x'.join(map(str, site.geometry.kernel))} has one axis alone; use svd")
        return kernels

    def _there(self, kernels: Kernels) -> int:
        return spatial_rank(tuple(kernels.weight.shape[1:]), vertical_first=self.vertical)

    def _matrices(self, kernels: Kernels) -> list[Tensor]:
        """(s, y) × (t, x) of each group, or (s, x) × (t, y)."""
        turned = kernels.weight if self.vertical else kernels.weight.transpose(3, 4)
        return [w.permute(1, 2, 0, 3).flatten(2).flatten(0, 1) for w in turned]

    def _outline(self, rank: int, site: Site) -> Form:
        g = site.geometry
        (y, x), inner = g.kernel, g.groups * rank
        windows = ((y, 1), (1, x)) if self.vertical else ((1, x), (y, 1))
        v = Dense(hollow(inner, g.in_channels // g.groups, *windows[0]))
        return Spatial(v, Dense(hollow(g.out_channels, rank, *windows[1])), g.groups)


def _form(fits: list[SpatialFit]) -> Form:
    v, u = torch.cat([fit.first for fit in fits]), torch.cat([fit.second for fit in fits])
    down, across = (3, 2) if fits[0].vertical_first else (2, 3)
    return Spatial(leaf(v.unsqueeze(down)), leaf(u.unsqueeze(across)), len(fits))


METHOD = SpatialSvd()
