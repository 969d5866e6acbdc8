"""Canonical polyadic decomposition of a kernel in the curvature metric.

    W[t,s,y,x] ≈ Σ_r U_t[t,r] U_s[s,r] U_y[y,r] U_x[x,r]                                                          (1)
    minimise ln tr(G ΔW A ΔWᵀ) + η Σ_r ‖Ŵ_r‖² / ‖W‖²,   Ŵ_r the r-th rank-1 term                                 (2)

As in `cp`, a stationary point of (2) is one of tr(G ΔW A ΔWᵀ) + ρ Σ_r ‖Ŵ_r‖² with ρ = η tr(G ΔW A ΔWᵀ)/‖W‖², so each
sweep solves ridged least squares with the ρ of the last one's loss, and never raises (2): ln x ≤ x − 1. The ridge holds
down terms that cancel (the degeneracy of arXiv:2008.05441), in the plain norm, since it is the stored numbers that blow
up. With Z the last factors multiplied out, one row a term, and D = diag of the other factors' squared norms,

    U_t:  G U (Z A Zᵀ) + ρ U D = G W A Zᵀ,  closed form in the eigenvectors of G and of D^-½ Z A Zᵀ D^-½            (3)
    others:  Z*(U_tᵀ G U_t · Z(U) · A) + ρ U D = Z*(U_tᵀ G W A)                                                   (4)

Z(·) the linear map from one factor to Z and Z* its adjoint; (4) by conjugate gradients, preconditioned by the normal
equations of the plain fit with A's partial traces in the place of identities. There are two starts, and two sweeps show
which goes on: the plain fit, and the plain fit of the kernel whitened on every axis by G and the partial traces of A,
which is the fit in the metric where A is their product. On trained layers the second wins at low ranks (down to 0.64 of
the other's loss), the first at high ones (down to 0.5).

Differs from the papers: arXiv:1412.6553 fits (1) in the plain norm and fine-tunes; arXiv:2511.04494 alternates under A
with G = I and without a ridge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.numerics.conjugate import conjugate_gradients
from smidgen.numerics.cp import DEGENERATE_ABOVE, CPFactors, cp_curve, cp_full
from smidgen.numerics.cp_sweeps import balanced, khatri_rao
from smidgen.numerics.lowrank import cholesky_damped, spectral_factor
from smidgen.numerics.multilinear import LEAST, SWEEPS, check, metric_loss

TRIAL = 2  # sweeps of each start
ROUNDING = 1e-14  # a loss below this part of the energy is zero


@dataclass(frozen=True, eq=False)
class CPMetricFit:
    """A decomposition in the metric.

    Args:
        factors: of (1), each term's norm shared evenly.
        loss: ½ tr(G ΔW A ΔWᵀ).
        degeneracy: Σ_r ‖Ŵ_r‖ / ‖W‖; at most about √R where no terms cancel.
        sweeps: over all factors, spent on it.
        converged: whether they stood still.
    """

    factors: CPFactors
    loss: float
    degeneracy: float
    sweeps: int
    converged: bool

    @property
    def degenerate(self) -> bool:
        """Whether terms diverge and cancel, as for `CPFit`."""
        return self.degeneracy > DEGENERATE_ABOVE * math.sqrt(max(self.factors.rank, 1))


@dataclass(frozen=True, eq=False)
class _Found:
    factors: list[Tensor]
    objective: float
    sweeps: int
    converged: bool


@dataclass(frozen=True, eq=False)
class _Metric:
    """W as rows, A and G, and what follows from them: W A, G's eigenvectors, A's share of each axis and of the rest."""

    rows: Tensor
    inputs: Tensor | None
    outputs: Tensor | None
    seen: Tensor
    values: Tensor
    vectors: Tensor
    shares: list[tuple[Tensor, Tensor] | None]

    def under(self, basis: Tensor) -> Tensor:
        return basis if self.inputs is None else basis @ self.inputs

    def felt(self, out: Tensor) -> Tensor:
        return out if self.outputs is None else self.outputs @ out


def cp_metric_curve(
    weight: Float[Tensor, "out inp *kernel"],
    ranks: Sequence[int],
    *,
    inputs: Float[Tensor, "n n"] | None = None,
    outputs: Float[Tensor, "m m"] | None = None,
    seed: int = 0,
    iterations: int = 50,
    sweeps: int = SWEEPS,
    tolerance: float = 1e-3,
    ridge: float = 1e-2,
) -> list[CPMetricFit]:
    """Fit (1) along rising ranks: the plain curve of the whitened kernel, each point then swept in the metric.

    Args:
        weight: kernel, [out, inp, *kernel].
        ranks: strictly rising, at least 1.
        inputs: A, [inp·kernel, inp·kernel], its axes in the order inp, kernel; the identity when None. Damp it first.
        outputs: G, [out, out]; the identity when None. Damp it first.
        seed: of the plain fits.
        iterations: most sweeps of each plain fit.
        sweeps: most sweeps in the metric.
        tolerance: stop once a sweep lowers (2) by less than this.
        ridge: η.

    Returns:
        One fit a rank, in the weight's dtype. A fit may lose more than one of lower rank, where its terms no longer
        cancel as that one's did.

    Raises:
        Refusal: the kernel has no kernel axis; it, A or G holds nan or inf.
        ValueError: the ranks are not strictly rising from 1 or more, or A or G does not fit the kernel.

    Paper: arXiv:1412.6553, arXiv:2008.05441.

    >>> import torch
    >>> kernel = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    >>> fits = cp_metric_curve(kernel, [1, 9], inputs=torch.diag(torch.arange(1.0, 46.0)))
    >>> fits[1].factors.rank, fits[0].loss > fits[1].loss
    (9, True)
    """
    check("cp", weight, inputs, outputs)
    metric = _posed(weight, inputs, outputs)
    tensor, inverses = _whitened(weight, metric)
    curves = [
        cp_curve(each.to(weight.dtype), ranks, seed=seed, iterations=iterations, ridge=ridge)
        for each in (weight.detach(), tensor)
    ]
    fits = []
    for plain, white in zip(*curves, strict=True):
        turned = [one @ each.to(one) for one, each in zip(inverses, _listed(white.factors), strict=True)]
        starts = [[each.to(torch.float64) for each in _listed(plain.factors)], turned]
        tried = [_swept(metric, each, min(sweeps, TRIAL), tolerance, ridge) for each in starts]
        best = min(tried, key=lambda each: each.objective)
        if not best.converged:
            more = _swept(metric, best.factors, sweeps - best.sweeps, tolerance, ridge)
            best = replace(more, sweeps=best.sweeps + more.sweeps)
        fits.append(_finished(weight, metric, best))
    return fits


def cp_metric(
    weight: Float[Tensor, "out inp *kernel"],
    factors: CPFactors,
    *,
    inputs: Float[Tensor, "n n"] | None = None,
    outputs: Float[Tensor, "m m"] | None = None,
    sweeps: int = SWEEPS,
    tolerance: float = 1e-3,
    ridge: float = 1e-2,
) -> CPMetricFit:
    """Sweeps of (3) and (4) from given factors.

    Args:
        weight: kernel, [out, inp, *kernel].
        factors: to start from.
        inputs: A, as for `cp_metric_curve`.
        outputs: G, as for `cp_metric_curve`.
        sweeps: most sweeps.
        tolerance: stop once a sweep lowers (2) by less than this.
        ridge: η.

    Returns:
        The fit with the lowest (2), in the weight's dtype; with η = 0 it never loses more than its start.

    Raises:
        Refusal: the kernel, A or G holds nan or inf.
        ValueError: A or G does not fit the kernel.

    >>> import torch
    >>> start = CPFactors(torch.ones(4, 1), torch.ones(3, 1), (torch.ones(3, 1), torch.ones(3, 1)))
    >>> cp_metric(2 * torch.ones(4, 3, 3, 3), start, ridge=0.0).loss < 1e-9
    True
    """
    check("cp", weight, inputs, outputs)
    every = [factor.to(torch.float64) for factor in _listed(factors)]
    metric = _posed(weight, inputs, outputs)
    return _finished(weight, metric, _swept(metric, every, sweeps, tolerance, ridge))


def _posed(weight: Tensor, inputs: Tensor | None, outputs: Tensor | None) -> _Metric:
    rows = weight.detach().to(torch.float64).flatten(1)
    moment, given = (None if each is None else each.detach().to(rows) for each in (inputs, outputs))
    seen = rows if moment is None else rows @ moment
    values, vectors = rows.new_ones(len(rows)), torch.eye(len(rows)).to(rows)
    if given is not None:
        values, vectors = torch.linalg.eigh((given + given.T) / 2)
    axes = [None if moment is None else _shares(moment, weight.shape[1:], axis) for axis in range(weight.ndim - 1)]
    return _Metric(rows, moment, given, seen, values, vectors, axes)


def _shares(moment: Tensor, lengths: Sequence[int], axis: int) -> tuple[Tensor, Tensor]:
    """A's partial traces: on one axis, with a mean diagonal of 1, and on all others, in A's own scale."""
    before, length, after = math.prod(lengths[:axis]), lengths[axis], math.prod(lengths[axis + 1 :])
    view = moment.reshape(before, length, after, before, length, after)
    own = torch.einsum("bmabna->mn", view)
    scale = float(own.diagonal().mean())
    rest = torch.einsum("bmacmd->bacd", view).reshape(before * after, before * after) / length
    return own / scale if scale > 0 else torch.eye(length).to(own), rest


def _whitened(weight: Tensor, metric: _Metric) -> tuple[Tensor, list[Tensor]]:
    """The kernel with G^½ and the root of A's share applied to its axes, and the inverses of these."""
    root = (metric.vectors * metric.values.clamp(min=0).sqrt()) @ metric.vectors.T
    pairs = [(root, torch.linalg.pinv(root, hermitian=True))]
    for length, share in zip(weight.shape[1:], metric.shares, strict=True):
        unit = torch.eye(length).to(root)
        pairs.append((unit, unit) if share is None else spectral_factor(share[0], LEAST))
    tensor = weight.detach().to(root)
    for axis, (half, _) in enumerate(pairs):
        tensor = (half @ tensor.movedim(axis, 0).flatten(1)).reshape(tensor.movedim(axis, 0).shape).movedim(0, axis)
    return tensor, [inverse for _, inverse in pairs]


