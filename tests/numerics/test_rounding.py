"""Rounding to integers: exact identities, laws, the theory's numbers, broken inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.cancellation import Choose, Factor, cancel, error, factorise, factorise_rows, unit_factor
from smidgen.numerics.rate_aware import learned_rate, round_rate_aware
from smidgen.numerics.rounding import (
    Rounded,
    entropy_bits,
    largest_scales,
    round_gptq,
    round_nearest,
    round_watersic,
    step_constant,
    waterfilling_steps,
)

Way = Callable[[Tensor, Factor, Tensor, float], Rounded]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(n: int, samples: int | None = None, seed: int = 1) -> Tensor:
    rows = normal(samples or 4 * n, n, seed=seed) * torch.linspace(0.2, 2.0, n, dtype=torch.float64)
    rows = rows + 0.7 * rows.roll(1, 1)
    return rows.T @ rows / len(rows)


def nearest(weight: Tensor, factor: Factor, g: Tensor, price: float) -> Rounded:
    return round_nearest(weight, *waterfilling_steps(factor, g, step_constant(price)))


def gptq(weight: Tensor, factor: Factor, g: Tensor, price: float) -> Rounded:
    return round_gptq(weight, factor, *waterfilling_steps(factor, g, step_constant(price)))


def watersic(weight: Tensor, factor: Factor, g: Tensor, price: float) -> Rounded:
    return round_watersic(weight, factor, *waterfilling_steps(factor, g, step_constant(price)))


def rate_aware(weight: Tensor, factor: Factor, g: Tensor, price: float) -> Rounded:
    return round_rate_aware(weight, factor, g, *waterfilling_steps(factor, g, step_constant(price)), price)


WAYS: list[Way] = [nearest, gptq, watersic, rate_aware]


@pytest.mark.parametrize("way", WAYS)
def test_dense_is_the_integer_formula_to_the_bit(way: Way) -> None:
    result = way(normal(7, 9), factorise(moment(9)), torch.rand(7) + 0.1, 1e-3)
    z, r, s = (each.numpy() for each in (result.integers, result.row_scale, result.column_scale))
    expected = (z.astype("f4") * s) * r[:, None]
    assert result.dense().numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("way", [gptq, watersic])
def test_under_the_identity_every_way_is_the_nearest(way: Way) -> None:
    weight, factor, g = normal(6, 5), unit_factor(5, torch.zeros(1)), torch.ones(6)
    assert torch.equal(way(weight, factor, g, 1e-3).integers, nearest(weight, factor, g, 1e-3).integers)


def test_free_rates_round_to_the_nearest() -> None:
    weight, factor, g = normal(6, 5), factorise(moment(5)), torch.ones(6)
    steps = waterfilling_steps(factor, g, 0.1)
    assert torch.equal(
        round_rate_aware(weight, factor, g, *steps, 1e-12).integers, round_gptq(weight, factor, *steps).integers
    )


def test_gptq_is_the_papers_walk_with_the_inverse() -> None:
    """Algorithm 1 of arXiv:2210.17323, written plainly, on the columns from the last to the first."""
    weight, a = normal(4, 6), moment(6)
    flipped = a.flip(0, 1)
    upper = torch.linalg.cholesky(torch.linalg.inv(flipped), upper=True)
    left, step = weight.flip(1).clone(), 0.3
    expected = torch.zeros_like(left)
    for i in range(6):
        expected[:, i] = (left[:, i] / step).round()
        residue = (left[:, i] - step * expected[:, i]) / upper[i, i]
        left[:, i:] -= residue[:, None] * upper[i, i:]
    result = round_gptq(weight, factorise(a, damp=0.0), torch.full((4,), step))
    assert torch.equal(result.integers, expected.flip(1).to(torch.int32))


def test_watersic_is_the_papers_pass() -> None:
    """The recursion on Y as in arXiv:2603.04956, written plainly."""
    weight, a, c = normal(8, 6), moment(6), 0.4
    lower = torch.linalg.cholesky(a)
    y, decoded = weight @ lower, torch.zeros_like(weight)
    for j in reversed(range(6)):
        z = (y[:, j] / c).round()
        gain = (z @ y[:, j]) / (c * (z @ z)) if bool(z.any()) else 1.0
        decoded[:, j] = z * gain * c / lower[j, j]
        y = y - torch.outer(decoded[:, j], lower[j])
    factor = factorise(a, damp=0.0)
    result = round_watersic(weight, factor, *waterfilling_steps(factor, torch.ones(8), c))
    torch.testing.assert_close(result.dense().double(), decoded, rtol=1e-5, atol=1e-6)


def walked(weight: Tensor, factor: Factor, choose: Choose = lambda j, target: target.round()) -> Tensor:
    """All that is chosen."""
    chosen = torch.zeros_like(weight)

    def kept(j: int, target: Tensor) -> Tensor:
        chosen[:, j] = choose(j, target)
        return chosen[:, j]

    cancel(weight, factor, kept)
    return chosen


def test_blocks_of_columns_do_not_change_the_walk() -> None:
    weight, a = normal(3, 300), moment(300)
    factor = factorise(a)
    lower, left = factor.lowers[0], weight @ factor.lowers[0]
    expected = torch.zeros_like(weight)
    for j in reversed(range(300)):
        expected[:, j] = (left[:, j] / lower[j, j]).round()
        left = left - torch.outer(expected[:, j], lower[j])
    torch.testing.assert_close(walked(weight, factor), expected)


@given(seed=st.integers(0, 1000), out=st.integers(1, 12), n=st.integers(2, 24))
@settings(max_examples=40, deadline=None)
def test_feedback_seldom_loses_and_the_error_is_that_of_the_targets(seed: int, out: int, n: int) -> None:
    weight, a = normal(out, n, seed=seed), moment(n, seed=seed + 1)
    factor, kept = factorise(a, damp=0.0), {}

    def choose(j: int, target: Tensor) -> Tensor:
        kept[j] = (target - target.round()).square().sum() * factor.diagonal[j].square()
        return target.round()

    change = walked(weight, factor, choose) - weight
    assert error(change, a) == pytest.approx(0.5 * float(sum(kept.values())), rel=1e-6)


@pytest.mark.parametrize("price", [1e-4, 1e-3, 1e-2])
def test_gptq_loses_no_more_than_nearest_in_the_metric(price: float) -> None:
    weight, a = normal(64, 48), moment(48)
    factor, g = factorise(a, damp=0.0), torch.ones(64)
    first, second = nearest(weight, factor, g, price), gptq(weight, factor, g, price)
    assert error(second.dense() - weight, a) < error(first.dense() - weight, a)


@pytest.mark.parametrize("way", WAYS)
def test_a_higher_price_gives_fewer_bits_and_more_error(way: Way) -> None:
    weight, a, g = normal(48, 32), moment(32), torch.rand(48) + 0.5
    factor = factorise(a)
    results = [way(weight, factor, g, price) for price in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)]
    rates = [result.rate() for result in results]
    losses = [error(result.dense() - weight, a, g) for result in results]
    assert rates == sorted(rates, reverse=True)
    assert losses == sorted(losses)


def test_counting_bits_lowers_loss_plus_price_times_bits() -> None:
    weight, a, g = normal(96, 40).sign() * normal(96, 40).square(), moment(40), torch.ones(96)
    factor = factorise(a, damp=0.0)
    for price in (3e-3, 3e-2, 1e-1):
        plain, aware = gptq(weight, factor, g, price), rate_aware(weight, factor, g, price)
        cost = [error(each.dense() - weight, a) + price * each.rate() for each in (plain, aware)]
        assert cost[1] < cost[0]
        assert int((aware.integers == 0).sum()) > int((plain.integers == 0).sum())


def _decibel(way: Callable[[float], Rounded], weight: Tensor, a: Tensor, bits: float) -> float:
    """Error relative to the weight's at a number of bits, found by bisection of the price."""

    def bits_of(result: Rounded) -> float:
        size = result.integers.abs().double().mean(0).clamp_min(1e-6)
        contexts = torch.floor(2 * torch.log2(size)).long().expand(weight.shape[0], -1)
        return entropy_bits(result.integers, contexts) / weight.numel()

    low, high = math.log(1e-5), math.log(1e1)
    result = way(1.0)
    for _ in range(15):
        middle = (low + high) / 2
        result = way(math.exp(middle))
        low, high = (middle, high) if bits_of(result) > bits else (low, middle)
    return 10 * math.log10(error(result.dense() - weight, a) / error(weight, a))


