"""Integers in the chains of several layers: spatial, Tucker-2 and CP, each leaf under the curvature it inherits.

Leaves become integers in the order their layers run. One that is not the last sees the inputs that the rounded ones
before it pass on, and G through the float ones behind it:

    A' = E A Eᵀ,    g'_r = Σ (UᵀGU)_rr        W = U · (leaf) · E,  summed over the taps that read the same weight

A weight that stands at several taps of the window sees the mean of A over them. The last leaf is fitted anew to what
the rounded ones before it pass on, and rounded under that: the same as the last factor of a low-rank form.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.forms import CP, Codebook, Dense, Geometry, Quantized, Spatial, Tucker2, dense, reshaped
from smidgen.planning.metric import Metric, Refit, RoundLeaf, factors_of, fit_left
from smidgen.site import grouped


class Chain:
    """One site whose chain becomes integers.

    Args:
        target: the weight it shall stand for, im2col rows of each group.
        geometry: the layer.
        metric: A and G.
        leaf: how one leaf becomes integers.
        refit: how the last leaf is fitted to what the others pass on; to the target under A when None.

    Raises:
        Refusal: where A is not known whole.
    """

    def __init__(
        self, target: Float[Tensor, "groups out n"], geometry: Geometry, metric: Metric, leaf: RoundLeaf,
        refit: Refit | None,
    ) -> None:  # fmt: skip
        if metric.inputs.matrix is None:
            raise Refusal("rounding: a layer this wide has no whole second moment")
        self.target, self.metric, self.leaf = target, metric, leaf
        self.groups, self.window = target.shape[0], geometry.kernel
        self.inp = target.shape[2] // prod(self.window)
        self.refit = refit or (lambda seen, _: fit_left(target, seen, metric.inputs))

    def spatial(self, form: Spatial) -> Spatial:
        """Both factors; the second one's inputs are the first one's outputs at its own taps."""
        v, u = self._grouped(form.v), self._grouped(form.u)
        first, second = (0, 1) if dense(form.v).shape[2] > 1 else (1, 0)
        taps = self.window[second]
        rows = self.metric.through(u).reshape(self.groups, -1, taps).sum(2)
        rounded_v = self._rounded(form.v, v, self._mean_over(second), rows, self.window[first])
        rank = v.shape[1]
        seen = self._grouped(rounded_v).reshape(self.groups, rank, self.inp, -1)
        wide = torch.einsum("grif,st->grsift", seen, torch.eye(taps).to(seen))
        wide = wide if first == 0 else wide.transpose(4, 5)
        rounded_u = self._last(form.u, wide.reshape(self.groups, rank * taps, -1), u, taps)
        return replace(form, v=rounded_v, u=rounded_u)

    def tucker2(self, form: Tucker2) -> Tucker2:
        """The inputs' factor, then the core fitted to it, then the outputs' factor fitted to both."""
        inp, core, out = (self._grouped(each) for each in (form.inp, form.core, form.out))
        taps, a = prod(self.window), inp.shape[1]
        rows = self.metric.through(out @ core).reshape(self.groups, a, taps).sum(2)
        rounded_inp = self._rounded(form.inp, inp, self._mean_over(0, 1), rows, 1)
        wide = torch.einsum("gai,kl->gakil", self._grouped(rounded_inp), torch.eye(taps).to(inp))
        wide = wide.reshape(self.groups, a * taps, -1)
        inner, wanted = fit_left(self.target, wide, self.metric.inputs)
        rounded_core = self._rounded(
            form.core, self._within(out, wanted), inner, self.metric.through(out), taps
        )  # fmt: skip
        seen = self._grouped(rounded_core) @ wide
        return replace(form, inp=rounded_inp, core=rounded_core, out=self._last(form.out, seen, out, 1))

    def cp(self, form: CP) -> CP:
        """The inputs' factor, one window after another, then the outputs' factor fitted to their product."""
        inp, out = (torch.as_tensor(dense(each)).to(self.target) for each in (form.inp, form.out))
        windows = [torch.as_tensor(dense(each)).to(inp) for each in form.kernel]
        shares = self.metric.through(out[None])[0]
        rows = shares * torch.stack([w.square().sum(1) for w in windows]).prod(0)
        axes = range(len(self.window))
        rounded_inp = self._rounded(form.inp, inp[None], self._mean_over(*axes), rows[None], 1)
        parts, rounded = [self._grouped(rounded_inp)[0], *windows], []
        for axis in axes:
            others = [part if k != axis + 1 else torch.ones_like(part) for k, part in enumerate(parts)]
            rounded.append(self._window(form.kernel[axis], windows[axis], _product(others), axis, shares))
            parts[axis + 1] = self._grouped(rounded[-1]).reshape(windows[axis].shape)
        rounded_out = self._last(form.out, _product(parts).flatten(1)[None], out[None], 1)
        return replace(form, inp=rounded_inp, kernel=tuple(rounded), out=rounded_out)

    def _window(self, leaf: object, window: Tensor, others: Tensor, axis: int, shares: Tensor) -> Quantized | Codebook:
        """A depthwise window: each component's own d × d moment."""
        d = window.shape[1]
        # One row for each component and tap: the other factors' product where this tap is read, zero elsewhere.
        read = torch.eye(d).to(others).reshape(1, d, *(d if k == axis + 1 else 1 for k in range(others.ndim - 1)))
        wide = (others[:, None] * read).flatten(2)
        moment = torch.stack([self.metric.inputs.between(each[None], each[None])[0] for each in wide])
        return self._rounded(leaf, window[:, None], moment, shares[:, None], d)

    def _rounded(self, leaf: object, weight: Tensor, moment: Tensor, rows: Tensor, window: int) -> Quantized | Codebook:
        rounded = self.leaf(weight, factors_of(moment), rows, window)
        assert isinstance(leaf, Dense)
        return reshaped(rounded, leaf.values.shape)

    def _last(self, leaf: object, seen: Tensor, start: Tensor, window: int) -> Quantized | Codebook:
        inner, fitted = self.refit(seen, start)
        return self._rounded(leaf, fitted, inner, self.metric.rows(*self.target.shape[:2]), window)

    def _within(self, out: Tensor, wanted: Tensor) -> Tensor:
        """(OᵀGO)⁻¹OᵀG times the wanted product of core and outputs' factor."""
        weighted = out if self.metric.outputs is None else self.metric.outputs.to(out) @ out
        gram = out.mT @ weighted
        ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(torch.float64).tiny
        eye = torch.eye(gram.shape[1]).to(gram)
        return torch.linalg.solve(gram + ridge[:, None, None] * eye, weighted.mT @ wanted)

    def _mean_over(self, *axes: int) -> Tensor:
        """A of the columns left when the window's given axes are averaged out, ``[groups, columns, columns]``."""
        assert self.metric.inputs.matrix is not None
        sizes = (self.inp, *self.window)
        letters = "abcd"[: len(sizes)]
        # An averaged axis has the same letter on both sides: the diagonal blocks along it.
        other = "".join(c if k - 1 in axes else c.upper() for k, c in enumerate(letters))
        kept = "".join(c for k, c in enumerate(letters) if k - 1 not in axes)
        wide = self.metric.inputs.matrix.double().reshape(self.groups, *sizes, *sizes)
        summed = torch.einsum(f"g{letters}{other}->g{kept}{kept.upper()}", wide)
        n = prod(size for k, size in enumerate(sizes) if k - 1 not in axes)
        return summed.reshape(self.groups, n, n) / prod(self.window[axis] for axis in axes)

    def _grouped(self, leaf: object) -> Tensor:
        values = dense(leaf)  # type: ignore[arg-type]
        return torch.as_tensor(grouped(values, self.groups)).to(self.target)


def _product(parts: list[Tensor]) -> Float[Tensor, "rank inp *window"]:
    """The rank-1 kernels of all components."""
    result = parts[0]
    for part in parts[1:]:
        result = result[..., None] * part.reshape(part.shape[0], *(1,) * (result.ndim - 1), -1)
    return result
