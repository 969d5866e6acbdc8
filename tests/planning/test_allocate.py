"""One price over all sites: the plan is the minimum, and bytes fall as the price rises."""

from __future__ import annotations

import itertools
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.forms import Geometry
from smidgen.planning.allocate import allocate, price_of_tradeoff, spend, staircase
from smidgen.planning.candidates import Label, Options
from smidgen.site import Site

# An option table: (bytes, loss) of what a site could become, the first being the layer as it is, without loss.
ENTRY = st.tuples(st.integers(1, 4000), st.integers(0, 10**6).map(lambda n: n / 10**5))
TABLE = st.lists(ENTRY, max_size=8)
TABLES = st.lists(TABLE, min_size=1, max_size=4)


def options(tables):
    result = []
    for k, table in enumerate(tables):
        site = Site(f"s{k}", Geometry("linear", 2, 2), np.ones((2, 2), "f4"))
        labels = (Label(None, None), *(Label("svd", i + 1) for i in range(len(table))))
        losses, sizes = np.array([0.0, *(e[1] for e in table)]), np.array([4001, *(e[0] for e in table)])
        result.append(Options(site, {}, losses, sizes, labels, worth=float(losses.max(initial=0.0))))
    return result


def best(tables, price):
    """The minimum of loss + price · bytes over every combination of options."""
    return min(
        sum(o.losses[i] + price * o.sizes[i] for o, i in zip(opts, combination, strict=True))
        for opts in [options(tables)]
        for combination in itertools.product(*(range(len(o.sizes)) for o in opts))
    )


@settings(max_examples=60, deadline=None)
@given(tables=st.lists(st.lists(ENTRY, max_size=4), min_size=1, max_size=3), price=st.integers(0, 10**5))
def test_the_plan_is_the_minimum_over_all_combinations(tables, price):
    price = price / 10**6
    plan = allocate(options(tables), price, {})
    assert plan.loss + price * plan.nbytes == pytest.approx(best(tables, price), rel=1e-12, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(tables=TABLES, prices=st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_bytes_never_rise_with_the_price(tables, prices):
    opts = options(tables)
    plans = [allocate(opts, price, {}) for price in [*sorted(prices), inf]]
    assert all(a.nbytes >= b.nbytes for a, b in itertools.pairwise(plans))
    assert all(a.loss <= b.loss + 1e-9 for a, b in itertools.pairwise(plans[:-1]))


@settings(max_examples=100, deadline=None)
@given(tables=TABLES, dial=st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_bytes_never_rise_with_the_dial(tables, dial):
    opts = options(tables)
    prices = [price_of_tradeoff(t, opts) for t in [0.0, *sorted(dial), 1.0]]
    assert prices == sorted(prices)
    sizes = [allocate(opts, price, {}).nbytes for price in prices]
    assert sizes == sorted(sizes, reverse=True)


@settings(max_examples=100, deadline=None)
@given(tables=TABLES)
def test_the_ends_of_the_dial(tables):
    opts = options(tables)
    assert allocate(opts, price_of_tradeoff(0.0, opts), {}).loss == 0
    assert price_of_tradeoff(1.0, opts) == inf
    assert allocate(opts, inf, {}).nbytes == sum(int(o.sizes.min()) for o in opts)


@settings(max_examples=100, deadline=None)
@given(tables=TABLES, dial=st.floats(0.05, 0.99))
def test_the_dial_never_permits_more_than_its_share(tables, dial):
    """But where two steps have one price, which are taken together."""
    opts = options(tables)
    steps = [price for price, _ in staircase(opts)][1:]
    if any(b <= a * (1 + 1e-8) for a, b in itertools.pairwise(steps)):
        return
    plan = allocate(opts, price_of_tradeoff(dial, opts), {})
    assert plan.loss <= dial**6 * sum(o.worth for o in opts) * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(tables=TABLES)
def test_the_staircase_is_where_plans_change(tables):
    opts = options(tables)
    stairs = staircase(opts)
    assert [p for p, _ in stairs] == sorted(p for p, _ in stairs)
    for (price, loss), after in zip(stairs, [*(p for p, _ in stairs[1:]), inf], strict=True):
        if after > price * (1 + 1e-6) and after > 0:  # else the next step is taken with this one
            between = price + 1.0 if after == inf else (price + after) / 2
            plan = allocate(opts, between, {})
            assert plan.loss == pytest.approx(loss, rel=1e-9, abs=1e-9)
    keys = {allocate(opts, p * (1 + s), {}).key for p, _ in stairs[1:] for s in (-1e-7, 1e-7)}
    assert len(keys) <= len(stairs)


def test_the_highest_price_within_the_share_is_taken():
    opts = options([[(3000, 0.01), (1000, 1.0)], [(2000, 0.1), (1, 5.0)]])
    # Worth 6: at t = 0.6 the share is 0.28, so the steps of 0.01 and 0.1 are taken, those of 0.99 and 4.9 are not.
    assert allocate(opts, price_of_tradeoff(0.6, opts), {}).key == (("svd", 1, None, None), ("svd", 1, None, None))


def test_ties_go_to_the_smaller_then_to_the_better():
    opts = options([[(3000, 0.0), (3000, 0.0), (2000, 0.0)]])
    assert allocate(opts, 0.0, {}).key == (("svd", 3, None, None),)
    assert allocate(options([[(5, 2.0), (5, 1.0)]]), inf, {}).key == (("svd", 2, None, None),)


def test_two_equal_steps_are_one_step_of_the_dial():
    """Two layers alike change at one price: both or none, and the plan's loss shows it."""
    opts = options([[(1, 1.0)], [(1, 1.0)]])
    prices = {price for price, _ in staircase(opts)}
    assert len(prices) == 2
    assert allocate(opts, max(prices) * (1 + 1e-9), {}).loss == 2.0


def test_two_equal_steps_keep_to_the_share():
    opts = options([[(1, 1.0)], [(1, 1.0)]])
    t = (1.5 / 2) ** 0.2  # a share of 1.5: one step fits, two do not
    assert allocate(opts, price_of_tradeoff(t, opts), {}).loss <= 1.5


@settings(max_examples=100, deadline=None)
@given(tables=TABLES, price=st.floats(0, 10), spare=st.integers(0, 5000))
def test_spending_what_is_left_over(tables, price, spare):
    opts = options(tables)
    plan = allocate(opts, price, {})
    richer = spend(opts, plan, spare)
    assert plan.nbytes <= richer.nbytes <= plan.nbytes + spare
    assert richer.loss <= plan.loss
    left = spare - (richer.nbytes - plan.nbytes)
    for option, choice in zip(opts, richer.choices, strict=True):
        better = (option.sizes > choice.nbytes) & (option.sizes <= choice.nbytes + left) & (option.losses < choice.loss)
        assert not better.any(), "nothing that fits would still help"


def test_reasons_of_layers_left_as_they_are():
    geometry, weight = Geometry("linear", 2, 2), np.ones((2, 2), "f4")
    alone = {"losses": np.zeros(1), "sizes": np.array([4]), "labels": (Label(None, None),)}
    opts = [
        Options(Site("a", geometry, weight, refusal="runs 2 times"), {}, **alone),
        Options(Site("b", geometry, weight), {}, **alone, refusals={"svd": "svd: too small", "cp": "cp: no window"}),
        Options(Site("c", geometry, weight), {}, **alone),
        *options([[(10, 5.0)]]),
    ]
    reasons = [choice.reason for choice in allocate(opts, 0.0, {}).choices]
    assert reasons == [
        "runs 2 times",
        "svd: too small; cp: no window",
        "no method was asked",
        "dense is best at this price",
    ]
