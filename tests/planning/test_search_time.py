"""The search for the price of time, on files whose time is simple arithmetic."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.planning.plan import Choice, Plan
from smidgen.planning.search import Trial
from smidgen.planning.search_time import search_time

MOST = 1000  # the rank of the layer as it is, which takes 1 ms


def plan_of(rank):
    return Plan((Choice("s", "svd", rank, float(MOST - rank), 40 * rank),), 0.0, "", {})


def plan_at(price):
    if price == math.inf:
        return plan_of(1)
    return plan_of(max(1, min(MOST, round(MOST * 10 ** (-0.25 * max(0.0, math.log10(max(price, 1e-300)) + 6))))))


def predicted_ms(plan):
    return plan.choices[0].rank / MOST


class Bench:
    """Measures plans: a file takes its predicted time, a share of it and a constant, and noise."""

    def __init__(self, slope=1.0, constant=0.0, error=0.0, noise=lambda rank: 0.0):
        self.slope, self.constant, self.error, self.noise, self.made = slope, constant, error, noise, []

    def ms(self, rank):
        return max(1e-3, self.slope * rank / MOST + self.constant + self.noise(rank))

    def __call__(self, plan):
        rank = plan.choices[0].rank
        self.made.append(rank)
        ms = self.ms(rank)
        return Trial(plan, 40 * rank, None, latency_ms=ms, speedup=1 / ms, speedup_error=self.error / ms)


def search(bench, asked):
    return search_time(
        plan_at, bench, lambda t: asked / t.speedup, lambda p: asked * predicted_ms(p), 1e-3, asked=f"{asked:g} times"
    )


@settings(max_examples=100, deadline=None)
@given(asked=st.floats(1.1, 20), slope=st.floats(0.6, 1.5), constant=st.floats(-0.05, 0.02))
def test_a_time_is_kept_and_nearly_used(asked, slope, constant):
    bench = Bench(slope, constant)
    outcome = search(bench, asked)
    fits = [r for r in range(1, MOST + 1) if asked * bench.ms(r) <= 1]
    assert outcome.met == bool(fits)
    assert len(set(bench.made)) == len(bench.made) == len(outcome.trials) <= 7, "no plan is written twice"
    if fits:
        assert outcome.best.speedup >= asked
        assert outcome.best.plan.choices[0].rank >= 0.8 * max(fits) - 30


@settings(max_examples=100, deadline=None)
@given(asked=st.floats(1.1, 5), error=st.floats(0.0, 0.05), seed=st.integers(0, 99))
def test_noise_never_makes_it_keep_what_did_not_measure_fast_enough(asked, error, seed):
    bench = Bench(error=error, noise=lambda rank: 0.04 * math.cos(rank * 7 + seed))
    outcome = search(bench, asked)
    assert len(outcome.trials) <= 7
    kept = [t for t in outcome.trials if asked / t.speedup * (1 + t.speedup_error / t.speedup) <= 1]
    assert outcome.met == bool(kept)
    if kept:
        assert outcome.best.plan.loss == min(t.plan.loss for t in kept)


def test_a_time_that_the_network_keeps_already_changes_nothing():
    outcome = search_time(
        plan_at, Bench(), lambda t: t.latency_ms / 5, lambda p: predicted_ms(p) / 5, 1e-3, asked="5 ms"
    )
    assert outcome.met
    assert outcome.best.plan.choices[0].rank == MOST
    assert len(outcome.trials) == 1


def test_a_time_out_of_reach_ends_on_the_fastest_and_tells_it():
    outcome = search(Bench(constant=0.5), 3.0)
    assert not outcome.met
    assert outcome.best.latency_ms == min(t.latency_ms for t in outcome.trials)
    assert outcome.note.startswith("the fastest file found takes 0.501 ms, 2.00 ± 0.00 times faster")
    assert outcome.note.endswith("asked was 3 times")


def test_what_is_left_over_is_spent():
    def spend(plan, spare):
        return plan_of(min(MOST, plan.choices[0].rank + max(0, round(spare * MOST / 2))))

    coarse = lambda price: plan_of(MOST if price < 1 else 100)  # noqa: E731 - one step from everything to a tenth
    outcome = search_time(
        coarse, Bench(), lambda t: 2 / t.speedup, lambda p: 2 * predicted_ms(p), 1e-3, asked="2 times", spend=spend
    )
    assert outcome.met
    assert 450 < outcome.best.plan.choices[0].rank <= 500


def test_where_no_plan_is_predicted_to_be_fast_enough_the_fastest_is_tried():
    outcome = search(Bench(), 2000.0)
    assert outcome.trials[0].plan.choices[0].rank == 1
    assert not outcome.met
