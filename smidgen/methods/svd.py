"""Singular value decomposition in the curvature metric: one layer as two in a chain, or three.

    minimise over rank(W_r) = r:   ½ tr(G (W − W_r) A (W − W_r)ᵀ)

With ``S = G^½ W A Wᵀ G^½ = Q Λ Qᵀ`` the solution is the projection ``W_r = G^-½ Q_r Q_rᵀ G^½ W`` and its loss is
``½ Σ_{k>r} Λ_k`` (Eckart and Young in the norm weighted on both sides; Zhang et al. 2015, arXiv:1505.06798, for
G = I). It needs no root of A, so a very wide layer costs no more than its outputs. Without data A = G = I, which is
the plain SVD (Denton et al. 2014, arXiv:1404.0736).

One root of G is inverted, so both are those of a damped ``H = G + δI``. Losses are told in G itself, as those of every
method are: what is left out counts ``½ Σ_{k>r} Λ_k · q_kᵀ H^-½ G H^-½ q_k``, since components are orthogonal under A.

A convolution is split along its outputs: r filters of the full window, then a 1x1 layer. Grouped convolutions are
split group by group, all groups with the same rank. A transposed convolution is split along its inputs: a 1x1 layer,
then r filters of the full window; each tap of its window counts as a dense layer of its own.

Helps: dense layers, where most bytes of small networks lie and which no other decomposition takes; 1x1 convolutions;
layers whose inputs hang together, so that few directions carry what the loss sees. It is closed form: the quickest to
find, and exact in the metric.

Does not help: narrow layers, where two factors take more bytes than one weight, and layers of full rank, which a small
network trained to its limit mostly has. A 3x3 convolution keeps its whole window for every component: there CP,
Tucker-2 and spatial SVD save more.

Records: frontier, data_aware.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.forms import Dense, Form, LowRank, hollow
from smidgen.methods import Family, falling
from smidgen.methods._kernels import leaf
from smidgen.methods._ranks import RankSettings
from smidgen.numerics.lowrank import spectral_factor, svd_truncated
from smidgen.numerics.vbmf import energy_rank, evbmf_rank
from smidgen.site import Curvature, Moment, Site, grouped


@dataclass(frozen=True)
class Settings(RankSettings):
    """Settings of `Svd`.

    Args:
        factors: 2 for U·V, 3 for U·C·V with a square middle layer.
        damp: added to G's diagonal, as a share of its mean.
    """

    factors: int = 2
    damp: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factors not in (2, 3) or not self.damp >= 0:
            raise ValueError(f"factors={self.factors!r} must be 2 or 3, damp={self.damp!r} at least 0")


@dataclass(frozen=True, eq=False)
class Basis:
    """The spectrum of one site, ready to be cut at any rank (float64, one entry a group).

    Args:
        spectrum: twice the loss of each component in the undamped metric, in the order the damped metric keeps them.
        left: U of all components.
        projection: P with V = P W; V itself, as wide as the layer, is made for the rank that is asked.
        weight: W as the layer holds it.
    """

    spectrum: Float[Tensor, "groups k"]
    left: Float[Tensor, "groups out k"]
    projection: Float[Tensor, "groups k out"]
    weight: Float[Tensor, "groups out n"]

    def factors(self, rank: int) -> tuple[Float[Tensor, "groups out rank"], Float[Tensor, "groups rank n"]]:
        """U and V cut at a rank."""
        return self.left[:, :, :rank], self.projection[:, :rank] @ self.weight.to(self.projection)

    def losses(self, scale: float) -> np.ndarray:
        """Loss after keeping 1, 2, … components."""
        total = self.spectrum.sum(0)
        tail = total.flip(0).cumsum(0).flip(0)
        return 0.5 * scale * torch.cat([tail[1:], tail.new_zeros(1)]).cpu().numpy()


def decompose(matrix: Float[Tensor, "groups out n"], curvature: Curvature, damp: float) -> Basis:
    """Spectrum and singular bases of the weight in the curvature metric.

    Args:
        matrix: im2col rows, split by group.
        curvature: A and G of the site; identities when empty.
        damp: share of G's mean diagonal added to it.

    >>> import torch
    >>> from smidgen.site import Curvature
    >>> basis = decompose(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))[None], Curvature(), 0.01)
    >>> [round(float(s), 6) for s in basis.spectrum[0]]
    [9.0, 1.0]
    """
    weight = matrix.to(torch.float64)
    if curvature.inputs.matrix is None and curvature.inputs.rows is None:
        parts = [svd_truncated(group, None)[:2] for group in weight]
        left = torch.stack([u for u, _ in parts])
        return Basis(torch.stack([s**2 for _, s in parts]), left, left.mT, matrix)
    gram = curvature.inputs.between(weight, weight)
    g = curvature.outputs.matrix
    if g is None:
        root = inverse = torch.eye(weight.shape[1]).to(weight).expand(weight.shape[0], -1, -1)
    else:
        factors = [spectral_factor(group.to(weight), damp) for group in g]
        root, inverse = torch.stack([f[0] for f in factors]), torch.stack([f[1] for f in factors])
    spectrum, q = torch.linalg.eigh(root @ gram @ root)
    spectrum, q = spectrum.flip(1).clamp_min(0), q.flip(2)
    left, most = inverse @ q, min(weight.shape[1:])
    if g is not None:
        spectrum = spectrum * (left * (g.to(weight) @ left)).sum(1).clamp_min(0)
    return Basis(spectrum[:, :most], left[:, :, :most], (q.mT @ root)[:, :most], matrix)


@dataclass(frozen=True)
class Svd:
    """Low rank in closed form.

    >>> import numpy as np
    >>> from smidgen.forms import Geometry
    >>> site = Site("fc", Geometry("linear", 30, 20), np.random.default_rng(0).normal(size=(20, 30)).astype("f4"))
    >>> family = METHOD.family(site, Curvature())
    >>> family.ranks[-1], family.losses[0] > family.losses[-1]
    (11, True)
    """

    name: str = "svd"
    settings: Settings = Settings()

    def with_settings(self, **settings: Any) -> Svd:
        """The same method with other settings."""
        return replace(self, settings=Settings(**{**asdict(self.settings), **settings}))

    def family(self, site: Site, curvature: Curvature, *, device: str = "cpu", seed: int = 0) -> Family:
        """Every rank that makes the layer smaller.

        Args:
            site: the layer.
            curvature: its A and G, or identities.
            device: where to compute.
            seed: unused, the solution is closed form.

        Raises:
            Refusal: for a layer that no rank makes smaller, or whose shape has no two-factor form.
        """
        self._check(site)
        weight, metric = _as_matrix(site, curvature, device)
        most = self._largest_rank(weight.shape[1], weight.shape[2])
        if most < 1:
            raise Refusal(f"svd: every rank would grow this layer ({site.weight.size} weights)")
        basis = decompose(weight, metric, self.settings.damp)
        picked = self.settings.picked(
            self.name, most, there=min(weight.shape[1:]),
            energy=lambda share: energy_rank(basis.spectrum.sum(0).sqrt().sort(descending=True).values, share),
            vbmf=lambda: max(evbmf_rank(group.to(torch.float64)) for group in weight),
        )  # fmt: skip
        losses = falling(basis.losses(metric.scale)[:most])
        ranks = self.settings.grid(most) if picked is None else (picked,)
        return Family(
            self.name,
            ranks,
            tuple(losses[[rank - 1 for rank in ranks]].tolist()),
            build=lambda r: self._form(basis, r, site),
            outline=lambda r: self._outline(r, site),
        )

    def _check(self, site: Site) -> None:
        if site.geometry.depthwise:
            raise Refusal("svd: a depthwise layer has one input channel a group: nothing to factor")
        if site.geometry.kind == "conv_transpose" and self.settings.factors == 3:
            raise Refusal("svd: transposed convolutions have no three-factor form here; use factors=2")

    def _largest_rank(self, out: int, columns: int) -> int:
        """Largest rank r with r·(out + columns) (+ r² for three factors) below out·columns."""
        half = out + columns
        if self.settings.factors == 3:
            most = int((-half + np.sqrt(half**2 + 4 * out * columns)) / 2)
            most -= most * (half + most) >= out * columns
        else:
            most = (out * columns - 1) // half
        return min(most, out, columns)

    def _form(self, basis: Basis, rank: int, site: Site) -> Form:
        g = site.geometry
        u, v = basis.factors(rank)
        # Equal norms on both sides of each component: neither factor is left with tiny or huge rows.
        balance = (v.norm(dim=2) / u.norm(dim=1).clamp_min(1e-300)).clamp_min(1e-300).sqrt()
        core = None
        if self.settings.factors == 3:
            strength = u.norm(dim=1) * v.norm(dim=2)
            u, v = u / u.norm(dim=1, keepdim=True).clamp_min(1e-300), v / v.norm(dim=2, keepdim=True).clamp_min(1e-300)
            core = leaf(torch.diag_embed(strength).flatten(0, 1))
        else:
            u, v = u * balance[:, None, :], v / balance[:, :, None]
        if g.kind == "conv_transpose":
            return LowRank(leaf(v.flatten(0, 1)), leaf(u.mT.reshape(-1, *site.weight.shape[1:])), None, g.groups)
        v_leaf = leaf(v.flatten(0, 1).reshape(g.groups * rank, *site.weight.shape[1:]))
        return LowRank(v_leaf, leaf(u.flatten(0, 1)), core, g.groups)

    def _outline(self, rank: int, site: Site) -> Form:
        g, inner = site.geometry, site.geometry.groups * rank
        if g.kind == "conv_transpose":
            v, u = hollow(inner, g.in_channels // g.groups), hollow(inner, *site.weight.shape[1:])
            return LowRank(Dense(v), Dense(u), None, g.groups)
        core = Dense(hollow(inner, rank)) if self.settings.factors == 3 else None
        return LowRank(
            Dense(hollow(inner, *site.weight.shape[1:])), Dense(hollow(g.out_channels, rank)), core, g.groups
        )


def _as_matrix(site: Site, curvature: Curvature, device: str) -> tuple[Tensor, Curvature]:
    """The weight as outputs × inputs of each group, and the curvature of that matrix."""
    g = site.geometry
    if g.kind != "conv_transpose":
        return torch.as_tensor(grouped(site.weight, g.groups), device=device), curvature
    stored = torch.as_tensor(site.weight, device=device)
    taps = prod(g.kernel)
    matrix = stored.reshape(g.groups, g.in_channels // g.groups, -1).mT  # (output, tap) by input
    outputs = curvature.outputs.matrix
    if outputs is not None:
        outputs = torch.stack([torch.kron(each, torch.eye(taps).to(each)) for each in outputs])
    return matrix, replace(curvature, outputs=Moment(matrix=outputs))


METHOD = Svd()
