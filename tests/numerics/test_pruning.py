"""Optimal brain surgery against hand-made cases, brute force and its own laws."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.numerics.cancellation import cancel, factorise
from smidgen.numerics.pruning import activity, magnitude, surgery, survivors
from smidgen.numerics.rounding_groups import factorise_groups


def problem(seed: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * columns, columns, generator=generator, dtype=torch.float64)
    moment = x.T @ x / len(x) + 0.05 * torch.eye(columns, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), moment


def loss(change: torch.Tensor, moment: torch.Tensor) -> float:
    return 0.5 * float(((change @ moment) * change).sum())


def test_where_inputs_do_not_see_each_other_it_is_magnitude():
    weight, _ = problem(0, 5, 8)
    factor = factorise(torch.eye(8), damp=0.0)
    scores = surgery(weight[None], [factor], torch.ones(1, 5), 0.3)[0]
    torch.testing.assert_close(scores, 0.5 * weight.square())
    assert torch.equal(torch.argsort(scores.flatten()), torch.argsort(magnitude(weight[None]).flatten()))
    kept = magnitude(weight[None])[0] > 0.7
    torch.testing.assert_close(survivors(weight, torch.eye(8), kept), weight * kept)


def test_two_weights_by_hand():
    """A = [[4, 2], [2, 10]] = L Lᵀ with L = [[2, 0], [1, 3]]; column 1 is taken first, its own L_jj is 3."""
    moment, weight = torch.tensor([[4.0, 2.0], [2.0, 10.0]]), torch.tensor([[[1.0, 0.5]]])
    factor = factorise(moment, damp=0.0)
    # ½ · 9 · 0.25 = 1.125; kept, the first costs ½ · 4 · 1 = 2; gone, that is 1 + 0.5 · 1/2 = 1.25: ½ · 4 · 1.5625.
    assert surgery(weight, [factor], torch.ones(1, 1), 0.0).tolist() == [[[2.0, 1.125]]]
    assert surgery(weight, [factor], torch.ones(1, 1), 2.0).tolist() == [[[3.125, 1.125]]]
    assert survivors(weight[0], moment, torch.tensor([[True, False]])).tolist() == [[1.25, 0.0]]
    assert survivors(weight[0], moment, torch.tensor([[False, True]])).tolist() == [[0.0, 0.7]]
    assert activity(weight, [factor]).tolist() == [[[2.0, pytest.approx(0.5 * 10**0.5)]]]


def test_what_was_paid_is_the_loss():
    weight, moment = problem(1, 6, 20)
    factor, price = factorise(moment, damp=0.0), 0.2
    scores = surgery(weight[None], [factor], torch.ones(1, 6), price)[0]
    kept = scores >= price
    chosen = torch.zeros_like(weight)

    def choose(j: int, target: torch.Tensor) -> torch.Tensor:
        chosen[:, j] = torch.where(kept[:, j], target, 0.0)
        return chosen[:, j]

    cancel(weight, factor, choose)
    assert 0 < int(kept.sum()) < kept.numel()
    assert float(scores[~kept].sum()) == pytest.approx(loss(weight - chosen, moment), rel=1e-9)
    # All survivors make good at least what the later ones alone did.
    assert loss(weight - survivors(weight, moment, kept), moment) <= loss(weight - chosen, moment) * (1 + 1e-9)


def test_groups_are_pruned_as_each_would_be_alone():
    pairs = [problem(seed, 4, 9) for seed in (2, 3)]
    weight, moments = torch.stack([w for w, _ in pairs]), torch.stack([m for _, m in pairs])
    rows = torch.rand(2, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    together = surgery(weight, factorise_groups(moments, damp=0.0), rows, 0.1)
    for i, (one, moment) in enumerate(pairs):
        alone = surgery(one[None], [factorise(moment, damp=0.0)], rows[i : i + 1], 0.1)[0]
        torch.testing.assert_close(together[i], alone)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9), st.data())
def test_survivors_are_the_least_squares_of_their_mask(seed, rows, columns, data):
    weight, moment = problem(seed, rows, columns)
    bits = data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    kept = torch.tensor(bits).reshape(rows, columns)
    found = survivors(weight, moment, kept)
    assert bool((found[~kept] == 0).all())
    # What is left over does not lie along any kept column: no change of a survivor can lower the loss.
    force = (weight - found) @ moment
    assert float(force[kept].abs().max() if kept.any() else 0.0) < 1e-9
    assert loss(weight - found, moment) <= loss(weight * ~kept, moment) + 1e-12


@pytest.mark.parametrize("damped", [1e-30, 2e-310])
@pytest.mark.parametrize("seen", [0, 1, 3])
def test_inputs_that_were_hardly_seen_have_survivors_too(seen, damped):
    """A network pruned to nothing in front: a moment of low rank, and next to nothing where it is damped."""
    rows = torch.randn(seen, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moment = rows.T @ rows + damped * torch.eye(12, dtype=torch.float64)
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    kept = torch.arange(48).reshape(4, 12) % 5 > 0
    kept[0] = torch.arange(12) < 2
    found = survivors(weight, moment, kept)
    assert bool(torch.isfinite(found).all())
    assert bool((found[~kept] == 0).all())


def test_its_masks_are_between_magnitudes_and_the_best_of_all():
    """Three kept of eight, forty times: the mean cost of the survivors' least squares, beside all 56 masks'."""
    totals = dict.fromkeys(("best", "surgery", "magnitude"), 0.0)
    for seed in range(40):
        weight, moment = problem(seed, 1, 8)

        def cost(places, weight=weight, moment=moment) -> float:
            kept = torch.zeros(1, 8, dtype=torch.bool)
            kept[0, list(places)] = True
            return loss(weight - survivors(weight, moment, kept), moment)

        factor, price = factorise(moment, damp=0.0), 0.0
        for _ in range(4):
            scores = surgery(weight[None], [factor], torch.ones(1, 1), price)[0, 0]
            price = float(scores.sort().values[4])
        totals["best"] += min(cost(each) for each in itertools.combinations(range(8), 3))
        totals["surgery"] += cost(torch.argsort(scores)[5:].tolist())
        totals["magnitude"] += cost(torch.argsort(weight[0].abs())[5:].tolist())
    assert totals["best"] < totals["surgery"] < totals["magnitude"]
