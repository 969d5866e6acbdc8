"""Multiply-accumulates of every option, and the plan that keeps to so many of them.

They are counted, not measured: a plan has as many as its file, so the search needs no file to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from smidgen.forms import macs
from smidgen.planning.allocate import spend
from smidgen.planning.candidates import Options
from smidgen.planning.plan import Plan
from smidgen.planning.search import cheapest


def with_macs(options: Sequence[Options]) -> list[Options]:
    """Options with the multiply-accumulates of each form for one input.

    Args:
        options: of every site.
    """
    return [replace(option, macs=_counted(option)) for option in options]


def _counted(option: Options) -> np.ndarray:
    # Integers of a form are multiplied as often as its floats.
    each = {
        (method, rank): macs(option.outline(method, rank), option.site.geometry)
        for method, rank in dict.fromkeys((label.method, label.rank) for label in option.labels)
    }
    return np.array([each[label.method, label.rank] for label in option.labels], dtype=np.float64)


def each_macs(options: Sequence[Options], plan: Plan) -> list[float]:
    """Multiply-accumulates of each site.

    Args:
        options: from `with_macs`.
        plan: choices among them.
    """
    counted = []
    for option, choice in zip(options, plan.choices, strict=True):
        assert option.macs is not None
        counted.append(float(option.macs[option.place(choice.taken)]))
    return counted


def macs_of(options: Sequence[Options], plan: Plan) -> int:
    """Multiply-accumulates of a plan, all sites together."""
    return int(sum(each_macs(options, plan)))


def plan_within(plan_at: Callable[[float], Plan], options: Sequence[Options], most: float | int) -> Plan:
    """The plan at the lowest price of a multiply-accumulate that has no more than so many, what is left over spent.

    Args:
        plan_at: price of a multiply-accumulate → plan.
        options: from `with_macs`.
        most: multiply-accumulates of all sites together.

    Returns:
        The plan of the fewest where none has so few.
    """
    whole = sum(float(option.macs[0]) for option in options if option.macs is not None)
    middle = sum(option.worth for option in options) / max(whole, 1.0) or 1.0
    plan = cheapest(plan_at, lambda p: macs_of(options, p) <= most, middle)
    return spend(options, plan, max(0.0, most - macs_of(options, plan)), [option.macs for option in options])
