"""Ranges of activations: what must hold for any, and which one each way chooses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.parser import parse_model

from smidgen.calibrate.ranges import HOWS, KEPT, RUN_NBYTES, Range, Seen, least_squares_range, values_of, watch
from smidgen.errors import DataError

NET = """<ir_version: 8, opset_import: ["": 17]> g (float[n, 2] x) => (float[n, 2] y)
    <float[2] b = {1.0, -1.0}> { a = Add(x, b)  y = Relu(a) }"""
finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@given(finite, finite)
def test_zero_is_held_exactly_and_no_bound_is_passed(low, high):
    range_ = Range(float(min(low, high)), float(max(low, high)))
    scale, zero = float(range_.scale), range_.zero
    assert 0 <= zero <= 255
    assert scale > 0
    assert scale * 255 <= (range_.high - range_.low) * (1 + 1e-7)
    ends = scale * (np.array([0, 255]) - zero)
    assert ends[0] <= 0 <= ends[1]
    # Both ends are met to one step.
    assert abs(ends[0] - range_.low) <= scale * (1 + 1e-3)
    assert abs(ends[1] - range_.high) <= scale * (1 + 1e-3)


def test_a_bound_that_a_clip_ends_at_stays_one():
    assert np.float32(255) * Range(0.0, 6.0).scale <= np.float32(6)


@given(st.lists(finite, min_size=1, max_size=50), st.sampled_from(HOWS))
def test_every_way_stays_within_what_was_seen(values, how):
    array = np.array(values, np.float32)
    seen = Seen(float(array.min()), float(array.max()), array)
    range_ = seen.range(how)
    whole = seen.range("minmax")
    assert whole.low <= range_.low <= 0 <= range_.high <= whole.high


def error(values, range_):
    q = np.clip(np.rint(values / range_.scale) + range_.zero, 0, 255)
    return float(np.square(values - range_.scale * (q - range_.zero)).mean())


def test_a_lone_value_is_clipped_where_that_costs_less():
    values = np.append(np.random.default_rng(0).normal(size=200_000), 30.0).astype(np.float32)
    seen = Seen(float(values.min()), float(values.max()), values)
    assert seen.range("mse").high < 0.85 * 30
    assert error(values, seen.range("mse")) < 0.95 * error(values, seen.range("minmax"))


@pytest.mark.parametrize("one_sided", [True, False])
def test_nothing_is_clipped_where_values_are_even(one_sided):
    values = np.random.default_rng(0).uniform(0.0 if one_sided else -1.0, 1.0, 20_000)
    range_ = least_squares_range(values, float(values.min()), float(values.max()))
    assert range_.high > 0.97
    assert range_.low == 0.0 if one_sided else range_.low < -0.97


def test_values_that_are_all_zero_have_a_scale():
    assert least_squares_range(np.zeros(10), 0.0, 0.0).scale > 0


def test_what_a_network_takes_is_seen_whole():
    inputs = np.array([[0.0, 3.0], [2.0, -5.0], [-4.0, 0.5]], np.float32)
    seen = watch(parse_model(NET), ["x", "a", "y"], [inputs[:2], inputs[2:]])
    assert {name: (each.low, each.high) for name, each in seen.items()} == {
        "x": (-5.0, 3.0), "a": (-6.0, 3.0), "y": (0.0, 3.0),
    }  # fmt: skip
    assert sorted(seen["y"].values.tolist()) == [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]


def test_memory_is_bounded():
    seen = watch(parse_model(NET), ["y"], [np.ones((40_000, 2), np.float32)] * 9)
    assert seen["y"].values.size == KEPT
    portions = list(values_of(parse_model(NET), ["y"], [np.ones((8, 2), np.float32)]))
    assert [len(portion["y"]) for portion in portions] == [8]
    assert RUN_NBYTES >= 8 * 2 * 4


def test_inputs_that_tell_nothing_are_refused():
    with pytest.raises(DataError, match="no calibration inputs"):
        watch(parse_model(NET), ["y"], [])
    with pytest.raises(DataError, match="nan or infinite"):
        watch(parse_model(NET), ["a"], [np.full((1, 2), np.inf, np.float32)])
