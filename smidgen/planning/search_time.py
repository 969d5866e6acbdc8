"""Find the price ν of a millisecond at which the written file is measured to be as fast as was asked."""

from __future__ import annotations

import math
from collections.abc import Callable

from smidgen.planning.plan import Plan
from smidgen.planning.search import Outcome, PlanAt, Realise, Trial, cheapest

# Files are aimed a little below the limit: a file measured again differs by about so much on a machine with neighbours.
SPARE = 0.02
NEAR = 0.04  # of the limit left over is near enough: one more file would be within what the clock tells apart


def search_time(
    plan_at: PlanAt,
    realise: Realise,
    share: Callable[[Trial], float],
    predicted: Callable[[Plan], float],
    middle: float,
    *,
    asked: str,
    spend: Callable[[Plan, float], Plan] = lambda plan, spare: plan,
    most_trials: int = 6,
) -> Outcome:
    """The lowest price of time whose written file is measured to keep to the limit.

    Predicted times rank the plans; the gap between predicted and measured is learned from each file written. A file
    keeps to the limit where it does so with one standard error of its measurement to spare.

    Args:
        plan_at: price of a millisecond → plan.
        realise: carries a plan out, writes and measures it.
        share: a measured trial's time as a share of the limit, at most 1 where it is kept.
        predicted: the same of a plan, from its layers' times.
        middle: a price in the middle of the useful range.
        spend: (plan, spare share) → a plan that uses it; see `smidgen.planning.pace.spend_ms`.
        asked: the limit in words, for the note where it cannot be kept.
        most_trials: files written at most.
    """
    trials: list[Trial] = []
    while len(trials) < most_trials:
        aim = _aim([(predicted(t.plan), _cautious(t, share)) for t in trials])
        plan = cheapest(plan_at, lambda p: predicted(p) <= aim, middle)  # noqa: B023 - used at once
        plan = spend(plan, aim - predicted(plan))
        if any(t.plan.key == plan.key for t in trials):
            break
        trials.append(realise(plan))
        if 1 - NEAR < _cautious(trials[-1], share) <= 1:
            break
    if not any(_cautious(t, share) <= 1 for t in trials):
        fastest = plan_at(math.inf)
        if all(t.plan.key != fastest.key for t in trials):
            trials.append(realise(fastest))
    kept = [t for t in trials if _cautious(t, share) <= 1]
    if kept:
        return Outcome(min(kept, key=lambda t: t.plan.loss), True, tuple(trials))
    best = min(trials, key=share)
    return Outcome(best, False, tuple(trials), f"the fastest file found {told(best)}, asked was {asked}")


def _aim(seen: list[tuple[float, float]]) -> float:
    """The predicted share that should measure just within the limit.

    Between the slowest plan that kept the limit and the next slower one on the line through both; with plans on one
    side only, by the gap of the one that came nearest.

    Args:
        seen: (predicted, measured) shares.

    >>> _aim([]), _aim([(0.9, 1.1)]), round(_aim([(0.9, 1.08), (0.7, 0.78)]), 3)
    (0.98, 0.78, 0.833)
    """
    if not seen:
        return 1 - SPARE
    kept, missed = [s for s in seen if s[1] <= 1], [s for s in seen if s[1] > 1]
    low = max(kept, default=None)
    high = min((s for s in missed if low is None or s[0] > low[0]), default=None)
    if low is None or high is None:
        predicted, measured = min(seen, key=lambda s: abs(s[1] - 1))
        return round(predicted + (1 - SPARE) - measured, 12)
    along = (1 - SPARE - low[1]) / (high[1] - low[1])
    return low[0] + min(max(along, 0.1), 0.9) * (high[0] - low[0])


def told(trial: Trial) -> str:
    """What was measured of a trial's time, in words.

    >>> told(Trial(Plan((), 0.0, "", {}), 100, None, latency_ms=0.3141, speedup=1.5, speedup_error=0.02))
    'takes 0.314 ms, 1.50 ± 0.02 times faster than the original'
    """
    assert trial.latency_ms is not None
    assert trial.speedup is not None
    times = f"{trial.speedup:.2f} ± {trial.speedup_error:.2f} times faster"
    return f"takes {trial.latency_ms:.3g} ms, {times} than the original"


def _cautious(trial: Trial, share: Callable[[Trial], float]) -> float:
    """The share with one standard error of the measurement added."""
    assert trial.speedup is not None
    return share(trial) * (1 + trial.speedup_error / trial.speedup)