@pytest.mark.parametrize(("bits", "expected"), [(2.0, -10.2), (1.0, -3.4), (0.5, -1.3)])
def test_gaussian_weights_under_a_falling_spectrum(bits: float, expected: float) -> None:
    """The ladder of the theory: nearest, then feedback, then gains, then the rate in the choice.

    `expected` is nearest's error in dB (simulated apart from this code; Gaussian weights, eigenvalues 1/k); feedback
    lowers it by 1.3 dB or more, gains by another 0.3 to 1.3, and rates in the choice equal free gains without
    their side cost.
    """
    n, one = 96, torch.ones(160)
    basis = torch.linalg.qr(normal(n, n, seed=3)).Q
    a = basis / torch.arange(1, n + 1) @ basis.T
    weight, factor = normal(160, n, seed=4), factorise(a, damp=1e-9)
    flat = torch.ones(n)

    def found(way: Callable[[float], Rounded]) -> float:
        return _decibel(way, weight, a, bits)

    plain = found(lambda price: round_nearest(weight, one, flat * step_constant(price)))
    feedback = found(lambda price: round_gptq(weight, factor, one, flat * step_constant(price)))
    gains = found(lambda price: watersic(weight, factor, one, price))
    rates = found(lambda price: rate_aware(weight, factor, one, price))
    assert plain == pytest.approx(expected, abs=0.4)
    assert feedback < plain - 1.3
    assert gains < feedback - 0.2
    assert rates == pytest.approx(gains, abs=0.35)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("weight", "a"),
    [
        (normal(4, 6), moment(6, samples=2)),
        (normal(4, 6), torch.zeros(6, 6)),
        (normal(4, 6), torch.diag(torch.tensor([1.0, 0.0, 2.0, 0.0, 3.0, 1e-30]))),
        (torch.zeros(4, 6), moment(6)),
        (normal(1, 6), moment(6)),
        (normal(4, 1), moment(1)),
        (normal(1, 1) * 1e-20, moment(1) * 1e20),
        (normal(4, 6) * 1e6, moment(6) * 1e-6),
    ],
    ids=["singular", "zeros", "dead inputs", "zero weight", "one row", "one column", "tiny", "huge"],
)
def test_broken_inputs_give_finite_weights(way: Way, weight: Tensor, a: Tensor) -> None:
    result = way(weight, factorise(a), torch.ones(weight.shape[0]), 1e-2)
    assert bool(torch.isfinite(result.dense()).all())
    assert result.integers.shape == weight.shape
    assert math.isfinite(result.rate())


