"""Times of layers in planning, on tables made up: the price of a millisecond, the guard, what a plan saves."""

from __future__ import annotations

import itertools
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.forms import Geometry
from smidgen.planning.allocate import allocate, spend
from smidgen.planning.candidates import Label, Options
from smidgen.planning.pace import TOLERANCE, guarded, option_times, saved_ms
from smidgen.planning.plan import plan_from_json
from smidgen.site import Site

# (bytes, loss, ms) of what a site could become, the first being the layer as it is: no loss, 4001 bytes, 2 ms.
WHOLE = (4001, 0.0, 2.0)
ENTRY = st.tuples(
    st.integers(1, 4000), st.integers(0, 10**6).map(lambda n: n / 10**5), st.integers(1, 4000).map(lambda n: n / 1000)
)
TABLES = st.lists(st.lists(ENTRY, max_size=6), min_size=1, max_size=3)


def options(tables, timed=True):
    result = []
    for k, table in enumerate(tables):
        site = Site(f"s{k}", Geometry("linear", 2, 2), np.ones((2, 2), "f4"))
        labels = (Label(None, None), *(Label("svd" if i % 2 else "cp", i + 1) for i in range(len(table))))
        sizes, losses, times = (np.array(column) for column in zip(WHOLE, *table, strict=True))
        result.append(Options(site, {}, losses, sizes, labels, times=times if timed else None))
    return result


def cost(opts, combination, price, price_ms):
    chosen = list(zip(opts, combination, strict=True))
    return sum(float(o.losses[i] + price * o.sizes[i] + price_ms * o.times[i]) for o, i in chosen)


@settings(max_examples=60, deadline=None)
@given(tables=TABLES, price=st.integers(0, 1000), price_ms=st.integers(0, 10**5))
def test_the_plan_is_the_minimum_over_all_combinations(tables, price, price_ms):
    price, price_ms, opts = price / 10**5, price_ms / 10**3, options(tables)
    plan = allocate(opts, price, {}, price_ms)
    ms = sum(float(o.times[0]) for o in opts) - saved_ms(opts, plan)
    least = min(cost(opts, c, price, price_ms) for c in itertools.product(*(range(len(o.sizes)) for o in opts)))
    assert plan.loss + price * plan.nbytes + price_ms * ms == pytest.approx(least, rel=1e-9, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(tables=TABLES, prices=st.lists(st.floats(0, 1000), min_size=2, max_size=6))
def test_time_never_rises_with_its_price(tables, prices):
    opts = options(tables)
    plans = [allocate(opts, 0.0, {}, price) for price in [*sorted(prices), inf]]
    saved = [saved_ms(opts, plan) for plan in plans]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(saved))
    assert all(a.loss <= b.loss + 1e-9 for a, b in itertools.pairwise(plans[:-1]))
    assert saved[-1] == pytest.approx(sum(2.0 - float(o.times.min()) for o in opts))


@settings(max_examples=40, deadline=None)
@given(tables=TABLES, price=st.floats(0, 10))
def test_without_a_price_of_time_times_change_nothing(tables, price):
    assert allocate(options(tables), price, {}).key == allocate(options(tables, timed=False), price, {}).key


def test_sites_that_were_not_timed_pay_nothing():
    opts = options([[(10, 1.0, 0.1)]], timed=False)
    assert allocate(opts, 0.0, {}, 1e6).loss == 0.0
    assert saved_ms(opts, allocate(opts, inf, {})) == 0
    assert option_times(opts[0], allocate(opts, 0.0, {}).choices[0]) == {}


@settings(max_examples=100, deadline=None)
@given(tables=TABLES, price=st.floats(0, 10))
def test_guarded_options_never_make_a_layer_slower(tables, price):
    opts = guarded(options(tables))
    for option in opts:
        assert option.labels[0] == Label(None, None)
        assert (option.times <= (1 + TOLERANCE) * 2.0).all()
        assert len(option.labels) == len(option.losses) == len(option.sizes) == len(option.times)
    plan = allocate(opts, price, {})
    for option, choice in zip(opts, plan.choices, strict=True):
        told = option_times(option, choice)
        assert told["latency_ms_after"] <= (1 + TOLERANCE) * told["latency_ms_before"]


def test_the_guard_tells_a_method_that_lost_all_its_forms_and_the_best_of_them():
    (option,) = guarded(options([[(3000, 0.1, 2.6), (2000, 0.1, 1.0), (1000, 0.2, 2.4), (900, 0.3, 9.0)]]))
    assert [label.method for label in option.labels] == [None, "svd"]
    assert option.refusals == {"cp": "cp: would be slower: 2.4 ms against 2 ms"}
    (alone,) = guarded(options([[(3000, 0.1, 0.31 * 10)]]))
    assert allocate([alone], 5.0, {}).choices[0].reason == "cp: would be slower: 3.1 ms against 2 ms"


def test_what_is_within_the_noise_is_not_slower():
    assert len(guarded(options([[(3000, 0.1, 2.0 * (1 + TOLERANCE) - 1e-9)]]))[0].labels) == 2


@settings(max_examples=100, deadline=None)
@given(tables=TABLES, price=st.floats(0, 10), spare=st.floats(0, 3))
def test_spending_the_time_that_is_left_over(tables, price, spare):
    opts = options(tables)
    plan = allocate(opts, 0.0, {}, price)
    richer = spend(opts, plan, spare, [option.times for option in opts])
    used = saved_ms(opts, plan) - saved_ms(opts, richer)
    assert -1e-9 <= used <= spare + 1e-9
    assert richer.loss <= plan.loss + 1e-12
    for option, choice in zip(opts, richer.choices, strict=True):
        ms = option_times(option, choice)["latency_ms_after"]
        better = (option.times > ms) & (option.times <= ms + spare - used - 1e-9) & (option.losses < choice.loss)
        assert not better.any(), "nothing that fits would still help"


def test_a_plan_keeps_its_price_of_time():
    opts = options([[(3000, 0.1, 1.0)]])
    for price_ms in (0.0, 2.5, inf):
        plan = allocate(opts, 0.0, {}, price_ms)
        assert plan_from_json(plan.to_json()) == plan
    older = allocate(opts, 0.0, {}).to_json().replace(' "price_ms": 0.0,\n', "")
    assert "price_ms" not in older
    assert plan_from_json(older).price_ms == 0.0
