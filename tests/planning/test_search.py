"""The search for the price, on measurements made of simple arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.planning.plan import Choice, Plan
from smidgen.planning.search import Trial, search_drop, search_size

WEIGHTS = 1000


def plan_of(rank):
    return Plan((Choice("s", "svd", rank, float(WEIGHTS - rank), 40 * rank),), 0.0, "", {})


def plan_at(price):
    """Rank falls from 1000 to 1 as the price rises, a decade of ranks for four of the price."""
    if price == math.inf:
        return plan_of(1)
    return plan_of(max(1, min(WEIGHTS, round(WEIGHTS * 10 ** (-0.25 * max(0.0, math.log10(max(price, 1e-300)) + 6))))))


class Bench:
    """Realises plans: a file is the predicted bytes and a share and a constant; points rise as the rank falls."""

    def __init__(self, share=1.0, constant=0, points=lambda rank: 0.0, error=lambda rank: 0.0):
        self.share, self.constant, self.points, self.error, self.made = share, constant, points, error, []

    def __call__(self, plan):
        rank = plan.choices[0].rank
        self.made.append(rank)
        size = int(self.share * plan.nbytes) + self.constant
        return Trial(plan, size, self.points(rank), error=self.error(rank))


def spend_nothing(plan, spare):
    return plan


def spend_all(plan, spare):
    return plan_of(min(WEIGHTS, plan.choices[0].rank + max(0, spare) // 40))


@settings(max_examples=80, deadline=None)
@given(limit=st.integers(400, 60_000), share=st.floats(0.8, 1.3), constant=st.integers(0, 300))
def test_a_size_is_kept_and_nearly_used(limit, share, constant):
    bench = Bench(share, constant)
    outcome = search_size(plan_at, bench, limit, 1e-3, spend=spend_all)
    fits = [r for r in range(1, WEIGHTS + 1) if int(share * 40 * r) + constant <= limit]
    assert outcome.met == bool(fits)
    if fits:
        assert outcome.best.nbytes <= limit
        assert outcome.best.plan.choices[0].rank >= 0.85 * max(fits) - 2
    assert len(bench.made) == len(outcome.trials) <= 6
    assert len(set(bench.made)) == len(bench.made), "no plan is written twice"


def test_without_spending_the_price_alone_comes_near():
    outcome = search_size(plan_at, Bench(), 10_000, 1e-3, spend=spend_nothing)
    assert outcome.met
    assert 9_500 < outcome.best.nbytes <= 10_000


def test_where_the_gap_jumps_the_search_stays_between_the_files_on_both_sides():
    made = []

    def realise(plan):
        # What is written of larger plans is far nearer to what was predicted.
        made.append((plan.nbytes, plan.nbytes - (8_300 if plan.nbytes < 39_700 else 1_600)))
        return Trial(plan, made[-1][1], 0.0)

    outcome = search_size(plan_at, realise, 37_000, 1e-3, spend=spend_all)
    assert outcome.met
    assert len(made) == 5
    # The last gap alone would go to 45,300 and 38,600 by turns, and end at 30,300 bytes.
    assert 30_800 < outcome.best.nbytes <= 31_400


def test_room_for_everything_changes_nothing():
    outcome = search_size(plan_at, Bench(), 10**9, 1e-3, spend=spend_nothing)
    assert outcome.best.plan.choices[0].rank == WEIGHTS
    assert len(outcome.trials) == 1


def test_a_size_out_of_reach_ends_on_the_smallest():
    outcome = search_size(plan_at, Bench(constant=5000), 1000, 1e-3, spend=spend_nothing)
    assert not outcome.met
    assert outcome.best.nbytes == 5040
    assert "5040" in outcome.note
    assert "1000" in outcome.note


@settings(max_examples=80, deadline=None)
@given(threshold=st.integers(10, 990))
def test_a_drop_is_kept_by_nearly_the_smallest_file(threshold):
    bench = Bench(points=lambda rank: 0.0 if rank >= threshold else 10.0)
    outcome = search_drop(plan_at, bench, 0.5, 1e-3)
    assert outcome.met
    rank = outcome.best.plan.choices[0].rank
    assert rank >= threshold
    assert rank <= 1.25 * threshold + 2
    assert len(bench.made) == len(outcome.trials) <= 11
    assert len(set(bench.made)) == len(bench.made)


def test_noise_never_makes_it_keep_a_broken_promise():
    bench = Bench(points=lambda rank: (0.3 if rank > 300 else 0.9) + 0.25 * math.cos(rank))
    outcome = search_drop(plan_at, bench, 0.5, 1e-3)
    assert outcome.met
    assert outcome.best.points <= 0.5
    kept = [t for t in outcome.trials if t.points <= 0.5]
    assert outcome.best.nbytes == min(t.nbytes for t in kept)


def test_a_drop_just_at_the_limit_is_kept():
    bench = Bench(points=lambda rank: 0.1 + 0.2 if rank >= 100 else 9.0)
    assert search_drop(plan_at, bench, 0.3, 1e-3).met


def test_a_drop_out_of_reach_tells_the_closest():
    bench = Bench(points=lambda rank: 2.0 + (WEIGHTS - rank) / 100)
    outcome = search_drop(plan_at, bench, 0.5, 1e-3)
    assert not outcome.met
    assert outcome.best.points == pytest.approx(min(t.points for t in outcome.trials)) == pytest.approx(2.0)
    assert "2.00 points" in outcome.note
    assert "0.5" in outcome.note


@settings(max_examples=40, deadline=None)
@given(threshold=st.integers(50, 900), margin=st.floats(0.11, 5.0))
def test_a_promise_is_kept_with_one_standard_error_to_spare(threshold, margin):
    """0.4 points would be within 0.5, were it not for the error."""
    bench = Bench(
        points=lambda rank: 0.0 if rank >= threshold else 0.4, error=lambda rank: 0.0 if rank >= threshold else margin
    )
    outcome = search_drop(plan_at, bench, 0.5, 1e-3)
    assert outcome.met
    assert threshold <= outcome.best.plan.choices[0].rank <= 1.25 * threshold + 2


def test_an_error_within_the_budget_changes_nothing():
    bench = Bench(points=lambda rank: 0.3, error=lambda rank: 0.2)
    outcome = search_drop(plan_at, bench, 0.5, 1e-3)
    assert outcome.met
    assert outcome.best.plan.choices[0].rank == 1


def test_where_no_plan_is_certain_enough_the_surest_is_kept_and_the_note_says_how_sure():
    bench = Bench(points=lambda rank: 0.1, error=lambda rank: 2.0 + (WEIGHTS - rank) / 1000)
    outcome = search_drop(plan_at, bench, 0.5, 1e-3)
    assert not outcome.met
    assert outcome.best.plan.choices[0].rank == WEIGHTS
    assert outcome.note == "the closest loses 0.10 ± 2.00 points, allowed were 0.5"
