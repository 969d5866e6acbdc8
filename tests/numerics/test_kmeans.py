"""k-means on a line: the least error of all, never more with more values, and what bins cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.errors import Refusal
from smidgen.numerics.kmeans import SIGNIFICANT, kmeans, nearest, rounded_values


def error(x, centres, w=None):
    near = np.abs(np.asarray(x, "f8").ravel()[:, None] - centres).min(1)
    return float((near**2 * (1 if w is None else np.ravel(w))).sum())


def least(x, k, w):
    """Over all ways to cut the sorted values."""
    order = np.argsort(x)
    x, w, n = x[order], w[order], len(x)
    found = []
    for cuts in itertools.combinations(range(1, n), min(k, n) - 1):
        parts = list(itertools.pairwise((0, *cuts, n)))
        means = [np.average(x[a:b], weights=w[a:b]) for a, b in parts]
        found.append(sum(float((w[a:b] * (x[a:b] - m) ** 2).sum()) for (a, b), m in zip(parts, means, strict=True)))
    return min(found)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 10), st.integers(1, 6), st.booleans())
def test_no_way_to_cut_is_better(seed, n, k, coarse):
    draw = np.random.default_rng(seed)
    x, w = draw.normal(size=n).round(1 if coarse else 9), draw.uniform(0.1, 3.0, n)
    centres = kmeans(x, k, w)
    assert 1 <= len(centres) <= k
    assert (np.diff(centres) > 0).all()
    best = least(x, k, w)
    assert error(x, centres, w) == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_against_a_plain_dynamic_programme():
    """All n² splits of a few hundred points, for every number of clusters."""
    draw = np.random.default_rng(1)
    x, w = np.sort(draw.standard_t(3, 200)), draw.uniform(size=200)
    total = [np.concatenate([[0], np.cumsum(w * x**p)]) for p in (0, 1, 2)]
    cost = np.full((201, 201), np.inf)
    for a in range(200):
        m0, m1, m2 = (t[a + 1 :] - t[a] for t in total)
        cost[a, a + 1 :] = m2 - m1**2 / m0
    best = cost[0]
    for k in range(1, 40):
        assert error(x, kmeans(x, k, w), w) == pytest.approx(float(best[-1]), rel=1e-7, abs=1e-10)
        best = (best[:, None] + cost).min(0)


def test_the_error_never_rises_with_more_values():
    x = np.random.default_rng(2).laplace(size=(50, 60))
    errors = [error(x, kmeans(x, k)) for k in range(1, 80)]
    assert (np.diff(errors) <= 1e-12).all()
    assert errors[0] == pytest.approx(float(((x - x.mean()) ** 2).sum()))


def test_a_weight_is_so_many_equal_points():
    draw = np.random.default_rng(3)
    x, times = draw.normal(size=60), draw.integers(0, 5, 60)
    repeated = np.repeat(x, times)
    for k in (1, 3, 8, 20):
        np.testing.assert_allclose(kmeans(x, k, times.astype(float)), kmeans(repeated, k), rtol=1e-12)


def test_moved_and_stretched_values_move_and_stretch_their_centres():
    x = np.random.default_rng(4).normal(size=300)
    np.testing.assert_allclose(kmeans(1e6 + 0.01 * x, 7), 1e6 + 0.01 * kmeans(x, 7), rtol=1e-12)


@pytest.mark.parametrize("points", [64, 256, 2048])
@pytest.mark.parametrize("k", [2, 13, 32])
def test_bins_cost_no_more_than_what_is_said(points, k):
    """Least error + 2 R max(h m), for the bins that were made."""
    draw = np.random.default_rng(5)
    x, w = np.sort(draw.standard_t(4, 3000)), draw.uniform(size=3000)
    exact, binned = (error(x, kmeans(x, k, w, points=p), w) for p in (3000, points))
    place = (x - x[0]) / np.ptp(x) + (np.cumsum(w) - w / 2) / w.sum()
    bins = np.floor(place * points / 2)
    wide = [np.ptp(x[bins == b]) * w[bins == b].sum() for b in np.unique(bins)]
    assert exact * (1 - 1e-12) <= binned <= exact + 2 * np.ptp(x) * max(wide)
    if points < 1000:  # bins of many values
        assert max(wide) <= 1.3 * np.ptp(x) * w.sum() / points**2, "equal shares of both make them small"
    assert len(wide) <= points


def test_tensors_and_arrays_alike():
    x, w = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), torch.rand(40, 5)
    found = kmeans(x, 6, w)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.float64
    assert found.tolist() == kmeans(x.numpy(), 6, w.numpy()).tolist()


def test_what_has_few_values_keeps_them():
    assert kmeans(np.array([3.0, 1.0, 3.0]), 5).tolist() == [1.0, 3.0]
    assert kmeans(np.zeros((4, 4)), 2).tolist() == [0.0]
    assert kmeans(np.array([1.0, 2.0]), 2, np.array([0.0, 1.0])).tolist() == [2.0], "no weight, no value"
    assert kmeans(np.array([1.0, 2.0]), 1, np.zeros(2)).tolist() == [1.5], "no weight anywhere: all alike"
    assert kmeans(np.zeros(0), 3).tolist() == []


def test_what_cannot_be_meant():
    with pytest.raises(Refusal, match="nan"):
        kmeans(np.array([1.0, np.nan]), 2)
    with pytest.raises(Refusal, match="inf"):
        kmeans(np.array([1.0, 2.0]), 2, np.array([1.0, np.inf]))
    for k, weights in ((0, None), (2, np.array([1.0, -1.0])), (2, np.ones(3))):
        with pytest.raises(ValueError, match="kmeans"):
            kmeans(np.array([1.0, 2.0]), k, weights)


def test_the_nearest_centre():
    x, centres = torch.randn(500, dtype=torch.float64), torch.tensor([-1.0, -0.2, 0.1, 2.0], dtype=torch.float64)
    places = nearest(x.reshape(20, 25), centres)
    assert places.shape == (20, 25)
    assert (places.flatten() == (x[:, None] - centres).abs().argmin(1)).all()


def test_short_values():
    x = np.random.default_rng(6).normal(size=1000) * np.geomspace(1e-30, 1e30, 1000)
    short = rounded_values(x)
    assert (np.abs(short - x) <= 2.0**-SIGNIFICANT * np.abs(x)).all()
    assert (short.view(np.uint32) & (1 << 24 - SIGNIFICANT) - 1 == 0).all(), "the last bits are zeros"
    assert rounded_values(np.array([0.0, 0.5])).tolist() == [0.0, 0.5]
