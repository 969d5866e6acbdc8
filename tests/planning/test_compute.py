"""A budget of multiply-accumulates, on tables made up: kept where it can be, and what is left over spent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.forms import Geometry
from smidgen.planning.allocate import allocate
from smidgen.planning.candidates import Label, Options
from smidgen.planning.compute import each_macs, macs_of, plan_within, with_macs
from smidgen.planning.plan import plan_from_json
from smidgen.site import Site

# (bytes, loss, multiply-accumulates) of what a site could become; the layer as it is loses nothing.
WHOLE = (4001, 0.0, 1000)
ENTRY = st.tuples(st.integers(1, 4000), st.integers(1, 10**6).map(lambda n: n / 10**5), st.integers(1, 999))
TABLES = st.lists(st.lists(ENTRY, max_size=5), min_size=1, max_size=3)


def options(tables):
    result = []
    for k, table in enumerate(tables):
        site = Site(f"s{k}", Geometry("linear", 2, 2), np.ones((2, 2), "f4"))
        labels = (Label(None, None), *(Label("svd", i + 1) for i in range(len(table))))
        sizes, losses, macs = (np.array(column, float) for column in zip(WHOLE, *table, strict=True))
        result.append(Options(site, {}, losses, sizes.astype(int), labels, macs=macs, worth=10.0))
    return result


def within(opts, most):
    return plan_within(lambda price: allocate(opts, 0.0, {}, price_mac=price), opts, most)


@settings(max_examples=100, deadline=None)
@given(tables=TABLES, most=st.integers(0, 3000))
def test_the_budget_is_kept_where_it_can_be(tables, most):
    opts = options(tables)
    plan = within(opts, most)
    fewest = sum(float(o.macs.min()) for o in opts)
    assert macs_of(opts, plan) <= most or macs_of(opts, plan) == fewest > most
    left = most - macs_of(opts, plan)
    for option, choice, now in zip(opts, plan.choices, each_macs(opts, plan), strict=True):
        better = (option.macs > now) & (option.macs <= now + left) & (option.losses < choice.loss)
        assert not better.any(), "nothing that fits would still help"


@settings(max_examples=60, deadline=None)
@given(tables=TABLES, most=st.integers(0, 3000))
def test_the_loss_is_no_more_than_that_of_the_next_plan_on_the_hull(tables, most):
    """Whatever is combined with as few multiply-accumulates loses less by one step of one site at most."""
    opts = options(tables)
    plan = within(opts, most)
    combinations = itertools.product(*(range(len(o.labels)) for o in opts))
    fitting = [
        sum(float(o.losses[i]) for o, i in zip(opts, c, strict=True)) for c in combinations
        if sum(float(o.macs[i]) for o, i in zip(opts, c, strict=True)) <= most
    ]  # fmt: skip
    if fitting:
        step = max(float(o.losses.max()) for o in opts)
        assert min(fitting) - 1e-9 <= plan.loss <= min(fitting) + step + 1e-9


def test_everything_stays_where_it_fits_and_the_plan_keeps_its_price():
    opts = options([[(10, 1.0, 10)], [(20, 2.0, 20)]])
    assert [c.rank for c in within(opts, 2000).choices] == [None, None]
    plan = within(opts, 1500)
    assert [c.rank for c in plan.choices] == [1, None]
    assert plan.price_mac > 0
    assert plan_from_json(plan.to_json()) == plan


def test_integers_are_multiplied_as_often_as_floats():
    site = Site("a", Geometry("linear", 8, 4), np.ones((4, 8), "f4"))
    labels = (Label(None, None), Label(None, None, bits=8), Label(None, None, 0.5))
    (counted,) = with_macs([Options(site, {}, np.zeros(3), np.array([128, 32, 20]), labels)])
    assert counted.macs.tolist() == [32.0, 32.0, 32.0]


def test_what_was_left_out_takes_its_numbers_along():
    (option,) = options([[(10, 1.0, 10), (20, 2.0, 20)]])
    kept = option.only([0, 2])
    assert (kept.macs.tolist(), kept.sizes.tolist(), kept.labels[1].rank) == ([1000, 20], [4001, 20], 2)
    assert kept.times is None
    with pytest.raises(IndexError):
        option.only([7])