def _swept(metric: _Metric, start: list[Tensor], sweeps: int, tolerance: float, ridge: float) -> _Found:
    """Sweeps until one gains less than the tolerance; the factors with the lowest (2) met."""
    norm = float(metric.rows.square().sum())
    floor = ROUNDING * metric_loss(metric.rows, metric.inputs, metric.outputs)
    if norm == 0.0 or floor == 0.0:
        return _Found([torch.zeros_like(each) if norm == 0.0 else each for each in start], -math.inf, 0, True)
    factors = balanced(start)
    loss, objective = _objective(metric, factors, ridge / norm, floor)
    best = _Found(factors, objective, 0, loss <= floor)
    while not best.converged and best.sweeps < sweeps:
        factors = _sweep(metric, factors, 2 * ridge * loss / norm)
        loss, objective = _objective(metric, factors, ridge / norm, floor)
        converged = best.objective - objective < tolerance or loss <= floor
        kept = (factors, objective) if objective < best.objective else (best.factors, best.objective)
        best = _Found(*kept, best.sweeps + 1, converged)
    return best


def _objective(metric: _Metric, factors: list[Tensor], ridge: float, floor: float) -> tuple[float, float]:
    """The loss and (2)."""
    change = metric.rows - factors[0] @ khatri_rao(factors[1:]).T
    loss = metric_loss(change, metric.inputs, metric.outputs)
    return loss, math.log(max(loss, floor)) + ridge * float(_sizes(factors).sum())


