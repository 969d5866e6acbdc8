"""Find the price λ at which what was measured on the written file meets the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from smidgen.planning.plan import Plan


@dataclass(frozen=True, eq=False)
class Trial:
    """One plan, carried out, written and measured.

    Args:
        plan: what was asked for.
        nbytes: size of the written file.
        points: points of the metric lost on the selection inputs, None where nothing was measured.
        carried: whatever the caller wants back with it (the realised network).
        error: one standard error of the points, paired; zero where no answer differs.
        latency_ms, speedup, speedup_error: time of one input and how many times faster than the original, measured in
            turns with it, with one standard error; None where time was not measured.
    """

    plan: Plan
    nbytes: int
    points: float | None
    carried: Any = None
    error: float = 0.0
    latency_ms: float | None = None
    speedup: float | None = None
    speedup_error: float = 0.0

    @property
    def cautious(self) -> float | None:
        """The points that a promise is held against: those measured and one standard error.

        >>> Trial(Plan((), 0.0, "", {}), 100, 0.4, error=0.2).cautious
        0.6000000000000001
        """
        return None if self.points is None else self.points + self.error


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where a search ended.

    Args:
        best: the trial kept.
        met: whether it meets the budget.
        trials: all trials, in the order they ran.
        note: how close it came when the budget was not met.
    """

    best: Trial
    met: bool
    trials: tuple[Trial, ...] = field(default_factory=tuple)
    note: str = ""


Realise = Callable[[Plan], Trial]
PlanAt = Callable[[float], Plan]
Spend = Callable[[Plan, int], Plan]

# λ spans this many powers of ten around the middle of the dial: below nothing is worth removing, above everything.
DECADES = 12


def search_size(
    plan_at: PlanAt, realise: Realise, limit: int, middle: float, *, spend: Spend, most_trials: int = 5
) -> Outcome:
    """The lowest price whose written file has at most ``limit`` bytes.

    Predicted bytes rank the plans; the gap between predicted and written is learned from each file written. Once one
    file was too large and one from a smaller plan was not, the next plan lies between the two: where the gap itself
    jumps, the last gap alone would lead from one side of the limit to the other for ever.

    Args:
        plan_at: price → plan.
        realise: carries a plan out, writes and measures it.
        limit: bytes.
        middle: a price in the middle of the useful range.
        spend: (plan, spare bytes) → a plan that uses them; see `smidgen.planning.allocate.spend`.
        most_trials: files written at most.
    """
    trials: list[Trial] = []
    for _ in range(most_trials):
        allowed = predicted_for(limit, [(t.plan.nbytes, t.nbytes) for t in trials])
        plan = cheapest(plan_at, lambda p: p.nbytes <= allowed, middle)  # noqa: B023 - used at once
        plan = spend(plan, allowed - plan.nbytes)
        if any(t.plan.key == plan.key for t in trials):
            break
        trials.append(realise(plan))
        if trials[-1].nbytes <= limit and limit - trials[-1].nbytes < 0.002 * limit:
            break
    fitting = [t for t in trials if t.nbytes <= limit]
    if fitting:
        return Outcome(max(fitting, key=lambda t: t.nbytes), True, tuple(trials))
    smallest = plan_at(math.inf)
    if all(t.plan.key != smallest.key for t in trials):
        trials.append(realise(smallest))
    best = min(trials, key=lambda t: t.nbytes)
    return Outcome(
        best,
        best.nbytes <= limit,
        tuple(trials),
        f"the smallest file found has {best.nbytes} bytes, asked were {limit}",
    )


def predicted_for(limit: int, found: Sequence[tuple[int, int]]) -> int:
    """Predicted bytes of the plan whose written file should have just as many as it may.

    Args:
        limit: bytes of the file, at most.
        found: predicted and written bytes of the files so far, in the order they were written.

    Returns:
        By a straight line between the nearest files on both sides of the limit, or by the last file's gap.

    >>> predicted_for(442, []), predicted_for(442, [(442, 359)]), predicted_for(442, [(442, 359), (525, 509)])
    (442, 525, 487)
    """
    small = max((each for each in found if each[1] <= limit), default=None)
    large = min((each for each in found if each[1] > limit), default=None)
    if small is not None and large is not None and small[0] < large[0]:
        (low, written), (high, too_many) = small, large
        return low + (limit - written) * (high - low) // (too_many - written)
    return limit - (found[-1][1] - found[-1][0]) if found else limit


def search_drop(
    plan_at: PlanAt, realise: Realise, most_points: float, middle: float, *, most_trials: int = 10
) -> Outcome:
    """The smallest written file whose loss on the selection inputs and one standard error are at most ``most_points``.

    Of several trials near the limit the luckiest would win, and break the promise on other inputs: the error is the
    margin against that. A plan that changes no answer has none, so the network as it is always keeps the promise.

    Bisection over the logarithm of the price; loss rises with it but for noise, so the smallest file among all trials
    that keep the promise wins.

    Args:
        plan_at: price → plan.
        realise: carries a plan out, writes and measures it.
        most_points: percentage points of the metric.
        middle: a price in the middle of the useful range.
        most_trials: files written at most.
    """
    done: dict[Any, Trial] = {}

    def trial(exponent: float) -> Trial:
        plan = plan_at(middle * 10**exponent)
        if plan.key not in done:
            done[plan.key] = realise(plan)
        return done[plan.key]

    low, high = -DECADES / 2, DECADES / 2
    smallest = plan_at(math.inf)
    done[smallest.key] = realise(smallest)
    if keeps(done[smallest.key], most_points):
        low = high
    for _ in range(4 * most_trials):
        if len(done) >= most_trials or high - low < 0.005:
            break
        exponent = (low + high) / 2
        if keeps(trial(exponent), most_points):
            low = exponent
        else:
            high = exponent
    kept = [t for t in done.values() if keeps(t, most_points)]
    if not kept:
        kept = [t for t in [trial(-4.0 * DECADES)] if keeps(t, most_points)]
    if kept:
        return Outcome(min(kept, key=lambda t: t.nbytes), True, tuple(done.values()))
    best = min(done.values(), key=lambda t: (math.inf if t.cautious is None else t.cautious, t.nbytes))
    margin = f" ± {best.error:.2f}" if best.error else ""
    note = f"the closest loses {best.points:.2f}{margin} points, allowed were {most_points:g}"
    return Outcome(best, False, tuple(done.values()), note)


def keeps(trial: Trial, most_points: float) -> bool:
    """Whether a trial loses no more points than may be lost."""
    # A hair of slack for the floating-point sum that turns counts into points.
    return trial.cautious is not None and trial.cautious <= most_points + 1e-9


def cheapest(plan_at: PlanAt, fits: Callable[[Plan], bool], middle: float) -> Plan:
    """The plan at the lowest price that fits; the smallest plan when none does."""
    low, high = -2.0 * DECADES, 2.0 * DECADES
    first = plan_at(middle * 10**low)
    if fits(first):
        return first
    best = plan_at(math.inf)
    for _ in range(60):
        exponent = (low + high) / 2
        plan = plan_at(middle * 10**exponent)
        if fits(plan):
            best, high = plan, exponent
        else:
            low = exponent
    return best
