"""Rounding a product: inherited curvature, the refit between the factors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smidgen.numerics.cancellation import error, factorise
from smidgen.numerics.rounding_low_rank import refit_left, round_low_rank, round_waterfilled


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    u, v = normal(20, 4), normal(4, 30, seed=1)
    rows = normal(60, 30, seed=2)
    return u @ v + 0.05 * normal(20, 30, seed=3), u, v, rows.T @ rows / 60, torch.diag(torch.rand(20) + 0.5).double()


@pytest.mark.parametrize("rate_aware", [False, True])
def test_a_lower_price_approaches_the_unrounded_product(rate_aware: bool) -> None:
    weight, u, v, a, g = case()
    factor = factorise(a)
    best = error(refit_left(weight, v, a) @ v - weight, a, g.diagonal())
    losses = []
    for price in (1e-1, 1e-3, 1e-6):
        result = round_low_rank(weight, u, v, factor, a, g, price, rate_aware=rate_aware)
        losses.append(error(result.dense() - weight, a, g.diagonal()))
        assert result.rate() > 0
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(best, rel=0.01)


def test_the_second_factor_makes_good_what_the_first_lost() -> None:
    weight, u, v, a, g = case()
    factor, price = factorise(a), 1e-2
    together = round_low_rank(weight, u, v, factor, a, g, price, rate_aware=False)
    inherited = ((g @ u) * u).sum(0)
    first = round_waterfilled(v, factor, inherited, price, rate_aware=False)
    apart = round_waterfilled(u, factorise(v @ a @ v.T), g.diagonal(), price, rate_aware=False)
    loss = [error(each - weight, a, g.diagonal()) for each in (together.dense(), apart.dense() @ first.dense())]
    assert loss[0] < loss[1]


def test_the_refit_is_least_squares_in_the_metric() -> None:
    weight, _, v, a, _ = case()
    refitted = refit_left(weight, v, a)
    residue = (weight - refitted @ v) @ a @ v.T
    assert float(residue.abs().max()) < 1e-3 * float((weight @ a @ v.T).abs().max())


def test_an_emptied_component_stays_finite() -> None:
    weight, u, v, a, g = case()
    v[2] = 0
    u[:, 1] = 0
    result = round_low_rank(weight, u, v, factorise(a), a, g, 1e-3)
    assert bool(torch.isfinite(result.dense()).all())
    assert bool(torch.isfinite(round_low_rank(weight, u, v, factorise(a), a, g, 1e3).dense()).all())
