"""Integers of a fixed width: never beyond it, never worse than the nearest, clipping only where it pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.forms import dense, scales
from smidgen.methods import roundings
from smidgen.numerics import fixed_width
from smidgen.numerics.cancellation import factorise, factorise_rows, row_costs
from smidgen.numerics.fixed_width import clamped_nearest
from smidgen.numerics.rounding import round_gptq
from smidgen.numerics.rounding_groups import factorise_groups

GPTQ, NEAREST = roundings()["gptq"], roundings()["nearest"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(n: int, seed: int = 1) -> Tensor:
    rows = normal(3 * n, n, seed=seed) * torch.linspace(0.2, 2.0, n, dtype=torch.float64)
    rows = rows + 0.9 * rows.roll(1, 1)
    return rows.T @ rows / len(rows)


def as_found(form, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Its weight, not yet read as float32, and its scales."""
    scale = torch.from_numpy(scales(form.row, form.per_octave))
    return (torch.from_numpy(form.integers) * scale.double()[:, None]).reshape(weight.shape), scale


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), out=st.integers(1, 5), n=st.integers(1, 24), bits=st.sampled_from([2, 3, 4, 8]),
    size=st.floats(-30, 30), outliers=st.integers(0, 3),
)  # fmt: skip
def test_it_stays_within_its_width_and_is_no_worse_than_the_nearest_at_its_scales(seed, out, n, bits, size, outliers):
    weight = normal(out, n, seed=seed) * 10.0**size
    weight[:, :outliers] *= 30
    factor, levels = factorise(moment(n, seed + 1)), 2 ** (bits - 1) - 1
    form = GPTQ.fixed(weight[None], [factor], bits)
    found, scale = as_found(form, weight)
    assert int(abs(form.integers).max()) <= levels
    plain = clamped_nearest(weight, scale, levels) * scale.double()[:, None]
    ours, theirs = row_costs(weight - found, factor), row_costs(weight - plain, factor)
    assert bool((ours <= theirs * (1 + 1e-9)).all())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.integers(2, 5), out=st.integers(1, 3), n=st.integers(1, 9))
def test_groups_stay_within_their_width_and_lose_no_more_than_the_nearest(seed, groups, out, n):
    weight = normal(groups, out, n, seed=seed)
    lower = factorise_groups(torch.stack([moment(n, seed + g) for g in range(groups)]))
    form = GPTQ.fixed(weight, lower, 4)
    found, scale = as_found(form, weight)
    assert int(abs(form.integers).max()) <= 7
    flat = weight.reshape(groups * out, n)
    plain = (clamped_nearest(flat, scale, 7) * scale.double()[:, None]).reshape(weight.shape)
    ours, theirs = (((weight - w) @ lower).square().sum(2) for w in (found, plain))
    assert bool((ours <= theirs * (1 + 1e-9)).all())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_tries_one_by_one_give_the_same_integers_as_together(monkeypatch, groups, shared):
    weight, kept = normal(groups, 5, 12), normal(groups, 5, 12, seed=3) > -0.5
    moments = [moment(12, seed) for seed in range(groups)]
    factors = [factorise(moments[0])] if groups == 1 else factorise_groups(torch.stack(moments))
    for may in (None, kept):
        together = GPTQ.fixed(weight, factors, 4, shared=shared, kept=may)
        with monkeypatch.context() as patch:
            patch.setattr(fixed_width, "CACHED", 1)
            patch.setattr(fixed_width, "AT_ONCE", 1)
            alone = GPTQ.fixed(weight, factors, 4, shared=shared, kept=may)
        assert np.array_equal(together.integers, alone.integers)
        assert np.array_equal(together.row, alone.row)


