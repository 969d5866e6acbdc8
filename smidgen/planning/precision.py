"""What rounding adds to a site's options: each form at a ladder of steps, with predicted loss and bytes.

    loss(form, c) = loss of the form + ½ Σ_i g_i (ΔW A ΔWᵀ)_ii of its leaves' rounding,    c = 2^(k/2)

Losses and bits of the whole octaves are measured by rounding, those between lie on the line through their logarithms.
A dense layer is judged by a sample of its rows, which do not see each other; factors by all components at once: those
of the decomposition come in falling order and do not see each other either, so one rounding prices every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from smidgen.coding import cost_model
from smidgen.errors import Refusal
from smidgen.forms import NARROW, Codebook, Form, Geometry, LowRank, Quantized, dense, leaves, shape
from smidgen.methods import Family, Leaves, Rounding, Sharing, prunings
from smidgen.numerics.cancellation import Factor
from smidgen.planning.candidates import Label, Options
from smidgen.planning.metric import Metric, RoundLeaf, fit_left, metric_of
from smidgen.planning.rounding import round_form
from smidgen.site import Curvature, Site, grouped

SAMPLE_ROWS = 128  # of a dense layer
MOST_RANK = 192  # components priced; with integers a rank this large has lost to the dense layer
# The ladder: from about so many bits a weight to steps of so many standard deviations.
FINEST_BITS, COARSEST = 11.0, 4.0
LAYER_BYTES = 14  # of a layer in an archive beside its integers: measured on written archives of six networks
EXPONENT_BYTES = 0.4  # of a row's scale, and of its bias


@dataclass(frozen=True, eq=False)
class Precision:
    """How one site's forms become integers.

    Args:
        site: the layer.
        metric: its A and G.
        method: how to round, or to share.
        static: whether the file computes in integers: the activations between two factors have equal energy then.
        narrow: whether leaves of few columns have eight bits and one scale for all rows.
    """

    site: Site
    metric: Metric
    method: Leaves
    static: bool = False
    narrow: bool = False

    @property
    def weight(self) -> Tensor:
        """The layer's weight as im2col rows, float64."""
        return torch.as_tensor(grouped(self.site.weight, self.site.geometry.groups), dtype=torch.float64)

    def leaf(self, step: float | None, bits: int | None = None) -> RoundLeaf:
        """How a leaf becomes integers, by a step of any size or of a width; or indices of one."""

        def rounded(
            weight: Tensor, factors: list[Factor] | Tensor, rows: Tensor, window: int, kept: Tensor | None = None
        ) -> Quantized | Codebook:  # fmt: skip
            if isinstance(self.method, Sharing):
                assert bits is not None  # what is shared has no step
                return self.method.shared(weight, factors, rows, bits, kept)
            if bits is not None:
                shared = self.narrow and len(weight) == 1 and weight.shape[2] <= NARROW
                width = max(bits, 8) if shared else bits
                return self.method.fixed(weight, factors, width, shared=shared, kept=kept)
            assert step is not None  # one of the two is given
            return self.method.rounded(weight, factors, rows, step, window, kept)

        return rounded

    def form(self, form: Form, step: float | None, bits: int | None = None) -> Form:
        """A form of the site with integers in its leaves, under the original's own moments."""
        return self.rested().one_of_many(form, step, bits)

    def one_of_many(self, form: Form, step: float | None, bits: int | None = None) -> Form:
        """The same where more will follow: the factors of A are kept."""
        leaf = self.leaf(step, bits)
        return round_form(form, self.weight, self.site.geometry, self.metric, leaf, equal=self.static)

    def rested(self) -> Precision:
        """The same without the factors of A, which are as large as A itself."""
        return replace(self, metric=replace(self.metric))


@dataclass(frozen=True, eq=False)
class _Rung:
    """Losses and bytes of some forms at one step."""

    losses: np.ndarray
    sizes: np.ndarray


def with_precision(option: Options, curvature: Curvature, method: Rounding) -> Options:
    """The site's options with those of rounding; without its float ones but the layer as it is.

    Args:
        option: from `gather`.
        curvature: of the site.
        method: how to round.
    """
    reason = no_rounding(option.site, method)
    if reason is not None:
        return replace(option, refusals={**option.refusals, **reason})
    precision = Precision(option.site, metric_of(option.site, curvature), method)
    try:
        entries = list(_entries(option, precision))
    except Refusal as refusal:
        return replace(option, refusals={**option.refusals, method.name: str(refusal)})
    whole = int(option.sizes[0])
    kept = frontier([(0.0, whole, Label(None, None)), *(e for e in entries if e[1] < whole)])
    return replace(
        option, precision=precision.rested(), worth=curvature.loss(precision.weight),
        losses=np.array([e[0] for e in kept]), sizes=np.array([e[1] for e in kept]), labels=tuple(e[2] for e in kept),
    )  # fmt: skip


