"""What integers of a fixed width add to a site's options: each width of the target's file, dense and in two factors.

    loss(form, bits) = loss of the form + ½ Σ_i g_i (ΔW A ΔWᵀ)_ii of its leaves' rounding

The floats stay on offer beside them, so one file mixes both by price; not where the file computes in integers, there
the layer as it is has them too. Bytes are those of the file, known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from smidgen.errors import Refusal
from smidgen.forms import ONE_SCALE, STATIC, LowRank, nbytes, widths
from smidgen.methods import Family, Rounding
from smidgen.planning.candidates import Label, Options
from smidgen.planning.metric import metric_of
from smidgen.planning.precision import Precision, dense_loss, frontier, low_rank_losses, no_rounding, whole_loss
from smidgen.site import Curvature


def with_widths(option: Options, curvature: Curvature, method: Rounding, target: str) -> Options:
    """The site's options with those of every width that the target's file holds.

    Args:
        option: from `gather`.
        curvature: of the site.
        method: how to round.
        target: one of `smidgen.forms.WIDTHS`.
    """
    reason = no_rounding(option.site, method)
    if reason is not None:
        return replace(option, refusals={**option.refusals, **reason})
    precision = Precision(option.site, metric_of(option.site, curvature), method, target in STATIC, target in ONE_SCALE)
    try:
        offered = widths(option.site.geometry, target)
        entries = [entry for bits in offered for entry in _entries(option, precision, target, bits)]
    except Refusal as refusal:
        return replace(option, refusals={**option.refusals, method.name: str(refusal)})
    floats = zip(option.losses.tolist(), option.sizes.tolist(), option.labels, strict=True)
    if target in STATIC:
        whole = next(e for e in reversed(entries) if e[2].method is None)  # of the most bits: the layer as it is
        kept = frontier([whole, *(e for e in entries if e[1] < whole[1])])
    else:
        kept = frontier([*floats, *(e for e in entries if e[1] < option.sizes[0])])
    return replace(
        option, precision=precision, worth=curvature.loss(precision.weight),
        losses=np.array([e[0] for e in kept]), sizes=np.array([e[1] for e in kept]), labels=tuple(e[2] for e in kept),
    )  # fmt: skip


def _entries(option: Options, precision: Precision, target: str, bits: int) -> Iterator[tuple[float, int, Label]]:
    geometry, leaf = option.site.geometry, precision.leaf(None, bits)
    whole = nbytes(option.outline(None, None), geometry, target, bits)
    yield dense_loss(precision, leaf)[0], whole, Label(None, None, None, bits)
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
            losses = [whole_loss(precision, precision.form(family.form(rank), None, bits)) for rank in ranks]
        for rank, loss in zip(ranks, losses, strict=False):
            yield loss, sizes[rank], Label(name, rank, None, bits)


def _at(family: Family, rank: int) -> float:
    return family.losses[family.ranks.index(rank)]
