"""A front: the ladder of plans, which points are on it, where it bends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smidgen.forms import Geometry
from smidgen.methods import methods
from smidgen.planning.candidates import gather, weights_only
from smidgen.planning.front import front, halving, knee, measured_joint, plans_at, rungs, score_at, single_curves
from smidgen.site import Site

CONV = Geometry("conv", 24, 24, (3, 3), (1, 1), (1, 1), (1, 1), in_size=(8, 8), out_size=(8, 8))
POINTS = st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def chosen():
    return {name: methods()[name] for name in ("svd", "tucker2")}


@pytest.fixture(scope="module")
def options(chosen):
    draw = np.random.default_rng(0).normal
    sites = [
        Site("fc", Geometry("linear", 80, 60), draw(size=(60, 80)).astype("f4")),
        Site("conv", CONV, draw(size=(24, 24, 3, 3)).astype("f4")),
    ]
    return gather(sites, {each.name: weights_only(each) for each in sites}, chosen)


@given(st.integers(0, 60))
def test_every_place_comes_once_and_the_ends_come_first(count):
    order = halving(count)
    assert sorted(order) == list(range(count))
    assert set(order[:2]) == {0, count - 1} or not count


def test_plans_fit_their_rungs_and_fall(options, chosen):
    sizes = rungs(options, chosen, 6)
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 6
    plans = plans_at(options, chosen, sizes)
    assert [plan.nbytes for plan in plans] == sorted((plan.nbytes for plan in plans), reverse=True)
    assert len({plan.key for plan in plans}) == len(plans)
    for size in sizes:
        fitting = [plan.nbytes for plan in plans if plan.nbytes <= size]
        assert not fitting or max(fitting) > 0.8 * size, "what is left over was spent"


def test_a_size_that_cannot_be_reached_has_no_plan(options, chosen):
    assert plans_at(options, chosen, [1]) == []


def test_a_single_curve_has_that_method_alone(options, chosen):
    curves = single_curves(options)
    assert curves.keys() == {"svd", "tucker2"}
    for name, those in curves.items():
        assert {label.method for option in those for label in option.labels} <= {None, name}
        assert all(option.labels[0].method is None for option in those), "a layer can stay as it is"
        for option in those:
            assert len(option.labels) == len(option.losses) == len(option.sizes)
    alone = gather([o.site for o in options], {}, {"svd": chosen["svd"]})
    assert single_curves(alone) == {}, "one method alone is the joint plan"


@given(POINTS)
def test_no_point_of_a_front_is_undercut(points):
    places = front(points)
    kept = [points[i] for i in places]
    assert kept == sorted(kept, key=lambda p: -p[0])
    for nbytes, score in points:
        assert any(b <= nbytes and s >= score for b, s in kept)
    for a in kept:
        assert not any(b[0] <= a[0] and b[1] > a[1] for b in points)


@given(POINTS)
def test_the_knee_is_a_point_of_its_front(points):
    kept = [points[i] for i in front(points)]
    assert 0 <= knee(kept) < len(kept)


def test_a_straight_line_in_the_logarithm_is_met_everywhere():
    points = [(10**k, k / 10) for k in range(1, 6)]
    assert score_at(points, 10**2.5) == pytest.approx(0.25)
    assert score_at(points, 5) is None
    assert score_at(points, 10**6) is None
    assert score_at([], 5) is None
    assert np.isclose(score_at([(7, 0.5)], 7), 0.5)


def test_the_joint_curve_takes_what_is_surely_better_and_as_large():
    joint, alone = (1000, 0.7, 0.01, True), (990, 0.8, 0.01, False)
    assert measured_joint([joint, alone]) == {0: 1}
    assert measured_joint([joint, (990, 0.715, 0.01, False)]) == {}, "by luck perhaps"
    assert measured_joint([joint, (900, 0.8, 0.01, False)]) == {}, "another size"
    assert measured_joint([joint, (990, 0.8, 0.01, True)]) == {}, "a joint plan itself"
    assert measured_joint([(2000, 0.9, 0.01, True), joint, alone, (1010, 0.9, 0.01, False)]) == {1: 3}