def _sizes(factors: list[Tensor]) -> Float[Tensor, " rank"]:
    """‖Ŵ_r‖² of each term."""
    return torch.stack([factor.square().sum(dim=0) for factor in factors]).prod(dim=0)


def _sweep(metric: _Metric, factors: list[Tensor], rho: float) -> list[Tensor]:
    """Every factor once, the outputs' last: its closed form is the most exact."""
    factors = list(factors)
    for place in range(1, len(factors)):
        factors[place] = _solved_inner(metric, factors, place, rho)
    factors[0] = _solved_out(metric, factors, rho)
    return balanced(factors)


def _solved_out(metric: _Metric, factors: list[Tensor], rho: float) -> Tensor:
    """(3)."""
    basis = khatri_rao(factors[1:]).T
    sizes = _sizes(factors[1:]).sqrt()
    scale = torch.where(sizes > 0, 1 / sizes.clamp(min=torch.finfo(sizes.dtype).tiny), 0.0)
    gram = (metric.under(basis) @ basis.T) * scale[:, None] * scale
    bends, turns = torch.linalg.eigh((gram + gram.T) / 2)
    target = metric.vectors.T @ (metric.seen @ basis.T * scale) @ turns
    # Directions that A does not see, up to rounding, are left at zero.
    floor = len(bends) * torch.finfo(bends.dtype).eps * bends[-1].clamp(min=torch.finfo(bends.dtype).tiny)
    weights = metric.values.clamp(min=0)[:, None]
    below = weights * bends.clamp(min=0) + rho
    answer = torch.where((bends > floor) & (weights > 0), target * weights / below.clamp(min=1e-300), 0.0)
    return metric.vectors @ answer @ turns.T * scale


