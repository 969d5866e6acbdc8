"""Tucker-2: a convolution as a smaller one between two 1x1 layers (Kim et al. 2016, arXiv:1511.06530).

    W[t, s, k] ≈ Σ_ab O[t, b] · C[b, a, k] · I[a, s],    minimise ½ tr(G ΔW A ΔWᵀ)

C_in·a + a·b·d² + b·C_out weights for ranks a of the inputs and b of the outputs. Without data this is HOSVD and HOOI;
with calibration all three are found in the full metric (`smidgen.numerics.tucker`). A family runs along one path: the
pairs (a, b) that leave out the same share of the energy in both unfoldings; a rank names its b. With ``ranks="vbmf"``
a and b come from the noise of the two unfoldings, as in the paper. Grouped convolutions are split group by group, all
groups with the same ranks.

Helps: wide convolutions whose channels repeat each other, on both sides: the small kernel in the middle then does most
of the work. At strong compression it kept more of ResNet-20 than the SVD or spatial SVD did.

Does not help: narrow layers, and speed at mild ranks: the two 1x1 layers around the core cost their calls and run at
the resolution of input and output, so half the multiplications may be no faster at all.

Records: frontier, data_aware.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.forms import Dense, Form, Geometry, Tucker2, hollow
from smidgen.methods import Family, falling
from smidgen.methods._kernels import Kernels, leaf, residual_loss
from smidgen.methods._ranks import RankSettings, evenly
from smidgen.numerics.tucker import Tucker2Fit, mode_spectra, tucker2_curve
from smidgen.numerics.vbmf import tucker2_ranks
from smidgen.site import Curvature, Site

Pair = tuple[int, int]  # rank of the inputs, rank of the outputs


@dataclass(frozen=True)
class Settings(RankSettings):
    """Settings of `Tucker2Method`.

    Args:
        rank_in: rank of the inputs with ``ranks="fixed"``; 0 for the one that leaves out as much as ``rank`` does.
        points: number of pairs tried where the price chooses.
        sweeps: of the three factors in the full metric, at each pair.
        damp: added to the diagonals of A and G, as a share of their means.
    """

    rank_in: int = 0
    points: int = 10
    sweeps: int = 3
    damp: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.points <= 1000 or self.sweeps < 0 or not self.damp >= 0:
            raise ValueError(
                f"points={self.points!r} must be 1 to 1000, sweeps={self.sweeps!r}, damp={self.damp!r} from 0"
            )
        if type(self.rank_in) is not int or self.rank_in < 0 or (self.rank_in and self.ranks != "fixed"):
            raise ValueError(f"rank_in={self.rank_in!r} must be a whole number from 1 with ranks='fixed', else 0")


@dataclass(frozen=True)
class Tucker2Method:
    """A small convolution between two 1x1 layers.

    >>> import numpy as np
    >>> from smidgen.forms import Geometry
    >>> geometry = Geometry("conv", 8, 12, (3, 3), (1, 1), (1, 1), (1, 1), in_size=(6, 6), out_size=(6, 6))
    >>> site = Site("conv", geometry, np.random.default_rng(0).normal(size=(12, 8, 3, 3)).astype("f4"))
    >>> family = METHOD.with_settings(points=3).family(site, Curvature())
    >>> form = family.form(family.ranks[-1])
    >>> isinstance(form, Tucker2)
    True
    """

    name: str = "tucker2"
    settings: Settings = Settings()

    def with_settings(self, **settings: Any) -> Tucker2Method:
        """The same method with other settings."""
        return replace(self, settings=Settings(**{**asdict(self.settings), **settings}))

    def family(self, site: Site, curvature: Curvature, *, device: str = "cpu", seed: int = 0) -> Family:
        """Pairs of ranks along the path, up to the largest that makes the layer smaller; named by that of the outputs.

        Args:
            site: the layer.
            curvature: its A and G, or identities.
            device: where to compute.
            seed: unused, nothing is drawn.

        Raises:
            Refusal: for a layer that is no convolution with a window, or that every pair would grow.
        """
        kernels = Kernels.of(self.name, site, curvature, device)
        parts = list(kernels.each(self.settings.damp))
        path = self._path(site.geometry, [mode_spectra(w, inputs=a, outputs=g) for w, a, g in parts])
        pairs = self._chosen(kernels, site.geometry, path)
        fits = [tucker2_curve(w, pairs, inputs=a, outputs=g, sweeps=self.settings.sweeps) for w, a, g in parts]
        forms = {pair[1]: _form([curve[i] for curve in fits]) for i, pair in enumerate(pairs)}
        losses = falling([residual_loss(site, curvature, forms[b]) for _, b in pairs])
        ins = {b: a for a, b in pairs}
        return Family(
            self.name, tuple(forms), tuple(losses.tolist()), build=forms.__getitem__,
            outline=lambda b: _outline((ins[b], b), site.geometry),
        )  # fmt: skip

    def _path(self, g: Geometry, spectra: Sequence[tuple[Tensor, Tensor]]) -> list[Pair]:
        """Pairs that leave out the same share of the energy on both sides, b strictly rising."""
        ins, outs = (_left_out(torch.stack([each[side] for each in spectra]).sum(0)) for side in (0, 1))
        path = dict[int, int]()
        for b in range(1, len(outs) + 1):
            share = max(float(outs[b - 1]), 1e-12)
            a = 1 + int((ins > share).sum())
            path[self._rounded(b, len(outs))] = self._rounded(min(a, len(ins)), len(ins))
        return [(a, b) for b, a in path.items()]

    def _rounded(self, rank: int, most: int) -> int:
        return min(-(-rank // self.settings.multiple) * self.settings.multiple, most)

    def _chosen(self, kernels: Kernels, g: Geometry, path: list[Pair]) -> list[Pair]:
        smaller = [pair for pair in path if _params(pair, g) < prod(kernels.weight.shape)]
        if not smaller:
            raise Refusal(f"tucker2: every pair of ranks would grow this layer ({prod(kernels.weight.shape)} weights)")
        if self.settings.ranks == "price":
            return [smaller[i] for i in evenly([_params(pair, g) for pair in smaller], self.settings.points)]
        pair = self._picked(kernels, path)
        if _params(pair, g) >= prod(kernels.weight.shape):
            raise Refusal(f"tucker2: ranks {pair} by {self.settings.ranks} would grow this layer")
        return [pair]

    def _picked(self, kernels: Kernels, path: list[Pair]) -> Pair:
        out, inp = kernels.weight.shape[1:3]
        match self.settings.ranks:
            case "vbmf":
                found = [tucker2_ranks(weight) for weight in kernels.weight]
                pair = max(a for a, _ in found), max(b for _, b in found)
            case "energy":
                pair = self._by_energy(kernels)
            case _:
                near = min(path, key=lambda each: abs(each[1] - self.settings.rank))
                pair = self.settings.rank_in or near[0], self.settings.rank
        if min(pair) < 1:
            raise Refusal(f"tucker2: {self.settings.ranks} finds nothing but noise in this layer (ranks {pair})")
        if pair[0] > inp or pair[1] > out:
            raise Refusal(f"tucker2: ranks {pair} are above what this layer has ({inp}, {out})")
        return self._rounded(pair[0], inp), self._rounded(pair[1], out)

    def _by_energy(self, kernels: Kernels) -> Pair:
        sides = []
        for axis in (1, 0):
            spectra = [torch.linalg.svdvals(w.movedim(axis, 0).flatten(1)).square() for w in kernels.weight]
            left = _left_out(torch.stack(spectra).sum(0))
            sides.append(1 + int((left > 1 - self.settings.energy).sum()))
        return min(sides[0], kernels.weight.shape[2]), min(sides[1], kernels.weight.shape[1])


def _left_out(spectrum: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Share of the energy that 1, 2, … components leave out."""
    tail = spectrum.flip(0).cumsum(0).flip(0)
    return torch.cat([tail[1:], tail.new_zeros(1)]) / tail[0].clamp_min(torch.finfo(tail.dtype).tiny)


def _params(pair: Pair, g: Geometry) -> int:
    a, b = pair
    return g.in_channels * a + g.groups * a * b * prod(g.kernel) + g.out_channels * b


def _outline(pair: Pair, g: Geometry) -> Form:
    (a, b), n = pair, g.groups
    inp, core = Dense(hollow(n * a, g.in_channels // n)), Dense(hollow(n * b, a, *g.kernel))
    return Tucker2(inp, core, Dense(hollow(g.out_channels, b)), n)


def _form(fits: list[Tucker2Fit]) -> Form:
    """Every factor with the same share of the scale: none is left with tiny or huge values."""
    inp, core, out = (torch.cat([getattr(fit, name) for fit in fits]) for name in ("inp", "core", "out"))
    return Tucker2(leaf(inp), leaf(core), leaf(out), len(fits))


METHOD = Tucker2Method()
