"""What integers, or indices, of a fixed width add to a site's options: each width, dense and in two factors.

    loss(form, bits) = loss of the form + ½ Σ_i g_i (ΔW A ΔWᵀ)_ii of its leaves' rounding

The floats stay on offer beside them, so one file mixes both by price; not where the file computes in integers, there
the layer as it is has them too. Bytes are those of the file, known beforehand; those of shared weights in an archive
are counted by the model that prices integers there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from smidgen.errors import Refusal
from smidgen.forms import ONE_SCALE, SHARED, STATIC, Codebook, Geometry, LowRank, dense, nbytes, shape, widths
from smidgen.methods import Family, Leaves, Sharing, prunings, roundings
from smidgen.planning.candidates import Label, Options, weights_only
from smidgen.planning.metric import metric_of
from smidgen.planning.precision import (
    LAYER_BYTES,
    Precision,
    coded_bits,
    dense_loss,
    frontier,
    low_rank_losses,
    no_rounding,
    whole_loss,
)
from smidgen.planning.rounding import round_form
from smidgen.site import Curvature, Site, Stored, grouped

# Of one value of a codebook in an archive: 1.5 to 2.5 for the weights of LeNet and ResNet-20 at 7 to 3 bits.
VALUE_BYTES = 1.8


def with_widths(option: Options, curvature: Curvature, method: Leaves, target: str) -> Options:
    """The site's options with those of every width that the target's file holds.

    Args:
        option: from `gather`.
        curvature: of the site.
        method: how to round, or to share.
        target: one of `smidgen.forms.WIDTHS`, or ``archive`` for what is shared.
    """
    reason = no_rounding(option.site, method)
    if reason is not None:
        return replace(option, refusals={**option.refusals, **reason})
    precision = Precision(option.site, metric_of(option.site, curvature), method, target in STATIC, target in ONE_SCALE)
    try:
        offered = widths_of(method, target, option.site.geometry)
        entries = [entry for bits in offered for entry in _entries(option, precision, target, bits)]
    except Refusal as refusal:
        return replace(option, refusals={**option.refusals, method.name: str(refusal)})
    floats = zip(option.losses.tolist(), option.sizes.tolist(), option.labels, strict=True)
    if target in STATIC:
        whole = next(e for e in reversed(entries) if e[2].method is None)  # of the most bits: the layer as it is
        # A pruned layer takes as many bytes: it is there because it was asked for.
        pruned = [e for e in entries if e[2].method in prunings()]
        kept = [whole, *pruned] if pruned else frontier([whole, *(e for e in entries if e[1] < whole[1])])
    else:
        kept = frontier([*floats, *(e for e in entries if e[1] < option.sizes[0])])
    return replace(
        option, precision=precision.rested(), worth=curvature.loss(precision.weight),
        losses=np.array([e[0] for e in kept]), sizes=np.array([e[1] for e in kept]), labels=tuple(e[2] for e in kept),
    )  # fmt: skip


def in_integers(site: Site, stored: Stored, target: str, curvature: Curvature | None = None) -> Stored:
    """A site that was planned in floats with integers of the target's greatest width, under its weights' own metric.

    For a file beside the one that the budget binds. A layer that cannot be rounded stays as it is.

    Args:
        site: the layer.
        stored: as realised, in floats.
        target: one of `smidgen.forms.WIDTHS` with integers.
        curvature: of the site, in the place of its weights' own metric.
    """
    return _in_leaves(
        site, stored, roundings()["gptq"], max(widths(site.geometry, target)), curvature, target in STATIC,
        target in ONE_SCALE,
    )  # fmt: skip


def in_shared_values(site: Site, stored: Stored, how: Sharing, bits: int, curvature: Curvature | None = None) -> Stored:
    """A site whose weights were moved since it was planned, with its values shared.

    Args:
        site: the layer.
        stored: as trained, in floats; what was pruned stays at zero.
        how: to share.
        bits: of an index.
        curvature: of the site, in the place of its weights' own metric.
    """
    return _in_leaves(site, stored, how, bits, curvature)


def _in_leaves(
    site: Site, stored: Stored, how: Leaves, bits: int, curvature: Curvature | None, static: bool = False,
    one_scale: bool = False,
) -> Stored:  # fmt: skip
    """Floats as integers or indices, or as they are where that is refused."""
    g = site.geometry
    if site.refusal is not None or no_rounding(site, how) is not None:
        return stored
    metric = metric_of(site, weights_only(site) if curvature is None else curvature)
    leaf = Precision(site, metric, how, static, one_scale).leaf(None, bits)
    values = torch.as_tensor(grouped(dense(stored.form), g.groups), dtype=torch.float64)
    try:
        return replace(stored, form=round_form(stored.form, values, g, metric, leaf, equal=static))
    except Refusal:
        return stored


def widths_of(method: Leaves, target: str, geometry: Geometry) -> tuple[int, ...]:
    """The widths to offer: one, where the user named it, else all of the file's."""
    asked = getattr(method.settings, "bits", 0)
    return (asked,) if asked else widths(geometry, SHARED[0] if target == "archive" else target)


