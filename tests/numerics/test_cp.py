"""CP decomposition: exact cases, bounds, invariances, degeneracy, and the error curve."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.cp import CPFactors, cp_als, cp_curve, cp_full, cp_ranks_by_error, exact_rank, refit_out


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def low_rank(shape: tuple[int, ...], rank: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    out, inp, *kernel = [normal(length, rank, seed=seed * 10 + axis, dtype=dtype) for axis, length in enumerate(shape)]
    return cp_full(CPFactors(out, inp, tuple(kernel)))


def border_rank() -> Tensor:
    """a⊗a⊗b + a⊗b⊗a + b⊗a⊗a: of rank 3, yet approached without end by diverging fits of rank 2."""
    tensor = torch.zeros(2, 2, 2, dtype=torch.float64)
    tensor[0, 0, 1] = tensor[0, 1, 0] = tensor[1, 0, 0] = 1.0
    return tensor


def every(factors: CPFactors) -> list[Tensor]:
    return [factors.out, factors.inp, *factors.kernel]


def term(factors: CPFactors, r: int) -> Tensor:
    out, inp, *kernel = [factor[:, [r]] for factor in every(factors)]
    return cp_full(CPFactors(out, inp, tuple(kernel)))


def true_error(weight: Tensor, factors: CPFactors) -> float:
    return float(torch.linalg.vector_norm(weight - cp_full(factors)) / torch.linalg.vector_norm(weight))


def test_full_agrees_with_an_einsum() -> None:
    out, inp, y, x = (normal(length, 4, seed=length) for length in (5, 3, 2, 7))
    expected = torch.einsum("tr,sr,yr,xr->tsyx", out, inp, y, x)
    torch.testing.assert_close(cp_full(CPFactors(out, inp, (y, x))), expected)


@pytest.mark.parametrize("shape", [(12, 10, 3, 3), (9, 7, 5), (16, 3, 5, 5), (6, 5, 3, 3, 3)])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
def test_a_tensor_of_the_rank_is_recovered(shape: tuple[int, ...], dtype: torch.dtype, within: float) -> None:
    weight = low_rank(shape, 3, dtype=dtype)
    fit = cp_als(weight, 3, iterations=1000, tolerance=1e-6)
    assert fit.relative_error < within
    assert fit.factors.out.dtype == dtype
    assert [factor.shape for factor in every(fit.factors)] == [(length, 3) for length in shape]


def test_recovered_terms_are_the_true_ones() -> None:
    # CP of rank 2 with independent columns is unique up to order and scale (Kruskal).
    terms = [low_rank((8, 7, 3, 3), 1, seed=seed) for seed in (1, 2)]
    fit = cp_als(terms[0] + terms[1], 2, iterations=1000, tolerance=1e-8)
    found = sorted((term(fit.factors, r) for r in (0, 1)), key=lambda each: float((each - terms[0]).norm()))
    for each, true in zip(found, terms, strict=True):
        torch.testing.assert_close(each, true, rtol=1e-5, atol=1e-5)


@given(
    shape=st.lists(st.integers(1, 5), min_size=3, max_size=4).map(tuple),
    rank=st.integers(1, 12),
    seed=st.integers(0, 5),
    single=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_fit_is_finite_balanced_and_states_its_error(
    shape: tuple[int, ...], rank: int, seed: int, single: bool
) -> None:
    weight = normal(*shape, seed=seed, dtype=torch.float32 if single else torch.float64)
    before = weight.clone()
    fit = cp_als(weight, rank, seed=seed, iterations=20)
    assert torch.equal(weight, before)
    assert fit.factors.nparams == rank * sum(shape)
    assert all(bool(torch.isfinite(factor).all()) for factor in every(fit.factors))
    assert fit.relative_error == pytest.approx(true_error(weight, fit.factors), rel=1e-3, abs=2e-6)
    assert fit.relative_error <= 1 + 1e-6
    norms = torch.stack([torch.linalg.vector_norm(factor, dim=0) for factor in every(fit.factors)])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (2, 6, 3), (3, 2, 1, 5)])
def test_the_exact_rank_is_exact(shape: tuple[int, ...]) -> None:
    assert cp_als(normal(*shape), exact_rank(shape)).relative_error < 1e-7
    assert cp_als(normal(*shape), exact_rank(shape) + 3).relative_error < 1e-7


def test_exact_rank_by_hand() -> None:
    # 4 left vectors; each right one is 3×(2·2) of rank 3; each of those 2×2 of rank 2.
    assert exact_rank((4, 3, 2, 2)) == 4 * 3 * 2
    assert exact_rank((100, 2, 3)) == (2 * 3) * 2


def test_rank_one_is_at_least_the_start_and_at_most_the_best_matrix() -> None:
    weight = normal(8, 6, 3, 3)
    fit = cp_als(weight, 1, iterations=200)
    largest = [
        float(torch.linalg.matrix_norm(weight.movedim(axis, 0).reshape(weight.shape[axis], -1), ord=2))
        for axis in range(4)
    ]
    # ⟨K, unit rank-1⟩ is at most the largest singular value of any unfolding.
    bound = math.sqrt(1 - (min(largest) / float(weight.norm())) ** 2)
    assert bound <= fit.relative_error < 1
    assert fit.degeneracy <= 1 + 1e-6


@given(st.floats(1e-18, 1e18), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_scale_of_the_kernel_does_not_matter(scale: float, seed: int) -> None:
    weight = normal(6, 5, 3, 3, seed=seed, dtype=torch.float32)
    plain, scaled = cp_als(weight, 4, iterations=15), cp_als(weight * scale, 4, iterations=15)
    assert scaled.relative_error == pytest.approx(plain.relative_error, rel=1e-3)
    assert scaled.degeneracy == pytest.approx(plain.degeneracy, rel=1e-2)
    assert scaled.sensitivity == pytest.approx(plain.sensitivity, rel=1e-2)


@given(st.permutations(range(6)), st.permutations(range(5)))
@settings(max_examples=10, deadline=None)
def test_order_of_channels_hardly_matters(rows: list[int], columns: list[int]) -> None:
    weight = low_rank((6, 5, 3, 3), 2, seed=3)
    assert cp_als(weight[rows][:, columns], 2, iterations=500, tolerance=1e-6).relative_error < 1e-5


def test_order_of_terms_does_not_matter() -> None:
    factors = CPFactors(normal(4, 3), normal(5, 3), (normal(3, 3),))
    turned = CPFactors(factors.out[:, [2, 0, 1]], factors.inp[:, [2, 0, 1]], (factors.kernel[0][:, [2, 0, 1]],))
    torch.testing.assert_close(cp_full(turned), cp_full(factors))


def test_same_seed_same_fit_to_the_bit() -> None:
    weight = normal(8, 6, 3, 3, dtype=torch.float32)
    first, again, other = (cp_als(weight, 70, seed=seed, iterations=10) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(every(first.factors), every(again.factors), strict=True))
    assert not torch.equal(first.factors.out, other.factors.out)


def test_zeros_give_zeros() -> None:
    fit = cp_als(torch.zeros(4, 3, 3, 3), 2)
    assert fit.relative_error == 0.0
    assert not cp_full(fit.factors).any()
    assert not fit.degenerate


def test_a_diverging_fit_is_flagged_and_finite() -> None:
    fit = cp_als(border_rank(), 2, iterations=3000, tolerance=1e-7, ridge=0.0)
    assert fit.degenerate
    assert fit.relative_error < 0.01
    assert all(bool(torch.isfinite(factor).all()) for factor in every(fit.factors))


def test_the_ridge_holds_a_diverging_fit_back() -> None:
    loose, held = (cp_als(border_rank(), 2, iterations=500, tolerance=1e-7, ridge=eta) for eta in (0.0, 0.3))
    assert held.degeneracy < 0.9 * loose.degeneracy
    assert held.sensitivity < 0.9 * loose.sensitivity
    assert held.relative_error < 0.1


def test_a_sound_fit_is_not_flagged() -> None:
    assert not cp_als(border_rank(), 3).degenerate
    assert not cp_als(low_rank((12, 10, 3, 3), 3), 3).degenerate


def test_sensitivity_is_the_error_of_noisy_factors() -> None:
    weight = normal(6, 5, 3, 3)
    fit = cp_als(weight / weight.norm(), 4)
    clean, sigma = cp_full(fit.factors), 1e-4
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(2000):
        out, inp, *rest = [
            factor + sigma * torch.randn(factor.shape, generator=generator, dtype=factor.dtype)
            for factor in every(fit.factors)
        ]
        squares.append(float((cp_full(CPFactors(out, inp, tuple(rest))) - clean).square().sum()))
    # 2000 draws of a sum of about 100 squares: under 1 % of standard error.
    assert sum(squares) / len(squares) / sigma**2 == pytest.approx(fit.sensitivity, rel=0.05)


@given(ranks=st.sets(st.integers(1, 30), min_size=1, max_size=6).map(sorted), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_more_rank_is_never_more_error(ranks: list[int], seed: int) -> None:
    weight = normal(6, 4, 3, 3, seed=seed, dtype=torch.float32)
    fits = cp_curve(weight, ranks, seed=seed, iterations=8)
    errors = [fit.relative_error for fit in fits]
    assert errors == sorted(errors, reverse=True)
    for rank, fit in zip(ranks, fits, strict=True):
        assert fit.factors.rank == rank
        assert fit.relative_error == pytest.approx(true_error(weight, fit.factors), rel=1e-3, abs=2e-6)


def test_a_curve_goes_on_past_an_exact_fit() -> None:
    fits = cp_curve(low_rank((6, 5, 3), 2), [1, 2, 3, 9], iterations=500, tolerance=1e-8)
    assert [fit.relative_error < 1e-6 for fit in fits] == [False, True, True, True]


def test_a_warm_curve_ends_as_low_as_a_cold_fit() -> None:
    weight = normal(16, 12, 3, 3)
    warm = cp_curve(weight, [4, 8, 16, 24, 32])[-1]
    assert warm.relative_error <= 1.03 * cp_als(weight, 32).relative_error


def test_the_rank_for_an_error_is_found() -> None:
    weight = low_rank((14, 12, 3, 3), 5) + 1e-3 * normal(14, 12, 3, 3, seed=9)
    search = cp_ranks_by_error(weight, 0.01, iterations=300, tolerance=1e-6)
    assert search.reached
    assert search.fit.factors.rank == 5
    ranks, errors = zip(*search.curve, strict=True)
    assert list(ranks) == sorted(set(ranks))
    assert list(errors) == sorted(errors, reverse=True)
    assert dict(search.curve)[4] > 0.01


def test_an_error_out_of_reach_is_said_to_be() -> None:
    search = cp_ranks_by_error(normal(8, 8, 3, 3), 0.01, max_rank=6)
    assert not search.reached
    assert search.fit.factors.rank == 6


@pytest.mark.parametrize("singular", [False, True])
def test_refit_out_is_where_the_gradient_vanishes(singular: bool) -> None:
    weight, basis, root = normal(5, 12, seed=1), normal(4, 12, seed=2), normal(12, 12, seed=3)
    if singular:
        basis[3], root[:, 5:] = basis[0] * 1e3, 0.0
    moment = root @ root.T
    fitted = refit_out(weight, basis, moment)
    gradient = (weight - fitted @ basis) @ moment @ basis.T
    assert float(gradient.abs().max()) < 1e-8 * float((weight @ moment @ basis.T).abs().max())


def test_refit_out_under_a_moment_beats_least_squares_there_and_only_there() -> None:
    weight, basis, root = normal(5, 12, seed=1), normal(4, 12, seed=2), normal(12, 12, seed=3)
    moment = root @ root.T

    def cost(fitted: Tensor, under: Tensor) -> float:
        left = weight - fitted @ basis
        return float(torch.trace(left @ under @ left.T))

    seen, plain = refit_out(weight, basis, moment), refit_out(weight, basis)
    assert cost(seen, moment) < cost(plain, moment)
    assert cost(plain, torch.eye(12, dtype=torch.float64)) < cost(seen, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(plain, weight @ torch.linalg.pinv(basis))


def test_refit_out_ignores_rows_that_nothing_reaches() -> None:
    basis = torch.zeros(2, 3)
    basis[0, 0], basis[1, 1] = 1.0, 1.0
    moment = torch.diag(torch.tensor([1.0, 0.0, 1.0]))
    assert refit_out(torch.tensor([[2.0, 3.0, 4.0]]), basis, moment).tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_kernel_that_is_not_finite_is_refused(bad: float) -> None:
    weight = normal(4, 3, 3, 3)
    weight[0, 0, 0, 0] = bad
    with pytest.raises(Refusal, match="nan or inf"):
        cp_als(weight, 2)


def test_a_matrix_is_refused() -> None:
    with pytest.raises(Refusal, match="no kernel axis"):
        cp_als(normal(4, 3), 2)


def test_bad_ranks_and_targets_are_errors() -> None:
    weight = normal(4, 3, 3)
    with pytest.raises(ValueError, match="at least 1"):
        cp_als(weight, 0)
    with pytest.raises(ValueError, match="rise strictly"):
        cp_curve(weight, [2, 2])
    with pytest.raises(ValueError, match="between 0 and 1"):
        cp_ranks_by_error(weight, 1.0)
    with pytest.raises(ValueError, match="starts from"):
        cp_als(weight, 1, initial=cp_als(weight, 2).factors)
