"""Ranges of activations: extremes where they are asked, and clipping where least squares prefer it."""

from __future__ import annotations

import numpy as np
import pytest

from smidgen.calibrate.tflite_ranges import LEVELS, joined, least_squares_range


def error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / LEVELS
    return float(np.square(np.round(np.clip(values, low, high) / step) * step - values).sum())


@pytest.mark.parametrize("one_sided", [True, False])
def test_nothing_is_clipped_where_values_are_even(one_sided: bool) -> None:
    values = np.random.default_rng(0).uniform(0.0 if one_sided else -1.0, 1.0, 20_000)
    low, high = least_squares_range(values, float(values.min()), float(values.max()))
    assert high > 0.97
    assert low == 0.0 if one_sided else low < -0.97


def test_a_lone_value_is_clipped_where_that_costs_less() -> None:
    values = np.append(np.random.default_rng(0).normal(size=200_000), 30.0)
    least, most = float(values.min()), float(values.max())
    low, high = least_squares_range(values, least, most)
    assert high < 0.85 * most
    assert error(values, low, high) < 0.95 * error(values, least, most)


def test_values_that_are_all_zero_have_a_range() -> None:
    assert least_squares_range(np.zeros(10), 0.0, 0.0) == (0.0, 0.0)
    assert joined({}, [1]) is None
    assert joined({1: (2.0, 3.0)}, [1]) == (0.0, 3.0)
