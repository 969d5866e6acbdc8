"""Tucker-2 decomposition of a kernel: a 1×1 convolution, one of the full window, and a 1×1.

    W[t,s,k] ≈ Σ_ba O[t,b] C[b,a,k] I[a,s],    minimise ½ tr(G ΔW A ΔWᵀ)                                         (1)

Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile applications",
arXiv:1511.06530. Without A (G alone is a change of basis) it is HOSVD, then HOOI: the leading left vectors of one
channel unfolding, projected on the other's, in turn. With A, which mixes channels and taps, HOOI runs under a product
of a share of A on the channels and one on the taps; from there, or from the plain one if that is lower, sweeps
in (1) itself: O and C together in closed form, and I by conjugate gradients (`multilinear`).

Differs from the paper: it fits in the plain norm and fine-tunes afterwards; arXiv:2511.04494 fits Tucker-2 under A by
alternating over all three factors, with G = I.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.multilinear import (
    SWEEPS,
    Problem,
    Split,
    check,
    extended,
    falling_rotation,
    metric_loss,
    posed,
    solve_outer,
    swept,
    whitened,
)

HOOI_SWEEPS = 20  # far more than trained 3x3 layers take
# Of the energy captured, what a sweep must add. A tenth of this takes twice the time for 2e-5 of the error.
HOOI_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Tucker2Fit:
    """Three convolutions in a chain.

    Args:
        inp: I, [rank_inp, inp], rows of unit norm.
        core: C, [rank_out, rank_inp, *kernel].
        out: O, [out, rank_out], columns of unit norm.
        loss: ½ tr(G ΔW A ΔWᵀ).
        sweeps: updates of I in the full metric spent on it.
        converged: whether they stood still.
    """

    inp: Float[Tensor, "rank_inp inp"]
    core: Float[Tensor, "rank_out rank_inp *kernel"]
    out: Float[Tensor, "out rank_out"]
    loss: float
    sweeps: int
    converged: bool

    @property
    def ranks(self) -> tuple[int, int]:
        """Rank of the inputs, rank of the outputs."""
        return self.core.shape[1], self.core.shape[0]

    def full(self) -> Float[Tensor, "out inp *kernel"]:
        """The kernel that the chain amounts to."""
        return torch.einsum("tb,ba...,as->ts...", self.out, self.core, self.inp)


def tucker2_curve(
    weight: Float[Tensor, "out inp *kernel"],
    ranks: Sequence[tuple[int, int]],
    *,
    inputs: Float[Tensor, "n n"] | None = None,
    outputs: Float[Tensor, "m m"] | None = None,
    sweeps: int = SWEEPS,
    tolerance: float = 1e-3,
) -> list[Tucker2Fit]:
    """Fit (1) at several pairs of ranks, each from its own start or from the best smaller fit, whichever is lower.

    Args:
        weight: kernel, [out, inp, *kernel] with one kernel axis or more.
        ranks: pairs (rank of the inputs, rank of the outputs), each from 1 to the number of channels.
        inputs: A, [inp·kernel, inp·kernel], its axes in the order inp, kernel; the identity when None. Damp it first.
        outputs: G, [out, out]; the identity when None. Damp it first.
        sweeps: most updates of I at each pair in the full metric; none are needed without A.
        tolerance: stop once a sweep lowers the loss by less than this part of it.

    Returns:
        One fit a pair, in the weight's dtype; of two pairs of which one is the larger in both ranks, it never has more
        loss.

    Raises:
        Refusal: the kernel is empty or a matrix; it, A or G holds nan or inf.
        ValueError: a rank is outside its limits, or A or G does not fit the kernel.

    Paper: arXiv:1511.06530.

    >>> import torch
    >>> kernel = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    >>> fits = tucker2_curve(kernel, [(2, 3), (5, 6)])
    >>> fits[0].inp.shape, fits[0].core.shape, fits[0].out.shape, fits[1].loss < 1e-9
    (torch.Size([2, 5]), torch.Size([3, 2, 3, 3]), torch.Size([6, 3]), True)
    """
    if weight.ndim < 3:
        raise Refusal(f"tucker: a kernel {list(weight.shape)} has no kernel axis; use a matrix method")
    check("tucker", weight, inputs, outputs)
    most = (weight.shape[1], weight.shape[0])
    for pair in ranks:
        if not all(1 <= rank <= top for rank, top in zip(pair, most, strict=True)):
            raise ValueError(f"tucker: ranks {pair} must lie within 1 … {most} for {list(weight.shape)}")
    problem = _posed(weight, inputs, outputs)
    tensor = whitened(problem)
    gram = torch.einsum("tck,tdk->cd", tensor, tensor)
    done: dict[tuple[int, int], tuple[Split, Tucker2Fit]] = {}
    for pair in sorted(ranks, key=sum):  # a pair that another one holds comes before it
        below = [done[each] for each in done if each[0] <= pair[0] and each[1] <= pair[1]]
        split = _start(problem, tensor, gram, pair, [each for each, _ in below])
        split = swept(problem, split, pair[1], sweeps, tolerance)
        fit = _fit(problem, split, weight, inputs, outputs)
        best = min((each for _, each in below), key=lambda each: each.loss, default=fit)
        done[pair] = (split, fit if fit.loss <= best.loss else _padded(best, pair))
    return [done[pair][1] for pair in ranks]


def mode_spectra(
    weight: Float[Tensor, "out inp *kernel"],
    *,
    inputs: Float[Tensor, "n n"] | None = None,
    outputs: Float[Tensor, "out out"] | None = None,
) -> tuple[Float[Tensor, " inp"], Float[Tensor, " out"]]:
    """Energies of the two channel unfoldings, falling: what each rank can keep at best, whatever the other one is.

    Args:
        weight, inputs, outputs: as of `tucker2_curve`; A counts by its nearest product of channels and taps.

    Returns:
        Energies along the input channels, and along the output channels.

    >>> import torch
    >>> [[round(e, 3) for e in side.tolist()] for side in mode_spectra(torch.ones(2, 3, 4))]
    [[24.0, 0.0, 0.0], [24.0, 0.0]]
    """
    check("tucker", weight, inputs, outputs)
    tensor = whitened(_posed(weight, inputs, outputs))
    ins, outs = torch.einsum("tck,tdk->cd", tensor, tensor), torch.einsum("tck,uck->tu", tensor, tensor)
    of_inputs, of_outputs = (torch.linalg.eigvalsh(gram).flip(0).clamp_min(0.0) for gram in (ins, outs))
    return of_inputs, of_outputs


def _posed(weight: Tensor, inputs: Tensor | None, outputs: Tensor | None) -> Problem:
    """The kernel with the input channels narrowed and all taps passed on."""
    out, inp, *kernel = weight.shape
    taps = prod(kernel)
    moment = None if inputs is None else inputs.reshape(inp, taps, inp, taps)
    return posed(weight.reshape(out, inp, taps), moment, outputs)


def _start(problem: Problem, tensor: Tensor, gram: Tensor, pair: tuple[int, int], below: list[Split]) -> Split:
    """The lowest of HOOI's split, the plain one's, and the best smaller one with directions added."""
    inner = _hooi(tensor, pair)
    starts = [inner if problem.channels_inverse is None else inner @ problem.channels_inverse]
    if problem.blocks is not None:
        starts.append(_hooi(problem.weight, pair))  # so that no fit is ever worse than the plain one
    if below:
        starts.append(extended(problem, gram, min(below, key=lambda each: each.loss).inner, pair[0]))
    return min((solve_outer(problem, each, pair[1]) for each in starts), key=lambda each: each.loss)


def _hooi(tensor: Float[Tensor, "out c k"], pair: tuple[int, int]) -> Float[Tensor, "a c"]:
    """Leading vectors of the two channel unfoldings in turn, each projected on the other's; those of the inputs."""
    inner = _leading(torch.einsum("tck,tdk->cd", tensor, tensor), pair[0])
    captured = 0.0
    for _ in range(HOOI_SWEEPS):
        seen = torch.einsum("tck,ca->tak", tensor, inner).flatten(1)
        values, vectors = torch.linalg.eigh(seen @ seen.T)
        last, captured = captured, float(values[-pair[1] :].sum())
        if captured - last <= HOOI_TOLERANCE * captured:
            break
        rest = torch.tensordot(vectors[:, -pair[1] :].T, tensor, 1)
        inner = _leading(torch.einsum("bck,bdk->cd", rest, rest), pair[0])
    return inner.T


