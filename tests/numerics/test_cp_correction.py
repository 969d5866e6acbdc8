"""Error-preserving correction of CP fits: diverging fits, the bound, known answers, broken inputs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.cp import CPFactors, cp_als, cp_full
from smidgen.numerics.cp_correction import cp_corrected


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def border_rank() -> Tensor:
    """a⊗a⊗b + a⊗b⊗a + b⊗a⊗a: of rank 3, yet approached without end by diverging fits of rank 2."""
    tensor = torch.zeros(2, 2, 2, dtype=torch.float64)
    tensor[0, 0, 1] = tensor[0, 1, 0] = tensor[1, 0, 0] = 1.0
    return tensor


def diverging(weight: Tensor, parameter: float) -> CPFactors:
    """n (a + b/n)⊗³ − n a⊗³, which is `border_rank` up to terms in 1/n."""
    root = parameter ** (1 / 3)
    a, b = torch.eye(2, dtype=torch.float64)
    factor = torch.stack([root * (a + b / parameter), -root * a], dim=1)
    return CPFactors(factor, factor, (factor,))


def true_error(weight: Tensor, factors: CPFactors) -> float:
    return float(torch.linalg.vector_norm(weight - cp_full(factors)) / torch.linalg.vector_norm(weight))


def size(factors: CPFactors) -> float:
    every = [factors.out, factors.inp, *factors.kernel]
    return float(torch.stack([each.square().sum(dim=0) for each in every]).prod(dim=0).sum())


def test_terms_that_cancel_come_down_within_the_bound() -> None:
    weight, start = border_rank(), diverging(border_rank(), 100.0)
    assert true_error(weight, start) < 0.02
    assert size(start) > 1e4
    fit = cp_corrected(weight, start, 0.02, sweeps=1000, tolerance=1e-6)
    assert fit.relative_error <= 0.02
    assert true_error(weight, fit.factors) == pytest.approx(fit.relative_error)
    # Of all fits of rank 2 with that error the smallest still cancel, but far less.
    assert size(fit.factors) < 1e-3 * size(start)
    assert fit.relative_error == pytest.approx(0.02, rel=1e-3)  # all the room is used


def test_more_room_makes_smaller_terms() -> None:
    weight, start = border_rank(), diverging(border_rank(), 100.0)
    fits = [cp_corrected(weight, start, bound, sweeps=500) for bound in (0.02, 0.05, 0.2, 0.5)]
    for before, after in pairwise(fits):
        assert after.degeneracy < before.degeneracy
        assert after.sensitivity < before.sensitivity
    assert not fits[2].degenerate


def test_a_diverging_fit_of_alternating_least_squares_is_mended_at_its_own_error() -> None:
    weight = border_rank()
    fit = cp_als(weight, 2, iterations=1000, tolerance=1e-7, ridge=0.0)
    assert fit.degenerate
    mended = cp_corrected(weight, fit.factors, fit.relative_error, sweeps=300, tolerance=1e-6)
    assert mended.relative_error <= fit.relative_error * (1 + 1e-9)
    assert mended.degeneracy < fit.degeneracy
    assert mended.sensitivity < fit.sensitivity


def test_one_term_shrinks_to_the_bound() -> None:
    # K of rank 1: the smallest K̂ within δ is (1 − δ) K.
    weight = cp_full(CPFactors(normal(4, 1), normal(3, 1, seed=1), (normal(3, 1, seed=2), normal(2, 1, seed=3))))
    fit = cp_corrected(weight, cp_als(weight, 1).factors, 0.25)
    torch.testing.assert_close(cp_full(fit.factors), 0.75 * weight, rtol=1e-5, atol=1e-6)


@given(
    shape=st.lists(st.integers(1, 5), min_size=3, max_size=4).map(tuple), rank=st.integers(1, 8),
    room=st.floats(1.0, 1.5), seed=st.integers(0, 20), single=st.booleans(),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_the_bound_holds_and_terms_never_grow(
    shape: tuple[int, ...], rank: int, room: float, seed: int, single: bool
) -> None:
    weight = normal(*shape, seed=seed, dtype=torch.float32 if single else torch.float64)
    start = cp_als(weight, rank, seed=seed, iterations=10, ridge=0.0)
    bound = min(0.999, max(room * start.relative_error, 1e-4) + 1e-6)
    fit = cp_corrected(weight, start.factors, bound, sweeps=10)
    slack = 1e-5 if single else 1e-12
    assert true_error(weight, fit.factors) <= bound + slack
    assert fit.relative_error == pytest.approx(true_error(weight, fit.factors), rel=1e-3, abs=slack)
    assert size(fit.factors) <= size(start.factors) * (1 + 1e-5)
    assert fit.factors.out.dtype == weight.dtype


def test_zeros_stay_zeros_and_dead_terms_dead() -> None:
    start = cp_als(normal(4, 3, 3), 2).factors
    assert not cp_full(cp_corrected(torch.zeros(4, 3, 3), start, 0.1).factors).any()
    padded = CPFactors(
        *(torch.cat([each, 0 * each], 1) for each in (start.out, start.inp)), (start.kernel[0].repeat(1, 2),)
    )
    fit = cp_corrected(normal(4, 3, 3), padded, 0.99)
    assert bool(torch.isfinite(cp_full(fit.factors)).all())


def test_bad_inputs_say_what_is_wrong() -> None:
    weight = normal(4, 3, 3)
    fit = cp_als(weight, 1)
    with pytest.raises(ValueError, match=r"above bound=0\.01"):
        cp_corrected(weight, fit.factors, 0.01)
    for bad in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            cp_corrected(weight, fit.factors, bad)
    with pytest.raises(Refusal, match="nan or inf"):
        cp_corrected(weight / 0, fit.factors, 0.9)
