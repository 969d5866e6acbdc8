"""A front: plans of many sizes from the same options, and what the measured points say together.

Each plan of the ladder is the one at the lowest price λ whose predicted bytes fit its rung, with what is left over
spent. A single method's curve stands on the rungs of the joint plan, so both are compared at equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, inf, log
from typing import Any

import numpy as np

from smidgen.methods import AnyMethod
from smidgen.planning.allocate import allocate, price_of_tradeoff, spend
from smidgen.planning.candidates import Options
from smidgen.planning.plan import Plan
from smidgen.planning.search import cheapest

# The ends of the dial between which calibrated networks go from their own answers to others: ResNet-20 loses 0.1 points
# at 0.2; SqueezeNet answers from 0.15 to 0.35 of it; LeNet in factors gives a quarter of its answers at 0.5.
MILD, HARSH = 0.15, 0.5
JOINT = "joint"
ALIKE = 0.02  # of their bytes, by which files of plans of one size differ

Place = tuple[float | int, float | int]  # bytes and score


def single_curves(options: Sequence[Options]) -> dict[str, list[Options]]:
    """The options of each method alone, those of its own forms in floats; of a rounding, those with no other structure.

    Args:
        options: of every site, all methods together.

    Returns:
        Options by method name; methods that offer nothing are left out, and where there is one method alone it has no
        curve beside the joint one.
    """
    methods = dict.fromkeys(label.method for option in options for label in option.labels if label.method is not None)
    found = {method: [_only(option, _plain(method)) for option in options] for method in methods}
    roundings = dict.fromkeys(_rounding(option) for option in options if option.precision is not None)
    for name in roundings:
        found[name] = [_only(option, lambda label: label.method is None) for option in options]
    found = {name: each for name, each in found.items() if any(len(option.labels) > 1 for option in each)}
    return found if len(found) > 1 else {}


def _plain(method: str) -> Any:
    return lambda label: label.method == method and label.step is None and label.bits is None


def _rounding(option: Options) -> str:
    assert option.precision is not None
    return option.precision.method.name


def _only(option: Options, wanted: Any) -> Options:
    kept = [i for i, label in enumerate(option.labels) if i == 0 or wanted(label)]
    return option.only(kept)


def rungs(options: Sequence[Options], chosen: Mapping[str, AnyMethod], count: int) -> list[int]:
    """Bytes of all sites together at which plans are made: equal steps of their logarithm.

    Args:
        options: of every site.
        chosen: the methods they came from.
        count: how many.

    Returns:
        Falling bytes, between what a mild and what a harsh price leave.
    """
    high, low = (
        max(1, allocate(options, price_of_tradeoff(dial, options), chosen).nbytes) for dial in (MILD, HARSH)
    )  # fmt: skip
    if high <= low:  # one step of the dial does all there is to do
        high, low = (max(1, allocate(options, price, chosen).nbytes) for price in (0.0, inf))
    if count < 2 or high <= low:
        return [high]
    steps = np.linspace(log(high), log(low), count)
    return [high, *(round(exp(float(step))) for step in steps[1:-1]), low]


def plans_at(options: Sequence[Options], chosen: Mapping[str, AnyMethod], sizes: Sequence[int]) -> list[Plan]:
    """The plan of each size; sizes that the options do not reach, and plans met before, are left out.

    Args:
        options: of every site, or of one method alone.
        chosen: the methods they came from.
        sizes: bytes of all sites together.
    """
    middle = price_of_tradeoff(0.5, options) or 1.0
    found: dict[Any, Plan] = {}
    for size in sizes:
        plan = cheapest(lambda price: allocate(options, price, chosen), lambda p: p.nbytes <= size, middle)  # noqa: B023
        if plan.nbytes <= size:
            plan = spend(options, plan, size - plan.nbytes)
            found.setdefault(plan.key, plan)
    return list(found.values())


def halving(count: int) -> list[int]:
    """Places 0 … count − 1, ends first, then the middle of each gap: stopped early, a curve is whole but coarse.

    >>> halving(7)
    [0, 6, 3, 1, 4, 2, 5]
    """
    order, gaps = [0, count - 1][: max(count, 0)], [(0, count - 1)]
    while gaps:
        low, high = gaps.pop(0)
        middle = (low + high) // 2
        if low < middle < high:
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return order


def front(points: Sequence[Place]) -> list[int]:
    """Places of the points that no other one undercuts in bytes without scoring less, by falling bytes.

    Args:
        points: (bytes, score), a higher score being better.

    >>> front([(100, 0.9), (50, 0.8), (60, 0.7), (40, 0.8)])
    [0, 3]
    """
    found: list[int] = []
    best = -np.inf
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[place][1] > best:
            best = points[place][1]
            found.append(place)
    return found[::-1]


def measured_joint(points: Sequence[tuple[float | int, float, float, bool]]) -> dict[int, int]:
    """Where a plan of a single method measured better than the joint plan of as many bytes, which is free to be that.

    A joint plan is the best by losses that are added up over the layers; far beyond what a network can spare that sum
    is wrong, and measurement decides.

    Args:
        points: (bytes, score, one standard error of the score, whether the plan is a joint one).

    Returns:
        The place of the single method's point by that of the joint point whose place it takes: the best one, where
        it is better by more than the errors of both.

    >>> measured_joint([(1000, 0.7, 0.01, True), (995, 0.8, 0.01, False), (990, 0.75, 0.01, False)])
    {0: 1}
    """
    single = [(i, *point) for i, (*point, joint) in enumerate(points) if not joint]
    found = {}
    for place, (nbytes, score, error, joint) in enumerate(points):
        beside = [
            i for i, size, other, wide in single
            if abs(size - nbytes) <= ALIKE * nbytes and other - score > wide + error
        ]  # fmt: skip
        if joint and beside:
            found[place] = max(beside, key=lambda i: points[i][1])
    return found


def knee(points: Sequence[Place]) -> int:
    """The place where a front bends most: the farthest above the line between its ends, over the logarithm of bytes.

    (The difference curve of Kneedle, Satopää et al. 2011, doi:10.1109/ICDCSW.2011.20.)

    Args:
        points: (bytes, score) of a front, at least one. One that another exceeds by a few bytes does not count: as an
            end it would make that other one a knee.

    >>> knee([(1000, 0.9), (100, 0.89), (90, 0.3), (50, 0.1)]), knee([(1000, 0.9), (500, 0.89), (100, 0.3), (99, 0.1)])
    (1, 1)
    """
    kept = [i for i, (size, score) in enumerate(points)
            if not any(size < more <= (1 + ALIKE) * size and better > score for more, better in points)]  # fmt: skip
    if len(kept) < len(points):
        return kept[knee([points[i] for i in kept])]
    x, y = np.log([max(1.0, point[0]) for point in points]), np.array([point[1] for point in points], dtype=float)
    width, height = float(np.ptp(x)), float(np.ptp(y))
    if width <= 0 or height <= 0:
        return int(np.argmin(x))
    above = (y - y.min()) / height - (x - x.min()) / width
    return int(np.argmax(above))


def score_at(points: Sequence[Place], nbytes: float | int) -> float | None:
    """A curve's score at so many bytes, on the line between its neighbours over the logarithm of bytes.

    Args:
        points: (bytes, score).
        nbytes: where.

    Returns:
        None beyond the curve's ends.

    >>> score_at([(100, 0.9), (10_000, 1.0)], 1000)
    0.95
    """
    ordered = sorted(points)
    if not ordered or not ordered[0][0] <= nbytes <= ordered[-1][0]:
        return None
    return round(float(np.interp(log(nbytes), [log(p[0]) for p in ordered], [p[1] for p in ordered])), 12)