def test_inputs_never_seen_get_zeros_and_no_scale() -> None:
    result = rate_aware(normal(4, 3), factorise(torch.diag(torch.tensor([1.0, 0.0, 1.0]))), torch.ones(4), 1e-4)
    assert result.integers[:, 1].tolist() == [0, 0, 0, 0]
    assert float(result.column_scale[1]) == 0.0


def test_rows_without_curvature_are_no_free_rows() -> None:
    rows, _ = waterfilling_steps(unit_factor(2, torch.zeros(1)), torch.tensor([4.0, 0.0, 1.0]), 1.0)
    assert rows.tolist() == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("way", WAYS)
def test_same_input_same_integers_and_input_untouched(way: Way) -> None:
    weight, a, g = normal(5, 8), moment(8), torch.rand(5) + 0.1
    copies = weight.clone(), a.clone(), g.clone()
    first, second = (way(weight, factorise(a), g, 1e-3) for _ in range(2))
    assert torch.equal(first.integers, second.integers)
    assert torch.equal(first.column_scale, second.column_scale)
    assert all(torch.equal(x, y) for x, y in zip(copies, (weight, a, g), strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_types_and_devices_are_kept(way: Way) -> None:
    result = way(normal(3, 4).float(), factorise(moment(4).float()), torch.ones(3), 1e-3)
    assert result.integers.dtype == torch.int32
    assert result.row_scale.dtype == result.column_scale.dtype == result.dense().dtype == torch.float32
    assert result.dense().device.type == "cpu"


def test_rows_of_a_wide_moment_serve_as_the_moment_within_a_block() -> None:
    rows = normal(20, 12)
    whole, cut = factorise(rows.T @ rows), factorise_rows(rows, width=100)
    torch.testing.assert_close(whole.diagonal, cut.diagonal)
    blocks = factorise_rows(rows, width=5)
    assert [len(block) for block in blocks.columns] == [5, 5, 2]
    assert bool(torch.isfinite(gptq(normal(3, 12), blocks, torch.ones(3), 1e-3).dense()).all())


def test_the_descending_order_takes_the_largest_first() -> None:
    asked: list[int] = []
    factor = factorise(torch.diag(torch.tensor([1.0, 5.0, 3.0])), order="descending")
    cancel(torch.zeros(1, 3), factor, lambda j, target: asked.append(j) or target)
    assert asked == [1, 2, 0]
    assert factor.diagonal.argmax() == 1


def test_the_constant_balances_a_bit_against_its_loss() -> None:
    """d/dΔ of ½·Δ²/12 − μ log₂ Δ is zero at the constant."""
    price = 0.37
    c = step_constant(price)
    assert c / 12 == pytest.approx(price / (c * math.log(2)))


def test_fixed_widths_stay_within_their_width() -> None:
    weight = normal(6, 10)
    result = round_gptq(weight, factorise(moment(10)), largest_scales(weight, 4), levels=7)
    assert int(result.integers.abs().max()) <= 7
    assert largest_scales(torch.zeros(2, 3), 8).tolist() == [1.0, 1.0]


def test_entropy_is_that_of_the_counts() -> None:
    z = torch.tensor([[0, 0, 0, 1, 7, 7]])
    assert entropy_bits(z, torch.tensor([[0, 0, 0, 0, 1, 1]])) == pytest.approx(4 * 0.811278, rel=1e-5)
    assert entropy_bits(z, torch.zeros_like(z)) == pytest.approx(sum(-k * math.log2(k / 6) for k in (3, 1, 2)))


def test_a_learned_rate_never_pays_for_growth() -> None:
    table = learned_rate(torch.tensor([[0, 0, 5, -5, 0, 0, 9, 0]]))
    bits = torch.stack([table(0, torch.tensor([float(z)])) for z in range(1, 40)])
    assert bool((bits.diff(dim=0) >= 0).all())
    assert bool((bits > 0).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_and_curvatures_are_refused(bad: float) -> None:
    weight, factor, g = normal(2, 3), factorise(moment(3)), torch.ones(2)
    weight[0, 0] = bad
    for way in WAYS:
        with pytest.raises(Refusal, match="nan or inf"):
            way(weight, factor, g, 1e-3)
    with pytest.raises(Refusal, match="row curvature"):
        waterfilling_steps(factor, torch.tensor([bad, 1.0]), 1.0)
    with pytest.raises(Refusal, match="row curvature"):
        waterfilling_steps(factor, torch.tensor([-1.0, 1.0]), 1.0)
    with pytest.raises(ValueError, match="must be positive"):
        step_constant(0.0)


def test_steps_beyond_float32_integers_are_refused() -> None:
    with pytest.raises(Refusal, match="step is too small"):
        round_nearest(torch.ones(1, 1), torch.tensor([1e-9]), torch.ones(1))