def no_rounding(site: Site, method: Leaves) -> dict[str, str] | None:
    """Why a layer cannot be rounded, by the method's name; empty for one refused already, None where it can."""
    if site.refusal is not None:
        return {}
    turned = site.geometry.kind == "conv_transpose"
    return {method.name: "a transposed convolution has no rounding yet"} if turned else None


def _entries(option: Options, precision: Precision) -> Iterator[tuple[float, int, Label]]:
    ladder = _ladder(precision)
    pruned = prunings().keys() & option.families.keys()
    if not pruned:
        yield from _between(ladder, [Label(None, None)], [_dense_rung(precision, step) for step in ladder])
    for name, family in option.families.items():
        form = family.form(family.ranks[0])
        if name in pruned:
            rungs = [_whole_rung(precision, form, step) for step in ladder]
            yield from _between(ladder, [Label(name, family.ranks[0])], rungs)
        elif not isinstance(form, LowRank):
            yield from _chain_entries(precision, name, family)
        elif form.core is None:
            ranks = [rank for rank in family.ranks if rank <= MOST_RANK] or [family.ranks[0]]
            struct = np.array(family.losses[: len(ranks)])
            labels = [Label(name, rank) for rank in ranks]
            most = family.form(ranks[-1])
            assert isinstance(most, LowRank)
            rungs = [_low_rank_rung(precision, most, ranks, struct, step) for step in ladder]
            yield from _between(ladder, labels, rungs)


def _chain_entries(precision: Precision, name: str, family: Family) -> Iterator[tuple[float, int, Label]]:
    """Each rank at three steps, at which rounding costs a quarter of what the rank costs, as much, and four times that.

    At a finer one the bits are worth more in another component, at a coarser one a component more is worth its bits.
    """
    g = precision.site.geometry
    for rank, struct in zip(family.ranks, family.losses, strict=True):
        form = family.form(rank)
        count = sum(dense(each).size for each in leaves(form))
        # An error of variance c²/12 in the metric for each weight, half of which is loss.
        even = 2.0 ** np.round(np.log2(np.sqrt(24 * max(struct, 1e-12) / count)))
        steps, rungs = [float(even * k) for k in (0.5, 1.0, 2.0)], []
        for step in steps:
            rounded = precision.one_of_many(form, step)
            parts = [each for each in leaves(rounded) if isinstance(each, Quantized)]
            size = _nbytes(sum(coded_bits(each).sum() for each in parts), g, [len(each.row) for each in parts])
            size += LAYER_BYTES * (len(parts) - 1)
            rungs.append(_Rung(np.array([whole_loss(precision, rounded)]), np.array([size])))
        yield from _between(steps, [Label(name, rank)], rungs)


def whole_loss(precision: Precision, form: Form) -> float:
    """½ tr(G ΔW A ΔWᵀ) of a form in the place of the weight."""
    weight, metric = precision.weight, precision.metric
    change = weight - torch.as_tensor(grouped(dense(form), precision.site.geometry.groups)).to(weight)
    gram = metric.inputs.between(change, change)
    shares = torch.eye(weight.shape[1]).to(gram) if metric.outputs is None else metric.outputs.to(gram)
    return 0.5 * metric.scale * float((gram * shares).sum())


def _ladder(precision: Precision) -> list[float]:
    """Steps a factor of two apart, from fine to coarse."""
    weight, metric = precision.weight, precision.metric
    gram = metric.inputs.between(weight, weight).diagonal(dim1=1, dim2=2)
    energy = float((gram * metric.rows(*weight.shape[:2])).sum()) / weight.numel()
    # In units of its own step a weight of this energy has this standard deviation, were A diagonal.
    deviation = max(energy, 1e-30) ** 0.5
    finest = np.floor(np.log2(deviation) - FINEST_BITS)
    coarsest = np.ceil(np.log2(deviation) + np.log2(COARSEST) + 2)
    return [float(2.0**k) for k in np.arange(finest, coarsest + 1)]


def _dense_rung(precision: Precision, step: float) -> _Rung:
    g = precision.site.geometry
    loss, form = dense_loss(precision, precision.leaf(step))
    bits = g.out_channels / shape(form)[0] * coded_bits(form).sum()
    return _Rung(np.array([loss]), np.array([_nbytes(bits, g, [g.out_channels])]))


def _whole_rung(precision: Precision, form: Form, step: float) -> _Rung:
    """A pruned layer at one step, all its rows."""
    rounded = precision.form(form, step)
    assert isinstance(rounded, Quantized)
    size = _nbytes(coded_bits(rounded).sum(), precision.site.geometry, [len(rounded.row)])
    return _Rung(np.array([whole_loss(precision, rounded)]), np.array([size]))