def _solved_inner(metric: _Metric, factors: list[Tensor], place: int, rho: float) -> Tensor:
    """(4)."""
    out, factor = factors[0], factors[place]
    one = factor.new_ones(1, factor.shape[1])
    before, after = (khatri_rao(each) if each else one for each in (factors[1:place], factors[place + 1 :]))
    felt = metric.felt(out)
    gram = felt.T @ out
    damp = rho * _sizes([*factors[:place], *factors[place + 1 :]])
    shape = (factor.shape[1], len(before), len(factor), len(after))

    def adjoint(basis: Tensor) -> Tensor:
        return torch.einsum("rlma,lr,ar->mr", basis.reshape(shape), before, after)

    def normal(x: Tensor) -> Tensor:
        spread = torch.einsum("lr,mr,ar->rlma", before, x, after).reshape(shape[0], -1)
        return adjoint(gram @ metric.under(spread)) + x * damp

    others = torch.einsum("lr,ar->rla", before, after).reshape(shape[0], -1)
    share = metric.shares[place - 1]
    terms = gram * (others @ (others if share is None else others @ share[1]).T) + torch.diag(damp)
    narrow = cholesky_damped(terms, LEAST)
    wide = torch.eye(len(factor)).to(factor) if share is None else cholesky_damped(share[0], LEAST)

    def precondition(residual: Tensor) -> Tensor:
        return torch.cholesky_solve(torch.cholesky_solve(residual, wide).T, narrow).T

    right = adjoint(felt.T @ metric.seen)
    step = conjugate_gradients(normal, right - normal(factor), torch.zeros_like(factor), precondition)
    return factor + step


def _finished(weight: Tensor, metric: _Metric, found: _Found) -> CPMetricFit:
    made = _made([factor.to(weight.dtype) for factor in found.factors])
    change = (weight.to(torch.float64) - cp_full(made).to(torch.float64)).flatten(1)
    loss = metric_loss(change, metric.inputs, metric.outputs)
    norm = float(torch.linalg.vector_norm(metric.rows))
    degeneracy = float(_sizes(found.factors).sqrt().sum()) / norm if norm > 0 else 0.0
    return CPMetricFit(made, loss, degeneracy, found.sweeps, found.converged)


def _listed(factors: CPFactors) -> list[Tensor]:
    return [factors.out, factors.inp, *factors.kernel]


def _made(every: list[Tensor]) -> CPFactors:
    return CPFactors(every[0], every[1], tuple(every[2:]))
