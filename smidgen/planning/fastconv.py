"""Fast convolutions among the options of a plan: the layer's own weight, its products computed by fewer of them.

They lose nothing and take more bytes, so only a price on time ever chooses them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from smidgen.errors import Refusal
from smidgen.forms import Dense, hollow, nbytes
from smidgen.forms.fastconv import ALGORITHMS
from smidgen.methods import Family
from smidgen.model.fastconv import plan_site
from smidgen.planning.candidates import Label, Options
from smidgen.planning.pace import TOLERANCE
from smidgen.site import Site

NO_GAIN = "does not make the whole file faster"


def with_fast(options: Sequence[Options], names: Collection[str] = tuple(ALGORITHMS)) -> list[Options]:
    """Options with each algorithm that covers a layer, for targets whose file can hold its kernel.

    Args:
        options: of every site.
        names: the algorithms, of `ALGORITHMS`.

    Returns:
        Options whose families have one of rank 1 for each algorithm; what none covers is as it was.
    """
    return [_with_fast(option, names) for option in options]


def _with_fast(option: Options, names: Collection[str]) -> Options:
    families = {name: _family(option.site, name) for name in names if _covers(option.site, name)}
    if not families:
        return option
    return replace(
        option, families={**option.families, **families},
        losses=np.append(option.losses, np.zeros(len(families))),
        sizes=np.append(option.sizes, [nbytes(f.outline(1), option.site.geometry) for f in families.values()]),
        labels=(*option.labels, *(Label(name, 1) for name in families)),
    )  # fmt: skip


def _covers(site: Site, algorithm: str) -> bool:
    try:
        plan_site(site, algorithm)
    except Refusal:
        return False
    return True


def _family(site: Site, algorithm: str) -> Family:
    return Family(
        algorithm, (1,), (0.0,),
        build=lambda rank: Dense(site.weight, algorithm),
        outline=lambda rank: Dense(hollow(*site.weight.shape), algorithm),
    )  # fmt: skip


def fastest(options: Sequence[Options]) -> dict[str, tuple[str, float]]:
    """The fastest algorithm of each layer, and how many milliseconds it saves there, where it surely does.

    Args:
        options: with times.
    """
    found = {}
    for option in options:
        if option.times is None:
            continue
        fast = {label.method: float(option.times[i]) for i, label in enumerate(option.labels)
                if label.method in ALGORITHMS}  # fmt: skip
        best = min(fast, key=lambda name: fast[name], default=None)
        if best is not None and fast[best] * (1 + TOLERANCE) < option.times[0]:
            found[option.site.name] = (best, float(option.times[0]) - fast[best])
    return found


def keep_fast(options: Sequence[Options], kept: Mapping[str, str]) -> list[Options]:
    """Options without the algorithms that were found to gain nothing.

    Args:
        options: of every site.
        kept: the one algorithm that stays, by the layer's name.
    """
    return [_keep(option, kept.get(option.site.name)) for option in options]


def _keep(option: Options, kept: str | None) -> Options:
    gone = [i for i, label in enumerate(option.labels) if label.method in ALGORITHMS and label.method != kept]
    if not gone:
        return option
    places = [i for i in range(len(option.labels)) if i not in gone]
    names = [str(option.labels[i].method) for i in gone]
    return replace(
        option.only(places),
        families={name: family for name, family in option.families.items() if name not in names},
        refusals={**option.refusals, **{name: f"{name}: {NO_GAIN}" for name in names}},
    )  # fmt: skip