def _entries(option: Options, precision: Precision, target: str, bits: int) -> Iterator[tuple[float, int, Label]]:
    if target == "archive":
        yield from _coded_entries(option, precision, bits)
        return
    geometry, leaf = option.site.geometry, precision.leaf(None, bits)
    whole = nbytes(option.outline(None, None), geometry, target, bits)
    pruned = prunings().keys() & option.families.keys()
    if not pruned or target in STATIC:
        yield dense_loss(precision, leaf)[0], whole, Label(None, None, None, bits)
    for name in pruned:
        rank = option.families[name].ranks[0]
        form = precision.form(option.families[name].form(rank), None, bits)
        yield whole_loss(precision, form), whole, Label(name, rank, None, bits)
    for name, family in option.families.items():
        sizes = {rank: nbytes(family.outline(rank), geometry, target, bits) for rank in family.ranks}
        ranks = [rank for rank in family.ranks if sizes[rank] < whole]
        if not ranks:
            continue
        form = family.form(ranks[-1])
        if isinstance(form, LowRank):
            # One rounding prices every rank: see `smidgen.planning.precision`.
            rounding = low_rank_losses(precision, form, leaf)[0] if form.core is None else None
            losses = [] if rounding is None else [_at(family, rank) + float(rounding[rank - 1]) for rank in ranks]
        else:
            losses = [whole_loss(precision, precision.one_of_many(family.form(rank), None, bits)) for rank in ranks]
        for rank, loss in zip(ranks, losses, strict=False):
            yield loss, sizes[rank], Label(name, rank, None, bits)


def _coded_entries(option: Options, precision: Precision, bits: int) -> Iterator[tuple[float, int, Label]]:
    """The same where indices are entropy-coded, so that their bytes are known once they are."""
    g, leaf = option.site.geometry, precision.leaf(None, bits)
    if pruned := prunings().keys() & option.families.keys():
        for name in pruned:
            rank = option.families[name].ranks[0]
            shared = precision.form(option.families[name].form(rank), None, bits)
            assert isinstance(shared, Codebook)
            size = _coded_nbytes(coded_bits(shared).sum(), shared)
            yield whole_loss(precision, shared), size, Label(name, rank, None, bits)
        return
    loss, form = dense_loss(precision, leaf)
    size = _coded_nbytes(g.out_channels / shape(form)[0] * coded_bits(form).sum(), form)
    yield loss, size, Label(None, None, None, bits)
    for name, family in option.families.items():
        most = family.form(family.ranks[-1])
        if not isinstance(most, LowRank) or most.core is not None:
            continue  # each rank of a longer chain is shared by itself, for little: see `pipeline.options.candidates`
        rounding, v, u = low_rank_losses(precision, most, leaf)
        each = coded_bits(v).reshape(g.groups, family.ranks[-1], -1).sum((0, 2))
        total = np.cumsum(each + coded_bits(u).reshape(g.out_channels, -1).sum(0))
        for rank in family.ranks:
            size = _coded_nbytes(total[rank - 1], v, u)
            yield _at(family, rank) + float(rounding[rank - 1]), size, Label(name, rank, None, bits)


def _coded_nbytes(bits: float, *leaves: object) -> int:
    values = sum(len(leaf.values) for leaf in leaves if isinstance(leaf, Codebook))
    return round(bits / 8 + VALUE_BYTES * values) + LAYER_BYTES * len(leaves)


def _at(family: Family, rank: int) -> float:
    return family.losses[family.ranks.index(rank)]