def dense_loss(precision: Precision, leaf: RoundLeaf) -> tuple[float, Quantized | Codebook]:
    """Loss of rounding a dense layer, and the rows it was judged by."""
    weight, metric = precision.weight, precision.metric
    groups, out = weight.shape[:2]
    rows = metric.rows(groups, out)
    if groups == 1 and out > SAMPLE_ROWS:
        picked = torch.arange(SAMPLE_ROWS) * out // SAMPLE_ROWS
        rows, weight = rows[:, picked], weight[:, picked]
    form = leaf(weight, metric.factors, rows, int(np.prod(precision.site.geometry.kernel, dtype=int)))
    share = out / weight.shape[1]
    return float(share * _rounding_losses(form, weight, metric, rows).sum()), form


def _low_rank_rung(
    precision: Precision, form: LowRank, ranks: list[int], struct: np.ndarray, step: float
) -> _Rung:  # fmt: skip
    losses, v, u = low_rank_losses(precision, form, precision.leaf(step))
    g, most = precision.site.geometry, ranks[-1]
    bits_v = coded_bits(v).reshape(g.groups, most, -1).sum((0, 2))
    bits_u = coded_bits(u).reshape(g.out_channels, most).sum(0)
    bits = np.cumsum(bits_v + bits_u)
    sizes = [_nbytes(bits[rank - 1], g, [g.out_channels, g.groups * rank]) for rank in ranks]
    return _Rung(struct + losses[[rank - 1 for rank in ranks]], np.array(sizes) + LAYER_BYTES)


def low_rank_losses(
    precision: Precision, form: LowRank, leaf: RoundLeaf
) -> tuple[np.ndarray, Quantized | Codebook, Quantized | Codebook]:
    """Loss of rounding the first 1, 2, … components of two factors, and the factors V and U so."""
    weight, metric = precision.weight, precision.metric
    groups, out = weight.shape[:2]
    rounded = round_form(form, weight, precision.site.geometry, metric, leaf)
    assert isinstance(rounded, LowRank)
    assert isinstance(rounded.u, Quantized | Codebook)
    assert isinstance(rounded.v, Quantized | Codebook)
    v, u = (torch.as_tensor(grouped(dense(each), groups)).to(weight) for each in (form.v, form.u))
    of_v = _rounding_losses(rounded.v, v, metric, metric.through(u)).sum(0)
    seen = torch.as_tensor(grouped(dense(rounded.v), groups)).to(weight)
    inner, refitted = fit_left(weight, seen, metric.inputs)
    error = refitted - torch.as_tensor(grouped(dense(rounded.u), groups)).to(weight)
    energy = inner.diagonal(dim1=1, dim2=2)[:, None, :]
    of_u = 0.5 * (error.square() * energy * metric.rows(groups, out)[:, :, None]).sum((0, 1)).numpy()
    return np.cumsum(of_v + of_u), rounded.v, rounded.u


def _rounding_losses(form: Quantized | Codebook, weight: Tensor, metric: Metric, rows: Tensor) -> np.ndarray:
    """½ g_i (ΔW A ΔWᵀ)_ii of each row, ``[groups, out]``."""
    change = weight - torch.as_tensor(dense(form)).to(weight).reshape(weight.shape)
    gram = metric.inputs.between(change, change).diagonal(dim1=1, dim2=2)
    return (0.5 * rows.to(gram) * gram).numpy()


def coded_bits(form: Quantized | Codebook) -> np.ndarray:
    """Bits of each integer, or index, in an archive, a row for each of the weight's."""
    integers = form.indices.astype(np.int32) - form.centre if isinstance(form, Codebook) else form.integers
    values = integers.reshape(len(integers), -1)
    model = cost_model(values)
    return model.bits(values, model.classes)


def _nbytes(bits: float, geometry: Geometry, rows: list[int]) -> int:
    return round(bits / 8 + EXPONENT_BYTES * (sum(rows) + geometry.out_channels)) + LAYER_BYTES


def _between(ladder: list[float], labels: list[Label], rungs: list[_Rung]) -> Iterator[tuple[float, int, Label]]:
    """The rungs and the half octaves between them."""
    for k, (step, rung) in enumerate(zip(ladder, rungs, strict=True)):
        yield from _labelled(labels, step, rung)
        if k + 1 < len(ladder):
            after = rungs[k + 1]
            losses = np.sqrt(np.maximum(rung.losses, 1e-300) * np.maximum(after.losses, 1e-300))
            sizes = np.round((rung.sizes + after.sizes) / 2).astype(int)
            yield from _labelled(labels, step * 2**0.5, _Rung(losses, sizes))


def _labelled(labels: list[Label], step: float, rung: _Rung) -> Iterator[tuple[float, int, Label]]:
    for label, loss, size in zip(labels, rung.losses, rung.sizes, strict=True):
        yield float(loss), int(size), label._replace(step=step)


def frontier(entries: list[tuple[float, int, Label]]) -> list[tuple[float, int, Label]]:
    """The first entry, and those that no other beats in both loss and bytes, by falling size."""
    best: list[tuple[float, int, Label]] = []
    for entry in sorted(entries[1:], key=lambda e: (e[1], e[0])):
        if not best or entry[0] < best[-1][0]:
            best.append(entry)
    return [entries[0], *reversed(best)]
