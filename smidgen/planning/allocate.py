"""One price over all sites: each takes the option that minimises ``Δloss + λ · bytes + ν · ms + μ · MACs``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from math import inf

import numpy as np

from smidgen.methods import AnyMethod
from smidgen.planning.candidates import Label, Options
from smidgen.planning.plan import Choice, Plan, fingerprint

Amounts = Sequence[np.ndarray | None]

# The dial permits losing the share t^6 of what the network is worth: 0.1 stands for 0.000001 of it, 0.5 for 0.016. The
# power lets most of the dial cover the range in which networks still answer (SqueezeNet calibrated: 0.15 to 0.35;
# GenderNet without data: 0.45 to 0.85).
DIAL = 6.0


def price_of_tradeoff(tradeoff: float, options: Sequence[Options]) -> float:
    """The price λ that a position of the trade-off dial stands for: one rising formula for every network.

    The highest λ at which the predicted loss of the whole plan is at most ``t⁶ · D``, D the predicted loss of losing
    every weight that a method may touch. So 0 keeps everything, 1 only cares for size, and bytes never rise with t.

    Args:
        tradeoff: t in [0, 1].
        options: of every site.

    Returns:
        λ, loss per byte; infinity for 1.
    """
    if tradeoff >= 1:
        return inf
    allowed = tradeoff**DIAL * sum(option.worth for option in options)
    price = max((price for price, loss in staircase(options) if loss <= allowed), default=0.0)
    return price * (1 + 1e-9)  # just past the step, whatever rounding makes of the tie


def staircase(options: Sequence[Options]) -> list[tuple[float, float]]:
    """Every price at which the plan changes, rising, and the predicted loss from that price on."""
    steps = sorted(step for option in options for step in _steps(option))
    total, result = 0.0, [(0.0, 0.0)]
    for price, rise in steps:
        total += rise
        if price <= result[-1][0] * (1 + 1e-9):
            result[-1] = (result[-1][0], total)  # two sites change at one price: neither changes alone
        else:
            result.append((price, total))
    return result


def _steps(option: Options) -> list[tuple[float, float]]:
    """Prices at which one site changes its choice and how much its loss rises there: its lower convex hull."""
    order = np.lexsort((option.losses, -option.sizes))
    hull: list[int] = []
    for i in order.tolist():
        while hull and option.losses[i] <= option.losses[hull[-1]]:
            hull.pop()  # smaller and no worse
        while len(hull) > 1 and _slope(option, hull[-1], i) <= _slope(option, hull[-2], hull[-1]):
            hull.pop()
        if not hull or option.sizes[i] < option.sizes[hull[-1]]:
            hull.append(i)
    return [(_slope(option, a, b), float(option.losses[b] - option.losses[a])) for a, b in pairwise(hull)]


def _slope(option: Options, a: int, b: int) -> float:
    """Loss per byte saved in going from option a to the smaller option b."""
    saved = int(option.sizes[a]) - int(option.sizes[b])
    return float(option.losses[b] - option.losses[a]) / saved if saved > 0 else inf


def allocate(
    options: Sequence[Options], price: float, methods: Mapping[str, AnyMethod], price_ms: float = 0.0,
    price_mac: float = 0.0,
) -> Plan:  # fmt: skip
    """The plan at a price of bytes, one of time and one of multiply-accumulates.

    Args:
        options: of every site.
        price: λ, loss per byte; infinity asks for the fewest bytes.
        methods: those the options came from; their settings go into the plan.
        price_ms: ν, loss per millisecond; infinity asks for the least time. Sites that were not timed pay nothing.
        price_mac: μ, loss per multiply-accumulate; infinity asks for the fewest. For options that have them counted.

    Returns:
        A plan; at a higher price of one kind, the other being the same, it never has more of that kind.
    """
    best = []
    for option in options:
        # Ties go to the smaller form, then to the smaller loss.
        order = np.lexsort((option.losses, option.sizes, _cost(option, price, price_ms, price_mac)))
        best.append(int(order[0]))
    settings = {name: asdict(method.settings) for name, method in methods.items()}
    choices = tuple(choice_of(option, i) for option, i in zip(options, best, strict=True))
    return Plan(choices, price, fingerprint([o.site for o in options]), settings, price_ms=price_ms,
                price_mac=price_mac)  # fmt: skip


def _cost(option: Options, price: float, price_ms: float, price_mac: float) -> np.ndarray:
    """What is least in the option that is taken."""
    if price == inf:
        return 0.0 * option.losses  # the fewest bytes: they decide among equals
    cost = option.losses + price * option.sizes
    for each, amounts in ((price_ms, option.times), (price_mac, option.macs)):
        amounts = np.zeros(len(cost)) if amounts is None else amounts
        if each == inf:
            return amounts
        cost = cost + each * amounts
    return cost


def spend(
    options: Sequence[Options], plan: Plan, spare: float | int, amounts: Amounts | None = None, most: int | None = None
) -> Plan:
    """The plan with what is left over spent where it buys the most.

    One price meets a budget only as closely as the steps between options allow, and layers alike step together; this
    fills the gap, one site at a time, by the largest fall of the loss for what is spent.

    Args:
        options: of every site.
        plan: from `allocate`.
        spare: what may be added, in the unit of the amounts.
        amounts: what each option of each site takes, None for a site that cannot spend; bytes when None. Where it is
            not bytes, those are paid for at the plan's price.
        most: bytes that may be added, where something else is spent; None for any.

    Returns:
        A plan with at most ``spare`` more that is no worse: of no more loss, the price of its bytes included where
        something else is spent.
    """
    bought = [option.losses if amounts is None else _cost(option, plan.price, 0.0, 0.0) for option in options]
    amounts = amounts or [option.sizes for option in options]
    current = [o.place(c.taken) for o, c in zip(options, plan.choices, strict=True)]
    while True:
        steps = [
            (gain, extra, site, i)
            for site, (option, takes) in enumerate(zip(options, amounts, strict=True))
            if takes is not None
            for gain, extra, i in _upgrades(bought[site], takes, current[site], spare)
            if most is None or option.sizes[i] - option.sizes[current[site]] <= most
        ]
        if not steps:
            break
        _, extra, site, i = max(steps)
        most = None if most is None else most - int(options[site].sizes[i] - options[site].sizes[current[site]])
        current[site], spare = i, spare - extra
    return replace(plan, choices=tuple(choice_of(o, i) for o, i in zip(options, current, strict=True)))


def _upgrades(cost: np.ndarray, takes: np.ndarray, now: int, spare: float | int) -> list[tuple[float, float, int]]:
    """(fall of the cost a unit, extra units, option) of everything that takes more, is better and fits."""
    extra, fall = takes - takes[now], cost[now] - cost
    fits = np.flatnonzero((extra > 0) & (extra <= spare) & (fall > 0))
    return [(float(fall[i] / extra[i]), float(extra[i]), int(i)) for i in fits]


def choice_of(option: Options, i: int) -> Choice:
    """The choice of a site's option number i."""
    label = option.labels[i]
    reason = _reason(option) if label == Label(None, None) else None
    return Choice(
        option.site.name, label.method, label.rank, float(option.losses[i]), int(option.sizes[i]), reason,
        label.step, label.bits,
    )  # fmt: skip


def _reason(option: Options) -> str:
    if option.site.refusal is not None:
        return option.site.refusal
    if len(option.labels) > 1:
        return "dense is best at this price"
    return "; ".join(dict.fromkeys(option.refusals.values())) or "no method was asked"