def _leading(gram: Tensor, count: int) -> Tensor:
    return torch.linalg.eigh(gram).eigenvectors[:, -count:]


def _fit(problem: Problem, split: Split, weight: Tensor, inputs: Tensor | None, outputs: Tensor | None) -> Tucker2Fit:
    """Both ranks in falling order of what they carry, the core holding all of the scale."""
    assert split.outer is not None
    rotation = falling_rotation(problem, split)
    inner, core = rotation.T @ split.inner, torch.einsum("bak,ac->bck", split.core, rotation)
    tiny = torch.finfo(inner.dtype).tiny
    rows, columns = (torch.linalg.vector_norm(each, dim=axis) for each, axis in ((inner, 1), (split.outer, 0)))
    inp = (inner / rows.clamp(min=tiny)[:, None]).to(weight.dtype)
    out = (split.outer / columns.clamp(min=tiny)).to(weight.dtype)
    scaled = (core * rows[:, None] * columns[:, None, None]).reshape(*core.shape[:2], *weight.shape[2:])
    fit = Tucker2Fit(inp, scaled.to(weight.dtype), out, 0.0, split.sweeps, split.converged)
    change = (weight.to(torch.float64) - fit.full().to(torch.float64)).flatten(1)
    return replace(fit, loss=metric_loss(change, inputs, outputs))


def _padded(fit: Tucker2Fit, pair: tuple[int, int]) -> Tucker2Fit:
    """The same chain with channels of zeros added."""
    inp = fit.inp.new_zeros(pair[0], fit.inp.shape[1])
    core = fit.core.new_zeros(pair[1], pair[0], *fit.core.shape[2:])
    out = fit.out.new_zeros(len(fit.out), pair[1])
    inp[: fit.ranks[0]], core[: fit.ranks[1], : fit.ranks[0]], out[:, : fit.ranks[1]] = fit.inp, fit.core, fit.out
    return replace(fit, inp=inp, core=core, out=out)