def test_feedback_makes_good_what_clamping_loses():
    """One input is too large for its row's scale; the other, nearly the same, takes over."""
    alike = torch.eye(8)
    alike[:2, :2] = torch.tensor([[1.0, 0.999], [0.999, 1.0]])
    weight, factor = torch.tensor([[[0.0, 1.4, *[0.1] * 6]]]), factorise(alike, damp=0.0)
    fed = round_gptq(weight[0], factor, torch.ones(1), levels=1)
    assert fed.integers[0, :2].tolist() == [0, 1], "0.4 is left, which the other input rounds to nothing"
    fed = round_gptq(1.2 * weight[0], factor, torch.ones(1), levels=1)
    assert fed.integers[0, :2].tolist() == [1, 1], "0.68 is left, which the other takes over"
    costs = [
        float(row_costs((weight - as_found(way.fixed(weight, [factor], 2), weight)[0])[0], factor))
        for way in (GPTQ, NEAREST)
    ]
    assert costs[0] <= costs[1]


def test_a_row_with_an_outlier_is_clipped_and_one_without_is_not():
    even = torch.linspace(-7, 7, 15, dtype=torch.float64)
    heavy = torch.cat([normal(200, seed=3), torch.tensor([8.0], dtype=torch.float64)])
    whole = as_found(NEAREST.fixed(even[None, None], [factorise(torch.eye(15))], 4), even[None, None])
    assert torch.equal(whole[0][0, 0], even), "steps of one fit exactly"
    form = NEAREST.fixed(heavy[None, None], [factorise(torch.eye(201))], 4)
    assert float(scales(form.row, form.per_octave)[0]) < 8 / 7 / 1.3


def test_known_answers():
    form = GPTQ.fixed(torch.tensor([[[0.0, 0.0, 0.0]]]), [factorise(torch.eye(3))], 8)
    assert (form.integers.tolist(), form.row.tolist(), form.column.tolist()) == ([[0, 0, 0]], [0], [0])
    powers = torch.tensor([[[127.0, -64.0, 1.0]], [[12.7, -6.4, 0.1]]]).reshape(1, 2, 3)
    assert GPTQ.fixed(powers, [factorise(torch.eye(3))], 8).integers[0].tolist() == [127, -64, 1]


def test_an_input_that_was_never_seen_keeps_its_weights():
    seen = moment(6)
    seen[2], seen[:, 2] = 0, 0
    weight = normal(1, 4, 6)
    found = as_found(GPTQ.fixed(weight, [factorise(seen)], 8), weight)[0]
    assert float((found - weight)[0, :, 2].abs().max()) < 0.02 * float(weight.abs().max())


def test_a_moment_in_blocks():
    rows, weight = normal(12, 10, seed=2), normal(3, 10, seed=4)
    factor = factorise_rows(rows, width=4)
    change = weight - as_found(GPTQ.fixed(weight[None], [factor], 4), weight)[0]
    parts = [change[:, b] @ lower for b, lower in zip(factor.columns, factor.lowers, strict=True)]
    assert torch.allclose(row_costs(change, factor), sum(p.square().sum(1) for p in parts))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_are_refused(bad):
    for factors, weight in (
        ([factorise(moment(3))], normal(1, 2, 3)),
        (factorise_groups(moment(3)[None].repeat(2, 1, 1)), normal(2, 2, 3)),
    ):
        weight[0, 0, 0] = bad
        with pytest.raises(Refusal, match="nan or inf"):
            GPTQ.fixed(weight, factors, 8)


def test_one_scale_for_all_rows_is_the_best_one_there_is():
    """Held against every scale of two octaves; rows by themselves are never worse."""
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.normal(size=(7, 5)) * (rng.random((7, 1)) + 0.3))
    factor = factorise(torch.eye(5))
    shared = NEAREST.fixed(weight[None], [factor], 4, shared=True)
    assert len(set(shared.row.tolist())) == 1

    def error(scale: float) -> float:
        z = (weight / scale).round().clamp(-7, 7)
        return float((weight - z * scale).square().sum())

    most = float(weight.abs().max()) / 7
    best = min(error(most * 2 ** (-k / 16)) for k in range(-16, 32))
    got = float((weight - torch.from_numpy(dense(shared)).double()).square().sum())
    assert got <= best * 1.02
    own = NEAREST.fixed(weight[None], [factor], 4)
    assert float((weight - torch.from_numpy(dense(own)).double()).square().sum()) <= got
