"""Trellis-coded rounding: it lies on its grid, decodes, and gains what it should."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics import trellis
from smidgen.numerics.cancellation import error, factorise, unit_factor
from smidgen.numerics.rate_aware import learned_rate
from smidgen.numerics.rounding import entropy_bits, round_nearest
from smidgen.numerics.trellis import NEXT, indices, round_trellis, rounding_order


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(n: int) -> Tensor:
    rows = normal(3 * n, n, seed=1)
    return rows.T @ rows / len(rows) + 0.5


def test_integers_come_back_from_indices_and_states() -> None:
    factor, one = factorise(moment(70), order="descending"), torch.ones(9)
    result = round_trellis(normal(9, 70), factor, one, one, torch.full((70,), 0.2))
    k, state = indices(result.integers, rounding_order(factor))
    assert torch.equal(2 * k - k.sign() * (state % 2), result.integers)
    position = torch.zeros(9, dtype=torch.int64)
    for j in rounding_order(factor).tolist():
        assert torch.equal(state[:, j].long(), position)
        position = torch.tensor(NEXT)[position, (k[:, j] % 2).long()]


def test_it_is_the_best_of_all_paths() -> None:
    weight, one = normal(1, 4), torch.ones(1)
    found = round_trellis(weight, unit_factor(4, weight), one, one, torch.full((4,), 0.5))
    best = math.inf
    values = range(-8, 9)
    for path in torch.cartesian_prod(*[torch.tensor(values)] * 4).tolist():
        state, valid = 0, True
        for z in reversed(path):
            if state % 2 == 0:
                valid, k = z % 2 == 0, z // 2
            else:
                valid, k = z == 0 or z % 2 == 1, (z + (z > 0) - (z < 0)) // 2
            if not valid:
                break
            state = NEXT[state][k % 2]
        if valid:
            best = min(best, float((weight - 0.5 * torch.tensor(path)).square().sum()))
    assert float((weight - found.dense()).square().sum()) == pytest.approx(best, rel=1e-6)


def test_it_gains_over_rounding_one_by_one_at_equal_bits() -> None:
    """Fischer and Wang: entropy-coded and with 8 states, 0.5 to 1 dB at rates above two bits."""
    weight, one = normal(64, 128), torch.ones(64)
    factor, order = unit_factor(128, weight), torch.arange(127, -1, -1)
    scale = torch.full((128,), 0.15)
    result = round_trellis(weight, factor, one, one, scale)
    k, state = indices(result.integers, order)
    bits = entropy_bits(k, state % 2) / k.numel()
    loss = error(result.dense() - weight, torch.eye(128))
    # A uniform quantizer of that entropy: its error falls by 6.02 dB a bit.
    plain = round_nearest(weight, one, 2 * scale)
    plain_bits = entropy_bits(plain.integers, torch.zeros_like(plain.integers)) / k.numel()
    plain_loss = error(plain.dense() - weight, torch.eye(128)) * 4 ** (plain_bits - bits)
    assert 10 * math.log10(plain_loss / loss) > 0.5


def test_counting_bits_saves_bits() -> None:
    weight, a, one = normal(32, 40), moment(40), torch.ones(32)
    factor, scale = factorise(a), torch.full((40,), 0.4)
    order = rounding_order(factor)
    plain = round_trellis(weight, factor, one, one, scale)
    k, _ = indices(plain.integers, order)
    aware = round_trellis(weight, factor, one, one, scale, 0.02, learned_rate(k))
    counted, _ = indices(aware.integers, order)
    costs = [
        error(r.dense() - weight, a) + 0.02 * entropy_bits(i, torch.zeros_like(i))
        for r, i in ((plain, k), (aware, counted))
    ]
    assert costs[1] < costs[0]


def test_blocks_hand_their_state_on(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, a, one = normal(16, 30), moment(30), torch.ones(16)
    factor, scale = factorise(a), torch.full((30,), 0.3)
    whole = error(round_trellis(weight, factor, one, one, scale).dense() - weight, a)
    monkeypatch.setattr(trellis, "BLOCK", 10)
    cut = round_trellis(weight, factor, one, one, scale)
    k, state = indices(cut.integers, rounding_order(factor))
    assert torch.equal(2 * k - k.sign() * (state % 2), cut.integers)
    assert error(cut.dense() - weight, a) == pytest.approx(whole, rel=0.15)


@pytest.mark.parametrize("a", [torch.zeros(5, 5), torch.diag(torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0]))])
def test_dead_inputs_stay_zero_or_finite(a: Tensor) -> None:
    one = torch.ones(3)
    result = round_trellis(normal(3, 5), factorise(a), one, one, torch.ones(5))
    assert bool(torch.isfinite(result.dense()).all())
    if bool(a.any()):
        assert not bool(result.integers[:, [1, 3]].any())


def test_broken_weights_are_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(Refusal, match="nan or inf"):
        round_trellis(torch.tensor([[math.nan]]), factorise(torch.eye(1)), one, one, one)
